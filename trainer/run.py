"""One training run from a checked config to model.keras: the table of contents of training."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from shardline.pipeline import nvidia
from shardline.pipeline.cli import log
from shardline.pipeline.errors import Failure, Interrupted, UsageError, in_command
from shardline.pipeline.files import atomic_writer, full_disk_named, own_directory
from shardline.pipeline.paths import absolute
from shardline.trainer.actions import Evaluate, Profile, SaveCheckpoint, StepMonitor, WriteInputProfile
from shardline.trainer.arithmetic import decided
from shardline.trainer.callbacks import Callback, Callbacks, Start, check_callbacks
from shardline.trainer.checkpoint_writer import CheckpointWriter
from shardline.trainer.checkpoints import Checkpoint
from shardline.trainer.cluster import claim, device_lines, peak_tflops
from shardline.trainer.config import TrainConfig
from shardline.trainer.exchange import gather, let_go, lost_hosts
from shardline.trainer.feature_cache import open_feature_cache
from shardline.trainer.handshake import check_config, check_data, from_chief, pack, unpack
from shardline.trainer.hosts import ends_together, find_hosts
from shardline.trainer.input_errors import bad_records_in_one_line
from shardline.trainer.keras_callbacks import adapted
from shardline.trainer.loop import StopRequest, train_phase
from shardline.trainer.metrics_log import MetricsLog
from shardline.trainer.model import Network, flops_per_image
from shardline.trainer.remote_workdir import local_workdir
from shardline.trainer.resume import checkpoint_to_continue, claim_workdir, is_over, starting_span
from shardline.trainer.run_dir import (
    CURVES,
    MODEL_FILE,
    PLOTS,
    ChosenWeights,
    choose_weights,
    load_run,
    model_is_whole,
    note_model,
)
from shardline.trainer.run_report import RunReport
from shardline.trainer.schedule import PhaseSpan, steps_between
from shardline.trainer.setup import TrainSetup, create_setup, weights_begun_with
from shardline.trainer.state import TrainState, create_step, create_train_state
from shardline.trainer.step import TrainLoop, TrainStep, allreduce_adds, create_train_loop
from shardline.trainer.trackers import check_trackers, create_trackers
from shardline.trainer.xla import set_flags


@ends_together
def train(
    config: TrainConfig,
    *,
    allow_changes: bool = False,
    callbacks: Sequence[Callback | keras.callbacks.Callback] = (),
) -> dict[str, Any] | None:
    """Train, from the start or from the newest readable checkpoint, and save the model: see `train.train`."""
    told = adapted(callbacks)
    check_callbacks(told)
    if not in_command():  # a notebook or a callback may change the directory meanwhile
        named = ((name, getattr(config, name)) for name in ("workdir", "data"))
        places: dict[str, Any] = {name: absolute(place) for name, place in named if place}
        config = replace(config, **places)
    check_chief(config, len(find_hosts(config).addresses) == 1)
    with local_workdir(config) as (config, pushed):
        return _train_here(config, allow_changes, told, pushed)


def _train_here(
    config: TrainConfig, allow_changes: bool, told: Sequence[Callback], pushed: Callable[[], None]
) -> dict[str, Any] | None:
    """The run, in a directory of this host; `pushed` is called after each checkpoint."""
    setup = prepare(config)
    if setup.cluster.chief:
        log("\n".join(device_lines(setup.cluster, config.global_batch_size)))
    check_data(setup)
    with ExitStack() as stack:
        # The chief alone: other hosts need no run directory.
        content = from_chief(setup.cluster, lambda: _claim(setup, allow_changes, stack))
        checkpoint = from_chief(setup.cluster, lambda: checkpoint_to_continue(setup), pack, unpack)
        if checkpoint and is_over(setup, checkpoint):
            return _complete(setup, checkpoint.header["step"])
        return _train(setup, content, checkpoint, told, pushed)


def _claim(setup: TrainSetup, allow_changes: bool, stack: ExitStack) -> dict[str, Any]:
    """Make the run directory this process's alone until the stack is closed; the content of its config.json."""
    config = setup.config
    check_chief(config, chief=True)
    stack.enter_context(own_directory(config.workdir, "--workdir"))
    for gap in setup.class_gaps:
        log(f"note: {gap}")
    return claim_workdir(setup, allow_changes)


