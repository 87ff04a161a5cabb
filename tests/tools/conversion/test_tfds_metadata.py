"""Our metadata for TFDS is, byte for byte, what TFDS itself writes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from shardline.tools.conversion.tfds_metadata import FILE_TEMPLATE, FILES, tfds_metadata


def written_by_tfds(manifest, image, folder):
    """What the public function of TFDS writes for the same dataset."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(data_dir=folder, template=FILE_TEMPLATE, dataset_name=manifest.name)
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict({
            "image": image(tfds.features),
            "image/filename": tfds.features.Text(),
            "image/height": tfds.features.Scalar(np.int64),
            "image/width": tfds.features.Scalar(np.int64),
            "label": tfds.features.ClassLabel(names=manifest.labels),
        }),
        split_infos=[
            tfds.core.SplitInfo(
                name=name, shard_lengths=[shard.records for shard in split.shards], num_bytes=split.bytes,
                filename_template=template,
            )
            for name, split in manifest.splits.items()
        ],
        version="1.0.0", filename_template=template, check_data=False,
        description="Written by shardline-convert.", supervised_keys=("image", "label"),
    )  # fmt: skip
    return {name: (Path(folder) / name).read_bytes() for name in FILES}


@pytest.mark.parametrize(
    ("encoding", "size", "image"),
    [
        ("jpeg", None, lambda features: features.Image(shape=(None, None, 3), encoding_format="jpeg")),
        ("jpeg", (8, 9), lambda features: features.Image(shape=(None, None, 3), encoding_format="jpeg")),
        ("png", None, lambda features: features.Image(shape=(None, None, 3), encoding_format="png")),
        ("raw", None, lambda features: features.Text()),
        ("raw", (8, 9), lambda features: features.Tensor(shape=(8, 9, 3), dtype=np.uint8, encoding="bytes")),
    ],
)
@pytest.mark.parametrize("splits", [{"train": (3, 4)}, {"train": (5,), "validation": (1, 0, 2), "test": (2,)}])
def test_it_is_what_tfds_writes(encoding, size, image, splits, tmp_path):
    manifest = SimpleNamespace(
        name="mine",
        labels=("Ärger", "b c", '"quoted"', "日本"),
        image=SimpleNamespace(encoding=encoding),
        splits={
            name: SimpleNamespace(bytes=1000 * sum(lengths), shards=[SimpleNamespace(records=n) for n in lengths])
            for name, lengths in splits.items()
        },
    )
    for split, lengths in splits.items():
        for shard in range(len(lengths)):
            (tmp_path / f"mine-{split}.tfrecord-{shard:05d}-of-{len(lengths):05d}").touch()
    assert tfds_metadata(manifest, size) == written_by_tfds(manifest, image, tmp_path)
