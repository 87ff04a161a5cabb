"""Image files decoded in other processes, where a decoder that crashes or hangs costs one file. No TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shardline.pipeline import executors
from shardline.pipeline.executors import Show, no_show
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.machine import available_cores
from shardline.pipeline.source_files import MachineFault, read_file

FILES_A_TASK = 8  # of photographs at full size, 300 MB on their way from process to process


@dataclass(frozen=True)
class _Task:
    """Files to load: the task of a worker."""

    first: int  # number of the first file
    paths: tuple[str, ...]
    options: ImageOptions
    unsafe: tuple[tuple[int, str], ...] = ()  # positions whose decoder ended the process, or did not end, and why

    def __len__(self) -> int:
        return len(self.paths)

    def without(self, position: int, reason: str) -> _Task:
        """The same with one file not decoded."""
        return replace(self, unsafe=(*self.unsafe, (position, reason)))

    def describe(self, position: int) -> str:
        """Its path."""
        return self.paths[position]


def load_files(paths: Sequence[str], options: ImageOptions) -> Iterator[tuple[int, np.ndarray | str]]:
    """For each file its number and its image, uint8 RGB [height, width, 3], or why there is none; in any order.

    Args:
      paths: of image files.
      options: the images are those that a conversion with these options would store.
    """
    tasks = [
        _Task(first, tuple(paths[first : first + FILES_A_TASK]), options)
        for first in range(0, len(paths), FILES_A_TASK)
    ]
    for first, images in executors.run(_load, tasks, workers=min(available_cores(), len(tasks))):
        yield from enumerate(images, first)


def _load(task: _Task, show: Show = no_show) -> tuple[int, list[np.ndarray | str]]:
    from shardline.pipeline.images import set_up_process  # OpenCV: not for --help

    set_up_process()
    return task.first, [_load_one(task, position, show) for position in range(len(task))]


def _load_one(task: _Task, position: int, show: Show) -> np.ndarray | str:
    from shardline.pipeline.images import load_rgb  # OpenCV: not for --help

    show(position)
    limit_bytes = int(task.options.max_megapixels * 8e6) + (1 << 20)
    try:
        data = read_file(os.fsencode(task.paths[position]), limit_bytes)
        if reason := dict(task.unsafe).get(position):
            raise BadImage(reason, executors.WHY[reason])
        show(position, decoding=True)
        return load_rgb(data, task.options)
    except (BadImage, MachineFault) as error:
        return " ".join(str(error).split())
    except MemoryError:
        return "too large for this machine's memory"
