"""One training run from a checked config to model.keras: the table of contents of training."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline.cli import log
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import TEMPORARY, atomic_writer
from shardline.trainer.actions import Evaluate, Profile, SaveCheckpoint, StepMonitor
from shardline.trainer.checkpoints import Checkpoint, list_checkpoints, newest_checkpoint
from shardline.trainer.cluster import create_cluster, make_deterministic, peak_tflops
from shardline.trainer.config import TrainConfig, differences
from shardline.trainer.feature_cache import FeatureCache
from shardline.trainer.loop import StopRequest, train_phase
from shardline.trainer.metrics_log import MetricsLog
from shardline.trainer.model import Network, weights_digest
from shardline.trainer.run_dir import CONFIG_FILE, load_run, read_config, write_config
from shardline.trainer.schedule import PhaseSpan
from shardline.trainer.setup import TrainSetup, create_setup
from shardline.trainer.state import TrainState, create_step, create_train_state
from shardline.trainer.step import Batch, TrainStep

MODEL_FILE = "model.keras"


def train(config: TrainConfig, *, allow_changes: bool = False) -> dict[str, Any] | None:
    """Train, from the start or from the newest readable checkpoint, and save the model.

    Returns:
      The result: step, epoch, images_per_second, weights_sha256 and the last evaluation. None where there was nothing
      to do, where the run was stopped before its end, and on all hosts but the first.
    """
    setup = prepare(config)
    claim_workdir(setup, allow_changes)
    checkpoint = find_checkpoint(setup)
    over = checkpoint is not None and is_over(setup, checkpoint)
    if checkpoint and over and (Path(config.workdir) / MODEL_FILE).exists():
        log(f"--workdir={config.workdir} is complete at step {checkpoint.header['step']}; nothing to do")
        return None
    first = starting_span(setup, checkpoint)
    network, state, step = create_train_state(setup, first)
    if checkpoint:
        state.restore(checkpoint)
        log(f"continuing {config.workdir} at step {state.step} (epoch {setup.epoch(state.cursor):.3g})")
    with ExitStack() as stack:
        metrics = stack.enter_context(closing(MetricsLog(config.workdir, state.step))) if setup.cluster.chief else None
        monitor = stack.enter_context(closing(StepMonitor(setup, network, metrics, state.step, total_tflops(setup))))
        stop = stack.enter_context(StopRequest())
        stack.enter_context(errors_in_one_line(setup, state))
        save = SaveCheckpoint(setup, network, monitor)
        evaluate = Evaluate(setup, network, monitor, metrics, save)
        for span in setup.spans[first.index :] if not over else ():
            if span is not first:
                state.begin_phase(setup, network, span)
                step = create_step(setup, network, state)
            step, batches = phase_input(setup, network, state, step, monitor)
            monitor.restart()
            if not train_phase(setup, state, step, batches, [monitor, Profile(setup), evaluate, save], stop):
                break
        save.act(state)
    if metrics and isinstance(setup.data, pipeline.Dataset) and (times := setup.data.stage_times()).samples:
        log(f"input, training and evaluation:\n{times}")
    if not (over or state.cursor >= setup.spans[-1].stop or evaluate.should_stop):
        log(f"stopped at step {state.step} with a checkpoint; run the same command to continue")
        return None
    return finish(setup, state, evaluate.last, monitor.images_per_second) if setup.cluster.chief else None


def prepare(config: TrainConfig) -> TrainSetup:
    """Claim the devices, fix the sources of randomness, and check the config against both."""
    if config.deterministic:
        make_deterministic(config.jit)
    cluster = create_cluster(config.strategy, config.logical_cpus)
    keras.utils.set_random_seed(config.seed)
    return create_setup(config, cluster)


def total_tflops(setup: TrainSetup) -> float:
    """Peak of all devices, as given or as measured on one of them; 0 on hosts that report nothing."""
    if not setup.cluster.chief:
        return 0.0
    config = setup.config
    return setup.cluster.replicas * (config.peak_tflops or peak_tflops(setup.cluster.device_kind, config.precision))


def phase_input(
    setup: TrainSetup, network: Network, state: TrainState, step: TrainStep, monitor: StepMonitor
) -> tuple[TrainStep, Iterator[Batch]]:
    """What the phase trains with: images, or with --cache_features the frozen layers' output for them."""
    if not (setup.config.cache_features and setup.spans[state.phase].phase.part == "head"):
        return step, setup.train_batches(state.cursor)
    cache = FeatureCache(setup, network)
    monitor.flops[state.phase] = cache.flops
    return create_step(setup, network, state, cache.forward), cache.batches(state.cursor)


# Start and restart ------------------------------------------------------------------------------------------------


def claim_workdir(setup: TrainSetup, allow_changes: bool) -> None:
    """Make the run directory, or check that the one that is there belongs to this run."""
    config = setup.config
    if not config.workdir:
        raise UsageError("--workdir is missing: give a directory for the run's checkpoints, metrics and model")
    workdir, content = Path(config.workdir), describe(setup)
    if (workdir / CONFIG_FILE).exists():
        if list_checkpoints(workdir):
            check_continues(setup, content, allow_changes)
        else:
            read_config(workdir, "--workdir")  # not of another format
    elif workdir.exists() and any(not path.name.endswith(TEMPORARY) for path in workdir.iterdir()):
        raise UsageError(f"--workdir={workdir} is not empty and not a run of ours; choose another directory")
    if setup.cluster.chief:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            for unfinished in workdir.rglob(f"*{TEMPORARY}"):  # an earlier attempt was killed while it wrote them
                unfinished.unlink(missing_ok=True)
            write_config(workdir, content)
        except OSError as error:
            raise UsageError(f"--workdir={workdir} cannot be written: {error.strerror}") from None


