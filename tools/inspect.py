"""Look into a dataset: what it holds, one record, a grid of stored images, or what a model is shown.

    shardline-inspect data
    shardline-inspect data --record train:17 --save image.png
    shardline-inspect data --save grid.png               # the first images of a split
    shardline-inspect --run run --augmented --save seen.png   # what that run is shown of some images, epoch by epoch

A record that is damaged is refused; in a grid its place stays empty. shardline-verify lists them all.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shardline.pipeline import cli as command_line
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import atomic_write
from shardline.pipeline.image_bytes import encode_rgb
from shardline.pipeline.manifest import NO_LABEL, Manifest
from shardline.pipeline.options import check_options, option
from shardline.pipeline.paths import is_remote
from shardline.pipeline.remote import DataCacheOptions, Mirror, open_mirror
from shardline.pipeline.run_input import RunInput, read_run_input
from shardline.pipeline.sampler import BalancedSampler, Sampler
from shardline.pipeline.shards import BadRecord, Shards
from shardline.pipeline.wording import count, shorten
from shardline.tools.dataset_config import DatasetConfig
from shardline.tools.plot_style import figure_png, new_figure

if TYPE_CHECKING:
    from shardline.pipeline.batches import Found

ROWS, COLUMNS = 6, 8  # of the grid
_VERIFY = "shardline-verify lists every fault"
_EMPTY = np.full((1, 1, 3), 255, np.uint8)  # in place of an image


@dataclass(frozen=True)
class InspectConfig(DatasetConfig):
    """What to look at: `inspect(InspectConfig(data=…))`. One field, one flag."""

    data: str = option(
        "", "dataset directory, also s3://BUCKET/FOLDER or gs://…; may be given without the flag, as the one argument",
        positional=True, path="dataset",
    )  # fmt: skip
    record: str = option("", "record to show, as SPLIT:NUMBER, e.g. train:17")
    save: str = option("", "PNG file to write: the record's image, or else a grid of images", path="file")
    split: str = option("", "split whose first images the grid shows; default: the dataset's first")
    augmented: bool = option(
        False, "draw what training shows, one epoch a column: of --run, else with shardline-train's defaults"
    )
    run: str = option(
        "", "run directory of shardline-train, whose dataset and augmentation --augmented draws", path="folder"
    )
    image_size: int | None = option(
        None, "side of the images of --augmented, in pixels; default: that of --run, else 224", low=8
    )
    seed: int | None = option(None, "seed of the order and augmentation of --augmented; default: that of --run, else 0")

    def __post_init__(self) -> None:
        if not self.run:
            super().__post_init__()
        check_options(self)
        if self.run and not self.augmented:
            raise UsageError(f"--run={self.run} is for --augmented: add that, or leave it out")
        if self.run and (self.image_size, self.seed) != (None, None):
            raise UsageError(f"--run={self.run} tells image size and seed: leave out --image_size and --seed")
        if self.save and not self.save.lower().endswith(".png"):
            raise UsageError(f"--save={self.save}: name a .png file")
        if self.save and not Path(self.save).parent.is_dir():
            raise UsageError(f"--save={self.save}: no such folder as {Path(self.save).parent}")
        if self.augmented and (self.record or not self.save):
            raise UsageError("--augmented draws a grid: give --save=FILE.png, and no --record")


def inspect(config: InspectConfig) -> str:
    """What a dataset or one of its records holds, as text of a few lines; writes the PNG where one is asked for.

    Raises:
      UsageError: there is no such dataset, split or record, or the record is damaged.
    """
    run = read_run_input(config.run) if config.run else None
    where = config.data or (run.data if run else "")
    with contextlib.ExitStack() as stack:
        directory, mirror = Path(where), None
        if is_remote(where):
            mirror, manifest = open_mirror(where, DataCacheOptions())
            directory = mirror.folder
        else:
            manifest = stack.enter_context(Manifest.opened(directory))
        if run:
            manifest = manifest.at(manifest.generation_of(run.digest))
        return _inspect(config, run, directory, manifest, mirror)


def _inspect(
    config: InspectConfig, run: RunInput | None, directory: Path, manifest: Manifest, mirror: Mirror | None
) -> str:
    if config.record:
        return describe_record(directory, manifest, config.record, config.save, mirror)
    text = describe(manifest)
    if config.save:
        split = manifest.split(config.split or (run.split if run else next(iter(manifest.splits)))).name
        if config.augmented:
            save_augmented(config, run, manifest, Shards(manifest, directory, split, mirror, in_pieces=True))
        else:
            save_grid(directory, manifest, split, config.save, mirror)
        text += f"\nsaved {config.save}"
    return text


def describe(manifest: Manifest) -> str:
    """What a dataset holds, a few lines."""
    image = manifest.image
    size = "" if image.resize == "none" else f", {image.resize} {image.size}"
    largest = f", largest {image.max_width}x{image.max_height}" if image.max_height else ""
    classes = count(len(manifest.labels), "class")
    lines = [f"{manifest.name}: {classes}, {image.encoding}{size}{largest}, digest {manifest.digest}"]
    for name, split in manifest.splits.items():
        mean = f", {split.bytes / split.records / 1e3:,.1f} kB each" if split.records else ""
        lines.append(
            f"  {name}: {count(split.records, 'record')} in {count(len(split.shards), 'shard')}, "
            f"{split.bytes / 1e6:,.1f} MB{mean}"
            + (", no labels" if split.unlabelled else _spread(manifest.class_counts.get(name, ())))
        )
    for number, then in enumerate(manifest.generations, 1):
        lines.append(f"  generation {number}: {then.ledger.written:,} written, digest {then.digest}")
    lines.append(f"  ledger: {manifest.ledger}")
    shown = [f"{number} {label}" for number, label in enumerate(manifest.shown_labels[:12])]
    lines.append(f"  labels: {', '.join(shown)}" + (", …" if len(manifest.labels) > 12 else ""))
    lines.append(f"  made with: {', '.join(f'{name} {version}' for name, version in manifest.versions.items())}")
    return "\n".join(lines)


def _spread(counts: Sequence[int]) -> str:
    """`, 60 in each class`, or the smallest and the largest count."""
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    return f", {low:,} in each class" if low == high else f", {low:,} to {high:,} in a class"


def describe_record(directory: Path, manifest: Manifest, wanted: str, save: str, mirror: Mirror | None = None) -> str:
    """One record's facts, a line each; its image goes to `save` if that is a path."""
    name, _, text = wanted.rpartition(":")
    if not name or not re.fullmatch(r"\d{1,18}", text):
        raise UsageError(f"--record={wanted}: say SPLIT:NUMBER, e.g. {next(iter(manifest.splits))}:0")
    if name not in manifest.splits:
        raise UsageError(f"--record={wanted}: this dataset has the splits {', '.join(manifest.splits)}")
    split, number = manifest.split(name), int(text)
    if number >= split.records:
        raise UsageError(f"--record={wanted}: {name} has {count(split.records, 'record')}, 0 to {split.records - 1}")
    shards = Shards(manifest, directory, name, mirror, in_pieces=True)
    (found,) = _images(shards, manifest, [number])
    if isinstance(found, BadRecord):
        raise UsageError(f"--record={wanted}: damaged ({found.reason}); {_VERIFY}")
    pixels, _ = found
    example, location = shards.read(number), shards.index[number]
    label = "none" if split.unlabelled else manifest.shown_labels[example.label]
    lines = [
        f"record   {name}:{number}",
        f"where    {split.shards[location.shard].file}, byte {location.offset:,}, {location.size:,} bytes",
        f"label    {example.label} ({label})",
        f"source   {example.filename or '(not stored)'}",
        f"image    {pixels.shape[1]}x{pixels.shape[0]}, {len(example.image):,} bytes {manifest.image.encoding}",
    ]
    if save:
        _save(save, encode_rgb(pixels, "png"))
        lines.append(f"saved    {save}")
    return "\n".join(lines)


