"""Numbers that judge a model, as pure functions of probabilities [records, classes] and labels [records].

Sums are float64 and run over records in record order, so the same predictions give the same digits anywhere. The tests
hold each against scikit-learn or SciPy. No TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# ------------------------------------------------------------------------------------------- hits


def label_ranks(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rank of each record's own label, 0 = most probable; top-k accuracy is the share of ranks below k.

    Among equal probabilities the lower class comes first, as in `np.argmax`, so a constant prediction is right for
    class 0 only, never for every class. A label whose probability is NaN comes last.
    """
    own = probabilities[np.arange(len(labels)), labels][:, None]
    not_lower_class = np.arange(probabilities.shape[1])[None, :] >= np.asarray(labels)[:, None]
    after_it = (probabilities < own) | ((probabilities == own) & not_lower_class)
    ranks: np.ndarray = np.sum(~after_it, axis=1)
    return ranks


def mcnemar(first_hits: np.ndarray, second_hits: np.ndarray) -> tuple[int, int, float]:
    """Exact McNemar test: records only the first got right, only the second, and the two-sided p-value."""
    first_only = int(np.sum(first_hits & ~second_hits))
    second_only = int(np.sum(second_hits & ~first_hits))
    n = first_only + second_only
    if n == 0:
        return 0, 0, 1.0
    ways = [
        math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2))
        for i in range(min(first_only, second_only) + 1)
    ]
    return first_only, second_only, min(1.0, 2 * math.fsum(ways))


