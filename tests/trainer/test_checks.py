"""What a person gets wrong is refused in one line, and before TensorFlow, which takes seconds, is even imported."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from shardline import pipeline
from shardline.pipeline import object_store
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.manifest import Manifest, Split
from shardline.trainer.checks import check_labels, check_target, find_run, make_directory, say_stored_otherwise
from shardline.trainer.compare import CompareConfig, compare
from shardline.trainer.evaluate import EvaluateConfig, evaluate
from shardline.trainer.remote_workdir import local_run
from shardline.trainer.run_dir import choose_weights
from tests.pipeline.stores import FolderStore
from tests.tools.folders import ROOT
from tests.trainer.tiny import COLORS

RUN_ALL = """
import json, sys
sys.modules["tensorflow"] = sys.modules["keras"] = None  # importing either fails
from tests.tools.folders import Run
runs = [Run(*case) for case in json.load(sys.stdin)]
json.dump([(run.code, run.stderr, run.stdout) for run in runs], sys.stdout)
"""

# Command and arguments, with {names} from `places`; then what its line says.
RUN_DATA = ("--run", "{run}", "--data", "{data}")
RUN_INPUT = ("--run", "{run}", "--input", "{file}")
RUN_OUTPUT = ("--run", "{run}", "--output", "{new}")
CASES = [
    ("evaluate", ("--data", "{data}"), "--run is missing"),
    ("evaluate", ("--run", "{run}"), "--data is missing"),
    ("evaluate", ("--run", "{new}", "--data", "{data}"), "--run={new}: no such directory; give a --workdir"),
    ("evaluate", ("--run", "{data}", "--data", "{data}"), "no config.json there, so it is no run directory"),
    ("evaluate", ("--run", "{damaged}", "--data", "{data}"), "config.json is damaged"),
    ("evaluate", ("--run", "{old}", "--data", "{data}"), "{old}/config.json has format shardline-run/1, this program"),
    ("evaluate", ("--run", "{untrained}", "--data", "{data}"), "holds no checkpoint: train it first"),
    ("evaluate", (*RUN_DATA, "--checkpoint", "{new}.npz"), "no such file; checkpoints of {run}: step-"),
    (
        "evaluate",
        (*RUN_DATA, "--checkpoint", "{file}"),
        "--checkpoint={file} is no checkpoint of a run",
    ),
    ("evaluate", ("--checkpoint", "{file}", "--data", "{data}"), "lies in no run directory"),
    ("evaluate", ("--run", "{run}", "--data", "{new}"), "--data={new}: no such directory"),
    ("evaluate", ("--run", "{run}", "--data", "{run}"), "no manifest.json there"),
    ("evaluate", ("--run", "{run}", "--data", "{two}"), "has 2 classes, the run was trained on 3"),
    ("evaluate", ("--run", "{run}", "--data", "{torn}"), "tfrecord-00000-of-00001 is missing"),
    ("evaluate", (*RUN_DATA, "--split", "tset"), "--split=tset: this dataset has train, validation, test"),
    ("evaluate", ("--run", "{run}", "--data", "{hollow}", "--split", "hollow"), "--split=hollow: this split holds no"),
    ("evaluate", (*RUN_DATA, "--calibration_split", "test"), "--calibration_split=test is the evaluated split"),
    ("evaluate", (*RUN_DATA, "--calibration_split", "tset"), "--calibration_split=tset: this dataset has"),
    ("evaluate", (*RUN_DATA, "--output", "{file}"), "--output={file}: is a file; name a folder"),
    ("evaluate", (*RUN_DATA, "--output", "/proc/none/here"), "--output=/proc/none/here: No such file"),
    ("evaluate", (*RUN_DATA, "--tta", "7"), "--tta=7: use one of none, flip, 5, 10"),
    ("predict", ("--input", "{file}"), "--run is missing"),
    ("predict", ("--run", "{new}", "--input", "{file}"), "--run={new}: no such directory"),
    ("predict", ("--run", "{run}"), "--input is missing"),
    ("predict", ("--run", "{run}", "--input", "{new}.jpg"), "--input={new}.jpg: no such file, and no file matches it"),
    ("predict", ("--run", "{run}", "--input", "{new}/*.jpg"), "no such file, and no file matches it"),
    ("predict", ("--run", "{run}", "--input", "{bare}"), "--input={bare}: this directory holds no files"),
    ("predict", (*RUN_INPUT, "--output", "x.txt"), "--output=x.txt: use csv, jsonl, or a file that ends in"),
    ("predict", (*RUN_INPUT, "--output", "parquet"), "--output=parquet needs a file"),
    ("predict", (*RUN_INPUT, "--output", "{file}/x.csv"), "--output={file}/x.csv: File exists"),
    ("predict", (*RUN_INPUT, "--gallery", "/proc/none/y.png"), "--gallery=/proc/none/y.png: No such file"),
    ("predict", (*RUN_INPUT, "--gallery", "y.jpg"), "--gallery=y.jpg: name a file that ends in .png"),
    ("predict", (*RUN_INPUT, "--top", "0"), "--top"),
    ("export", ("--output", "{new}"), "--run is missing"),
    ("export", ("--run", "{run}"), "--output is missing"),
    ("export", (*RUN_OUTPUT, "--formats", "keras,onix"), "'onix' is none of saved_model, keras, tflite_float32"),
    ("export", (*RUN_OUTPUT, "--formats", ""), "--formats=: no format; name some of saved_model"),
    ("export", (*RUN_OUTPUT, "--split", "tset"), "--split=tset: this dataset has"),
    ("export", (*RUN_OUTPUT, "--data", "{two}"), "--data={two} has 2 classes"),
    ("export", (*RUN_OUTPUT, "--data", "{hollow}", "--split", "hollow"), "--split=hollow: this split holds no records"),
    ("export", ("--run", "{run}", "--output", "{full}"), "holds model.keras already; add --overwrite"),
    ("compare", ("{run}",), "name at least two runs"),
    ("compare", ("{run}", "{new}"), "{new}: no such directory; name a run directory or an evaluation's output"),
    ("compare", ("{run}", "{run}"), "is named twice"),
    ("compare", ("{run}", "{bare}"), "RUN={bare}: no config.json there"),
    ("compare", ("{run}", "{broken}"), "metrics.json is damaged"),
]


@pytest.fixture(scope="module")
def places(tiny_run, tiny_data, tmp_path_factory):
    """Things to name in a command line, sound and broken."""
    folder = tmp_path_factory.mktemp("places")
    found = {
        name: folder / name
        for name in ("damaged", "old", "untrained", "two", "torn", "hollow", "full", "broken", "bare")
    }
    for name in ("damaged", "old", "untrained", "full", "broken", "bare"):
        found[name].mkdir()
    (found["damaged"] / "config.json").write_text("{")
    config = json.loads((tiny_run / "config.json").read_text())
    (found["old"] / "config.json").write_text(json.dumps(config | {"format": "shardline-run/1"}))
    shutil.copy(tiny_run / "config.json", found["untrained"])
    (found["full"] / "model.keras").write_text("mine")
    (found["broken"] / "metrics.json").write_text("{")
    manifest = Manifest.load(tiny_data)
    for name in ("two", "torn", "hollow"):
        shutil.copytree(tiny_data, found[name])
    replace(manifest, labels=manifest.labels[:2], class_counts={}).save(found["two"])
    replace(manifest, splits={**manifest.splits, "hollow": Split("hollow", ())}).save(found["hollow"])
    (found["torn"] / manifest.splits["test"].shards[0].file).unlink()
    (folder / "file").write_bytes(b"")
    return found | {"run": tiny_run, "data": tiny_data, "new": folder / "new", "file": folder / "file"}


@pytest.fixture(scope="module")
def outcomes(places):
    """Exit code, stderr and stdout of every case, in a process that cannot import TensorFlow."""
    calls = [(f"shardline.trainer.{name}", *(a.format(**places) for a in arguments)) for name, arguments, _ in CASES]
    result = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps(calls), capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert not places["new"].exists() and (places["full"] / "model.keras").read_text() == "mine"
    return json.loads(result.stdout)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{name}: {said}" for name, _, said in CASES])
def test_a_mistake_is_one_line_and_exit_code_2(number, places, outcomes):
    said = CASES[number][2]
    code, stderr, stdout = outcomes[number]
    assert code == 2 and not stdout
    assert len(stderr.splitlines()) == 1
    assert said.format(**places) in stderr


def test_a_dataset_of_other_classes_is_refused():
    check_labels(COLORS, list(COLORS), "D")
    with pytest.raises(UsageError, match=r"^data=D has 2 classes, the run was trained on 3"):
        check_labels(("a", "b", "c"), ("a", "b"), "D")
    with pytest.raises(UsageError, match="calls class 1 'x', the run 'b'"):
        check_labels(("a", "b"), ("a", "x"), "D")


def test_classes_whose_accents_are_written_in_another_way_are_the_same():
    """As a file system or another tool writes them: an e with its accent, or an e and an accent."""
    check_labels(("caf\u00e9", "th\u00e9"), ("cafe\u0301", "th\u00e9"), "D")
    with pytest.raises(UsageError, match="calls class 0 "):
        check_labels(("caf\u00e9",), ("cafe",), "D")


def test_images_that_were_stored_in_another_way_are_noted(tiny_run, tiny_data, tmp_path, capsys):
    data = pipeline.open_dataset(tiny_data)
    say_stored_otherwise(tiny_run, data)
    assert not capsys.readouterr().err
    image = replace(data.manifest.image, resize="none", size=0)
    say_stored_otherwise(tiny_run, SimpleNamespace(where="D", manifest=replace(data.manifest, image=image)))
    assert capsys.readouterr().err == (
        "note: images of --data=D are stored with resize none, size 0, those the run was trained on with resize short, "
        "size 40\n"
    )


def test_a_checkpoint_finds_its_run(tiny_run):
    checkpoint = next((tiny_run / "checkpoints").glob("*.npz"))
    assert find_run("", str(checkpoint)) == tiny_run == find_run(str(tiny_run))


@pytest.fixture
def bucket(monkeypatch, tiny_run, tmp_path):
    """s3://bucket: the folder with the run twice, among others; stores by their address, as they were asked for."""
    root, stores = tmp_path / "bucket", {}
    for name in ("runs/one", "runs/two"):
        shutil.copytree(tiny_run, root / name)
    (root / "runs" / "one" / "features").mkdir()
    (root / "runs" / "one" / "features" / "large").write_bytes(b"")
    (root / "notes").mkdir()
    (root / "notes" / "thesis.doc").write_bytes(b"mine")
    monkeypatch.setattr(
        object_store, "client", lambda url: stores.setdefault(url, FolderStore(root / url.removeprefix("s3://bucket/")))
    )
    monkeypatch.setattr(object_store, "_PAUSE_SECONDS", 0)
    local_run.cache_clear()
    return stores


