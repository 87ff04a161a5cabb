"""One training run from a checked config to model.keras: the table of contents of training."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer import actions, cluster, feature_cache, loop, metrics_log, model
from shardline.trainer import setup as planning
from shardline.trainer import state as states
from shardline.trainer import step as steps
from shardline.trainer.config import TrainConfig, differences
from shardline.trainer.schedule import PhaseSpan
from shardline.trainer.setup import Plan
from shardline.trainer.state import TrainState


def train(config: TrainConfig, *, allow_changes: bool = False) -> None:
    """Train, from the start or from the newest readable checkpoint, and save the model."""
    plan = prepare(config)
    claim_workdir(plan, allow_changes)
    restored = find_checkpoint(plan)
    over = restored is not None and is_over(plan, restored[1])
    if restored and over and (Path(config.workdir) / "model.keras").exists():
        say(f"--workdir={config.workdir} is complete at step {restored[1]['step']}; nothing to do")
        return
    with plan.cluster.strategy.scope():
        network = planning.build_network(plan)
        ema_weights = {
            path: tf.Variable(v, trainable=False) for path, v in (network.weights if config.ema else {}).items()
        }
        loss_scale = steps.LossScale()
    state = TrainState(network.weights, ema_weights, None, loss_scale)
    if restored:
        state.step, state.cursor = restored[1]["step"], restored[1]["cursor"]
    log = metrics_log.MetricsLog(config.workdir, state.step) if plan.cluster.chief else None
    watch = actions.StepMonitor(plan, network, log, state.step)
    evaluate = actions.Evaluate(plan, network, watch, log, say, lambda s: save_best(s))
    checkpoint = actions.Checkpoint(plan, watch, evaluate)

    def save_best(current: TrainState) -> None:
        checkpoint.save(current, Path(config.workdir) / "checkpoints" / states.BEST)

    if plan.cluster.chief:
        watch.peak = plan.cluster.replicas * (
            config.peak_tflops or metrics_log.peak_tflops(plan.cluster.device_kind, config.precision)
        )
    with loop.StopRequest() as stop, errors_of_others(plan, state):
        for span in plan.spans:
            if (over or state.cursor >= span.stop) and span is not plan.spans[-1]:
                continue  # the last one is entered even when it is over, to take over its checkpoint
            # New trace and new slots: a traced step goes on training the variables it was traced with.
            with plan.cluster.strategy.scope():
                state.optimizer = make_optimizer(plan, network, span)
            state.phase = span.index
            if restored:
                resume(state, plan, span, *restored)
                restored = None
            if over:
                break
            if config.cache_features and span.phase.part == "head":
                cache = feature_cache.FeatureCache(plan, network)
                step, batches = make_step(plan, network, state, cache.forward), cache.batches(state.cursor)
                watch.flops[span.index] = cache.flops
            else:
                step, batches = make_step(plan, network, state), plan.train_batches(state.cursor)
            watch.restart()
            going = loop.train_phase(
                plan,
                state,
                span,
                step,
                batches,
                after_step=watch.after_step,
                stop=stop,
                actions=[actions.Profile(plan), evaluate, checkpoint],
            )
            if not going:
                break
        checkpoint.act(state)
    watch.bar.close()
    if log:
        log.close()
        if not config.synthetic and (times := plan.data.stage_times()).samples:
            say(f"input, training and evaluation:\n{times}")
    if over or state.cursor >= plan.spans[-1].stop or evaluate.should_stop:
        finish(plan, network, state, evaluate, watch)
    else:
        say(f"stopped at step {state.step} with a checkpoint; run the same command to continue")


def prepare(config: TrainConfig) -> Plan:
    """Claim the devices, fix the sources of randomness, and check the config against both."""
    if config.deterministic and config.jit:
        # TensorFlow's own switch, below, refuses to compile max pooling.
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    devices = cluster.start(config.strategy, config.logical_cpus)
    keras.utils.set_random_seed(config.seed)
    if config.deterministic and not config.jit:
        tf.config.experimental.enable_op_determinism()
    return planning.make(config, devices)


def say(text: str) -> None:
    """Talk goes to stderr, above the bar if there is one."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def make_optimizer(plan: Plan, network: model.Network, span: PhaseSpan) -> steps.Optimizer:
    """Fresh slots for what trains in a phase; blocks farther from the head learn slower by --block_lr_decay."""
    variables = network.trained(span.phase.part)
    rates = {path: plan.config.block_lr_decay ** model.LAYER_GROUPS.index(model.group(path)) for path in variables}
    return steps.Optimizer(variables, step_config(plan), rates)


def make_step(plan: Plan, network: model.Network, state: TrainState, forward: Any = None) -> Any:
    """The training step of the current phase."""
    return steps.make_train_step(
        plan.cluster.strategy,
        forward or planning.train_forward(plan, network),
        state.optimizer,
        state.loss_scale,
        state.ema_weights,
        step_config(plan),
        planning.class_weights(plan),
    )


def step_config(plan: Plan) -> steps.StepConfig:
    """The part of the config that a step needs."""
    names = ("global_batch_size", "optimizer", "momentum", "clip_norm", "weight_decay", "ema", "micro_batches", "jit")
    values = {name: getattr(plan.config, name) for name in names}
    return steps.StepConfig(**values, loss_scaling=plan.config.precision == "mixed_float16")


# Start and restart ------------------------------------------------------------------------------------------------


