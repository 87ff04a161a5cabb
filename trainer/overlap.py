"""Loops that keep the device busy while the host looks at results: each result is taken one batch late."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

B = TypeVar("B")
R = TypeVar("R")


def one_late(compute: Callable[[B], R], batches: Iterable[B]) -> Iterator[tuple[B, R]]:
    """Each batch with `compute` of it, given out when the next batch was handed to the device.

    Whoever reads a result waits for it, so reading it any earlier would leave the device without work meanwhile.
    """
    late: tuple[B, R] | None = None
    for batch in batches:
        result = compute(batch)
        if late is not None:
            yield late
        late = batch, result
    if late is not None:
        yield late


class InputWaits:
    """How long loops wait for their batches, as a share of their time.

    On a GPU, which may still be busy with the batch before, the device waits less than the host, whose share this is.
    """

    def __init__(self) -> None:
        self._waited = self._total = 0.0

    @property
    def share(self) -> float | None:
        """From 0 to 1; None before the first batch."""
        return self._waited / self._total if self._total else None

    def over(self, batches: Iterable[B]) -> Iterator[B]:
        """The same batches, timed."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            yield batch
            self._total += time.perf_counter() - began  # with what was done with it
