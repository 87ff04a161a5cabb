"""One image at a time: `pipeline.images.process` beside the plain OpenCV loop, in speed and in fidelity. One thread.

The plain loop is cv2.imread, INTER_AREA to short side 256, cv2.imencode at quality 90. It checks nothing. Ours also
reads the header, refuses what libjpeg only warns of, applies EXIF, and hashes the pixels twice. Records and shards are
not part of this: `bench_convert` measures the whole command.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.images import find_images, read, twelve_megapixels
from shardline.benchmarks.measure import Measurement, interleave
from shardline.benchmarks.processes import timed
from shardline.pipeline.image_headers import read_header
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.images import process, set_up_process

SIZE, PHOTOS = 256, 320
REFERENCE, OURS = "plain loop", "shardline, one image"
CLASSES = (1.0, 1.2, 1.4, 1.6, 2.0, 3.2, 6.4, 1000.0)  # of short side / SIZE


def photographs(config: BenchConfig) -> list[Measurement]:
    """Photographs as they are."""
    return _measure("one image: photographs", find_images(config.raw_images, PHOTOS), config)


def large_images(config: BenchConfig) -> list[Measurement]:
    """Photographs as a camera takes them; then how true the results of both sets are, on stderr."""
    photos = find_images(config.raw_images, PHOTOS)
    with tempfile.TemporaryDirectory() as folder:
        large = twelve_megapixels(Path(folder) / "camera", photos, 6)
        measured = _measure("one image: 12 megapixels", large, config)
        # The photographs again at other sizes: more classes of reduction than one size would show.
        sizes = ((photos, SIZE), (photos, SIZE // 2), (photos, SIZE // 4), (large, SIZE))
        print(fidelity_table(sizes), file=sys.stderr)
    return measured


def _measure(suite: str, paths: list[Path], config: BenchConfig) -> list[Measurement]:
    set_up_process()

    def all_of_them(convert: Callable[[Path, int], bytes]) -> int:
        for path in paths:
            convert(path, SIZE)
        return len(paths)

    return interleave(
        suite,
        {
            REFERENCE: lambda: timed(partial(all_of_them, plain)),
            OURS: lambda: timed(partial(all_of_them, ours)),
        },
        repeats=config.repeats,
        reference=REFERENCE,
        what={
            REFERENCE: f"cv2.imread, INTER_AREA to short side {SIZE}, imencode 90; no checks; one thread",
            OURS: "pipeline.images.process: same size and quality, every check, two hashes; one thread",
        },
        settings={"images": len(paths), "size": SIZE},
    )


def plain(path: Path, size: int) -> bytes:
    """One turn of the plain loop."""
    image = read(path)
    height, width = image.shape[:2]
    scale = size / min(height, width)
    image = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def ours(path: Path, size: int) -> bytes:
    """The converter's work on one image."""
    return process(path.read_bytes(), ImageOptions(size=size)).data


def decibels(stored: bytes, path: Path) -> float:
    """PSNR of a stored JPEG against Pillow's Lanczos at the same size."""
    got = np.asarray(cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR_RGB))
    source = cv2.cvtColor(read(path), cv2.COLOR_BGR2RGB)
    want = np.asarray(Image.fromarray(source).resize(got.shape[1::-1], Image.Resampling.LANCZOS))
    return cv2.PSNR(got, want)


def fidelity_table(sizes: tuple[tuple[list[Path], int], ...]) -> str:
    """Mean PSNR of the plain loop and of ours, for each class of reduction of the images at the given sizes."""
    found: dict[int, list[tuple[float, float]]] = {}
    for paths, size in sizes:
        for path in paths:
            header = read_header(path.read_bytes())
            reduction = min(header.height, header.width) / size
            if reduction > 1 and header.orientation == 1:
                number = int(np.searchsorted(CLASSES, reduction, side="right"))
                pair = decibels(plain(path, size), path), decibels(ours(path, size), path)
                found.setdefault(number, []).append(pair)
    lines = [f"{'PSNR against Lanczos, dB':28}  images  plain   ours  difference"]
    for number, pairs in sorted(found.items()):
        name = f"{CLASSES[number - 1]:g}–{CLASSES[number]:g} times smaller"
        reference, own = np.mean(pairs, axis=0)
        lines.append(f"{name:28}  {len(pairs):6}  {reference:5.2f}  {own:5.2f}  {own - reference:+.2f}")
    return "\n".join(lines)
