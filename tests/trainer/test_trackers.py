"""Trackers: read back by their own libraries, continued after a stop, never in the way of a run."""

import contextlib
import importlib.util
import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from shardline.pipeline.errors import UsageError
from shardline.trainer import metrics_log, selftest, trackers
from shardline.trainer.callbacks import Callback, Report, Start
from shardline.trainer.checkpoints import checkpoint_path
from shardline.trainer.config import TrainConfig
from shardline.trainer.loop import StopRequest
from shardline.trainer.run_dir import TRACKING_FILE
from shardline.trainer.train import train
from tests.trainer.tiny import refusal

START = Start(TrainConfig(), 0, 6, 0.0, 2.0, 0.1, None)


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def report(self, report):
        return report.step == self.step


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run of six steps and two evaluations, told to all trackers that are installed.

    It ends at step 5, loses its last checkpoint, as by a kill, and is continued from step 3.
    """
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "data").mkdir()
    selftest.write_dataset(folder / "data", {"train": 24, "validation": 8}, side=32)
    names = [name for name in trackers.TRACKERS if importlib.util.find_spec(name)]
    config = TrainConfig(
        data=str(folder / "data"), workdir=str(folder / "run"), global_batch_size=8, image_size=32, width=0.03,
        workers=0, phases="all:2@0.05", precision="float32", strategy="one_device", peak_tflops=1.0, log_every_steps=1,
        jit=False, track=",".join(names),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("WANDB_MODE", "offline")
        train(config, callbacks=[StopAt(5)])
        checkpoint_path(config.workdir, 5).unlink()
        train(config)
    return SimpleNamespace(folder=folder, run=folder / "run", lines=metrics_log.read(folder / "run"))


def losses(lines, kind):
    """Step -> loss in metrics.jsonl."""
    return {line["step"]: line["loss"] for line in lines if line["kind"] == kind}


# ------------------------------------------------------------------------------------ what is asked for


def test_an_unknown_tracker_is_refused():
    with pytest.raises(UsageError, match="'tensorbord' is not one of tensorboard, mlflow, wandb"):
        TrainConfig(track="mlflow,tensorbord")
    assert TrainConfig(track=" wandb, mlflow,wandb").trackers == ("wandb", "mlflow")


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_one_that_is_not_installed_is_refused_in_a_line_with_the_command(name, tiny_data, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted, *rest: None if wanted == name else find(wanted))
    said = refusal("shardline.trainer.train", "--data", tiny_data, "--workdir", tmp_path / "run", "--track", name)
    assert said == f"--track={name} needs {trackers.TRACKERS[name].product}: pip install 'shardline[{name}]'"
    assert not (tmp_path / "run").exists()


def test_without_the_flag_there_is_none():
    assert trackers.create_trackers(TrainConfig(), StopRequest()) == []


# ------------------------------------------------------------------------------------------ TensorBoard


def events_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


@pytest.mark.parametrize("back", (0, 3600))
def test_tensorboard_forgets_the_steps_that_a_continued_run_makes_again(back, tmp_path, monkeypatch):
    """Also where the clock was set back between the two."""
    pytest.importorskip("tensorboard")
    config = TrainConfig(synthetic=True, workdir=str(tmp_path), track="tensorboard", dropout=0.25)
    for first, last in ((0, 5), (3, 6)):  # killed after step 5, continued from a checkpoint of step 3
        now = 1.8e9 + first - back * (first > 0)
        monkeypatch.setattr(trackers, "time", SimpleNamespace(time=lambda now=now: now))
        (tracker,) = trackers.create_trackers(config, StopRequest())
        tracker.begin(replace(START, config=config, step=first))
        for step in range(first + 1, last + 1):
            tracker.report(Report(step, step / 3, "train", {"loss": step / 8, "phase": "all"}))
        tracker.report(Report(last, last / 3, "eval", {"loss": 0.5, "split": "test"}))
        tracker.end()
    read = events_of(tmp_path / "tensorboard" / "train").Scalars("loss")
    assert [(event.step, event.value) for event in read] == [(step, step / 8) for step in range(1, 7)]
    (held_out,) = events_of(tmp_path / "tensorboard" / "test").Scalars("loss")
    assert (held_out.step, held_out.value) == (6, 0.5)


@pytest.mark.slow
def test_tensorboard_reads_every_number_once_and_images_and_settings(tracked):
    pytest.importorskip("tensorboard")
    from tensorboard.plugins.hparams import metadata

    for kind, folder in (("train", "train"), ("eval", "validation")):
        events = events_of(tracked.run / "tensorboard" / folder)
        wanted = [line for line in tracked.lines if line["kind"] == kind]
        for name in ("loss", "top1", "epoch"):
            read = events.Scalars(name)
            assert [event.step for event in read] == [line["step"] for line in wanted], name
            assert [event.value for event in read] == pytest.approx([line[name] for line in wanted]), name
    sheet = events_of(tracked.run / "tensorboard/train").Images("batches as seen")[-1]
    assert (sheet.width, sheet.encoded_image_string) == (1024, (tracked.run / "plots/batches.jpg").read_bytes())
    mistakes = events_of(tracked.run / "tensorboard/train").Images("mistakes")
    assert {event.step for event in mistakes} == {3, 6}  # at the evaluations
    plugin = events_of(tracked.run / "tensorboard").summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data
    session = metadata.parse_session_start_info_plugin_data(plugin.content)
    assert session.hparams["phases"].string_value == "all:2@0.05"
    assert session.hparams["global_batch_size"].number_value == 8 and "workdir" not in session.hparams


# ----------------------------------------------------------------------------------------------- MLflow


@pytest.mark.slow
def test_mlflow_has_one_run_with_every_number_and_the_page(tracked):
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=(tracked.folder / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("shardline").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["phases"] == "all:2@0.05" and run.data.params["jit"] == "False"
    for kind, name in (("train", "train"), ("eval", "validation")):
        history = client.get_metric_history(run.info.run_id, f"{name}/loss")
        assert {metric.step: metric.value for metric in history} == losses(tracked.lines, kind)
    page = client.download_artifacts(run.info.run_id, "report.html")
    assert Path(page).read_bytes() == (tracked.run / "report.html").read_bytes()
    assert {"config.json", "plots"} <= {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


def test_mlflow_says_how_a_run_ended(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "roses")

    def one(name, by="", error=None):
        stop, workdir = StopRequest(), tmp_path / name
        workdir.mkdir()
        (tracker,) = trackers.create_trackers(TrainConfig(synthetic=True, workdir=workdir, track="mlflow"), stop)
        with contextlib.suppress(KeyError), contextlib.ExitStack() as stack:
            stack.callback(tracker.end)
            tracker.begin(START)
            stop.by = by
            if error:
                raise error

    one("finished")
    one("stopped", by="callback Patience")
    one("broken", error=KeyError("gone"))
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "elsewhere").as_uri())
    runs = client.search_runs([client.get_experiment_by_name("roses").experiment_id])
    found = {run.info.run_name: run.info.status for run in runs}
    assert found == {"finished": "FINISHED", "stopped": "KILLED", "broken": "FAILED"}


# ---------------------------------------------------------------------------------------- Weights & Biases


@pytest.mark.slow
def test_wandb_keeps_a_run_offline_and_continues_it_by_its_id(tracked):
    pytest.importorskip("wandb")
    files = sorted((tracked.run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2  # one for each call
    name = json.loads((tracked.run / TRACKING_FILE).read_text())["wandb_run"]
    assert {path.name for path in files} == {f"run-{name}.wandb"}
    found = {}
    for path in files:
        for step, values in wandb_history(path):
            found.setdefault(step, {}).update(values)
    for kind, split in (("train", "train"), ("eval", "validation")):
        read = {step: values[f"{split}/loss"] for step, values in found.items() if f"{split}/loss" in values}
        assert read == losses(tracked.lines, kind)
    assert found[0]["batches as seen.width"] == 1024


def wandb_history(path):
    """Step and values of each line of history, from the log of LevelDB's kind in which W&B keeps a run."""
    from wandb.proto import wandb_internal_pb2

    data, position, whole = path.read_bytes(), 7, b""  # after the file's own header
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # no room for a header before the next block
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # all of a record, or its end
            record = wandb_internal_pb2.Record.FromString(whole)
            if record.WhichOneof("record_type") == "history":
                names = ((".".join(item.nested_key) or item.key, item.value_json) for item in record.history.item)
                yield record.history.step.num, {name: json.loads(text) for name, text in names}
            whole = b""