def check_chief(config: TrainConfig, chief: bool) -> None:
    """Refuse a chief without a run directory, or without the trackers it is to report to."""
    if not chief:
        return
    if not config.workdir:
        raise UsageError("--workdir is missing: give a directory for the run's checkpoints, metrics and model")
    check_trackers(config)


def _complete(setup: TrainSetup, step: int) -> dict[str, Any] | None:
    """A run that is over: its model saved, if it was killed before that, and its result."""
    if setup.cluster.chief and not model_is_whole(setup.config.workdir):
        return finish(setup, step, images_per_second=0.0)
    log(f"--workdir={setup.config.workdir} is complete at step {step}; nothing to do")
    return None


def _train(
    setup: TrainSetup,
    content: dict[str, Any],
    checkpoint: Checkpoint | None,
    told: Sequence[Callback],
    pushed: Callable[[], None],
) -> dict[str, Any] | None:
    """The run from where it stands, in a directory that is ours alone."""
    first = starting_span(setup, checkpoint)
    check_allreduce(setup)
    network, state, _ = create_train_state(setup, first, checkpoint)
    if checkpoint:
        state.restore(checkpoint)
        log(f"continuing {setup.config.workdir} at step {state.step} (epoch {setup.epoch(state.cursor):.3g})")
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        callbacks = Callbacks(own_callbacks(setup, state.step, stop, told) if setup.cluster.chief else [], stop)
        peaks = total_tflops(setup), nominal_tflops(setup)
        monitor = stack.enter_context(closing(StepMonitor(setup, network, callbacks, state.step, *peaks)))
        stack.enter_context(errors_in_one_line(setup, state))
        stack.callback(callbacks.end)
        writer = None
        if setup.cluster.chief:
            writer = CheckpointWriter(setup.config.workdir, setup.config.keep_checkpoints, pushed)
            stack.enter_context(writer)
        save = SaveCheckpoint(setup, network, content, state.step, writer)
        evaluate = Evaluate(setup, network, monitor, callbacks, save)
        input_profile = WriteInputProfile(setup, monitor, evaluate)
        say_allreduce(setup, monitor)
        callbacks.begin(start_of(setup, network, state))
        profile = stack.enter_context(closing(Profile(setup, state.step)))
        actions = [monitor, profile, evaluate, save, input_profile]
        for sized, end in stretches_left(setup, network, state, first):
            train_steps = phase_loop(sized, network, state, create_step(sized, network, state), monitor)
            monitor.restart()
            if setup.config.jit:
                log("compiling the step (once a phase and image size; about 30 s, if no earlier run has left it) …")
            if not train_phase(setup, state, train_steps, actions, stop, end):
                break
        monitor.flush()
        save.act(state)
        input_profile.act(state)
    if setup.cluster.chief and (costs := str(input_profile.profile(state.step))):
        log(costs)
    if state.cursor >= setup.spans[-1].stop or evaluate.should_stop:
        found = finish(setup, state.step, monitor.images_per_second) if setup.cluster.chief else None
        if stop.failure:
            raise Failure(f"{stop.failure}; the run itself is complete") from stop.failure
        if stop.exit:
            log(f"{stop.by}; the run itself is complete")
            raise stop.exit
        return found
    return _stopped(setup, state, monitor.images_per_second, stop)


def stretches_left(
    setup: TrainSetup, network: Network, state: TrainState, first: PhaseSpan
) -> Iterator[tuple[TrainSetup, int]]:
    """What is left to train, from `first` on, phase by phase and image size by image size; begins the phases."""
    for span in setup.spans[first.index :]:
        if span is not first:
            state.begin_phase(setup, network, span)
        yield from setup.stretches(span, state.cursor)


