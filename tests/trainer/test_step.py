"""The step is right on any number of replicas, whatever is switched on (Keras 3's own is not)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from shardline.trainer.evaluation import metrics
from shardline.trainer.step import (
    EVAL_SUMS,
    LossScale,
    Optimizer,
    StepConfig,
    create_eval_step,
    create_train_step,
)

OPTIONS = (
    "plain",
    "clip_norm",
    "micro_batches",
    "weight_decay",
    "ema",
    "adam",
    "adamw",
    "jit",
    "loss_scaling",
    "label_smoothing",
    "class_weights",
)


def row(option, agreement):
    (found,) = (values for name, values in agreement.items() if option in name.split(", "))
    return found


@pytest.fixture(scope="module")
def results():
    """Logical devices are made once per process and before TensorFlow starts: so in a process of their own."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("check_step.py")],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("option", OPTIONS)
def test_two_replicas_equal_one_with(option, results):
    found = row(option, results["agreement"])
    assert found["difference"] < 1e-5
    assert (found["effect"] > 1e-3) == (option not in ("plain", "micro_batches", "jit", "loss_scaling"))
    assert found["samples"] == 6  # padding does not count


def test_two_replicas_equal_one_up_to_rounding_in_bfloat16(results):
    # Its gradients are sums rounded to 8 bits, so half a batch twice differs from a batch in the last of them.
    assert results["agreement"]["mixed_bfloat16"]["difference"] < 0.02


def test_gradients_that_travel_in_bfloat16_are_rounded_to_8_bits_and_nothing_else_is(results):
    found = results["agreement"]["allreduce_dtype"]
    assert 1e-6 < found["difference"] < 0.02  # one replica hands nothing over, and rounds nothing
    assert found["samples"] == 6
    assert results["allreduce"] == {"float32": True, "bfloat16": True, "wrong": False}


@pytest.mark.parametrize("replica", (0, 1))
def test_an_overflow_on_one_replica_is_skipped_on_all_and_halves_the_scale(replica, results):
    found = results["overflow"][replica]
    assert found["finite_loss"]  # it is the gradient that overflows, as it does in life
    assert not found["finite"]
    assert found["change"] == 0  # weights and their ema_weights
    assert found["halved"] == 0.5
    assert found["copies_equal"]
    assert found["next_finite"] and found["next_change"] > 0 and found["all_finite"]


def test_the_scale_doubles_after_good_steps(results):
    assert results["growth"] == [2.0**15, 2.0**15, 2.0**16, 2.0**16, 2.0**17]


@pytest.mark.parametrize("optimizer", ("sgd", "adam", "adamw"))
def test_updates_are_those_of_keras(optimizer, results):
    assert results["keras"][optimizer] < 1e-5


def test_dropout_depends_on_seed_and_position_alone(results):
    """So it differs between replicas, is the same for any number of them, and survives any restart."""
    masks = results["masks"]
    assert masks["same_in_parts"] and masks["idle"]
    assert masks["kept"] == pytest.approx(0.75, abs=0.01)
    assert masks["mean"] == pytest.approx(1.0, abs=0.02)
    by_chance = 0.75**2 + 0.25**2
    for pair in ("rows_agree", "far_rows_agree", "seeds_agree", "neighbors_agree"):
        assert masks[pair] == pytest.approx(by_chance, abs=0.03), pair


def test_evaluation_counts_each_sample_once_and_padding_never(results):
    assert results["evaluation"]["found"] == pytest.approx(results["evaluation"]["expected"], rel=1e-5)


def test_swapping_in_the_averages_is_undone_exactly(results):
    assert results["swapping"]["exchanged"]
    assert results["swapping"]["differ"] > 0
    assert results["swapping"]["restored"] == 0


def test_one_host_that_wants_to_stop_stops_all(results):
    assert results["stopping"] == 1


CLASSES = 7


def tied_logits():
    """Rows of few levels, so that most labels tie; constant rows; rows with NaN. Every label occurs in all of them."""
    random = np.random.default_rng(0)
    rows = [random.integers(0, levels, (50 * CLASSES, CLASSES)) for levels in (1, 2, 3, 100)]
    logits = np.concatenate(rows).astype(np.float32)
    logits[::5, random.integers(CLASSES)] = np.nan
    logits[7] = np.nan
    return logits, np.arange(len(logits)) % CLASSES


@pytest.mark.parametrize("jit", (False, True))
def test_evaluation_while_training_gives_the_top_k_of_shardline_evaluate(jit):
    logits, labels = tied_logits()
    step = create_eval_step(
        tf.distribute.get_strategy(), lambda batch: (batch["logits"], tf.one_hot(batch["label"], CLASSES)), jit
    )
    sums, (answers,) = step({"logits": logits, "label": labels, "weight": np.ones(len(labels), np.float32)})
    totals = dict(zip(EVAL_SUMS, sums.numpy(), strict=True))
    known = np.isfinite(logits).all(axis=1)  # of equal scores the first, as in np.argmax
    np.testing.assert_array_equal(answers.numpy()[known, 0], logits[known].argmax(axis=1))
    np.testing.assert_allclose(answers.numpy()[known, 1], softmax(logits[known], axis=1).max(axis=1), rtol=1e-6)
    ranks = metrics.label_ranks(logits, labels)
    assert (int(totals["top1"]), int(totals["top5"])) == (np.sum(ranks < 1), np.sum(ranks < 5))


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("mixed", (False, True))
def test_the_loss_is_that_of_keras_with_each_sample_weighted_by_its_classes(smoothing, mixed):
    """Smoothing says how sure a label is, not what it is: a sample of class 0 keeps class 0's weight of 0."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(8, 3)).astype(np.float32)
    shares = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 1, 2]]
    if mixed:
        shares = 0.7 * shares + 0.3 * shares[::-1]
    weight = np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32)  # the last one fills the batch
    class_weights = np.array([0, 1, 2.5], np.float32)
    variable = tf.Variable(logits)
    config = StepConfig(8, label_smoothing=smoothing, class_weights=tuple(class_weights.tolist()), momentum=0.0)
    optimizer = Optimizer({"logits/kernel": variable}, config)
    step = create_train_step(
        tf.distribute.get_strategy(), lambda batch: (variable + 0.0, batch["shares"]), optimizer, LossScale(), config
    )
    report = step({"shares": tf.constant(shares), "weight": tf.constant(weight)}, tf.constant(1.0))
    own = weight * (shares @ class_weights)
    losses = keras.losses.categorical_crossentropy(shares, logits, from_logits=True, label_smoothing=smoothing)
    assert float(report["loss"]) == pytest.approx(np.average(losses, weights=own), rel=1e-6)
    targets = shares * (1 - smoothing) + smoothing / 3
    gradient = own[:, None] * (softmax(logits, axis=1) - targets) / own.sum()
    np.testing.assert_allclose(logits - variable.numpy(), gradient, atol=1e-6)
    hits = logits.argmax(1) == shares.argmax(1)
    assert float(report["top1"]) == pytest.approx(hits[:7].mean())
