"""The images of an evaluation: confusion, classes, ROC and PR, calibration, curves of several runs, galleries.

Each function returns a Matplotlib figure whose title says its message, legible with 2 classes and with 1,000.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shardline.tools.html_report import PALETTE, new_figure
from shardline.trainer.evaluation import metrics

BLUE, ORANGE, GREEN, RED = PALETTE[:4]
GRAY = "#8c959f"
MAX_NAMED = 40  # classes whose names still fit along an axis
MAX_WRITTEN = 16  # classes for which the cells still hold a number
MAX_CURVES = 6  # classes whose curves can be told apart
LISTED = 14  # bars in the list beside an image of too many classes


def short(name: str, length: int = 22) -> str:
    """A class name cut in its middle, so that its telling ends stay."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return name[: length - 1 - half] + "…" + name[-half:]


# ------------------------------------------------------------------------------------ confusion


def confusion(matrix: np.ndarray, labels: Sequence[str]) -> Any:
    """Rows are true classes, shaded by share of the row; too many to name are pooled, with the worst pairs listed."""
    n = len(labels)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    pairs = metrics.confused_pairs(matrix, LISTED)
    side = min(9.0, 3.4 + 0.35 * n)
    if n <= MAX_NAMED:
        figure = new_figure(side + 1.2 + 0.8 * (n <= 4), side)
        axes = figure.add_subplot()
        size = 9 if n <= 20 else 7
        names = [short(name) for name in labels]
        axes.set_xticks(range(n), names, rotation=90 if n > 4 else 0, fontsize=size)
        axes.set_yticks(range(n), names, fontsize=size)
    else:
        figure = new_figure(13, 7.5)
        axes, beside = figure.subplots(1, 2, width_ratios=(1.5, 1))
        _list_pairs(beside, pairs, matrix, labels)
        share = _pool(share, 125)
    extent = None if n <= MAX_NAMED else (-0.5, n - 0.5, n - 0.5, -0.5)
    from matplotlib.colors import PowerNorm

    # The square root keeps single mistakes visible beside a full diagonal.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), extent=extent, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8, format=_percent())
    if n <= MAX_WRITTEN:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                axes.text(
                    column, row, f"{count:,}", ha="center", va="center", fontsize=8,
                    color="white" if share[row, column] > 0.35 else "black",
                )  # fmt: skip
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.suptitle(_confusion_message(pairs, matrix, labels), fontsize=11)
    return figure


def _confusion_message(pairs: list[tuple[int, int, int]], matrix: np.ndarray, labels: Sequence[str]) -> str:
    right = f"{np.trace(matrix):,} of {matrix.sum():,} right"
    if not pairs:
        return right
    true, predicted, count = pairs[0]
    return (
        f"{right}; most often confused: {short(labels[true])} taken for {short(labels[predicted])} "
        f"({count:,} of {matrix[true].sum():,})"
    )


def _list_pairs(axes: Any, pairs: list[tuple[int, int, int]], matrix: np.ndarray, labels: Sequence[str]) -> None:
    names = [f"{short(labels[true], 18)} → {short(labels[predicted], 18)}" for true, predicted, _ in pairs]
    counts = [count for _, _, count in pairs]
    _bars(axes, names, counts, RED, [f" {count:,} of {matrix[true].sum():,}" for true, _, count in pairs])
    axes.set(title="most confused pairs", xlabel="records")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _pool(share: np.ndarray, bins: int) -> np.ndarray:
    """Largest cell in each tile: a lone mistake among a million cells stays visible."""
    starts = np.unique(np.linspace(0, len(share), min(bins, len(share)), endpoint=False).astype(int))
    return np.maximum.reduceat(np.maximum.reduceat(share, starts, axis=0), starts, axis=1)


# -------------------------------------------------------------------------------------- classes