def claim_workdir(plan: Plan, allow_changes: bool) -> None:
    """Make the run directory, or check that the one that is there belongs to this run."""
    config = plan.config
    if not config.workdir:
        raise UsageError("--workdir is missing: give a directory for the run's checkpoints, metrics and model")
    workdir = Path(config.workdir)
    content: dict[str, Any] = {
        "format": "shardline-run/1",
        "train": config.to_dict(),
        "labels": list(plan.labels),
        "dataset": {"name": "synthetic" if config.synthetic else plan.data.manifest.name, **plan.order_key},
        "preprocessing": {
            **pipeline.PREPROCESSING,
            "crop_fraction": config.eval_crop_fraction,
            "stored": stored_images(plan),
        },
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
    }
    begun = (workdir / states.CONFIG_FILE).exists()
    if begun and states.checkpoints(workdir):
        old = states.read_config(config.workdir, "--workdir")
        check_order(f"--workdir={workdir}", old["dataset"], content["dataset"])
        if tuple(old["labels"]) != plan.labels:
            raise UsageError(f"--workdir={workdir} was trained on other labels; start in another --workdir")
        changes = differences(old["train"], content["train"])
        if changes and not allow_changes:
            raise UsageError(
                f"--workdir={workdir} was started with other flags: {'; '.join(changes)}; repeat those, choose another "
                "--workdir, or pass --allow_changes to continue with the new ones"
            )
    elif not begun and workdir.exists() and any(workdir.iterdir()):
        raise UsageError(f"--workdir={workdir} is not empty and not a run of ours; choose another directory")
    if plan.cluster.chief:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            states.write_config(config.workdir, content)
        except OSError as error:
            raise UsageError(f"--workdir={workdir} cannot be written: {error.strerror}") from None


def stored_images(plan: Plan) -> dict[str, Any]:
    """How the converter made the images, so that prediction and export can do the same to any file."""
    if plan.config.synthetic:
        return {}
    manifest = plan.data.manifest
    made = {name: manifest.options[name] for name in ("upscale", "trim_borders") if name in manifest.options}
    return {"resize": manifest.image.resize, "size": manifest.image.size, **made}


def check_order(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse another order of samples: a position would no longer mean the same sample."""
    keys = ("dataset", "split", "records", "seed", "shuffle_block_size", "balanced_sampling")
    ours, theirs = ({key: values.get(key) for key in keys} for values in (new, old))
    if ours != theirs:
        raise UsageError(
            f"{name} was trained on another order of samples: {json.dumps(theirs)} there, {json.dumps(ours)} here; "
            "use the same dataset and seed, or start in another --workdir"
        )


def find_checkpoint(plan: Plan) -> tuple[Path, dict[str, Any], Any] | None:
    """The newest readable checkpoint of this run, if there is one."""
    path, header, arrays, damaged = states.newest_readable(plan.config.workdir)
    for line in damaged:
        say(f"warning: {line}; trying the one before")
    if path is None:
        return None
    check_order(str(path), header["order"], plan.order_key)
    return path, header, arrays


def is_over(plan: Plan, header: dict[str, Any]) -> bool:
    """Whether a checkpoint is from the end of its run, or from where early stopping ended it."""
    return header["cursor"] >= plan.spans[-1].stop or 0 < plan.config.early_stop_evals <= header["evals_since_best"]


def resume(state: TrainState, plan: Plan, span: PhaseSpan, path: Path, header: dict[str, Any], arrays: Any) -> None:
    """Take over a checkpoint. A phase that just begins keeps its fresh slots, and so does another optimizer."""
    fresh = {f"slots/{name}": v.numpy() for name, v in state.optimizer.state().items()}
    slots = {name for name in arrays if name.startswith("slots/")}
    if header["phase"] != span.index or slots != set(fresh):
        arrays = {name: a for name, a in arrays.items() if name not in slots} | fresh
        header = {**header, "phase": span.index}
    if state.ema_weights and not any(name.startswith("average/") for name in arrays):  # --ema is new: it begins here
        arrays |= {f"average/{path}": arrays[f"model/{path}"] for path in state.ema_weights}
    state.restore(header, arrays, source=path)
    say(f"continuing {plan.config.workdir} at step {state.step} (epoch {plan.epoch(state.cursor):.3g})")


@contextmanager
def errors_of_others(plan: Plan, state: TrainState) -> Iterator[None]:
    """Turn what TensorFlow raises for unreadable input or a lost host into one line."""
    try:
        yield
    except tf.errors.OpError as error:
        failure = getattr(getattr(plan.data, "bad_records", None), "failure", None)
        if failure:
            raise failure from error
        if isinstance(error, tf.errors.ResourceExhaustedError):
            raise Failure(
                f"--global_batch_size={plan.config.global_batch_size} does not fit the device's memory; use a smaller "
                "one, or --micro_batches=2, or ask --find_batch"
            ) from error
        if plan.cluster.hosts > 1:
            raise Failure(
                f"another worker stopped or cannot be reached ({type(error).__name__}) after step {state.step - 1}; "
                "start all workers again, the run continues from its last checkpoint"
            ) from error
        raise


# The end ----------------------------------------------------------------------------------------------------------


def finish(
    plan: Plan, network: model.Network, state: TrainState, evaluate: actions.Evaluate, watch: actions.StepMonitor
) -> None:
    """Save model.keras and print the result."""
    if not plan.cluster.chief:
        return
    workdir = Path(plan.config.workdir)
    run = states.load_run(str(workdir), precision="float32")  # plain float32 layers load everywhere
    temporary = workdir / "model.tmp.keras"
    run.model.save(temporary)
    os.replace(temporary, workdir / "model.keras")
    result = {
        "step": state.step,
        "epoch": round(plan.epoch(state.cursor), 6),
        "images_per_second": round(watch.images_per_second, 2),
        "weights_sha256": states.weights_digest(state.weights),
        **({f"{plan.eval_split}_{name}": value for name, value in evaluate.last.items()}),
    }
    say(f"model: {workdir / 'model.keras'}; curves: {workdir / 'plots' / 'curves.png'}")
    print(json.dumps(result))
