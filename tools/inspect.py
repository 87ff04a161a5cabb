"""Look into a dataset: what it holds, one record, a grid of stored images, or what a model is shown.

shardline-inspect data
shardline-inspect data --record train:17 --save image.png
shardline-inspect data --save grid.png               # the first images of a split
shardline-inspect data --augmented --save seen.png   # the same images over several epochs of training
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from shardline.pipeline.cli import run
from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import Manifest, check_files

_RECORD = flags.DEFINE_string("record", "", "SPLIT:NUMBER, e.g. train:17")
_SAVE = flags.DEFINE_string("save", "", "write a PNG: of the record, or a grid of images")
_SPLIT = flags.DEFINE_string("split", "", "split of the grid; default: the first")
_AUGMENTED = flags.DEFINE_bool("augmented", False, "the grid shows what training batches show, one epoch a column")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "of --augmented; pixels", lower_bound=8)
_SEED = flags.DEFINE_integer("seed", 0, "of --augmented")

ROWS, COLUMNS = 6, 8  # of the grid


def main(arguments: list[str]) -> None:
    """One dataset directory."""
    if len(arguments) != 1:
        raise UsageError(f"give one dataset directory, e.g. shardline-inspect DIR; got {len(arguments)} arguments")
    directory = Path(arguments[0])
    manifest = Manifest.load(directory)
    if _SAVE.value and not _SAVE.value.lower().endswith(".png"):
        raise UsageError(f"--save={_SAVE.value}: name a .png file")
    if _SAVE.value and not Path(_SAVE.value).parent.is_dir():
        raise UsageError(f"--save={_SAVE.value}: no such folder as {Path(_SAVE.value).parent}")
    if _AUGMENTED.value and (_RECORD.value or not _SAVE.value):
        raise UsageError("--augmented draws a grid: give --save=FILE.png, and no --record")
    if _RECORD.value:
        show_record(directory, manifest, _RECORD.value, _SAVE.value)
        return
    print(summary(directory, manifest))
    if _SAVE.value:
        split = _SPLIT.value or next(iter(manifest.splits))
        manifest.split(split)
        if _AUGMENTED.value:
            save_augmented(directory, split, _SAVE.value, _IMAGE_SIZE.value, _SEED.value)
        else:
            save_grid(directory, manifest, split, _SAVE.value)
        print(f"saved {_SAVE.value}")


def summary(directory: Path, manifest: Manifest) -> str:
    """What a dataset holds, a few lines."""
    image = manifest.image
    size = "" if image.resize == "none" else f", {image.resize} {image.size}"
    largest = f", largest {image.max_width}x{image.max_height}" if image.max_height else ""
    lines = [
        f"{manifest.name}: {len(manifest.labels)} classes, {image.encoding}{size}{largest}, digest {manifest.digest}"
    ]
    for name, split in manifest.splits.items():
        size_bytes = sum(shard.bytes for shard in split.shards)
        counts = manifest.class_counts.get(name, ())
        spread = f", {min(counts):,} to {max(counts):,} a class" if counts else ""
        mean = f", {size_bytes / split.records / 1e3:,.1f} kB each" if split.records else ""
        lines.append(
            f"  {name}: {split.records:,} records in {len(split.shards)} shards, {size_bytes / 1e6:,.1f} MB"
            f"{mean}{spread}"
        )
    account = manifest.ledger
    lines.append(
        f"  ledger: {account.inputs:,} inputs = {account.written:,} written + {account.quarantined:,} quarantined "
        f"+ {account.duplicates:,} duplicates + {account.filtered:,} filtered"
    )
    shown = [f"{number} {label}" for number, label in enumerate(manifest.labels[:12])]
    lines.append(f"  labels: {', '.join(shown)}" + (", …" if len(manifest.labels) > 12 else ""))
    lines.append(f"  made with: {', '.join(f'{name} {version}' for name, version in manifest.versions.items())}")
    return "\n".join(lines)


def show_record(directory: Path, manifest: Manifest, wanted: str, save: str) -> None:
    """Print one record's facts, and save its image if asked to."""
    from shardline.pipeline.example import parse_example
    from shardline.pipeline.tfrecord import read_framed, unframe_record

    name, _, text = wanted.rpartition(":")
    if not name or not text.isdecimal():
        raise UsageError(f"--record={wanted}: say SPLIT:NUMBER, e.g. {next(iter(manifest.splits))}:0")
    split, number = manifest.split(name), int(text)
    if number >= split.records:
        raise UsageError(f"--record={wanted}: {name} has {split.records:,} records, 0 to {split.records - 1}")
    shard_number, offset, size = check_files(manifest, directory, name)[number].tolist()
    shard = split.shards[shard_number].file
    print(f"record   {name}:{number}")
    print(f"where    {shard}, byte {offset:,}, {size:,} bytes")
    try:
        example = parse_example(unframe_record(read_framed(directory / shard, offset, size)), manifest.features)
    except ValueError as error:
        raise UsageError(f"--record={wanted}: damaged ({error}); shardline-verify lists every fault") from None
    known = 0 <= example.label < len(manifest.labels)
    print(f"label    {example.label} ({manifest.labels[example.label] if known else 'out of range'})")
    print(f"source   {example.filename or '(not stored)'}")
    pixels = _decode(example.image, example.height, example.width, manifest)
    print(f"image  {pixels.shape[1]}x{pixels.shape[0]}, {len(example.image):,} bytes {manifest.image.encoding}")
    if save:
        _save(save, pixels)
        print(f"saved    {save}")