def check_allreduce(setup: TrainSetup) -> None:
    """Refuse devices that would add gradients of this dtype wrong."""
    dtype = setup.config.allreduce_dtype
    if dtype != "float32" and not allreduce_adds(setup.cluster.strategy, dtype):
        raise UsageError(f"--allreduce_dtype={dtype}: the all-reduce of {setup.cluster} adds it wrong; leave it out")


def say_allreduce(setup: TrainSetup, monitor: StepMonitor) -> None:
    """Say how many bytes of gradients travel in each phase."""
    if setup.cluster.replicas > 1 and setup.cluster.chief:
        phases = {
            setup.spans[i].phase.part: f"{travels / 1e6:.3g} MB" for i, travels in monitor.allreduce_bytes.items()
        }
        each = ", ".join(f"{part} {size}" for part, size in phases.items())
        log(f"all-reduce: {setup.config.allreduce_dtype} gradients, a step of each replica: {each}")


def _stopped(
    setup: TrainSetup, state: TrainState, images_per_second: float, stop: StopRequest
) -> dict[str, Any] | None:
    """The result so far of a run that a callback ended. Raises what else ended it, here or on another host."""
    own = json.dumps([str(stop.failure or ""), stop.signal, stop.by])
    with lost_hosts():
        reasons = zip(*map(json.loads, gather(setup.cluster, own)), strict=True)
    failure, number, by = (next(filter(None, told), told[0]) for told in reasons)
    kept = " with a checkpoint" if state.step else ""
    where = f"stopped at step {state.step}{kept}; run the same command to continue"
    if failure:
        raise Failure(f"{failure}; {where}") from stop.failure
    if number:
        raise Interrupted(number, where)
    log(f"{by}: {where}")
    if stop.exit:
        raise stop.exit
    if not setup.cluster.chief:
        return None
    return result(setup, choose_weights(setup.config.workdir), state.step, images_per_second) | {"stopped_by": by}


def own_callbacks(setup: TrainSetup, step: int, stop: StopRequest, told: Sequence[Callback]) -> list[Callback]:
    """Those of every run, its trackers, which are sent what the first ones write, and those that were given."""
    config = setup.config
    return [MetricsLog(config.workdir, step), RunReport(setup), *create_trackers(config, stop), *told]


def start_of(setup: TrainSetup, network: Network, state: TrainState) -> Start:
    """What callbacks are told before the first step."""
    end = setup.spans[-1].stop
    return Start(
        config=setup.config,
        step=state.step,
        steps=steps_between(0, end, setup.config.global_batch_size),
        epoch=setup.epoch(state.cursor),
        epochs=setup.epoch(end),
        learning_rate=setup.learning_rate(setup.spans[state.phase], state.cursor),
        model=network.serve,
    )


def prepare(config: TrainConfig, *, continues: bool = True) -> TrainSetup:
    """Claim the devices, fix the sources of randomness, and check the config against both.

    Args:
      continues: a run that has begun in the workdir goes on, and needs no file of weights any more.
    """
    set_flags(deterministic=config.deterministic, jit=config.jit is not False)  # before devices are listed
    alone = len(find_hosts(config).addresses) == 1
    if alone:
        config = decided(config)
    cluster = claim(config)
    check_config(config, cluster)
    if not alone:
        config = replace(config, **from_chief(cluster, lambda: arithmetic(config)))
        cluster = claim(config)  # the same one; operations outside XLA are made deterministic, if all are
    keras.utils.set_random_seed(config.seed)
    kept_weights = from_chief(cluster, lambda: weights_begun_with(config)) if continues else ""
    return create_setup(config, cluster, kept_weights)


def arithmetic(config: TrainConfig) -> dict[str, Any]:
    """What the chief decides for all hosts: they may differ in speed, and need not have the run directory."""
    settled = decided(config)
    return {"precision": settled.precision, "jit": settled.jit}


