"""Draw a labeled folder of photo-like images to try everything on: DIR/CLASS/0001.jpg, and a few difficult files.

    shardline-sample-data --output photos [--classes 6 --images_per_class 120 --seed 0]

Flowers and fruit in pairs of one hue, on backgrounds of any hue: a VGG16 learns them from scratch in minutes, the mean
color of an image does not tell them apart. Among them lie four files as real folders have them: a truncated JPEG,
one that a camera stored sideways, a CMYK JPEG and a PNG named .jpg.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import atomic_write
from shardline.pipeline.image_bytes import encode_rgb
from shardline.pipeline.machine import available_cores
from shardline.pipeline.options import check_options, option
from shardline.pipeline.wording import count

MAX_CLASSES = 12


@dataclass(frozen=True)
class SampleDataConfig:
    """What to draw: `sample_data(SampleDataConfig(output=…))`. One field, one flag."""

    output: str = option("", "folder to draw into; new or empty", path="folder")
    classes: int = option(6, "number of classes; an even number keeps the pairs of one hue", low=2, high=MAX_CLASSES)
    images_per_class: int = option(120, "images in each class; names have four digits", low=1, high=9999)
    seed: int = option(0, "another number draws other images of the same classes", low=0)

    def __post_init__(self) -> None:
        check_options(self)
        if not self.output:
            raise UsageError("--output is missing; name a new folder, e.g. --output=photos")


@dataclass(frozen=True)
class Task:
    """One file to draw. Its image depends on the seed, the class and the number, and on nothing else."""

    path: Path  # relative to the output
    class_name: str
    number: int
    encode: Callable[[np.ndarray, int], bytes]


def sample_data(config: SampleDataConfig) -> tuple[int, int]:
    """Draw the folder; class folders appear in it when all are whole.

    Returns:
      The number of images, and that of the difficult files among them.

    Raises:
      UsageError: the output is in use or cannot be made.
    """
    import cv2  # not for --help

    output = Path(config.output)
    tasks = plan_files(config.classes, config.images_per_class)
    folders = sorted({str(task.path.parent) for task in tasks})
    cv2.setNumThreads(1)  # one thread an image does more than several threads on one
    partial = output / ".partial"
    is_new = _claim(output)
    partial.mkdir()
    try:
        for folder in folders:
            (partial / folder).mkdir(parents=True)
        _draw_files(partial, tasks, config.seed)
        for folder in folders:
            (partial / folder).rename(output / folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # which this process made
        if is_new:
            with contextlib.suppress(OSError):
                output.rmdir()
        raise
    partial.rmdir()
    return len(tasks), len(DIFFICULT)


def plan_files(classes: int, images_per_class: int) -> list[Task]:
    """Every file, the difficult ones spread over the classes."""
    from shardline.tools.sample_images import KINDS  # OpenCV: not for --help

    names = list(KINDS)[:classes]
    tasks = []
    for name in names:
        for number in range(1, images_per_class + 1):
            # Every seventh a PNG, the rest JPEGs of many qualities.
            ending, encode = (".png", _png) if number % 7 == 0 else (".jpg", _jpeg)
            tasks.append(Task(Path(name, f"{number:04d}{ending}"), name, number, encode))
    for index, (stem, encode) in enumerate(DIFFICULT.items()):
        name = names[index % classes]
        tasks.append(Task(Path(name, f"{stem}.jpg"), name, images_per_class + 1 + index, encode))
    return tasks


def _claim(output: Path) -> bool:
    """Make the folder, unless it is there and empty. Returns whether it is new."""
    try:
        output.mkdir(parents=True)
        return True
    except FileExistsError:
        if not output.is_dir() or any(output.iterdir()):
            raise UsageError(f"--output={output} exists and is not an empty folder; name another") from None
        return False
    except OSError as error:
        raise UsageError(f"--output={output} cannot be made: {error.strerror}; name another folder") from error


def _draw_files(folder: Path, tasks: list[Task], seed: int) -> None:
    with ThreadPoolExecutor(available_cores()) as pool:
        try:
            files = pool.map(lambda task: _draw_file(folder, task, seed), tasks)
            for _ in command_line.progress(files, total=len(tasks), desc="draw", unit="image"):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C should not wait for images nobody wants
            raise


def _draw_file(folder: Path, task: Task, seed: int) -> None:
    from shardline.tools.sample_images import KINDS, paint  # OpenCV: not for --help

    rng = np.random.default_rng([seed, list(KINDS).index(task.class_name), task.number])
    image = paint(KINDS[task.class_name], rng)
    atomic_write(folder / task.path, task.encode(image, int(rng.integers(60, 96))), durable=False)


# --- Encoders: (image [height, width, 3] in RGB, JPEG quality) -> bytes of a file ---------------------------------


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    import simplejpeg

    data: bytes = simplejpeg.encode_jpeg(image, quality, "RGB", "420")
    return data


def _png(image: np.ndarray, quality: int) -> bytes:
    return encode_rgb(image, "png")


def _truncated(image: np.ndarray, quality: int) -> bytes:
    """A download that broke off: two thirds of the file."""
    data = _jpeg(image, quality)
    return data[: len(data) * 2 // 3]


def _sideways(image: np.ndarray, quality: int) -> bytes:
    """Stored as the sensor lay, turned by a quarter; EXIF orientation 6 asks the viewer to turn it back clockwise."""
    data = _jpeg(np.ascontiguousarray(np.rot90(image)), quality)
    # A big-endian TIFF header and a directory of one entry: tag 0x0112 (orientation), type 3 (short), count 1.
    directory = struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + b"MM\0*" + struct.pack(">I", 8) + directory
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def _cmyk(image: np.ndarray, quality: int) -> bytes:
    """From a print shop: four inks, stored inverted as Adobe does, here without any black."""
    import simplejpeg

    no_black = np.full((*image.shape[:2], 1), 255, np.uint8)
    data: bytes = simplejpeg.encode_jpeg(np.concatenate([image, no_black], axis=2), quality, "CMYK", "444")
    return data


DIFFICULT = {"truncated": _truncated, "sideways": _sideways, "cmyk": _cmyk, "really-a-png": _png}


def main(config: SampleDataConfig) -> None:
    """The command: draw the folder and say what is in it."""
    files, difficult = sample_data(config)
    drawn = f"{count(files, 'image')} of {count(config.classes, 'class')}"
    print(f"{config.output}: {drawn}, {difficult} of them difficult to read")


def cli() -> None:
    """Run the console script `shardline-sample-data`."""
    command_line.run(main, SampleDataConfig, __doc__)


if __name__ == "__main__":
    cli()
