"""Figures say their message in the title and stay legible with 2 and with 1,000 classes."""

import numpy as np
import pytest

from shardline.trainer.evaluation import metrics, plots
from tests.trainer.tiny import drawn


def predictions(classes, records=400):
    random = np.random.default_rng(classes)
    labels = random.integers(classes, size=records)
    logits = random.normal(size=(records, classes))
    logits[np.arange(records), labels] += 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, labels, [f"species number {i}" for i in range(classes)]


@pytest.mark.parametrize("classes", [2, 1000])
def test_every_figure_is_readable_with(classes):
    probabilities, labels, names = predictions(classes)
    confusion = metrics.confusion_matrix(labels, probabilities.argmax(1), classes)
    made = [
        plots.confusion(confusion, names),
        plots.classes(metrics.class_scores(confusion), names),
        plots.roc_and_precision_recall(probabilities, labels, names),
    ]
    for figure in made:
        pixels, texts = drawn(figure)
        assert 200 < pixels.shape[0] < 1200 and 400 < pixels.shape[1] < 1700
        assert len(texts) < 120  # a thousand names would cover each other
        assert any("species" in text for text in texts)


def test_the_title_names_the_worst_confusion():
    _, texts = drawn(plots.confusion(np.array([[5, 0, 0], [3, 2, 0], [0, 1, 4]]), ["rose", "lily", "iris"]))
    assert "11 of 15 right; most often confused: lily predicted as rose (3 of 5)" in texts


def test_a_perfect_matrix_says_so():
    _, texts = drawn(plots.confusion(np.diag([2, 3]), ["a", "b"]))
    assert "5 of 5 right" in texts


def test_a_lone_mistake_among_a_thousand_classes_stays_visible():
    share = np.zeros((1000, 1000))
    share[123, 987] = 1.0
    pooled = plots._pool(share, 125)
    assert pooled.shape == (125, 125) and pooled.max() == 1.0 and np.count_nonzero(pooled) == 1


def test_classes_that_never_occur_are_left_out():
    result = metrics.class_scores(np.array([[2, 0, 0], [0, 0, 0], [1, 0, 1]]))
    _, texts = drawn(plots.classes(result, ["rose", "lily", "iris"]))
    assert "rose" in texts and "iris" in texts and "lily" not in texts


def test_curves_of_a_single_class_is_left_out():
    assert plots.roc_and_precision_recall(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 0]), ["a", "b"]) is None


@pytest.mark.parametrize(
    "confidence, right, verdict",
    [
        (0.9, 50, "overconfident, 90.0% sure and 50.0% right"),
        (0.6, 90, "underconfident, 60.0% sure and 90.0% right"),
        (0.8, 80, "no more than chance gives a calibrated model"),
        (0.85, 80, "no more than chance gives a calibrated model"),
        (1, 100, "no more than chance gives a calibrated model"),
    ],
)
def test_over_and_underconfidence_are_said_beyond_the_noise_alone(confidence, right, verdict):
    probabilities = np.tile([confidence, 1 - confidence], (100, 1))
    labels = np.where(np.arange(100) < right, 0, 1)
    _, texts = drawn(plots.calibration(metrics.reliability(probabilities, labels)))
    assert any(text.startswith("ECE ") and text.endswith(f": {verdict}") for text in texts)


def test_being_too_sure_of_some_and_unsure_of_others_is_no_bias_but_no_calibration_either():
    probabilities = np.tile([[0.95, 0.05], [0.55, 0.45]], (100, 1))
    labels = np.where(np.arange(200) % 2 == 0, np.arange(200) % 4 // 2, 0)  # of the sure ones half are right
    _, texts = drawn(plots.calibration(metrics.reliability(probabilities, labels)))
    assert any(": too sure here, unsure there, 75.0% sure and 75.0% right" in text for text in texts)


def test_gallery_shows_a_broken_file_as_a_tile():
    image = np.full((20, 30, 3), 200, np.uint8)
    _, texts = drawn(plots.gallery([(image, "rose 93 %", "a.jpg"), (None, "unreadable", "b.jpg: truncated")]))
    assert {"rose 93 %", "✗", "b.jpg: truncated"} <= set(texts)
