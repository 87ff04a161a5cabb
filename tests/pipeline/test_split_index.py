"""The mapped index of a split: the same locations as the text indexes, read where it is asked for and nowhere else."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from shardline import pipeline
from shardline.pipeline import split_index
from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import Manifest, Shard, check_files
from shardline.pipeline.split_index import HEAD_BYTES, LoadedIndex, MappedIndex, index_writer, map_index, open_index
from shardline.tools.conversion.run import convert
from shardline.tools.verify import VerifyConfig, verify
from tests.tools.folders import class_folders, config, records

INDEX = "images-train.index"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("index")
    convert(config(class_folders(root / "s", 2, 20), root / "d", shards=3))
    convert(config(class_folders(root / "m", 3, 5, "more") / "more", root / "d", shards=2, append=True))
    return root / "d"


@pytest.fixture
def dataset(made, tmp_path):
    shutil.copytree(made, tmp_path / "d")
    return tmp_path / "d"


def test_it_tells_what_the_text_indexes_tell_in_every_generation(dataset):
    manifest = Manifest.load(dataset)
    mapped = open_index(manifest, dataset, "train")
    rows = check_files(manifest, dataset, "train")
    loaded = LoadedIndex(rows, manifest.split("train").shards)
    assert isinstance(mapped, MappedIndex) and len(mapped) == len(loaded) == 55
    assert [mapped[n] for n in range(55)] == [loaded[n] for n in range(55)] == list(map(tuple, rows.tolist()))
    some = np.array([54, 0, 39, 40, 7, 40])
    np.testing.assert_array_equal(mapped.locations(some), loaded.locations(some))
    assert isinstance(open_index(manifest.at(1), dataset, "train"), MappedIndex)


def test_without_the_file_the_text_indexes_are_read(dataset):
    (dataset / "generation-00002" / INDEX).unlink()
    manifest = Manifest.load(dataset)
    assert isinstance(open_index(manifest, dataset, "train"), LoadedIndex)
    assert isinstance(open_index(manifest.at(1), dataset, "train"), MappedIndex)
    assert list(verify(VerifyConfig(data=dataset, workers=1)).faults) == []


def test_any_flipped_byte_or_cut_is_found_when_it_is_opened(dataset):
    path, manifest = dataset / INDEX, Manifest.load(dataset)
    good = path.read_bytes()
    assert len(good) == HEAD_BYTES + 8 * 40
    head = len(good.split(b"\n")[0].rstrip())
    for at in [*range(0, head, 7), *range(HEAD_BYTES, len(good), 31)]:
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises(UsageError, match=rf"{INDEX} is damaged"):
            open_index(manifest, dataset, "train")
    for size in (0, HEAD_BYTES, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(UsageError, match=rf"{INDEX} is damaged"):
            open_index(manifest, dataset, "train")
    shutil.copy(dataset / "generation-00002" / INDEX, path)
    with pytest.raises(UsageError, match="it is of other shards"):
        open_index(manifest, dataset, "train")
    path.unlink()
    os.mkfifo(path)  # which nobody waits for
    with pytest.raises(UsageError, match="is no regular file"):
        open_index(manifest, dataset, "train")


def test_a_large_one_is_checked_record_by_record(dataset, monkeypatch):
    monkeypatch.setattr(split_index, "CHECKED_BYTES", 0)
    wanted = [bytes(example.image) for example in records(dataset, "train")]
    with open(dataset / INDEX, "r+b") as file:
        file.seek(HEAD_BYTES + 8 * 5)
        file.write((2**60).to_bytes(8, "little"))  # where record 5 ends and 6 begins
    shards = pipeline.open_dataset(dataset).shards("train")
    for number, image in enumerate(wanted):
        if number in (5, 6):
            with pytest.raises(ValueError, match="shorter than its frame"):
                shards.read(number)
        else:
            assert bytes(shards.read(number).image) == image
    faults = verify(VerifyConfig(data=dataset, workers=1)).faults
    assert any(fault.startswith(f"{INDEX}: its checksum does not match") for fault in faults)


def test_only_the_pages_that_are_asked_for_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(split_index, "CHECKED_BYTES", 0)
    each, size = 100_000, 120
    shards = [Shard(f"big-train.tfrecord-{n:05d}-of-00020", each, each * size, "0" * 64) for n in range(20)]
    with index_writer(tmp_path, "big") as add:
        for shard in shards:
            add("train", shard, np.full(each, size))
    ends = map_index(tmp_path / "big-train.index", shards)
    index = MappedIndex([(ends, shards)])
    assert mapped_bytes("big-train.index") <= 1 << 19  # of 16 MB: the kernel maps some pages around the one in need
    picked = np.random.default_rng(0).integers(0, len(index), 8)
    assert index.locations(picked).tolist() == [[n // each, n % each * size, size] for n in picked.tolist()]
    assert mapped_bytes("big-train.index") <= 9 << 19


def mapped_bytes(name):
    """Of the pages of a mapped file that are in this process's memory."""
    found = re.findall(
        rf"^\S+ r\S+ .*{name}\n(?:.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text(), re.MULTILINE
    )
    return 1024 * sum(map(int, found))
