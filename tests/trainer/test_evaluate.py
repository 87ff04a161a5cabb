"""Evaluation by the real command on a tiny trained run: exact, complete, honest about copies; refusals in one line."""

import json
import shutil
from functools import partial

import numpy as np
import pytest

from shardline import pipeline
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import exclusive, file_sha256
from shardline.pipeline.manifest import Shard, Split
from shardline.trainer import evaluate
from shardline.trainer.checkpoints import list_checkpoints, read_checkpoint, write_checkpoint
from shardline.trainer.evaluate import EvaluateConfig
from shardline.trainer.evaluation import metrics, results
from tests.trainer.networks import HEADER
from tests.trainer.tiny import command, refusal


def test_every_record_counts_once_and_it_says_so(tiny_evaluation, tiny_metrics):
    lines = (tiny_evaluation / "stdout.txt").read_text().splitlines()
    assert lines[1] == "21 records, each counted once"
    assert (tiny_metrics["n"], tiny_metrics["records"]) == (21, 21)
    assert lines[0].startswith(f"top-1 {tiny_metrics['top1']:.1%} (95% interval ")


def test_predictions_hold_a_row_for_each_record_and_reproduce_the_metrics(tiny_evaluation, tiny_metrics, tiny_data):
    table, metadata = results.read_predictions(tiny_evaluation)
    data = pipeline.open_dataset(tiny_data)
    stored = [(label, name) for _, label, name in data.records("test", range(21))]
    assert table["id"].to_pylist() == list(range(21))
    assert table["path"].to_pylist() == [name for _, name in stored]
    assert table["label"].to_pylist() == [data.labels[label] for label, _ in stored]
    assert json.loads(metadata["labels"]) == list(data.labels) and metadata["split"] == "test"
    probabilities = np.array(table["probabilities"].to_pylist(), np.float32)
    assert probabilities.sum(1) == pytest.approx(np.ones(21), abs=1e-5)
    labels = np.array([label for label, _ in stored])
    assert tiny_metrics["top1"] == np.mean(probabilities.argmax(1) == labels) == np.mean(table["correct"].to_numpy())
    assert tiny_metrics["top5"] == 1.0  # there are only three classes
    assert tiny_metrics["ece"] == metrics.reliability(probabilities, labels).ece


def test_metrics_hold_intervals_classes_and_calibration(tiny_metrics):
    low, high = tiny_metrics["interval95"]["top1"]
    assert 0 <= low <= tiny_metrics["top1"] <= high <= 1
    assert [c["label"] for c in tiny_metrics["classes"]] == ["blue", "green", "red"]
    assert all(c["support"] == 7 for c in tiny_metrics["classes"])
    assert tiny_metrics["calibration"]["split"] == "validation"
    assert tiny_metrics["calibration"]["records"] == 9


def test_copies_in_the_training_split_are_found_and_counted_out(tiny_metrics):
    assert tiny_metrics["leakage"]["records"] == 2
    assert tiny_metrics["leakage"]["without"]["n"] == 19
    assert "2 of 21 images have a copy in train" in tiny_metrics["leakage"]["note"]


def test_everything_promised_is_written(tiny_evaluation, tiny_metrics):
    names = {path.name for path in tiny_evaluation.iterdir()}
    wanted = {"metrics.json", "predictions.parquet", "confusion.png", "classes.png", "roc_pr.png", "calibration.png"}
    assert wanted | {"report.html"} <= names
    assert f"SHA-256 {tiny_metrics['weights']['sha256']}." in (tiny_evaluation / "report.html").read_text()
    assert not [name for name in names if name.endswith(".tmp")]


def test_from_python_it_returns_what_it_writes_again_and_again(tiny_run, tiny_data, tiny_evaluation, tmp_path):
    for name in ("one", "two"):
        config = EvaluateConfig(run=tiny_run, data=tiny_data, output=tmp_path / name, batch_size=8, report=False)
        evaluation = evaluate.evaluate(config)
        written = results.read_metrics(tmp_path / name)
        assert written | {"environment": 0} == results.read_metrics(tiny_evaluation) | {"environment": 0}
        assert written.pop("predictions_sha256") == file_sha256(tmp_path / name / "predictions.parquet")
        assert json.loads(json.dumps(evaluation.metrics)) == written
        assert len(evaluation.predictions.records) == 21


# ---------------------------------------------------------------------------------------- refusals


