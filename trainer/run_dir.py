"""The run directory: its config.json, which weights it stands for, and the trained model read back.

TensorFlow is imported with the model, so that commands can check a run directory before they start it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from shardline.pipeline import stored
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import file_sha256
from shardline.pipeline.stored import Count, Sha256
from shardline.trainer.checkpoints import find_checkpoint, list_checkpoints
from shardline.trainer.config import TrainConfig

if TYPE_CHECKING:
    import keras

    from shardline.trainer.model import Network

CONFIG_FILE, MODEL_FILE = "config.json", "model.keras"
MODEL_NOTE = "model.json"  # what model.keras must be
FORMAT = "shardline run 3"


@dataclass(frozen=True)
class Run:
    """A trained model, read back from its run directory.

    Attributes:
      model: uint8 RGB [b, s, s, 3] -> float32 probabilities [b, classes].
      preprocessing: how images become the model's input: pipeline.PREPROCESSING, crop_fraction, and `stored`, how the
        converter made the stored images.
      dataset: name, digest, split and order of what it was trained on.
    """

    model: keras.Model
    config: TrainConfig
    labels: tuple[str, ...]
    preprocessing: dict[str, Any]
    dataset: dict[str, Any]
    network: Network


def write_config(workdir: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write config.json, whole or not at all."""
    stored.save(Path(workdir) / CONFIG_FILE, content, format=FORMAT)


def read_config(workdir: str | os.PathLike[str], flag: str = "--run") -> dict[str, Any]:
    """config.json of a run directory: `train` (the TrainConfig), `labels`, `dataset`, `preprocessing`, `versions`.

    Raises:
      UsageError: there is none, it is damaged or edited, or it is of another format.
    """
    path, remedy = Path(workdir) / CONFIG_FILE, "restore it from a copy, or train again"
    try:
        content = vars(stored.load(path, _StoredRun, format=FORMAT, remedy=remedy))
    except FileNotFoundError:
        raise UsageError(
            f"{flag}={workdir}: no {CONFIG_FILE} there, so it is no run directory; give a --workdir of shardline-train"
        ) from None
    stored.convert(content["preprocessing"], _Preprocessing, what=path, remedy=remedy)
    return content


Plain = str | int | float | bool | None


@dataclass(frozen=True)
class _StoredRun:
    """The content of config.json."""

    train: dict[str, Any]  # checked when it becomes a TrainConfig
    labels: tuple[str, ...]
    dataset: dict[str, Plain]
    preprocessing: dict[str, Plain | dict[str, Plain]]
    versions: dict[str, str]
    starting_weights_sha256: str  # of the file named by --weights; "" for fresh weights


@dataclass(frozen=True)
class _Preprocessing:
    """Those of its values that are computed with."""

    crop_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)]
    stored: dict[str, Plain]


@dataclass(frozen=True)
class _ModelNote:
    step: Count
    sha256: Sha256


def note_model(workdir: str | os.PathLike[str], step: int) -> None:
    """Note the step and the SHA-256 of model.keras, so that it can be vouched for."""
    content = {"step": step, "sha256": file_sha256(Path(workdir) / MODEL_FILE)}
    stored.save(Path(workdir) / MODEL_NOTE, content, format=FORMAT)


def model_is_whole(workdir: str | os.PathLike[str], step: int) -> bool:
    """Whether model.keras is there, to the last bit as it was written after this step."""
    try:
        note = stored.load(Path(workdir) / MODEL_NOTE, _ModelNote, format=FORMAT, remedy="train again")
        return note.step == step and file_sha256(Path(workdir) / MODEL_FILE) == note.sha256
    except (OSError, UsageError):
        return False


def load_run(run_dir: str | os.PathLike[str], checkpoint: str | None = None, precision: str | None = None) -> Run:
    """The model of a run: the weights of `checkpoint`, else of its best or newest one.

    Args:
      precision: replaces the policy it was trained with, e.g. float32 for export.

    Raises:
      UsageError: there is no such checkpoint, or it is not one of this run.
    """
    from shardline.trainer.model import NetworkConfig, create_network  # imports TensorFlow

    content = read_config(run_dir)
    config, labels = TrainConfig.from_dict(content["train"]), tuple(content["labels"])
    flag = f"--checkpoint={checkpoint}" if checkpoint else f"--run={run_dir}"
    source = Path(checkpoint or run_dir)
    if not source.exists():
        there = ", ".join(path.name for path in list_checkpoints(run_dir))
        raise UsageError(f"{flag}: no such file; {run_dir} has {there}")
    try:
        found = find_checkpoint(source)
        weights = found.final_weights
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from None
    network = create_network(
        NetworkConfig.of(config, len(labels), precision=precision, input_scale=found.header["input_scale"])
    )
    shapes = {name: tuple(variable.shape) for name, variable in network.weights.items()}
    if shapes != {name: array.shape for name, array in weights.items()}:
        raise UsageError(
            f"{flag} is a checkpoint of another model than {Path(run_dir) / CONFIG_FILE} describes; "
            "give one from the same run"
        )
    for name, variable in network.weights.items():
        variable.assign(weights[name])
    return Run(network.serve, config, labels, content["preprocessing"], content["dataset"], network)
