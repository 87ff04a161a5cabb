"""TrainState: everything a restart needs, and how it is saved, restored and read back.

A checkpoint is one .npz file: arrays by name and a JSON header. It is written under another name and renamed, and
zip's checksums tell a damaged one.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardline.pipeline.errors import UsageError
from shardline.trainer.config import TrainConfig

CONFIG_FILE = "config.json"
BEST = "best.npz"


@dataclass
class TrainState:
    """Where a run stands. The one mutable thing in the trainer."""

    weights: Mapping[str, Any]
    ema_weights: Mapping[str, Any]
    optimizer: Any
    loss_scale: Any
    step: int = 0
    cursor: int = 0  # samples consumed
    phase: int = 0
    best: float | None = None
    evals_since_best: int = 0

    def header(self) -> dict[str, Any]:
        """The plain numbers."""
        return {name: getattr(self, name) for name in ("step", "cursor", "phase", "best", "evals_since_best")}

    def arrays(self) -> dict[str, np.ndarray]:
        """Every variable's value by its name in a checkpoint."""
        return {name: variable.numpy() for name, variable in self._variables().items()}

    def _variables(self) -> dict[str, Any]:
        groups = {
            "model": self.weights,
            "average": self.ema_weights,
            "slots": self.optimizer.state(),
            "loss_scale": self.loss_scale.state(),
        }
        return {f"{group}/{name}": v for group, variables in groups.items() for name, v in variables.items()}

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, source: Path) -> None:
        """Inverse of header() and arrays(). Slots are only taken over within the phase they belong to."""
        for name in self.header():
            setattr(self, name, header[name])
        for name, variable in self._variables().items():
            if name not in arrays or arrays[name].shape != tuple(variable.shape):
                found = arrays[name].shape if name in arrays else "nothing"
                raise UsageError(
                    f"{source} is a checkpoint of another model: {name} is {found} there and {tuple(variable.shape)} "
                    "here; start in another --workdir, or give the flags it was trained with"
                )
            variable.assign(arrays[name])


def weights_digest(weights: Mapping[str, Any]) -> str:
    """SHA-256 over the names and bytes of all weights."""
    digest = hashlib.sha256()
    for name, variable in sorted(weights.items()):
        digest.update(name.encode() + np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()


def write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a checkpoint so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a checkpoint. Raises ValueError when it is damaged or something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            return header, {name: file[name] for name in file.files if name != "header"}
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error


def checkpoint_path(workdir: str | os.PathLike[str], step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(workdir) / "checkpoints" / f"step-{step:08d}.npz"


def checkpoints(workdir: str | os.PathLike[str]) -> list[Path]:
    """The numbered checkpoints of a run, oldest first."""
    return sorted((Path(workdir) / "checkpoints").glob("step-*.npz"))


def newest_readable(workdir: str | os.PathLike[str]) -> tuple[Path | None, Any, Any, list[str]]:
    """The newest checkpoint that can be read, with header and arrays, and why newer ones could not."""
    damaged: list[str] = []
    for path in reversed(checkpoints(workdir)):
        try:
            return (path, *read(path), damaged)
        except ValueError as error:
            damaged.append(str(error))
    return None, None, None, damaged


def final_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights a checkpoint stands for: the moving average if there is one."""
    for group in ("average/", "model/"):
        found = {name.removeprefix(group): array for name, array in arrays.items() if name.startswith(group)}
        if found:
            return found
    raise ValueError("the checkpoint holds no weights")


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], float]:
    """Final weights, by name, and input scale: of a checkpoint, or of a run directory's best or newest one."""
    best = path / "checkpoints" / BEST
    if path.is_dir() and not best.exists():
        _, header, arrays, damaged = newest_readable(path)
        if arrays is None:
            raise UsageError(f"{path} holds no checkpoint" + "".join(f"; {line}" for line in damaged))
    else:
        header, arrays = read(best if path.is_dir() else path)
    return final_weights(arrays), header["input_scale"]


# The run directory ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A trained model, read back from its run directory."""

    model: Any  # Keras model: uint8 RGB [b, s, s, 3] -> float32 probabilities [b, classes]
    config: TrainConfig
    labels: tuple[str, ...]
    preprocessing: dict[str, Any]
    dataset: dict[str, Any]  # name and digest of what it was trained on
    network: Any


def write_config(workdir: str, content: Mapping[str, Any]) -> None:
    """Write config.json, whole or not at all."""
    path = Path(workdir) / CONFIG_FILE
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_config(workdir: str | os.PathLike[str], flag: str = "--run") -> dict[str, Any]:
    """config.json of a run directory. Raises UsageError when there is none."""
    path = Path(workdir) / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["train"], content["labels"]
    except FileNotFoundError:
        raise UsageError(
            f"{flag}={workdir}: no {CONFIG_FILE} there, so it is no run directory; give a --workdir of shardline-train"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error!r}); restore it from a copy, or train again") from None
    return content


def load_run(run_dir: str, checkpoint: str | None = None, precision: str | None = None) -> Run:
    """The model of a run: the weights of `checkpoint`, else of its best or newest one.

    `precision` replaces the policy it was trained with, e.g. float32 for export.
    """
    from shardline.trainer import model

    content = read_config(run_dir)
    config, labels = TrainConfig.from_dict(content["train"]), tuple(content["labels"])
    source = Path(checkpoint) if checkpoint else Path(run_dir)
    flag = f"--checkpoint={checkpoint}" if checkpoint else f"--run={run_dir}"
    if not source.exists():
        raise UsageError(f"{flag}: no such file; {run_dir} has {', '.join(p.name for p in checkpoints(run_dir))}")
    try:
        arrays, input_scale = read_weights(source)
    except (ValueError, UsageError) as error:
        raise UsageError(f"{flag}: {error}") from None
    network = model.build(
        classes=len(labels),
        head=config.head,
        image_size=config.image_size,
        dropout=config.dropout,
        seed=config.seed,
        precision=precision or config.precision,
        width=config.width,
        input_scale=input_scale,
    )
    shapes = {name: tuple(variable.shape) for name, variable in network.weights.items()}
    if shapes != {name: array.shape for name, array in arrays.items()}:
        raise UsageError(
            f"{flag} is a checkpoint of another model than {Path(run_dir) / CONFIG_FILE} describes; "
            "give one from the same run"
        )
    for name, variable in network.weights.items():
        variable.assign(arrays[name])
    return Run(network.serve, config, labels, content["preprocessing"], content["dataset"], network)
