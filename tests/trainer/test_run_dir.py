"""Which weights stand for a run, what is said of them, and that its files change only when a step was made."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest

from shardline.pipeline.errors import Interrupted, UsageError
from shardline.pipeline.run_input import read_run_input
from shardline.pipeline.wording import as_flag
from shardline.trainer import compare, metrics_log, selftest
from shardline.trainer.actions import SaveCheckpoint
from shardline.trainer.checkpoints import (
    best_path,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    weights_digest,
    write_checkpoint,
)
from shardline.trainer.config import TrainConfig
from shardline.trainer.loop import StopRequest
from shardline.trainer.run_dir import choose_weights, load_run, read_config
from shardline.trainer.train import train
from tests.pipeline.tiny import edit_stored
from tests.trainer.networks import randomized, values
from tests.trainer.test_weights import write_legacy_h5
from tests.trainer.tiny import command


@pytest.fixture(scope="module")
def config(undrawn, tmp_path_factory):
    """Four evaluations, the second of which is the best: the rate of the second phase spoils what the first learned."""
    data = tmp_path_factory.mktemp("data")
    selftest.write_dataset(data, {"train": 24, "validation": 9, "test": 5}, side=40)
    return TrainConfig(
        data=str(data), workdir=str(data.parent / "run"), global_batch_size=8, image_size=32, width=0.03,
        phases="head:2@0.05,head:2@30", schedule="constant", warmup_epochs=0, workers=0, precision="float32",
        strategy="one_device", peak_tflops=1.0, jit=False, dropout=0.0, best_metric="loss",
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(config):
    return train(config)


@pytest.fixture
def copy(config, result, tmp_path):
    """The finished run, to be spoiled."""
    shutil.copytree(config.workdir, tmp_path / "run")
    return dataclasses.replace(config, workdir=str(tmp_path / "run"))


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_result_is_of_the_weights_in_the_model(config, result, capsys):
    """t4: step, metric and digest, each against the model's own weights and the log's own line."""
    run, lines = load_run(config.workdir), metrics_log.read(config.workdir)
    evaluations = {line["step"]: line["loss"] for line in lines if line["kind"] == "eval"}
    best = min(evaluations, key=evaluations.get)
    assert best < max(evaluations) == 12
    assert (result["step"], result["last_step"]) == (best, 12)
    assert result["choice"] == "best by validation loss"
    assert result["validation_loss"] == evaluations[best]
    (top1,) = (line["top1"] for line in lines if line["kind"] == "eval" and line["step"] == best)
    assert compare.load("run", config.workdir, "test").held_out == result["validation_top1"] == top1
    model = keras.models.load_model(f"{config.workdir}/model.keras", compile=False)
    weights = dict(zip(run.network.weights, (variable.numpy() for variable in model.weights), strict=True))
    assert result["weights_sha256"] == weights_digest(weights) == run.chosen.sha256


@pytest.mark.parametrize("numbered", (True, False), ids=["killed before it was linked", "both gone"])
def test_a_run_that_goes_on_keeps_its_best_weights_or_chooses_anew(copy, result, numbered, capsys):
    """The numbered checkpoint of the best step goes in time: without best.npz the run would end on no weights."""
    best_path(copy.workdir).unlink()
    if not numbered:
        checkpoint_path(copy.workdir, result["step"]).unlink()
    longer = dataclasses.replace(copy, phases=f"{copy.phases},head:1@30", keep_checkpoints=1)
    found = train(longer, allow_changes=True)
    said = f"of step {result['step']}, are not there: " in (err := capsys.readouterr().err)
    assert said == ("; the best is chosen anew" in err) == (not numbered)
    assert not checkpoint_path(copy.workdir, result["step"]).exists()
    if numbered:
        assert (found["step"], found["weights_sha256"]) == (result["step"], result["weights_sha256"])
    else:
        assert found["step"] == found["last_step"] == 15


def test_evaluate_predict_and_export_say_which_weights(config, result, tmp_path):
    run, data = config.workdir, config.data
    evaluated = command(
        "shardline.trainer.evaluate", "--run", run, "--data", data, "--output", tmp_path / "e", "--leakage", "none",
        "--noreport",
    )  # fmt: skip
    exported = command("shardline.trainer.export", "--run", run, "--output", tmp_path / "x", "--formats", "keras",
                       "--parity_images", 2)  # fmt: skip
    (tmp_path / "a.png").write_bytes(b"no image")
    files = ("--output", tmp_path / "p.jsonl", tmp_path / "a.png")
    predicted = command("shardline.trainer.predict", "--run", run, *files, check=1)
    wanted = {
        "step": result["step"], "choice": "best by validation loss", "averaged": False,
        "sha256": result["weights_sha256"], "finished": True,
    }  # fmt: skip
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["weights"] == wanted
    assert json.loads((tmp_path / "x" / "parity.json").read_text())["weights"] == wanted
    assert json.loads((tmp_path / "p.jsonl").read_text())["weights"] == wanted
    line = f"step {result['step']}, best by validation loss, SHA-256 {result['weights_sha256']}"
    assert json.loads(pq.read_metadata(tmp_path / "e" / "predictions.parquet").metadata[b"weights"]) == wanted
    for name in ("p.csv", "p.parquet"):
        command("shardline.trainer.predict", "--run", run, "--output", tmp_path / name, tmp_path / "a.png", check=1)
    assert (tmp_path / "p.csv").read_text().splitlines()[-1].endswith(f',"{line}"')
    assert json.loads(pq.read_metadata(tmp_path / "p.parquet").metadata[b"weights"]) == wanted
    for done in (evaluated, exported, predicted):
        first = done.stderr.splitlines()[0]
        assert first.startswith("weights: best.npz, step ") and first.endswith(result["weights_sha256"])


def test_an_attempt_without_a_checkpoint_leaves_no_numbers_beside_another_config(config, tmp_path, monkeypatch):
    """Killed before the first checkpoint, then started under other flags, which are wrong: its log was of the first."""

    def killed(*args, **options):
        raise KeyboardInterrupt

    first = dataclasses.replace(
        config, workdir=str(tmp_path / "run"), checkpoint_every_steps=2, log_every_steps=1, best_metric="none"
    )
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(SaveCheckpoint, "act", killed)
        train(first)
    assert {line["step"] for line in metrics_log.read(first.workdir)} >= {1, 2}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shardline.trainer.run.create_train_state", killed)
        train(dataclasses.replace(first, dropout=0.3))
    assert read_config(first.workdir)["train"]["dropout"] == 0.3
    assert not metrics_log.read(first.workdir)


@pytest.mark.parametrize("change", [{"image_size": 64}, {"eval_crop_fraction": 0.9}, {"best_metric": "top1"}])
def test_nothing_to_do_changes_nothing(copy, change, tmp_path):
    """t1: also under other flags that are allowed; what the weights were made with never changes."""
    before = content(tmp_path)
    assert train(dataclasses.replace(copy, **change), allow_changes=True) is None
    assert content(tmp_path) == before


@pytest.mark.parametrize("allow_changes", (False, True))
def test_a_refused_restart_changes_nothing(copy, allow_changes, tmp_path):
    """t1: the run's own command still works after it."""
    before = content(tmp_path)
    with pytest.raises(UsageError, match=r"other flags|another model"):
        train(dataclasses.replace(copy, width=0.2, phases=f"{copy.phases},head:1@1"), allow_changes=allow_changes)
    assert content(tmp_path) == before
    assert train(copy) is None


