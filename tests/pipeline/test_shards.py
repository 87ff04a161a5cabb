"""Records by number; and nothing that is missing, replaced or cut gets past the start."""

import errno
import os
import shutil

import pytest

from shardline import pipeline
from shardline.pipeline import shards as shards_module
from shardline.pipeline.errors import UsageError, explain
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.shards import Shards
from tests.pipeline.tiny import payloads, write_dataset


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


def test_records_are_read_by_number(tiny):
    shards = Shards(Manifest.load(tiny), tiny, "train")
    assert len(shards) == 37
    assert [shards.read(n).filename for n in (36, 0, 12, 11)] == ["36.jpg", "0.jpg", "12.jpg", "11.jpg"]


def test_more_shards_than_files_may_be_open(tiny, monkeypatch):
    monkeypatch.setattr(shards_module, "_MAX_OPEN_FILES", 1)
    shards = Shards(Manifest.load(tiny), tiny, "train")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert [shards.read(n).filename for n in (0, 12, 36)] == ["0.jpg", "12.jpg", "36.jpg"]
    assert len(os.listdir("/proc/self/fd")) == before + 1


def test_raw_examples_need_no_tensorflow_and_no_order(tiny):
    found = list(pipeline.open_dataset(tiny).records("test", [10, 3]))
    assert [(label, name) for _, label, name in found] == [(1, "10.jpg"), (0, "3.jpg")]
    assert all(image.startswith(b"\xff\xd8") and image.endswith(b"\xff\xd9") for image, _, _ in found)


def shard_of(directory, number=1):
    return sorted(directory.glob("*-train.tfrecord-*-of-00003"))[number]


def index_of(directory):
    return next(directory.glob("*-train.tfrecord-00001-of-00003.idx"))


def replace_index_by_neighbor(directory):
    shutil.copy(shard_of(directory, 0).with_name(shard_of(directory, 0).name + ".idx"), index_of(directory))


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda d: shard_of(d).unlink(), "is missing"),
        (lambda d: shard_of(d).rename(d / "renamed"), "is missing"),
        (lambda d: shard_of(d).write_bytes(b""), "has 0 bytes, not"),
        (lambda d: os.truncate(shard_of(d), shard_of(d).stat().st_size - 1), "bytes, not"),
        (lambda d: shutil.copy(shard_of(d, 0), shard_of(d)), "bytes, not"),
        (lambda d: index_of(d).unlink(), "idx is missing"),
        (lambda d: index_of(d).write_text(""), "does not fit"),
        (lambda d: index_of(d).write_text("0 12 x"), ""),
        (replace_index_by_neighbor, "does not fit"),
    ],
    ids=[
        *("missing", "renamed", "empty", "truncated", "replaced"),
        *("no-index", "empty-index", "junk-index", "stale-index"),
    ],
)
def test_harmed_files_are_refused_at_the_start_by_name(copy, harm, complaint):
    harm(copy)
    with pytest.raises(UsageError) as refusal:
        pipeline.open_dataset(copy)
    message = str(refusal.value)
    assert "train.tfrecord-00001-of-00003" in message
    assert complaint in message
    assert "\n" not in message


def test_a_split_may_be_empty(tmp_path):
    data = pipeline.open_dataset(write_dataset(tmp_path, {"train": payloads(4), "test": []}))
    config = pipeline.InputConfig(global_batch_size=2, image_size=8)
    assert list(data.eval_batches("test", config)) == []
    with pytest.raises(UsageError, match="split=test holds no records"):
        data.train_batches("test", config)
    with pytest.raises(UsageError, match="split=validation: this dataset has train, test"):
        data.train_batches("validation", config)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_told_with_the_shard_and_blamed_on_no_record(tiny, monkeypatch, number):
    shards = Shards(Manifest.load(tiny), tiny, "train")

    def broken(file, buffers, offset):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(OSError) as refusal:
        shards.read(5)
    shown = explain(refusal.value)
    assert shown.startswith(f"{shards.where(5)[0]}: {os.strerror(number)}; the disk or its mount does not answer")