def describe(setup: TrainSetup) -> dict[str, Any]:
    """What config.json holds."""
    manifest = setup.manifest
    return {
        "train": setup.config.to_dict(),
        "labels": list(setup.labels),
        "dataset": {"name": manifest.name if manifest else "synthetic", **setup.sampler_key},
        "preprocessing": {
            **pipeline.PREPROCESSING,
            "crop_fraction": setup.config.eval_crop_fraction,
            "stored": stored_images(setup),
        },
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
    }


def stored_images(setup: TrainSetup) -> dict[str, Any]:
    """How the converter made the images, so that prediction and export can do the same to any file."""
    manifest = setup.manifest
    if manifest is None:
        return {}
    made = {name: manifest.options[name] for name in ("upscale", "trim_borders") if name in manifest.options}
    return {"resize": manifest.image.resize, "size": manifest.image.size, **made}


def check_continues(setup: TrainSetup, content: dict[str, Any], allow_changes: bool) -> None:
    """Refuse a run directory whose run this one does not continue."""
    workdir = setup.config.workdir
    old = read_config(workdir, "--workdir")
    check_sampler(f"--workdir={workdir}", old["dataset"], content["dataset"])
    if tuple(old["labels"]) != setup.labels:
        raise UsageError(f"--workdir={workdir} was trained on other labels; start in another --workdir")
    changes = differences(TrainConfig.from_dict(old["train"]), setup.config)
    if changes and not allow_changes:
        raise UsageError(
            f"--workdir={workdir} was started with other flags: {'; '.join(changes)}; repeat those, choose another "
            "--workdir, or pass --allow_changes to continue with the new ones"
        )


def check_sampler(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse another order of samples: a position would no longer mean the same sample."""
    keys = ("dataset", "split", "records", "seed", "shuffle_block_size", "balanced_sampling")
    ours, theirs = ({key: values.get(key) for key in keys} for values in (new, old))
    if ours != theirs:
        raise UsageError(
            f"{name} was trained on another order of samples: {json.dumps(theirs)} there, {json.dumps(ours)} here; "
            "use the same dataset and seed, or start in another --workdir"
        )


def find_checkpoint(setup: TrainSetup) -> Checkpoint | None:
    """The newest readable checkpoint of this run, if there is one."""
    checkpoint, damaged = newest_checkpoint(setup.config.workdir)
    for line in damaged:
        log(f"warning: {line}; trying the one before")
    if checkpoint:
        check_sampler(str(checkpoint.path), checkpoint.header["sampler"], setup.sampler_key)
    return checkpoint


def is_over(setup: TrainSetup, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is from the end of its run, or from where early stopping ended it."""
    cursor, evals_since_best = int(checkpoint.header["cursor"]), int(checkpoint.header["evals_since_best"])
    return cursor >= setup.spans[-1].stop or 0 < setup.config.early_stop_evals <= evals_since_best


def starting_span(setup: TrainSetup, checkpoint: Checkpoint | None) -> PhaseSpan:
    """The phase to go on with; the last one of a run that is over."""
    if checkpoint and is_over(setup, checkpoint):
        return setup.spans[-1]
    cursor = checkpoint.header["cursor"] if checkpoint else 0
    return next(span for span in setup.spans if cursor < span.stop)


@contextmanager
def errors_in_one_line(setup: TrainSetup, state: TrainState) -> Iterator[None]:
    """Turn what TensorFlow raises for unreadable input or a lost host into one line."""
    try:
        yield
    except tf.errors.OpError as error:
        failure = getattr(getattr(setup.data, "bad_records", None), "failure", None)
        if failure:
            raise failure from error
        if isinstance(error, tf.errors.ResourceExhaustedError):
            raise Failure(
                f"--global_batch_size={setup.config.global_batch_size} does not fit the device's memory; use a smaller "
                "one, or --micro_batches=2, or ask --find_batch"
            ) from error
        if setup.cluster.hosts > 1:
            raise Failure(
                f"another worker stopped or cannot be reached ({type(error).__name__}) after step {state.step - 1}; "
                "start all workers again, the run continues from its last checkpoint"
            ) from error
        raise


# The end ----------------------------------------------------------------------------------------------------------


def finish(
    setup: TrainSetup, state: TrainState, evaluation: dict[str, float], images_per_second: float
) -> dict[str, Any]:
    """Save model.keras; the result of the run."""
    workdir = Path(setup.config.workdir)
    run = load_run(workdir, precision="float32")  # plain float32 layers load everywhere
    with tempfile.TemporaryDirectory() as folder, atomic_writer(workdir / MODEL_FILE) as file:
        run.model.save(Path(folder, MODEL_FILE))  # Keras writes to a path of its own ending only
        with Path(folder, MODEL_FILE).open("rb") as saved:
            shutil.copyfileobj(saved, file)
    log(f"model: {workdir / MODEL_FILE}; curves: {workdir / 'plots' / 'curves.png'}")
    return {
        "step": state.step,
        "epoch": round(setup.epoch(state.cursor), 6),
        "images_per_second": round(images_per_second, 2),
        "weights_sha256": weights_digest(state.weights),
        **{f"{setup.eval_split}_{name}": value for name, value in evaluation.items()},
    }
