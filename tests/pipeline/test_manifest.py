"""A dataset directory is whole and untouched, or a line says what is wrong with it."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import (
    Ledger,
    Manifest,
    Shard,
    Split,
    check_files,
    index_path,
    load_index,
    shard_name,
    write_index,
)
from shardline.pipeline.tfrecord import frame_record
from tests.pipeline.tiny import edit_stored


@pytest.fixture
def dataset(tmp_path):
    shards = []
    for number in range(2):
        file = shard_name("toy", "train", number, 2)
        frames = [frame_record(bytes(10 + number + i)) for i in range(3)]
        (tmp_path / file).write_bytes(b"".join(frames))
        sizes = np.array([len(frame) for frame in frames])
        write_index(index_path(tmp_path / file), np.column_stack((np.cumsum(sizes) - sizes, sizes)))
        shards.append(Shard(file, 3, int(sizes.sum()), "0" * 64))
    manifest = Manifest(
        name="toy", labels=("a", "b"), splits={"train": Split("train", tuple(shards))}, ledger=Ledger(7, 6, 1)
    )
    manifest.save(tmp_path)
    return tmp_path


def test_a_saved_manifest_loads_equal(dataset):
    manifest = Manifest.load(dataset)
    assert manifest.splits["train"].records == 6
    assert manifest.ledger == Ledger(inputs=7, written=6, quarantined=1)
    again = dataset / "again"
    again.mkdir()
    manifest.save(again)
    assert Manifest.load(again) == manifest
    assert not list(dataset.glob("*.tmp"))


def test_the_digest_follows_what_batches_depend_on_and_nothing_else(dataset):
    manifest = Manifest.load(dataset)
    assert replace(manifest, name="other", versions={"x": "1"}).digest == manifest.digest
    assert replace(manifest, labels=("b", "a")).digest != manifest.digest
    first, second = manifest.splits["train"].shards
    for change in ({"sha256": "1" * 64}, {"bytes": first.bytes + 1}, {"file": "../" + first.file}):
        swapped = {"train": Split("train", (replace(first, **change), second))}
        assert replace(manifest, splits=swapped).digest != manifest.digest


def test_a_ledger_that_does_not_balance_cannot_exist():
    with pytest.raises(ValueError, match="balance"):
        Ledger(inputs=3, written=1, quarantined=1)


def test_the_index_of_a_whole_dataset_gives_shard_offset_and_size(dataset):
    index = check_files(Manifest.load(dataset), dataset, "train")
    assert index[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    for shard, offset, size in index.tolist():
        data = (dataset / shard_name("toy", "train", shard, 2)).read_bytes()[offset : offset + size]
        assert data == frame_record(data[12:-4])


SHARD = shard_name("toy", "train", 1, 2)


def in_place(path, make):
    """Something else under a file's name."""
    path.unlink()
    make(path)


def to(target):
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / SHARD).unlink(), f"{SHARD} is missing"),
        (lambda d: (d / SHARD).rename(d / "renamed"), f"{SHARD} is missing"),
        (lambda d: (d / SHARD).write_bytes(b""), f"{SHARD} has 0 bytes"),
        (lambda d: (d / SHARD).write_bytes((d / SHARD).read_bytes()[:-1]), f"{SHARD} has"),
        (lambda d: index_path(d / SHARD).unlink(), f"{SHARD}.idx is missing"),
        (lambda d: index_path(d / SHARD).write_text("0 27\n"), f"{SHARD}.idx does not fit"),
        (lambda d: index_path(d / SHARD).write_text("0 x\n"), f"{SHARD}.idx is damaged"),
        (lambda d: index_path(d / SHARD).write_text("0 27\n0 28\n27 29\n"), f"{SHARD}.idx does not fit"),
        (lambda d: index_path(d / SHARD).write_text("0 27\n27"), f"{SHARD}.idx is damaged"),
        (lambda d: index_path(d / SHARD).write_bytes(b"\xff\xff"), f"{SHARD}.idx is damaged"),
        (lambda d: os.truncate(index_path(d / SHARD), 1 << 40), f"{SHARD}.idx is damaged (more bytes than"),
        (lambda d: in_place(index_path(d / SHARD), os.mkfifo), f"{SHARD}.idx cannot be read (is no regular file)"),
        (lambda d: in_place(index_path(d / SHARD), os.mkdir), f"{SHARD}.idx cannot be read (is no regular file)"),
        (lambda d: in_place(index_path(d / SHARD), to("/dev/zero")), f"{SHARD}.idx cannot be read (is no regular"),
        (lambda d: in_place(index_path(d / SHARD), to(f"{SHARD}.idx")), f"{SHARD}.idx cannot be read (Too many levels"),
        (lambda d: in_place(d / SHARD, to("nothing")), f"{SHARD} is missing"),
    ],
)
def test_damaged_files_are_refused_by_name(dataset, damage, said):
    damage(dataset)
    with pytest.raises(UsageError) as caught:
        check_files(Manifest.load(dataset), dataset, "train")
    assert said in str(caught.value) and "restore" in str(caught.value)