def save_grid(directory: Path, manifest: Manifest, split: str, save: str) -> None:
    """The first images of a split, which the stored order has shuffled."""
    import numpy as np

    from shardline.pipeline.example import parse_example
    from shardline.pipeline.tfrecord import read_framed, unframe_record

    index = check_files(manifest, directory, split)[: ROWS * COLUMNS]
    images, captions = [], []
    for shard_number, offset, size in index.tolist():
        shard = manifest.split(split).shards[shard_number].file
        example = parse_example(unframe_record(read_framed(directory / shard, offset, size)), manifest.features)
        images.append(np.asarray(_decode(example.image, example.height, example.width, manifest)))
        captions.append(manifest.labels[example.label])
    _draw(images, captions, COLUMNS, f"The first {len(images)} stored images of {manifest.name} {split}", save)


def save_augmented(directory: Path, split: str, save: str, image_size: int, seed: int) -> None:
    """A row for each of a few records, a column for each epoch: what `train_batches` shows of it."""
    from shardline.pipeline.cli import import_tensorflow

    import_tensorflow()
    from shardline import pipeline

    data = pipeline.open_dataset(directory)
    records = data.num_records(split)
    rows = min(ROWS, records)
    config = pipeline.InputConfig(
        global_batch_size=rows,
        image_size=image_size,
        seed=seed,
        shuffle=False,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
    )
    images: list[list] = [[] for _ in range(rows)]
    captions: list[str] = [""] * rows
    for epoch in range(COLUMNS):
        # Unshuffled, an epoch's stream is a rotation of the stored order: walk it until the wanted records came by.
        seen: set[int] = set()
        cursor = epoch * records
        for batch in data.train_batches(split, config, cursor=cursor).as_numpy_iterator():
            for image, label, record, position in zip(
                batch["image"], batch["label"], batch["record"], batch["position"], strict=True
            ):
                if position < (epoch + 1) * records and record < rows and record not in seen:
                    seen.add(int(record))
                    images[record].append(image)
                    captions[record] = data.labels[label]
            cursor += rows
            if len(seen) == rows or cursor >= (epoch + 1) * records:
                break
    columns = min(map(len, images))
    flat = [image for row in images for image in row[:columns]]
    names = [caption if column == 0 else "" for caption in captions for column in range(columns)]
    _draw(flat, names, columns, f"What training shows of {rows} images in {columns} epochs: crop, mirror, color", save)


def _decode(image: memoryview, height: int, width: int, manifest: Manifest):
    import numpy as np

    from shardline.pipeline.image_options import ImageOptions
    from shardline.pipeline.images import BadImage, load_rgb, set_up_process

    set_up_process()
    if manifest.image.encoding == "raw":
        return np.frombuffer(image, np.uint8).reshape(height, width, 3)
    try:
        return load_rgb(bytes(image), ImageOptions(resize="none", max_megapixels=1000))
    except BadImage as error:
        raise UsageError(f"the stored image does not decode ({error}); shardline-verify lists every fault") from None


def _draw(images: list, captions: list[str], columns: int, title: str, save: str) -> None:
    from shardline.tools.html_report import figure_png, new_figure

    rows = -(-len(images) // columns)
    figure = new_figure(columns * 1.1, rows * 1.3 + 0.4)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in axes:
        cell.axis("off")
    for cell, image, caption in zip(axes, images, captions, strict=False):
        cell.imshow(image)
        cell.set_title(caption if len(caption) <= 16 else caption[:15] + "…", fontsize=7, pad=2)
    _write(save, figure_png(figure))


def _save(save: str, rgb) -> None:
    import cv2

    _write(save, cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes())


def _write(save: str, data: bytes) -> None:
    try:
        Path(save).write_bytes(data)
    except OSError as error:
        raise UsageError(f"--save={save}: {error.strerror}") from None


def cli() -> None:
    """Console script."""
    run(main)


if __name__ == "__main__":
    cli()
