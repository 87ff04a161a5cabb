"""Sections that the page of a run and those of its evaluations share: curves, evaluations, settings. No TensorFlow."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shardline.pipeline.wording import as_flag, count, noun_after
from shardline.tools.html_report import HtmlReport
from shardline.trainer import curves, metrics_log
from shardline.trainer.config import TrainConfig


def headline(log: Sequence[Mapping[str, Any]]) -> str:
    """What is known last, in a few words."""
    held_out = [line for line in log if line["kind"] == "eval"]
    if not held_out:
        return f"loss {log[-1]['loss']:.3f} at step {log[-1]['step']:,}" if log else "no step yet"
    last = held_out[-1]
    epochs = f"{last['epoch']:.3g} {noun_after(last['epoch'], 'epoch')}"
    return f"{last['top1']:.1%} top-1 on {last['split']} after {epochs}"


def add_curves(page: HtmlReport, config: TrainConfig, log: list[dict[str, Any]], png: Path | None = None) -> None:
    """Loss, top-1 and rate with phase marks, also as `png`; throughput and waiting for input."""
    if not log:
        page.text("Training", "This run directory holds no metrics.jsonl, so there are no curves.")
        return
    epochs = itertools.accumulate((phase.epochs for phase in config.phase_list), initial=0.0)
    phases = [(phase.part, epoch) for phase, epoch in zip(config.phase_list, epochs, strict=False)]
    evaluations = [line for line in log if line["kind"] == "eval"]
    last = (evaluations or log)[-1]
    alt = f"loss, top-1 and learning rate over epochs; last: loss {last['loss']:.3f}, top-1 {last['top1']:.1%}"
    held_out = evaluations[0]["split"] if evaluations else ""
    page.figure("Training", curves.training_curves(log, phases, held_out), alt, png=png)
    throughput = curves.throughput_curves(metrics_log.steady(log, config.log_every_steps), phases)
    if throughput is not None:
        page.figure("Throughput", throughput, "images per second and share of time waiting for input, over epochs")
    gpus = curves.gpu_curves(log)
    if gpus is not None:
        page.figure("GPUs", gpus, "load, memory and power of the GPUs, over epochs")


def add_numbers(page: HtmlReport, log: Sequence[Mapping[str, Any]]) -> None:
    """Every evaluation so far."""
    rows = [
        (
            round(line["epoch"], 2),
            int(line["step"]),
            line["split"],
            line["loss"],
            *map(_share, (line["top1"], line["top5"])),
        )
        for line in log
        if line["kind"] == "eval"
    ]
    if rows:
        page.table("Evaluations", ("epoch", "step", "split", "loss, nats", "top-1", "top-5"), rows)


def add_settings(page: HtmlReport, config: TrainConfig) -> None:
    """The flags that were given, and what the others were."""
    default, used = TrainConfig().to_dict(), config.to_dict()
    changed = [name for name, value in used.items() if value != default[name]]
    rows = [(f"--{name}", as_flag(used[name]), as_flag(default[name])) for name in changed]
    page.table("Settings", ("flag", "value", "default"), rows, note="Flags that differ from their defaults:")
    rest = [(f"--{name}", as_flag(value)) for name, value in used.items() if name not in changed and value != ""]
    page.folded("Settings", f"{count(len(rest), 'flag')} at the default", ", ".join(map("=".join, rest)))


def _share(value: float) -> str:
    return f"{value:.1%}"
