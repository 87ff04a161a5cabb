"""What GPUs do while training: their load, power, clock and traffic, as NVIDIA's management library tells.

With the package nvidia-ml-py alone; without it, or without a driver, there are no figures. A thread asks once a second,
since some answers take 20 ms.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

SECONDS = 1.0  # between two looks


class GpuFigures:
    """Means over the time since they were last taken, and over the GPUs that this process may use.

    gpu_utilization_percent: share of the time in which a kernel ran. gpu_watts: power. gpu_mhz: clock of the
    multiprocessors, which falls when a GPU is too hot or its power is capped. gpu_pcie_mb_per_second: what it receives.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._questions = list(_questions())
        self._thread = threading.Thread(target=self._watch, args=(seconds,), name="gpu figures", daemon=True)
        if self._questions:
            self._thread.start()

    def take(self) -> dict[str, float]:
        """The means by name, to a tenth; begins anew."""
        with self._lock:
            means = {name: round(total / self._counts[name], 1) for name, total in self._sums.items()}
            self._sums.clear()
            self._counts.clear()
        return means

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()
        if self._questions:
            self._thread.join()

    def _watch(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            self.look()

    def look(self) -> None:
        """Ask all questions once. What a GPU does not tell, as one that is divided, is left out."""
        for name, ask in self._questions:
            with suppress(Exception):  # pynvml's own, by the dozen
                value = ask()
                with self._lock:
                    self._sums[name] += value
                    self._counts[name] += 1


def _questions() -> Iterator[tuple[str, Callable[[], float]]]:
    try:
        import pynvml
    except ImportError:
        return
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in _visible(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return
    for handle in handles:
        for name, ask in _of_one(pynvml).items():
            yield name, partial(ask, handle)


def _of_one(pynvml: Any) -> dict[str, Callable[[Any], float]]:
    return {
        "gpu_utilization_percent": lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        "gpu_watts": lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        "gpu_mhz": lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
        "gpu_pcie_mb_per_second": lambda gpu: (
            pynvml.nvmlDeviceGetPcieThroughput(gpu, pynvml.NVML_PCIE_UTIL_RX_BYTES) / 1e3
        ),
    }


def _visible(count: int, environment: Mapping[str, str] = os.environ) -> list[int]:
    """Numbers of the GPUs that CUDA may use; all where they are named in another way."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if all(word.strip().isdigit() for word in chosen):
        return [int(word) for word in chosen if int(word) < count]
    return list(range(count))
