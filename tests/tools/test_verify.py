"""Verification: each kind of damage is found, and named with its shard and offset."""

import json
import shutil

import pytest

from shardline.pipeline import stored
from shardline.pipeline.example import encode_example
from shardline.pipeline.manifest import FORMAT, Manifest, index_path, load_index
from shardline.pipeline.tfrecord import frame_record
from shardline.tools.conversion.run import convert
from tests.tools.folders import Run, class_folders, config, draw


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v")
    convert(config(class_folders(folder / "s", 2, 10), folder / "d", shards=2))
    return folder / "d"


@pytest.fixture
def dataset(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "d")


def first(dataset):
    return dataset / Manifest.load(dataset).split("train").shards[0].file


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def replace_record(path, number, framed):
    """Swap one record for another of any size, index and all: only the manifest's hash knows."""
    data, index = path.read_bytes(), load_index(index_path(path))
    offset, size = index[number].tolist()
    path.write_bytes(data[:offset] + framed + data[offset + size :])


def run(dataset, *args):
    return Run("shardline.tools.verify", dataset, "--workers=1", *args)


def test_a_sound_dataset_passes(dataset):
    result = run(dataset)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == f"{dataset}: 20 of 20 records in 2 shards checked, no faults\n"


def test_a_sample_reads_a_part(dataset):
    assert "4 of 20 records" in run(dataset, "--sample=0.2").stdout


def test_a_flipped_bit_is_named_with_its_offset(dataset):
    path = first(dataset)
    offset, size = load_index(index_path(path))[3].tolist()
    flip(path, offset + size // 2)
    result = run(dataset)
    assert result.code == 1
    assert f"{path.name}: its SHA-256 is not the manifest's" in result.stdout
    assert f"{path.name} @ {offset}: record checksum does not match" in result.stdout
    assert "faults" in result.stderr and len(result.stderr.splitlines()) == 1
    assert "class 'class" in result.stdout  # and the counts no longer add up


def jpeg_of(folder, seed):
    return draw(folder / "new.jpg", seed, height=16, width=24).read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda j: encode_example(j, 7, "x", 16, 24), "label 7 is not one of 2 (0 to 1)"),
        (lambda j: encode_example(j, 0, "x", 99, 24), "decodes to 16x24 pixels, its record says 99x24"),
        (lambda j: encode_example(j[: len(j) // 2], 0, "x", 16, 24), "truncated"),
        (lambda j: encode_example(b"no image", 0, "x", 16, 24), "not-an-image"),
        (lambda j: b"junk", "not a tf.train.Example"),
    ],
)  # fmt: skip
def test_records_that_are_wrong_but_well_framed(dataset, tmp_path, make, message):
    path = first(dataset)
    replace_record(path, 0, frame_record(make(jpeg_of(tmp_path, 5))))
    result = run(dataset)
    assert result.code == 1
    assert f"{path.name} @ 0: " in result.stdout and message in result.stdout


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "truncated"),
        (lambda path: path.write_bytes(b""), "has 0 records"),
        (lambda path: flip(path, 2), "no record header at byte 0"),
        (lambda path: index_path(path).unlink(), "its index"),
        (lambda path: index_path(path).write_text("0 10\n"), "does not fit"),
        (lambda path: index_path(path).write_text("zero\n"), "cannot be read"),
        (lambda path: shutil.copy(path, str(path).replace("00002", "00003")), "TFDS would take it"),
    ],
)  # fmt: skip
def test_files_that_are_wrong(dataset, damage, message):
    path = first(dataset)
    damage(path)
    result = run(dataset)
    assert (result.code, message in result.stdout) == (1, True), result.stdout
    assert path.name[:20] in result.stdout


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sources.parquet", lambda path: path.write_bytes(b"junk")),
        ("sources.parquet", lambda path: path.unlink()),
        ("features.json", lambda path: path.write_text("{}")),
        ("dataset_info.json", lambda path: path.unlink()),
        ("label.labels.txt", lambda path: path.write_text("class1\nclass0\n")),
    ],
)
def test_m7_what_tfds_and_people_read_is_checked_too(dataset, name, change):
    change(dataset / name)
    result = run(dataset)
    assert result.code == 1 and f"{name}: " in result.stdout, result.stdout


def test_an_edited_manifest_is_noticed(dataset):
    path = dataset / "manifest.json"
    content = json.loads(path.read_text())
    content["splits"]["train"]["class_counts"] = [9, 11]
    del content["format"], content["checksum"]
    stored.save(path, content, format=FORMAT)
    result = run(dataset)
    assert result.code == 1
    assert "class 'class0' has 10 sound records, the manifest says 9" in result.stdout


def test_wrong_use_is_one_line(tmp_path):
    for args, message in [((), "--data is missing"), ((tmp_path,), "no manifest.json"), ((tmp_path / "x",), "no such")]:
        result = Run("shardline.tools.verify", *args)
        assert (result.code, message in result.stderr) == (2, True), result.stderr
