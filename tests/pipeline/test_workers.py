"""Worker processes make the very same batches; whatever befalls one costs speed, or one record. TensorFlow is last."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from shardline import pipeline
from shardline.pipeline import workers as workers_module
from shardline.pipeline.batches import BadRecords, BatchBuilder
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.example import encode_example
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.shards import BadRecord, Shards
from shardline.pipeline.workers import Workers, stored_images
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
    processes = [worker.process for worker in pool._all if worker.process]
    return sorted(process.pid for process in processes if process.poll() is None)


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
    workers = Workers(1, BYTES)
    for start in (0, 30, 36, 10**9):
        found = workers.train(batches, positions(start), on_device)
        assert_same(found, batches.train(positions(start), on_device))


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_other_encodings_too(tmp_path, encoding):
    write_dataset(tmp_path, {"train": payloads(9, encoding)}, encoding=encoding)
    batches = reader(tmp_path, encoding=encoding)
    assert_same(Workers(1, BYTES).train(batches, positions(0), False), batches.train(positions(0), False))


@pytest.mark.parametrize("crops", [1, 10])
def test_a_worker_makes_evaluation_s_batches_with_their_padding(tmp_path, crops):
    write_dataset(tmp_path, {"train": payloads(9)})
    batches = reader(tmp_path, exact=True, eval_crops=crops)
    workers = Workers(1, crops * BYTES)
    for start in (0, 8, 16):  # whole, one record, none at all
        found = workers.evaluation(batches, positions(start))
        assert_same(found, batches.evaluation(positions(start)))
    assert found["record"].tolist() == [-1] * 8 and not found["weight"].any()
    assert not workers.sent and set(batches.timer.seconds) == {"read", "decode", "preprocess"}


def test_evaluation_and_training_have_setups_of_their_own(tiny):
    data = pipeline.open_dataset(tiny)
    threads, processes = (pipeline.InputConfig(global_batch_size=4, image_size=32, workers=count) for count in (0, 1))
    for batches in ("train_batches", "eval_batches"):
        expected, found = (getattr(data, batches)("train", config).take(3) for config in (threads, processes))
        for a, b in zip(expected.as_numpy_iterator(), found.as_numpy_iterator(), strict=True):
            assert_same(b, a)
    assert [workers.sent for workers in data._worker_pools.values()] == [0, 0]


def test_a_batch_in_use_keeps_its_pixels_and_others_come_through_a_pipe(tiny, monkeypatch):
    batches, workers = reader(tiny), Workers(1, BYTES, pieces=2)
    held = [workers.train(batches, positions(start), False) for start in (0, 8)]
    assert not workers.sent
    third = workers.train(batches, positions(16), False)
    assert workers.sent == 1, "both pieces of memory are in use"
    assert_same(third, batches.train(positions(16), False))
    assert_same(held[0], batches.train(positions(0), False))
    del held[1]
    assert_same(workers.train(batches, positions(16), False), batches.train(positions(16), False))
    assert workers.sent == 1
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
    workers = Workers(1, BYTES)
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
        Workers(1, BYTES).train(batches, positions(0), False)


def test_a_killed_worker_costs_nothing_but_speed(tiny, caplog, pool):
    data = pipeline.open_dataset(tiny)
    config = pipeline.InputConfig(global_batch_size=8, image_size=16, workers=2)
    batches = data.train_batches("train", config).as_numpy_iterator()
    found = [next(batches)]
    while len(pool._idle) < 2:  # enough is made ahead, and both have started
        time.sleep(0.01)
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
        "an input worker ended (exit code -9); another one does its work"
    ]
    assert len(alive(pool)) == 2 and set(alive(pool)) - set(killed)


def test_as_many_start_as_are_asked_at_once_and_no_more_than_allowed(tiny, pool):
    batches, workers = reader(tiny), Workers(2, BYTES)
    for start in range(0, 64, 8):
        workers.train(batches, positions(start), False)
    assert len(alive(pool)) == 1
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda start: workers.train(batches, positions(start), False), range(0, 64, 8)))
    for start, batch in zip(range(0, 64, 8), found, strict=True):
        assert_same(batch, batches.train(positions(start), False))
    assert len(alive(pool)) == 2


@pytest.mark.parametrize("count", [0, 2])
def test_they_can_be_started_before_the_first_batch(tiny, pool, count):
    pipeline.open_dataset(tiny).start_workers(pipeline.InputConfig(workers=count))
    deadline = time.monotonic() + 60
    while len(pool._idle) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(alive(pool)) == count


def test_those_that_start_do_the_work_of_those_that_do_not(tiny, pool, monkeypatch, caplog):
    batches, workers = reader(tiny), Workers(2, BYTES)
    workers.train(batches, positions(0), False)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: os.stat("/nowhere"))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda start: workers.train(batches, positions(start), False), range(0, 64, 8)))
    for start, batch in zip(range(0, 64, 8), found, strict=True):
        assert_same(batch, batches.train(positions(start), False))
    assert len(alive(pool)) == 1 and "can be started (No such file or directory)" in caplog.text
    monkeypatch.setattr(workers_module, "_pool", workers_module._Pool())
    with pytest.raises(Failure, match="no input worker, which decodes images, can be started"):
        workers.train(batches, positions(0), False)


def test_streams_share_the_workers_and_take_turns(tiny, pool):
    readers = [reader(tiny, seed=seed) for seed in range(workers_module._MAX_SETUPS + 1)]
    streams = [Workers(1, BYTES) for _ in readers]
    for start in (0, 8):  # the second time round, the worker has forgotten
        for batches, stream in zip(readers, streams, strict=True):
            assert_same(stream.train(batches, positions(start), False), batches.train(positions(start), False))
    assert len(alive(pool)) == 1


KILLED = """
import os, signal, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from shardline.pipeline import workers as module
from shardline.pipeline.workers import Workers
from tests.pipeline.deadly import make_deadly
from tests.pipeline.test_batches import reader
workers, batches = Workers(2, 1 << 16), reader(sys.argv[1])
with ThreadPoolExecutor(2) as threads:
    list(threads.map(lambda _: workers.train(batches, np.arange(8), False), range(20)))
