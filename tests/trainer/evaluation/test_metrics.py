"""The evaluation's numbers: literal goldens worked out by hand, and brute force beside every clever formula."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardline.trainer.evaluation import metrics


def random_predictions(seed, records, classes):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(records, classes)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), random.integers(classes, size=records)


GOLDEN = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], np.float32)
GOLDEN_LABELS = np.array([0, 2, 1, 2])


def test_top_k_golden():
    assert metrics.top_k(GOLDEN, GOLDEN_LABELS, 1) == 0.5
    assert metrics.top_k(GOLDEN, GOLDEN_LABELS, 2) == 1.0
    assert metrics.top_k(GOLDEN, GOLDEN_LABELS, 5) == 1.0  # more than there are classes


@given(st.integers(0, 10_000), st.integers(2, 7))
@settings(max_examples=25, deadline=None)
def test_top_k_equals_sorting(seed, classes):
    probabilities, labels = random_predictions(seed, 20, classes)
    probabilities = np.round(probabilities, 1)  # many ties
    for k in range(1, classes + 1):
        brute = [label in np.argsort(-row, kind="stable")[:k] for row, label in zip(probabilities, labels, strict=True)]
        assert metrics.top_k(probabilities, labels, k) == np.mean(brute)


def test_a_constant_prediction_is_not_right_for_everybody():
    labels = np.array([0, 1, 2, 3])
    assert metrics.top_k(np.full((4, 4), 0.25), labels, 1) == 0.25
    assert metrics.top_k(np.full((4, 4), 0.25), labels, 2) == 0.5


def test_confusion_and_class_scores_golden():
    confusion = metrics.confusion_matrix(GOLDEN_LABELS, GOLDEN.argmax(1), 3)
    assert confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    result = metrics.class_scores(confusion)
    assert result.support.tolist() == [1, 1, 2]
    assert result.precision.tolist() == [0.5, 0.0, 1.0]
    assert result.recall.tolist() == [1.0, 0.0, 0.5]
    assert result.f1 == pytest.approx([2 / 3, 0, 2 / 3])
    assert result.macro_f1 == pytest.approx(4 / 9)
    assert metrics.confused_pairs(confusion, 10) == [(1, 0, 1), (2, 1, 1)]


def test_a_class_that_never_occurs_does_not_lower_macro_f1():
    confusion = np.diag([3, 2, 0])
    assert metrics.class_scores(confusion).macro_f1 == 1.0


def test_ece_golden():
    # 4 records at confidence 0.75, 2 right: |0.5 - 0.75| on all of them.
    probabilities = np.array([[0.75, 0.25]] * 4)
    result = metrics.reliability(probabilities, np.array([0, 0, 1, 1]), bins=10)
    assert result.ece == pytest.approx(0.25)
    assert result.count.tolist() == [0, 0, 0, 0, 0, 0, 0, 4, 0, 0]


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_ece_equals_its_definition(seed):
    probabilities, labels = random_predictions(seed, 50, 3)
    confidence, hit = probabilities.max(1).astype(float), probabilities.argmax(1) == labels
    brute = 0.0
    for low, high in itertools.pairwise(np.linspace(0, 1, 16)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            brute += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert metrics.reliability(probabilities, labels).ece == pytest.approx(brute)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(true_temperature):
    probabilities, _ = random_predictions(1, 20_000, 4)
    drawn = np.random.default_rng(2).random((20_000, 1))
    labels = (probabilities.cumsum(axis=1) < drawn).sum(axis=1).clip(max=3)  # right as often as they claim
    skewed = metrics.apply_temperature(probabilities, 1 / true_temperature)  # undone by dividing by the truth
    found = metrics.fit_temperature(skewed, labels)
    assert found == pytest.approx(true_temperature, rel=0.05)
    losses = [metrics.log_loss(metrics.apply_temperature(skewed, found * t), labels) for t in (0.99, 1, 1.01)]
    assert min(losses) == losses[1]


def test_temperature_stays_finite_when_everything_is_right_or_wrong():
    sure = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert metrics.fit_temperature(sure, np.array([0, 1])) == pytest.approx(metrics.TEMPERATURES[0], rel=0.01)
    assert metrics.fit_temperature(sure, np.array([1, 0])) == pytest.approx(metrics.TEMPERATURES[1], rel=0.01)
    assert math.isfinite(metrics.log_loss(sure, np.array([1, 0])))


def test_temperature_keeps_the_ranking():
    probabilities, _ = random_predictions(3, 50, 6)
    warm = metrics.apply_temperature(probabilities, 2.5)
    assert (np.argsort(warm, axis=1) == np.argsort(probabilities, axis=1)).all()
    assert warm.sum(axis=1) == pytest.approx(np.ones(50))


def test_bootstrap_over_cells_equals_bootstrap_over_records():
    probabilities, labels = random_predictions(4, 200, 3)
    predicted = probabilities.argmax(1)
    confusion = metrics.confusion_matrix(labels, predicted, 3)

    def macro_f1(matrix):
        return metrics.class_scores(matrix).macro_f1

    random = np.random.default_rng(0)
    brute = []
    for _ in range(2000):
        drawn = random.integers(200, size=200)
        brute.append(macro_f1(metrics.confusion_matrix(labels[drawn], predicted[drawn], 3)))
    interval = metrics.bootstrap_interval(confusion, macro_f1, rounds=2000)
    assert interval == pytest.approx(np.quantile(brute, [0.025, 0.975]), abs=0.01)
    assert interval == metrics.bootstrap_interval(confusion, macro_f1, rounds=2000)  # the seed decides


def test_bootstrap_of_accuracy_covers_the_binomial_interval():
    low, high = metrics.bootstrap_interval(np.array([[80, 20], [0, 0]]), metrics.accuracy, rounds=5000)
    assert (low, high) == pytest.approx((0.72, 0.87), abs=0.011)  # 1.96 * sqrt(.8 * .2 / 100) = 0.078


def test_roc_and_pr_golden():
    result = metrics.one_vs_rest(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]))
    assert result.roc_auc == 0.75
    assert result.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert result.false_positive_rate.tolist() == [0, 0, 0.5, 0.5, 1]
    assert result.recall.tolist() == [0, 0.5, 0.5, 1, 1]


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_auc_is_the_chance_that_a_positive_beats_a_negative(seed):
    random = np.random.default_rng(seed)
    values, positive = random.integers(6, size=30) / 6, random.random(30) < 0.4
    if positive.all() or not positive.any():
        return
    pairs = [(p > n) + 0.5 * (p == n) for p in values[positive] for n in values[~positive]]
    assert metrics.one_vs_rest(values, positive).roc_auc == pytest.approx(np.mean(pairs))


def test_one_vs_rest_needs_both_kinds():
    assert metrics.one_vs_rest(np.array([0.1, 0.2]), np.array([True, True])) is None


def test_mcnemar_golden():
    first = np.array([True] * 10 + [False] * 2 + [True] * 5)
    second = np.array([False] * 10 + [True] * 2 + [True] * 5)
    ways = sum(math.comb(12, i) for i in range(3))
    only_first, only_second, p = metrics.mcnemar(first, second)
    assert (only_first, only_second) == (10, 2)
    assert p == pytest.approx(2 * ways / 2**12)  # 0.0386
    assert metrics.mcnemar(first, first) == (0, 0, 1.0)
    assert metrics.mcnemar(np.array([True, False]), np.array([False, True]))[2] == 1.0


def test_mcnemar_of_many_records_stays_finite():
    first = np.arange(20_000) < 10_500
    assert 0 < metrics.mcnemar(first, ~first)[2] < 1e-10
