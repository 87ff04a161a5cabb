"""Finding settings: what a run would do (--dry_run), a learning rate (--find_lr), the largest batch (--find_batch)."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from shardline.pipeline.cli import progress
from shardline.pipeline.errors import Failure, UsageError
from shardline.tools.plot_style import save_figure
from shardline.trainer import curves, model, run
from shardline.trainer import setup as planning
from shardline.trainer.config import TrainConfig
from shardline.trainer.schedule import steps_between
from shardline.trainer.setup import Plan
from shardline.trainer.state import TrainState
from shardline.trainer.step import LossScale

LOWEST_RATE, HIGHEST_RATE, RATE_STEPS = 1e-6, 10.0, 100
LARGEST_BATCH = 4096
MEMORY_SHARE = 0.8  # of the host's free memory that a CPU trial may be expected to need


def dry_run(config: TrainConfig) -> None:
    """Check everything a run would check, and print what it would do."""
    plan = run.prepare(config)
    with plan.cluster.strategy.scope():
        network = planning.build_network(plan)
    batch, replicas = config.global_batch_size, plan.cluster.replicas
    print(f"devices: {plan.cluster}")
    print(f"batch: {batch} = {replicas} × {batch // replicas} examples, in {config.micro_batches} micro-batches")
    print(
        f"data: {plan.num_records} records of {config.train_split}, {len(plan.labels)} classes; "
        f"evaluation on {plan.eval_split or 'nothing'}"
    )
    for span in plan.spans:
        trained = network.trained(span.phase.part)
        count = sum(int(np.prod(v.shape)) for v in trained.values())
        steps = steps_between(span.start, span.stop, batch)
        flops = model.flops_per_image(network, span.phase.part)
        print(
            f"phase {span.index + 1}: {span.phase.part}, {span.phase.epochs:g} epochs = {steps} steps at a peak rate "
            f"of {span.phase.learning_rate:g}; {count:,} of {_parameters(network):,} parameters train, "
            f"{flops / 1e9:.1f} GFLOP an image"
        )
    print(f"memory: about {memory_bytes(plan, network) / 2**30:.2f} GiB a device")


def memory_bytes(plan: Plan, network: model.Network) -> float:
    """Estimate for one device: weights, gradients, slots and ema_weights, and the activations of one micro-batch."""
    config = plan.config
    slots = 1 if config.optimizer == "sgd" else 2
    variables = 4.0 * _parameters(network) * (2 + slots + bool(config.ema))
    width = 4 if config.precision == "float32" else 2
    outputs = sum(float(np.prod(layer.output.shape[1:])) for layer in network.train.layers)
    images = config.global_batch_size / plan.cluster.replicas / config.micro_batches
    return variables + 2 * width * outputs * images  # each activation and its gradient


def _parameters(network: model.Network) -> int:
    return sum(int(np.prod(v.shape)) for v in network.weights.values())


def find_lr(config: TrainConfig) -> None:
    """Raise the rate step by step, draw the loss, and suggest a rate."""
    if not config.workdir:
        raise UsageError("--workdir is missing: --find_lr puts its image there")
    plan = run.prepare(config)
    span = plan.spans[0]
    with plan.cluster.strategy.scope():
        network = planning.build_network(plan)
        state = TrainState(network.weights, {}, None, LossScale())
        state.optimizer = run.make_optimizer(plan, network, span)
    step = run.make_step(dataclasses.replace(plan, config=dataclasses.replace(config, ema=0.0)), network, state)
    batches = plan.train_batches(0)
    rates: list[float] = []
    losses: list[float] = []
    bar = progress(np.geomspace(LOWEST_RATE, HIGHEST_RATE, RATE_STEPS), total=RATE_STEPS, desc="find_lr", unit="step")
    for rate in bar:
        loss = float(step(next(batches), tf.constant(rate, tf.float32))["loss"])
        if not np.isfinite(loss) or (losses and loss > 4 * losses[0]):
            break
        rates.append(float(rate))
        losses.append(loss)
    if len(rates) < 10:
        raise Failure(f"--find_lr: the loss broke at a rate of {rate:.2g}; look at the data, or set --clip_norm")
    smooth, suggestion = suggest(np.array(rates), np.array(losses))
    path = Path(config.workdir) / "plots" / "find_lr.png"
    save_figure(curves.learning_rate_range(np.array(rates), smooth, suggestion), path)
    run.say(f"image: {path}")
    print(json.dumps({"learning_rate": suggestion, "phase": span.phase.part}))


def suggest(rates: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed losses, and a tenth of the rate where they are lowest: well before they rise, and still fast."""
    reach = max(2, len(losses) // 20)
    kernel = np.ones(2 * reach + 1) / (2 * reach + 1)
    smooth = np.convolve(np.pad(losses, reach, mode="edge"), kernel, mode="valid")
    return smooth, float(f"{rates[int(np.argmin(smooth))] / 10:.2g}")


def find_batch(config: TrainConfig) -> None:
    """Double the batch of one device until it no longer fits; each trial in a process of its own."""
    fits, tried = 0, 1
    used: dict[int, float] = {}
    while tried <= LARGEST_BATCH:
        if len(used) > 1 and (need := _forecast(used, tried)) > (free := _free_bytes()) and not _has_gpu():
            run.say(f"batch {tried}: would need about {need / 2**30:.1f} of {free / 2**30:.1f} GiB; not tried")
            break
        found = _trial(config, tried)
        if found is None:
            run.say(f"batch {tried}: does not fit")
            break
        fits, used[tried] = tried, found
        run.say(f"batch {tried}: fits, {found / 2**30:.2f} GiB")
        tried *= 2
    if not fits:
        raise Failure("--find_batch: not even one image fits; use a smaller --image_size, or --head=gap")
    print(json.dumps({"batch_per_device": fits, "peak_gib": round(used[fits] / 2**30, 3)}))


_MEASURE = "import sys; from shardline.trainer import tuning; tuning._measure(sys.argv[1])"


def _trial(config: TrainConfig, batch: int) -> float | None:
    """Peak memory of two steps at this batch; None when they do not fit."""
    values = {
        **config.to_dict(),
        "global_batch_size": batch,
        "synthetic": True,
        "strategy": "one_device",
        "logical_cpus": 0,
        "micro_batches": 1,
        "best_metric": "none",
        "early_stop_evals": 0,
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from shardline.trainer import tuning; tuning._measure(sys.argv[1])",
            json.dumps(values),
        ],
        capture_output=True,
        text=True,
        env=None,
    )
    if done.returncode == 0:
        return float(done.stdout.split()[-1])
    if done.returncode < 0 or "ResourceExhausted" in done.stderr or "out of memory" in done.stderr.lower():
        return None
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    raise Failure(f"--find_batch: batch {batch} failed for another reason than memory: {last[0]}")


def _measure(text: str) -> None:
    config = TrainConfig.from_dict(json.loads(text))
    plan = run.prepare(config)
    with plan.cluster.strategy.scope():
        network = planning.build_network(plan)
        ema_weights = {k: tf.Variable(v, trainable=False) for k, v in (network.weights if config.ema else {}).items()}
        state = TrainState(network.weights, ema_weights, None, LossScale())
        state.optimizer = run.make_optimizer(plan, network, plan.spans[-1])
    step, batches = run.make_step(plan, network, state), plan.train_batches(0)
    for _ in range(2):
        float(step(next(batches), tf.constant(1e-3))["loss"])
    gpu: Any = tf.config.experimental.get_memory_info("GPU:0") if _has_gpu() else None
    print(gpu["peak"] if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _forecast(used: dict[int, float], batch: int) -> float:
    """Straight line through the last two trials."""
    (a, x), (b, y) = sorted(used.items())[-2:]
    return y + (y - x) / (b - a) * (batch - b)


def _free_bytes() -> float:
    with open("/proc/meminfo", encoding="ascii") as file:
        free = next(line for line in file if line.startswith("MemAvailable"))
    return MEMORY_SHARE * 1024 * float(free.split()[1])


def _has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))
