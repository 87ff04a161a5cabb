"""Callbacks of a run, ours and Keras's: what they are told, how they end it, and that nothing of it is lost."""

import asyncio
import csv
import os
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer import metrics_log, selftest
from shardline.trainer.callbacks import Callback, Report, Start
from shardline.trainer.checkpoints import list_checkpoints, read_checkpoint
from shardline.trainer.config import TrainConfig
from shardline.trainer.keras_callbacks import KerasCallback
from shardline.trainer.run_dir import load_run
from shardline.trainer.train import train


@pytest.fixture(scope="module")
def thin(undrawn, shallow, tmp_path_factory):
    """Settings of a run of six steps and two evaluations on one device of this process."""
    data = tmp_path_factory.mktemp("data")
    selftest.write_dataset(data, {"train": 24, "validation": 8}, side=32)
    return {
        "data": data, "global_batch_size": 8, "image_size": 32, "width": 0.03, "phases": "all:2@0.05", "workers": 0,
        "precision": "float32", "strategy": "one_device", "peak_tflops": 1.0, "log_every_steps": 1, "jit": False,
        "dropout": 0.0,
    }  # fmt: skip


class Notes(Callback):
    """Keeps what it is told; ends the run, or breaks, where it is told to."""

    def __init__(self, stop_at=(), break_at=()):
        self.starts, self.reports, self.ends = [], [], 0
        self.stop_at, self.break_at = stop_at, break_at

    def begin(self, start):
        self.starts.append(start)
        self._maybe_break("begin")

    def report(self, report):
        self.reports.append(report)
        self._maybe_break((report.step, report.kind))
        return (report.step, report.kind) in self.stop_at

    def end(self):
        self.ends += 1
        self._maybe_break("end")

    def _maybe_break(self, at):
        if at in self.break_at:
            raise KeyError("gone")


class Impatient(keras.callbacks.Callback):
    """Ends `fit` after an epoch."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


class AutologCallback(keras.callbacks.Callback):
    """What mlflow.keras.autolog adds to `fit`: the optimizer's settings, the summary, and metrics of each epoch."""

    def __init__(self):
        super().__init__()
        self.summary, self.epochs = [], {}

    def on_train_begin(self, logs=None):
        self.optimizer = self.model.optimizer.get_config()
        self.model.summary(print_fn=lambda line, *_, **__: self.summary.append(line))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs[epoch] = dict(logs)


@pytest.fixture(scope="module")
def whole(thin, tmp_path_factory):
    """A run and its result, the lines of its log, and what callbacks of every kind made of it."""
    folder = tmp_path_factory.mktemp("whole")
    heard, notes, autolog = [], Notes(stop_at=[(6, "eval")]), AutologCallback()
    callbacks = [
        notes,
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.ModelCheckpoint(folder / "saved.keras"),
        keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: heard.append("train"),
            on_epoch_begin=lambda epoch, logs: heard.append(f"epoch {epoch}"),
            on_train_batch_end=lambda batch, logs: heard.append(f"batch {batch} {sorted(logs)[-1]}"),
            on_epoch_end=lambda epoch, logs: heard.append(f"end {epoch}"),
            on_train_end=lambda logs: heard.append("trained"),
        ),
        autolog,
    ]
    if find_spec("tensorboard"):
        callbacks.append(keras.callbacks.TensorBoard(folder / "board"))
    result = train(TrainConfig(**thin, workdir=folder / "run"), callbacks=callbacks)
    lines = metrics_log.read(folder / "run")
    return SimpleNamespace(result=result, lines=lines, folder=folder, notes=notes, heard=heard, autolog=autolog)


@pytest.fixture(scope="module")
def unwatched(thin, tmp_path_factory):
    """SHA-256 of the weights of a run without callbacks."""
    return train(TrainConfig(**thin, workdir=tmp_path_factory.mktemp("unwatched")))["weights_sha256"]


def test_callbacks_are_told_the_lines_of_the_log(whole):
    reports = whole.notes.reports
    told = [{"step": r.step, "kind": r.kind, "epoch": r.epoch, **r.metrics} for r in reports]
    assert told == whole.lines
    assert [r.step for r in reports if r.kind == "train"] == [1, 2, 3, 4, 5, 6]
    assert [(r.step, r.epoch) for r in reports if r.kind == "eval"] == [(3, 1), (6, 2)]
    (start,) = whole.notes.starts
    assert (start.step, start.steps, start.epoch, start.epochs) == (0, 6, 0, 2) and whole.notes.ends == 1
    assert start.model.output.shape[-1] == 10


