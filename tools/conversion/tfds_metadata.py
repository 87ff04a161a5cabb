"""The JSON files of a prepared TFDS dataset: write them for ours, read them of others. No TensorFlow, no TFDS.

A test opens the result with the real TFDS, so a change of its format is noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import Features, Manifest

FILES = ("dataset_info.json", "features.json", "label.labels.txt")
_CLASSES = "tensorflow_datasets.core.features."


def write_tfds_metadata(
    directory: str | os.PathLike[str], manifest: Manifest, common_size: tuple[int, int] | None
) -> None:
    """Describe the dataset in TFDS's terms: an image, a class label, and where the image came from.

    Args:
      directory: of the dataset.
      manifest: what it holds.
      common_size: height and width when all stored images have the same.
    """
    info = {
        "description": "Written by shardline's shardline-convert.",
        "fileFormat": "tfrecord",
        "name": manifest.name,
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": name,
                "numBytes": str(sum(shard.bytes for shard in split.shards)),
                "shardLengths": [str(shard.records) for shard in split.shards],
            }
            for name, split in manifest.splits.items()
        ],
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "version": "1.0.0",
    }
    features = {
        "featuresDict": {
            "features": {
                "image": ENCODINGS[manifest.image.encoding].tfds_feature(common_size),
                "image/filename": {"pythonClassName": _CLASSES + "text_feature.Text", "text": {}},
                "image/height": _scalar(),
                "image/width": _scalar(),
                "label": {
                    "classLabel": {"numClasses": str(len(manifest.labels))},
                    "pythonClassName": _CLASSES + "class_label_feature.ClassLabel",
                },
            }
        },
        "pythonClassName": _CLASSES + "features_dict.FeaturesDict",
    }
    folder = Path(directory)
    (folder / "label.labels.txt").write_text("".join(f"{label}\n" for label in manifest.labels), encoding="utf-8")
    (folder / "features.json").write_text(json.dumps(features, indent=1) + "\n")
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=1) + "\n")


def _scalar() -> dict[str, Any]:
    return {
        "pythonClassName": _CLASSES + "scalar.Scalar",
        "tensor": {"dtype": "int64", "encoding": "none", "shape": {}},
    }


# -------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class TfdsLayout:
    """What the metadata of a prepared TFDS dataset says, as far as images and labels go."""

    name: str
    splits: Mapping[str, tuple[str, ...]]  # split -> file names
    features: Features
    labels: tuple[str, ...]
    encoding: str  # as TFDS names it; any where it does not say


def read_tfds_metadata(directory: str | os.PathLike[str], said: str) -> TfdsLayout:
    """Inverse of `write_tfds_metadata`, for what TFDS itself prepares, too.

    Args:
      directory: that holds dataset_info.json.
      said: the flag and value to blame in messages.

    Raises:
      UsageError: the dataset is not made of TFRecords with one image and one class label.
    """
    folder = Path(directory)
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        features = json.loads((folder / "features.json").read_text(encoding="utf-8"))["featuresDict"]["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{said}: no prepared TFDS dataset in {folder} ({type(error).__name__}: {error})") from None
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise UsageError(f"{said}: its files are {info['fileFormat']}, only tfrecord can be read")
    images = [name for name, feature in features.items() if feature["pythonClassName"].endswith(".Image")]
    labels = [name for name, feature in features.items() if feature["pythonClassName"].endswith(".ClassLabel")]
    if len(images) != 1 or len(labels) != 1:
        raise UsageError(
            f"{said}: needs one Image and one ClassLabel feature, found {images or 'no Image'} and "
            f"{labels or 'no ClassLabel'}"
        )
    texts = [name for name in ("image/filename", "file_name", "filename") if name in features]
    names_file = folder / f"{labels[0]}.labels.txt"
    count = int(features[labels[0]]["classLabel"].get("numClasses", 0))
    names = names_file.read_text(encoding="utf-8").splitlines() if names_file.exists() else map(str, range(count))
    return TfdsLayout(
        name=info["name"],
        splits={split["name"]: _files(info["name"], split) for split in info["splits"] if split.get("shardLengths")},
        features=Features(
            image=images[0],
            label=labels[0],
            filename=texts[0] if texts else "",
            height="image/height" if "image/height" in features else "",
            width="image/width" if "image/width" in features else "",
        ),
        labels=tuple(names),
        encoding=features[images[0]]["image"].get("encodingFormat") or "any",
    )


def _files(dataset: str, split: Mapping[str, Any]) -> tuple[str, ...]:
    count = len(split["shardLengths"])
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    parts = {"{DATASET}": dataset, "{SPLIT}": split["name"], "{FILEFORMAT}": "tfrecord"}
    for name, value in parts.items():
        template = template.replace(name, value)
    return tuple(template.replace("{SHARD_X_OF_Y}", f"{number:05d}-of-{count:05d}") for number in range(count))