def total_tflops(setup: TrainSetup) -> float:
    """Peak of all devices, as given or as measured on one of them; 0 on hosts that report nothing."""
    if not setup.cluster.chief:
        return 0.0
    config = setup.config
    return setup.cluster.replicas * (config.peak_tflops or peak_tflops(setup.cluster.device_kind, config.precision))


def nominal_tflops(setup: TrainSetup) -> float:
    """Peak of all devices by their data sheets; 0 for CPUs and for cards that we know none of."""
    found = nvidia.cards() if setup.cluster.device_kind == "GPU" else ()
    nominal = found[0].nominal if found else None
    if not nominal:
        return 0.0
    half = setup.config.precision != "float32"
    return setup.cluster.replicas * (nominal.half_tflops if half else nominal.single_tflops)


def phase_loop(
    setup: TrainSetup, network: Network, state: TrainState, step: TrainStep, monitor: StepMonitor
) -> TrainLoop:
    """The steps of the phase, over images or, with --cache_features, over the frozen layers' output for them."""
    span = setup.spans[state.phase]
    if setup.stores_features(span):
        cache = open_feature_cache(setup, network)
        monitor.flops[state.phase] = cache.flops
        step, batches = create_step(setup, network, state, cache.forward), cache.batches(state.cursor)
    else:
        monitor.flops[state.phase] = flops_per_image(network, setup.input.image_size, span.phase.part)
        batches = setup.train_batches(state.cursor)
    return create_train_loop(setup.cluster.strategy, step, batches, clock(setup))


def clock(setup: TrainSetup) -> Callable[[], tf.Tensor] | None:
    """What times the waits for batches. None where steps are queued: one has hardly begun when the next one asks."""
    if setup.queues_steps:
        return None
    # TensorFlow refuses its own clock where its determinism is on.
    return lambda: tf.numpy_function(time.perf_counter, [], tf.float64)


def finish(setup: TrainSetup, last_step: int, images_per_second: float) -> dict[str, Any]:
    """Save model.keras; the result of the run: all its numbers are of the weights in that file."""
    workdir = Path(setup.config.workdir)
    log("saving the model …")
    run = load_run(workdir, precision="float32")  # plain float32 layers load everywhere
    with tempfile.TemporaryDirectory() as folder, atomic_writer(workdir / MODEL_FILE) as file:
        with full_disk_named(folder):
            run.model.save(Path(folder, MODEL_FILE))  # Keras writes to a path of its own ending only
        with Path(folder, MODEL_FILE).open("rb") as saved:
            shutil.copyfileobj(saved, file)
    note_model(workdir, run.chosen)
    log(f"model: {workdir / MODEL_FILE}, {run.chosen}; curves: {workdir / PLOTS / CURVES}")
    return result(setup, run.chosen, last_step, images_per_second)


def result(setup: TrainSetup, chosen: ChosenWeights, last_step: int, images_per_second: float) -> dict[str, Any]:
    """What `train` returns of the weights that stand for the run."""
    header, evaluation = chosen.checkpoint.header, chosen.evaluation
    return {
        "step": header["step"],
        "last_step": last_step,
        "finished": chosen.finished,
        "choice": chosen.choice,
        "epoch": round(setup.epoch(header["cursor"]), 6),
        "images_per_second": round(images_per_second, 2) or None,  # of a run of one step, which compiles
        "weights_sha256": chosen.sha256,
        **{f"{evaluation['split']}_{name}": evaluation[name] for name in ("loss", "top1", "top5") if evaluation},
    }


@contextmanager
def errors_in_one_line(setup: TrainSetup, state: TrainState) -> Iterator[None]:
    """Turn what TensorFlow raises for unreadable input or a lost host into one line."""
    try:
        with bad_records_in_one_line(setup.data):
            yield
    except tf.errors.OpError as error:
        let_go(error)
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
