"""Duplicates and the ledger: what is kept, dropped, moved, reported; and a row for every input."""

import shutil
from collections import Counter

import cv2
import numpy as np
import pyarrow.parquet as parquet
import pytest

from shardline.pipeline.errors import Failure
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.tfrecord import read_framed, unframe_record
from shardline.tools.conversion.run import convert
from tests.tools.folders import ROOT, Run, class_folders, config, draw, records, shard_hashes

SHARES = {"train": 0.5, "validation": 0.25, "test": 0.25}


def rows(directory):
    return parquet.read_table(directory / "sources.parquet").to_pylist()


def check_locations(directory):
    """Each row tells where its record lies, by shard and offset and by its number in the split."""
    stored = {name: records(directory, name) for name in Manifest.load(directory).splits}
    for row in rows(directory):
        if row["status"] != "written":
            assert (row["shard"], row["record"], row["offset"], row["size"]) == ("", -1, -1, 0)
            continue
        framed = read_framed(directory / row["shard"], row["offset"], row["size"])
        assert row["path"].encode() in unframe_record(framed)
        example = stored[row["split"]][row["record"]]
        assert (example.filename, example.label) == (row["path"], row["label"])
        assert row["label_name"] == f"class{row['label']}"


@pytest.fixture
def doubled(tmp_path):
    """Two classes of 20, each image once more under another name, some in the other class or another format."""
    source = class_folders(tmp_path / "s", 2, 20)
    for i in range(20):
        original = source / "class0" / f"img_{i:03d}.jpg"
        shutil.copy(original, source / ("class1" if i < 5 else "class0") / f"copy of {i}.jpg")
    for i in range(5):  # equal pixels in other bytes
        png = source / "class1" / f"lossless_{i}.png"
        cv2.imwrite(str(png), np.random.default_rng(i).integers(0, 255, (12, 12, 3), np.uint8))
        cv2.imwrite(str(png.with_suffix(".bmp")), cv2.imread(str(png)))
    return source


def test_exact_duplicates_never_lie_in_two_splits(doubled, tmp_path):
    convert(config(doubled, tmp_path / "d", splits=SHARES))
    by_pixels = {}
    for row in rows(tmp_path / "d"):
        by_pixels.setdefault(row["pixel_hash"], []).append(row)
    pairs = [group for group in by_pixels.values() if len(group) > 1]
    assert len(pairs) == 25
    assert all(len({row["split"] for row in group}) == 1 for group in pairs)
    assert len({row["split"] for row in rows(tmp_path / "d")}) == 3
    check_locations(tmp_path / "d")
    manifest = Manifest.load(tmp_path / "d")
    for name, split in manifest.splits.items():
        stored = records(tmp_path / "d", name)
        assert Counter(e.filename for e in stored) == Counter(
            row["path"] for row in rows(tmp_path / "d") if row["split"] == name
        )
        assert [sum(e.label == c for e in stored) for c in (0, 1)] == list(manifest.class_counts[name])
        assert split.records == len(stored)


def test_duplicates_that_tie_groups_together_take_the_groups_along(tmp_path):
    source = class_folders(tmp_path / "s", 1, 40)
    lines = ["path,label,group"]
    for i in range(40):
        lines.append(f"class0/img_{i:03d}.jpg,x,g{i // 4}")
    for i in range(10):  # a chain: each group holds a copy of an image of the next
        shutil.copy(source / "class0" / f"img_{(4 * i + 4) % 40:03d}.jpg", source / "class0" / f"copy{i}.jpg")
        lines.append(f"class0/copy{i}.jpg,x,{f'g{i}' if i < 3 else ''}")
    (source / "t.csv").write_text("\n".join(lines))
    convert(config(source / "t.csv", tmp_path / "d", splits={"train": 0.5, "test": 0.5}))
    split = {row["path"]: row["split"] for row in rows(tmp_path / "d")}
    for i in range(10):
        assert len({split[f"class0/img_{4 * i + k:03d}.jpg"] for k in range(4)}) == 1, "a group lies in two splits"
        assert split[f"class0/copy{i}.jpg"] == split[f"class0/img_{(4 * i + 4) % 40:03d}.jpg"]
    assert len({split[f"class0/img_{4 * i:03d}.jpg"] for i in range(4)}) == 1


