"""Photographs to measure with: found in a folder, taken evenly, joined to 12 megapixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from shardline.pipeline.errors import UsageError
from shardline.pipeline.image_files import load_files
from shardline.pipeline.image_options import ImageOptions


def evenly_spaced(total: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `total`, spread evenly, the first and the last among them."""
    return [int(number) for number in np.unique(np.linspace(0, total - 1, min(most, total)).astype(int))]


def find_images(folder: str | Path, most: int | None = None) -> list[Path]:
    """The files that can be decoded, at any depth, sorted by name; of larger folders, of `most` evenly spaced files.

    Raises:
      UsageError: there is none.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    paths = [paths[number] for number in evenly_spaced(len(paths), most or len(paths))]
    # In processes of their own: a decoder that crashes or hangs costs its file.
    loaded = load_files(list(map(str, paths)), ImageOptions(size=32))
    found = [paths[number] for number in sorted(number for number, image in loaded if not isinstance(image, str))]
    if not found:
        raise UsageError(f"--raw_images={folder}: no image found in it")
    return found


def twelve_megapixels(folder: Path, photos: list[Path], count: int) -> list[Path]:
    """Images of 4000 x 3000 as a camera writes them (4:2:0, quality 92), each a mosaic of 48 real photographs."""
    folder.mkdir()
    made = []
    for number in range(count):
        mosaic = np.empty((3000, 4000, 3), np.uint8)
        for tile in range(48):
            row, column = divmod(tile, 8)
            photo = read(photos[(number * 48 + tile) % len(photos)])
            mosaic[row * 500 : row * 500 + 500, column * 500 : column * 500 + 500] = cv2.resize(photo, (500, 500))
        made.append(folder / f"{number:03d}.jpg")
        cv2.imwrite(str(made[-1]), mosaic, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return made


def read(path: Path) -> np.ndarray:
    """BGR pixels, [height, width, 3] uint8. Raises ValueError where OpenCV cannot read the file."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: OpenCV cannot read it")
    return image
