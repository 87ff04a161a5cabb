"""Adopting TFRecords that somebody else wrote: found out, indexed, never rewritten."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from shardline.pipeline.errors import Failure
from shardline.pipeline.files import exclusive
from shardline.pipeline.manifest import Features, Manifest, check_files, load_index
from shardline.pipeline.tfrecord import frame_record, index_records
from shardline.tools import adopt_shard
from shardline.tools.adopt import AdoptConfig, adopt
from shardline.tools.conversion.run import convert
from tests.tools.folders import Run, class_folders, config, draw, records


def feature(kind, value):
    """A tf.train.Feature by hand, as other writers make it."""
    if kind == "int":
        packed = varint(value)
        return tag(3, tag(1, packed))
    return tag({"bytes": 1, "float": 2}[kind], tag(1, value))


def tag(field, payload):
    return bytes((field << 3 | 2,)) + varint(len(payload)) + payload


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def example(**features):
    """Unsorted, as a dictionary comes; `__` in a name is a slash."""
    entries = (tag(1, tag(1, name.replace("__", "/").encode()) + tag(2, value)) for name, value in features.items())
    return tag(1, b"".join(entries))


@pytest.fixture
def imagenet(tmp_path):
    """Two splits in the layout of ImageNet's script: labels from 1, other names, extra features."""
    folder = tmp_path / "imagenet"
    folder.mkdir()
    image = draw(tmp_path / "x.jpg", 1).read_bytes()
    for split, shards, count in (("train", 3, 4), ("validation", 1, 5)):
        for shard in range(shards):
            framed = [
                frame_record(
                    example(
                        image__class__synset=feature("bytes", b"n01440764"),
                        image__encoded=feature("bytes", image),
                        image__class__label=feature("int", 1 + (shard + i) % 3),
                        image__object__bbox__xmin=feature("float", np.float32([0.5]).tobytes()),
                        image__height=feature("int", 40),
                        image__width=feature("int", 60),
                        image__filename=feature("bytes", f"{split}_{shard}_{i}.JPEG".encode()),
                    )
                )
                for i in range(count)
            ]
            (folder / f"{split}-{shard:05d}-of-{shards:05d}").write_bytes(b"".join(framed))
    return folder


def hashes(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if "-of-" in p.name and p.suffix != ".idx"
    }


def test_imagenet_style_shards_are_adopted_without_touching_them(imagenet):
    before = hashes(imagenet)
    result = Run("shardline.tools.adopt", imagenet, "--label_offset=-1", "--workers=1")
    assert result.code == 0, result.stderr
    manifest = Manifest.load(imagenet)
    assert hashes(imagenet) == before
    assert result.stdout.splitlines()[-1] == manifest.digest
    assert {name: split.records for name, split in manifest.splits.items()} == {"train": 12, "validation": 5}
    assert manifest.labels == ("0", "1", "2")
    assert manifest.class_counts["validation"] == (2, 2, 1)
    assert (manifest.image.encoding, manifest.image.max_height, manifest.image.max_width) == ("jpeg", 40, 60)
    assert manifest.ledger.inputs == manifest.ledger.written == 17
    stored = records(imagenet, "train")
    assert [e.label for e in stored[:4]] == [0, 1, 2, 0]
    assert (stored[0].filename, stored[0].height) == ("train_0_0.JPEG", 40)


def test_names_and_a_wrong_offset(imagenet, tmp_path):
    (tmp_path / "names").write_text("a\nb\nc\n")
    wrong = Run("shardline.tools.adopt", imagenet, "--workers=1", f"--class_names={tmp_path / 'names'}")
    assert wrong.code == 2
    assert "labels run from 1 to 3, expected 0 to 2; --label_offset=-1" in wrong.stderr
    assert not (imagenet / "manifest.json").exists()
    wrong = Run("shardline.tools.adopt", imagenet, "--workers=1", "--label_offset=-2")
    assert (wrong.code, "expected 0 or more" in wrong.stderr) == (2, True)
    silent = Run("shardline.tools.adopt", imagenet, "--workers=1")
    assert "no record has label 0" in silent.stderr
    named = Run(
        "shardline.tools.adopt",
        imagenet,
        "--workers=1",
        "--overwrite",
        "--label_offset=-1",
        f"--class_names={tmp_path / 'names'}",
    )
    assert named.code == 0 and Manifest.load(imagenet).labels == ("a", "b", "c")


def test_a_tfds_directory_keeps_its_names_and_labels(tmp_path):
    source = class_folders(class_folders(tmp_path / "s", 2, 3, "train"), 2, 2, "test")
    output = tmp_path / "d"
    ours = convert(config(source, output))
    indexes = {path.name: path.read_bytes() for path in output.glob("*.idx")}
    (output / "manifest.json").unlink()
    for path in output.glob("*.idx"):
        path.unlink()
    assert Run("shardline.tools.adopt", output, "--workers=1").code == 0
    manifest = Manifest.load(output)
    assert (manifest.name, manifest.labels) == ("images", ("class0", "class1"))
    assert manifest.splits == ours.splits
    assert manifest.class_counts == ours.class_counts
    assert {path.name: path.read_bytes() for path in output.glob("*.idx")} == indexes