def test_drop_leaves_one_of_each_and_balances(doubled, tmp_path):
    manifest = convert(config(doubled, tmp_path / "d", duplicates="drop", splits=SHARES))
    account = manifest.ledger
    assert (account.inputs, account.written, account.duplicates) == (70, 45, 25)
    found = rows(tmp_path / "d")
    assert len({row["pixel_hash"] for row in found if row["status"] == "written"}) == 45
    assert {row["reason"] for row in found if row["status"] == "duplicate"} == {"equal-pixels"}
    assert all(not row["path"].split("/")[1].startswith("copy") for row in found if row["status"] == "written")
    assert sum(len(records(tmp_path / "d", name)) for name in manifest.splits) == 45
    check_locations(tmp_path / "d")
    convert(config(doubled, tmp_path / "e", duplicates="drop", splits=SHARES, engine="processes", workers=3))
    assert shard_hashes(tmp_path / "d") == shard_hashes(tmp_path / "e")


def test_drop_keeps_the_copy_that_is_evaluated(tmp_path):
    source = class_folders(class_folders(tmp_path / "s", 2, 4, "train"), 2, 4, "test")
    shutil.copy(source / "test" / "class0" / "img_000.jpg", source / "train" / "class0" / "a.jpg")
    manifest = convert(config(source, tmp_path / "d", duplicates="drop"))
    assert {name: split.records for name, split in manifest.splits.items()} == {"train": 8, "test": 8}


def test_fail_names_a_pair(doubled, tmp_path):
    with pytest.raises(Failure, match=r"25 of 70 images have the pixels of another, e\.g\. .* those of "):
        convert(config(doubled, tmp_path / "d", duplicates="fail"))
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_conflicting_labels_and_cross_split_pairs_are_reported_first(tmp_path, capsys):
    source = class_folders(class_folders(tmp_path / "s", 2, 6, "train"), 2, 6, "test")
    shutil.copy(source / "train" / "class0" / "img_000.jpg", source / "train" / "class0" / "same.jpg")
    shutil.copy(source / "train" / "class0" / "img_001.jpg", source / "train" / "class1" / "conflict.jpg")
    shutil.copy(source / "train" / "class0" / "img_002.jpg", source / "test" / "class0" / "leak.jpg")
    near = cv2.imread(str(source / "train" / "class1" / "img_003.jpg"))
    cv2.imwrite(str(source / "test" / "class1" / "near.jpg"), cv2.convertScaleAbs(near, alpha=0.9, beta=5))
    convert(config(source, tmp_path / "d", report=True))
    message = capsys.readouterr().err
    assert "1 set of equal images with different labels" in message
    assert "1 set of equal images in several splits" in message
    page = (tmp_path / "d" / "report.html").read_text()
    order = [page.index(name) for name in ("leak.jpg", "conflict.jpg", "same.jpg")]
    assert order == sorted(order)
    pairs = (tmp_path / "d" / "near_duplicates.csv").read_text().splitlines()
    assert any("train/class1/img_003.jpg,test/class1/near.jpg,class1,class1,1," in line for line in pairs)


@pytest.fixture(scope="module")
def malformed(tmp_path_factory):
    from shardline.tools.malformed_images import cases, write

    folder = tmp_path_factory.mktemp("malformed") / "s"
    class_folders(folder, 1, 4)
    (folder / "corpus").mkdir()
    write(folder / "corpus", cases())
    return folder


def test_every_malformed_image_has_a_row_and_the_ledger_holds(malformed, tmp_path):
    result = Run(
        "shardline.tools.convert",
        "--source",
        malformed,
        "--output",
        tmp_path / "d",
        "--min_side",
        30,
        "--size",
        64,
        "--noreport",
    )
    assert result.code == 0, result.stderr
    manifest, found = Manifest.load(tmp_path / "d"), rows(tmp_path / "d")
    account = manifest.ledger
    names = sorted(f"{folder.name}/{entry.name}" for folder in malformed.iterdir() for entry in folder.iterdir())
    assert sorted(row["path"] for row in found) == names
    assert account.inputs == len(names)
    assert Counter(row["status"] for row in found) == Counter(
        {"written": account.written, "quarantined": account.quarantined, "filtered": account.filtered}
    ) - Counter({"filtered": 0})
    reasons = {row["path"].split("/")[1]: row["reason"] for row in found}
    assert reasons["dangling-link.jpg"] == "dangling-symlink"
    assert reasons["looping-link.jpg"] == "symlink-loop"
    assert reasons["a-directory.jpg"] == "is-a-directory"
    assert reasons["empty.jpg"] == "empty"
    assert all(bool(row["reason"]) == (row["status"] != "written") for row in found)
    stored = {row["path"]: row for row in found if row["status"] == "written"}
    assert {e.filename for e in records(tmp_path / "d", "train")} == set(stored)
    one = stored["class0/img_000.jpg"]
    framed = read_framed(tmp_path / "d" / one["shard"], one["offset"], one["size"])
    assert b"class0/img_000.jpg" in unframe_record(framed)
    assert [e.filename for e in records(tmp_path / "d", "train")][one["record"]] == "class0/img_000.jpg"


