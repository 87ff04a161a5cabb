"""The run directory: its config.json, which weights it stands for, and the trained model read back.

TensorFlow is imported with the model, so that commands can check a run directory before they start it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from shardline.pipeline import stored
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import file_sha256
from shardline.pipeline.manifest import shown_labels
from shardline.pipeline.progress import saying
from shardline.pipeline.run_input import CONFIG_FILE, RUN_FORMAT, say_absent
from shardline.pipeline.stored import Sha256
from shardline.trainer.checkpoints import (
    Checkpoint,
    best_path,
    checkpoint_path,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    weights_digest,
)
from shardline.trainer.config import TrainConfig
from shardline.trainer.schedule import spans

if TYPE_CHECKING:
    import keras

    from shardline.trainer.model import Network

REPORT = "report.html"
TRACKING_FILE = "tracking.json"  # what the run is called in trackers
PLOTS, CURVES, BATCHES, MISTAKES = "plots", "curves.png", "batches.jpg", "mistakes.jpg"  # a folder, and images in it
MODEL_FILE = "model.keras"
MODEL_NOTE = "model.json"  # what model.keras must be


@dataclass(frozen=True)
class Run:
    """A trained model, read back from its run directory.

    Attributes:
      model: uint8 RGB [b, s, s, 3] -> float32 probabilities [b, classes].
      preprocessing: how images become the model's input: pipeline.PREPROCESSING, crop_fraction, and `stored`, how the
        converter made the stored images.
      dataset: name, digest, split and order of what it was trained on.
      chosen: which of the run's weights these are.
    """

    model: keras.Model
    config: TrainConfig
    labels: tuple[str, ...]
    preprocessing: dict[str, Any]
    dataset: dict[str, Any]
    network: Network
    chosen: ChosenWeights
    words: tuple[str, ...] = ()

    @property
    def shown_labels(self) -> tuple[str, ...]:
        """What people are shown for each label."""
        return shown_labels(self.labels, self.words)


def write_config(workdir: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write config.json, whole or not at all."""
    stored.save(Path(workdir) / CONFIG_FILE, content, format=RUN_FORMAT)


def read_config(workdir: str | os.PathLike[str], flag: str = "--run") -> dict[str, Any]:
    """config.json of a run directory: `train` (the TrainConfig), `labels`, `dataset`, `preprocessing`, `versions`.

    Raises:
      UsageError: there is none, it is damaged or edited, or it is of another format.
    """
    path, remedy = Path(workdir) / CONFIG_FILE, "restore it from a copy, or train again"
    try:
        content = vars(stored.load(path, _StoredRun, format=RUN_FORMAT, remedy=remedy))
    except FileNotFoundError:
        why = f"no {CONFIG_FILE} there, so it is no run directory" if path.parent.exists() else "no such directory"
        raise UsageError(f"{flag}={workdir}: {why}; give a --workdir of shardline-train") from None
    stored.convert(content["preprocessing"], _Preprocessing, what=path, remedy=remedy)
    say_absent(path, TrainConfig, content["train"])
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
    words: tuple[str, ...] = ()  # to show for each label; (): the labels


@dataclass(frozen=True)
class _Preprocessing:
    """Those of its values that are computed with."""

    crop_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)]
    stored: dict[str, Plain]


@dataclass(frozen=True)
class ChosenWeights:
    """Which weights stand for a run, and why.

    Attributes:
      choice: `last`, `best by validation top1` or the like, or `as given`.
      newest: header of the run's newest checkpoint.
      notes: files that were left aside, with the reason.
    """

    checkpoint: Checkpoint
    choice: str
    newest: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Of the weights."""
        return weights_digest(self.checkpoint.final_weights)

    @property
    def finished(self) -> bool:
        """Whether the run has reached its end; its weights may still change if not."""
        return is_finished(TrainConfig.from_dict(self.newest["train"]), self.newest["sampler"]["records"], self.newest)

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """What training found for these weights on its held-out split: loss, top1, top5; empty for nothing."""
        header = self.checkpoint.header
        return header["evaluation"] if header["evaluation"].get("step") == header["step"] else {}

    def facts(self) -> dict[str, Any]:
        """What is said of the model, as plain values."""
        return {
            "step": self.checkpoint.header["step"],
            "choice": self.choice,
            "averaged": self.checkpoint.averaged,
            "sha256": self.sha256,
            "finished": self.finished,
        }

    def __str__(self) -> str:
        unfinished = "" if self.finished else "the run is not finished; "
        return f"{unfinished}weights: {self.checkpoint.path.name}, {weights_text(self.facts())}"


def weights_text(facts: Mapping[str, Any]) -> str:
    """`ChosenWeights.facts` in a line, the same everywhere: step, choice and SHA-256."""
    average = ", moving average" if facts["averaged"] else ""
    return f"step {facts['step']}, {facts['choice']}{average}, SHA-256 {facts['sha256']}"


def choose_weights(run_dir: str | os.PathLike[str], checkpoint: str = "") -> ChosenWeights:
    """The weights that stand for a run: those of `checkpoint`, else its best ones, else its last ones.

    The newest checkpoint's header says whether there is a best one, chosen by what and after which step; a file that is
    another one is left aside.

    Raises:
      UsageError: there is no such checkpoint, or it cannot be read.
    """
    flag = f"--checkpoint={checkpoint}" if checkpoint else f"--run={run_dir}"
    if not Path(checkpoint or run_dir).exists():
        there = ", ".join(path.name for path in list_checkpoints(run_dir))
        raise UsageError(f"{flag}: no such file; {run_dir} has {there}")
    try:
        return _decide(Path(run_dir), checkpoint)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from None


def _decide(run_dir: Path, checkpoint: str) -> ChosenWeights:
    newest, notes = newest_checkpoint(run_dir)
    if checkpoint:
        chosen, choice, notes = read_checkpoint(checkpoint), "as given", []
    elif newest is None:
        raise UsageError(f"{run_dir} holds no checkpoint" + "".join(f"; {line}" for line in notes))
    elif newest.header["best"] is None:
        chosen, choice = newest, "last"
        if best_path(run_dir).exists():
            by = f"by {newest.header['best_metric']}" if newest.header["best_metric"] else "as --best_metric=none"
            notes.append(f"{best_path(run_dir)} is of before the run was judged {by}, and left aside")
    else:
        chosen, choice = best_checkpoint(run_dir, newest.header), f"best by {newest.header['best_metric']}"
    return ChosenWeights(chosen, choice, (newest or chosen).header, tuple(notes))


def best_checkpoint(run_dir: Path, header: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint that a header says is the best: best.npz, or the numbered one of the same step.

    Raises:
      UsageError: neither is there.
    """
    reasons = []
    for path in (best_path(run_dir), checkpoint_path(run_dir, header["best_step"])):
        try:
            found = read_checkpoint(path)
        except UsageError as error:
            reasons.append(str(error))
            continue
        same = all(found.header[name] == header[name] for name in ("best_metric", "best"))
        if same and found.header["step"] == header["best_step"]:
            return found
        reasons.append(f"{path} is of step {found.header['step']}")
    raise UsageError(
        f"the best weights by {header['best_metric']}, of step {header['best_step']}, are not there: "
        f"{'; '.join(reasons)}; restore them, or name another --checkpoint"
    )