# ------------------------------------------------------------------------------------------ what goes wrong


def start_and_report(tracker, *, break_it):
    """A tracker that works at first, and then does not."""
    tracker.begin(START)
    tracker.report(Report(1, 0.3, "train", {"loss": 1.0}))
    break_it(tracker)
    for step in (2, 3):
        tracker.report(Report(step, 0.6, "train", {"loss": 0.5}))
    tracker.end()


def break_file(tracker):
    """A disk without room for another byte."""
    for kind, file in tracker._files.items():
        file.close()
        tracker._files[kind] = open("/dev/full", "wb")  # noqa: SIM115


def break_store(tracker):
    """A store that is gone, and cannot come again."""
    shutil.rmtree(tracker.workdir.parent / "mlruns")
    (tracker.workdir.parent / "mlruns").write_text("")


def break_wandb(tracker):
    """Its process is gone, or has ended the run."""
    tracker._run.finish()


@pytest.mark.parametrize(
    "name, break_it", [("tensorboard", break_file), ("mlflow", break_store), ("wandb", break_wandb)]
)
def test_one_that_fails_says_so_in_a_line_and_the_run_goes_on(name, break_it, tmp_path, monkeypatch, capfd):
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "run").mkdir()
    config = TrainConfig(synthetic=True, workdir=str(tmp_path / "run"), track=name)
    (tracker,) = trackers.create_trackers(config, StopRequest())
    start_and_report(tracker, break_it=break_it)
    first, second = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert first.startswith(f"{tracker.product}: ")
    assert second.startswith(f"warning: --track={name} failed (") and second.endswith("; training goes on without it")


