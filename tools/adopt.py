"""Make a dataset of TFRecords that somebody else wrote: manifest.json and indexes, without rewriting a byte.

    shardline-adopt tensorflow_datasets/oxford_flowers102/2.1.1
    shardline-adopt imagenet --label_offset=-1 --class_names=names.txt
    shardline-adopt kaggle/tfrecords-jpeg-192x192 --unlabelled=test   # train/00-192x192-798.tfrec, val/…, test/…

Directories prepared by TFDS describe themselves. Otherwise splits are taken from the names of files and folders
(train-00000-of-01024, flowers-train.tfrecord-00000-of-00016, val.tfrecord, train/00-192x192-798.tfrec) and features
from the first record of each split. Every record is read once, for its checksum and label, and every image is decoded,
in processes of their own: --check=sample is faster. The last line on stdout is the dataset's digest.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from shardline.pipeline import cli as command_line
from shardline.pipeline import executors
from shardline.pipeline.class_gaps import class_gaps
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.executors import image_timeout_option, workers_option
from shardline.pipeline.files import nobody_reads, own_directory
from shardline.pipeline.machine import available_cores
from shardline.pipeline.manifest import (
    FILE_NAME,
    Features,
    ImageFormat,
    Ledger,
    Manifest,
    Split,
    index_path,
    write_index,
)
from shardline.pipeline.options import option
from shardline.pipeline.wording import count, shorten_list
from shardline.tools.adopt_features import FeatureOptions, find_features
from shardline.tools.adopt_shard import ShardContent, ShardFile, joined, read_shard
from shardline.tools.conversion.config import dataset_name
from shardline.tools.conversion.labels import (
    LabelOptions,
    are_numbers,
    as_one,
    can_be_listed,
    check_names,
    check_spread,
    listed_by_position,
    lookalike_notes,
    number,
    order_labels,
    read_class_names,
    similar_names,
    split_notes,
)
from shardline.tools.conversion.tfds_metadata import TfdsLayout, lost_records, read_tfds_metadata
from shardline.tools.conversion.trees import Exclusions, read_exclusions
from shardline.tools.dataset_config import DatasetConfig
from shardline.tools.shard_files import SplitOptions, find_splits, name_notes, tfrecord_files

NAME_FILES = ("labels.txt", "label.txt", "classes.txt", "class_names.txt")  # that others put beside their shards
_COUNTED = re.compile(r"\d-(?:\d+x\d+-)?(\d+)\.tfrec$")  # Kaggle's names: 00-192x192-798.tfrec, train00-2071.tfrec
Splits = Mapping[str, tuple[str, ...]]  # relative paths of the files of each split


@dataclass(frozen=True)
class AdoptConfig(DatasetConfig):
    """What to adopt and how to read it: `adopt(AdoptConfig(data=…))`. One field, one flag."""

    name: str = option("", "dataset name; default: TFDS's, or the directory's")
    image_feature: str = option("", "name of the feature with the encoded image; default: found in the first record")
    label_feature: str = option("", "name of the feature with the label; default: found in the first record")
    label_kind: str = option(
        "",
        "what a label is: index, a number; name, the text of a class name; onehot, a list with a 1 for the class; "
        "default: an integer, and anything else is refused",
        choices=("", "index", "name", "onehot"),
    )
    label_offset: int = option(0, "number added to every stored label; ImageNet's shards count from 1: -1")
    class_names: str = option(
        "",
        "file with one class name a line, in label order, or JSON (id2label, class_to_idx); default: TFDS's, or "
        "numbers",
        path="file",
    )
    split: str = option("", "split that all files belong to; default: told by the names of files and folders")
    split_pattern: str = option(
        "", "regular expression over file names whose group 'split' names the split; default: the usual names"
    )
    unlabelled: tuple[str, ...] = option(
        (), "split whose images have no labels, which is adopted for prediction; may be repeated"
    )
    exclude: tuple[str, ...] = option(
        (), "path, name or pattern of files to leave out, or a file with one a line; may be repeated", path="any"
    )
    check: str = option(
        "all",
        "images to decode, some 500 a second on each core: all of them, or a sample of 32 in each file; of the others, "
        "checksum, label and header are checked",
        choices=("all", "sample"),
    )
    workers: int = workers_option()
    image_timeout: float = image_timeout_option("its record is left out")
    overwrite: bool = option(False, "replace the manifest and the indexes that are there")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split and self.split_pattern:
            raise UsageError(f"--split={self.split} and --split_pattern: give one of them")
        if self.label_offset and self.label_kind in ("name", "onehot"):
            raise UsageError(f"--label_offset={self.label_offset}: labels of --label_kind={self.label_kind} have none")


def adopt(config: AdoptConfig) -> Manifest:
    """Read every record of every file once; write the manifest and the indexes.

    Raises:
      UsageError: the directory or an option cannot work, or the labels do not fit the class names.
      Failure: a file is damaged, not one record can be read, or another process writes there.
    """
    _check_place(config)
    manifest = config.directory / FILE_NAME
    with own_directory(config.directory, "--data"), nobody_reads(manifest, f"--data={config.data}"):
        return _adopt(config)


def _adopt(config: AdoptConfig) -> Manifest:
    directory = config.directory
    layout = _tfds_layout(directory)
    splits = _find_splits(config, layout)
    _note(*split_notes(splits), *([] if layout or config.split_pattern else name_notes(splits)))
    if missing := [name for name in config.unlabelled if name not in splits]:
        raise UsageError(f"--unlabelled={missing[0]}: the directory has the splits {', '.join(splits)}")
    features = layout.features if layout else find_features(directory, splits, _feature_options(config))
    features = replace(features, label_offset=config.label_offset)
    contents = _read_shards(config, splits, features, layout)
    splits = _with_records(splits, contents)
    names = list(read_class_names(config.class_names)) if config.class_names else list(layout.labels) if layout else []
    if layout and not config.class_names:
        check_names(names, f"--data={directory}", "--class_names names the classes anew")
        _note(*lookalike_notes(names))
    labels = _label_names(config, names, [contents[file] for files in splits.values() for file in files])
    manifest = _manifest(
        name=config.name or (layout.name if layout else dataset_name(directory.resolve().name)),
        splits={split: (files, split in config.unlabelled) for split, files in splits.items()},
        contents=contents,
        labels=labels,
        features=features,
    )
    _note_classes(config, manifest, named=bool(names))
    if not layout:
        _note_texts(manifest, contents.values())
    manifest.save(directory)
    return manifest


def _feature_options(config: AdoptConfig) -> FeatureOptions:
    return FeatureOptions(config.image_feature, config.label_feature, config.label_kind, config.unlabelled)


def _check_place(config: AdoptConfig) -> None:
    if not config.directory.is_dir():
        raise UsageError(f"--data={config.data}: no such directory")
    if (config.directory / FILE_NAME).exists() and not config.overwrite:
        raise UsageError(f"--data={config.data} has a {FILE_NAME} already; --overwrite replaces it")
    if not os.access(config.directory, os.W_OK):
        raise UsageError(
            f"--data={config.data} cannot be written; the manifest and the indexes belong beside the shards"
        )


def _find_splits(config: AdoptConfig, layout: TfdsLayout | None) -> Splits:
    """The files of each split: TFDS's, or those that names tell."""
    exclusions = read_exclusions(config.exclude)
    if layout:
        splits = _described_splits(config, layout, exclusions)
    else:
        splits = find_splits(config.directory, SplitOptions(config.split, config.split_pattern, exclusions))
    _note(*exclusions.notes())
    return splits