def test_no_manifest_means_no_dataset(dataset):
    (dataset / "manifest.json").unlink()
    with pytest.raises(UsageError, match="no finished dataset"):
        Manifest.load(dataset)
    with pytest.raises(UsageError, match="no such directory"):
        Manifest.load(dataset / "nowhere")


def set_shard(content, **change):
    content["splits"]["train"]["shards"][0].update(change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(format="shardline/99"), "has format shardline/99"),
        (lambda c: c.update(labels=["b", "a"]), "its digest no longer matches"),
        (lambda c: c.pop("digest"), "`digest`"),
        (lambda c: c.pop("splits"), "`splits`"),
        (lambda c: c["ledger"].update(inputs=99), "does not balance"),
        (lambda c: c["ledger"].update(inputs="7"), "ledger.inputs`"),
        (lambda c: c["image"].update(encoding="\x1b[31m"), "image.encoding`"),
        (lambda c: c["splits"]["train"].update(class_counts=["x"]), "class_counts[0]`"),
        (lambda c: c["splits"]["train"].update(class_counts=[3, 2, 1]), "the class counts"),
        (lambda c: c["splits"]["train"].update(class_counts=[3, 2**40]), "the class counts"),
        (lambda c: c["splits"]["train"].update(records=7), "6 records in its shards"),
        (lambda c: c["splits"].update({"../x": c["splits"]["train"]}), "splits`"),
        (lambda c: set_shard(c, records=-5), "records`"),
        (lambda c: set_shard(c, records="8"), "records`"),
        (lambda c: set_shard(c, records=8), "do not fit into"),
        (lambda c: set_shard(c, bytes=2**60), "bytes`"),
        (lambda c: set_shard(c, file=5), "file`"),
        (lambda c: set_shard(c, file="x\0y"), "file`"),
        (lambda c: set_shard(c, file="../victim.txt"), "file`"),
        (lambda c: set_shard(c, file="/etc/passwd"), "file`"),
        (lambda c: set_shard(c, file="victim.txt"), "its digest no longer matches"),
        (lambda c: c.update(name="../toy"), "name`"),
        (lambda c: c.update(name="toy\n"), "name`"),
        (lambda c: c["splits"].update({"test\n": c["splits"]["train"]}), "splits`"),
        (lambda c: c.update(digest=c["digest"].upper()), "digest`"),
        (lambda c: c["ledger"].update(inputs=6.0), "ledger.inputs`"),
        (lambda c: c["splits"]["train"]["shards"].reverse(), "its digest no longer matches"),
        (lambda c: c.update(options=[]), "options`"),
    ],
)
def test_a_foreign_or_edited_manifest_is_refused(dataset, change, said):
    edit_stored(dataset / "manifest.json", change)  # with a checksum that is right: these are the checks behind it
    with pytest.raises(UsageError) as caught:
        Manifest.load(dataset)
    assert said in str(caught.value) and "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def forged(manifest, **change):
    """The manifest of somebody who knows how the digest is made, too."""
    first, *others = manifest.splits["train"].shards
    return replace(manifest, splits={"train": Split("train", (replace(first, **change), *others))})


