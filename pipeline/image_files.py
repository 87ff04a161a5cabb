"""Image files decoded in other processes, where a decoder that crashes or hangs costs one file. No TensorFlow."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from shardline.pipeline import executors
from shardline.pipeline.executors import Show, Task, no_show
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.machine import available_cores
from shardline.pipeline.source_files import MachineFault, read_file

FILES_A_TASK = 8  # of photographs at full size, 300 MB on their way from process to process


@dataclass(frozen=True)
class _Task(Task):
    """Files to load: the task of a worker."""

    first: int  # number of the first file
    files: tuple[str | bytes, ...]  # their paths or their bytes
    options: ImageOptions

    def __len__(self) -> int:
        return len(self.files)

    def describe(self, position: int) -> str:
        """Its path."""
        file = self.files[position]
        return file if isinstance(file, str) else "an image"


def load_files(files: Sequence[str | bytes], options: ImageOptions) -> Iterator[tuple[int, np.ndarray | str]]:
    """For each file its number and its image, uint8 RGB [height, width, 3], or why there is none; in any order.

    Args:
      files: paths of image files, or their bytes.
      options: the images are those that a conversion with these options would store.
    """
    tasks = [
        _Task(first, tuple(files[first : first + FILES_A_TASK]), options)
        for first in range(0, len(files), FILES_A_TASK)
    ]
    for first, images in executors.run(_load, tasks, workers=max(1, min(available_cores(), len(tasks)))):
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
        file = task.files[position]
        data = read_file(os.fsencode(file), limit_bytes) if isinstance(file, str) else file
        if reason := dict(task.unsafe).get(position):
            raise BadImage(reason, executors.WHY[reason])
        show(position, decoding=True)
        return load_rgb(data, task.options)
    except (BadImage, MachineFault) as error:
        return " ".join(str(error).split())
    except MemoryError:
        return "too large for this machine's memory"


class ImageLoader:
    """Loads images when they are asked for, by any number of threads: those that wait together share processes."""

    def __init__(self, options: ImageOptions) -> None:
        self._options = options
        self._asked: SimpleQueue[tuple[str | bytes, Future[np.ndarray | str]]] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def load(self, file: str | bytes) -> np.ndarray | str:
        """The image of a file, named or given as its bytes, or why there is none, as `load_files` has it.

        Raises:
          Failure: the processes were lost again and again.
        """
        answer: Future[np.ndarray | str] = Future()
        self._asked.put((file, answer))
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, daemon=True)
                self._thread.start()
        return answer.result()

    def _serve(self) -> None:
        while True:
            asked = [self._asked.get()]
            while len(asked) < FILES_A_TASK and not self._asked.empty():
                asked.append(self._asked.get())
            try:
                for number, image in load_files([file for file, _ in asked], self._options):
                    asked[number][1].set_result(image)
            except Exception as error:
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(error)