def test_a_damaged_payload_is_noted_and_a_damaged_header_refused(imagenet):
    shard = imagenet / "train-00001-of-00003"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    result = Run("shardline.tools.adopt", imagenet, "--workers=1", "--label_offset=-1")
    assert result.code == 0
    assert "train-00001-of-00003, byte 0: record checksum does not match" in result.stderr
    assert len(load_index(f"{shard}.idx")) == 3  # it is left out
    shard.write_bytes(data[:-7])
    result = Run("shardline.tools.adopt", imagenet, "--workers=1", "--label_offset=-1", "--overwrite")
    assert result.code == 1 and "truncated" in result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "train-00002-of-00003").unlink(), "split 'train' has 2 shards, their names say 3"),
        (lambda d: [p.unlink() for p in d.iterdir()], "no TFRecord files by name"),
        (lambda d: (d / "manifest.json").write_text("{}"), "--overwrite replaces it"),
        (lambda d: shutil.rmtree(d), "no such directory"),
        (lambda d: (d / "train-00000-of-00003").write_bytes(b"\x1f\x8b" + bytes(90)), "gzip"),
        (lambda d: (d / "train-00000-of-00003").write_bytes(frame_record(b"junk")), "no tf.train.Example"),
        (
            lambda d: (d / "train-00000-of-00003").write_bytes(frame_record(example(photo=feature("bytes", b"x")))),
            "--image_feature is needed; the first record has photo (bytes)",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_adopted_is_refused_in_one_line(imagenet, change, message):
    change(imagenet)
    result = Run("shardline.tools.adopt", imagenet, "--workers=1")
    assert (result.code, len(result.stderr.strip().splitlines())) == (2, 1), result.stderr
    assert message in result.stderr


def test_adopted_data_can_be_read_in_random_order(imagenet):
    Run("shardline.tools.adopt", imagenet, "--workers=1", "--label_offset=-1")
    manifest = Manifest.load(imagenet)
    assert len(check_files(manifest, imagenet, "train")) == 12
    assert json.loads((imagenet / "manifest.json").read_text())["features"]["image"] == "image/encoded"


def test_a_directory_has_one_owner(tmp_path):
    (tmp_path / "train.tfrecord").write_bytes(frame_record(example(image=feature("bytes", b"x"))))
    with exclusive(tmp_path / ".lock", "it"), pytest.raises(Failure, match=f"^data={tmp_path} is in use by process"):
        adopt(AdoptConfig(data=str(tmp_path), split_pattern="(?P<split>.*)"))
    assert [path.name for path in tmp_path.iterdir()] == ["train.tfrecord"]


@pytest.mark.parametrize("check", ["all", "sample"])
@pytest.mark.parametrize("part_bytes", [1, 2000, 9000, 100_000])
def test_a_large_file_is_read_in_parts_and_gives_what_it_gives_whole(tmp_path, monkeypatch, capsys, check, part_bytes):
    images = [draw(tmp_path / f"{i}.jpg", i, height=20 + i).read_bytes() for i in range(40)]
    images[3] = images[33] = b"<html>"
    records = [
        frame_record(example(image=feature("bytes", image), label=feature("int", i % 3 if i != 20 else 2**64 - 1)))
        for i, image in enumerate(images)
    ]
    records[38] = records[38][:-20] + bytes([records[38][-20] ^ 1]) + records[38][-19:]
    found, said = [], []
    for name, most in (("whole", 1 << 30), ("parts", part_bytes)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.tfrecord").write_bytes(b"".join(records))
        (tmp_path / name / "test.tfrecord").write_bytes(b"".join(records[:3]))
        monkeypatch.setattr(adopt_shard, "PART_BYTES", most)
        adopt(AdoptConfig(data=tmp_path / name, name="x", check=check, workers=1))
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
        said.append(capsys.readouterr().err.replace(name, "DIR"))
    assert found[0] == found[1] and said[0] == said[1] and "byte" in said[0]
    assert Manifest.load(tmp_path / "parts").splits["train"].records == 40 - 4


def test_parts_end_between_records_and_are_shared_by_workers(imagenet, monkeypatch):
    monkeypatch.setattr(adopt_shard, "PART_BYTES", 2000)
    file = adopt_shard.ShardFile(str(imagenet), "train-00000-of-00003", Features(), False)
    parts = list(file.parts())
    index = index_records(file.path)
    assert len(parts) > 1 and {part.start for part in parts} < set(index[:, 0].tolist())
    assert [part.stop for part in parts] == [*(part.start for part in parts[1:]), (imagenet / file.file).stat().st_size]
    assert [part.first for part in parts] == np.searchsorted(index[:, 0], [part.start for part in parts]).tolist()
    (imagenet / file.file).write_bytes((imagenet / file.file).read_bytes()[:-1])
    with pytest.raises(Failure, match="truncated"):
        list(file.parts())
