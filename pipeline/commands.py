"""The commands there are, by name: for `shardline NAME`, for completion, and for naming one as the user would type it.

No TensorFlow, and no module of a command is imported before its command runs.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Command:
    """One command: the module that has its `cli`, the config class its flags come from, and what it does."""

    module: str
    config: str
    summary: str

    def config_class(self) -> type[DataclassInstance]:
        """The config class itself; imports the module."""
        found: type[DataclassInstance] = getattr(importlib.import_module(self.module), self.config)
        return found


COMMANDS = {
    "convert": Command("shardline.tools.convert", "ConvertConfig", "raw images to TFRecord shards with a manifest"),
    "adopt": Command("shardline.tools.adopt", "AdoptConfig", "manifest and indexes for TFRecords made elsewhere"),
    "merge": Command("shardline.tools.merge", "MergeConfig", "join datasets, shards by hard link"),
    "verify": Command("shardline.tools.verify", "VerifyConfig", "check a dataset to the last byte"),
    "inspect": Command("shardline.tools.inspect", "InspectConfig", "what a dataset holds; one record; image grids"),
    "browse": Command("shardline.tools.browse", "BrowseConfig", "look through a dataset and its mistakes in a browser"),
    "doctor": Command("shardline.tools.doctor", "DoctorConfig", "what this installation does with malformed images"),
    "sample-data": Command("shardline.tools.sample_data", "SampleDataConfig", "draw a labeled folder to try it all"),
    "train": Command("shardline.trainer.train", "TrainCommand", "train a VGG16, or continue a run"),
    "evaluate": Command("shardline.trainer.evaluate", "EvaluateConfig", "exact metrics, mistakes, calibration"),
    "predict": Command("shardline.trainer.predict", "PredictConfig", "classify image files or the records of a split"),
    "export": Command("shardline.trainer.export", "ExportConfig", "SavedModel, .keras and TFLite, each compared"),
    "compare": Command("shardline.trainer.compare", "CompareConfig", "runs side by side"),
    "benchmark": Command("shardline.benchmarks.run", "BenchConfig", "which stage is the bottleneck; what would help"),
}
# A word of its own: no part of a path or of a longer name.
_NAME = re.compile(rf"(?<![\w./=-])shardline-({'|'.join(COMMANDS)})(?![\w./-])")


def as_typed(text: str) -> str:
    """`text` with each `shardline-NAME` in the form in which the user typed the running command.

    `shardline NAME` after `shardline train`, `python -m MODULE` after `python -m shardline.trainer.train`.
    """
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if sys.argv[:1] and re.match(r"(.*/)?shardline( |$)", sys.argv[0]):
        return _NAME.sub(r"shardline \1", text)
    if spec is not None and spec.name in {command.module for command in COMMANDS.values()}:
        return _NAME.sub(lambda found: f"python -m {COMMANDS[found[1]].module}", text)
    return text