def _described_splits(config: AdoptConfig, layout: TfdsLayout, exclusions: Exclusions) -> dict[str, tuple[str, ...]]:
    for flag in ("image_feature", "label_feature", "label_kind", "split", "split_pattern"):
        if value := getattr(config, flag):
            raise UsageError(
                f"--{flag}={value}: {config.data} describes itself (dataset_info.json); leave the flag out"
            )
    known = [file for files in layout.splits.values() for file in files]
    kept = {file for file in known if not exclusions.leaves_out(os.fsencode(file))}
    splits = {split: tuple(file for file in files if file in kept) for split, files in layout.splits.items()}
    splits = {split: files for split, files in splits.items() if files}
    missing = [file for file in known if file in kept and not (config.directory / file).is_file()]
    if missing or not splits:
        raise UsageError(f"--data={config.data}: {shorten_list(missing, 1) or 'every file'} missing; restore it")
    if others := sorted(set(tfrecord_files(config.directory)) - set(known)):
        _note(f"left out {shorten_list(others, 3)}: dataset_info.json does not name them")
    return splits


def _read_shards(
    config: AdoptConfig, splits: Splits, features: Features, layout: TfdsLayout | None
) -> dict[str, ShardContent]:
    """What every file holds, by its name, its index written; what a person should know is noted on stderr."""
    files = [
        ShardFile(config.data, file, features, split in config.unlabelled, decode_all=config.check == "all")
        for split, files in splits.items()
        for file in files
    ]
    contents: dict[str, ShardContent] = {}
    read: dict[str, list[ShardContent]] = {}  # parts of files of which others are still being read
    total = sum(os.path.getsize(file.path) for file in files)
    with command_line.progress(total=total, desc="adopt", unit="B", unit_scale=True) as bar:
        for content in executors.run(
            read_shard,
            (part for file in files for part in file.parts()),
            engine="inline" if config.workers == 1 else "processes",
            workers=config.workers or available_cores(),
            on_progress=bar.update,
            image_timeout=config.image_timeout,
        ):
            name = content.shard.file
            parts = read.setdefault(name, [])
            parts.append(content)
            if sum(part.stop - part.start for part in parts) == content.shard.bytes:
                contents[name] = joined(read.pop(name))
                write_index(index_path(config.directory / name), contents[name].index)
                contents[name].index = np.empty((0, 2), np.int64)
    for file in sorted(contents):
        _note_faults(config, contents[file])
    images, decoded = (sum(getattr(content, name) for content in contents.values()) for name in ("images", "decoded"))
    if decoded < images:
        _note(f"{decoded:,} of {count(images, 'image')} were decoded (--check=sample); shardline-verify decodes all")
    if turned := sum(content.turned for content in contents.values()):
        verb = "has" if turned == 1 else "have"
        _note(f"{count(turned, 'image')} {verb} an EXIF orientation; readers turn them upright")
    _note_others(layout, contents)
    return contents


