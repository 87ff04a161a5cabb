"""Make a dataset of TFRecords that somebody else wrote: manifest.json and indexes, without rewriting a byte.

    shardline-adopt tensorflow_datasets/oxford_flowers102/2.1.1
    shardline-adopt imagenet --label_offset=-1 --class_names=names.txt

Directories prepared by TFDS describe themselves. Otherwise splits are told from the file names (train-00000-of-01024,
flowers-train.tfrecord-00000-of-00016, train.tfrecord) and features from the first record. Every record is read once,
for its checksum, label and size. The last line on stdout is the dataset's digest.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from shardline.pipeline.cli import progress, run
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.machine import available_cores
from shardline.pipeline.manifest import (
    FILE_NAME,
    Features,
    ImageFormat,
    Ledger,
    Manifest,
    Shard,
    Split,
    index_path,
    write_index,
)

if TYPE_CHECKING:
    from shardline.tools.conversion.tfds_metadata import TfdsLayout

_NAME = flags.DEFINE_string("name", "", "dataset name; default: TFDS's, or the directory's")
_IMAGE = flags.DEFINE_string("image_feature", "", "name of the feature with the encoded image; default: found out")
_LABEL = flags.DEFINE_string("label_feature", "", "name of the feature with the integer label; default: found out")
_OFFSET = flags.DEFINE_integer("label_offset", 0, "added to every stored label; ImageNet's shards count from 1: -1")
_CLASS_NAMES = flags.DEFINE_string("class_names", "", "file with one class name a line, in label order")
_SPLIT_PATTERN = flags.DEFINE_string(
    "split_pattern", "", "regular expression over file names whose group 'split' names the split; default: usual names"
)
_WORKERS = flags.DEFINE_integer("workers", 0, "processes at a time; 0: one a core; 1: none but this one", lower_bound=0)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace the manifest and indexes that are there")

PATTERNS = (
    r"(?P<name>.+)-(?P<split>[A-Za-z_]\w*)\.tfrecords?-\d+-of-\d+",  # TFDS
    r"(?P<split>[A-Za-z_]\w*)-\d+-of-\d+(\.tfrecords?)?",  # ImageNet's scripts
    r"(?P<split>[A-Za-z_]\w*)\.tfrecords?-\d+-of-\d+",
    r"(?P<split>[A-Za-z_]\w*?)(?:[-_]?\d+)?\.(tfrecords?|tfrec)",
)
IMAGES = ("image", "image/encoded", "image_raw", "encoded", "jpeg", "png", "data")
LABELS = ("label", "image/class/label", "image/label", "class", "image/class", "labels")
FILENAMES = ("image/filename", "file_name", "filename", "image/source_id")


@dataclass(frozen=True)
class ShardFile:
    """One file to adopt."""

    path: str
    features: Features

    def __len__(self) -> int:
        return 1

    def without(self, position: int) -> ShardFile:
        """There is nothing to leave out."""
        return self

    def describe(self, position: int) -> str:
        """Its path."""
        return self.path


@dataclass(frozen=True)
class Reading:
    """What one file holds."""

    path: str
    shard: Shard
    labels: Mapping[int, int]  # label -> records
    formats: frozenset[str]
    max_height: int
    max_width: int
    faults: tuple[str, ...] = field(default=())  # records that cannot be read, at most ten


def main(arguments: list[str]) -> None:
    """One directory."""
    if len(arguments) != 1:
        raise UsageError(f"give one directory, e.g. shardline-adopt DIR; got {len(arguments)} arguments")
    manifest = adopt(
        Path(arguments[0]),
        name=_NAME.value,
        image_feature=_IMAGE.value,
        label_feature=_LABEL.value,
        label_offset=_OFFSET.value,
        class_names=_CLASS_NAMES.value,
        split_pattern=_SPLIT_PATTERN.value,
        workers=_WORKERS.value or available_cores(),
        overwrite=_OVERWRITE.value,
    )
    splits = ", ".join(
        f"{name} {split.records:,} in {len(split.shards)} shards" for name, split in manifest.splits.items()
    )
    features = manifest.features
    offset = f"{features.label_offset:+}" if features.label_offset else ""
    print(f"{arguments[0]}: {splits}; {len(manifest.labels)} classes")
    print(f"image {features.image!r} ({manifest.image.encoding}), label {features.label!r}{offset}")
    print(manifest.digest)


def adopt(
    directory: Path,
    *,
    name: str = "",
    image_feature: str = "",
    label_feature: str = "",
    label_offset: int = 0,
    class_names: str = "",
    split_pattern: str = "",
    workers: int = 1,
    overwrite: bool = False,
) -> Manifest:
    """Read every record of every file once and write the manifest and the indexes."""
    from shardline.tools.conversion import executors
    from shardline.tools.conversion.scan import read_class_names

    if not directory.is_dir():
        raise UsageError(f"{directory}: no such directory")
    if (directory / FILE_NAME).exists() and not overwrite:
        raise UsageError(f"{directory} has a {FILE_NAME} already; --overwrite replaces it")
    if not os.access(directory, os.W_OK):
        raise UsageError(f"{directory} cannot be written; the manifest and the indexes belong beside the shards")
    layout = _tfds_layout(directory)
    splits = dict(layout.splits) if layout else find_splits(directory, split_pattern)
    missing = [file for files in splits.values() for file in files if not (directory / file).is_file()]
    if missing:
        raise UsageError(f"{directory}: {missing[0]}{f' and {len(missing) - 1} more' * (len(missing) > 1)} missing")
    features = layout.features if layout else find_features(directory, splits, image_feature, label_feature)
    features = Features(**{**vars(features), "label_offset": label_offset})
    names = read_class_names(class_names) if class_names else list(layout.labels) if layout else []

    engine = "inline" if workers == 1 else "processes"
    tasks = [ShardFile(str(directory / file), features) for files in splits.values() for file in files]
    readings = {}
    with progress(total=len(tasks), desc="adopt", unit="shard") as bar:
        for reading in executors.run(read_shard, tasks, engine=engine, workers=min(workers, len(tasks))):
            readings[os.path.relpath(reading.path, directory)] = reading
            bar.update()
    for reading in readings.values():
        for fault in reading.faults:
            print(f"note: {reading.shard.file}, {fault}; readers pass over it", file=sys.stderr)
    labels = _names_of(names, readings, label_offset)
    manifest = _manifest(
        directory, name or (layout.name if layout else _clean(directory)), splits, readings, labels, features
    )
    manifest.save(directory)
    return manifest


def find_splits(directory: Path, pattern: str = "") -> dict[str, tuple[str, ...]]:
    """Group the directory's TFRecord files by the split their names tell. Raises UsageError when there are none."""
    try:
        patterns = [re.compile(pattern)] if pattern else [re.compile(text) for text in PATTERNS]
    except re.error as error:
        raise UsageError(f"--split_pattern={pattern}: {error}") from None
    files = sorted(entry.name for entry in os.scandir(directory) if entry.is_file() and not entry.name.endswith(".idx"))
    for candidate in patterns:
        if "split" not in candidate.groupindex:
            raise UsageError(f"--split_pattern={pattern}: needs a group (?P<split>...)")
        found: dict[str, list[str]] = {}
        for file in files:
            match = candidate.fullmatch(file)
            if match:
                found.setdefault(match["split"], []).append(file)
        if found:
            _refuse_gaps(directory, found)
            return {split: tuple(members) for split, members in found.items()}
    raise UsageError(
        f"{directory}: no TFRecord files by name ({', '.join(files[:3]) or 'the directory is empty'}); --split_pattern "
        "tells how theirs are built, e.g. '(?P<split>\\w+)_\\d+\\.records'"
    )


