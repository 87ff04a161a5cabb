"""A decoder that crashes or hangs costs a training, an evaluation or a prediction one record."""

import csv
import io
import json
import re

import pytest
import simplejpeg

from shardline import pipeline
from shardline.pipeline import workers
from tests.pipeline.deadly import make_deadly
from tests.trainer.tiny import command


@pytest.fixture
def deadly(tiny_data, tmp_path, monkeypatch):
    """Has a record of a split crash or hang its decoder in other processes, and any decoding in this one fail."""

    def make(split, record, way):
        ((image, _, _),) = pipeline.open_dataset(tiny_data).records(split, [record])
        make_deadly(monkeypatch, tmp_path / "site", image, way)
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded here"))
        monkeypatch.setattr(workers, "_pool", workers._Pool())  # those of earlier tests know nothing of this

    yield make
    workers._pool.close()


REASONS = {"crash": "crashes-decoder: its decoder ended", "hang": "decoder-timeout: its decoder did not end"}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["crash", "hang"])
def test_a_training_with_its_evaluations(tiny_data, tmp_path, deadly, way):
    deadly("train", 5, way)
    run = command(
        "shardline.trainer.train", "--data", tiny_data, "--workdir", tmp_path / "run", "--width", 0.05,
        "--image_size", 32, "--phases", "head:2@1e-2", "--global_batch_size", 12, "--precision", "float32", "--nojit",
        "--eval_split", "train", "--image_timeout", 1,
    )  # fmt: skip
    assert json.loads(run.stdout)["finished"]
    assert len(re.findall(rf"skipped bad record 5 of train .*{REASONS[way]}", run.stderr)) == 1
    assert len(re.findall(r"skipped bad record", run.stderr)) == 1


@pytest.mark.slow
def test_an_evaluation_and_its_report(tiny_data, tiny_run, tmp_path, deadly):
    deadly("test", 3, "crash")
    run = command("shardline.trainer.evaluate", "--run", tiny_run, "--data", tiny_data, "--output", tmp_path / "e")
    assert re.search(rf"skipped bad record 3 of test .*{REASONS['crash']}", run.stderr)
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["n"] == 20
    assert (tmp_path / "e" / "report.html").exists()


@pytest.mark.slow
def test_a_prediction_of_records(tiny_data, tiny_run, tmp_path, deadly):
    deadly("test", 3, "crash")
    target = tmp_path / "rows.csv"
    command(
        "shardline.trainer.predict", "--run", tiny_run, "--data", tiny_data, "--gallery", tmp_path / "g.png",
        "--output", target,
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert [row["path"] for row in rows if row["error"]] == ["test:3"] and len(rows) == 21
    assert rows[3]["error"].startswith(REASONS["crash"])
