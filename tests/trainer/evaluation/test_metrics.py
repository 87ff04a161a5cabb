"""The evaluation's numbers beside scikit-learn's and SciPy's, with ties, absent classes and single-class splits; and
literal goldens worked out by hand."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import sklearn.calibration
import sklearn.metrics
import tensorflow as tf
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from shardline.trainer import step
from shardline.trainer.evaluation import metrics


@st.composite
def predictions(draw, least_classes=2):
    """Probabilities and labels: many ties, classes that never occur or are never predicted, splits of one class."""
    classes = draw(st.integers(least_classes, 6))
    records = draw(st.integers(1, 30))
    weights = draw(st.lists(st.integers(1, 4), min_size=records * classes, max_size=records * classes))
    weights = np.array(weights, float).reshape(records, classes)
    present = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes))
    labels = draw(st.lists(st.sampled_from(present), min_size=records, max_size=records))
    return weights / weights.sum(axis=1, keepdims=True), np.array(labels)


oracle = settings(max_examples=100, deadline=None)


def random_predictions(seed, records, classes):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(records, classes)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), random.integers(classes, size=records)


GOLDEN = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], np.float32)
GOLDEN_LABELS = np.array([0, 2, 1, 2])


# ------------------------------------------------------------------------------------------- hits


def top_k(probabilities, labels, k):
    return np.mean(metrics.label_ranks(probabilities, labels) < k)


def test_top_k_golden():
    assert top_k(GOLDEN, GOLDEN_LABELS, 1) == 0.5
    assert top_k(GOLDEN, GOLDEN_LABELS, 2) == 1.0
    assert top_k(GOLDEN, GOLDEN_LABELS, 5) == 1.0  # more than there are classes


@given(predictions(least_classes=3))
@oracle
def test_top_k_is_scikit_learns_and_of_equal_scores_the_lower_class_comes_first(drawn):
    probabilities, labels = drawn
    classes = probabilities.shape[1]
    for k in range(1, classes):
        # There the higher class comes first: the classes are counted from the other end.
        theirs = sklearn.metrics.top_k_accuracy_score(
            classes - 1 - labels, probabilities[:, ::-1], k=k, labels=np.arange(classes)
        )
        assert top_k(probabilities, labels, k) == pytest.approx(theirs)
    assert top_k(probabilities, labels, 1) == np.mean(probabilities.argmax(1) == labels)


@given(predictions(), st.integers(0, 29))
@settings(max_examples=20, deadline=None)
def test_the_training_step_ranks_by_the_same_rule(drawn, broken):
    probabilities, labels = drawn
    probabilities[broken % len(labels), 0] = np.nan
    theirs = step.label_ranks(tf.constant(probabilities, tf.float32), tf.constant(labels)).numpy()
    assert (metrics.label_ranks(probabilities.astype(np.float32), labels) == theirs).all()


def test_a_label_without_a_probability_is_never_right():
    assert metrics.label_ranks(np.full((1, 4), np.nan), np.array([2])).tolist() == [4]


def test_a_constant_prediction_is_right_for_one_class_alone():
    labels = np.array([0, 1, 2, 3])
    assert top_k(np.full((4, 4), 0.25), labels, 1) == 0.25
    assert top_k(np.full((4, 4), 0.25), labels, 2) == 0.5


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
@oracle
def test_mcnemar_is_the_binomial_test_of_the_records_in_which_two_models_differ(hits):
    first, second = np.array(hits).T
    first_only, second_only, p = metrics.mcnemar(first, second)
    assert (first_only, second_only) == (hits.count((True, False)), hits.count((False, True)))
    differing = first_only + second_only
    theirs = scipy.stats.binomtest(first_only, differing).pvalue if differing else 1.0
    assert p == pytest.approx(theirs)


def test_mcnemar_of_many_records_stays_finite():
    first = np.arange(20_000) < 10_500
    assert metrics.mcnemar(first, ~first)[2] == pytest.approx(scipy.stats.binomtest(9500, 20_000).pvalue)


def test_p_values_of_several_tests_are_those_of_rs_p_adjust():
    assert metrics.holm([0.01, 0.04, 0.03], 3) == pytest.approx([0.03, 0.06, 0.06])
    assert metrics.holm([0.02, 0.9], 2) == pytest.approx([0.04, 0.9])
    assert metrics.holm([0.02], 1) == [0.02] and metrics.holm([], 0) == []
    assert metrics.holm([0.001, 0.5], 66) == pytest.approx([0.066, 1])  # the others are larger


# ----------------------------------------------------------------------------------- per class


@given(predictions())
@oracle
def test_confusion_precision_recall_and_f1_are_scikit_learns(drawn):
    probabilities, labels = drawn
    classes, predicted = probabilities.shape[1], probabilities.argmax(1)
    confusion = metrics.confusion_matrix(labels, predicted, classes)
    assert (confusion == sklearn.metrics.confusion_matrix(labels, predicted, labels=np.arange(classes))).all()
    ours = metrics.class_scores(confusion)
    theirs = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(classes), zero_division=0
    )
    for mine, other in zip((ours.precision, ours.recall, ours.f1, ours.support), theirs, strict=True):
        assert mine == pytest.approx(other)
    macro_f1 = sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    assert ours.macro_f1 == pytest.approx(macro_f1)


def test_confusion_and_class_scores_golden():
    confusion = metrics.confusion_matrix(GOLDEN_LABELS, GOLDEN.argmax(1), 3)
    assert confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    result = metrics.class_scores(confusion)
    assert result.precision.tolist() == [0.5, 0.0, 1.0]
    assert result.recall.tolist() == [1.0, 0.0, 0.5]
    assert result.macro_f1 == pytest.approx(4 / 9)
    assert metrics.confused_pairs(confusion, 10) == [(1, 0, 1), (2, 1, 1)]


def test_a_class_that_never_occurs_does_not_lower_macro_f1():
    assert metrics.class_scores(np.diag([3, 2, 0])).macro_f1 == 1.0


@given(predictions())
@oracle
def test_roc_and_precision_recall_are_scikit_learns(drawn):
    probabilities, labels = drawn
    for c in range(probabilities.shape[1]):
        scores, positive = probabilities[:, c], labels == c
        found = metrics.one_vs_rest(scores, positive)
        if positive.all() or not positive.any():
            assert found is None
            continue
        assert found.roc_auc == pytest.approx(sklearn.metrics.roc_auc_score(positive, scores))
        assert found.average_precision == pytest.approx(sklearn.metrics.average_precision_score(positive, scores))
        fpr, recall, _ = sklearn.metrics.roc_curve(positive, scores, drop_intermediate=False)
        assert found.false_positive_rate == pytest.approx(fpr) and found.recall == pytest.approx(recall)
        precision, recall, _ = sklearn.metrics.precision_recall_curve(positive, scores)
        assert found.precision == pytest.approx(precision[::-1]) and found.recall == pytest.approx(recall[::-1])


# --------------------------------------------------------------------------------- calibration


def test_ece_golden():
    # 4 records at confidence 0.75, 2 right: |0.5 - 0.75| on all of them.
    probabilities = np.array([[0.75, 0.25]] * 4)
    result = metrics.reliability(probabilities, np.array([0, 0, 1, 1]), bins=10)
    assert result.ece == pytest.approx(0.25)
    assert result.count.tolist() == [0, 0, 0, 0, 0, 0, 0, 4, 0, 0]


def test_ece_intervals_are_those_of_the_records_resampled_one_by_one():
    random = np.random.default_rng(1)
    confidence = random.choice([0.55, 0.75, 0.95], size=300)
    right = random.random(300) < confidence - 0.1
    probabilities = np.stack([confidence, 1 - confidence], 1)
    labels = np.where(right, 0, 1)
    found = metrics.reliability(probabilities, labels)

    def ece(chosen, hits):
        return sum(abs(np.sum(hits[confidence[chosen] == c] - c)) for c in (0.55, 0.75, 0.95)) / len(chosen)

    draws = [random.integers(300, size=300) for _ in range(2000)]
    low, high = np.quantile([ece(chosen, right[chosen]) for chosen in draws], [0.025, 0.975])
    assert np.allclose(found.ece_interval(), (low, high), atol=0.01)
    every = np.arange(300)
    calibrated = [ece(every, random.random(300) < confidence) for _ in range(2000)]
    assert abs(found.ece_by_chance() - np.quantile(calibrated, 0.95)) < 0.005 < found.ece - found.ece_by_chance()


@given(predictions(), st.integers(1, 20))
@example((np.array([[5 / 7, 2 / 7]]), np.array([0])), 7)  # on an edge, where 7 * (5 / 7) > 5
@oracle
def test_reliability_is_scikit_learns_and_ece_its_definition(drawn, bins):
    probabilities, labels = drawn
    confidence, hits = probabilities.max(1), probabilities.argmax(1) == labels
    found = metrics.reliability(probabilities, labels, bins)
    accuracies, confidences = sklearn.calibration.calibration_curve(hits, confidence, n_bins=bins)
    assert found.accuracy[found.count > 0] == pytest.approx(accuracies)
    assert found.confidence[found.count > 0] == pytest.approx(confidences)
    ece = 0.0
    for low, high in itertools.pairwise(np.linspace(0, 1, bins + 1)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            ece += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    assert found.ece == pytest.approx(ece)


@given(predictions())
@oracle
def test_log_loss_is_scikit_learns(drawn):
    probabilities, labels = drawn
    theirs = sklearn.metrics.log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1]))
    assert metrics.log_loss(probabilities, labels) == pytest.approx(theirs)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(true_temperature):
    probabilities, _ = random_predictions(1, 20_000, 4)
    drawn = np.random.default_rng(2).random((20_000, 1))
    labels = (probabilities.cumsum(axis=1) < drawn).sum(axis=1).clip(max=3)  # right as often as they claim
    skewed = metrics.apply_temperature(probabilities, 1 / true_temperature)  # undone by dividing by the truth
    assert metrics.fit_temperature(skewed, labels) == pytest.approx(true_temperature, rel=0.05)


@given(predictions())
@settings(max_examples=50, deadline=None)
def test_the_temperature_is_the_one_of_least_log_loss(drawn):
    probabilities, labels = drawn
    found = metrics.fit_temperature(probabilities, labels)
    lowest, highest = metrics.TEMPERATURES
    assume(lowest * 1.01 < found < highest * 0.99)
    theirs = scipy.optimize.minimize_scalar(
        lambda inverse: metrics.log_loss(metrics.apply_temperature(probabilities, 1 / inverse), labels),
        bounds=(1 / highest, 1 / lowest), method="bounded", options={"xatol": 1e-9},
    )  # fmt: skip
    assert metrics.log_loss(metrics.apply_temperature(probabilities, found), labels) <= theirs.fun + 1e-9


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


# --------------------------------------------------------------------------------- uncertainty


def macro_f1(confusion):
    return metrics.class_scores(confusion).macro_f1


@pytest.mark.parametrize("statistic", [metrics.accuracy, macro_f1])
def test_bootstrap_over_cells_is_scipys_over_records(statistic):
    probabilities, labels = random_predictions(4, 200, 3)
    predicted = probabilities.argmax(1)

    def of_records(labels, predicted):
        return statistic(metrics.confusion_matrix(labels, predicted, 3))

    theirs = scipy.stats.bootstrap(
        (labels, predicted), of_records, paired=True, vectorized=False, method="percentile", n_resamples=3000, rng=0
    ).confidence_interval
    confusion = metrics.confusion_matrix(labels, predicted, 3)
    interval = metrics.bootstrap_interval(confusion, statistic, rounds=3000)
    assert interval == pytest.approx(theirs, abs=0.01)
    assert interval == metrics.bootstrap_interval(confusion, statistic, rounds=3000)  # the seed decides


def test_bootstrap_of_one_record_is_that_record():
    assert metrics.bootstrap_interval(np.array([[0, 1], [0, 0]]), metrics.accuracy) == (0, 0)
