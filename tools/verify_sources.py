"""Hold sources.parquet against the manifest, and stored images against the files they were made of.

The table is what people and tools read instead of the shards. The files are read by decoders that are not ours
(image_oracles): what our converter takes for right is what is to be checked.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shardline.pipeline import executors
from shardline.pipeline.errors import UsageError
from shardline.pipeline.executors import WHY, Show, Task, no_show
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.machine import available_cores
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.progress import progress
from shardline.pipeline.source_files import find_source
from shardline.pipeline.wording import count

# Of 255, by which a stored image may differ, on average and in one of its parts: edges of saturated color cost a tiny
# image 4 and 13, photographs less than 1 and 3; a Display P3 profile that is passed over costs 12.
MOST_LEVELS, MOST_LEVELS_OF_A_PART = 5.0, 40.0
TASKS = 8  # that a comparison is cut into
CELLS, CELL_SIDE = 8, 8  # parts that images are compared by: at most 8x8 of them, of 8x8 pixels or more


@dataclass
class Table:
    """What sources.parquet says of a dataset as a whole, gathered piece by piece.

    Attributes:
      statuses: rows of each status.
      names: each pair of label and class name.
      classes: written rows of each split and label.
      records: written rows of each split.
      sizes: height and width of the stored images in each folder, the first two that differ.
      disordered: splits whose record numbers do not count up.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    names: set[tuple[int, str]] = field(default_factory=set)
    classes: Counter[tuple[str, int]] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    disordered: set[str] = field(default_factory=set)


def read_table(directory: Path) -> Table:
    """Read a dataset's sources.parquet: every column, so that every page's checksum is checked.

    Raises:
      OSError, UsageError: it is missing or damaged.
    """
    import pyarrow.compute as pc  # not for --help

    from shardline.pipeline.sources_table import SOURCES, WRITTEN, iterate_sources

    table = Table()
    for batch in iterate_sources(directory, SOURCES.names, checked=False):
        table.statuses.update({pair["values"]: pair["counts"] for pair in pc.value_counts(batch["status"]).to_pylist()})
        rows = batch.filter(pc.equal(batch["status"], WRITTEN)).to_pydict()
        table.names.update(zip(rows["label"], rows["label_name"], strict=True))
        table.classes.update(zip(rows["split"], rows["label"], strict=True))
        folders = {shard.rpartition("/")[0] for shard in rows["shard"]}  # one: generations have a table each
        for folder in folders:
            if len(found := table.sizes.setdefault(folder, set())) < 2:
                found.update(zip(rows["height"], rows["width"], strict=True))
        for split, record in zip(rows["split"], rows["record"], strict=True):
            if record != table.records[split]:
                table.disordered.add(split)
            table.records[split] += 1
    return table


def table_faults(table: Table, manifest: Manifest) -> Iterator[str]:
    """What the table says that the manifest does not."""
    ledger = {name: number for name, number in vars(manifest.ledger).items() if name != "inputs"}
    names = {"duplicates": "duplicate"}
    if {names.get(name, name): number for name, number in ledger.items() if number} != table.statuses:
        yield f"its rows are not the manifest's ledger, {manifest.ledger}"
    for label, name in sorted(table.names):
        if not -1 <= label < len(manifest.labels) or manifest.label_name(label) != name:
            yield f"label {label} is called {name!r}, which it is not in the manifest"
    for split in sorted({*manifest.splits, *table.records}):
        stored = manifest.splits[split].records if split in manifest.splits else 0
        if table.records[split] != stored or split in table.disordered:
            yield f"the rows of split {split!r} are not its {stored:,} records in order"
        for label, number in enumerate(manifest.class_counts.get(split, ())):
            if table.classes[split, label] != number:
                name, rows = manifest.labels[label], table.classes[split, label]
                yield f"split {split!r} has {count(rows, 'row')} of class {name!r}, the manifest says {number:,}"