@pytest.mark.parametrize("change", [{"phases": "head:1@0.05"}, {"early_stop_evals": 1}])
def test_flags_that_end_before_a_run_is_are_refused(copy, change, tmp_path):
    """They would call a run complete that no command calls finished; one that is finished stays so."""
    assert train(dataclasses.replace(copy, **change), allow_changes=True) is None
    list_checkpoints(copy.workdir)[-1].unlink()
    before = content(tmp_path)
    with pytest.raises(UsageError, match="step 9 already, and under these flags it would have ended sooner"):
        train(dataclasses.replace(copy, **change), allow_changes=True)
    assert content(tmp_path) == before


def test_weights_keep_the_config_they_were_made_with(copy):
    """Continued with larger images, and never better: the best is still of the smaller ones."""
    longer = dataclasses.replace(copy, image_size=64, phases=f"{copy.phases},head:1@30", eval_crop_fraction=0.9)
    train(longer, allow_changes=True)
    assert read_config(copy.workdir)["train"]["image_size"] == 64
    best, last = load_run(copy.workdir), load_run(copy.workdir, str(list_checkpoints(copy.workdir)[-1]))
    assert (best.config.image_size, best.preprocessing["crop_fraction"]) == (32, copy.eval_crop_fraction)
    assert (last.config.image_size, last.preprocessing["crop_fraction"]) == (64, 0.9)