def holm(p_values: Sequence[float], family: int) -> list[float]:
    """p-values as those of `family` tests made together, of which these are the smallest (Holm, 1979).

    Those below 5% are all true in at least 19 of 20 families.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    raised = (family - np.arange(len(order))) * np.asarray(p_values)[order]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(raised))
    return [float(p) for p in adjusted]


# ----------------------------------------------------------------------------------- per class


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [true class, predicted class]: how many records."""
    cells = np.bincount(np.asarray(labels) * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class ClassScores:
    """One entry a class. What has no denominator (a class never seen, never predicted) counts as 0."""

    support: np.ndarray
    predicted: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur, as label or as prediction (scikit-learn's definition)."""
        return float(np.mean(self.f1[(self.support > 0) | (self.predicted > 0)]))


def class_scores(confusion: np.ndarray) -> ClassScores:
    """Precision, recall and F1 of each class."""
    hits = np.diagonal(confusion)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return ClassScores(
        support, predicted, _ratio(hits, predicted), _ratio(hits, support), _ratio(2 * hits, support + predicted)
    )


def confused_pairs(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """The `count` largest off-diagonal cells as (true class, predicted class, records), largest first."""
    wrong = confusion - np.diag(np.diagonal(confusion))
    cells = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [(int(cell) // len(wrong), int(cell) % len(wrong)) for cell in cells]
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return ratio


# --------------------------------------------------------------------------------- uncertainty


def bootstrap_interval(
    confusion: np.ndarray, statistic: Callable[[np.ndarray], float], *, rounds: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95% percentile bootstrap interval of any statistic of a confusion matrix.

    Drawing n records with replacement draws a multinomial number from each cell, so cells are drawn, not records:
    the same distribution at a cost that does not grow with the records.
    """
    counts = confusion.ravel()
    used = np.flatnonzero(counts)
    n = int(counts.sum())
    random = np.random.default_rng([seed, rounds])
    values = np.empty(rounds)
    resampled = np.zeros_like(counts)
    for i in range(rounds):
        resampled[used] = random.multinomial(n, counts[used] / n)
        values[i] = statistic(resampled.reshape(confusion.shape))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def accuracy(confusion: np.ndarray) -> float:
    """Share of records on the diagonal."""
    return float(np.trace(confusion) / confusion.sum())


# --------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal-width bins; empty bins hold 0."""

    edges: np.ndarray  # [bins + 1]
    count: np.ndarray
    confidence: np.ndarray  # mean in each bin
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: |accuracy - confidence|, averaged over records."""
        return self._error(self.count, self.count * self.accuracy)

    def ece_interval(self, rounds: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95% percentile bootstrap interval of the ECE. Noise can only add to an ECE, so small samples lie high."""
        random, n = np.random.default_rng([seed, rounds]), int(self.count.sum())
        counts = random.multinomial(n, self.count / n, size=rounds)
        values = [self._error(count, random.binomial(count, self.accuracy)) for count in counts]
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)

    def ece_by_chance(self, rounds: int = 1000, seed: int = 0) -> float:
        """The ECE that a model of this confidence, perfectly calibrated, exceeds on one sample of this size in 20."""
        random = np.random.default_rng([seed, rounds])
        likely = np.clip(self.confidence, 0, 1)
        values = [self._error(self.count, random.binomial(self.count, likely)) for _ in range(rounds)]
        return float(np.quantile(values, 0.95))

    def _error(self, count: np.ndarray, hits: np.ndarray) -> float:
        return float(np.sum(np.abs(hits - count * self.confidence)) / np.sum(count))


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> Reliability:
    """Bin the top-1 predictions by confidence; a confidence on an edge belongs to the bin below it."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    hits = label_ranks(probabilities, labels) == 0
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.searchsorted(edges[1:-1], confidence)
    count = np.bincount(bin_of, minlength=bins)
    return Reliability(
        edges,
        count,
        _ratio(np.bincount(bin_of, confidence, minlength=bins), count),
        _ratio(np.bincount(bin_of, hits, minlength=bins), count),
    )


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-probability of the label, in nats; a probability of 0 counts as the smallest float32."""
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.mean(np.log(np.maximum(own, SMALLEST))))


SMALLEST = float(np.finfo(np.float32).tiny)
TEMPERATURES = (0.05, 20.0)  # the range searched; a fit at its end means the split cannot tell (all right, or noise)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The T that minimizes the log loss of softmax(log p / T). Fit it on a split that is not the evaluated one.

    The loss is convex in 1/T, so bisecting its derivative finds the one minimum.
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))
    own = logits[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        scaled = np.exp(inverse * (logits - logits.max(axis=1, keepdims=True)))
        return float(np.mean(np.sum(scaled * logits, axis=1) / np.sum(scaled, axis=1) - own))

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) <= 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T): the same ranking, T > 1 less confident, T < 1 more."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST)) / temperature
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    calibrated: np.ndarray = scaled / scaled.sum(axis=1, keepdims=True)
    return calibrated


# ------------------------------------------------------------------------------- ROC and PR


@dataclass(frozen=True)
class BinaryCurves:
    """One class against the rest at every threshold, strictest first."""

    false_positive_rate: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    roc_auc: float
    average_precision: float


def one_vs_rest(scores: np.ndarray, positive: np.ndarray) -> BinaryCurves | None:
    """ROC and precision-recall of one class. None when only positives or only negatives are there."""
    positives, negatives = int(np.sum(positive)), int(np.sum(~positive))
    if not positives or not negatives:
        return None
    order = np.argsort(-scores, kind="stable")
    true, false = np.cumsum(positive[order]), np.cumsum(~positive[order])
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)  # equal scores pass a threshold together
    true, false = true[last_of_tie], false[last_of_tie]
    recall, precision = true / positives, true / (true + false)
    fpr = false / negatives
    recall0, fpr0 = np.append(0.0, recall), np.append(0.0, fpr)
    return BinaryCurves(
        false_positive_rate=fpr0,
        recall=recall0,
        precision=np.append(1.0, precision),
        roc_auc=float(np.sum(np.diff(fpr0) * (recall0[1:] + recall0[:-1]) / 2)),
        average_precision=float(np.sum(np.diff(recall0) * precision)),
    )
