"""Training and evaluation say which classes their splits do not share."""

import pytest

from shardline.trainer import evaluate, run, selftest
from shardline.trainer.config import TrainConfig
from shardline.trainer.evaluate import EvaluateConfig


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