@pytest.mark.parametrize("file", ["victim.txt", "..", ".", ".profile", "other-train.tfrecord-00000-of-00002", SHARD])
def test_a_shard_that_is_not_this_dataset_s_is_refused_whatever_the_digest_says(dataset, file):
    forged(Manifest.load(dataset), file=file).save(dataset)
    with pytest.raises(UsageError, match=r"names files that are not its shards|a shard occurs twice"):
        Manifest.load(dataset)


@pytest.mark.parametrize("file", ["..", ".", ".profile", ".."])
def test_adopted_shards_have_any_name_but_lie_in_their_directory(dataset, file):
    manifest = replace(Manifest.load(dataset), options={"adopted": True})
    forged(manifest, file=file).save(dataset)
    with pytest.raises(UsageError, match="which is not its own"):
        check_files(Manifest.load(dataset), dataset, "train")


def test_any_flipped_byte_or_cut_of_manifest_and_index_is_found(dataset):
    """M5 and line 3: no silent change, no traceback."""
    good = Manifest.load(dataset)
    wanted = check_files(good, dataset, "train")
    tried = 0
    for path in (dataset / "manifest.json", index_path(dataset / SHARD)):
        data = path.read_bytes()
        for i in range(len(data)):
            for bad in (data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :], data[:i]):
                path.write_bytes(bad)
                tried += 1
                with pytest.raises(UsageError):
                    check_files(Manifest.load(dataset), dataset, "train")
        path.write_bytes(data)
    assert tried > 2000 and np.array_equal(check_files(Manifest.load(dataset), dataset, "train"), wanted)


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("first", ["0 9223372036854775807", "9223372036854775790 27", "20 9223372036854775807"])
def test_numbers_of_an_index_that_overflow_are_found(dataset, first, adopted):
    """Of an adopted shard records may lie apart, so that two ends beyond the last number would seem to fit again."""
    replace(Manifest.load(dataset), options={"adopted": adopted}).save(dataset)
    (dataset / (SHARD + ".idx")).write_text(f"{first}\n0 27\n27 27\n")
    with pytest.raises(UsageError, match="does not fit"):
        check_files(Manifest.load(dataset), dataset, "train")


FORMAT_1 = {
    "format": "shardline/1", "name": "toy", "digest": "0" * 64, "ledger": {"inputs": 6, "written": 6},
    "labels": ["a", "b"], "features": {"image": "image"}, "image": {"encoding": "jpeg", "colour": "rgb"},
    "splits": {}, "options": {}, "versions": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "found"),
    [(FORMAT_1, "shardline/1"), ({"name": "toy"}, "none"), ({"format": "shardline/3"}, "shardline/3")],
)
def test_a_dataset_of_another_format_is_refused_with_what_to_do(dataset, content, found):
    (dataset / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UsageError) as refusal:
        Manifest.load(dataset)
    path = dataset / "manifest.json"
    assert str(refusal.value) == (
        f"{path} has format {found}, this program reads shardline/2; convert again, or restore it from a copy"
    )


def test_a_cut_manifest_is_refused(dataset):
    text = (dataset / "manifest.json").read_text()
    (dataset / "manifest.json").write_text(text[: len(text) // 2])
    with pytest.raises(UsageError, match="damaged"):
        Manifest.load(dataset)


def test_an_unknown_split_lists_the_known(dataset):
    with pytest.raises(UsageError, match="split=test: this dataset has train"):
        Manifest.load(dataset).split("test")


def test_index_round_trip(tmp_path):
    index = np.array([[0, 30], [30, 2**40]])
    write_index(tmp_path / "x.idx", index)
    assert (tmp_path / "x.idx").read_text() == f"0 30\n30 {2**40}\n"
    assert np.array_equal(load_index(tmp_path / "x.idx"), index)
    write_index(tmp_path / "empty.idx", index[:0])
    assert load_index(tmp_path / "empty.idx").shape == (0, 2)
