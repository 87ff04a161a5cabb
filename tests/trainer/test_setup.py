"""What is decided before the first step, and what a phase or a restart takes over."""

import gc

import numpy as np
import pytest
import tensorflow as tf

from shardline.pipeline.errors import UsageError
from shardline.trainer import cluster, model, run, selftest, step
from shardline.trainer import setup as planning
from shardline.trainer.config import TrainConfig
from shardline.trainer.state import TrainState

THIN = {"image_size": 32, "width": 0.03, "precision": "float32", "jit": False, "global_batch_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    selftest.write_dataset(folder, {"train": 25, "test": 5}, side=32)
    return str(folder)


@pytest.fixture(scope="module")
def devices():
    return cluster.start("one_device", 0)


@pytest.fixture(scope="module")
def network():
    return model.build(classes=10, head="gap", image_size=32, width=0.03)


def plan(devices, **settings):
    return planning.make(TrainConfig(**{**THIN, **settings}), devices)


def test_class_weights_average_one_over_the_records(data, devices):
    made = plan(devices, data=data, class_weights="balanced")
    counts = np.array([3] * 5 + [2] * 5)  # of the 25 records' classes
    weights = planning.class_weights(made).numpy()
    assert (weights * counts).sum() == pytest.approx(25)
    np.testing.assert_allclose(weights * counts, 2.5, rtol=1e-6)
    assert planning.class_weights(plan(devices, synthetic=True, class_weights="balanced")) is None


def test_evaluation_takes_the_held_out_split_that_is_there(data, devices):
    assert plan(devices, data=data).eval_split == "test"
    assert plan(devices, data=data, eval_split="none").eval_split == ""
    assert plan(devices, data=data, eval_split="train").eval_split == "train"


def test_stored_features_want_one_host(data):
    several = cluster.Cluster(None, 0, 2, 2, "CPU")
    with pytest.raises(UsageError, match="--cache_features works on one host"):
        plan(several, data=data, cache_features=2)


def test_each_block_learns_at_its_share_of_the_rate(devices, network):
    """Momentum's first step under a gradient of 1 is 1.9 times the rate."""
    made = plan(devices, synthetic=True, block_lr_decay=0.5, phases="block4:1@0.1")
    optimizer = run.make_optimizer(made, network, made.spans[0])
    expected = {"head": 1.0, "block5": 0.5, "block4": 0.25}
    assert {model.group(path) for path in optimizer.variables} == set(expected)
    for path, variable in optimizer.variables.items():
        before = variable.numpy()
        optimizer.update(path, variable, optimizer.slots[path], tf.ones(variable.shape), 0.1, tf.constant(1.0))
        moved = before - variable.numpy()
        np.testing.assert_allclose(moved, 0.19 * expected[model.group(path)], rtol=1e-3, err_msg=path)


def state_of(devices, network, **settings):
    made = plan(devices, synthetic=True, **settings)
    state = TrainState(network.weights, {}, run.make_optimizer(made, network, made.spans[0]), step.LossScale())
    if made.config.ema:
        state.ema_weights = {path: tf.Variable(tf.zeros(v.shape)) for path, v in network.weights.items()}
    return made, state


def test_what_a_restart_with_allowed_changes_takes_over(devices, network, tmp_path):
    """Slots only within their phase and optimizer; a moving average that is new begins at the weights."""
    _, saved = state_of(devices, network, phases="head:1@1")
    for variable in saved.optimizer.state().values():
        variable.assign(variable + 7)
    for variable in network.weights.values():
        variable.assign(tf.fill(variable.shape, 0.5))
    header, arrays = {**saved.header(), "step": 3}, saved.arrays()
    slots = {}
    for name, changes in {
        "same": {},
        "adam": {"optimizer": "adam"},
        "part": {"phases": "block5:1@1"},
        "ema": {"ema": 0.9},
    }.items():
        made, state = state_of(devices, network, **{"phases": "head:1@1", **changes})
        run.resume(state, made, made.spans[0], tmp_path / "step.npz", header, arrays)
        assert state.step == 3
        slots[name] = {float(variable.numpy().max()) for variable in state.optimizer.state().values()}
        for average in state.ema_weights.values():
            assert (average.numpy() == 0.5).all()
    assert slots == {"same": {7.0}, "adam": {0.0}, "part": {0.0}, "ema": {7.0}}
    other = model.build(classes=10, head="gap", image_size=32, width=0.05)
    made, state = state_of(devices, other, phases="head:1@1")
    with pytest.raises(UsageError, match="is a checkpoint of another model"):
        run.resume(state, made, made.spans[0], tmp_path / "step.npz", header, arrays)


def test_an_endless_iterator_is_never_destroyed():
    gone = []

    class BatchBuilder:
        def __iter__(self):
            return self

        def __next__(self): ...

        def __del__(self):
            gone.append(self)

    iterator = planning.endless(BatchBuilder())
    del iterator
    gc.collect()
    assert not gone