def _note_others(layout: TfdsLayout | None, contents: Mapping[str, ShardContent]) -> None:
    """Note what makes files suspicious: lost records, copies, pixels in another order."""
    held = {file: content.held for file, content in contents.items()}
    said = {file: int(told[1]) for file in contents if (told := _COUNTED.search(file))}
    _note(*(lost_records(held, layout.records) if layout else lost_records(held, said, "its name")))
    by_content: dict[str, list[str]] = {}
    for file in sorted(contents):
        if contents[file].held:
            by_content.setdefault(contents[file].shard.sha256, []).append(file)
    for files in by_content.values():
        if len(files) > 1:
            _note(f"{' and '.join(files)} hold the same bytes: one is a copy; restore what it should be, or remove it")
    raw = sum(content.raw for content in contents.values())
    orders = sum((content.orders for content in contents.values()), Counter[str]())
    for order, images in orders.items():
        if images > raw / 2:
            _note(
                f"{images:,} of {raw:,} images of raw pixels look as if stored {order}, but are read as height x width "
                "x 3; look at some with shardline-inspect, and write them again if they are scrambled"
            )


def _note_faults(config: AdoptConfig, content: ShardContent) -> None:
    """Note faulty records. Raises UsageError for a file in which not one record can be used."""
    file = content.shard.file
    if content.faulty and not content.encodings and not content.without_label:
        raise UsageError(
            f"--data={config.data}: not one record of {file} can be used (the first, {content.faults[0]}); name other "
            f"features, or leave the file out with --exclude={file}"
        )
    for fault in content.faults:
        _note(f"{file}, {fault}; left out")
    if (more := content.faulty - len(content.faults)) > 0:
        _note(f"{file}: {count(more, 'more record')} like that, left out")


