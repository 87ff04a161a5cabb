"""Cached images are the decoded ones; a cache that cannot hold them all is refused with the sum. No TensorFlow."""

import os
import shutil

import numpy as np
import pytest

from shardline.pipeline import cache as cache_module
from shardline.pipeline.batches import BatchBuilder
from shardline.pipeline.cache import DirectoryCache, MemoryCache
from shardline.pipeline.config import InputConfig
from shardline.pipeline.dataset import mean_image_bytes
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.manifest import ImageFormat, Manifest
from shardline.pipeline.shards import Shards
from tests.pipeline.tiny import image


def open_cache(kind, path, num_records=40, image_bytes=5000.0):
    return (
        MemoryCache(num_records, image_bytes)
        if kind == "memory"
        else DirectoryCache(str(path), "x", num_records, image_bytes)
    )


@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_batches_are_the_same_with_a_cache_and_need_no_shards_once_it_is_full(tiny, tmp_path, kind):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    shards = Shards(Manifest.load(copy), copy, "train")
    config = InputConfig(global_batch_size=8, image_size=16)
    cache = open_cache(kind, tmp_path / "cache")
    plain, cached = (
        BatchBuilder(shards, config, ImageFormat("jpeg")),
        BatchBuilder(shards, config, ImageFormat("jpeg"), cache=cache),
    )
    expected = [plain.train(np.arange(start, start + 37), False) for start in (0, 37)]
    first = cached.train(np.arange(37), False)
    for shard in copy.glob("*.tfrecord*"):
        shard.write_bytes(b"")
    second = cached.train(np.arange(37, 74), False)
    for found, wanted in zip((first, second), expected, strict=True):
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    with pytest.raises(Exception, match="bad records"):
        plain.train(np.arange(37), False)


def test_images_on_disk_outlive_the_process(tmp_path):
    cache = open_cache("directory", tmp_path)
    cache.put(3, image(3, 20, 30), 7)
    del cache
    again = open_cache("directory", tmp_path)
    pixels, label = again.get(3)
    assert label == 7
    np.testing.assert_array_equal(pixels, image(3, 20, 30))
    assert again.get(4) is None
    again.put(4, image(4, 10, 10), 1)
    np.testing.assert_array_equal(again.get(3)[0], image(3, 20, 30))


def test_damaged_or_half_written_images_on_disk_are_made_again(tmp_path):
    cache = open_cache("directory", tmp_path)
    cache.put(0, image(0, 20, 30), 1)
    cache.put(1, image(1, 20, 30), 1)
    del cache
    data = bytearray((tmp_path / "x.pixels").read_bytes())
    data[5] ^= 1
    (tmp_path / "x.pixels").write_bytes(data[:-1])
    again = open_cache("directory", tmp_path)
    assert again.get(0) is None
    assert again.get(1) is None


def test_no_flipped_or_cut_byte_changes_an_image_or_a_label(tmp_path):
    images = {number: (image(number, 3 + number, 4), number) for number in (0, 2)}  # nothing stored of record 1
    cache = open_cache("directory", tmp_path, 3)
    for number, (pixels, label) in images.items():
        cache.put(number, pixels, label)
    del cache
    whole = {path: path.read_bytes() for path in (tmp_path / "x.pixels", tmp_path / "x.index")}
    tried = noticed = 0
    for path, data in whole.items():
        for at in range(len(data)):
            for damaged in (bytes([*data[:at], data[at] ^ 1 << at % 8, *data[at + 1 :]]), data[:at]):
                path.write_bytes(damaged)
                found = {number: open_cache("directory", tmp_path, 3).get(number) for number in range(3)}
                assert found.pop(1) is None
                for number, entry in found.items():
                    if entry is not None:
                        np.testing.assert_array_equal(entry[0], images[number][0])
                        assert entry[1] == images[number][1]
                tried, noticed = tried + 1, noticed + (None in found.values())
                for other, content in whole.items():
                    other.write_bytes(content)
    # All but the flips in the empty row, whose record had nothing to lose.
    assert noticed == tried - 5 * 8


def test_rows_of_another_record_are_not_taken_for_this_one(tmp_path):
    cache = open_cache("directory", tmp_path)
    cache.put(3, image(3, 20, 30), 7)
    cache._index[4] = cache._index[3]
    assert cache.get(4) is None and cache.get(3)[1] == 7


def test_a_disk_that_is_full_ends_the_run_with_the_flag_and_the_remedy(tmp_path, monkeypatch):
    cache = open_cache("directory", tmp_path)
    monkeypatch.setattr("os.pwrite", lambda file, data, offset: len(data) - 1)
    with pytest.raises(Failure, match=f"^cache={tmp_path} cannot be written: No space left on device; make room"):
        cache.put(0, image(0, 20, 30), 1)
    assert cache.get(0) is None


@pytest.mark.parametrize("file", ["x.index", "x.pixels"])
def test_a_link_in_a_cache_leads_to_nothing_that_is_written(tmp_path, file):
    (tmp_path / "thesis").write_text("dear")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / file).symlink_to(tmp_path / "thesis")
    with pytest.raises(UsageError, match=r"cache=.*Too many levels of symbolic links"):
        open_cache("directory", tmp_path / "cache")
    assert (tmp_path / "thesis").read_text() == "dear"


def test_two_runs_may_not_share_a_cache(tmp_path):
    first = open_cache("directory", tmp_path)
    with pytest.raises(Failure, match=f"^cache={tmp_path}: x is in use by process {os.getpid()} on .*, started "):
        open_cache("directory", tmp_path)
    del first
    open_cache("directory", tmp_path)
    assert not (tmp_path / "x.lock").exists()


@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_what_does_not_fit_is_refused_with_the_arithmetic(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(cache_module, "available_memory", lambda: 100_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 9 * 10**8, 10**8))
    with pytest.raises(UsageError) as refusal:
        open_cache(kind, tmp_path, num_records=1_281_167, image_bytes=261_888)
    message = str(refusal.value)
    assert "1,281,167 images x 262 kB decoded = 335.52 GB, more than 80% of the 0.10 GB" in message
    assert "cache=none" in message


def test_an_unwritable_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cache=.*Not a directory"):
        open_cache("directory", tmp_path / "file" / "below")


def test_the_estimate_is_exact_for_small_splits(tiny):
    shards = Shards(Manifest.load(tiny), tiny, "train")
    sizes = [(40 + n * 7 % 17) * (36 + n * 5 % 29) * 3 for n in range(37)]
    assert mean_image_bytes(shards, ImageFormat("jpeg")) == pytest.approx(np.mean(sizes))


def test_available_memory_is_a_plausible_number():
    assert 10**7 < cache_module.available_memory() < 10**14
