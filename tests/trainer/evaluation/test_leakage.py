"""Leakage is found, exact and near copies, and no plain sky is taken for one."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow.parquet as parquet
import pytest

from shardline import pipeline
from shardline.pipeline.errors import UsageError
from shardline.trainer.cluster import create_cluster
from shardline.trainer.evaluation import leakage
from shardline.trainer.evaluation.leakage import Leakage
from shardline.trainer.run_dir import Run

ALL = np.arange(21)  # records of the test split


@pytest.fixture(scope="module")
def data(tiny_data):
    return pipeline.open_dataset(tiny_data)


def trained_on(directory, digest):
    """A run, as far as the search for leakage looks at one."""
    return Run(None, SimpleNamespace(data=str(directory), train_split="train"), (), {}, {"dataset": digest}, None, None)


@pytest.fixture(scope="module")
def run(data):
    return trained_on(data.directory, data.manifest.digest)


def test_copies_are_found_with_their_kind(run, data):
    found = leakage.find_leakage(run, None, data, "test", ALL)
    assert {(leaked.path, leaked.train_path, leaked.kind) for leaked in found.records} == {
        ("test/red/0.png", "train/red/5.png", "same file"),
        ("test/blue/1.jpg", "train/blue/3.png", "near duplicate"),
    }
    assert found.note.startswith("2 of 21 images have a copy in train")


def test_what_was_not_evaluated_is_no_leakage(run, data):
    copies = leakage.find_leakage(run, None, data, "test", ALL).records
    found = leakage.find_leakage(run, None, data, "test", np.setdiff1d(ALL, copies[0].record))
    assert found.records == copies[1:] and found.note.startswith("1 of 20 images has a copy")


def test_without_a_ledger_equal_stored_bytes_are_still_found(run, data, monkeypatch):
    monkeypatch.setattr("shardline.pipeline.sources_table.SOURCES_FILE", "none")
    found = leakage.find_leakage(run, None, data, "test", ALL)
    assert [leaked.path for leaked in found.records] == ["test/red/0.png"]
    assert "no ledger" in found.note


def test_a_ledger_without_some_rows_is_no_ledger(data, tmp_path):
    copy = shutil.copytree(data.directory, tmp_path / "copy")
    table = parquet.read_table(copy / "sources.parquet")
    parquet.write_table(table.slice(1), copy / "sources.parquet")
    with pytest.raises(UsageError, match=r"sources\.parquet has not a row of each record of "):
        leakage.read_hashes(pipeline.open_dataset(copy), table["split"][0].as_py())


def test_the_training_split_itself_is_called_that(run, data):
    found = leakage.find_leakage(run, None, data, "train", ALL)
    assert found == Leakage((), "train is the split this run was trained on: nothing in it is held out")


def test_training_data_that_is_gone_is_said(data):
    found = leakage.find_leakage(trained_on("/nowhere", "other"), None, data, "test", ALL)
    assert found == Leakage((), "not searched for: the training data, /nowhere, is not there")


def test_equal_hashes_of_unlike_pixels_are_no_copies(run, data, monkeypatch):
    # Every hash equal, as among plain skies: only pixels that agree count.
    original = leakage.read_hashes

    def all_equal(*arguments):
        hashes = original(*arguments)
        return replace(
            hashes, columns=hashes.columns | {"perceptual_hash": np.full(len(hashes.columns["record"]), 12345)}
        )

    monkeypatch.setattr(leakage, "read_hashes", all_equal)
    found = leakage.find_leakage(run, None, data, "test", ALL).records
    assert len(found) < 7 and {"test/red/0.png"} <= {leaked.path for leaked in found}


def scene(seed=0):
    """A smooth gray image with structure at every place, 64 x 90."""
    noise = np.random.default_rng(seed).integers(0, 255, (8, 12)).astype(np.float32)
    return cv2.resize(noise, (90, 64), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def test_crops_and_flipped_copies_overlap_and_other_images_do_not():
    one = scene()
    crop = cv2.resize(one[6:60, 10:82], (85, 64), interpolation=cv2.INTER_AREA)
    assert leakage.overlap(one, crop)
    assert leakage.overlap(one, one[:, ::-1])
    assert not leakage.overlap(one, scene(1))
    plain = np.full((64, 64), 9, np.uint8)
    assert not leakage.overlap(plain, plain)  # nothing to compare


@pytest.fixture(scope="module")
def sides(data):
    """The hashed splits, and the record of each path in them."""
    sides = leakage.read_hashes(data, "test"), leakage.read_hashes(data, "train")
    return sides, [dict(zip(side.columns["path"], side.columns["record"].tolist(), strict=True)) for side in sides]


def test_neighbors_that_are_the_same_image_are_confirmed_by_their_pixels(sides):
    (test, train), (evaluated, training) = sides
    copy = evaluated["test/red/0.png"], training["train/red/5.png"]
    other = evaluated["test/red/0.png"], training["train/green/5.png"]
    assert leakage.confirm(test, train, [other, copy], leakage._small_gray, leakage.overlap) == [copy]


def test_the_nearest_neighbor_by_features_of_a_copy_is_its_original(sides, loaded_run):
    (test, train), (evaluated, training) = sides
    pairs = leakage.neighbors(loaded_run, create_cluster("one_device", 0), test, train, 8)
    nearest = {}
    for record, train_record in pairs:
        nearest.setdefault(record, train_record)
    assert len(pairs) == 21 * leakage.NEIGHBORS and len(nearest) == 21
    assert nearest[evaluated["test/red/0.png"]] == training["train/red/5.png"]