def classes(result: metrics.ClassScores, labels: Sequence[str]) -> Any:
    """Recall (bars) and precision (dots) of each class that occurs, worst first."""
    seen = np.flatnonzero(result.support)
    order = seen[np.argsort(result.recall[seen], kind="stable")]
    many = len(order) > MAX_NAMED
    listed = order[:LISTED] if many else order
    if many:
        figure = new_figure(13, 5.5)
        axes, listing = figure.subplots(1, 2, width_ratios=(1.5, 1))
        rank = np.arange(1, len(order) + 1)
        axes.fill_between(rank, result.recall[order], step="mid", color=BLUE, alpha=0.3, lw=0)
        axes.plot(rank, result.recall[order], color=BLUE, drawstyle="steps-mid")
        axes.plot(rank, result.precision[order], ".", color=ORANGE, ms=4, alpha=0.6)
        axes.set(
            xlabel="class, from lowest to highest recall",
            ylabel="recall (line) and precision (dots)",
            ylim=(0, 1.02),
            xlim=(0.5, len(order) + 0.5),
        )
        axes.yaxis.set_major_formatter(_percent())
        listing.set_title(f"the {LISTED} of lowest recall", fontsize=10)
    else:
        figure = new_figure(8, max(2.4, 1.2 + 0.26 * len(listed)))
        listing = figure.add_subplot()
    _bars(listing, [short(labels[c]) for c in listed], result.recall[listed], BLUE, [""] * len(listed))
    listing.plot(result.precision[listed], np.arange(len(listed)), "o", color=ORANGE, ms=6, mec="white")
    for row, c in enumerate(listed):  # beside the bars, where no dot lies
        listing.text(1.03, row, f"{result.recall[c]:.0%} of {result.support[c]:,}", fontsize=8, va="center")
    listing.set(xlim=(0, 1.2), ylim=(len(listed) - 0.4, -0.6), xlabel="recall (bar) and precision (dot)")
    listing.set_xticks(np.linspace(0, 1, 6))
    listing.xaxis.set_major_formatter(_percent())
    figure.suptitle(_classes_message(result, order, labels), fontsize=11)
    return figure


def _classes_message(result: metrics.ClassScores, order: np.ndarray, labels: Sequence[str]) -> str:
    worst, best = order[0], order[-1]
    message = f"Recall runs from {result.recall[worst]:.0%} ({short(labels[worst])}) to {result.recall[best]:.0%}"
    return message + (f" ({short(labels[best])})" if len(order) <= MAX_NAMED else f"; macro-F1 {result.macro_f1:.3f}")


def _bars(axes: Any, names: Sequence[str], values: Any, color: str, texts: Sequence[str]) -> None:
    """Horizontal bars from zero, first on top, each with its text at its end."""
    rows = np.arange(len(names))
    bars = axes.barh(rows, values, color=color, height=0.72)
    axes.bar_label(bars, texts, fontsize=8)
    axes.set_yticks(rows, names, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)


# ------------------------------------------------------------------------------------- ROC and PR