print(*(worker.process.pid for worker in module._pool._all), flush=True)
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


@pytest.mark.parametrize(("kind", "cache"), [("train_batches", "directory"), ("eval_batches", "memory")])
def test_a_worker_decodes_what_this_process_puts_into_a_cache(tiny, tmp_path, kind, cache, monkeypatch):
    plain = pipeline.InputConfig(global_batch_size=8, image_size=16, workers=0)
    cached = replace(plain, workers=2, cache=str(tmp_path) if cache == "directory" else cache)
    expected = getattr(pipeline.open_dataset(tiny), kind)("train", plain)
    monkeypatch.setattr(BatchBuilder, "_decoded", lambda *_: pytest.fail("decoded here"))
    data = pipeline.open_dataset(tiny)
    found = getattr(data, kind)("train", cached).take(12).as_numpy_iterator()
    monkeypatch.undo()
    for a, b in zip(found, expected.take(12).as_numpy_iterator(), strict=True):
        assert_same(a, b)
    assert set(data.stage_times(of={"train_batches": "training", "eval_batches": "evaluation"}[kind]).microseconds) > {
        "read", "decode"
    }  # fmt: skip


def test_no_negative_number_of_workers():
    with pytest.raises(UsageError, match="workers=-2"):
        pipeline.InputConfig(workers=-2)


def adopted_reader(folder, images, **config):
    """A reader of a dataset that somebody else stored, whose images nobody has checked."""
    stored = [encode_example(image, number % 3, "", 0, 0) for number, image in enumerate(images)]
    write_dataset(folder, {"train": stored}, shards=1)
    return reader(folder, **config)


