"""The public reading API: one stream for any number of hosts, replicas and threads, and any restart."""

import itertools
import logging
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from shardline import pipeline
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.manifest import Features
from tests.pipeline.tiny import encode, image, payloads, write_dataset

N = 37  # training records of `tiny`
KEYS = ("image", "label", "weight", "record", "position")


@pytest.fixture(scope="module")
def data(tiny):
    return pipeline.open_dataset(tiny)


def config(**options):
    return pipeline.InputConfig(**{"global_batch_size": 8, "image_size": 16, "threads": 2} | options)


@pytest.fixture(scope="module")
def stream(data):
    """The first 128 samples, read one by one by a single thread."""
    elements = data.train_batches("train", config(global_batch_size=1, threads=1)).take(128)
    return {key: np.concatenate([element[key] for element in elements.as_numpy_iterator()]) for key in KEYS}


def assert_stream(found, stream, first):
    for key in KEYS:
        value = np.concatenate([element[key] for element in found])
        np.testing.assert_array_equal(value, stream[key][first : first + len(value)], err_msg=key)


def test_positions_count_and_every_epoch_has_every_record(stream):
    assert stream["position"].tolist() == list(range(128))
    for epoch in range(3):
        assert sorted(stream["record"][epoch * N : (epoch + 1) * N]) == list(range(N))
    np.testing.assert_array_equal(stream["label"], stream["record"] % 3)


def test_the_graph_reads_in_the_order_of_the_numpy_order(data):
    for options in ({}, {"shuffle_block_size": 5}, {"shuffle": False}, {"seed": 4, "shuffle_block_size": 37}):
        order = pipeline.ShuffleSampler(
            N, options.get("seed", 0), options.get("shuffle_block_size", 1), options.get("shuffle", True)
        )
        batches = data.train_batches("train", config(**options), cursor=1_000_000_007).take(6).as_numpy_iterator()
        records = np.concatenate([batch["record"] for batch in batches])
        np.testing.assert_array_equal(records, order.records(np.arange(1_000_000_007, 1_000_000_007 + 48)))


@pytest.mark.parametrize(("hosts", "replicas"), [(1, 1), (1, 8), (2, 1), (2, 2), (4, 1), (4, 2)])
@pytest.mark.parametrize(("batch", "threads"), [(8, 1), (16, 3), (24, 2)])
def test_hosts_replicas_batch_size_and_threads_do_not_change_the_stream(data, stream, hosts, replicas, batch, threads):
    options = config(global_batch_size=batch, threads=threads)
    steps = 96 // batch
    shares = [
        list(
            data.train_batches("train", options, host=host, hosts=hosts, replicas=replicas)
            .take(steps * replicas)
            .as_numpy_iterator()
        )
        for host in range(hosts)
    ]
    in_order = [
        shares[host][step * replicas + replica]
        for step, host, replica in itertools.product(range(steps), range(hosts), range(replicas))
    ]
    assert_stream(in_order, stream, 0)


def test_restart_at_every_position_continues_the_same_stream(data, stream):
    for cursor in range(N + 1):
        batches = data.train_batches("train", config(global_batch_size=3 + cursor % 4), cursor=cursor)
        assert_stream(list(batches.take(2).as_numpy_iterator()), stream, cursor)


def test_a_saved_iterator_continues_too(data, stream, tmp_path):
    def new():
        return iter(data.train_batches("train", config()))

    iterator = new()
    for _ in range(5):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).save(tmp_path / "ckpt")
    other = new()
    tf.train.Checkpoint(iterator=other).restore(path)
    assert_stream([{key: value.numpy() for key, value in next(other).items()}], stream, 40)


@pytest.mark.parametrize("augment_on", ["host", "device", "auto"])
def test_elements_are_what_they_are_said_to_be(data, augment_on):
    options = config(augment_on=augment_on, image_size=24)
    train = data.train_batches("train", options, hosts=2)
    size = 32 if augment_on == "device" else 24
    expected = {
        "image": tf.TensorSpec((4, size, size, 3), tf.uint8),
        "label": tf.TensorSpec((4,), tf.int32),
        "weight": tf.TensorSpec((4,), tf.float32),
        "record": tf.TensorSpec((4,), tf.int64),
        "position": tf.TensorSpec((4,), tf.int64),
    }
    if augment_on == "device":
        expected["augment_params"] = tf.TensorSpec((4, 3), tf.float32)
    assert train.element_spec == expected
    finished = pipeline.augment_on_device(next(iter(train)), options)
    assert finished["image"].shape == (4, 24, 24, 3)
    assert data.eval_batches("test", options).element_spec["image"].shape == (8, 24, 24, 3)


