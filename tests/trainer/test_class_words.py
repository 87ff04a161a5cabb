"""Words for classes, from the dataset to a run, its evaluation, its predictions and its exports."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from shardline.pipeline import stored
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.run_input import RUN_FORMAT
from shardline.trainer import predict
from shardline.trainer.checks import find_run
from shardline.trainer.evaluation import plots, results
from shardline.trainer.evaluation.inference import FilePrediction
from shardline.trainer.evaluation.leakage import Leakage
from shardline.trainer.resume import config_content
from shardline.trainer.run_dir import read_config
from shardline.trainer.setup import create_setup
from tests.trainer.tiny import command

WORDS = ("the sky, azure", "grass", "a rose, by any name")  # of blue, green, red


@pytest.fixture(scope="module")
def named(tiny_data, tiny_run, tmp_path_factory):
    """The tiny dataset and run, as if they had been made with words."""
    root = tmp_path_factory.mktemp("words")
    for name, source in (("data", tiny_data), ("run", tiny_run)):
        (root / name).mkdir()
        for path in source.iterdir():
            (root / name / path.name).symlink_to(path)
    (root / "data/manifest.json").unlink()
    replace(Manifest.load(tiny_data), words=WORDS).save(root / "data")
    (root / "run/config.json").unlink()
    content = read_config(tiny_run) | {"words": WORDS}
    stored.save(root / "run/config.json", content, format=RUN_FORMAT)
    return root


def test_a_run_keeps_the_words_of_its_dataset(named):
    from shardline.trainer.cluster import create_cluster
    from shardline.trainer.config import TrainConfig

    setup = create_setup(TrainConfig(data=str(named / "data"), image_size=32), create_cluster("one_device", 0))
    assert config_content(setup)["words"] == list(WORDS)
    assert read_config(find_run(str(named / "run")))["words"] == WORDS


def test_evaluation_and_report_show_words(named):
    command("shardline.trainer.evaluate", "--run", named / "run", "--data", named / "data", "--split", "test",
            "--output", named / "evaluation", "--leakage", "none")  # fmt: skip
    values = json.loads((named / "evaluation/metrics.json").read_text())
    assert [entry["label"] for entry in values["classes"]] == ["blue", "green", "red"]
    assert [entry["words"] for entry in values["classes"]] == list(WORDS)
    page = (named / "evaluation/report.html").read_text()
    assert "a rose" in page and "the sky" in page


def test_plots_show_words(monkeypatch):
    from tests.trainer.evaluation.test_results import predictions

    rows = predictions(12, 3)
    found = results.compute(rows, "test", ("n1", "n2", "n3"), [""] * 12, Leakage((), ""), words=("tench", "", "fox, x"))
    shown = []
    monkeypatch.setattr(plots, "confusion", lambda matrix, labels: shown.append(labels))
    monkeypatch.setattr(plots, "classes", lambda scores, labels: shown.append(labels))
    plots.draw(found)
    assert shown == [("tench", "n2", "fox")] * 2


def test_predictions_have_a_column_of_words(named, tiny_data):
    image = next((tiny_data.parent / "raw/test/red").iterdir())
    target = named / "rows.csv"
    command("shardline.trainer.predict", "--run", named / "run", "--input", image, "--top", 2, "--output", target)
    (row,) = csv.DictReader(io.StringIO(target.read_text()))
    shown = dict(zip(("blue", "green", "red"), ("the sky", "grass", "a rose"), strict=True))
    assert row["words"] == shown[row["label"]] and row["words2"] == shown[row["label2"]]
    target = named / "rows.jsonl"
    command("shardline.trainer.predict", "--run", named / "run", "--input", image, "--output", target)
    line = json.loads(target.read_text())
    assert [entry["words"] for entry in line["top"]] == [shown[entry["label"]] for entry in line["top"]]


def test_rows_without_words_have_no_such_column():
    rows = [FilePrediction("a.jpg", ("red",), (1.0,)), FilePrediction("b.jpg", error="x")]
    assert predict.as_bytes(rows, "csv", 1) == b"path,label,probability,error\na.jpg,red,1.000000,\nb.jpg,,,x\n"
    rows = [FilePrediction("a.jpg", ("n1",), (1.0,), ("tench",)), FilePrediction("b.jpg", error="x")]
    assert predict.as_bytes(rows, "csv", 1) == (
        b"path,label,words,probability,error\na.jpg,n1,tench,1.000000,\nb.jpg,,,,x\n"
    )


def test_records_of_a_split_are_predicted_as_they_were_evaluated(tiny_run, tiny_data, tiny_evaluation, tmp_path):
    target = tmp_path / "predictions.parquet"
    command("shardline.trainer.predict", "--run", tiny_run, "--data", tiny_data, "--split", "test",
            "--output", target, "--top", 3)  # fmt: skip
    import pyarrow.parquet as pq

    rows = pq.read_table(target).to_pylist()
    evaluated, _ = results.read_predictions(tiny_evaluation)
    assert [row["path"] for row in rows] == evaluated["path"].to_pylist()
    assert [row["label"] for row in rows] == evaluated["predicted"].to_pylist()
    best = np.max(evaluated["probabilities"].to_pylist(), axis=1)
    np.testing.assert_allclose([row["probability"] for row in rows], best, atol=1e-6)


def test_a_split_without_labels_is_predicted(tiny_run, tiny_data, tmp_path):
    raw = tiny_data.parent / "raw"
    (tmp_path / "s/test").mkdir(parents=True)
    (tmp_path / "s/train").symlink_to(raw / "train")
    for color in ("blue", "red"):
        (tmp_path / f"s/test/{color}.png").symlink_to(raw / f"test/{color}/2.png")
    command("shardline.tools.convert", "--source", tmp_path / "s", "--output", tmp_path / "d", "--size", 40,
            "--engine", "inline", "--unlabelled", "test", "--noreport")  # fmt: skip
    target = tmp_path / "rows.csv"
    command("shardline.trainer.predict", "--run", tiny_run, "--data", tmp_path / "d", "--split", "test",
            "--output", target)  # fmt: skip
    rows = {row["path"]: row for row in csv.DictReader(io.StringIO(target.read_text()))}
    assert sorted(rows) == ["test/blue.png", "test/red.png"] and all(row["error"] == "" for row in rows.values())
