"""Plots of an evaluation: confusion, classes, ROC and precision-recall, calibration; and galleries of predicted images.

Each function returns a figure whose title says its message, legible with 2 classes and with 1,000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from shardline.pipeline.cli import progress
from shardline.pipeline.wording import shorten_middle
from shardline.tools.plot_style import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    RED,
    SKY,
    Plot,
    ink_on,
    new_figure,
    percent,
    render,
    set_title,
    whole_numbers,
)
from shardline.trainer.evaluation import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from shardline.trainer.evaluation.metrics import BinaryCurves, ClassScores, Reliability
    from shardline.trainer.evaluation.results import Evaluation

MAX_NAMED = 40  # classes whose names still fit along an axis
MAX_WRITTEN = 16  # classes for which the cells still hold a number
MAX_CURVES = 6  # classes whose curves can be told apart
LISTED = 14  # bars in the list beside a plot of too many classes

Pairs = Sequence[tuple[int, int, int]]  # true class, predicted class, records


def draw(evaluation: Evaluation) -> dict[str, Plot]:
    """The plots of an evaluation, by file name; without `roc_pr` where only one class occurs."""
    rows, labels, calibrated = evaluation.predictions, evaluation.shown_labels, evaluation.calibrated
    drawings: dict[str, Callable[[], Figure | None]] = {
        "confusion": lambda: confusion(evaluation.confusion, labels),
        "classes": lambda: classes(metrics.class_scores(evaluation.confusion), labels),
        "roc_pr": lambda: roc_and_precision_recall(rows.probabilities, rows.labels, labels),
        "calibration": lambda: calibration(
            metrics.reliability(rows.probabilities, rows.labels),
            None if calibrated is None else metrics.reliability(calibrated, rows.labels),
            1.0 if calibrated is None else evaluation.metrics["calibration"]["temperature"],
        ),
    }
    plots = {}
    for name, drawing in progress(drawings.items(), total=len(drawings), desc="draw", unit="plot", leave=False):
        if (figure := drawing()) is not None:
            plots[name] = render(figure)
    return plots


# ------------------------------------------------------------------------------------ confusion


def confusion(matrix: np.ndarray, labels: Sequence[str]) -> Figure:
    """Rows are true classes, shaded by share of the row; too many to name are pooled, with the worst pairs listed."""
    from matplotlib.colors import PowerNorm

    n = len(labels)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    pairs = metrics.confused_pairs(matrix, LISTED)
    extent = None
    if n <= MAX_NAMED:
        side = min(9.0, 3.4 + 0.35 * n)
        figure = new_figure(side + 1.2 + 0.8 * (n <= 4), side)
        axes = figure.add_subplot()
        _name_classes(axes, labels)
    else:
        figure = new_figure(5.2, 9.5)
        axes, beside = _stacked(figure, 1.3)
        _list_pairs(beside, pairs, matrix, labels)
        extent = (-0.5, n - 0.5, n - 0.5, -0.5)
    # The square root keeps single mistakes visible beside a full diagonal.
    image = axes.imshow(_pool(share), "Blues", norm=PowerNorm(0.5, 0, 1), extent=extent, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8, format=percent())
    if n <= MAX_WRITTEN:
        _write_counts(axes, matrix, image.to_rgba(share))
    axes.set(xlabel="predicted class", ylabel="true class")
    set_title(figure, _confusion_message(pairs, matrix, labels))
    return figure


def _stacked(figure: Figure, ratio: float) -> tuple[Axes, Axes]:
    """Two axes, one below the other, the upper so many times as high; each as wide as its own labels let it be."""
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(ratio, 1))[:, 0]
    return upper.add_subplot(), lower.add_subplot()


def _name_classes(axes: Axes, labels: Sequence[str]) -> None:
    names, size = [shorten_middle(name) for name in labels], 9 if len(labels) <= 20 else 7
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)


def _write_counts(axes: Axes, matrix: np.ndarray, colors: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = ink_on(*colors[row, column, :3])
            axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=color)


def _confusion_message(pairs: Pairs, matrix: np.ndarray, labels: Sequence[str]) -> str:
    right = f"{np.trace(matrix):,} of {matrix.sum():,} right"
    if not pairs:
        return right
    true, predicted, count = pairs[0]
    return (
        f"{right}; most often confused: {shorten_middle(labels[true])} predicted as "
        f"{shorten_middle(labels[predicted])} ({count:,} of {matrix[true].sum():,})"
    )


def _list_pairs(axes: Axes, pairs: Pairs, matrix: np.ndarray, labels: Sequence[str]) -> None:
    names = [f"{shorten_middle(labels[true], 18)} → {shorten_middle(labels[guess], 18)}" for true, guess, _ in pairs]
    texts = [f" {count:,} of {matrix[true].sum():,}" for true, _, count in pairs]
    _bars(axes, names, [count for _, _, count in pairs], RED, texts)
    axes.set(title="most confused pairs", xlabel="records")
    axes.xaxis.set_major_locator(whole_numbers())


def _pool(share: np.ndarray, bins: int = 125) -> np.ndarray:
    """Largest cell in each tile: a lone mistake among a million cells stays visible."""
    starts = np.unique(np.linspace(0, len(share), min(bins, len(share)), endpoint=False).astype(int))
    return np.maximum.reduceat(np.maximum.reduceat(share, starts, axis=0), starts, axis=1)


# -------------------------------------------------------------------------------------- classes


def classes(scores: ClassScores, labels: Sequence[str]) -> Figure:
    """Recall (bars) and precision (dots) of each class that occurs, lowest recall first."""
    present = np.flatnonzero(scores.support)
    order = present[np.argsort(scores.recall[present], kind="stable")]
    if len(order) > MAX_NAMED:
        figure = new_figure(5.2, 8)
        axes, listing = _stacked(figure, 1.0)
        _recall_by_rank(axes, scores, order)
        _list_classes(listing, scores, order[:LISTED], labels)
        listing.set_title(f"the {LISTED} of lowest recall", fontsize=10)
    else:
        figure = new_figure(5.2, max(2.4, 1.2 + 0.26 * len(order)))
        _list_classes(figure.add_subplot(), scores, order, labels)
    set_title(figure, _classes_message(scores, order, labels))
    return figure


def _recall_by_rank(axes: Axes, scores: ClassScores, order: np.ndarray) -> None:
    rank = np.arange(1, len(order) + 1)
    axes.fill_between(rank, scores.recall[order], step="mid", color=BLUE, alpha=0.3, lw=0)
    axes.plot(rank, scores.recall[order], color=BLUE, drawstyle="steps-mid")
    axes.plot(rank, scores.precision[order], ".", color=ORANGE, ms=4, alpha=0.6)
    axes.set(xlabel="class, from lowest to highest recall", ylabel="recall (line) and precision (dots)")
    axes.set(ylim=(0, 1.02), xlim=(0.5, len(order) + 0.5))
    axes.yaxis.set_major_formatter(percent())


def _list_classes(axes: Axes, scores: ClassScores, listed: np.ndarray, labels: Sequence[str]) -> None:
    names = [shorten_middle(labels[c]) for c in listed]
    _bars(axes, names, scores.recall[listed], BLUE, [""] * len(listed))
    axes.plot(scores.precision[listed], np.arange(len(listed)), "o", color=ORANGE, ms=6, mec="white")
    for row, c in enumerate(listed):  # beside the bars, where no dot lies
        axes.text(1.03, row, f"{scores.recall[c]:.0%} of {scores.support[c]:,}", fontsize=8, va="center")
    axes.set(xlim=(0, 1.2), ylim=(len(listed) - 0.4, -0.6), xlabel="recall (bar) and precision (dot)")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(percent())


def _classes_message(scores: ClassScores, order: np.ndarray, labels: Sequence[str]) -> str:
    worst, best = order[0], order[-1]
    message = (
        f"Recall ranges from {scores.recall[worst]:.0%} ({shorten_middle(labels[worst])}) to {scores.recall[best]:.0%}"
    )
    few = len(order) <= MAX_NAMED
    return message + (f" ({shorten_middle(labels[best])})" if few else f"; macro-F1 {scores.macro_f1:.3f}")


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float] | np.ndarray, color: str, texts: list[str]) -> None:
    """Horizontal bars from zero, first on top, each with its text at its end."""
    rows = np.arange(len(names))
    bars = axes.barh(rows, values, color=color, height=0.72)
    axes.bar_label(bars, texts, fontsize=8)
    axes.set_yticks(rows, names, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.25)


# ------------------------------------------------------------------------------------- ROC and PR


def roc_and_precision_recall(probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str]) -> Figure | None:
    """ROC and precision-recall, one class against the rest; of many classes, the spread and the three worst.

    None when fewer than two classes occur.
    """
    wanted = [1] if len(labels) == 2 else range(len(labels))
    found = {c: metrics.one_vs_rest(probabilities[:, c], targets == c) for c in wanted}
    curves = {c: curve for c, curve in found.items() if curve is not None}
    if not curves:
        return None
    figure = new_figure(5.2, 8.6)
    roc, pr = figure.subplots(2, 1)
    roc.plot([0, 1], [0, 1], ":", color=GRAY, lw=1)
    worst_first = sorted(curves, key=lambda c: curves[c].roc_auc)
    if len(curves) > MAX_CURVES:
        _spread(roc, [(curve.false_positive_rate, curve.recall) for curve in curves.values()])
        _spread(pr, [(curve.recall, curve.precision) for curve in curves.values()])
        worst_first = worst_first[:3]
    for c, color in zip(worst_first, (ORANGE, RED, PINK, GREEN, SKY, BLUE), strict=False):  # blue is the median's
        label = f"{shorten_middle(labels[c])}: area {curves[c].roc_auc:.3f}"
        roc.plot(curves[c].false_positive_rate, curves[c].recall, color=color, label=label)
        pr.plot(curves[c].recall, curves[c].precision, color=color)
    roc.legend(fontsize=8, loc="lower right", frameon=False)
    roc.set(xlabel="false positive rate", ylabel="recall", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    pr.set(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    set_title(figure, _curves_message(curves, labels))
    return figure


def _spread(axes: Axes, curves: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """The median of many curves, and where four fifths of them lie."""
    grid = np.linspace(0, 1, 201)
    lines = [np.interp(grid, x, y) for x, y in curves]
    low, middle, high = np.quantile(lines, [0.1, 0.5, 0.9], axis=0)
    axes.fill_between(grid, low, high, color=BLUE, alpha=0.2, lw=0, label="10th to 90th percentile")
    axes.plot(grid, middle, color=BLUE, label=f"median of {len(lines):,} classes")


def _curves_message(curves: Mapping[int, BinaryCurves], labels: Sequence[str]) -> str:
    area = np.mean([curve.roc_auc for curve in curves.values()])
    precision = np.mean([curve.average_precision for curve in curves.values()])
    subject = shorten_middle(labels[1]) if len(labels) == 2 else "each class against the rest"
    return f"{subject}: mean area under ROC {area:.3f}, mean average precision {precision:.3f}"


# ----------------------------------------------------------------------------------- calibration


def calibration(before: Reliability, after: Reliability | None = None, temperature: float = 1.0) -> Figure:
    """Reliability diagram: accuracy over confidence, and how many records lie where."""
    figure = new_figure(5.2, 5.6)
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    upper.plot([0, 1], [0, 1], ":", color=GRAY, lw=1)
    upper.text(0.03, 0.07, "perfect", color=GRAY, fontsize=8, rotation=35)
    series = [(before, ORANGE, "as trained")]
    if after is not None:
        series.append((after, BLUE, f"temperature {temperature:.2f}"))
    width = np.diff(before.edges)[0] / (len(series) + 0.5)
    for i, (found, color, name) in enumerate(series):
        used = found.count > 0
        label = f"{name}: ECE {found.ece:.1%}"
        upper.plot(found.confidence[used], found.accuracy[used], "o-", color=color, ms=5, label=label)
        lower.bar(found.edges[:-1] + width * (i + 0.75), found.count, width, color=color)
    upper.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # where no point lies
    upper.set(ylabel="accuracy", ylim=(0, 1.03), xlim=(0, 1.01))
    lower.set(xlabel="confidence of the prediction", ylabel="records")
    lower.yaxis.set_major_locator(whole_numbers())
    for axis in (upper.xaxis, lower.xaxis, upper.yaxis):
        axis.set_major_formatter(percent())
    set_title(figure, _calibration_message(before))
    return figure


def _calibration_message(found: Reliability) -> str:
    """The ECE with its interval; overconfident and underconfident are said only beyond what chance gives."""
    low, high = found.ece_interval()
    message = f"ECE {found.ece:.1%} (95% interval {low:.1%} to {high:.1%})"
    if found.ece <= found.ece_by_chance():
        return f"{message}: no more than chance gives a calibrated model"
    n = found.count.sum()
    confidence, accuracy = (float(np.sum(x * found.count) / n) for x in (found.confidence, found.accuracy))
    error = 2 * math.sqrt(max(accuracy * (1 - accuracy), 1 / n) / n)
    excess = confidence - accuracy
    kind = "overconfident" if excess > error else "underconfident" if excess < -error else "too sure here, unsure there"
    return f"{message}: {kind}, {confidence:.1%} sure and {accuracy:.1%} right"


# ------------------------------------------------------------------------------------ galleries


def gallery(images: Sequence[tuple[np.ndarray | None, str, str]], columns: int = 4) -> Figure:
    """A grid of images with a bold first line and a plain second; None is drawn as an empty gray tile."""
    columns = min(columns, max(1, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    figure = new_figure(2.6 * columns, 3.0 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (image, first, second) in zip(grid, images, strict=False):
        if image is None:
            axes.set_facecolor("#eaeef2")
            axes.text(0.5, 0.5, "✗", fontsize=36, color=RED, ha="center", va="center", transform=axes.transAxes)
            axes.set_box_aspect(1)
            axes.spines[:].set_visible(False)
        else:
            axes.imshow(image)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(first, fontsize=9, fontweight="bold")
        axes.set_xlabel(second, fontsize=8)
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    return figure
