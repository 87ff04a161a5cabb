"""Checkpoint files: arrays by name and a header in one .npz, whole or absent, any changed bit found. No TensorFlow.

Names of arrays are model/PATH, ema/PATH, slots/PATH/SLOT and loss_scale/NAME.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from shardline.pipeline import stored
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.stored import Count
from shardline.pipeline.stored_arrays import load_arrays, save_arrays

BEST = "best.npz"
FORMAT = "shardline checkpoint 4"
_NUMBERED = re.compile(r"step-(\d{8,})\.npz", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
      header: the plain values of `TrainState.header`, `train` (the TrainConfig of the step it was saved after),
        `sampler` (the key of `TrainSetup.sampler_key`), `labels` (the classes) and `input_scale`, by which the
        convolutions' input is divided.
      arrays: `TrainState.arrays`.
    """

    path: Path
    header: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def final_weights(self) -> dict[str, np.ndarray]:
        """The weights it stands for, by path: the moving average if there is one."""
        for group in ("ema/", "model/"):
            found = {name.removeprefix(group): array for name, array in self.arrays.items() if name.startswith(group)}
            if found:
                return found
        raise UsageError(f"{self.path} holds no weights; give a checkpoint of shardline-train")

    @property
    def averaged(self) -> bool:
        """Whether those are a moving average."""
        return any(name.startswith("ema/") for name in self.arrays)


def weights_digest(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 (hex) over the names and bytes of all weights."""
    digest = hashlib.sha256()
    for name, array in sorted(weights.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_checkpoint(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a checkpoint so that a reader sees all of it or nothing.

    Raises:
      Failure: the disk is full or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(path, header, arrays, format=FORMAT)
    except OSError as error:
        raise Failure(
            f"{path} cannot be written: {error.strerror}; free some space and run the same command again, it continues "
            "from the checkpoint before"
        ) from None


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Inverse of `write_checkpoint`. Raises UsageError when the file is damaged, of an old format or something else."""
    path, remedy = Path(path), "give another checkpoint"
    try:
        header, arrays = load_arrays(path, format=FORMAT, remedy=remedy)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; {remedy}") from None
    values = vars(stored.convert(header, _Header, what=path, remedy=remedy))
    for name, kind in {"evaluation": _Evaluation, "sampler": _Sampler}.items():
        stored.convert(values[name], kind, what=path, remedy=remedy)
    return Checkpoint(path, values, arrays)


@dataclass(frozen=True)
class _Header:
    """The plain numbers of a checkpoint, as they must be."""

    step: Count
    cursor: Count
    phase: Count
    best_metric: str
    best: float | None
    best_step: Count
    evals_since_best: Count
    evaluation: dict[str, str | int | float]
    train: dict[str, Any]  # checked when it becomes a TrainConfig
    sampler: dict[str, str | int | bool]
    input_scale: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    labels: tuple[str, ...] = ()  # (): of a run before they were kept here


@dataclass(frozen=True)
class _Evaluation:
    """Those of its values that are computed with; none before the first evaluation."""

    step: Count = 0
    loss: float = 0.0
    top1: float = 0.0
    top5: float = 0.0


@dataclass(frozen=True)
class _Sampler:
    """Those of its values that are computed with."""

    records: Annotated[int, msgspec.Meta(ge=1, le=2**53)]


def checkpoint_path(workdir: str | os.PathLike[str], step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(workdir) / "checkpoints" / f"step-{step:08d}.npz"


def best_path(workdir: str | os.PathLike[str]) -> Path:
    """Where the checkpoint that is best by `--best_metric` lies."""
    return Path(workdir) / "checkpoints" / BEST


def list_checkpoints(workdir: str | os.PathLike[str]) -> list[Path]:
    """The numbered checkpoints of a run, oldest first. Files of other names are not its own."""
    found = ((_NUMBERED.fullmatch(path.name), path) for path in (Path(workdir) / "checkpoints").glob("step-*.npz"))
    return [path for _, path in sorted((int(number[1]), path) for number, path in found if number)]


def is_checkpoint_name(name: str) -> bool:
    """Whether a file of this name in `checkpoints` is a run's own."""
    return name == BEST or bool(_NUMBERED.fullmatch(name))


def newest_checkpoint(workdir: str | os.PathLike[str]) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be read, and why newer ones could not."""
    damaged: list[str] = []
    for path in reversed(list_checkpoints(workdir)):
        try:
            found = read_checkpoint(path)
        except UsageError as error:
            damaged.append(str(error))
            continue
        step = found.header["step"]
        if path == checkpoint_path(workdir, step):
            return found, damaged
        damaged.append(f"{path} is of step {step}, not of the one in its name; rename it, or move it away")
    return None, damaged