def test_at_an_evaluation_the_model_has_the_averages_that_its_numbers_are_of(thin, tmp_path):
    """What Keras's ModelCheckpoint saves by val_loss is else another model than the one that had it."""
    kept = {}

    class Keep(Notes):
        def report(self, report):
            kept[report.step, report.kind] = [variable.numpy() for variable in self.starts[0].model.variables]

    config = TrainConfig(**{**thin, "phases": "all:1@0.05", "ema": 0.5}, workdir=tmp_path / "run")
    train(config, callbacks=[Keep()])
    run = load_run(tmp_path / "run")
    assert run.chosen.checkpoint.averaged and run.chosen.checkpoint.header["step"] == 3
    wanted = [variable.numpy() for variable in run.model.variables]
    for one, other in zip(kept[3, "eval"], wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert any((one != other).any() for one, other in zip(kept[3, "train"], wanted, strict=True))


@pytest.mark.slow
def test_they_change_nothing_and_a_wish_to_stop_at_the_end_neither(whole, unwatched):
    assert whole.result["finished"] is True and "stopped_by" not in whole.result
    assert whole.result["weights_sha256"] == unwatched


@pytest.mark.slow
def test_a_callback_ends_the_run_where_it_says_so_and_the_same_call_continues_it(thin, whole, tmp_path, capsys):
    """First amid an epoch, then with an evaluation, which Keras numbers on."""
    config, log = TrainConfig(**thin, workdir=tmp_path / "run"), tmp_path / "log.csv"
    for step, callback in (
        (2, Notes(stop_at=[(2, "train")])),
        (3, Impatient()),
    ):
        found = train(config, callbacks=[callback, keras.callbacks.CSVLogger(log)])
        assert (found["step"], found["last_step"], found["finished"]) == (step, step, False)
        assert found["stopped_by"] == f"callback {type(callback).__name__}"
        assert f"{found['stopped_by']}: stopped at step {step} with a checkpoint" in capsys.readouterr().err
        assert list_checkpoints(tmp_path / "run")[-1].stem == f"step-{step:08d}"
        assert load_run(tmp_path / "run").chosen.sha256 == found["weights_sha256"]
        assert not (tmp_path / "run" / "model.keras").exists()
    notes = Notes()
    found = train(config, callbacks=[notes, keras.callbacks.CSVLogger(log, append=True)])
    assert found["weights_sha256"] == whole.result["weights_sha256"]
    assert notes.starts[0].step == 3 and notes.reports[0].step == 4
    assert [line["step"] for line in metrics_log.read(tmp_path / "run")] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert [row["epoch"] for row in rows(log)] == [0, 1]


@pytest.mark.parametrize(
    "at, said",
    [
        ("begin", r"^callback Notes: KeyError: 'gone'; stopped at step 0; run the same command to continue$"),
        pytest.param((4, "train"), r"^callback Notes: .*; stopped at step 4 with a checkpoint", marks=pytest.mark.slow),
        pytest.param((3, "eval"), r"^callback Notes: .*; stopped at step 3 with a checkpoint", marks=pytest.mark.slow),
        pytest.param("end", r"^callback Notes: .*; the run itself is complete$", marks=pytest.mark.slow),
    ],
)
def test_a_broken_callback_is_named_and_the_run_goes_on_from_there(thin, whole, tmp_path, at, said):
    config, broken, other = TrainConfig(**thin, workdir=tmp_path / "run"), Notes(break_at=[at]), Notes()
    with pytest.raises(Failure, match=said) as error:
        train(config, callbacks=[broken, other])
    assert isinstance(error.value.__cause__.__cause__, KeyError)
    assert broken.ends == other.ends == 1
    assert len(other.reports) == len(broken.reports) - (at not in ("begin", "end"))
    if at == "begin":
        return
    again = train(config)
    assert again is None if at == "end" else again["weights_sha256"] == whole.result["weights_sha256"]


@pytest.mark.parametrize(
    "at, said",
    [
        ((2, "train"), "sys.exit(3): stopped at step 2 with a checkpoint; run the same command to continue"),
        pytest.param("end", "sys.exit(3); the run itself is complete", marks=pytest.mark.slow),
    ],
)
def test_a_callback_that_leaves_the_process_ends_the_run_with_a_checkpoint_and_its_exit_code(
    thin, whole, tmp_path, capsys, at, said
):
    class Leaves(Notes):
        def _maybe_break(self, now):
            if now == at:
                sys.exit(3)

    config, leaves = TrainConfig(**thin, workdir=tmp_path / "run"), Leaves()
    with pytest.raises(SystemExit) as left:
        train(config, callbacks=[leaves])
    assert left.value.code == 3 and leaves.ends == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"callback Leaves: {said}"
    if at != "end":
        assert read_checkpoint(list_checkpoints(tmp_path / "run")[-1]).header["step"] == 2
        assert train(config)["weights_sha256"] == whole.result["weights_sha256"]


@pytest.mark.parametrize("wrong", [print, Notes, 3, lambda report: None])
def test_what_is_no_callback_is_refused_before_any_work(thin, tmp_path, wrong):
    with pytest.raises(UsageError, match="is no callback; give an object with begin, report and end"):
        train(TrainConfig(**thin, workdir=tmp_path / "run"), callbacks=[wrong])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_in_a_notebook_and_in_its_threads(thin, whole, tmp_path):
    """A notebook runs a cell in a running event loop; a button ends a run in a thread."""
    pressed, results = threading.Event(), {}

    class Button(Callback):
        def report(self, report):
            return pressed.is_set()

    async def cell():
        results["cell"] = train(TrainConfig(**thin, workdir=tmp_path / "cell"))

    def work():
        results["thread"] = train(TrainConfig(**thin, workdir=tmp_path / "thread"), callbacks=[Button()])

    asyncio.run(cell())
    pressed.set()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results["cell"]["weights_sha256"] == whole.result["weights_sha256"]
    assert results["thread"]["step"] == 1 and results["thread"]["stopped_by"] == "callback Button"


# ------------------------------------------------------------------------------------------- Keras


def rows(path):
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_csv_logger_gets_epochs_as_keras_means_them(whole):
    found = rows(whole.folder / "log.csv")
    assert [row["epoch"] for row in found] == [0, 1]
    for epoch, row in enumerate(found):
        inside = range(3 * epoch + 1, 3 * epoch + 4)
        lines = [line for line in whole.lines if line["kind"] == "train" and line["step"] in inside]
        (evaluation,) = (line for line in whole.lines if line["kind"] == "eval" and line["step"] == inside[-1])
        for name in ("loss", "top1"):
            assert row[name] == pytest.approx(np.mean([line[name] for line in lines]))
        assert row["learning_rate"] == pytest.approx(lines[-1]["learning_rate"])
        for name in ("loss", "top1", "top5"):
            assert row[f"val_{name}"] == evaluation[name]


def test_epochs_are_the_same_however_seldom_lines_are_written(thin, whole, tmp_path):
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    train(TrainConfig(**{**thin, "log_every_steps": 100}, workdir=tmp_path / "run"), callbacks=[log])
    lines = [line for line in metrics_log.read(tmp_path / "run") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [1, 3, 6]
    for row, same in zip(rows(tmp_path / "log.csv"), rows(whole.folder / "log.csv"), strict=True):
        assert row == pytest.approx(same)


def test_hooks_are_called_in_the_order_of_fit(whole):
    epochs = [[f"epoch {e}", *(f"batch {3 * e + i} waiting_percent" for i in range(3)), f"end {e}"] for e in (0, 1)]
    assert whole.heard == ["train", *epochs[0], *epochs[1], "trained"]


def test_a_model_that_a_callback_saves_is_the_model(whole):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    models = load_run(whole.folder / "run").model, keras.models.load_model(whole.folder / "saved.keras")
    np.testing.assert_allclose(*(np.asarray(model(images)) for model in models), atol=1e-6)


def test_an_autolog_callback_finds_optimizer_summary_and_metrics(whole):
    found = whole.autolog
    assert (found.optimizer["name"], found.optimizer["momentum"], found.optimizer["nesterov"]) == ("sgd", 0.9, True)
    assert found.optimizer["learning_rate"] == pytest.approx(whole.lines[0]["learning_rate"])
    assert "block5_conv1" in "".join(found.summary)
    assert found.epochs[1]["val_loss"] == whole.lines[-1]["loss"]


def scalars(folder):
    found = {}
    for path in sorted(Path(folder).rglob("*tfevents*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    found[path.parent.name, value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_tensorboard_gets_the_numbers_of_the_log(whole):
    pytest.importorskip("tensorboard")
    found = scalars(whole.folder / "board")
    for epoch, line in enumerate(line for line in whole.lines if line["kind"] == "eval"):
        assert found["validation", "epoch_loss", epoch] == pytest.approx(line["loss"])
        assert found["validation", "epoch_top1", epoch] == pytest.approx(line["top1"])
    assert found["train", "epoch_learning_rate", 1] == pytest.approx(whole.lines[-2]["learning_rate"])


def test_mlflow_logs_the_run(thin, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its client alone, which the extra installs, has no database
    mlflow, _ = pytest.importorskip("mlflow"), pytest.importorskip("pandas")  # of mlflow.keras
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as run:
        train(TrainConfig(**thin, workdir=tmp_path / "run"), callbacks=[mlflow.keras.MlflowCallback()])
    assert mlflow.get_run(run.info.run_id).data.metrics["val_loss"] == pytest.approx(whole.lines[-1]["loss"])


def told(callback, rates=(0.1,), optimizer="sgd"):
    """What a run tells a Keras callback at some steps, an epoch each, without the run: its answers, and the model."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    config, adapted, answers = TrainConfig(synthetic=True, optimizer=optimizer), KerasCallback(callback), []
    adapted.begin(Start(config, 0, 6, 0.0, 6.0, 0.1, model))
    for step, rate in enumerate(rates, 1):
        line = {"phase": "all", "loss": 1.0, "top1": 0.5, "learning_rate": rate}
        adapted.report(Report(step, step, "train", line))
        answers.append(adapted.report(Report(step, step, "eval", {})))
    adapted.end()
    return answers, model


def test_early_stopping_ends_a_run_that_does_not_improve():
    assert told(keras.callbacks.EarlyStopping("loss", patience=2), rates=[0.1] * 4)[0] == [False, False, True, True]


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
        keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=1e9),
    ],
)
def test_a_callback_that_would_set_the_rate_is_refused_with_a_remedy(callback):
    with pytest.raises(Failure, match=r"^it set the learning rate to .*schedule; leave it out"):
        told(callback, rates=(0.1, 0.1))


@pytest.mark.parametrize("optimizer, name", [("adam", "Adam"), ("adamw", "AdamW")])
def test_callbacks_see_the_rule_and_the_rate_of_the_run(optimizer, name):
    _, model = told(AutologCallback(), rates=(0.1, 0.05, 0.025), optimizer=optimizer)
    assert type(model.optimizer).__name__ == name
    assert float(model.optimizer.learning_rate) == pytest.approx(0.025)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: keras.callbacks.EarlyStopping(restore_best_weights=True),
        keras.callbacks.BackupAndRestore,
        lambda folder: keras.callbacks.SwapEMAWeights(),
    ],
)
def test_a_callback_that_would_change_the_weights_is_refused(make, tmp_path):
    with pytest.raises(UsageError, match=r"puts other weights into the model.*best_metric keeps the best weights"):
        KerasCallback(make(tmp_path / "backup"))


class Spoiler(Callback):
    """Makes the weights what no rate makes them before the loss tells: not a number, just before an evaluation."""

    def begin(self, start):
        self.weights = start.model.weights

    def report(self, report):
        for weight in self.weights if (report.step, report.kind) == (3, "train") else ():
            weight.assign(np.full(weight.shape, np.nan))


@pytest.mark.slow
def test_an_evaluation_that_is_not_finite_ends_the_run_and_is_not_kept(thin, tmp_path):
    with pytest.raises(Failure, match="the loss of validation after step 3 is not finite"):
        train(TrainConfig(**thin, workdir=tmp_path / "run"), callbacks=[Spoiler()])
    assert list_checkpoints(tmp_path / "run") == []
    assert [line["kind"] for line in metrics_log.read(tmp_path / "run")] == ["train"] * 3


class Mover(Callback):
    """Changes the directory, as a cell of a notebook may while a run trains in a thread."""

    def __init__(self, folder):
        self.folder = folder

    def begin(self, start):
        os.chdir(self.folder)


@pytest.mark.slow
def test_relative_places_stay_what_they_were_when_the_run_began(thin, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    places = {"data": os.path.relpath(thin["data"]), "workdir": "run"}
    result = train(TrainConfig(**thin | places), callbacks=[Mover(tmp_path / "elsewhere")])
    assert result["finished"] and (tmp_path / "run" / "model.keras").exists()
    assert not list((tmp_path / "elsewhere").iterdir())
