"""Starting or continuing in a run directory: is it this run's, where does it go on, and what is written there first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline.cli import log
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import LOCK, TEMPORARY, remove_strays
from shardline.pipeline.paths import absolute
from shardline.pipeline.wording import count
from shardline.trainer import metrics_log
from shardline.trainer.checkpoint_writer import keep_best
from shardline.trainer.checkpoints import (
    Checkpoint,
    best_path,
    is_checkpoint_name,
    list_checkpoints,
    newest_checkpoint,
)
from shardline.trainer.config import TrainConfig, differences
from shardline.trainer.data import stored_as
from shardline.trainer.feature_cache import CACHE_FILES
from shardline.trainer.run_dir import (
    BATCHES,
    CONFIG_FILE,
    CURVES,
    MISTAKES,
    MODEL_FILE,
    MODEL_NOTE,
    PLOTS,
    REPORT,
    TRACKING_FILE,
    best_checkpoint,
    is_finished,
    read_config,
    write_config,
)
from shardline.trainer.schedule import PhaseSpan
from shardline.trainer.setup import TrainSetup


def claim_workdir(setup: TrainSetup, allow_changes: bool) -> dict[str, Any]:
    """Make the run directory, or check that the one that is there belongs to this run.

    Returns:
      The content of config.json. Where the run has made steps, it is written with the next checkpoint.
    """
    workdir, content = Path(setup.config.workdir), config_content(setup)
    if setup.cluster.chief:
        _remove_strays(workdir)
    continues = (workdir / CONFIG_FILE).exists() and bool(list_checkpoints(workdir))
    if continues:
        content["starting_weights_sha256"] = check_continues(setup, content, allow_changes)
    elif (workdir / CONFIG_FILE).exists():
        read_config(workdir, "--workdir")  # not of another format
    elif workdir.exists() and any(not _written_before(path) for path in workdir.iterdir()):
        raise UsageError(
            f"--workdir={workdir} is not empty and no run directory of shardline; choose another directory"
        )
    if setup.cluster.chief and not continues:  # else when a step was made under it, by SaveCheckpoint
        try:
            (workdir / metrics_log.FILE_NAME).unlink(missing_ok=True)  # of an attempt that left no checkpoint
            write_config(workdir, content)
        except OSError as error:
            raise UsageError(f"--workdir={workdir} cannot be written: {error.strerror}; name another place") from None
    return content


def _written_before(path: Path) -> bool:
    """Whether a file of a new run directory is its lock, a config that another host writes, or a plot of --find_lr."""
    written_now = path.name.startswith(f"{CONFIG_FILE}.") and path.name.endswith(TEMPORARY)
    return (
        path.name == LOCK
        or written_now
        or (path.name == PLOTS and path.is_dir() and {item.name for item in path.iterdir()} <= {"find_lr.png"})
    )


_OWN_FILES = {CONFIG_FILE, MODEL_FILE, MODEL_NOTE, metrics_log.FILE_NAME, REPORT, TRACKING_FILE}


def _remove_strays(workdir: Path) -> None:
    """Delete what earlier attempts that were killed while they wrote left of this run's own files."""
    ours: list[tuple[Path, Callable[[str], bool]]] = [
        (workdir, _OWN_FILES.__contains__),
        (workdir / "checkpoints", is_checkpoint_name),
        (workdir / PLOTS, {CURVES, BATCHES, MISTAKES}.__contains__),
        (workdir / "features", CACHE_FILES.__contains__),
    ]
    for folder, is_ours in ours:
        if folder.is_dir():
            remove_strays(folder, is_ours)


def config_content(setup: TrainSetup) -> dict[str, Any]:
    """What config.json holds."""
    manifest, config = setup.manifest, setup.config
    # Relative paths would mean something else to whoever stands elsewhere.
    paths = {"data": config.data, "weights": config.weights if config.weights not in ("none", "imagenet") else ""}
    return {
        "train": config.to_dict() | {name: absolute(path) for name, path in paths.items() if path},
        "labels": list(setup.labels),
        "words": list(manifest.words) if manifest else [],
        "dataset": {"name": manifest.name if manifest else "synthetic", **setup.sampler_key},
        "preprocessing": {
            **pipeline.PREPROCESSING,
            "crop_fraction": setup.config.eval_crop_fraction,
            "stored": stored_as(manifest) if manifest else {},
        },
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "starting_weights_sha256": setup.weights_sha256,
    }


def check_continues(setup: TrainSetup, content: dict[str, Any], allow_changes: bool) -> str:
    """Refuse a run directory whose run this one does not continue; the SHA-256 of the weights it started from."""
    workdir = setup.config.workdir
    old = read_config(workdir, "--workdir")
    before, now = ({**run["dataset"], "shuffle": run["train"].get("shuffle", True)} for run in (old, content))
    check_sampler(f"--workdir={workdir}", before, now, setup.data)
    if tuple(old["labels"]) != setup.labels:
        raise UsageError(f"--workdir={workdir} was trained on other labels; start in another --workdir")
    begun, config = TrainConfig.from_dict(old["train"]), setup.config
    if content["starting_weights_sha256"] == old["starting_weights_sha256"] != "":  # the same file, wherever it lies
        config = dataclasses.replace(config, weights=begun.weights)
    changes = differences(begun, config)
    if changes and not allow_changes:
        raise UsageError(
            f"--workdir={workdir} was started with other flags: {'; '.join(changes)}; repeat those, choose another "
            "--workdir, or pass --allow_changes to continue with the new ones"
        )
    return str(old["starting_weights_sha256"])