def save_grid(directory: Path, manifest: Manifest, split: str, save: str, mirror: Mirror | None = None) -> None:
    """The first images of a split, which the stored order has shuffled."""
    shards = Shards(manifest, directory, split, mirror, in_pieces=True)
    images, captions = [], []
    for found in _images(shards, manifest, range(min(len(shards), ROWS * COLUMNS))):
        if isinstance(found, BadRecord):
            command_line.log(f"note: {found}; {_VERIFY}")
            images.append(_EMPTY)
            captions.append("damaged")
        else:
            images.append(found[0])
            captions.append(manifest.shown_labels[found[1]] if found[1] != NO_LABEL else "no label")
    _draw(images, captions, COLUMNS, f"The first {len(images)} stored images of {manifest.name}, split {split}", save)


def save_augmented(config: InspectConfig, run: RunInput | None, manifest: Manifest, shards: Shards) -> None:
    """A row for each of the first records that training shows, a column for each epoch, pixel for pixel."""
    from shardline.pipeline.batches import BatchBuilder  # OpenCV: not for --help
    from shardline.pipeline.workers import Workers

    if run and manifest.digest != run.digest:
        raise UsageError(
            f"--run={config.run} was trained on a dataset of digest {run.digest}, not {manifest.digest}; give that one"
        )
    manifest.refuse_unlabelled(shards.split, "--split")
    given = {name: value for name in ("image_size", "seed") if (value := getattr(config, name)) is not None}
    batches = run.config if run else InputConfig(**given)
    sampler = None
    if run and run.balanced:
        try:
            labels = np.array([shards.read(record).label for record in range(len(shards))])
        except ValueError as error:
            raise UsageError(f"a record is damaged ({error}); {_VERIFY}") from None
        sampler = BalancedSampler(labels, batches.seed)
    builder = BatchBuilder(shards, batches, manifest.image, sampler=sampler)
    workers = Workers(1, 2 * batches.image_size**2 * 3)
    rows = appearances(builder.sampler, len(shards))
    images: list[np.ndarray] = []
    captions: list[str] = []
    for column, position in ((column, position) for row in rows for column, position in enumerate(row)):
        at = position % 2
        pair = position - at + np.arange(2)  # two: they may be mixed with each other
        batch = workers.train(builder, pair, on_device=False)
        sound = bool(batch["weight"][at])
        images.append(batch["image"][at].copy() if sound else _EMPTY)
        captions.append("damaged" if not sound else "" if column else manifest.shown_labels[batch["label"][at]])
    title = f"What {config.run or 'training'} shows of {count(len(rows), 'image')} in {count(len(rows[0]), 'epoch')}"
    _draw(images, captions, len(rows[0]), title, config.save)


