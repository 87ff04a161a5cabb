"""Figures say their message in the title and stay legible with 2 and with 1,000 classes."""

import cv2
import numpy as np
import pytest

from shardline.tools.html_report import figure_png
from shardline.trainer.evaluation import metrics, plots


def drawn(figure):
    """Pixels of the rendered figure, and every text on it."""
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return cv2.imdecode(np.frombuffer(figure_png(figure), np.uint8), cv2.IMREAD_COLOR), [t for t in texts if t]


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
        plots.detection(probabilities, labels, names),
    ]
    for figure in made:
        pixels, texts = drawn(figure)
        assert 200 < pixels.shape[0] < 1200 and 400 < pixels.shape[1] < 1700
        assert len(texts) < 120  # a thousand names would cover each other
        assert any("species" in text for text in texts)


def test_the_title_names_the_worst_confusion():
    _, texts = drawn(plots.confusion(np.array([[5, 0, 0], [3, 2, 0], [0, 1, 4]]), ["rose", "lily", "iris"]))
    assert "11 of 15 right; most often confused: lily taken for rose (3 of 5)" in texts


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


def test_detection_of_a_single_class_is_left_out():
    assert plots.detection(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 0]), ["a", "b"]) is None


@pytest.mark.parametrize(
    "confidence, right, verdict", [(0.9, 5, "too sure"), (0.6, 9, "not sure enough"), (0.8, 8, "well calibrated")]
)
def test_calibration_gives_its_verdict(confidence, right, verdict):
    probabilities = np.tile([confidence, 1 - confidence], (10, 1))
    labels = np.where(np.arange(10) < right, 0, 1)
    _, texts = drawn(plots.calibration(metrics.reliability(probabilities, labels)))
    assert any(text.endswith(verdict) for text in texts)


def rows_of_a_run(top1):
    train = {"kind": "train", "phase": "head", "loss": 2.0, "top1": 0.3, "waiting_percent": 4.0}
    return [
        train | {"epoch": 0.5, "images_per_second": 100.0},
        {"kind": "eval", "epoch": 1, "phase": "head", "loss": float("nan"), "top1": 0.4},
        train | {"epoch": 1.5, "images_per_second": 140.0},
        {"kind": "eval", "epoch": 2, "phase": "all", "loss": 1.0, "top1": top1},
    ]


def test_run_curves_name_the_winner():
    _, texts = drawn(plots.run_curves({"one": rows_of_a_run(0.5), "two": rows_of_a_run(0.7)}))
    assert "two ends highest, at 70.0% held-out top-1" in texts
    assert {"one, training", "two, held out"} <= set(texts)
    drawn(plots.run_curves({"nothing yet": []}))


def test_timeline_marks_phases_and_says_how_long_input_takes():
    _, texts = drawn(plots.timeline(rows_of_a_run(0.5), [("head", 0.0), ("all", 1.0)]))
    assert " all" in texts
    assert "120 images/s (median); input keeps the device waiting 4.0% of the time" in texts
    assert plots.timeline([], []) is None


def test_gallery_shows_a_broken_file_as_a_tile():
    image = np.full((20, 30, 3), 200, np.uint8)
    _, texts = drawn(plots.gallery([(image, "rose 93 %", "a.jpg"), (None, "unreadable", "b.jpg: truncated")]))
    assert {"rose 93 %", "✗", "b.jpg: truncated"} <= set(texts)


def test_long_names_keep_both_ends():
    assert plots.short("American Staffordshire terrier", 15) == "America…terrier"
    assert plots.short("rose") == "rose"
