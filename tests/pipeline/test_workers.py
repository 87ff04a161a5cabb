"""Worker processes make the very same batches; whatever befalls one costs speed only. No TensorFlow until the end."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from shardline import pipeline
from shardline.pipeline import workers as workers_module
from shardline.pipeline.batches import BadRecords
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.example import encode_example
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.shards import Shards
from shardline.pipeline.workers import Workers
from tests.pipeline.deadly import make_deadly
from tests.pipeline.test_batches import EVERYTHING, reader
from tests.pipeline.tiny import payloads, write_dataset

BYTES = 1 << 16


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    """Each test has workers of its own."""
    own = workers_module._Pool()
    monkeypatch.setattr(workers_module, "_pool", own)
    yield own
    own.close()
    assert not alive(own)


def alive(pool):
    return sorted(process.pid for process in pool._processes if process.poll() is None)


def positions(start, rows=8):
    return np.arange(start, start + rows)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["default", "everything"])
def test_a_worker_makes_what_a_thread_makes(tiny, on_device, options):
    batches = reader(tiny, **options)
    workers = Workers(1, BYTES, at_once=True)
    for start in (0, 30, 36, 10**9):
        found = workers.train(batches, positions(start), on_device)
        assert_same(found, batches.train(positions(start), on_device))


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_other_encodings_too(tmp_path, encoding):
    write_dataset(tmp_path, {"train": payloads(9, encoding)}, encoding=encoding)
    batches = reader(tmp_path, encoding=encoding)
    assert_same(Workers(1, BYTES, at_once=True).train(batches, positions(0), False), batches.train(positions(0), False))


@pytest.mark.parametrize("crops", [1, 10])
def test_a_worker_makes_evaluation_s_batches_with_their_padding(tmp_path, crops):
    write_dataset(tmp_path, {"train": payloads(9)})
    batches = reader(tmp_path, exact=True, eval_crops=crops)
    workers = Workers(1, crops * BYTES, at_once=True)
    for start in (0, 8, 16):  # whole, one record, none at all
        found = workers.evaluation(batches, positions(start))
        assert_same(found, batches.evaluation(positions(start)))
    assert found["record"].tolist() == [-1] * 8 and not found["weight"].any()
    assert not workers.missed and set(batches.timer.seconds) == {"read", "decode", "preprocess"}


def test_evaluation_and_training_have_setups_of_their_own(tiny):
    data = pipeline.open_dataset(tiny)
    threads, processes = (pipeline.InputConfig(global_batch_size=4, image_size=32, workers=count) for count in (0, 1))
    for batches in ("train_batches", "eval_batches"):
        expected, found = (getattr(data, batches)("train", config).take(3) for config in (threads, processes))
        for a, b in zip(expected.as_numpy_iterator(), found.as_numpy_iterator(), strict=True):
            assert_same(b, a)
    assert [pool.missed["memory"] for pool in data._worker_pools.values()] == [0, 0]


def test_a_batch_in_use_keeps_its_pixels_and_others_are_made_by_threads(tiny, monkeypatch):
    batches, workers = reader(tiny), Workers(1, BYTES, at_once=True, pieces=2)
    held = [workers.train(batches, positions(start), False) for start in (0, 8)]
    assert workers.train(batches, positions(16), False) is None, "both pieces of memory are in use"
    assert workers.missed == {"memory": 1}
    assert_same(held[0], batches.train(positions(0), False))
    del held[1]
    assert_same(workers.train(batches, positions(16), False), batches.train(positions(16), False))
    assert_same(held[0], batches.train(positions(0), False))


@pytest.mark.parametrize(
    ("threads", "replicas", "free", "pieces"),
    [(2, 1, 2**40, 8), (16, 8, 2**40, 50), (192, 8, 10 * 25e6, 5), (2, 1, 0, 1)],
)
def test_there_is_a_piece_for_each_batch_under_way_within_half_of_the_memory(
    threads, replicas, free, pieces, monkeypatch, caplog
):
    monkeypatch.setattr(workers_module, "available_memory", lambda: free)
    assert workers_module.pieces_in_flight(threads, replicas, 25_000_000) == pieces
    assert ("use a smaller batch" in caplog.text) == (free < 2**40)


def test_bad_records_are_counted_here_and_stop_the_run_when_too_many(tmp_path):
    write_dataset(tmp_path, {"train": payloads(12)}, shards=1)
    (shard,) = tmp_path.glob("*.tfrecord-00000-of-00001")
    bad = BadRecords()
    batches = reader(tmp_path, bad, shuffle=False, max_bad_records=1)
    data = bytearray(shard.read_bytes())
    for record in (2, 5):
        location = batches.shards.index[record]
        data[location.offset + location.size // 2] ^= 1
    shard.write_bytes(data)
    workers = Workers(1, BYTES, at_once=True)
    first = workers.train(batches, positions(0, 4), False)
    assert first["weight"].tolist() == [1, 1, 0, 1]
    assert [str(found) for found in bad.records.values()] == [
        f"record 2 of train ({shard.name}, offset {batches.shards.index[2].offset}): record checksum does not match"
    ]
    with pytest.raises(Failure, match="2 bad records, more than max_bad_records=1; the last: record 5 of train"):
        workers.train(batches, positions(4, 4), False)


def test_a_shard_that_is_gone_raises_as_it_does_in_a_thread(tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    batches = reader(copy)
    for path in copy.glob("tiny-train*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="tiny-train"):
        Workers(1, BYTES, at_once=True).train(batches, positions(0), False)


def test_a_killed_worker_costs_nothing_but_speed(tiny, caplog, pool):
    data = pipeline.open_dataset(tiny)
    config = pipeline.InputConfig(global_batch_size=8, image_size=16, workers=2)
    batches = data.train_batches("train", config).as_numpy_iterator()
    found = [next(batches)]
    killed = alive(pool)
    assert len(killed) == 2
    os.kill(killed[0], signal.SIGKILL)
    found += [next(batches) for _ in range(30)]
    alone = pipeline.open_dataset(tiny).train_batches(
        "train", pipeline.InputConfig(global_batch_size=8, image_size=16, workers=0)
    )
    for made, expected in zip(found, alone.take(31).as_numpy_iterator(), strict=True):
        assert_same(made, expected)
    assert [record.getMessage() for record in caplog.records if "input worker" in record.message] == [
        "an input worker ended (exit code -9); its work is done without it"
    ]
    assert alive(pool) == killed[1:]


def test_they_start_by_themselves_once_that_pays_and_only_then(tiny, monkeypatch, pool):
    monkeypatch.setattr(workers_module, "_MIN_SAMPLES", 64)
    batches, workers = reader(tiny), Workers(1, BYTES, at_once=False)
    for start in range(0, 64, 8):
        assert workers.train(batches, positions(start), False) is None
        batches.train(positions(start), False)
    assert not alive(pool)
    deadline = time.monotonic() + 60
    while (found := workers.train(batches, positions(64), False)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert_same(found, batches.train(positions(64), False))
    assert len(alive(pool)) == 1


def test_streams_share_the_workers_and_take_turns(tiny, pool):
    readers = [reader(tiny, seed=seed) for seed in range(workers_module._MAX_SETUPS + 1)]
    streams = [Workers(1, BYTES, at_once=True) for _ in readers]
    for start in (0, 8):  # the second time round, the worker has forgotten
        for batches, stream in zip(readers, streams, strict=True):
            assert_same(stream.train(batches, positions(start), False), batches.train(positions(start), False))
    assert len(alive(pool)) == 1


KILLED = """
import os, signal, sys
import numpy as np
from shardline.pipeline import workers as module
from shardline.pipeline.workers import Workers
from tests.pipeline.deadly import make_deadly
from tests.pipeline.test_batches import reader
workers = Workers(2, 1 << 16, at_once=True)
workers.train(reader(sys.argv[1]), np.arange(8), False)
print(*(process.pid for process in module._pool._processes), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_they_end_when_their_parent_is_killed(tiny):
    result = subprocess.run([sys.executable, "-c", KILLED, str(tiny)], capture_output=True, text=True, timeout=120)
    found = [int(number) for number in result.stdout.split()]
    assert (result.returncode, len(found)) == (-signal.SIGKILL, 2), result.stderr
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{process}/stat").exists() for process in found):
        assert time.monotonic() < deadline, "left behind"
        time.sleep(0.02)
    assert not result.stderr


def test_what_is_sent_to_a_worker_is_small_whatever_the_size_of_the_split(tiny):
    shards = Shards(Manifest.load(tiny), tiny, "train")
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.index == {}
    copy.index = {20: shards.index[20]}
    assert copy.read(20)[1:] == shards.read(20)[1:]


def test_caches_are_filled_by_one_process_and_no_negative_number_of_workers(tiny, pool):
    batches = pipeline.open_dataset(tiny).train_batches(
        "train", pipeline.InputConfig(global_batch_size=8, image_size=16, workers=2, cache="memory")
    )
    next(iter(batches))
    assert not alive(pool)
    with pytest.raises(UsageError, match="workers=-2"):
        pipeline.InputConfig(workers=-2)


def adopted_reader(folder, images):
    """A reader of a dataset that somebody else stored, whose images nobody has checked."""
    stored = [encode_example(image, number % 3, "", 0, 0) for number, image in enumerate(images)]
    write_dataset(folder, {"train": stored}, shards=1)
    return reader(folder)


def test_a_record_that_ends_two_workers_is_bad_and_never_decoded_here(tmp_path, monkeypatch, pool, caplog):
    images = [cv2.imencode(".jpg", np.full((40, 40, 3), 25 * number, np.uint8))[1].tobytes() for number in range(8)]
    batches = adopted_reader(tmp_path / "data", images)
    make_deadly(monkeypatch, tmp_path / "site", images[5])
    decoded = []
    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda data, **k: decoded.append(bytes(data)) or real(data, **k))
    workers = Workers(1, BYTES, at_once=True)
    found = workers.train(batches, positions(0), False)
    assert found is not None and not decoded
    assert (found["weight"] == (found["record"] != 5)).all() and len(pool._processes) == 3
    (bad,) = batches.bad.records.values()
    assert bad.record == 5 and "its decoder ended the process, twice" in bad.reason
    assert caplog.text.count("exit code -11); it decoded record 5 of train") == 2
    assert workers.train(batches, positions(8), False) is not None and len(pool._processes) == 3
    assert (batches.train(positions(16), False)["record"] == 5).sum() == 1 and images[5] not in decoded
