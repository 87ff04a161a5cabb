"""Sharded images in, batches out: the public reading API.

    from shardline import pipeline

    data = pipeline.open_dataset(DIR)
    config = pipeline.InputConfig(global_batch_size=256, image_size=224, seed=0)
    ds = data.train_batches("train", config)

Names are loaded on first use, so that importing the package, as every command does, stays instant and free of
TensorFlow and OpenCV. Type checkers see the static imports.
"""

from shardline.pipeline import start as start  # first of all: it sees to Ctrl-C

from typing import TYPE_CHECKING, Any  # isort: skip

if TYPE_CHECKING:
    from shardline.pipeline.augment_device import augment_on_device, soft_labels
    from shardline.pipeline.config import InputConfig
    from shardline.pipeline.dataset import Dataset, TrainingData, open_dataset
    from shardline.pipeline.errors import Failure, UsageError
    from shardline.pipeline.preprocessing import PREPROCESSING, eval_geometry
    from shardline.pipeline.profiling import StageTimes
    from shardline.pipeline.sampler import BalancedSampler, Sampler, ShuffleSampler

__all__ = [
    "PREPROCESSING",
    "BalancedSampler",
    "Dataset",
    "Failure",
    "InputConfig",
    "Sampler",
    "ShuffleSampler",
    "StageTimes",
    "TrainingData",
    "UsageError",
    "augment_on_device",
    "eval_geometry",
    "open_dataset",
    "soft_labels",
]

_HOME = {
    "PREPROCESSING": "preprocessing",
    "BalancedSampler": "sampler",
    "Dataset": "dataset",
    "Failure": "errors",
    "InputConfig": "config",
    "Sampler": "sampler",
    "ShuffleSampler": "sampler",
    "StageTimes": "profiling",
    "TrainingData": "dataset",
    "UsageError": "errors",
    "augment_on_device": "augment_device",
    "eval_geometry": "preprocessing",
    "open_dataset": "dataset",
    "soft_labels": "augment_device",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
