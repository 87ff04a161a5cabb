"""Plots of runs: their titles say what happened, and a run without a step has none."""

import numpy as np

from shardline.trainer import curves
from tests.trainer.tiny import drawn


def rows_of_a_run(top1):
    train = {"kind": "train", "phase": "head", "loss": 2.0, "top1": 0.3, "waiting_percent": 4.0}
    return [
        train | {"epoch": 0.5, "images_per_second": 100.0},
        {"kind": "eval", "epoch": 1, "phase": "head", "loss": float("nan"), "top1": 0.4},
        train | {"epoch": 1.5, "images_per_second": 140.0},
        {"kind": "eval", "epoch": 2, "phase": "all", "loss": 1.0, "top1": top1},
    ]


def test_comparison_curves_name_the_best_run():
    _, texts = drawn(curves.comparison_curves({"one": rows_of_a_run(0.5), "two": rows_of_a_run(0.7)}))
    assert "two ends highest, at 70.0% held-out top-1" in texts
    assert {"one, training", "two, held out"} <= set(texts)
    drawn(curves.comparison_curves({"nothing yet": []}))


def test_throughput_curves_mark_phases_and_says_how_long_input_takes():
    _, texts = drawn(curves.throughput_curves(rows_of_a_run(0.5), [("head", 0.0), ("all", 1.0)]))
    assert {"head", "all"} <= set(texts)
    assert "120 images/s (median); the device waits for input 4.0% of the time" in [
        " ".join(text.split()) for text in texts
    ]
    assert curves.throughput_curves([], []) is None


def test_training_curves_give_the_last_held_out_top1():
    pixels, texts = drawn(curves.training_curves(rows_of_a_run(0.5), [("head", 0.0), ("all", 1.0)], "validation"))
    assert {"50.0% top-1 on validation after 2 epochs", "train, augmented", "validation", "head", "all"} <= set(texts)
    assert pixels.shape[0] > 500
    _, texts = drawn(curves.training_curves([], [], ""))
    assert "no step yet" in texts


def test_a_diverged_loss_is_left_out_of_the_curves():
    lines = [{"kind": "train", "epoch": epoch, "loss": loss} for epoch, loss in ((1, 2.0), (2, float("nan")), (3, 1.0))]
    x, y = curves._series(lines, "loss")
    assert x.tolist() == [1, 3] and y.tolist() == [2, 1]


def test_the_range_test_names_its_suggestion():
    rates = np.geomspace(1e-6, 1, 20)
    _, texts = drawn(curves.learning_rate_range(rates, np.linspace(2, 1, 20), 0.03))
    assert "Train at a peak learning rate of about 0.03" in texts


def test_gpu_figures_are_drawn_where_the_log_has_them():
    line = {"kind": "train", "epoch": 1.0, "gpu_utilization_percent": 91.0, "gpu_watts": 420.0}
    figure = curves.gpu_curves([line, line | {"epoch": 2.0, "gpu_watts": 440.0}])
    _, texts = drawn(figure)
    assert "GPU: busy 91%, power 430 W (medians)" in texts
    assert "power, W" in texts and "memory, GiB" not in texts
    assert curves.gpu_curves([{"kind": "train", "epoch": 1.0}]) is None
