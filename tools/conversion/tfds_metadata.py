"""The metadata of prepared TFDS datasets: written for ours as TFDS writes it, read of others as data. No TensorFlow.

Others' are not opened with TFDS, because it imports whatever module their features.json names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from shardline.pipeline import stored
from shardline.pipeline.encodings import ENCODINGS, TFDS_FEATURES
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import atomic_write
from shardline.pipeline.manifest import Features, Manifest, Name, SplitName
from shardline.pipeline.text import display
from shardline.pipeline.wording import count

T = TypeVar("T")

FILES = ("dataset_info.json", "features.json", "label.labels.txt")
FILE_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def write_tfds_metadata(
    directory: str | os.PathLike[str], manifest: Manifest, common_size: tuple[int, int] | None
) -> None:
    """Describe the dataset in TFDS's terms: an image, a class label, and where the image came from.

    Args:
      directory: of the dataset.
      manifest: what it holds.
      common_size: height and width when all stored images have the same.
    """
    for name, content in tfds_metadata(manifest, common_size).items():
        atomic_write(Path(directory) / name, content, durable=False)


def tfds_metadata(manifest: Manifest, common_size: tuple[int, int] | None) -> dict[str, bytes]:
    """Content of FILES: byte for byte what `tfds.folder_dataset.write_metadata` writes, without importing it."""
    number = {
        "pythonClassName": f"{TFDS_FEATURES}.scalar.Scalar",
        "tensor": {"dtype": "int64", "encoding": "none", "shape": {}},
    }
    features = {
        "image": ENCODINGS[manifest.image.encoding].tfds_feature(common_size),
        "image/filename": {"pythonClassName": f"{TFDS_FEATURES}.text_feature.Text", "text": {}},
        "image/height": number,
        "image/width": number,
        "label": {
            "classLabel": {"numClasses": str(len(manifest.labels))},
            "pythonClassName": f"{TFDS_FEATURES}.class_label_feature.ClassLabel",
        },
    }
    described = {
        "featuresDict": {"features": features},
        "pythonClassName": f"{TFDS_FEATURES}.features_dict.FeaturesDict",
    }
    info = {
        "description": "Written by shardline-convert.",
        "fileFormat": "tfrecord",
        "name": manifest.name,
        "splits": [
            {
                "filepathTemplate": FILE_TEMPLATE,
                "name": name,
                "numBytes": str(split.bytes),
                "shardLengths": [str(shard.records) for shard in split.shards],
            }
            for name, split in manifest.splits.items()
        ],
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "version": "1.0.0",
    }
    labels = "".join(f"{name}\n" for name in manifest.labels)
    contents = (json.dumps(info, indent=2), json.dumps(described, indent=4, sort_keys=True), labels)
    return {name: content.encode() for name, content in zip(FILES, contents, strict=True)}


# -------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class TfdsLayout:
    """What the metadata of a prepared TFDS dataset says, as far as images and labels go."""

    name: str
    splits: Mapping[str, tuple[str, ...]]  # split -> file names
    features: Features
    labels: tuple[str, ...]
    encoding: str  # as TFDS names it; any where it does not say
    records: Mapping[str, int]  # by file name


def read_tfds_metadata(directory: str | os.PathLike[str], flag: str) -> TfdsLayout:
    """Inverse of `write_tfds_metadata`, for what TFDS itself prepares, too.

    Args:
      directory: that holds dataset_info.json.
      flag: the flag and value to blame in messages.

    Raises:
      UsageError: the dataset is not made of TFRecords with one image and one class label.
    """
    folder = Path(directory)
    info = _read(folder, "dataset_info.json", _Info, flag)
    features = _read(folder, "features.json", _FeaturesFile, flag).featuresDict.features
    if info.fileFormat != "tfrecord":
        raise UsageError(f"{flag}: its files are {display(info.fileFormat)}, only tfrecord can be read")
    images = [name for name, feature in features.items() if feature.pythonClassName.endswith(".Image")]
    labels = [name for name, feature in features.items() if feature.pythonClassName.endswith(".ClassLabel")]
    if len(images) != 1 or len(labels) != 1:
        raise UsageError(
            f"{flag}: needs one Image and one ClassLabel feature, found {images or 'no Image'} and "
            f"{labels or 'no ClassLabel'}"
        )
    encoding = features[images[0]].image.encodingFormat
    splits = {split.name: _files(folder, info.name, split) for split in info.splits if split.shardLengths}
    return TfdsLayout(
        name=info.name,
        splits=splits,
        features=Features(
            image=images[0],
            label=labels[0],
            filename=next((name for name in ("image/filename", "file_name", "filename") if name in features), ""),
            height="image/height" if "image/height" in features else "",
            width="image/width" if "image/width" in features else "",
        ),
        labels=_labels(folder, labels[0], int(features[labels[0]].classLabel.numClasses)),
        encoding=encoding if encoding in ("jpeg", "png") else "any",
        records={
            file: int(length)
            for split in info.splits
            for file, length in zip(splits.get(split.name, ()), split.shardLengths, strict=True)
        },
    )


# Their files, as far as they are read here. Protobuf writes 64-bit numbers as text.
_Length = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,15}\Z")] | Annotated[int, msgspec.Meta(ge=0, lt=10**15)]


@dataclass(frozen=True)
class _Split:
    name: SplitName
    shardLengths: Annotated[tuple[_Length, ...], msgspec.Meta(max_length=99_999)] = ()
    filepathTemplate: str = ""


@dataclass(frozen=True)
class _Info:
    name: Name
    splits: tuple[_Split, ...]
    fileFormat: str = "tfrecord"


@dataclass(frozen=True)
class _Image:
    encodingFormat: str = ""


@dataclass(frozen=True)
class _ClassLabel:
    numClasses: (
        Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,6}\Z")] | Annotated[int, msgspec.Meta(ge=0, lt=10**6)]
    ) = 0


@dataclass(frozen=True)
class _Feature:
    pythonClassName: str
    image: _Image = _Image()
    classLabel: _ClassLabel = _ClassLabel()


@dataclass(frozen=True)
class _FeaturesDict:
    features: Mapping[str, _Feature]


@dataclass(frozen=True)
class _FeaturesFile:
    featuresDict: _FeaturesDict


def _read(folder: Path, name: str, kind: type[T], flag: str) -> T:
    remedy = "prepare it with TFDS again, or restore it from a copy"
    try:
        return stored.parse(stored.read_bytes(folder / name, remedy=remedy), kind, what=folder / name, remedy=remedy)
    except FileNotFoundError:
        raise UsageError(f"{flag}: no prepared TFDS dataset in {folder}, which has no {name}") from None


def _labels(folder: Path, feature: str, classes: int) -> tuple[str, ...]:
    """The names beside features.json, or numbers."""
    path = stored.stored_path(folder, f"{feature}.labels.txt", r"[^/]+", what=folder / "features.json")
    try:
        data = stored.read_bytes(path, remedy="restore it from a copy")
        names = tuple(line.strip() for line in data.decode().split("\n") if line.strip())  # as TFDS reads it
    except FileNotFoundError:
        return tuple(map(str, range(classes)))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 ({error.reason}); restore it from a copy") from None
    if classes not in (0, len(names)):  # which TFDS refuses, too
        raise UsageError(
            f"{path} has {count(len(names), 'name')}, but features.json {classes:,} classes; restore it from a copy"
        )
    return names


def lost_records(held: Mapping[str, int], said: Mapping[str, int], source: str = "dataset_info.json") -> list[str]:
    """Words on each file that holds fewer records than a source says; nothing on those whose content nobody read."""
    return [
        f"{file} holds {count(held[file], 'record')}, but {source} says {records:,}; restore it from a copy"
        for file, records in said.items()
        if held.get(file, records) < records
    ]


def _files(folder: Path, dataset: str, split: _Split) -> tuple[str, ...]:
    shards = len(split.shardLengths)
    template = split.filepathTemplate or FILE_TEMPLATE
    parts = {"{DATASET}": dataset, "{SPLIT}": split.name, "{FILEFORMAT}": "tfrecord"}
    for name, value in parts.items():
        template = template.replace(name, value)
    names = [template.replace("{SHARD_X_OF_Y}", f"{number:05d}-of-{shards:05d}") for number in range(shards)]
    return tuple(
        stored.stored_path(folder, name, r"(?!\.).+", what=folder / "dataset_info.json").name for name in names
    )