def _refuse_gaps(directory: Path, found: Mapping[str, list[str]]) -> None:
    """A directory with 1023 of 1024 shards is no dataset."""
    for split, files in found.items():
        counts = {int(text[1]) for file in files if (text := re.search(r"-of-(\d+)", file))}
        if counts and counts != {len(files)}:
            wanted = ", ".join(map(str, sorted(counts)))
            raise UsageError(f"{directory}: split {split!r} has {len(files)} shards, their names say {wanted}")


def find_features(directory: Path, splits: Mapping[str, tuple[str, ...]], image: str, label: str) -> Features:
    """Tell the features' names from the first record. Raises UsageError that lists what there is."""
    from shardline.pipeline.example import feature_kinds
    from shardline.pipeline.tfrecord import index_records, read_framed, unframe_record

    for files in splits.values():
        for file in files:
            try:
                index = index_records(directory / file)
            except ValueError as error:
                raise UsageError(f"{directory / file}: {error}") from None
            if not len(index):
                continue
            try:
                kinds = feature_kinds(unframe_record(read_framed(directory / file, *index[0].tolist())))
            except ValueError as error:
                raise UsageError(
                    f"{directory / file}: its first record is damaged or no tf.train.Example ({error})"
                ) from None
            texts = [name for name, kind in kinds.items() if kind == "bytes"]
            numbers = [name for name, kind in kinds.items() if kind == "int64"]
            return Features(
                image=_choose("image_feature", image, IMAGES, texts, kinds),
                label=_choose("label_feature", label, LABELS, numbers, kinds),
                filename=next((name for name in FILENAMES if name in texts), ""),
                height="image/height" if "image/height" in numbers else "",
                width="image/width" if "image/width" in numbers else "",
            )
    raise UsageError(f"{directory}: all files are empty")