def test_one_that_cannot_begin_is_no_reason_to_stop(tmp_path, capfd):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file in its place")
    config = TrainConfig(synthetic=True, workdir=str(tmp_path), track="tensorboard")
    (tracker,) = trackers.create_trackers(config, StopRequest())
    tracker.begin(START)
    tracker.report(Report(1, 0.3, "train", {"loss": 1.0}))
    tracker.end()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: --track=tensorboard failed (FileExistsError")


def test_names_that_were_damaged_are_not_believed(tmp_path):
    trackers.write_names(tmp_path, trackers.Names(wandb_run="abc"))
    assert trackers.read_names(tmp_path).wandb_run == "abc"
    path = Path(tmp_path, TRACKING_FILE)
    path.write_text(path.read_text().replace("abc", "abd"))
    with pytest.raises(UsageError, match="delete it to begin new runs in the trackers"):
        trackers.read_names(tmp_path)


def test_a_copy_of_a_run_begins_a_new_run_and_a_moved_one_continues_its_own(tmp_path, capsys):
    original, copy, moved, link = (tmp_path / name for name in ("run", "copy", "moved", "link"))
    original.mkdir()
    trackers.write_names(original, trackers.Names("file:///store", "abc", "def"))
    shutil.copytree(original, copy)
    for _ in (1, 2):  # each tracker asks
        names = trackers.own_names(copy)
        assert (names.mlflow_store, names.runs) == ("file:///store", set())
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"note: --workdir={copy} is a copy of {original}: it begins a new run in the trackers"
    trackers.write_names(copy, replace(names, wandb_run="new"))
    assert trackers.own_names(copy).runs == {"new"}
    link.symlink_to(original)
    assert trackers.own_names(link).runs == trackers.own_names(original).runs == {"abc", "def"}
    original.rename(moved)
    assert trackers.own_names(moved).runs == {"abc", "def"}
    shutil.copytree(moved, original)
    assert not trackers.own_names(original).runs  # of the moved one, which noted its new place
    assert capsys.readouterr().err.count("is a copy of") == 1


def test_settings_are_plain_values_of_what_is_computed():
    found = trackers.settings(TrainConfig(data="d", workdir="w", crop_area=(0.5, 1.0), track="mlflow"))
    assert found["crop_area"] == "0.5,1" and found["dropout"] == 0.5 and found["jit"] == "auto"
    assert not {"data", "workdir", "track"} & set(found)