def appearances(sampler: Sampler, num_records: int) -> list[list[int]]:
    """Of each of the first records that a stream shows, its position in every epoch.

    A stream that is balanced over classes shows some records seldom: then fewer epochs, as many of each record.
    """
    epochs = [epoch * num_records + np.arange(num_records) for epoch in range(COLUMNS)]
    orders = [sampler.records(positions) for positions in epochs]
    rows: list[list[int]] = []
    for record in list(dict.fromkeys(orders[0].tolist()))[:ROWS]:
        places = [np.flatnonzero(order == record) for order in orders]
        rows.append([int(epoch[at[0]]) for epoch, at in zip(epochs, places, strict=True) if len(at)])
    return [row[: min(map(len, rows))] for row in rows]


def _images(shards: Shards, manifest: Manifest, records: Sequence[int]) -> list[Found]:
    from shardline.pipeline.workers import stored_images  # OpenCV: not for --help

    return list(stored_images(shards, manifest.image, records))


def _draw(images: Sequence[np.ndarray], captions: Sequence[str], columns: int, title: str, save: str) -> None:
    command_line.log(f"draw: {count(len(images), 'image')}")  # importing Matplotlib takes seconds
    rows = -(-len(images) // columns)
    figure = new_figure(columns * 1.1, rows * 1.3 + 0.4)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in axes:
        cell.axis("off")
    for cell, image, caption in zip(axes, images, captions, strict=False):
        cell.imshow(image)
        cell.set_title(shorten(caption, 16), fontsize=7, pad=2)
    _save(save, figure_png(figure))


def _save(save: str, data: bytes) -> None:
    try:
        atomic_write(save, data, durable=False)
    except OSError as error:
        raise UsageError(f"--save={save}: {error.strerror}") from None


def main(config: InspectConfig) -> None:
    """The command: print what `inspect` tells."""
    command_line.show(inspect(config))


def cli() -> None:
    """Run the console script `shardline-inspect`."""
    command_line.run(main, InspectConfig, __doc__)


if __name__ == "__main__":
    cli()
