"""One training run from a checked config to model.keras: the table of contents of training."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from shardline.pipeline.cli import log
from shardline.pipeline.errors import Failure, Interrupted, UsageError
from shardline.pipeline.files import atomic_writer, own_directory
from shardline.trainer.actions import Evaluate, Profile, SaveCheckpoint, StepMonitor, WriteInputProfile
from shardline.trainer.cluster import create_cluster, make_deterministic, peak_tflops
from shardline.trainer.config import TrainConfig
from shardline.trainer.feature_cache import open_feature_cache
from shardline.trainer.handshake import check_config, check_start
from shardline.trainer.loop import StopRequest, train_phase
from shardline.trainer.metrics_log import MetricsLog
from shardline.trainer.model import Network
from shardline.trainer.resume import checkpoint_to_continue, claim_workdir, is_over, starting_span
from shardline.trainer.run_dir import MODEL_FILE, load_run, model_is_whole, note_model
from shardline.trainer.setup import TrainSetup, create_setup
from shardline.trainer.state import TrainState, create_step, create_train_state
from shardline.trainer.step import TrainLoop, TrainStep, create_train_loop


def train(config: TrainConfig, *, allow_changes: bool = False) -> dict[str, Any] | None:
    """Train, from the start or from the newest readable checkpoint, and save the model.

    Returns:
      The result: step, epoch, choice, weights_sha256 and evaluation of the weights in model.keras; last_step and
      images_per_second of the run. None where there was nothing to do, and on all hosts but the first.

    Raises:
      Interrupted: SIGINT or SIGTERM stopped it before its end.
    """
    if not config.workdir:
        raise UsageError("--workdir is missing: give a directory for the run's checkpoints, metrics and model")
    setup = prepare(config)
    with own_directory(config.workdir, "--workdir") if setup.cluster.chief else nullcontext():
        return _train(setup, allow_changes)


def _train(setup: TrainSetup, allow_changes: bool) -> dict[str, Any] | None:
    """The run, in a directory that is ours alone."""
    config = setup.config
    if setup.cluster.chief:
        for gap in setup.class_gaps:
            log(f"note: {gap}")
    content = claim_workdir(setup, allow_changes)
    checkpoint = checkpoint_to_continue(setup)
    check_start(setup, checkpoint)
    over = checkpoint is not None and is_over(setup, checkpoint)
    if checkpoint and over and model_is_whole(config.workdir):
        log(f"--workdir={config.workdir} is complete at step {checkpoint.header['step']}; nothing to do")
        return None
    first = starting_span(setup, checkpoint)
    network, state, step = create_train_state(setup, first, restored=checkpoint is not None)
    if checkpoint:
        state.restore(checkpoint)
        log(f"continuing {config.workdir} at step {state.step} (epoch {setup.epoch(state.cursor):.3g})")
    with ExitStack() as stack:
        metrics = stack.enter_context(closing(MetricsLog(config.workdir, state.step))) if setup.cluster.chief else None
        monitor = stack.enter_context(closing(StepMonitor(setup, network, metrics, state.step, total_tflops(setup))))
        stop = stack.enter_context(StopRequest())
        stack.enter_context(errors_in_one_line(setup, state))
        save = SaveCheckpoint(setup, network, content, state.step)
        evaluate = Evaluate(setup, network, monitor, metrics, save)
        input_profile = WriteInputProfile(setup, monitor, evaluate)
        actions = [monitor, Profile(setup), evaluate, save, input_profile]
        for span in setup.spans[first.index :] if not over else ():
            if span is not first:
                state.begin_phase(setup, network, span)
                step = create_step(setup, network, state)
            train_steps = phase_loop(setup, network, state, step, monitor)
            monitor.restart()
            if not train_phase(setup, state, train_steps, actions, stop):
                break
        save.act(state)
        input_profile.act(state)
    if setup.cluster.chief and (costs := str(input_profile.profile(state.step))):
        log(costs)
    if not (over or state.cursor >= setup.spans[-1].stop or evaluate.should_stop):
        where = f"stopped at step {state.step} with a checkpoint; run the same command to continue"
        raise Interrupted(stop.signal or signal.SIGTERM, where)  # SIGTERM: another host was told to stop
    return finish(setup, state, monitor.images_per_second) if setup.cluster.chief else None


def prepare(config: TrainConfig) -> TrainSetup:
    """Claim the devices, fix the sources of randomness, and check the config against both."""
    if config.deterministic:
        make_deterministic(config.jit)
    cluster = create_cluster(config.strategy, config.logical_cpus)
    check_config(config, cluster)
    keras.utils.set_random_seed(config.seed)
    return create_setup(config, cluster)


def total_tflops(setup: TrainSetup) -> float:
    """Peak of all devices, as given or as measured on one of them; 0 on hosts that report nothing."""
    if not setup.cluster.chief:
        return 0.0
    config = setup.config
    return setup.cluster.replicas * (config.peak_tflops or peak_tflops(setup.cluster.device_kind, config.precision))


def phase_loop(
    setup: TrainSetup, network: Network, state: TrainState, step: TrainStep, monitor: StepMonitor
) -> TrainLoop:
    """The steps of the phase, over images or, with --cache_features, over the frozen layers' output for them."""
    if setup.config.cache_features and setup.spans[state.phase].phase.part == "head":
        cache = open_feature_cache(setup, network)
        monitor.flops[state.phase] = cache.flops
        step, batches = create_step(setup, network, state, cache.forward), cache.batches(state.cursor)
    else:
        batches = setup.train_batches(state.cursor)
    return create_train_loop(setup.cluster.strategy, step, batches, clock(setup))


def clock(setup: TrainSetup) -> Callable[[], tf.Tensor] | None:
    """What times the waits for batches. None on GPUs, which have hardly begun a step when the next one asks."""
    if setup.cluster.device_kind == "GPU":
        return None
    # TensorFlow refuses its own clock where its determinism is on.
    return lambda: tf.numpy_function(time.perf_counter, [], tf.float64)


def finish(setup: TrainSetup, state: TrainState, images_per_second: float) -> dict[str, Any]:
    """Save model.keras; the result of the run: all its numbers are of the weights in that file."""
    workdir = Path(setup.config.workdir)
    run = load_run(workdir, precision="float32")  # plain float32 layers load everywhere
    with tempfile.TemporaryDirectory() as folder, atomic_writer(workdir / MODEL_FILE) as file:
        run.model.save(Path(folder, MODEL_FILE))  # Keras writes to a path of its own ending only
        with Path(folder, MODEL_FILE).open("rb") as saved:
            shutil.copyfileobj(saved, file)
    note_model(workdir, run.chosen)
    log(f"model: {workdir / MODEL_FILE}, {run.chosen}; curves: {workdir / 'plots' / 'curves.png'}")
    header = run.chosen.checkpoint.header
    evaluation = header["evaluation"] if header["evaluation"].get("step") == header["step"] else {}
    return {
        "step": header["step"],
        "last_step": state.step,
        "choice": run.chosen.choice,
        "epoch": round(setup.epoch(header["cursor"]), 6),
        "images_per_second": round(images_per_second, 2),
        "weights_sha256": run.chosen.sha256,
        **{f"{evaluation['split']}_{name}": evaluation[name] for name in ("loss", "top1", "top5") if evaluation},
    }


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