def _choose(flag: str, wanted: str, usual: tuple[str, ...], fitting: list[str], kinds: Mapping[str, str]) -> str:
    for name in [wanted] if wanted else usual:
        if name in fitting:
            return name
    listed = ", ".join(f"{name} ({kind})" for name, kind in sorted(kinds.items()))
    what = f"--{flag}={wanted}: no such feature of the right kind" if wanted else f"--{flag} is needed"
    raise UsageError(f"{what}; the first record has {listed}")


def read_shard(file: ShardFile, tick: Callable[[int], None] = lambda position: None) -> Reading:
    """Index one file, check every record's checksum, count labels, and write the index beside it."""
    from shardline.pipeline.example import parse_example
    from shardline.pipeline.image_headers import BadImage, read_header
    from shardline.pipeline.tfrecord import index_records, unframe_record

    try:
        index = index_records(file.path)
    except ValueError as error:
        raise Failure(f"{file.path}: {error}") from None
    digest = hashlib.sha256()
    labels: dict[int, int] = {}
    formats: set[str] = set()
    faults: list[str] = []
    height = width = 0
    with open(file.path, "rb") as data:
        for number, (offset, size) in enumerate(index.tolist()):
            framed = data.read(size)
            digest.update(framed)
            try:
                example = parse_example(unframe_record(framed), file.features)
            except ValueError as error:
                faults.append(f"byte {offset:,}: {error}")
                continue
            labels[example.label] = labels.get(example.label, 0) + 1
            height, width = max(height, example.height), max(width, example.width)
            if number < 8:
                try:
                    formats.add(read_header(bytes(example.image)).format)
                except BadImage:
                    raw = example.height * example.width * 3 == len(example.image)
                    formats.add("raw" if raw else "any")
    write_index(index_path(file.path), index)
    shard = Shard(os.path.basename(file.path), len(index), os.path.getsize(file.path), digest.hexdigest())
    return Reading(file.path, shard, labels, frozenset(formats), height, width, tuple(faults[:10]))


def _names_of(names: list[str], readings: Mapping[str, Reading], offset: int) -> tuple[str, ...]:
    """The label names: those given, or as many numbers as the labels need."""
    used = {label for reading in readings.values() for label in reading.labels}
    if not used:
        raise Failure("not one record could be read")
    low, high = min(used), max(used)
    if low < 0 or (names and high >= len(names)):
        expected = f"0 to {len(names) - 1}" if names else "0 or more"
        hint = f"; --label_offset={offset - low} would make the lowest 0" if low else ""
        raise UsageError(f"--label_offset={offset}: labels run from {low} to {high}, expected {expected}{hint}")
    if low > 0:
        print(
            f"note: no record has label 0, the lowest is {low}; if labels count from {low}, use "
            f"--label_offset={offset - low} --overwrite",
            file=sys.stderr,
        )
    return tuple(names) or tuple(str(number) for number in range(high + 1))


def _manifest(
    directory: Path,
    name: str,
    splits: Mapping[str, tuple[str, ...]],
    readings: Mapping[str, Reading],
    labels: tuple[str, ...],
    features: Features,
) -> Manifest:
    formats = {kind for reading in readings.values() for kind in reading.formats}
    records = sum(reading.shard.records for reading in readings.values())
    known = formats if formats <= {"jpeg"} or formats <= {"png"} or formats <= {"raw"} else {"any"}
    return Manifest(
        name=name,
        labels=labels,
        splits={split: Split(split, tuple(readings[file].shard for file in files)) for split, files in splits.items()},
        ledger=Ledger(inputs=records, written=records),
        features=features,
        image=ImageFormat(
            encoding=next(iter(known), "any"),
            resize="none",
            size=0,
            max_height=max(reading.max_height for reading in readings.values()),
            max_width=max(reading.max_width for reading in readings.values()),
        ),
        class_counts={
            split: tuple(sum(readings[file].labels.get(label, 0) for file in files) for label in range(len(labels)))
            for split, files in splits.items()
        },
        options={"adopted": True},
        versions={"shardline": metadata.version("shardline")},
    )


def _tfds_layout(directory: Path) -> TfdsLayout | None:
    if not (directory / "dataset_info.json").exists() or not (directory / "features.json").exists():
        return None
    from shardline.tools.conversion.tfds_metadata import read_tfds_metadata

    return read_tfds_metadata(directory, str(directory))


def _clean(directory: Path) -> str:
    cleaned = re.sub(r"[^a-z0-9]+", "_", directory.resolve().name.lower()).strip("_")
    return cleaned if cleaned[:1].isalpha() else f"data_{cleaned}".rstrip("_")


def cli() -> None:
    """Console script."""
    run(main)


if __name__ == "__main__":
    cli()
