"""What is decided before the first step, and what a phase or a restart takes over."""

import gc
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.manifest import shard_name
from shardline.trainer import selftest
from shardline.trainer.checkpoints import Checkpoint
from shardline.trainer.cluster import Cluster, create_cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.data import banner, open_data
from shardline.trainer.model import layer_group
from shardline.trainer.setup import class_weights, create_setup, endless
from shardline.trainer.state import create_train_state

THIN = {"image_size": 32, "width": 0.03, "precision": "float32", "jit": False, "global_batch_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    selftest.write_dataset(folder, {"train": 25, "test": 5}, side=32)
    return str(folder)


@pytest.fixture(scope="module")
def devices():
    return create_cluster("one_device", 0)


def setup_of(devices, **settings):
    return create_setup(TrainConfig(**{**THIN, **settings}), devices)


def test_class_weights_average_one_over_the_records(data, devices):
    counts = np.array([3] * 5 + [2] * 5)  # of the 25 records' classes
    weights = np.array(class_weights(setup_of(devices, data=data, class_weights="balanced")))
    assert (weights * counts).sum() == pytest.approx(25)
    np.testing.assert_allclose(weights * counts, 2.5, rtol=1e-6)
    assert class_weights(setup_of(devices, synthetic=True)) == ()


def test_evaluation_takes_the_held_out_split_that_is_there(data, devices):
    assert setup_of(devices, data=data).eval_split == "test"
    assert setup_of(devices, data=data, eval_split="none").eval_split == ""
    assert setup_of(devices, data=data, eval_split="train").eval_split == "train"
    assert setup_of(devices, data=data, train_split="test").eval_split == ""  # auto takes nothing that is trained on
    assert setup_of(devices, synthetic=True).eval_split == ""
    with pytest.raises(UsageError, match="eval_split=test: synthetic holds nothing out"):
        setup_of(devices, data=data, synthetic=True, eval_split="test")
    with pytest.raises(UsageError, match="best_metric=top1 would choose the model by train: convert with a valid"):
        setup_of(devices, data=data, eval_split="train", best_metric="top1")


def test_an_evaluation_of_what_is_trained_on_is_noted(data):
    config = TrainConfig(**THIN, data=data)
    for split, noted in (("train", True), ("test", False)):
        said = banner(config, open_data(config), split)
        assert ("note: train is trained on: nothing in it is held out" in said) == noted


def test_a_phase_without_a_step_of_its_own_is_noted(data):
    """Of 25 records: the first step of 64 samples ends in the third epoch."""
    config = TrainConfig(**{**THIN, "global_batch_size": 64}, data=data, phases="head:1@1,block5:1@0.5,all:3@0.1")
    said = banner(config, open_data(config), "test")
    assert "note: no step is left for block5:1@0.5: the phase before ends with a step beyond it" in said
    assert "no step is left" not in banner(TrainConfig(**THIN, data=data), open_data(config), "test")


def test_a_batch_larger_than_the_split_is_noted(data):
    for batch, noted in ((25, False), (26, True)):
        config = TrainConfig(**{**THIN, "global_batch_size": batch}, data=data)
        said = banner(config, open_data(config), "test")
        assert ("note: a batch holds records several times: train has 25" in said) == noted


@pytest.mark.parametrize(
    "settings, noted",
    [
        ({"cache_features": 2, "phases": "block5:1@1"}, "cache_features=2 changes nothing: no phase trains the head"),
        ({"cache_features": 2, "phases": "head:1@1,all:1@1"}, ""),
        (
            {"cache_features": 2, "phases": "head:1@1", "progressive_resizing": "32:0.5", "image_size": 64},
            "progressive_resizing=32:0.5 changes nothing: features are stored at the full image size",
        ),
        ({"block_lr_decay": 0.5, "phases": "head:1@1"}, "block_lr_decay=0.5 changes nothing: the head alone trains"),
        ({"profile_steps": "5:6", "phases": "all:1@1"}, "profile_steps=5:6 changes nothing: the run ends at step 4"),
        ({"balanced_sampling": True, "shuffle_block_size": 4}, "shuffle_block_size=4 changes nothing: records are not"),
        ({"randaugment_magnitude": 5}, "randaugment_magnitude=5 changes nothing: there are no --randaugment_layers"),
        ({"profile_steps": "4:6", "phases": "all:1@1", "block_lr_decay": 0.5}, ""),
    ],
)
def test_settings_without_effect_are_noted(data, settings, noted):
    config = TrainConfig(**THIN | settings, data=data)
    said = banner(config, open_data(config), "test")
    assert noted in said and ("changes nothing" in said) == bool(noted)


@pytest.mark.parametrize(
    "settings, noted",
    [
        (
            {"ema": 0.9, "phases": "all:1@1"},
            "ema=0.9: after 4 steps the average, which is saved, is still 66% the",
        ),
        ({"ema": 0.5, "phases": "all:1@1"}, ""),  # 0.5 ** 4 is 6%
        ({"warmup_epochs": 1.0, "phases": "head:1@1,all:2@1"}, "warmup_epochs=1: head:1@1 ends before its peak rate"),
        ({"warmup_epochs": 0.9, "phases": "head:1@1,all:2@1"}, ""),
    ],
)
def test_averages_and_warmups_that_the_run_is_too_short_for_are_noted(data, settings, noted):
    config = TrainConfig(**THIN | settings, data=data)
    said = banner(config, open_data(config), "test")
    assert noted in said and ("ema=" in said or "warmup" in said) == bool(noted)


@pytest.mark.parametrize("labels, noted", [(("a",), True), (("a", "b"), False)])
def test_one_class_is_noted(data, labels, noted):
    config = TrainConfig(**THIN, data=data)
    opened = open_data(config)
    opened = SimpleNamespace(labels=labels, manifest=opened.manifest, num_records=opened.num_records)
    assert ("note: of one class there is nothing to learn" in banner(config, opened, "test")) == noted


def test_balanced_sampling_names_the_record_whose_label_cannot_be_read(data, devices, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    shard = tmp_path / "data" / shard_name("selftest", "train", 0, 1)
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1  # in the last record
    shard.write_bytes(content)
    with pytest.raises(Failure, match=r"record 24 of train cannot be read \(.*\), and balanced_sampling needs"):
        assert setup_of(devices, data=str(tmp_path / "data"), balanced_sampling=True).sampler


@pytest.mark.parametrize(
    "settings",
    [
        {"recipe": "finetune", "weights": "imagenet", "weights_sha256": "0" * 64},
        {"eval_split": "validation", "best_metric": "top1", "early_stop_evals": 2, "train_split": "most"},
        {"micro_batches": 8, "image_size": 64, "progressive_resizing": "48:0.5", "mixup": 0.2},
    ],
)
def test_the_selftest_takes_the_flags_of_any_run(settings, devices):
    checks = selftest.Checks(TrainConfig(**settings, precision="float32", jit=False), devices)
    assert checks.each_record_once() == (True, "n = 29/29")
    checks._start(devices)


def test_stored_features_want_one_host(data):
    several = Cluster(None, 0, 2, 2, "CPU")
    with pytest.raises(UsageError, match="cache_features works on one host"):
        setup_of(several, data=data, cache_features=2)


def test_each_block_learns_at_its_share_of_the_rate(devices):
    """Momentum's first step under a gradient of 1 is 1.9 times the rate."""
    _, optimizer = start(devices, block_lr_decay=0.5, phases="block4:1@0.1")
    expected = {"head": 1.0, "block5": 0.5, "block4": 0.25}
    assert {layer_group(path) for path in optimizer.variables} == set(expected)
    for path, variable in optimizer.variables.items():
        before = variable.numpy()
        optimizer.update(path, variable, optimizer.slots[path], tf.ones(variable.shape), 0.1, tf.constant(1.0))
        moved = before - variable.numpy()
        np.testing.assert_allclose(moved, 0.19 * expected[layer_group(path)], rtol=1e-3, err_msg=path)


def start(devices, **settings):
    """State and optimizer of a run's first phase."""
    setup = setup_of(devices, **{"synthetic": True, **settings})
    _, state, _ = create_train_state(setup, setup.spans[0])
    return state, state.optimizer


def test_averages_of_what_trained_before_still_follow_it(devices):
    setup = setup_of(devices, synthetic=True, phases="block5:1@1,head:1@1", ema=0.5)
    network, state, _ = create_train_state(setup, setup.spans[0])
    for average in state.ema_weights.values():
        average.assign_add(tf.ones(average.shape))
    state.begin_phase(setup, network, setup.spans[1])
    gradients = [tf.zeros(variable.shape) for variable in state.optimizer.variables.values()]
    for _ in range(2):
        state.optimizer.apply(devices.strategy, gradients, tf.constant(0.0))
    for path, average in state.ema_weights.items():
        behind = 0.25 if layer_group(path) in ("head", "block5") else 1.0  # the others never trained
        np.testing.assert_allclose(average - state.weights[path], behind, atol=1e-5, err_msg=path)


def test_what_a_restart_with_allowed_changes_takes_over(devices, tmp_path):
    """Slots only within their phase and optimizer; a moving average that is new begins at the weights."""
    saved, optimizer = start(devices, phases="head:1@1")
    for variable in optimizer.state().values():
        variable.assign(variable + 7)
    for variable in saved.weights.values():
        variable.assign(tf.fill(variable.shape, 0.5))
    checkpoint = Checkpoint(tmp_path / "step.npz", {**saved.header(), "step": 3}, saved.arrays())
    slots = {}
    for name, changes in {
        "same": {},
        "adam": {"optimizer": "adam"},
        "part": {"phases": "block5:1@1"},
        "ema": {"ema": 0.9},
    }.items():
        state, optimizer = start(devices, **{"phases": "head:1@1", **changes})
        state.restore(checkpoint)
        assert state.step == 3
        slots[name] = {float(variable.numpy().max()) for variable in optimizer.state().values()}
        assert bool(state.ema_weights) == (name == "ema")
        for weights in (state.weights, state.ema_weights):
            assert all((variable.numpy() == 0.5).all() for variable in weights.values())
    assert slots == {"same": {7.0}, "adam": {0.0}, "part": {0.0}, "ema": {7.0}}
    other, _ = start(devices, phases="head:1@1", width=0.05)
    with pytest.raises(UsageError, match="is a checkpoint of another model"):
        other.restore(checkpoint)
    same, _ = start(devices, phases="head:1@1")
    for kind in (np.int32, np.float64):  # with equal bytes, and with others
        weights = {name: array for name, array in checkpoint.arrays.items() if name.startswith("model/")}
        weights = {
            name: array.view(kind) if kind is np.int32 else array.astype(kind) for name, array in weights.items()
        }
        with pytest.raises(UsageError, match=r"another model: model/.* is (int32|float64) .* and float32 .* here"):
            same.restore(replace(checkpoint, arrays=checkpoint.arrays | weights))


def test_slots_of_another_phase_of_the_same_part_begin_anew(devices, tmp_path):
    """Two phases may train the same variables: the second one's momentum does not come from the first."""
    saved, optimizer = start(devices, phases="head:1@1,head:1@0.1")
    for variable in optimizer.state().values():
        variable.assign(variable + 7)
    checkpoint = Checkpoint(tmp_path / "step.npz", saved.header(), saved.arrays())
    setup = setup_of(devices, synthetic=True, phases="head:1@1,head:1@0.1")
    _, state, _ = create_train_state(setup, setup.spans[1])
    state.restore(checkpoint)
    assert state.phase == 1 and all((v.numpy() == 0).all() for v in state.optimizer.state().values())


def test_an_endless_iterator_is_never_destroyed():
    gone = []

    class Batches:
        def __iter__(self):
            return self

        def __next__(self): ...

        def __del__(self):
            gone.append(self)

    iterator = endless(Batches())
    del iterator
    gc.collect()
    assert not gone


FAULTS = """
import resource, sys
import tensorflow as tf
from shardline.trainer.cluster import create_cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.setup import create_setup
config = TrainConfig(synthetic=True, image_size=32, width=0.03, precision="float32", jit=False, global_batch_size=8)
next(create_setup(config, create_cluster("mirrored", 0)).train_batches(0))
square, matrix = tf.function(lambda x: tf.matmul(x, x)), tf.ones([1024, 1024])  # 1,024 pages
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        product = square(matrix)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 50)
"""


@pytest.mark.parametrize(("environment", "few"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_tensors_take_the_memory_that_earlier_ones_left(environment, few):
    """Not under what the user has set: which shows what TensorFlow does to it, too."""
    given = {
        name: value for name, value in os.environ.items() if name not in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    }
    command = [sys.executable, "-c", FAULTS]
    result = subprocess.run(command, env=given | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (int(result.stdout) < 512) == few, result.stdout