def _with_records(splits: Splits, contents: Mapping[str, ShardContent]) -> Splits:
    """The splits without those whose images have no labels, which is noted."""
    kept = {}
    for split, files in splits.items():
        left_out = sum(contents[file].without_label for file in files)
        if left_out:
            _note(
                f"left out {count(left_out, 'record')} of {split} without a label (-1); --unlabelled={split} "
                "--overwrite adopts all of it for prediction"
            )
        if not left_out or any(contents[file].shard.records for file in files):
            kept[split] = files
    return kept


# ------------------------------------------------------------------------------------------------ classes


def _label_names(config: AdoptConfig, names: list[str], contents: Sequence[ShardContent]) -> tuple[str, ...]:
    """The class names: those given, those stored, or as many numbers as the labels need."""
    used: Counter[int | str] = Counter()
    for content in contents:
        used.update(content.labels)
    if not used:
        if names and contents:
            return tuple(names)
        raise Failure("not one record with a label could be read; for splits without any, --class_names names classes")
    if texts := [label for label in used if isinstance(label, str)]:
        return _stored_names(config, names, texts)
    if config.class_names:
        hint = (
            ""
            if config.label_offset or config.label_kind == "onehot"
            else ", or say with --label_offset=-1 that the records' labels count from 1"
        )
        names = list(listed_by_position(names, f"--class_names={config.class_names}", -config.label_offset, hint))
    numbers = [label for label in used if isinstance(label, int)]
    widths = {width for content in contents for width in content.widths}
    if len(widths) > 1:
        raise UsageError(
            f"--label_kind=onehot: labels have {shorten_list(map(str, sorted(widths)))} numbers; all need as many"
        )
    _check_range(config, names, numbers, widths)
    return tuple(names) or tuple(str(number) for number in range(max([*numbers, *(width - 1 for width in widths)]) + 1))


def _stored_names(config: AdoptConfig, names: list[str], texts: list[str]) -> tuple[str, ...]:
    """Class names that the records hold, ordered as a conversion orders them."""
    what = f"--data={config.data}"
    if not names:
        for group in similar_names(texts):
            apart = ", or list all names in --class_names to keep them apart" if can_be_listed(group) else ""
            raise UsageError(f"{what}: {as_one(group)}; write the records again with one of them{apart}")
        if are_numbers(texts):
            names = sorted(texts, key=number)
    order = order_labels(texts, LabelOptions(tuple(names), kind="name"), what)
    _note(*order.notes)
    return order.names


def _check_range(config: AdoptConfig, names: list[str], numbers: list[int], widths: Iterable[int]) -> None:
    """Refuse numbers that are no labels of these classes."""
    for width in widths:
        if names and width != len(names):
            raise UsageError(
                f"--class_names={config.class_names} lists {count(len(names), 'class')}, but one-hot labels have "
                f"{count(width, 'number')}"
            )
        return
    low, high, offset = min(numbers), max(numbers), config.label_offset
    if low < 0 or (names and high >= len(names)):
        expected = f"0 to {len(names) - 1}" if names else "0 or more"
        next_low = min((number for number in numbers if number > low), default=low)
        hint = ""
        if low < 0 and next_low - low > 1:
            hint = f"; {low - offset} seems to mark images without a label: that has to be -1, which is left out"
        elif low and (not names or high - low < len(names)):
            hint = f"; --label_offset={offset - low} would make the lowest 0"
        raise UsageError(f"--label_offset={offset}: labels run from {low} to {high:,}, expected {expected}{hint}")
    if not names:
        check_spread(len(set(numbers)), high, f"--data={config.data}")
    if low > 0 and high + 1 != len(names):  # as many as are listed: the first has no records
        _note(
            f"no record has label 0, the lowest is {low}; if labels count from {low}, use "
            f"--label_offset={offset - low} --overwrite"
        )


def _note(*lines: str) -> None:
    for line in lines:
        command_line.log(f"note: {line}")