def test_another_metric_forgets_the_best_and_says_so(copy, capsys):
    """t3: minus the loss is no accuracy; the first evaluation by the new metric is the best so far."""
    longer = dataclasses.replace(copy, best_metric="top1", phases=f"{copy.phases},head:1@0", early_stop_evals=2)
    found = train(longer, allow_changes=True)
    assert "was chosen by validation loss and is forgotten" in capsys.readouterr().err
    assert (found["step"], found["choice"]) == (15, "best by validation top1")


def test_a_best_of_before_is_named_and_left_aside(copy):
    """K16: not what lies there decides, but the header of the newest checkpoint."""
    longer = dataclasses.replace(copy, best_metric="none", phases=f"{copy.phases},head:1@30")
    found = train(longer, allow_changes=True)
    chosen = choose_weights(copy.workdir)
    assert (found["step"], found["choice"], chosen.choice) == (15, "last", "last")
    (note,) = chosen.notes
    assert note.startswith(str(best_path(copy.workdir))) and "left aside" in note


def test_a_foreign_best_is_not_taken(copy, result):
    """The numbered checkpoint of the best step is as good; without it there is no best, and that is said."""
    last = list_checkpoints(copy.workdir)[-1]
    best_path(copy.workdir).write_bytes(last.read_bytes())
    numbered = checkpoint_path(copy.workdir, result["step"])
    if numbered.exists():
        assert choose_weights(copy.workdir).sha256 == result["weights_sha256"]
        numbered.unlink()
    with pytest.raises(UsageError, match=f"the best weights by validation loss, of step {result['step']}, are not"):
        choose_weights(copy.workdir)


def test_a_signal_raises_and_what_is_used_then_is_called_unfinished(config, tmp_path, monkeypatch):
    monkeypatch.setattr(StopRequest, "__enter__", lambda self: setattr(self, "signal", signal.SIGTERM) or self)
    stopped = dataclasses.replace(config, workdir=str(tmp_path / "run"))
    with pytest.raises(Interrupted, match="stopped at step 1 with a checkpoint") as caught:
        train(stopped)
    assert caught.value.number == signal.SIGTERM
    done = command(
        "shardline.trainer.evaluate", "--run", stopped.workdir, "--data", config.data, "--output", tmp_path / "e",
        "--leakage", "none", "--noreport",
    )  # fmt: skip
    assert done.stderr.startswith("the run is not finished; weights: step-00000001.npz, step 1, last")
    assert done.stdout.startswith("unfinished run, step 1\n")
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["weights"]["finished"] is False


@pytest.mark.slow
def test_the_average_is_what_the_result_is_of(config, tmp_path):
    """And training's own numbers of it are those of shardline-evaluate: two implementations, one meaning."""
    recipe = {"ema": 0.9, "best_metric": "none", "label_smoothing": 0.2, "class_weights": "balanced", "dropout": 0.3}
    averaged = dataclasses.replace(config, workdir=str(tmp_path / "run"), **recipe)
    found = train(averaged)
    arguments = ("--run", averaged.workdir, "--data", config.data, "--split", "validation", "--output", tmp_path / "e")
    command("shardline.trainer.evaluate", *arguments, "--leakage", "none", "--noreport")
    evaluated = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert found["validation_loss"] == pytest.approx(evaluated["log_loss"], rel=1e-5)
    assert [found[f"validation_{name}"] for name in ("top1", "top5")] == [evaluated["top1"], evaluated["top5"]]
    checkpoint = read_checkpoint(list_checkpoints(averaged.workdir)[-1])
    average = {name[4:]: array for name, array in checkpoint.arrays.items() if name.startswith("ema/")}
    assert found["weights_sha256"] == weights_digest(average)
    last = {name[6:]: array for name, array in checkpoint.arrays.items() if name.startswith("model/")}
    assert any(not np.array_equal(average[name], last[name]) for name in average)


@pytest.mark.slow
def test_a_learning_rate_is_looked_for_where_training_follows(config, tmp_path):
    """t16."""
    folder = tmp_path / "run" / "plots"
    folder.mkdir(parents=True)
    (folder / "find_lr.png").write_bytes(b"image")
    train(dataclasses.replace(config, workdir=str(tmp_path / "run")))
    (tmp_path / "other" / "plots").mkdir(parents=True)
    (tmp_path / "other" / "plots" / "mine.png").write_bytes(b"image")
    with pytest.raises(UsageError, match="not empty and no run directory of shardline"):
        train(dataclasses.replace(config, workdir=str(tmp_path / "other")))