def test_a_run_in_a_store_is_fetched_once_and_without_what_is_not_needed(bucket, tiny_run):
    found = find_run("s3://bucket/runs/one")
    assert choose_weights(found).facts() == choose_weights(tiny_run).facts() and found.name == "one"
    kept = {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()}
    there = {str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*") if path.is_file()}
    assert kept == {name for name in there if not name.endswith((".html", ".keras")) and name != ".lock"}
    assert find_run("s3://bucket/runs/one") == found and set(bucket["s3://bucket/runs/one"].opened.values()) == {1}


def test_a_run_that_changes_while_it_is_fetched_is_listed_again(bucket, tiny_run):
    find_run("s3://bucket/runs/two")
    name = f"checkpoints/{choose_weights(tiny_run).checkpoint.path.name}"
    local_run.cache_clear()
    bucket["s3://bucket/runs/two"].faults[name] = [FileNotFoundError()] * 2
    assert choose_weights(find_run("s3://bucket/runs/two")).facts() == choose_weights(tiny_run).facts()
    local_run.cache_clear()
    bucket["s3://bucket/runs/two"].faults[name] = [FileNotFoundError()] * 9
    with pytest.raises(Failure, match=r"^s3://bucket/runs/two changes while it is read; try again when its training"):
        find_run("s3://bucket/runs/two")


def test_what_is_no_run_in_a_store_is_refused_before_anything_is_fetched(bucket, tiny_data):
    for run in ("s3://bucket/notes", "s3://bucket/nothing"):
        with pytest.raises(UsageError, match=rf"^{run}: no config\.json there, so it is no run directory; give a "):
            find_run(run)
        assert not bucket[run].opened
    with pytest.raises(UsageError, match=r"^output is missing: results for run=s3://bucket/runs/one are written to a "):
        evaluate(EvaluateConfig(run="s3://bucket/runs/one", data=str(tiny_data)))
    assert "s3://bucket/runs/one" not in bucket


def test_runs_in_a_store_are_compared_as_those_of_a_folder(bucket, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "here" / "one")
    shutil.copytree(tiny_run, tmp_path / "here" / "two")
    here = compare(CompareConfig(runs=(str(tmp_path / "here"),)))
    assert compare(CompareConfig(runs=("s3://bucket/runs",))) == here and here.names == ("one", "two")
    mixed = compare(CompareConfig(runs=("s3://bucket/runs/one", str(tmp_path / "here" / "two"))))
    assert mixed.results == here.results


def test_targets_are_made_room_for(tmp_path):
    assert make_directory(str(tmp_path / "a" / "b")).is_dir()
    check_target("--output", str(tmp_path / "c" / "rows.csv"))
    assert (tmp_path / "c").is_dir()
    with pytest.raises(UsageError, match=r"^output=.* is a directory; name a file"):
        check_target("--output", str(tmp_path / "c"))


def test_results_do_not_go_into_a_run_or_a_dataset(tiny_run, tiny_data):
    """Whose report.html, model.keras and curves.png they would replace."""
    for owner, what in ((tiny_run, "config.json, as a run directory does"), (tiny_data, "manifest.json, as a dataset")):
        with pytest.raises(UsageError, match=rf"^output={owner} holds {what}.*; name another directory$"):
            make_directory(str(owner))