# ----------------------------------------------------------------------------------------- source images


@dataclass(frozen=True)
class SourceRow:
    """One stored image and the file it was made of."""

    path: str
    sha256: str
    shard: str
    offset: int
    size: int
    note: str


@dataclass(frozen=True)
class SourceTask(Task):
    """Some images to compare."""

    directory: str
    sources: tuple[str, ...]
    manifest: Manifest
    rows: tuple[SourceRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def describe(self, position: int) -> str:
        """Path of the file."""
        return self.rows[position].path


@dataclass(frozen=True)
class Comparison:
    """What came of comparing images with their sources: how many could be, and a line for each that differs."""

    compared: int
    faults: tuple[str, ...]
    not_compared: tuple[str, ...]  # why, a line each


def compare_sources(
    manifest: Manifest, directory: Path, sources: Sequence[str], number: int, *, workers: int, image_timeout: float
) -> Comparison:
    """Compare `number` stored images, spread evenly, with the files in `sources` that they were made of.

    Raises:
      UsageError: the dataset has no table of sources.
    """
    from shardline.pipeline.sources_table import WRITTEN, read_sources  # pyarrow: not for --help

    try:
        rows = read_sources(directory, list(SourceRow.__annotations__), [("status", "=", WRITTEN)])
    except FileNotFoundError:
        raise UsageError(f"--sources: {directory} was adopted; its sources are not known") from None
    chosen: list[int] = sorted({round(row) for row in np.linspace(0, len(rows) - 1, number)}) if len(rows) else []
    picked = [SourceRow(**row) for row in rows.take(chosen).to_pylist()]
    parts = [tuple(picked[i::TASKS]) for i in range(min(TASKS, len(picked)))]
    tasks = [SourceTask(str(directory), tuple(sources), manifest, part) for part in parts]
    engine, workers = "inline" if workers == 1 else "processes", max(1, min(workers or available_cores(), len(tasks)))
    with progress(total=len(picked), desc="compare sources", unit="image") as bar:
        compared = executors.run(
            _compare, tasks, engine=engine, workers=workers, on_progress=bar.update, image_timeout=image_timeout
        )
        results = list(compared)
    return Comparison(
        sum(result.compared for result in results),
        tuple(sorted(line for result in results for line in result.faults)),
        tuple(sorted(line for result in results for line in result.not_compared)),
    )


def _compare(task: SourceTask, show: Show = no_show) -> Comparison:
    faults, not_compared = [], []
    for position, row in enumerate(task.rows):
        show(position, decoding=True)
        if reason := dict(task.unsafe).get(position):
            not_compared.append(f"{row.path}: {WHY[reason]}")
            continue
        try:
            fault = _difference(task, row)
        except _NotComparedError as error:
            not_compared.append(f"{row.path}: {error}")
            continue
        if fault:
            faults.append(f"{row.shard} @ {row.offset}: {fault}")
    return Comparison(len(task) - len(not_compared), tuple(faults), tuple(not_compared))


class _NotComparedError(Exception):
    """Nothing can be said of this image."""


def _difference(task: SourceTask, row: SourceRow) -> str:
    """How a stored image differs from its source; "" if it does not."""
    from shardline.pipeline.example import parse_example
    from shardline.pipeline.tfrecord import read_framed, unframe_record

    data = _read(task.sources, row.path)
    if hashlib.sha256(data).hexdigest() != row.sha256:
        return f"its source {row.path} has changed since it was converted"
    if "trimmed from" in row.note or task.manifest.options.get("depth_range", "full") != "full":
        raise _NotComparedError("trimmed, or of another depth range")
    framed = read_framed(Path(task.directory) / row.shard, row.offset, row.size)
    try:
        example = parse_example(unframe_record(framed), task.manifest.features)
        stored = _stored_pixels(bytes(example.image), example.height, example.width)
    except (ValueError, OSError):
        raise _NotComparedError("its record cannot be read") from None
    return _verdict(data, stored, _resizing(task.manifest), row)


def _resizing(manifest: Manifest) -> ImageOptions:
    """How the images were resized."""
    upscale = manifest.options.get("upscale") is True
    return ImageOptions(resize=manifest.image.resize, size=manifest.image.size or 1, upscale=upscale)


def _read(sources: Sequence[str], path: str) -> bytes:
    if file := find_source(sources, path):
        return Path(file).read_bytes()
    raise _NotComparedError("not in the sources given")


def _stored_pixels(data: bytes, height: int, width: int) -> np.ndarray:
    from PIL import Image

    if len(data) == height * width * 3 and not data.startswith((b"\xff\xd8", b"\x89PNG")):
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _verdict(data: bytes, stored: np.ndarray, options: ImageOptions, row: SourceRow) -> str:
    """The smallest difference that an oracle finds, if that is too much."""
    from shardline.tools.image_oracles import answer, has_orientation, has_profile, opinions

    found: list[tuple[float, str]] = []
    for name, rgb in opinions(data):
        expected = _stored_size(rgb.shape[0], rgb.shape[1], options)
        if any(abs(a - b) > 1 for a, b in zip(stored.shape, expected, strict=False)):
            size = f"{stored.shape[1]}x{stored.shape[0]}"
            found.append((255, f"{size} pixels, but {name} makes {expected[1]}x{expected[0]} of {row.path}"))
            continue
        levels = _distance(stored, _cropped(rgb, stored, options))
        found.append((levels, f"{levels:.0f} levels of 255 from {row.path} as {name} reads it"))
    if not found:
        raise _NotComparedError("no other decoder reads it")
    told = ("converted to sRGB", has_profile, "color"), ("orientation", has_orientation, "orientation")
    for said, seen, what in told:
        if said in row.note and not answer(seen, data):
            raise _NotComparedError(f"its {what} is told in a way that other decoders pass over")
    levels, what = min(found)
    return what if levels > MOST_LEVELS else ""


def _stored_size(height: int, width: int, options: ImageOptions) -> tuple[int, int]:
    """Height and width that a source of this size is stored with."""
    size, short = options.size, min(height, width)
    if options.resize == "none":
        return height, width
    if options.resize == "squash":
        return (size, size) if options.upscale else (min(size, height), min(size, width))
    side = max(height, width) if options.resize == "long" else short
    scale = size / side if options.upscale or side > size else 1.0
    resized = max(1, round(height * scale)), max(1, round(width * scale))
    return (min(size, resized[0]), min(size, resized[1])) if options.resize == "center_crop" else resized


def _cropped(rgb: np.ndarray, stored: np.ndarray, options: ImageOptions) -> np.ndarray:
    """The middle that a center crop keeps; all for other ways to resize."""
    if options.resize != "center_crop":
        return rgb
    short = min(rgb.shape[:2])
    scale = options.size / short if options.upscale or short > options.size else 1.0
    sides = [min(full, round(kept / scale)) for full, kept in zip(rgb.shape, stored.shape[:2], strict=False)]
    top, left = ((full - side) // 2 for full, side in zip(rgb.shape, sides, strict=False))
    return rgb[top : top + sides[0], left : left + sides[1]]


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """How far two images are apart: the mean of their parts in levels, or more where one part is far off."""
    from PIL import Image

    height, width = (max(1, min(CELLS, side // CELL_SIDE)) for side in first.shape[:2])

    def means(rgb: np.ndarray) -> np.ndarray:
        reduced = Image.fromarray(np.ascontiguousarray(rgb)).resize((width, height), Image.Resampling.BOX)
        return np.asarray(reduced, float)

    parts = np.abs(means(first) - means(second)).mean(axis=2)
    return float(parts.max() if parts.max() > MOST_LEVELS_OF_A_PART else parts.mean())
