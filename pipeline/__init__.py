"""Sharded pictures in, batches out: the public reading API.

    data = pipeline.open_dataset(DIR)
    config = pipeline.InputConfig(global_batch_size=256, image_size=224, seed=0)
    ds = data.train_batches("train", config)

Names are loaded on first use, so that `import pipeline` stays instant and free of TensorFlow.
"""

import importlib
from typing import Any

_HOME = {
    "Dataset": "dataset",
    "open_dataset": "dataset",
    "InputConfig": "config",
    "Order": "order",
    "augment_on_device": "augment_device",
    "soft_labels": "augment_device",
    "eval_geometry": "geometry",
    "PREPROCESSING": "geometry",
    "StageTimes": "stages",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pipeline.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
