"""One image at a time: `pipeline.images.process` against the plain OpenCV loop, in speed and in fidelity. One thread.

    python -m shardline.benchmarks.bench_image --raw_images=DIR [--output=results.jsonl]

The plain loop is what people write: cv2.imread, INTER_AREA to short side 256, cv2.imencode at quality 90. It checks
nothing. Ours also reads the header, refuses what libjpeg only warns of, applies EXIF, and hashes the pixels twice.
Records and shards are not part of this: the suite `convert` measures the whole command.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from shardline.benchmarks.measure import Rate, append_jsonl, interleave, machine, save_on_interrupt, table, timed
from shardline.pipeline.cli import run
from shardline.pipeline.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_RAW = flags.DEFINE_string("raw_images", "", "folder of photographs, searched recursively")
_REPEATS = flags.DEFINE_integer("repeats", 7, "counted turns; the contenders take turns", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 320, "how many photographs to use at most", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "file to append the results to, one JSON object a line")
_SIZE = flags.DEFINE_integer("size", 256, "short side of the results, pixels", lower_bound=16)

PLAIN, OURS = "plain loop", "shardline, one image"
CLASSES = (0.0, 1.0, 1.2, 1.4, 1.6, 2.0, 3.2, 6.4, 1000.0)  # of short side / --size


def _imread(name: str) -> np.ndarray:
    import cv2

    image = cv2.imread(name, cv2.IMREAD_COLOR)
    assert image is not None, name
    return image


def plain(path: Path, size: int = 256) -> bytes:
    """The loop that everybody writes, one turn of it."""
    import cv2

    image = _imread(str(path))
    height, width = image.shape[:2]
    scale = size / min(height, width)
    image = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def ours(path: Path, size: int = 256) -> bytes:
    """The converter's per-image half."""
    from shardline.pipeline.image_options import ImageOptions
    from shardline.pipeline.images import process

    return process(path.read_bytes(), ImageOptions(size=size)).data


def contender(work: Callable[[Path, int], bytes], paths: list[Path], size: int) -> Callable[[], Rate]:
    """Runs `work` over all paths once, from the page cache."""

    def all_of_them() -> int:
        for path in paths:
            work(path, size)
        return len(paths)

    return lambda: timed(all_of_them)


def usable(folder: Path, most: int) -> list[Path]:
    """The images among the files, an even sample if there are more than `most`."""
    import numpy as np

    from shardline.pipeline.images import BadImage, read_header

    paths = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            read_header(path.read_bytes())
        except BadImage:
            continue
        paths.append(path)
    return [paths[i] for i in np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)]


def twelve_megapixels(paths: list[Path], folder: Path, number: int = 6) -> list[Path]:
    """Images of 4000x3000 as a camera writes them (4:2:0, quality 92), each a mosaic of 48 real photographs."""
    import cv2
    import numpy as np

    made = []
    for index in range(number):
        mosaic = np.empty((3000, 4000, 3), np.uint8)
        for tile in range(48):
            photo = _imread(str(paths[(index * 48 + tile) % len(paths)]))
            row, column = divmod(tile, 8)
            mosaic[row * 500 : row * 500 + 500, column * 500 : column * 500 + 500] = cv2.resize(photo, (500, 500))
        made.append(folder / f"12-megapixels-{index}.jpg")
        cv2.imwrite(str(made[-1]), mosaic, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return made


def decibels(stored: bytes, path: Path) -> float:
    """PSNR of a stored JPEG against Pillow's Lanczos at the same size."""
    import cv2
    import numpy as np
    from PIL import Image

    got = np.asarray(cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR_RGB))
    source = cv2.cvtColor(_imread(str(path)), cv2.COLOR_BGR2RGB)
    want = np.asarray(Image.fromarray(source).resize(got.shape[1::-1], Image.Resampling.LANCZOS))
    return cv2.PSNR(got, want)


def fidelity(paths: list[Path], size: int) -> list[tuple[str, int, float, float]]:
    """(size class, images, dB of the plain loop, dB of ours): means over each class of reduction."""
    import numpy as np

    from shardline.pipeline.images import read_header

    classes: dict[int, list[tuple[float, float]]] = {}
    for path in paths:
        header = read_header(path.read_bytes())
        reduction = min(header.height, header.width) / size
        if reduction > 1 and header.orientation == 1:
            found = int(np.searchsorted(CLASSES, reduction, side="right"))
            pair = decibels(plain(path, size), path), decibels(ours(path, size), path)
            classes.setdefault(found, []).append(pair)
    return [
        (f"{CLASSES[i - 1]:g}–{CLASSES[i]:g} times smaller", len(pairs), *np.mean(pairs, axis=0).tolist())
        for i, pairs in sorted(classes.items())
    ]


def main() -> None:
    """Measure both sets and print three tables."""
    import numpy as np

    from shardline.pipeline.images import set_up_process

    if not _RAW.value or not Path(_RAW.value).is_dir():
        raise UsageError(f"--raw_images={_RAW.value}: not a folder; name one that holds photographs")
    set_up_process()
    photos = usable(Path(_RAW.value), _IMAGES.value)
    if not photos:
        raise UsageError(f"--raw_images={_RAW.value}: no image found in it")
    size = _SIZE.value
    with tempfile.TemporaryDirectory() as temporary:
        large = twelve_megapixels(photos, Path(temporary))
        for name, paths in (("photographs", photos), ("12 megapixels", large)):
            with save_on_interrupt(_OUTPUT.value):
                measured = interleave(
                    f"one image: {name}",
                    {PLAIN: contender(plain, paths, size), OURS: contender(ours, paths, size)},
                    repeats=_REPEATS.value,
                    baseline=PLAIN,
                    what={
                        PLAIN: f"cv2.imread, INTER_AREA to short side {size}, imencode 90; no checks; one thread",
                        OURS: "pipeline.images.process: same size and quality, every check, two hashes; one thread",
                    },
                    settings={"baseline": PLAIN, "images": len(paths), "size": size},
                )
            print(f"\n{len(paths)} {name}, one core, short side {size}, JPEG 90\n{table(measured, PLAIN)}")
            if _OUTPUT.value:
                append_jsonl(_OUTPUT.value, measured)
        # The photographs again at other sizes: more classes of reduction than one size would show.
        rows = [row for s in (size, size // 2, size // 4) for row in fidelity(photos, s)] + fidelity(large, size)
    merged: dict[str, list[tuple[int, float, float]]] = {}
    for name, count, baseline, own in rows:
        merged.setdefault(name, []).append((count, baseline, own))
    print(f"\n{'PSNR against Lanczos, dB':28}  images  plain   ours  difference")
    for name, parts in merged.items():
        weights = [count for count, _, _ in parts]
        baseline, own = (np.average([part[i] for part in parts], weights=weights) for i in (1, 2))
        print(f"{name:28}  {sum(weights):6}  {baseline:5.2f}  {own:5.2f}  {own - baseline:+.2f}")
    facts = machine()
    print(f"\n{facts['cpu']}, {facts['versions']}")


def cli() -> None:
    """Entry point."""
    run(main)


if __name__ == "__main__":
    cli()