def test_too_many_bad_images_end_the_run(malformed, tmp_path):
    args = ["--source", malformed, "--output", tmp_path / "d", "--size", 64, "--noreport", "--engine", "inline"]
    result = Run("shardline.tools.convert", *args, "--max_bad_fraction", 0.2)
    assert (result.code, len(result.stderr.strip().splitlines())) == (1, 1)
    assert "--max_bad_fraction=0.2" in result.stderr
    assert not (tmp_path / "d" / "manifest.json").exists()
    result = Run("shardline.tools.convert", *args, "--max_bad_fraction", 0.9)
    assert result.code == 0, result.stderr
    assert "continuing" in result.stderr


def test_the_first_bad_image_can_end_the_run(tmp_path):
    source = class_folders(tmp_path / "s", 1, 3)
    (source / "class0" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    result = Run(
        "shardline.tools.convert",
        "--source",
        source,
        "--output",
        tmp_path / "d",
        "--on_bad_image",
        "fail",
        "--engine",
        "inline",
    )
    assert result.code == 1
    assert "class0/bad.jpg: " in result.stderr and "--on_bad_image=quarantine" in result.stderr
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_filters_are_counted_apart(tmp_path):
    source = class_folders(tmp_path / "s", 1, 5)
    draw(source / "class0" / "small.jpg", 1, height=10, width=10)
    manifest = convert(config(source, tmp_path / "d", image={"min_side": 20}))
    assert (manifest.ledger.written, manifest.ledger.filtered, manifest.ledger.quarantined) == (5, 1, 0)


def test_a_dry_run_estimates_and_writes_nothing(malformed, tmp_path):
    result = Run(
        "shardline.tools.convert", "--source", malformed, "--dry_run", "--size", 64, "--output", tmp_path / "d"
    )
    assert result.code == 0, result.stderr
    assert not (tmp_path / "d").exists()
    assert "2 classes: train" in result.stdout
    manifest = convert(config(malformed, tmp_path / "e", size=64))
    size = sum(split.bytes for split in manifest.splits.values())
    assert f"estimated: {size / 1e6:,.1f} MB" in result.stdout  # all of it was sampled
    assert f"{manifest.ledger.quarantined / manifest.ledger.inputs:.1%} bad" in result.stdout


def test_workers_do_not_import_tensorflow():
    """Nor the parent: what a conversion touches stays small."""
    import subprocess
    import sys

    code = (
        "import sys, shardline.tools.convert\n"
        "from shardline.tools.conversion import run, scan_tfds\n"
        "print([name for name in ('tensorflow', 'keras', 'tensorflow_datasets') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_hashes_that_begin_alike_are_told_apart(doubled, tmp_path, monkeypatch, duplicates):
    """Also those of images that the dataset had before."""
    more = class_folders(tmp_path / "m", 2, 15, "more") / "more"
    shutil.copy(doubled / "class0" / "img_000.jpg", more / "class0" / "known.jpg")
    found = []
    for name, digits in (("d", 16), ("e", 1)):  # with one digit every image may equal many others
        monkeypatch.setattr("shardline.tools.conversion.deduplicate.HASH_DIGITS", digits)
        convert(config(doubled, tmp_path / name, duplicates=duplicates, splits=SHARES))
        found.append(convert(config(more, tmp_path / name, duplicates=duplicates, append=True)).digest)
    assert found[0] == found[1]
    assert Manifest.load(tmp_path / "e").ledger.duplicates == (26 if duplicates == "drop" else 0)
