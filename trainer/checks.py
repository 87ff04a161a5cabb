"""What the commands after training are given, checked before TensorFlow is started. No TensorFlow."""

from __future__ import annotations

import os
import re
import unicodedata
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardline.pipeline.cli import log
from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import FILE_NAME as MANIFEST_FILE
from shardline.pipeline.options import check_options, option
from shardline.pipeline.wording import as_flag, count
from shardline.trainer.checkpoints import list_checkpoints
from shardline.trainer.data import stored_as
from shardline.trainer.remote_workdir import local_run
from shardline.trainer.run_dir import CONFIG_FILE, ChosenWeights, read_config

if TYPE_CHECKING:
    from shardline.pipeline.dataset import Dataset


@dataclass(frozen=True)
class ModelConfig:
    """Which trained model a command uses: what evaluate, predict and export have in common."""

    run: str = option(
        "", "run directory written by shardline-train, also s3://… or gs://…; optional with --checkpoint",
        path="dataset",
    )  # fmt: skip
    checkpoint: str = option("", "checkpoint file to use instead of the run's best or newest one", path="file")

    def __post_init__(self) -> None:
        check_options(self)


def find_run(run: str, checkpoint: str = "") -> Path:
    """The run directory: `--run`, a copy of it, or the one that `--checkpoint` lies in. Its config.json can be read."""
    if checkpoint and not run:
        parents = Path(checkpoint).absolute().parents
        run = next((str(parent) for parent in parents if (parent / CONFIG_FILE).is_file()), "")
        if not run:
            raise UsageError(
                f"--checkpoint={checkpoint} lies in no run directory (no {CONFIG_FILE} above it); add --run"
            )
    if not run:
        raise UsageError("--run is missing: name a run directory written by shardline-train (or a --checkpoint in one)")
    directory = local_run(run)
    read_config(directory)
    if checkpoint and not Path(checkpoint).is_file():
        there = ", ".join(path.name for path in list_checkpoints(directory)) or "none"
        raise UsageError(f"--checkpoint={checkpoint}: no such file; checkpoints of {run}: {there}")
    if checkpoint and not zipfile.is_zipfile(checkpoint):
        raise UsageError(f"--checkpoint={checkpoint} is no checkpoint of a run; give one of {run}/checkpoints")
    if not checkpoint and not any((directory / "checkpoints").glob("*.npz")):
        raise UsageError(f"--run={run} holds no checkpoint: train it first, or name a --checkpoint")
    return directory


def say_weights(chosen: ChosenWeights) -> None:
    """Say, before any result, which weights a command uses, and whether they are a finished run's."""
    log("\n".join([str(chosen), *(f"note: {line}" for line in chosen.notes)]))


def check_labels(trained: Iterable[str], found: Iterable[str], data: str | os.PathLike[str]) -> None:
    """Refuse a dataset whose classes are not the model's, in its order; accents may be written in either way."""
    ours, theirs = (tuple(unicodedata.normalize("NFC", name) for name in names) for names in (trained, found))
    if ours == theirs:
        return
    if len(ours) != len(theirs):
        what = f"has {count(len(theirs), 'class')}, the run was trained on {len(ours)}"
        if ours == theirs[: len(ours)]:
            raise UsageError(
                f"--data={data} {what}, which come first; if the others were added since, --generation opens it "
                "as it was (shardline-inspect lists them)"
            )
    else:
        number = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        what = f"calls class {number} {theirs[number]!r}, the run {ours[number]!r}"
    raise UsageError(
        f"--data={data} {what}; convert the images with --class_names=RUN/config.json, where the run's labels are"
    )


def say_stored_otherwise(run: Path, data: Dataset) -> None:
    """Say that a dataset's images were made in another way than those that the run was trained on."""
    trained, found = read_config(run)["preprocessing"]["stored"], stored_as(data.manifest)
    if names := [name for name in found if found[name] != trained.get(name, found[name])]:
        here, there = (", ".join(f"{name} {as_flag(made[name])}" for name in names) for made in (found, trained))
        log(f"note: images of --data={data.where} are stored with {here}, those the run was trained on with {there}")


def check_weights_file(weights: str) -> None:
    """Raise UsageError when `--weights` names a file that is not there."""
    if weights not in ("none", "imagenet") and not Path(weights).exists():
        raise UsageError(
            f"--weights={weights}: no such file; give none, imagenet, or a .h5, .keras, .weights.h5, .safetensors, "
            "checkpoint file or run directory"
        )


def make_directory(path: str) -> Path:
    """`--output` as a writable directory, whose files no other command counts as its own."""
    for name, what in ((CONFIG_FILE, "a run directory"), (MANIFEST_FILE, "a dataset")):
        if (Path(path) / name).exists():
            raise UsageError(f"--output={path} holds {name}, as {what} does; name another directory")
    _make(Path(path), f"--output={path}")
    return Path(path)


def is_saved_model_file(path: str) -> bool:
    """Whether TensorFlow writes a file of this name in a SavedModel's folder, or has it there meanwhile."""
    return (
        re.fullmatch(r"(saved_model|fingerprint|keras_metadata)\.pb|variables/variables(\.|_temp/part-)\S+", path)
        is not None
    )


def check_target(flag: str, path: str) -> None:
    """Refuse, before any work, a file that cannot be written."""
    if Path(path).is_dir():
        raise UsageError(f"{flag}={path} is a directory; name a file")
    _make(Path(path).parent, f"{flag}={path}")


def _make(directory: Path, argument: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{argument}: {error.strerror}; name a place that can be written") from None
    if not os.access(directory, os.W_OK):
        raise UsageError(f"{argument}: no permission to write there; name another place")
