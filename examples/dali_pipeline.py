"""NVIDIA DALI on our shards: the .idx files beside them are in the format of its tfrecord2idx.

    python examples/dali_pipeline.py data         # on a GPU
    python examples/dali_pipeline.py data cpu

DALI's shuffle is a buffer's, so the order is its own: not that of `train_batches`, and not to be continued at a sample.
"""

from __future__ import annotations

import sys
from pathlib import Path


def files(directory: str, split: str) -> tuple[list[str], list[str]]:
    """The shards of a split and their indexes."""
    from shardline import pipeline

    shards = [
        str(Path(directory, shard.file)) for shard in pipeline.open_dataset(directory).manifest.split(split).shards
    ]
    return shards, [f"{path}.idx" for path in shards]


def main(directory: str, device: str = "mixed") -> None:
    """Read one batch. On a GPU the decoder is "mixed": half of it runs there."""
    import nvidia.dali.fn as fn
    import nvidia.dali.tfrecord as tfrec
    from nvidia.dali import pipeline_def

    shards, indexes = files(directory, "train")

    @pipeline_def(batch_size=32, num_threads=4, device_id=None if device == "cpu" else 0)
    def reading():
        features = {
            "image": tfrec.FixedLenFeature((), tfrec.string, ""),
            "label": tfrec.FixedLenFeature([1], tfrec.int64, -1),
        }
        read = fn.readers.tfrecord(path=shards, index_path=indexes, features=features, random_shuffle=True)
        images = fn.decoders.image_random_crop(read["image"], device=device, random_area=[0.35, 1.0])
        return fn.resize(images, size=[224, 224]), read["label"]

    built = reading()
    built.build()
    images, labels = built.run()
    images = images if device == "cpu" else images.as_cpu()
    print(images.as_array().shape, labels.as_array().ravel()[:8])


if __name__ == "__main__":
    main(*sys.argv[1:])
