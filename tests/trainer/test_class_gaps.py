"""Training and evaluation say which classes their splits do not share."""

import pytest

from shardline.pipeline.errors import UsageError
from shardline.trainer import evaluate, run, selftest
from shardline.trainer.cluster import create_cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.evaluate import EvaluateConfig
from shardline.trainer.setup import create_setup
from tests.tools.folders import Run, draw


class Reached(Exception):
    """The work itself is not wanted here."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    selftest.write_dataset(folder, {"train": 25, "test": 5}, side=32)  # 10 classes, of which five come up in test
    return str(folder)


def stop(*arguments, **more):
    raise Reached


def test_training_notes_them_before_its_first_step(data, monkeypatch, capsys):
    monkeypatch.setattr(run, "claim_workdir", stop)
    with pytest.raises(Reached):
        run.train(TrainConfig(data=data, workdir="unused", strategy="one_device"))
    assert "note: classes in train but not in test: " in capsys.readouterr().err


def test_evaluation_notes_them(data, tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "check_labels", lambda *_: None)
    monkeypatch.setattr(evaluate.command_line, "import_tensorflow", stop)
    with pytest.raises(Reached):
        evaluate.evaluate(EvaluateConfig(run=str(tiny_run), data=data, output=data + "/evaluation"))
    assert "note: classes in train but not in test: " in capsys.readouterr().err


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """Two classes to train with, and a test split without labels."""
    root = tmp_path_factory.mktemp("unlabelled")
    for number, name in enumerate(("train/a/1", "train/a/2", "train/b/1", "train/b/2", "test/1", "test/2")):
        draw(root / "s" / f"{name}.jpg", number)
    result = Run("shardline.tools.convert", f"--source={root}/s", f"--output={root}/d", "--unlabelled=test",
                 "--noreport", "--engine=inline", "--size=32")  # fmt: skip
    assert result.code == 0, result.stderr
    return str(root / "d")


def test_a_split_without_labels_is_not_evaluated(unlabelled, tiny_run, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "check_labels", lambda *_: None)
    with pytest.raises(UsageError, match="split=test: this split was converted without labels"):
        evaluate.evaluate(EvaluateConfig(run=str(tiny_run), data=unlabelled, output=str(tmp_path / "e")))
    with pytest.raises(UsageError, match="calibration_split=test: this split was converted without labels"):
        evaluate.evaluate(
            EvaluateConfig(run=str(tiny_run), data=unlabelled, split="train", calibration_split="test", output="x")
        )


def test_a_split_without_labels_is_not_trained_on_nor_reported(unlabelled):
    devices = create_cluster("one_device", 0)
    create = lambda **settings: create_setup(TrainConfig(data=unlabelled, image_size=32, **settings), devices)  # noqa: E731
    assert create().eval_split == ""
    with pytest.raises(UsageError, match="eval_split=test: this split was converted without labels"):
        create(eval_split="test")
    with pytest.raises(UsageError, match="train_split=test: this split was converted without labels"):
        create(train_split="test")
