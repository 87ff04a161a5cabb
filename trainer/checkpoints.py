"""Checkpoint files: arrays by name and a JSON header in one .npz, whole or absent. No TensorFlow.

Zip's checksums tell a damaged file. Names of arrays are model/PATH, ema/PATH, slots/PATH/SLOT and loss_scale/NAME.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import atomic_writer

BEST = "best.npz"
FORMAT = 2  # 1 called the group "ema" "average"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
      header: the plain numbers of `TrainState.header`, `sampler` (the key of `TrainSetup.sampler_key`) and
        `input_scale`, by which the convolutions' input is divided.
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


def write_checkpoint(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a checkpoint so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = np.array(json.dumps({"format": FORMAT, **header}))
    with atomic_writer(path) as file:
        np.savez(file, allow_pickle=False, header=text, **arrays)  # type: ignore[arg-type]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Inverse of `write_checkpoint`. Raises UsageError when the file is damaged, of an old format or something else."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            arrays = {name: file[name] for name in file.files if name != "header"}
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise UsageError(f"{path} cannot be read as a checkpoint: {error}; give another one") from error
    if (found := header.get("format", 1)) != FORMAT:
        raise UsageError(f"{path} is a checkpoint of format {found}, this version reads format {FORMAT}; train again")
    return Checkpoint(path, header, arrays)


def checkpoint_path(workdir: str | os.PathLike[str], step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(workdir) / "checkpoints" / f"step-{step:08d}.npz"


def best_path(workdir: str | os.PathLike[str]) -> Path:
    """Where the checkpoint that is best by `--best_metric` lies."""
    return Path(workdir) / "checkpoints" / BEST


def list_checkpoints(workdir: str | os.PathLike[str]) -> list[Path]:
    """The numbered checkpoints of a run, oldest first."""
    return sorted((Path(workdir) / "checkpoints").glob("step-*.npz"))


def newest_checkpoint(workdir: str | os.PathLike[str]) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be read, and why newer ones could not."""
    damaged: list[str] = []
    for path in reversed(list_checkpoints(workdir)):
        try:
            return read_checkpoint(path), damaged
        except UsageError as error:
            damaged.append(str(error))
    return None, damaged


def find_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint file itself; of a run directory, its best checkpoint, or the newest where none was chosen as best.

    Raises:
      UsageError: there is none that can be read.
    """
    path = Path(path)
    if not path.is_dir():
        return read_checkpoint(path)
    if best_path(path).exists():
        return read_checkpoint(best_path(path))
    newest, damaged = newest_checkpoint(path)
    if newest is None:
        raise UsageError(f"{path} holds no checkpoint" + "".join(f"; {line}" for line in damaged))
    return newest