def check_sampler(name: str, old: dict[str, Any], new: dict[str, Any], data: pipeline.TrainingData) -> None:
    """Refuse another order of samples: a position would no longer mean the same sample."""
    keys = ("dataset", "split", "records", "seed", "shuffle_block_size", "balanced_sampling", "shuffle")
    ours, theirs = ({key: values.get(key) for key in keys} for values in (new, old))
    if ours != theirs:
        differing = [f"{key} {theirs[key]} there, {ours[key]} here" for key in keys if ours[key] != theirs[key]]
        began = data.latest.generation_of(str(theirs["dataset"])) if isinstance(data, pipeline.Dataset) else 0
        if began and ours["dataset"] != theirs["dataset"]:
            raise UsageError(
                f"{name} was trained on generation {began} of the dataset, which was added to since; continue on that "
                f"with --generation={began}, or start in another --workdir"
            )
        raise UsageError(
            f"{name} was trained on another order of samples ({'; '.join(differing)}); "
            "use the same dataset and seed, or start in another --workdir"
        )


def checkpoint_to_continue(setup: TrainSetup) -> Checkpoint | None:
    """The newest readable checkpoint of this run, if there is one."""
    checkpoint, damaged = newest_checkpoint(setup.config.workdir)
    for line in damaged:
        log(f"warning: {line}; trying the one before")
    if damaged and not checkpoint:
        raise UsageError(
            f"--workdir={setup.config.workdir}: not one of its {count(len(damaged), 'checkpoint')} can be read; "
            "restore one from a copy, or start in another --workdir"
        )
    if checkpoint:
        check_sampler(str(checkpoint.path), checkpoint.header["sampler"], setup.sampler_key, setup.data)
        if setup.config.mixes and (cursor := checkpoint.header["cursor"]) % 2:  # of another --global_batch_size
            raise UsageError(
                f"--workdir={setup.config.workdir} goes on at sample {cursor}, and --mixup and --cutmix mix pairs that "
                "begin at an even one; leave them out, or start in another --workdir"
            )
        then = TrainConfig.from_dict(checkpoint.header["train"])
        if changes := differences(then, dataclasses.replace(setup.config, weights=then.weights)):
            log(f"note: {checkpoint.path} was saved under other flags: {'; '.join(changes)}")
        header = _judged_anew(checkpoint.header, setup.best_metric)
        if not is_finished(setup.config, setup.num_records, header):
            header = _with_its_best(Path(setup.config.workdir), header)
        checkpoint = dataclasses.replace(checkpoint, header=header)
    return checkpoint


def _judged_anew(header: dict[str, Any], best_metric: str) -> dict[str, Any]:
    """The header without its best, where that was chosen by something else: numbers of two metrics do not compare."""
    if header["best_metric"] == best_metric:
        return header
    if header["best"] is not None:
        log(
            f"note: the best so far, step {header['best_step']}, was chosen by {header['best_metric']} and is "
            f"forgotten; now {f'the best is chosen by {best_metric}' if best_metric else 'the last weights count'}"
        )
    return header | {"best_metric": best_metric, **_NO_BEST}


_NO_BEST = {"best": None, "best_step": 0, "evals_since_best": 0}


def _with_its_best(workdir: Path, header: dict[str, Any]) -> dict[str, Any]:
    """The header, its best weights kept in best.npz; without a best where they are gone, or the run would end on none.

    A kill may come before a numbered checkpoint, which is deleted in time, is linked as the best.
    """
    if header["best"] is None:
        return header
    try:
        found = best_checkpoint(workdir, header)
    except UsageError as error:
        log(f"note: {error.args[0].rpartition('; ')[0]}; the best is chosen anew")
        return header | _NO_BEST
    if found.path != best_path(workdir):
        keep_best(found.path, best_path(workdir), found.header, found.arrays)
    return header


def is_over(setup: TrainSetup, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is from the end of its run, or from where early stopping ended it.

    Raises:
      UsageError: it is only by changed flags, which end before it: no run of theirs would hold its weights.
    """
    over = is_finished(setup.config, setup.num_records, checkpoint.header)
    begun = TrainConfig.from_dict(checkpoint.header["train"])
    if over and not is_finished(begun, setup.num_records, checkpoint.header):
        raise UsageError(
            f"--workdir={setup.config.workdir} is at step {checkpoint.header['step']} already, and under these flags "
            "it would have ended sooner; give --phases and --early_stop_evals that end later, or use the run as it is: "
            "evaluate, predict and export take an unfinished one"
        )
    return over


def starting_span(setup: TrainSetup, checkpoint: Checkpoint | None) -> PhaseSpan:
    """The phase to go on with; the last one of a run that is over."""
    if checkpoint and is_over(setup, checkpoint):
        return setup.spans[-1]
    cursor = checkpoint.header["cursor"] if checkpoint else 0
    return next(span for span in setup.spans if cursor < span.stop)