def detection(probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str]) -> Any | None:
    """ROC and precision-recall, one class against the rest; of many classes, the spread and the three worst.

    None when fewer than two classes occur.
    """
    wanted = [1] if len(labels) == 2 else range(len(labels))
    found = {c: metrics.detection(probabilities[:, c], targets == c) for c in wanted}
    curves = {c: curve for c, curve in found.items() if curve is not None}
    if not curves:
        return None
    figure = new_figure(11, 4.8)
    roc, pr = figure.subplots(1, 2)
    roc.plot([0, 1], [0, 1], ":", color=GRAY, lw=1)
    worst_first = sorted(curves, key=lambda c: curves[c].roc_auc)
    if len(curves) > MAX_CURVES:
        grid = np.linspace(0, 1, 201)
        for axes, lines in (
            (roc, [np.interp(grid, curve.false_positive_rate, curve.recall) for curve in curves.values()]),
            (pr, [np.interp(grid, curve.recall, curve.precision) for curve in curves.values()]),
        ):
            low, middle, high = np.quantile(lines, [0.1, 0.5, 0.9], axis=0)
            axes.fill_between(grid, low, high, color=BLUE, alpha=0.2, lw=0, label="10th to 90th percentile")
            axes.plot(grid, middle, color=BLUE, label=f"median of {len(curves):,} classes")
        worst_first = worst_first[:3]
    colors = (ORANGE, RED, PALETTE[4], GREEN, PALETTE[5], BLUE)  # blue last: it is the median's
    for c, color in zip(worst_first, colors, strict=False):
        curve = curves[c]
        label = f"{short(labels[c])}: area {curve.roc_auc:.3f}"
        roc.plot(curve.false_positive_rate, curve.recall, color=color, label=label)
        pr.plot(curve.recall, curve.precision, color=color)
    roc.legend(fontsize=8, loc="lower right", frameon=False)
    roc.set(xlabel="false positive rate", ylabel="recall", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    pr.set(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    for axes in (roc, pr):
        axes.spines[["top", "right"]].set_visible(False)
    mean = np.mean([curve.roc_auc for curve in curves.values()])
    precision = np.mean([curve.average_precision for curve in curves.values()])
    subject = short(labels[1]) if len(labels) == 2 else "each class against the rest"
    figure.suptitle(f"{subject}: mean area under ROC {mean:.3f}, mean average precision {precision:.3f}", fontsize=11)
    return figure


# ----------------------------------------------------------------------------------- calibration


def calibration(before: metrics.Reliability, after: metrics.Reliability | None = None, temperature: float = 1.0) -> Any:
    """Accuracy against confidence, and how many records lie where."""
    figure = new_figure(6.4, 5.6)
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    upper.plot([0, 1], [0, 1], ":", color=GRAY, lw=1)
    upper.text(0.03, 0.07, "perfect", color=GRAY, fontsize=8, rotation=35)
    series = [(before, ORANGE, "as trained")]
    if after is not None:
        series.append((after, BLUE, f"temperature {temperature:.2f}"))
    width = np.diff(before.edges)[0] / (len(series) + 0.5)
    for i, (result, color, name) in enumerate(series):
        used = result.count > 0
        label = f"{name}: ECE {result.ece:.1%}"
        upper.plot(result.confidence[used], result.accuracy[used], "o-", color=color, ms=5, label=label)
        lower.bar(result.edges[:-1] + width * (i + 0.75), result.count, width, color=color)
    upper.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # where no point lies
    upper.set(ylabel="accuracy", ylim=(0, 1.03), xlim=(0, 1.01))
    lower.set(xlabel="confidence of the prediction", ylabel="records")
    lower.yaxis.get_major_locator().set_params(integer=True)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(_percent())
    upper.yaxis.set_major_formatter(_percent())
    n = before.count.sum()
    sure, right = np.sum(before.confidence * before.count) / n, np.sum(before.accuracy * before.count) / n
    verdict = "too sure" if sure > right + 0.02 else "not sure enough" if sure < right - 0.02 else "well calibrated"
    figure.suptitle(f"Mean confidence {sure:.1%}, accuracy {right:.1%}: {verdict}", fontsize=11)
    return figure


# ---------------------------------------------------------------------------------- over a run


def timeline(rows: Sequence[Mapping[str, Any]], phases: Sequence[tuple[str, float]]) -> Any | None:
    """Throughput and waiting for input over a run, from its metrics.jsonl. None before the first step.

    Args:
      phases: name and first epoch of each.
    """
    rows = [row for row in rows if row.get("kind") == "train" and _finite(row, "images_per_second")]
    if not rows:
        return None
    epochs = [row["epoch"] for row in rows]
    rates = [row["images_per_second"] for row in rows]
    waiting = [row.get("waiting_percent", 0.0) / 100 for row in rows]
    figure = new_figure(8, 4.6)
    rate, wait = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    marker = "o" if len(rows) < 30 else ""
    rate.plot(epochs, rates, color=BLUE, marker=marker, ms=3)
    wait.fill_between(epochs, waiting, color=RED, alpha=0.35, lw=0)
    wait.plot(epochs, waiting, color=RED, marker=marker, ms=3)
    rate.set(ylabel="images / s")
    rate.set_ylim(bottom=0)
    wait.set(ylabel="waiting\nfor input", xlabel="epoch", ylim=(0, max(0.1, 1.1 * max(waiting))))
    wait.yaxis.set_major_formatter(_percent())
    for axes in (rate, wait):
        axes.spines[["top", "right"]].set_visible(False)
        for name, epoch in phases[1:]:
            axes.axvline(epoch, color=GRAY, lw=1, ls=":")
            axes.annotate(f" {name}", (epoch, 1), xycoords=("data", "axes fraction"), fontsize=8, color=GRAY, va="top")
    figure.suptitle(
        f"{np.median(rates):,.0f} images/s (median); "
        f"input keeps the device waiting {np.median(waiting):.1%} of the time",
        fontsize=11,
    )
    return figure


def run_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Loss and top-1 of several runs over epochs, one color each; dashed: training, solid with dots: held out.

    Args:
      runs: name -> rows of that run's metrics.jsonl.
    """
    figure = new_figure(11, 4.4)
    loss, top1 = figure.subplots(1, 2)
    styles = {"train": {"ls": "--", "lw": 0.8, "alpha": 0.6}, "eval": {"marker": "o", "ms": 4, "lw": 1.8}}
    for i, (name, rows) in enumerate(runs.items()):
        for axes, key in ((loss, "loss"), (top1, "top1")):
            for kind, style in styles.items():
                points = [(row["epoch"], row[key]) for row in rows if row.get("kind") == kind and _finite(row, key)]
                if points:
                    label = f"{short(name, 30)}, {'training' if kind == 'train' else 'held out'}"
                    axes.plot(*np.array(points, float).T, color=PALETTE[i % len(PALETTE)], label=label, **style)
    loss.set(xlabel="epoch", ylabel="loss, nats")
    top1.set(xlabel="epoch", ylabel="top-1")
    loss.set_ylim(bottom=0)
    top1.set_ylim(0, 1)
    top1.yaxis.set_major_formatter(_percent())
    for axes in (loss, top1):
        axes.spines[["top", "right"]].set_visible(False)
    if top1.get_lines():
        top1.legend(fontsize=8, frameon=False, loc="lower right")
    finals = {name: value for name, rows in runs.items() if (value := final_top1(rows)) is not None}
    if finals:
        best = max(finals, key=lambda name: finals[name])
        figure.suptitle(f"{short(best, 30)} ends highest, at {finals[best]:.1%} held-out top-1", fontsize=11)
    return figure


def final_top1(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Top-1 of the last held-out evaluation in metrics.jsonl."""
    values = [row["top1"] for row in rows if row.get("kind") == "eval" and _finite(row, "top1")]
    return float(values[-1]) if values else None


def _finite(row: Mapping[str, Any], key: str) -> bool:
    value = row.get(key)
    return isinstance(value, (int, float)) and math.isfinite(value)


# ------------------------------------------------------------------------------------ galleries


def gallery(images: Sequence[tuple[np.ndarray | None, str, str]], columns: int = 4) -> Any:
    """A grid of images with a bold first line and a plain second; None is drawn as an empty gray tile."""
    columns = min(columns, max(1, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    figure = new_figure(2.6 * columns, 3.0 * rows)
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes, (image, first, second) in zip(grid, images, strict=False):
        if image is None:
            axes.set_facecolor("#eaeef2")
            axes.text(0.5, 0.5, "✗", fontsize=36, color=RED, ha="center", va="center", transform=axes.transAxes)
            axes.set_box_aspect(1)
        else:
            axes.imshow(image)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(first, fontsize=9, fontweight="bold")
        axes.set_xlabel(second, fontsize=8)
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    return figure


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1)  # as many decimals as the ticks need