def is_finished(config: TrainConfig, num_records: int, header: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is from the end of its run, or from where early stopping ended it."""
    stopped = 0 < config.early_stop_evals <= header["evals_since_best"]
    return stopped or bool(header["cursor"] >= spans(config.phase_list, num_records)[-1].stop)


def find_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint file itself; of a run directory, the one whose weights stand for the run.

    Raises:
      UsageError: there is none that can be read.
    """
    return _decide(Path(path), "").checkpoint if Path(path).is_dir() else read_checkpoint(path)


@dataclass(frozen=True)
class _ModelNote:
    weights_sha256: Sha256
    sha256: Sha256


def note_model(workdir: str | os.PathLike[str], chosen: ChosenWeights) -> None:
    """Note the SHA-256 of model.keras and of the weights in it, so that it can be vouched for."""
    content = {"weights_sha256": chosen.sha256, "sha256": file_sha256(Path(workdir) / MODEL_FILE)}
    stored.save(Path(workdir) / MODEL_NOTE, content, format=RUN_FORMAT)


def model_is_whole(workdir: str | os.PathLike[str]) -> bool:
    """Whether model.keras is there, to the last bit as it was written, with the weights that stand for the run."""
    try:
        note = stored.load(Path(workdir) / MODEL_NOTE, _ModelNote, format=RUN_FORMAT, remedy="train again")
        whole = file_sha256(Path(workdir) / MODEL_FILE) == note.sha256
        return whole and choose_weights(workdir).sha256 == note.weights_sha256
    except (OSError, UsageError):
        return False


def load_run(
    run_dir: str | os.PathLike[str], checkpoint: str | ChosenWeights | None = None, precision: str | None = None
) -> Run:
    """The model of a run: the weights of `checkpoint`, else those that stand for it.

    Args:
      precision: replaces the policy it was trained with, e.g. float32 for export.

    Raises:
      UsageError: there is no such checkpoint, or it is not one of this run.
    """
    from shardline.trainer.model import NetworkConfig, create_network, kind_of  # imports TensorFlow

    chosen = checkpoint if isinstance(checkpoint, ChosenWeights) else choose_weights(run_dir, checkpoint or "")
    found, weights = chosen.checkpoint, chosen.checkpoint.final_weights
    content = read_config(run_dir)
    # The config that these weights were made with; the run may have been continued under another one.
    config, labels = TrainConfig.from_dict(found.header["train"]), tuple(content["labels"])
    if found.header["labels"] not in ((), labels):
        raise UsageError(
            f"--checkpoint={found.path} is of a model of other classes than {Path(run_dir) / CONFIG_FILE} names; give "
            "one from the same run"
        )
    digest = content["dataset"]["dataset"]
    if (other := found.header["sampler"].get("dataset", digest)) != digest:
        raise UsageError(
            f"--checkpoint={found.path} was trained on another dataset, of digest {other}, than "
            f"{Path(run_dir) / CONFIG_FILE} names, {digest}; give one from the same run"
        )
    with saying("making the model"):
        network = create_network(
            NetworkConfig.of(config, len(labels), precision=precision, input_scale=found.header["input_scale"])
        )
    kinds = {name: kind_of(variable) for name, variable in network.weights.items()}
    if kinds != {name: (array.dtype, array.shape) for name, array in weights.items()}:
        raise UsageError(
            f"--checkpoint={found.path} is a checkpoint of another model than {Path(run_dir) / CONFIG_FILE} describes; "
            "give one from the same run"
        )
    for name, variable in network.weights.items():
        variable.assign(weights[name])
    preprocessing = content["preprocessing"] | {"crop_fraction": config.eval_crop_fraction}
    return Run(network.serve, config, labels, preprocessing, content["dataset"], network, chosen, content["words"])