def _note_classes(config: AdoptConfig, manifest: Manifest, *, named: bool) -> None:
    """Note what a person may want to know of the classes."""
    counts = [row for row in manifest.class_counts.values() if row]
    empty = [name for label, name in enumerate(manifest.labels) if not any(row[label] for row in counts)]
    if empty:
        verb = "has" if len(empty) == 1 else "have"
        _note(f"{len(empty):,} of {count(len(manifest.labels), 'class')} {verb} no record: {shorten_list(empty)}")
    _note(*class_gaps(manifest.labels, manifest.class_counts))
    beside = [name for name in NAME_FILES if (config.directory / name).is_file()]
    if beside and not named and manifest.features.label_kind != "name":
        path = config.directory / beside[0]
        _note(f"classes are called by their numbers; if {path} lists their names, use --class_names={path} --overwrite")


def _note_texts(manifest: Manifest, contents: Iterable[ShardContent]) -> None:
    """Note where records call a class otherwise than other records of its number do, or than its name is."""
    contents = list(contents)
    by_label: dict[int, Counter[str]] = {}
    for content in contents:
        for (label, text), records in content.texts.items():
            by_label.setdefault(label, Counter())[text] += records
    texts = {text for counts in by_label.values() for text in counts}
    if len(texts) > 2 * len(by_label):
        return  # they tell images apart, and not classes
    several, others = [], []
    for label, counts in sorted(by_label.items()):
        name = manifest.labels[label]
        if len(counts) > 1:
            most = sorted(counts, key=lambda text: (-counts[text], text))[:2]
            named = (f"{text!r} ({count(counts[text], 'record')})" for text in most)
            several.append(f"{name!r} is {' and '.join(named)}")
        others += [f"{name!r} is {text!r}" for text in sorted(counts) if text != name and text in manifest.labels]
    feature = next((content.text for content in contents if content.text), "")
    remedy = f"--label_kind=name --label_feature={feature} --overwrite takes the texts as labels"
    if several:
        _note(
            f"feature {feature!r} has several names for one class: {shorten_list(several, 3)}; numbers or texts are "
            f"wrong: look at some with shardline-inspect; {remedy}"
        )
    elif others:
        _note(
            f"feature {feature!r} names classes otherwise: {shorten_list(others, 3)}; list the names in the order of "
            f"the numbers, or {remedy}"
        )


def _manifest(
    *,
    name: str,
    splits: Mapping[str, tuple[tuple[str, ...], bool]],  # files, whether unlabelled
    contents: Mapping[str, ShardContent],
    labels: tuple[str, ...],
    features: Features,
) -> Manifest:
    used = [contents[file] for files, _ in splits.values() for file in files]
    encodings = {encoding for content in used for encoding in content.encodings}
    records = sum(content.shard.records for content in used)
    faulty, without_label = (sum(getattr(content, name) for content in used) for name in ("faulty", "without_label"))
    named = features.label_kind == "name"
    return Manifest(
        name=name,
        labels=labels,
        splits={
            split: Split(split, tuple(contents[file].shard for file in files), unlabelled)
            for split, (files, unlabelled) in splits.items()
        },
        ledger=Ledger(
            inputs=records + faulty + without_label, written=records, quarantined=faulty, filtered=without_label
        ),
        features=replace(features, names=labels if named else ()),
        image=ImageFormat(
            encoding=encodings.pop() if len(encodings) == 1 else "any",
            resize="none",
            size=0,
            max_height=max(content.max_height for content in used),
            max_width=max(content.max_width for content in used),
        ),
        class_counts={
            split: ()
            if unlabelled
            else tuple(
                sum(contents[file].labels[text if named else label] for file in files)
                for label, text in enumerate(labels)
            )
            for split, (files, unlabelled) in splits.items()
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
    kind = f" ({features.label_kind})" if features.label_kind else ""
    command_line.show(f"image {features.image!r} ({manifest.image.encoding}), label {features.label!r}{offset}{kind}")
    print(manifest.digest)


def cli() -> None:
    """Run the console script `shardline-adopt`."""
    command_line.run(main, AdoptConfig, __doc__)


if __name__ == "__main__":
    cli()
