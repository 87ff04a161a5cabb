"""Make a dataset of TFRecords that somebody else wrote: manifest.json and indexes, without rewriting a byte.

    shardline-adopt tensorflow_datasets/oxford_flowers102/2.1.1
    shardline-adopt imagenet --label_offset=-1 --class_names=names.txt

Directories prepared by TFDS describe themselves. Otherwise splits are taken from the file names (train-00000-of-01024,
flowers-train.tfrecord-00000-of-00016, train.tfrecord) and features from the first record. Every record is read once,
for its checksum, label and size. The last line on stdout is the dataset's digest.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from shardline.pipeline import cli as command_line
from shardline.pipeline.encodings import recognize
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.example import feature_kinds, parse_example
from shardline.pipeline.files import LOCK, own_directory
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
from shardline.pipeline.options import option
from shardline.pipeline.tfrecord import index_records, read_framed, unframe_record
from shardline.pipeline.wording import count, shorten_list
from shardline.tools.conversion import executors
from shardline.tools.conversion.config import dataset_name
from shardline.tools.conversion.labels import read_class_names
from shardline.tools.conversion.tfds_metadata import TfdsLayout, read_tfds_metadata
from shardline.tools.dataset_config import DatasetConfig

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
class AdoptConfig(DatasetConfig):
    """What to adopt and how to read it: `adopt(AdoptConfig(data=…))`. One field, one flag."""

    name: str = option("", "dataset name; default: TFDS's, or the directory's")
    image_feature: str = option("", "name of the feature with the encoded image; default: found in the first record")
    label_feature: str = option("", "name of the feature with the integer label; default: found in the first record")
    label_offset: int = option(0, "number added to every stored label; ImageNet's shards count from 1: -1")
    class_names: str = option("", "file with one class name a line, in label order; default: TFDS's, or the numbers")
    split_pattern: str = option(
        "", "regular expression over file names whose group 'split' names the split; default: the usual names"
    )
    workers: int = option(0, "processes at a time; 0: one for each core, 1: none but this one", low=0)
    overwrite: bool = option(False, "replace the manifest and the indexes that are there")


@dataclass(frozen=True)
class ShardFile:
    """One file to adopt: the task of a worker."""

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
class ShardContent:
    """What one file holds."""

    path: str
    shard: Shard
    labels: Mapping[int, int]  # label -> records
    encodings: frozenset[str]
    max_height: int
    max_width: int
    faults: tuple[str, ...] = ()  # records that cannot be read, at most ten


def adopt(config: AdoptConfig) -> Manifest:
    """Read every record of every file once; write the manifest and the indexes.

    Raises:
      UsageError: the directory or an option cannot work, or the labels do not fit the class names.
      Failure: a file is damaged, not one record can be read, or another process writes there.
    """
    _check_place(config)
    with own_directory(config.directory, "--data"):
        return _adopt(config)


def _adopt(config: AdoptConfig) -> Manifest:
    directory = config.directory
    layout = _tfds_layout(directory)
    splits = dict(layout.splits) if layout else find_splits(directory, config.split_pattern)
    missing = [file for files in splits.values() for file in files if not (directory / file).is_file()]
    if missing:
        raise UsageError(f"--data={directory}: {shorten_list(missing, 1)} missing")
    features = layout.features if layout else find_features(config, splits)
    features = replace(features, label_offset=config.label_offset)
    contents = _read_shards(config, splits, features)
    names = list(read_class_names(config.class_names)) if config.class_names else list(layout.labels) if layout else []
    manifest = _manifest(
        name=config.name or (layout.name if layout else dataset_name(directory.resolve().name)),
        splits=splits,
        contents=contents,
        labels=_label_names(names, contents.values(), config.label_offset),
        features=features,
    )
    manifest.save(directory)
    return manifest


def _check_place(config: AdoptConfig) -> None:
    if not config.directory.is_dir():
        raise UsageError(f"--data={config.data}: no such directory")
    if (config.directory / FILE_NAME).exists() and not config.overwrite:
        raise UsageError(f"--data={config.data} has a {FILE_NAME} already; --overwrite replaces it")
    if not os.access(config.directory, os.W_OK):
        raise UsageError(
            f"--data={config.data} cannot be written; the manifest and the indexes belong beside the shards"
        )


def _read_shards(
    config: AdoptConfig, splits: Mapping[str, tuple[str, ...]], features: Features
) -> dict[str, ShardContent]:
    """What every file holds, by its name; damaged records are noted on stderr."""
    workers = config.workers or available_cores()
    files = [ShardFile(str(config.directory / file), features) for names in splits.values() for file in names]
    contents = {}
    with command_line.progress(total=len(files), desc="adopt", unit=" shards") as bar:
        for content in executors.run(
            read_shard, files, engine="inline" if workers == 1 else "processes", workers=min(workers, len(files))
        ):
            contents[os.path.relpath(content.path, config.directory)] = content
            bar.update()
    for content in contents.values():
        for fault in content.faults:
            command_line.log(f"note: {content.shard.file}, {fault}; readers skip it")
    return contents


def find_splits(directory: Path, pattern: str = "") -> dict[str, tuple[str, ...]]:
    """Group the directory's TFRecord files by the split in their names. Raises UsageError when there are none."""
    try:
        patterns = [re.compile(pattern)] if pattern else [re.compile(text) for text in PATTERNS]
    except re.error as error:
        raise UsageError(f"--split_pattern={pattern}: {error}") from None
    files = sorted(
        entry.name for entry in os.scandir(directory) if entry.is_file() and not entry.name.endswith((".idx", LOCK))
    )
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
        f"--data={directory}: no TFRecord files by name ({', '.join(files[:3]) or 'the directory is empty'}); "
        "--split_pattern tells how theirs are built, e.g. '(?P<split>\\w+)_\\d+\\.records'"
    )