def test_from_python_a_refusal_names_the_field():
    with pytest.raises(UsageError, match=r"^run is missing: name a run directory .* \(or a checkpoint in one\)$"):
        evaluate.evaluate(EvaluateConfig())
    with pytest.raises(UsageError, match=r"^batch_size=0: use a whole number of at least 1$"):
        EvaluateConfig(batch_size=0)


def test_a_checkpoint_of_another_model_is_refused(tiny_run, tiny_data, tmp_path):
    foreign = tmp_path / "step-00000001.npz"
    run = json.loads((tiny_run / "config.json").read_text())
    write_checkpoint(
        foreign,
        HEADER | {name: run[name] for name in ("labels", "train")},
        {"model/conv/kernel": np.zeros((3, 3, 3, 8), np.float32)},
    )
    line = refusal("shardline.trainer.evaluate", "--run", tiny_run, "--checkpoint", foreign, "--data", tiny_data,
                   "--output", tmp_path)  # fmt: skip
    assert line.startswith(f"--checkpoint={foreign} is a checkpoint of another model than {tiny_run}/config.json")


def test_a_checkpoint_of_a_run_on_another_dataset_is_refused(tiny_run, tiny_data, tmp_path):
    found = read_checkpoint(list_checkpoints(tiny_run)[-1])
    foreign = tmp_path / "step-00000001.npz"
    sampler = found.header["sampler"] | {"dataset": "0" * 64}
    write_checkpoint(foreign, found.header | {"sampler": sampler}, found.arrays)
    line = refusal("shardline.trainer.evaluate", "--run", tiny_run, "--checkpoint", foreign, "--data", tiny_data,
                   "--output", tmp_path)  # fmt: skip
    assert line.startswith(f"--checkpoint={foreign} was trained on another dataset, of digest {'0' * 64}, than")


def test_the_calibration_split_is_another_one():
    choose = partial(evaluate.choose_calibration_split, train_split="train")
    full = (Shard("s", 5, 100, ""),)
    two = {name: Split(name, full) for name in ("train", "test")}
    three, hollow = two | {"validation": Split("validation", full)}, two | {"validation": Split("validation", ())}
    assert choose("auto", "test", three) == "validation"
    assert choose("auto", "validation", three) == choose("auto", "test", two) == choose("auto", "test", hollow) == ""
    assert choose("auto", "test", {**two, "val": Split("val", full)}) == "val"
    assert choose("auto", "test", three, train_split="validation") == ""
    assert choose("none", "test", three) == ""
    assert choose("train", "test", two) == "train"
    with pytest.raises(UsageError, match=r"^calibration_split=test is the evaluated split"):
        choose("test", "test", two)
    with pytest.raises(UsageError, match="this dataset has train, test"):
        choose("validation", "test", two)
    with pytest.raises(UsageError, match="holds no records"):
        choose("validation", "test", hollow)


@pytest.mark.slow
@pytest.mark.parametrize("tta", ["flip", "5", "10"])
def test_augmented_evaluation_also_counts_each_record_once(tiny_run, tiny_data, tta, tmp_path):
    result = command(
        "shardline.trainer.evaluate", "--run", tiny_run, "--data", tiny_data, "--output", tmp_path, "--tta", tta
    )
    assert "21 records, each counted once" in result.stdout


@pytest.mark.slow
def test_an_unreadable_record_is_counted_and_said(tiny_run, tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    shard = next(data.glob("*-test.tfrecord-00000*[0-9]"))
    content = bytearray(shard.read_bytes())
    content[60] ^= 1
    shard.write_bytes(content)
    output = tmp_path / "out"
    result = command("shardline.trainer.evaluate", "--run", tiny_run, "--data", data, "--output", output, "--noreport")
    assert "20 records, each counted once, 1 of 21 unreadable" in result.stdout
    assert json.loads((output / "metrics.json").read_text())["n"] == 20
    arguments = ("--run", tiny_run, "--data", data, "--output", output, "--max_bad_records", 0)
    line = command("shardline.trainer.evaluate", *arguments, check=1).stderr.splitlines()[-1]
    assert "1 bad records, more than --max_bad_records=0; " in line and line.endswith("or raise --max_bad_records")


def test_a_report_directory_has_one_owner(tiny_run, tiny_data, tmp_path):
    config = EvaluateConfig(run=tiny_run, data=tiny_data, output=tmp_path, batch_size=8, report=False)
    with exclusive(tmp_path / ".lock", "it"), pytest.raises(Failure, match=r"^output=.* is in use by process "):
        evaluate.evaluate(config)
    assert not list(tmp_path.iterdir())
