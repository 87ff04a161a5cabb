"""Images of a training run: its curves, and the learning-rate search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shardline.tools.html_report import PALETTE, SPLIT_COLORS, new_figure

TRAIN = SPLIT_COLORS["train"]
HELD_OUT = PALETTE[3]
GRAY = "#6e7781"


def curves(metrics: Sequence[dict[str, Any]], phases: Sequence[tuple[str, float]], eval_split: str) -> Any:
    """Loss, top-1 and learning rate over epochs. `phases`: name and first epoch of each."""
    train = [line for line in metrics if line["kind"] == "train"]
    held_out = [line for line in metrics if line["kind"] == "eval"]
    color = SPLIT_COLORS.get(eval_split, HELD_OUT)
    figure = new_figure(8, 8)
    loss, top1, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.2))
    for axes, name, factor in ((loss, "loss", 1), (top1, "top1", 100)):
        _line(axes, train, name, factor, TRAIN, "train, augmented", smooth=True)
        _line(axes, held_out, name, factor, color, eval_split, marker="o")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        axes.grid(axis="y", color="#d0d7de", linewidth=0.6)
    top1.set_ylim(0, 100)
    loss.set_ylabel("loss, nats")
    top1.set_ylabel("top-1, %")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")
    rate.plot(*_series(train, "learning_rate", 1), color=GRAY)
    rate.set_ylim(bottom=0)
    for name, epoch in phases:
        for axes in (loss, top1, rate):
            axes.axvline(epoch, color=GRAY, linewidth=0.8, linestyle=":")
        loss.annotate(
            name,
            (epoch, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=9,
            color=GRAY,
        )
    loss.legend(loc="best", frameon=False)
    figure.suptitle(_message(train, held_out, eval_split))
    return figure


def _message(train: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]], eval_split: str) -> str:
    if held_out:
        last = held_out[-1]
        return f"{100 * last['top1']:.1f} % top-1 on {eval_split} after {last['epoch']:.3g} epochs"
    return f"training loss {train[-1]['loss']:.3g} after {train[-1]['epoch']:.3g} epochs" if train else "no step yet"


def _series(lines: Sequence[dict[str, Any]], name: str, factor: float) -> tuple[np.ndarray, np.ndarray]:
    lines = [line for line in lines if name in line]
    return np.array([line["epoch"] for line in lines]), factor * np.array([line[name] for line in lines])


def _line(
    axes: Any,
    lines: Sequence[dict[str, Any]],
    name: str,
    factor: float,
    color: str,
    label: str,
    smooth: bool = False,
    marker: str = "",
) -> None:
    x, y = _series(lines, name, factor)
    if not len(x):
        return
    if smooth and len(x) > 30:  # single batches are noisy: show them faintly behind their running mean
        axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
        width = max(3, len(y) // 30)
        sums = np.cumsum(np.insert(y, 0, 0))
        low = np.maximum(np.arange(1, len(y) + 1) - width, 0)
        y = (sums[1:] - sums[low]) / (np.arange(1, len(y) + 1) - low)
    axes.plot(x, y, color=color, label=label, marker=marker, markersize=4)


def find_lr(rates: np.ndarray, losses: np.ndarray, suggestion: float) -> Any:
    """Smoothed loss against the learning rate of a rising search, with the rate to use."""
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    axes.semilogx(rates, losses, color=TRAIN)
    axes.axvline(suggestion, color=HELD_OUT, linestyle="--")
    axes.annotate(
        f" {suggestion:.2g}", (suggestion, 0.96), xycoords=("data", "axes fraction"), color=HELD_OUT, va="top"
    )
    start = losses[0]
    axes.set_ylim(0, 1.5 * start)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss, smoothed, nats")
    axes.set_title(f"Train at a peak learning rate of about {suggestion:.2g}")
    axes.grid(axis="y", color="#d0d7de", linewidth=0.6)
    return figure


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a PNG, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("." + path.name)
    figure.savefig(temporary, dpi=110, format="png")
    os.replace(temporary, path)
