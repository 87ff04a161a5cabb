"""The leak guard finds exact and near copies, and takes no plain sky for one."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from shardline import pipeline
from shardline.trainer.evaluation import leakage
from shardline.trainer.state import Run

ALL = np.arange(21)  # records of the test split


@pytest.fixture(scope="module")
def data(tiny_data):
    return pipeline.open_dataset(tiny_data)


def trained_on(directory, digest):
    """A run, as far as the leak guard looks at one."""
    return Run(None, SimpleNamespace(data=str(directory), train_split="train"), (), {}, {"dataset": digest}, None)


@pytest.fixture(scope="module")
def run(data):
    return trained_on(data.directory, data.manifest.digest)


def test_copies_are_found_with_their_kind(run, data):
    found, note = leakage.find(run, None, data, "test", ALL)
    assert {(leak.path, leak.train_path, leak.kind) for leak in found} == {
        ("test/red/0.png", "train/red/5.png", "same file"),
        ("test/blue/1.jpg", "train/blue/3.png", "look alike"),
    }
    assert note.startswith("2 of 21 images have a copy in train")


def test_what_was_not_evaluated_is_no_leak(run, data):
    copies, _ = leakage.find(run, None, data, "test", ALL)
    found, note = leakage.find(run, None, data, "test", np.setdiff1d(ALL, copies[0].record))
    assert found == copies[1:] and note.startswith("1 of 20 images")


def test_without_a_ledger_equal_stored_bytes_are_still_found(run, data, monkeypatch):
    monkeypatch.setattr(leakage, "SOURCES_FILE", "none")
    found, note = leakage.find(run, None, data, "test", ALL)
    assert [leak.path for leak in found] == ["test/red/0.png"]
    assert "no ledger" in note


def test_the_training_split_itself_is_called_that(run, data):
    found, note = leakage.find(run, None, data, "train", ALL)
    assert not found and note == "train is the split this run was trained on: nothing in it is held out"


def test_training_data_that_is_gone_is_said(data):
    found, note = leakage.find(trained_on("/nowhere", "other"), None, data, "test", ALL)
    assert not found and note == "not looked for: the training data, /nowhere, is not there"


def test_look_alikes_equal_counting_bits_one_by_one():
    random = np.random.default_rng(0)
    first = random.integers(0, 2**63, 20, dtype=np.uint64)
    second = np.concatenate([first[:5] ^ np.uint64(0b1011), random.integers(0, 2**63, 50, dtype=np.uint64)])
    brute = {
        (i, j)
        for i in range(len(first))
        for j in range(len(second))
        if (int(first[i]) ^ int(second[j])).bit_count() <= 6
    }
    pairs = leakage.look_alikes(first, second)
    assert set(pairs) == brute and {(i, i) for i in range(5)} <= brute
    distances = [(int(first[i]) ^ int(second[j])).bit_count() for i, j in pairs]
    assert distances == sorted(distances)


def test_equal_hashes_of_unlike_pixels_are_no_copies(run, data, monkeypatch):
    # Every hash equal, as among plain skies: only pixels that agree count.
    original = leakage.read_hashes

    def all_equal(*arguments):
        rows = original(*arguments)
        return rows | {"perceptual_hash": np.zeros_like(rows["perceptual_hash"])}

    monkeypatch.setattr(leakage, "read_hashes", all_equal)
    found, _ = leakage.find(run, None, data, "test", ALL)
    assert len(found) < 7 and {"test/red/0.png", "test/blue/1.jpg"} <= {leak.path for leak in found}


def scene(seed=0):
    """A smooth gray image with structure at every place, 64 x 90."""
    noise = np.random.default_rng(seed).integers(0, 255, (8, 12)).astype(np.float32)
    return cv2.resize(noise, (90, 64), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def test_crops_and_mirror_images_overlap_and_other_images_do_not():
    one = scene()
    crop = cv2.resize(one[6:60, 10:82], (85, 64), interpolation=cv2.INTER_AREA)
    assert leakage.overlap(one, crop) >= leakage.OVERLAP
    assert leakage.overlap(one, one[:, ::-1]) >= leakage.OVERLAP
    assert leakage.overlap(one, scene(1)) < leakage.OVERLAP
    assert leakage.overlap(np.full((64, 64), 9, np.uint8), np.full((64, 64), 9, np.uint8)) < 0  # nothing to compare


def test_neighbors_that_are_the_same_image_are_confirmed_by_their_pixels(data):
    rows = leakage.read_hashes(data, "test"), leakage.read_hashes(data, "train")
    where = [{path: int(record) for path, record in zip(r["path"], r["record"], strict=True)} for r in rows]
    copy = where[0]["test/red/0.png"], where[1]["train/red/5.png"]
    other = where[0]["test/red/0.png"], where[1]["train/green/5.png"]
    assert list(leakage.overlapping(data, "test", data, "train", [other, copy])) == [copy]
