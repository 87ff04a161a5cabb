"""The whole conversion, as a user runs it: what comes out, what it says, and what it refuses."""

import hashlib
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from shardline.pipeline.manifest import Manifest
from shardline.tools.conversion.run import convert
from tests.tools.folders import ROOT, Run, class_folders, config, draw, records, shard_hashes


def command(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "shardline.tools.convert", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        **options,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def dataset(source, tmp_path_factory):
    """Converted by the command line, with two workers."""
    output = tmp_path_factory.mktemp("out") / "data"
    result = command(
        "--source", source, "--output", output, "--size", 16, "--workers", 2, "--shards", 3, "--name", "images"
    )
    assert result.returncode == 0, result.stderr
    return output, result


def test_every_image_is_stored_once_with_its_class(dataset, source):
    output, _ = dataset
    stored = records(output, "train")
    assert sorted(example.filename for example in stored) == sorted(
        f"class{c}/img_{i:03d}.jpg" for c in range(3) for i in range(8)
    )
    for example in stored:
        assert example.filename.startswith(f"class{example.label}/")
        rgb = cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_COLOR)
        assert rgb.shape == (example.height, example.width, 3) == (16, 24, 3)
        original = cv2.resize(cv2.imread(str(source / example.filename)), (24, 16), interpolation=cv2.INTER_AREA)
        assert np.abs(rgb.astype(float) - original).mean() < 12


def test_manifest_ledger_and_last_line(dataset):
    output, result = dataset
    content = json.loads((output / "manifest.json").read_text())
    assert result.stdout.splitlines()[-1] == content["digest"]
    assert content["ledger"] == {"inputs": 24, "written": 24, "quarantined": 0, "duplicates": 0, "filtered": 0}
    assert content["labels"] == ["class0", "class1", "class2"]
    assert content["splits"]["train"]["records"] == 24
    assert content["splits"]["train"]["class_counts"] == [8, 8, 8]
    assert len(content["splits"]["train"]["shards"]) == 3
    for shard in content["splits"]["train"]["shards"]:
        data = (output / shard["file"]).read_bytes()
        assert (shard["records"], shard["bytes"], shard["sha256"]) == (8, len(data), hashlib.sha256(data).hexdigest())
    assert {"opencv", "simplejpeg", "shardline"} <= content["versions"].keys()
    assert not (output / ".convert").exists()


@pytest.mark.parametrize("workers", [1, 8])
def test_bytes_do_not_depend_on_workers_or_hash_seed(dataset, source, tmp_path, workers):
    output, result = dataset
    env = {**os.environ, "PYTHONHASHSEED": str(workers)}
    args = ["--noreport", "--size", 16, "--shards", 3, "--name", "images", "--workers", workers]
    again = command("--source", source, "--output", tmp_path / "d", *args, env=env)
    assert again.stdout.splitlines()[-1] == result.stdout.splitlines()[-1]
    assert shard_hashes(tmp_path / "d") == shard_hashes(output)
    assert (tmp_path / "d" / "manifest.json").read_bytes() == (output / "manifest.json").read_bytes()


