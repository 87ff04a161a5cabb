"""What the config.json of a training run says of its input, for who knows nothing of trainers. No TensorFlow."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardline.pipeline import stored
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError
from shardline.pipeline.progress import log
from shardline.pipeline.wording import as_flag

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG_FILE = "config.json"
RUN_FORMAT = "shardline run 3"


@dataclass(frozen=True)
class RunInput:
    """What a run is shown.

    Attributes:
      data: directory of its dataset; "" for synthetic data.
      digest: of that dataset.
      balanced: whether it samples every class equally often.
    """

    config: InputConfig
    data: str
    split: str
    digest: str
    balanced: bool


@dataclass(frozen=True)
class _Stored:
    train: dict[str, Any]  # checked when it becomes an InputConfig
    dataset: dict[str, str | int | float | bool | None]


def say_absent(path: Path, kind: type[DataclassInstance], settings: Mapping[str, Any]) -> None:
    """Say, once, which settings of `kind` the config of an older version lacks: they have their defaults."""
    absent = [field for field in dataclasses.fields(kind) if field.name not in settings]
    if absent:
        taken = ", ".join(f"--{field.name}={as_flag(field.default)}" for field in absent)
        _say(f"note: {path} is of a version without {taken}, as is taken now")


@lru_cache  # said once
def _say(text: str) -> None:
    log(text)


def read_run_input(run: str | os.PathLike[str]) -> RunInput:
    """The input of the run in a directory. Raises UsageError: there is none, or its config.json cannot be used."""
    path, remedy = Path(run) / CONFIG_FILE, "restore it from a copy, or train again"
    try:
        found = stored.load(path, _Stored, format=RUN_FORMAT, remedy=remedy)
    except FileNotFoundError:
        raise UsageError(f"--run={run}: no {CONFIG_FILE} there; give a --workdir of shardline-train") from None
    train = found.train
    say_absent(path, InputConfig, train)
    try:
        known = {field.name for field in dataclasses.fields(InputConfig)}
        config = InputConfig(**{name: value for name, value in train.items() if name in known})
        return RunInput(
            config, train["data"], train["train_split"], str(found.dataset["dataset"]), train["balanced_sampling"]
        )
    except KeyError as error:
        raise UsageError(f"{path} says nothing of {error}: it is of another version; train again") from None