@pytest.fixture
def never_here(monkeypatch):
    """Fails where this process decodes a JPEG."""
    real, here = simplejpeg.decode_jpeg, []
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda data, **k: here.append(bytes(data)) or real(data, **k))
    yield
    assert not here


def flat_images(number=8):
    return [cv2.imencode(".jpg", np.full((40, 40, 3), 20 * n, np.uint8))[1].tobytes() for n in range(number)]


@pytest.mark.parametrize("way", ["crash", pytest.param("hang", marks=pytest.mark.slow)])
def test_a_record_that_ends_two_workers_is_bad_and_never_decoded_here(
    tmp_path, monkeypatch, pool, caplog, way, never_here
):
    images = flat_images()
    batches = adopted_reader(tmp_path / "data", images, image_timeout=0.5)
    make_deadly(monkeypatch, tmp_path / "site", images[5], way)
    started = []
    real = workers_module._Worker.start
    monkeypatch.setattr(workers_module._Worker, "start", lambda w: started.append(w.process is None) or real(w))
    workers = Workers(1, BYTES)
    found = workers.train(batches, positions(0), False)
    assert (found["weight"] == (found["record"] != 5)).all() and sum(started) == 3
    (bad,) = batches.bad.records.values()
    assert bad.record == 5
    assert {"crash": "its decoder ended the process", "hang": "its decoder did not end"}[way] in bad.reason
    said = {"crash": "ended (exit code -11); ", "hang": "ended (killed, as its decoder did not end); "}[way]
    assert caplog.text.count(f"{said}it decoded record 5 of train") == 2
    workers.train(batches, positions(8), False)
    assert sum(started) == 3 and len(alive(pool)) == 1


@pytest.mark.parametrize(("kind", "cache"), [("train_batches", "none"), ("eval_batches", "memory")])
def test_no_decoder_ends_a_training_or_an_evaluation(tmp_path, monkeypatch, kind, cache, never_here):
    images = flat_images()
    adopted_reader(tmp_path / "data", images)
    make_deadly(monkeypatch, tmp_path / "site", images[3])
    data = pipeline.open_dataset(tmp_path / "data")
    config = pipeline.InputConfig(global_batch_size=4, image_size=16, shuffle=False, cache=cache)
    first, second = getattr(data, kind)("train", config).take(2).as_numpy_iterator()
    weights = dict(zip([*first["record"], *second["record"]], [*first["weight"], *second["weight"]], strict=True))
    assert weights == {record: float(record != 3) for record in range(8)}
    assert list(data.bad_records.records) == [("train", 3)]


def test_whole_images_come_in_order_and_a_deadly_one_as_what_is_wrong(tmp_path, monkeypatch, never_here):
    images = flat_images(12)
    batches = adopted_reader(tmp_path / "data", images)
    make_deadly(monkeypatch, tmp_path / "site", images[4])
    found = list(stored_images(batches.shards, batches.image, [11, 4, 0, *range(1, 8)]))
    assert isinstance(found[1], BadRecord) and found[1].record == 4
    pixels, label = found[0]
    assert abs(pixels.astype(int) - 20 * 11).max() < 30 and label == 11 % 3


@pytest.mark.parametrize("way", ["memory", "killed"])
def test_want_of_memory_is_no_bad_record(tmp_path, monkeypatch, way):
    images = flat_images()
    batches = adopted_reader(tmp_path / "data", images)
    make_deadly(monkeypatch, tmp_path / "site", images[5], way)
    error = {"memory": MemoryError, "killed": Failure}[way]
    with pytest.raises(
        error, match={"memory": "record 5 of train", "killed": "signal 9 2 times over one batch, .* record 5 of"}[way]
    ):
        Workers(1, BYTES).train(batches, positions(0), False)
    assert not batches.bad.records and not batches.bad.unsafe