@pytest.mark.slow
def test_tfds_opens_it_and_yields_the_same_images_and_labels(dataset, tmp_path_factory):
    output, _ = dataset
    raw = tmp_path_factory.mktemp("raw") / "d"
    convert(
        config(class_folders(tmp_path_factory.mktemp("two"), 2, 3), raw, image={"encoding": "raw", "resize": "squash"})
    )
    script = f"""
import numpy as np, tensorflow_datasets as tfds
for directory in {str(output)!r}, {str(raw)!r}:
    found = {{}}
    for e in tfds.builder_from_directory(directory).as_dataset(split="train"):
        found[f"{{e['image/filename'].numpy().decode()}} {{int(e['label'])}}"] = e["image"].numpy()
    np.savez(directory + "/read.npz", **found)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    for directory in output, raw:
        read = np.load(directory / "read.npz")
        stored = records(directory, "train")
        assert sorted(read.files) == sorted(f"{e.filename} {e.label}" for e in stored)
        for e in stored:
            pixels = read[f"{e.filename} {e.label}"]
            if directory == raw:
                assert pixels.tobytes() == bytes(e.image)
            else:  # two JPEG decoders may differ in rounding
                bgr = cv2.imdecode(np.frombuffer(e.image, np.uint8), cv2.IMREAD_COLOR)
                assert np.abs(pixels[:, :, ::-1].astype(int) - bgr).mean() < 2


def test_split_folders_keep_their_names_and_files_beside_classes_are_noted(tmp_path, capsys):
    source = class_folders(class_folders(tmp_path / "s", 2, 3, "train"), 2, 2, "test")
    (source / "README.txt").write_text("about")
    convert(config(source, tmp_path / "d"))
    manifest = Manifest.load(tmp_path / "d")
    assert {name: split.records for name, split in manifest.splits.items()} == {"train": 6, "test": 4}
    assert manifest.labels == ("class0", "class1")
    assert all(example.filename.startswith("test/") for example in records(tmp_path / "d", "test"))
    assert "ignored 1 file beside the class folders" in capsys.readouterr().err


def refusals():
    def build(tmp_path):
        good = class_folders(tmp_path / "good", 1, 2)
        (tmp_path / "empty").mkdir()
        (tmp_path / "loose").mkdir()
        draw(tmp_path / "loose" / "a.jpg", 1)
        class_folders(tmp_path / "hollow", 1, 1)
        (tmp_path / "hollow" / "nothing").mkdir()
        class_folders(tmp_path / "unreadable", 1, 1)
        (tmp_path / "unreadable" / "bad").mkdir()
        (tmp_path / "unreadable" / "bad" / "x.jpg").write_bytes(b"")
        draw(tmp_path / "nested" / "class0" / "sub" / "a.jpg", 1)
        (tmp_path / "file.txt").write_text("x")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.doc").write_text("mine")
        (tmp_path / "names.txt").write_text("other\n")
        (tmp_path / "latin.csv").write_bytes("path,label\nx.jpg,café\n".encode("latin-1"))
        return good

    return build


@pytest.mark.parametrize(
    ("source", "output", "extra", "code", "message"),
    [
        ("", "out", [], 2, "--source=: is empty; name a file or folder"),
        ("good", "", [], 2, "--output is missing"),
        ("nowhere", "out", [], 2, "no such folder"),
        ("file.txt", "out", [], 2, "is a file"),
        ("empty", "out", [], 2, "the folder is empty"),
        ("loose", "out", [], 2, "1 image but no class folders"),
        ("hollow", "out", [], 2, "nothing holds no images"),
        ("nested", "out", [], 2, "is a folder inside a class folder; give --source="),
        ("unreadable", "out", [], 1, "not one image of bad could be used (e.g. bad/x.jpg: empty)"),
        ("good", "full", [], 2, "is not empty (thesis.doc)"),
        ("good", "file.txt", [], 2, "is a file"),
        ("good", "good/out", [], 2, "lies inside --source"),
        ("latin.csv", "out", [], 2, "save it as UTF-8"),
        ("good", "/proc/out", [], 2, "cannot be written"),
        ("good", "out", ["--splits=train=0.9,test=0.2"], 2, "sum to 1.1"),
        ("good", "out", ["--splits=train"], 2, "NAME=SHARE"),
        ("good", "out", ["--splits=a=0.4,b=0.3,c=0.3"], 2, "cannot fill 3 splits"),
        ("good", "out", ["--name=A b"], 2, "--name=A b"),
        ("good", "out", ["--size=0"], 2, "--size"),
        ("good", "out", ["--resize=wide"], 2, "--resize"),
        ("good", "out", ["--class_names=names.txt"], 2, "(class0) are none of those that --class_names lists"),
        ("good", "out", ["--class_names=no-such.txt"], 2, "no-such.txt: No such file or directory"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_line_and_nothing_that_looks_whole(tmp_path, source, output, extra, code, message):
    refusals()(tmp_path)
    args = [f"--source={source and tmp_path / source}", f"--output={output and tmp_path / output}"]
    extra = [arg.replace("--class_names=", f"--class_names={tmp_path}/") for arg in extra]
    result = Run("shardline.tools.convert", *args, *extra)
    assert (result.code, len(result.stderr.strip().splitlines())) == (code, 1), result.stderr
    assert message in result.stderr
    assert not list(tmp_path.rglob("manifest.json"))
    assert result.stdout == ""


def test_an_address_is_no_output_folder(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = Run("shardline.tools.convert", "--source", source, "--output", "hf://bucket/data")
    assert result.code == 2 and "hf: is not known" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_link_to_itself_beside_the_classes_is_a_file_beside_them(tmp_path, capsys):
    folder = class_folders(tmp_path / "s", 2, 2)
    (folder / "self").symlink_to(folder / "self")
    assert convert(config(folder, tmp_path / "d")).ledger.inputs == 4
    assert "ignored 1 file beside the class folders" in capsys.readouterr().err
