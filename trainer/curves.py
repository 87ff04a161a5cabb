"""Plots of runs over time: loss and top-1 of one run or several, throughput, the learning-rate range test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shardline.pipeline.wording import count, noun_after, shorten_middle
from shardline.tools.plot_style import BLUE, GRAY, GRID, PALETTE, RED, SPLIT_COLORS, new_figure, percent, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN = SPLIT_COLORS["train"]
HELD_OUT = RED  # a held-out split of another name than validation and test
FEW_RUNS = 6  # whose training is drawn beside what was held out
LINES = "-", "--", ":", "-."  # of runs beyond the colors
SMOOTHED_FROM = 30  # points of single batches, which are noisy, from which a running mean is drawn over them

Line = Mapping[str, Any]  # of metrics.jsonl


def training_curves(metrics: Sequence[Line], phases: Sequence[tuple[str, float]], eval_split: str) -> Figure:
    """Loss, top-1 and learning rate of one run over epochs.

    Args:
      metrics: lines of metrics.jsonl.
      phases: name and first epoch of each.
      eval_split: the split that the lines of kind `eval` are of.
    """
    train = [line for line in metrics if line["kind"] == "train"]
    held_out = [line for line in metrics if line["kind"] == "eval"]
    color = SPLIT_COLORS.get(eval_split, HELD_OUT)
    figure = new_figure(5.2, 7)
    loss, top1, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.2))
    for axes, name in ((loss, "loss"), (top1, "top1")):
        _plot_smoothed(axes, *_series(train, name))
        axes.plot(*_series(held_out, name), color=color, label=eval_split, marker="o", ms=4)
        axes.margins(x=0.02)
        axes.grid(axis="y", color=GRID, lw=0.6)
    rate.plot(*_series(train, "learning_rate"), color=GRAY)
    loss.set(ylabel="loss, nats", ylim=(0, _top(metrics, "loss")))
    top1.set(ylabel="top-1", ylim=(0, 1.02))
    top1.yaxis.set_major_formatter(percent())
    rate.set(ylabel="learning rate", xlabel="epoch")
    rate.set_ylim(bottom=0)
    for axes in (loss, top1, rate):
        _mark_phases(axes, phases, named=axes is loss)
    loss.legend(loc="best", frameon=False)
    set_title(figure, _training_message(train, held_out, eval_split))
    return figure


def _training_message(train: Sequence[Line], held_out: Sequence[Line], eval_split: str) -> str:
    if held_out:
        last = held_out[-1]
        return f"{last['top1']:.1%} top-1 on {eval_split} after {_epochs(last)}"
    return f"training loss {train[-1]['loss']:.3g} after {_epochs(train[-1])}" if train else "no step yet"


def _epochs(line: Line) -> str:
    return f"{line['epoch']:.3g} {noun_after(line['epoch'], 'epoch')}"


def _plot_smoothed(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Single batches, faint where they are many, and then their running mean."""
    if len(x) > SMOOTHED_FROM:
        axes.plot(x, y, color=TRAIN, alpha=0.25, lw=0.8)
        width = max(3, len(y) // 30)
        sums = np.cumsum(np.insert(y, 0, 0))
        low = np.maximum(np.arange(1, len(y) + 1) - width, 0)
        y = (sums[1:] - sums[low]) / (np.arange(1, len(y) + 1) - low)
    axes.plot(x, y, color=TRAIN, label="train, augmented")


def _mark_phases(axes: Axes, phases: Sequence[tuple[str, float]], *, named: bool) -> None:
    """A dotted line where each phase begins, and its name above it."""
    for name, epoch in phases:
        axes.axvline(epoch, color=GRAY, lw=0.8, ls=":")
        if named:
            axes.annotate(
                name, (epoch, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
                fontsize=9, color=GRAY,
            )  # fmt: skip


def throughput_curves(metrics: Sequence[Line], phases: Sequence[tuple[str, float]]) -> Figure | None:
    """Images per second and waiting for input over a run. None before the first step.

    Args:
      metrics: lines of metrics.jsonl.
      phases: name and first epoch of each.
    """
    train = [line for line in metrics if line["kind"] == "train"]
    epochs, rates = _series(train, "images_per_second")
    if not len(epochs):
        return None
    waiting = _series(train, "waiting_percent")[1] / 100
    figure = new_figure(5.2, 4)
    rate, wait = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    marker = "o" if len(rates) < SMOOTHED_FROM else ""
    rate.plot(epochs, rates, color=BLUE, marker=marker, ms=3)
    wait.fill_between(epochs, waiting, color=RED, alpha=0.35, lw=0)
    wait.plot(epochs, waiting, color=RED, marker=marker, ms=3)
    rate.set(ylabel="images/s")
    rate.set_ylim(bottom=0)
    wait.set(ylabel="waiting\nfor input", xlabel="epoch", ylim=(0, max(0.1, 1.1 * max(waiting))))
    wait.yaxis.set_major_formatter(percent())
    for axes in (rate, wait):
        _mark_phases(axes, phases, named=axes is rate)
    set_title(
        figure,
        f"{np.median(rates):,.0f} images/s (median); the device waits for input {np.median(waiting):.1%} of the time",
    )
    return figure


GPU_FIGURES = {
    "gpu_utilization_percent": ("busy", "%"),
    "gpu_memory_gib": ("memory", " GiB"),
    "gpu_watts": ("power", " W"),
}  # names in metrics.jsonl -> what it is, unit


def gpu_curves(metrics: Sequence[Line]) -> Figure | None:
    """Load, memory and power of the GPUs over a run. None where its log tells nothing of them."""
    train = [line for line in metrics if line["kind"] == "train"]
    series = {what: _series(train, name) for name, what in GPU_FIGURES.items()}
    series = {what: points for what, points in series.items() if len(points[0])}
    if not series:
        return None
    figure = new_figure(5.2, 0.8 + 1.5 * len(series))
    for axes, ((what, unit), (epochs, values)) in zip(
        figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0], series.items(), strict=True
    ):
        axes.plot(epochs, values, color=BLUE, marker="o" if len(values) < SMOOTHED_FROM else "", ms=3)
        axes.set(ylabel=f"{what}, {unit.strip()}", ylim=(0, 100 if unit == "%" else 1.1 * max(values.max(), 1)))
    axes.set_xlabel("epoch")
    medians = ", ".join(f"{what} {np.median(values):,.3g}{unit}" for (what, unit), (_, values) in series.items())
    set_title(figure, f"GPU: {medians} (medians)")
    return figure


def comparison_curves(metrics: Mapping[str, Sequence[Line]]) -> Figure:
    """Loss and top-1 of several runs over epochs, one color each; dashed: training, solid with dots: held out.

    Args:
      metrics: name -> lines of that run's metrics.jsonl.
    """
    figure = new_figure(5.2, 6.5)
    loss, top1 = figure.subplots(2, 1, sharex=True)
    styles: dict[str, dict[str, Any]] = {
        "train": {"ls": "--", "lw": 0.8, "alpha": 0.6},
        "eval": {"marker": "o", "ms": 4, "lw": 1.8},
    }
    if len(metrics) > FEW_RUNS:  # else nothing could be told apart
        del styles["train"]
    for i, (name, lines) in enumerate(metrics.items()):
        for axes, key in ((loss, "loss"), (top1, "top1")):
            for kind, style in styles.items():
                x, y = _series([line for line in lines if line["kind"] == kind], key)
                if len(x):
                    label = f"{shorten_middle(name, 30)}, {'training' if kind == 'train' else 'held out'}"
                    line = {"ls": LINES[i // len(PALETTE) % len(LINES)]} | style
                    axes.plot(x, y, color=PALETTE[i % len(PALETTE)], label=label, **line)
    highest = max((_top(lines, "loss") for lines in metrics.values()), default=1.0)
    loss.set(ylabel="loss, nats", ylim=(0, highest))
    top1.set(xlabel="epoch", ylabel="top-1", ylim=(0, 1.02))
    top1.yaxis.set_major_formatter(percent())
    if top1.get_lines():
        handles, names = top1.get_legend_handles_labels()
        figure.legend(handles, names, fontsize=8, frameon=False, loc="outside lower left", ncols=2)
    finals = {name: value for name, lines in metrics.items() if (value := final_top1(lines)) is not None}
    if finals:
        best = max(finals.values())
        first, *more = (name for name, value in finals.items() if value == best)
        who = f"{count(1 + len(more), 'run')} end" if more else f"{shorten_middle(first, 30)} ends"
        set_title(figure, f"{who} highest, at {best:.1%} held-out top-1")
    return figure


def _top(lines: Sequence[Line], name: str) -> float:
    """The upper end of an axis that begins at 0 and shows all values of that name."""
    _, values = _series(lines, name)
    return 1.05 * float(values.max()) or 1.0 if len(values) else 1.0


def final_top1(metrics: Sequence[Line]) -> float | None:
    """Top-1 of the last held-out evaluation in metrics.jsonl."""
    _, values = _series([line for line in metrics if line["kind"] == "eval"], "top1")
    return float(values[-1]) if len(values) else None


def _series(lines: Sequence[Line], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values, where there is a finite one."""
    points = [(line["epoch"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]
    x, y = np.array(points, float).reshape(-1, 2).T
    return x, y


def learning_rate_range(rates: np.ndarray, losses: np.ndarray, suggestion: float) -> Figure:
    """Smoothed loss over the rising learning rate of a range test, with the rate to use."""
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    axes.semilogx(rates, losses, color=TRAIN)
    axes.axvline(suggestion, color=RED, ls="--")
    axes.annotate(f" {suggestion:.2g}", (suggestion, 0.96), xycoords=("data", "axes fraction"), color=RED, va="top")
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed, nats", ylim=(0, 1.5 * losses[0]))
    axes.grid(axis="y", color=GRID, lw=0.6)
    set_title(figure, f"Train at a peak learning rate of about {suggestion:.2g}")
    return figure
