"""--balanced_sampling: every class equally often, and still batch = f(dataset, seed, position). No TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shardline.pipeline import rng
from shardline.pipeline.sampler import ShuffleSampler


@dataclass(frozen=True, eq=False)
class BalancedSampler(ShuffleSampler):
    """Position -> record: each run of C positions holds one record of each of the C classes, in shuffled order.

    A class goes through all its records, shuffled anew each time, before any of them comes again.
    """

    labels: np.ndarray = None  # type: ignore[assignment]  # of each record

    def records(self, positions: np.ndarray) -> np.ndarray:
        """int64 record numbers at `positions`."""
        turns, places = np.divmod(np.asarray(positions, np.int64), len(self._members))
        found = np.empty_like(places)
        for turn in np.unique(turns):
            chosen = turns == turn
            key = rng.key(self.seed, "classes", int(turn))
            classes = np.argsort(rng.bits(key, np.arange(len(self._members))))[places[chosen]]
            found[chosen] = [self._member(int(c), int(turn)) for c in classes]
        return found

    def _member(self, number: int, turn: int) -> int:
        members = self._members[number]
        lap, place = divmod(turn, len(members))
        order = ShuffleSampler(len(members), rng.key(self.seed, "class", number))
        return int(members[order.records(np.array([lap * len(members) + place]))[0]])

    @cached_property
    def _members(self) -> list[np.ndarray]:
        """The records of each class that has any."""
        return [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]
