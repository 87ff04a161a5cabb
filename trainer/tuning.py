"""Finding settings: what a run would do (--dry_run), a learning rate (--find_lr), the largest batch (--find_batch)."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from shardline.pipeline.cli import log, progress
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.machine import available_memory, peak_memory
from shardline.pipeline.paths import is_remote
from shardline.pipeline.wording import count, last_line, noun_after
from shardline.tools.plot_style import save_figure
from shardline.trainer import curves
from shardline.trainer.cluster import device_lines, gpus
from shardline.trainer.config import PARTS, TrainConfig
from shardline.trainer.memory import step_bytes
from shardline.trainer.model import flops_per_image, num_parameters
from shardline.trainer.run import prepare
from shardline.trainer.schedule import phase_steps
from shardline.trainer.setup import TrainSetup, initial_network
from shardline.trainer.state import create_train_state

LOWEST_RATE, HIGHEST_RATE, RATE_STEPS = 1e-6, 10.0, 100
LARGEST_BATCH = 4096
GIB = 2**30
MEMORY_SHARE = 0.8  # of the host's free memory that a CPU trial may be expected to need


def dry_run(config: TrainConfig) -> str:
    """Check everything a run would check; what it would do, in lines of text."""
    setup = prepare(config, continues=False)
    with setup.cluster.strategy.scope():
        network = initial_network(setup)
    batch, replicas = config.global_batch_size, setup.cluster.replicas
    lines = [
        *device_lines(setup.cluster, batch),
        f"batch: {batch:,} = {replicas} × {count(batch // replicas, 'sample')}, "
        f"in {count(config.micro_batches, 'micro-batch')}",
        f"data: {count(setup.num_records, 'record')} of {config.train_split}, {count(len(setup.labels), 'class')}; "
        f"evaluation on {setup.eval_split or 'nothing'}",
    ]
    for span in setup.spans:
        part, steps = span.phase.part, phase_steps(span, batch)
        lines.append(
            f"phase {span.index + 1}: {part}, {span.phase.epochs:g} {noun_after(span.phase.epochs, 'epoch')} = "
            f"{count(steps, 'step')} at a peak rate of "
            f"{span.phase.learning_rate:g}; {num_parameters(network.trained(part)):,} of "
            f"{num_parameters(network.weights):,} parameters train, "
            f"{flops_per_image(network, config.image_size, part) / 1e9:.1f} GFLOP an image"
        )
    if config.resizes:
        lines.append(f"progressive resizing: {', '.join(map(str, config.resizes))}, then {config.image_size} px")
    need = max(step_bytes(setup, network, span) for span in setup.spans) / GIB
    lines.append(f"memory: about {need:.2f} GiB a GPU, as XLA compiles the step (`make gpu-compile`)")
    return "\n".join(lines)


def find_lr(config: TrainConfig) -> dict[str, Any]:
    """Learning-rate range test: raise the rate step by step, draw the loss, and suggest a rate.

    Returns:
      learning_rate, and the phase it is for: the first one's part of the network.
    """
    if not config.workdir or is_remote(config.workdir):
        raise UsageError(f"--workdir={config.workdir}: --find_lr puts its image there; name a local folder")
    setup = prepare(dataclasses.replace(config, ema=0.0), continues=False)
    rates, losses = range_test(setup)
    smooth, suggestion = suggest(rates, losses)
    if setup.cluster.chief:
        path = Path(config.workdir) / "plots" / "find_lr.png"
        save_figure(curves.learning_rate_range(rates, smooth, suggestion), path)
        log(f"image: {path}")
    return {"learning_rate": suggestion, "phase": config.phase_list[0].part}


def range_test(setup: TrainSetup) -> tuple[np.ndarray, np.ndarray]:
    """Rates from LOWEST_RATE up, and the loss at each, until it breaks."""
    _, _, step = create_train_state(setup, setup.spans[0])
    batches = setup.train_batches(0)
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
    return np.array(rates), np.array(losses)


def suggest(rates: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed losses, and a tenth of the rate where they are lowest: well before they rise, and still fast."""
    reach = max(2, len(losses) // 20)
    kernel = np.ones(2 * reach + 1) / (2 * reach + 1)
    smooth = np.convolve(np.pad(losses, reach, mode="edge"), kernel, mode="valid")
    return smooth, float(f"{rates[int(np.argmin(smooth))] / 10:.2g}")


def find_batch(config: TrainConfig) -> dict[str, Any]:
    """Double the batch of one device until it no longer fits; each trial in a process of its own.

    Returns:
      batch_per_device, and peak_gib, the memory it took.
    """
    fits, tried = 0, 2 if config.mixes else 1  # which takes pairs
    used: dict[int, float] = {}
    while tried <= LARGEST_BATCH:
        if len(used) > 1 and not gpus(config):
            need, free = _extrapolate(used, tried), MEMORY_SHARE * available_memory()
            if need > free:
                log(f"batch {tried}: would need about {need / GIB:.1f} of {free / GIB:.1f} GiB; not tried")
                break
        peak, forecast = _trial(config, tried)
        expected = f" (forecast for a GPU: {forecast / GIB:.2f} GiB)" if forecast else ""
        if peak is None:
            log(f"batch {tried}: does not fit{expected}")
            break
        fits, used[tried] = tried, peak
        log(f"batch {tried}: fits, {peak / GIB:.2f} GiB{expected}")
        tried *= 2
    if not fits:
        raise Failure("--find_batch: not even one image fits; use a smaller --image_size, or --head=gap")
    return {"batch_per_device": fits, "peak_gib": round(used[fits] / GIB, 3)}


_MEASURE = "import sys; from shardline.trainer import tuning; tuning._measure(sys.argv[1])"


def _trial(config: TrainConfig, batch: int) -> tuple[float | None, float]:
    """Peak memory of two steps at this batch, None when they do not fit; and what was forecast, 0 if it died before."""
    trial = dataclasses.replace(
        config,
        global_batch_size=batch,
        synthetic=True,
        strategy="one_device",
        device="cpu" if config.logical_cpus else config.device,
        logical_cpus=0,
        micro_batches=1,
        eval_split="auto",
        best_metric="none",
        early_stop_evals=0,
        class_weights="none",
        balanced_sampling=False,
    )
    command = [sys.executable, "-c", _MEASURE, json.dumps(trial.to_dict())]
    done = subprocess.run(command, capture_output=True, text=True)
    forecast, *peak = [float(word) for word in done.stdout.split()[-2:]] or [0.0]
    if done.returncode == 0:
        return peak[0], forecast
    if done.returncode < 0 or "ResourceExhausted" in done.stderr or "out of memory" in done.stderr.lower():
        return None, forecast
    raise Failure(f"--find_batch: batch {batch} failed for another reason than memory: {last_line(done.stderr)}")


def _measure(text: str) -> None:
    setup = prepare(TrainConfig.from_dict(json.loads(text)))
    span = max(setup.spans, key=lambda span: PARTS.index(span.phase.part))  # what trains most needs most
    network, _, step = create_train_state(setup, span)
    print(step_bytes(setup, network, span), flush=True)
    batches = setup.train_batches(0)
    for _ in range(2):
        float(step(next(batches), tf.constant(1e-3))["loss"])
    gpu = tf.config.experimental.get_memory_info("GPU:0") if gpus(setup.config) else None
    print(gpu["peak"] if gpu else peak_memory())


def _extrapolate(used: dict[int, float], batch: int) -> float:
    """Straight line through the last two trials."""
    (a, x), (b, y) = sorted(used.items())[-2:]
    return y + (y - x) / (b - a) * (batch - b)