def _refuse_gaps(directory: Path, found: Mapping[str, list[str]]) -> None:
    """A directory with 1023 of 1024 shards is no dataset."""
    for split, files in found.items():
        counts = {int(text[1]) for file in files if (text := re.search(r"-of-(\d+)", file))}
        if counts and counts != {len(files)}:
            wanted = ", ".join(map(str, sorted(counts)))
            raise UsageError(
                f"--data={directory}: split {split!r} has {count(len(files), 'shard')}, their names say {wanted}"
            )


def find_features(config: AdoptConfig, splits: Mapping[str, tuple[str, ...]]) -> Features:
    """The features' names, from the first record. Raises UsageError that lists what there is."""
    kinds = _first_record_features(config.directory, splits)
    texts = [name for name, kind in kinds.items() if kind == "bytes"]
    numbers = [name for name, kind in kinds.items() if kind == "int64"]
    return Features(
        image=_choose("image_feature", config.image_feature, IMAGES, texts, kinds),
        label=_choose("label_feature", config.label_feature, LABELS, numbers, kinds),
        filename=next((name for name in FILENAMES if name in texts), ""),
        height="image/height" if "image/height" in numbers else "",
        width="image/width" if "image/width" in numbers else "",
    )


def _first_record_features(directory: Path, splits: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Name and kind (bytes, int64, float) of each feature of the first record there is."""
    for files in splits.values():
        for file in files:
            try:
                index = index_records(directory / file)
            except ValueError as error:
                raise UsageError(f"{directory / file}: {error}") from None
            if not len(index):
                continue
            try:
                return feature_kinds(unframe_record(read_framed(directory / file, *index[0].tolist())))
            except ValueError as error:
                raise UsageError(
                    f"{directory / file}: its first record is damaged or no tf.train.Example ({error})"
                ) from None
    raise UsageError(f"--data={directory}: all files are empty")


def _choose(flag: str, wanted: str, usual: tuple[str, ...], fitting: list[str], kinds: Mapping[str, str]) -> str:
    for name in [wanted] if wanted else usual:
        if name in fitting:
            return name
    listed = ", ".join(f"{name} ({kind})" for name, kind in sorted(kinds.items()))
    what = f"--{flag}={wanted}: no such feature of the right kind" if wanted else f"--{flag} is needed"
    raise UsageError(f"{what}; the first record has {listed}")


def read_shard(file: ShardFile, on_progress: Callable[[int], None] = lambda position: None) -> ShardContent:
    """Index one file, check every record's checksum, count labels, and write the index beside it."""
    try:
        index = index_records(file.path)
    except ValueError as error:
        raise Failure(f"{file.path}: {error}") from None
    digest = hashlib.sha256()
    labels: dict[int, int] = {}
    encodings: set[str] = set()
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
                encodings.add(recognize(example))
    write_index(index_path(file.path), index)
    shard = Shard(os.path.basename(file.path), len(index), os.path.getsize(file.path), digest.hexdigest())
    return ShardContent(file.path, shard, labels, frozenset(encodings), height, width, tuple(faults[:10]))


def _label_names(names: list[str], contents: Collection[ShardContent], offset: int) -> tuple[str, ...]:
    """The label names: those given, or as many numbers as the labels need."""
    used = {label for content in contents for label in content.labels}
    if not used:
        raise Failure("not one record could be read")
    low, high = min(used), max(used)
    if low < 0 or (names and high >= len(names)):
        expected = f"0 to {len(names) - 1}" if names else "0 or more"
        hint = f"; --label_offset={offset - low} would make the lowest 0" if low else ""
        raise UsageError(f"--label_offset={offset}: labels run from {low} to {high}, expected {expected}{hint}")
    if low > 0:
        command_line.log(
            f"note: no record has label 0, the lowest is {low}; if labels count from {low}, use "
            f"--label_offset={offset - low} --overwrite"
        )
    return tuple(names) or tuple(str(number) for number in range(high + 1))


def _manifest(
    *,
    name: str,
    splits: Mapping[str, tuple[str, ...]],
    contents: Mapping[str, ShardContent],
    labels: tuple[str, ...],
    features: Features,
) -> Manifest:
    encodings = {encoding for content in contents.values() for encoding in content.encodings}
    encoding = encodings.pop() if len(encodings) == 1 else "any"
    records = sum(content.shard.records for content in contents.values())
    return Manifest(
        name=name,
        labels=labels,
        splits={split: Split(split, tuple(contents[file].shard for file in files)) for split, files in splits.items()},
        ledger=Ledger(inputs=records, written=records),
        features=features,
        image=ImageFormat(
            encoding=encoding,
            resize="none",
            size=0,
            max_height=max(content.max_height for content in contents.values()),
            max_width=max(content.max_width for content in contents.values()),
        ),
        class_counts={
            split: tuple(sum(contents[file].labels.get(label, 0) for file in files) for label in range(len(labels)))
            for split, files in splits.items()
        },
        options={"adopted": True},
        versions={"shardline": metadata.version("shardline")},
    )


def _tfds_layout(directory: Path) -> TfdsLayout | None:
    if not (directory / "dataset_info.json").exists() or not (directory / "features.json").exists():
        return None
    return read_tfds_metadata(directory, f"--data={directory}")


def main(config: AdoptConfig) -> None:
    """The command: adopt one directory and say what is in it."""
    manifest = adopt(config)
    splits = ", ".join(
        f"{name} {split.records:,} in {count(len(split.shards), 'shard')}" for name, split in manifest.splits.items()
    )
    features = manifest.features
    offset = f"{features.label_offset:+}" if features.label_offset else ""
    command_line.show(f"{config.data}: {splits}; {count(len(manifest.labels), 'class')}")
    command_line.show(f"image {features.image!r} ({manifest.image.encoding}), label {features.label!r}{offset}")
    print(manifest.digest)


def cli() -> None:
    """Run the console script `shardline-adopt`."""
    command_line.run(main, AdoptConfig, __doc__)


if __name__ == "__main__":
    cli()