@pytest.mark.parametrize(
    ("hosts", "replicas", "batch"), [(1, 1, 8), (1, 2, 8), (2, 1, 4), (4, 2, 8), (1, 1, 16), (2, 4, 16)]
)
def test_evaluation_reads_each_record_once_in_batches_of_one_size(data, hosts, replicas, batch):
    options = config(global_batch_size=batch)
    shares = [
        list(data.eval_batches("test", options, host=host, hosts=hosts, replicas=replicas).as_numpy_iterator())
        for host in range(hosts)
    ]
    assert len({len(share) for share in shares}) == 1
    elements = list(itertools.chain(*shares))
    assert {element["image"].shape[0] for element in elements} == {batch // hosts // replicas}
    records = np.concatenate([element["record"] for element in elements])
    weights = np.concatenate([element["weight"] for element in elements])
    assert sorted(records[weights > 0]) == list(range(11))
    assert (records[weights == 0] == -1).all()


def test_evaluation_shows_the_one_geometry(data):
    (batch,) = data.eval_batches("test", config(global_batch_size=11, eval_crop_fraction=0.9)).as_numpy_iterator()
    for record, (data_bytes, _, _) in enumerate(data.records("test", range(11))):
        pixels = tf.io.decode_jpeg(data_bytes, dct_method="INTEGER_ACCURATE")
        expected = pipeline.eval_geometry(pixels.numpy(), 16, 0.9).astype(int)
        assert np.abs(batch["image"][record] - expected).mean() < 1.5
    several = next(iter(data.eval_batches("test", config(eval_crops=10))))
    assert several["image"].shape == (8, 10, 16, 16, 3)


def test_bad_records_are_counted_and_too_many_raise_the_failure_itself(tmp_path, caplog):
    records = [b"junk" if n in (2, 5) else record for n, record in enumerate(payloads(8))]
    data = pipeline.open_dataset(write_dataset(tmp_path, {"train": records}))
    with caplog.at_level(logging.ERROR), data.failures():
        batches = list(data.train_batches("train", config(max_bad_records=2)).take(4).as_numpy_iterator())
    assert sum(batch["weight"].sum() for batch in batches) == 24
    assert sorted(bad.record for bad in data.bad_records.records.values()) == [2, 5]
    assert len(data.bad_records) == 2
    complaint = "2 bad records, more than max_bad_records=1"
    with caplog.at_level(logging.ERROR), pytest.raises(Failure, match=complaint), data.failures():
        list(data.train_batches("train", config(max_bad_records=1)).take(4))


def test_records_made_elsewhere_are_read_by_their_own_names(tmp_path):
    def foreign(number):
        example = tf.train.Example()
        feature = example.features.feature
        feature["image/encoded"].bytes_list.value.append(encode(image(number, 50, 60), "jpeg" if number % 2 else "png"))
        feature["image/class/label"].int64_list.value.append(number % 3 + 1)
        feature["image/object/bbox/xmin"].float_list.value.append(0.5)
        return example.SerializeToString()

    names = Features("image/encoded", "image/class/label", filename="", height="", width="", label_offset=-1)
    write_dataset(tmp_path, {"train": map(foreign, range(12))}, encoding="any", features=names)
    data = pipeline.open_dataset(tmp_path)
    batch = next(iter(data.train_batches("train", config(global_batch_size=12, max_bad_records=0))))
    assert batch["weight"].numpy().tolist() == [1] * 12
    np.testing.assert_array_equal(batch["label"], batch["record"] % 3)


def test_a_cache_is_shared_by_all_batches_of_a_dataset(data, stream, tmp_path):
    for cache in ("memory", str(tmp_path / "cache")):
        for _ in range(2):
            found = data.train_batches("train", config(cache=cache)).take(10).as_numpy_iterator()
            assert_stream(list(found), stream, 0)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ({"cursor": -1}, "cursor=-1"),
        ({"host": 2, "hosts": 2}, "host=2 of hosts=2"),
        ({"hosts": 3}, "global_batch_size=8 does not divide over 3 replicas; use a multiple of 3, e.g. 6 or 9"),
    ],
)
def test_impossible_shares_are_refused(data, call, complaint):
    with pytest.raises(UsageError, match=complaint):
        data.train_batches("train", config(), **call)


def test_opening_and_looking_need_no_tensorflow(tiny):
    code = (
        "import sys\nfrom shardline import pipeline\n"
        f"data = pipeline.open_dataset({str(tiny)!r})\n"
        "assert len(list(data.records('test', range(11)))) == 11\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


DISTRIBUTED = """
import sys, numpy as np, tensorflow as tf
from shardline import pipeline
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
data = pipeline.open_dataset(sys.argv[1])
config = pipeline.InputConfig(global_batch_size=8, image_size=16)

def make(context):
    replicas = strategy.num_replicas_in_sync // context.num_input_pipelines
    return data.train_batches("train", config, host=context.input_pipeline_id, hosts=context.num_input_pipelines,
                              replicas=replicas)

steps = iter(strategy.distribute_datasets_from_function(make))
positions = []
for _ in range(5):
    batch = next(steps)
    positions += [strategy.experimental_local_results(batch["position"])]
shares = np.array([[share.numpy() for share in step] for step in positions])
assert shares.reshape(-1).tolist() == list(range(40)), shares
"""


@pytest.mark.slow  # another TensorFlow, 10 s
def test_replicas_of_a_strategy_get_consecutive_rows(tiny):
    result = subprocess.run([sys.executable, "-c", DISTRIBUTED, str(tiny)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
