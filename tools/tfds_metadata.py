"""Write the two JSON files that let `tfds.builder_from_directory` open a dataset of ours. No TensorFlow, no TFDS.

A test opens the result with the real TFDS, so a change of its format is noticed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pipeline.manifest import ImageFormat, Manifest

FILES = ("dataset_info.json", "features.json", "label.labels.txt")
_CLASSES = "tensorflow_datasets.core.features."


def write_tfds_metadata(
    directory: str | os.PathLike[str], manifest: Manifest, common_size: tuple[int, int] | None
) -> None:
    """Describe the dataset in TFDS's terms: an image, a class label, and where the image came from.

    Args:
      directory: of the dataset.
      manifest: what it holds.
      common_size: height and width when all stored pictures have the same.
    """
    info = {
        "description": "Written by shardline's tools.convert.",
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
                "image": _image_feature(manifest.image, common_size),
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


def _image_feature(image: ImageFormat, common_size: tuple[int, int] | None) -> dict[str, Any]:
    if image.encoding != "raw":
        shape = {"dimensions": ["-1", "-1", "3"]}
        return {
            "image": {"dtype": "uint8", "encodingFormat": image.encoding, "shape": shape},
            "pythonClassName": _CLASSES + "image_feature.Image",
        }
    # Raw pixels have no header to tell their shape: TFDS can shape them only when all are alike, and else hands out
    # the bytes, with image/height and image/width beside them.
    if common_size:
        shape = {"dimensions": [str(common_size[0]), str(common_size[1]), "3"]}
        return {
            "tensor": {"dtype": "uint8", "encoding": "bytes", "shape": shape},
            "pythonClassName": _CLASSES + "tensor_feature.Tensor",
        }
    return {"pythonClassName": _CLASSES + "text_feature.Text", "text": {}}


def _scalar() -> dict[str, Any]:
    return {
        "pythonClassName": _CLASSES + "scalar.Scalar",
        "tensor": {"dtype": "int64", "encoding": "none", "shape": {}},
    }
