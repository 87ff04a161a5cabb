"""Draw a labelled folder of photo-like images to try everything on: DIR/CLASS/0001.jpg, and a few dirty files.

    shardline-sample-data --output photos [--classes 6 --images_per_class 120 --seed 0]

Flowers and fruit in pairs of one hue, on backgrounds of any hue: a VGG16 learns them from scratch in minutes, the mean
color of an image does not tell them apart. Among them lie four files as real folders have them: a truncated JPEG,
one that a camera stored sideways, a CMYK JPEG and a PNG named .jpg.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from shardline.pipeline.cli import progress, run
from shardline.pipeline.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    ProcessedImage = NDArray[np.uint8]  # [height, width, 3], RGB

MAX_CLASSES = 12
MAX_IMAGES_PER_CLASS = 9999  # names have four digits

_OUTPUT = flags.DEFINE_string("output", "", "folder to draw into; new or empty")
_CLASSES = flags.DEFINE_integer("classes", 6, f"number of classes, 2 to {MAX_CLASSES}; an even number keeps the pairs")
_IMAGES = flags.DEFINE_integer("images_per_class", 120, f"images in each class, 1 to {MAX_IMAGES_PER_CLASS}")
_SEED = flags.DEFINE_integer("seed", 0, "another number draws other images of the same classes")


def main() -> None:
    """Flags in, a folder of images out."""
    if not _OUTPUT.value:
        raise UsageError("--output is missing; name a new folder, e.g. --output photos")
    if not 2 <= _CLASSES.value <= MAX_CLASSES:
        raise UsageError(f"--classes={_CLASSES.value}: choose 2 to {MAX_CLASSES}")
    if not 1 <= _IMAGES.value <= MAX_IMAGES_PER_CLASS:
        raise UsageError(f"--images_per_class={_IMAGES.value}: choose 1 to {MAX_IMAGES_PER_CLASS}")
    if _SEED.value < 0:
        raise UsageError(f"--seed={_SEED.value}: choose 0 or more")
    images, dirty = draw(Path(_OUTPUT.value), _CLASSES.value, _IMAGES.value, _SEED.value)
    print(f"{images} images of {_CLASSES.value} classes and {dirty} dirty files in {_OUTPUT.value}")


@dataclass(frozen=True)
class Task:
    """One file to draw. Its image depends on the seed, the class and the number, and on nothing else."""

    path: Path
    class_name: str
    number: int
    encode: Callable[[ProcessedImage, int], bytes]


def plan(classes: int, images_per_class: int) -> list[Task]:
    """Every file, relative to the output, the dirty ones spread over the classes."""
    from shardline.tools.sample_images import KINDS

    names = list(KINDS)[:classes]
    tasks = []
    for name in names:
        for number in range(1, images_per_class + 1):
            # Every seventh a PNG, the rest JPEGs of many qualities.
            ending, encode = (".png", _png) if number % 7 == 0 else (".jpg", _jpeg)
            tasks.append(Task(Path(name, f"{number:04d}{ending}"), name, number, encode))
    for index, (stem, encode) in enumerate(DIRTY.items()):
        name = names[index % classes]
        tasks.append(Task(Path(name, f"{stem}.jpg"), name, images_per_class + 1 + index, encode))
    return tasks


def draw(output: Path, classes: int, images_per_class: int, seed: int) -> tuple[int, int]:
    """Draw the folder; class folders appear in it when all are whole. Returns how many images and dirty files."""
    import cv2

    tasks = plan(classes, images_per_class)
    folders = sorted({str(task.path.parent) for task in tasks})
    # One thread an image does more than several threads on one.
    cv2.setNumThreads(1)
    partial = output / ".partial"
    is_new = _claim(output)
    try:
        for folder in folders:
            (partial / folder).mkdir(parents=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                files = pool.map(lambda task: _draw_one(partial, task, seed), tasks)
                for _ in progress(files, total=len(tasks), desc="drawing", unit="images"):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)  # Ctrl-C should not wait for images nobody wants
                raise
        for folder in folders:
            (partial / folder).rename(output / folder)
    except BaseException:
        shutil.rmtree(output if is_new else partial, ignore_errors=True)
        raise
    partial.rmdir()
    return len(tasks) - len(DIRTY), len(DIRTY)


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


def _draw_one(folder: Path, task: Task, seed: int) -> None:
    import numpy as np

    from shardline.tools.sample_images import KINDS, paint

    rng = np.random.default_rng([seed, list(KINDS).index(task.class_name), task.number])
    image = paint(KINDS[task.class_name], rng)
    (folder / task.path).write_bytes(task.encode(image, int(rng.integers(60, 96))))


# --- Encoders: (image, JPEG quality) -> bytes of a file ---------------------------------------------------------


def _jpeg(image: ProcessedImage, quality: int) -> bytes:
    import simplejpeg

    return simplejpeg.encode_jpeg(image, quality, "RGB", "420")


def _png(image: ProcessedImage, quality: int) -> bytes:
    import cv2

    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def _truncated(image: ProcessedImage, quality: int) -> bytes:
    """A download that broke off: two thirds of the file."""
    data = _jpeg(image, quality)
    return data[: len(data) * 2 // 3]


def _sideways(image: ProcessedImage, quality: int) -> bytes:
    """Stored as the sensor lay, turned by a quarter; EXIF orientation 6 asks the viewer to turn it back clockwise."""
    import numpy as np

    data = _jpeg(np.ascontiguousarray(np.rot90(image)), quality)
    # A big-endian TIFF header and a directory of one entry: tag 0x0112 (orientation), type 3 (short), count 1.
    directory = struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + b"MM\0*" + struct.pack(">I", 8) + directory
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def _cmyk(image: ProcessedImage, quality: int) -> bytes:
    """From a print shop: four inks, stored inverted as Adobe does, here without any black."""
    import numpy as np
    import simplejpeg

    no_black = np.full((*image.shape[:2], 1), 255, np.uint8)
    return simplejpeg.encode_jpeg(np.concatenate([image, no_black], axis=2), quality, "CMYK", "444")


DIRTY = {"truncated": _truncated, "sideways": _sideways, "cmyk": _cmyk, "really-a-png": _png}


def cli() -> None:
    """Entry point of the console script."""
    run(main)


if __name__ == "__main__":
    cli()