@pytest.mark.slow
def test_a_relative_dataset_is_stored_as_absolute_and_looked_for_by_both_names(config, tmp_path, monkeypatch):
    """t20."""
    shutil.copytree(config.data, tmp_path / "here" / "data")
    monkeypatch.chdir(tmp_path / "here")
    train(dataclasses.replace(config, workdir="run", data="data"))
    assert read_config("run")["train"]["data"] == str(tmp_path / "here" / "data")
    (tmp_path / "here" / "data").rename(tmp_path / "moved")
    line = command("shardline.trainer.export", "--run", "run", "--output", "out", check=2).stderr
    assert str(tmp_path / "here" / "data") in line and read_config("run")["dataset"]["dataset"] in line


def test_a_run_that_goes_on_under_other_weights_keeps_what_its_own_mean(copy, tmp_path):
    """Scratch weights see a 58th of the pixels, pretrained ones all of them; at a rate of 0 nothing else changes."""
    write_legacy_h5(tmp_path / "w.h5", values(randomized(1, "gap")))
    more = {"phases": f"{copy.phases},head:1@0", "weights": str(tmp_path / "w.h5"), "best_metric": "none"}
    train(dataclasses.replace(copy, **more), allow_changes=True)
    losses = {line["step"]: line["loss"] for line in metrics_log.read(copy.workdir) if line["kind"] == "eval"}
    assert losses[15] == pytest.approx(losses[12], rel=1e-5)
    assert read_checkpoint(checkpoint_path(copy.workdir, 15)).header["input_scale"] == 58.0


def test_t20_starting_weights_are_the_same_file_wherever_they_lie(config, tmp_path, monkeypatch):
    write_legacy_h5(tmp_path / "w.h5", values(randomized(1, "gap")))
    monkeypatch.chdir(tmp_path)
    short = dataclasses.replace(config, workdir=str(tmp_path / "run"), weights="w.h5", phases="head:1@0.01")
    train(short)
    assert read_config(short.workdir)["train"]["weights"] == str(tmp_path / "w.h5")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "w.h5").rename(tmp_path / "elsewhere" / "other name.h5")
    longer = dataclasses.replace(short, weights="elsewhere/other name.h5")
    assert train(longer) is None  # nothing to do, and no refusal


@pytest.mark.slow
def test_a_run_goes_on_without_the_weights_it_started_from(config, tmp_path, monkeypatch):
    """Whatever lies in their place; a run that made no step yet needs them."""
    write_legacy_h5(tmp_path / "w.h5", values(randomized(1, "gap")))
    monkeypatch.chdir(tmp_path)
    begun = dataclasses.replace(config, workdir=str(tmp_path / "run"), weights="w.h5", phases="head:1@0.01")
    train(begun)
    known = read_config(begun.workdir)["starting_weights_sha256"]
    (tmp_path / "w.h5").write_bytes(b"another file")
    longer = dataclasses.replace(begun, phases="head:2@0.01", weights_sha256=known)
    assert train(longer, allow_changes=True)["epoch"] == 2
    (tmp_path / "w.h5").unlink()
    assert train(longer) is None
    assert read_config(begun.workdir)["starting_weights_sha256"] == known != ""
    for other in ({"weights": "v.h5"}, {"workdir": str(tmp_path / "new")}, {"weights_sha256": "0" * 64}):
        with pytest.raises(UsageError, match=r"^weights=.*: no such file"):
            train(dataclasses.replace(longer, **other))


def test_a_config_of_before_a_setting_opens_with_its_default_and_says_so_once(copy, capsys):
    path = Path(copy.workdir) / "config.json"
    edit_stored(path, lambda content: [content["train"].pop(name) for name in ("image_timeout", "block_lr_decay")])
    assert TrainConfig.from_dict(read_config(copy.workdir)["train"]).image_timeout == copy.image_timeout
    read_config(copy.workdir)
    said = f"note: {path} is of a version without {{}}, as is taken now\n"
    assert capsys.readouterr().err == said.format(f"--image_timeout={as_flag(copy.image_timeout)}, --block_lr_decay=1")
    assert read_run_input(copy.workdir).config == copy.input_config()
    assert capsys.readouterr().err == said.format(f"--image_timeout={as_flag(copy.image_timeout)}")
    assert train(copy) is None  # as before


def test_a_checkpoint_of_other_classes_is_refused(copy):
    (*_, path) = list_checkpoints(copy.workdir)
    found = read_checkpoint(path)
    other = [f"other {label}" for label in found.header["labels"]]
    write_checkpoint(path, found.header | {"labels": other}, found.arrays)
    with pytest.raises(UsageError, match="is of a model of other classes than"):
        load_run(copy.workdir, str(path))
