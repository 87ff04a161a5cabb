"""One owner of a run directory, nothing of strangers deleted in it, and nothing in it vouched for unread."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import exclusive, temporary_path
from shardline.trainer import actions, selftest, tuning
from shardline.trainer.checkpoints import checkpoint_path, list_checkpoints, read_checkpoint, write_checkpoint
from shardline.trainer.config import TrainConfig
from shardline.trainer.loop import StepRecord
from shardline.trainer.resume import checkpoint_to_continue
from shardline.trainer.run import prepare
from shardline.trainer.train import train


@pytest.fixture(scope="module")
def thin(undrawn, shallow, tmp_path_factory):
    """Settings of a run of six steps on one device of this process."""
    data = tmp_path_factory.mktemp("data")
    selftest.write_dataset(data, {"train": 24}, side=32)
    return {
        "data": data, "global_batch_size": 8, "image_size": 32, "width": 0.03, "phases": "all:2@0.05", "workers": 0,
        "precision": "float32", "strategy": "one_device", "peak_tflops": 1.0, "checkpoint_every_steps": 1, "jit": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(thin, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return train(TrainConfig(**thin, workdir=workdir)), workdir


@pytest.fixture(scope="module")
def killed_run(thin, tmp_path_factory):
    """A run that was killed after its fourth step, while it wrote something."""
    run = tmp_path_factory.mktemp("killed") / "run"

    def killed(self, state):
        if state.step == 5:
            raise KeyboardInterrupt
        genuine(self, state)

    genuine = actions.SaveCheckpoint.act
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actions.SaveCheckpoint, "act", killed)
        with pytest.raises(KeyboardInterrupt):
            train(TrainConfig(**thin, workdir=run))
    assert [path.name for path in list_checkpoints(run)] == [f"step-{n:08d}.npz" for n in (2, 3, 4)]
    return run


@pytest.fixture
def interrupted(killed_run, tmp_path):
    """That run, to be damaged."""
    return shutil.copytree(killed_run, tmp_path / "run")


def test_r3_a_second_trainer_of_a_run_directory_is_refused(thin, tmp_path):
    (tmp_path / "run").mkdir()
    with (
        exclusive(tmp_path / "run" / ".lock", "it"),
        pytest.raises(Failure, match=f"run is in use by .*{os.getpid()} on"),
    ):
        train(TrainConfig(**thin, workdir=tmp_path / "run"))
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("damage", ["flip", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cut", "empty"))])
def test_r1_a_damaged_newest_checkpoint_costs_a_step_and_a_line(thin, whole, interrupted, damage, capsys):
    newest = list_checkpoints(interrupted)[-1]
    good = newest.read_bytes()
    at = len(good) - 200  # in the zip directory
    newest.write_bytes(
        {"flip": good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :], "cut": good[:at], "empty": b""}[damage]
    )
    result = train(TrainConfig(**thin, workdir=interrupted))
    assert result["weights_sha256"] == whole[0]["weights_sha256"]
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(told) == 1 and told[0].startswith(f"warning: {newest} is damaged or cut")


def test_a_checkpoint_that_was_saved_under_other_flags_is_told(thin, interrupted, capsys):
    """As one is that was copied from another run on the same data."""
    newest = read_checkpoint(list_checkpoints(interrupted)[-1])
    other = newest.header | {"train": newest.header["train"] | {"dropout": 0.9}}
    write_checkpoint(newest.path, other, newest.arrays)
    checkpoint_to_continue(prepare(TrainConfig(**thin, workdir=interrupted)))
    assert f"note: {newest.path} was saved under other flags: --dropout: 0.9 -> " in capsys.readouterr().err


def test_without_one_readable_checkpoint_a_run_does_not_begin_anew(thin, interrupted):
    for path in list_checkpoints(interrupted):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match="not one of its 3 checkpoints can be read; restore one"):
        train(TrainConfig(**thin, workdir=interrupted))


def test_r5_what_a_killed_writer_left_is_removed_and_strangers_files_are_not(thin, whole, interrupted):
    strays = [
        temporary_path(interrupted / "config.json"),
        temporary_path(checkpoint_path(interrupted, 5)),
        temporary_path(interrupted / "plots" / "curves.png"),
    ]
    foreign = [interrupted / "notes.tmp", interrupted / "checkpoints" / "mine.tmp", interrupted / "plots" / "x.npz.tmp"]
    foreign += [interrupted / "checkpoints" / "step-00000001-copy.npz", temporary_path(interrupted / "notes.txt")]
    (interrupted / "plots").mkdir(exist_ok=True)
    for path in strays + foreign:
        path.write_bytes(b"half")
    assert train(TrainConfig(**thin, workdir=interrupted))["weights_sha256"] == whole[0]["weights_sha256"]
    assert not any(path.exists() for path in strays)
    assert all(path.read_bytes() == b"half" for path in foreign)
    assert not (interrupted / ".lock").exists()


@pytest.mark.parametrize("file", ["model.keras", "model.json"])
def test_a_run_is_complete_only_with_the_model_that_it_wrote(thin, whole, file, capsys):
    result, workdir = whole
    config = TrainConfig(**thin, workdir=workdir)
    assert train(config) is None and "is complete at step 6" in capsys.readouterr().err
    model = (workdir / "model.keras").read_bytes()
    (workdir / file).write_bytes((workdir / file).read_bytes()[:-1])
    assert train(config)["weights_sha256"] == result["weights_sha256"]
    assert train(config) is None
    assert abs(len((workdir / "model.keras").read_bytes()) - len(model)) < 100


def test_weights_are_told_and_kept_by_their_hash(thin, whole, tmp_path, capsys):
    file = list_checkpoints(whole[1])[-1]
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    settings = {**thin, "phases": "all:0.5@0.05", "weights": str(file)}
    config = TrainConfig(**settings, weights_sha256=sha256.upper(), workdir=tmp_path / "run")
    train(config)
    assert f"weights={file}: SHA-256 {sha256}" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["starting_weights_sha256"] == sha256
    with pytest.raises(UsageError, match=f"^weights_sha256={'0' * 64}: {file} has {sha256}; give the file"):
        train(TrainConfig(**settings, weights_sha256="0" * 64, workdir=tmp_path / "other"))
    with pytest.raises(UsageError, match="there is no file to compare"):
        train(TrainConfig(**thin, weights_sha256="0" * 64, workdir=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_search_in_a_run_that_has_begun_tells_the_weights_that_it_reads(thin, whole, tmp_path, capsys):
    """And not those that the run began with, which it needs no more."""
    first, *_, last = list_checkpoints(whole[1])
    file = Path(shutil.copy(first, tmp_path / "weights.npz"))
    config = TrainConfig(**{**thin, "phases": "all:0.5@0.05"}, weights=str(file), workdir=tmp_path / "run")
    train(config)
    shutil.copy(last, file)
    capsys.readouterr()
    tuning.dry_run(config)
    assert f"weights={file}: SHA-256 {hashlib.sha256(last.read_bytes()).hexdigest()}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("file", ["labels.npy", "features.npy"])
def test_a_damaged_feature_cache_is_made_again(thin, tmp_path, file):
    settings = {**thin, "phases": "head:2@0.05", "cache_features": 1}
    whole = train(TrainConfig(**settings, workdir=tmp_path / "whole"))

    def killed(self, state):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actions.SaveCheckpoint, "act", killed)
        with pytest.raises(KeyboardInterrupt):
            train(TrainConfig(**settings, workdir=tmp_path / "run"))
    path = tmp_path / "run" / "features" / file
    good = path.read_bytes()
    bad = good[:-3] + bytes([good[-3] ^ 1]) + good[-2:]
    (tmp_path / "elsewhere").write_bytes(bad)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")  # which is not what is made again
    assert train(TrainConfig(**settings, workdir=tmp_path / "run"))["weights_sha256"] == whole["weights_sha256"]
    assert (tmp_path / "elsewhere").read_bytes() == bad


def test_r7_speed_is_measured_by_the_time_of_the_steps():
    """Reports are read later, several at once: when they are says nothing about the speed."""
    monitor = actions.StepMonitor.__new__(actions.StepMonitor)
    monitor.flops, monitor.peaks, monitor.callbacks, monitor.images_per_second = {0: 0.0}, {}, None, 0.0
    monitor._gpu = None

    class Setup:
        class config:
            log_every_steps, global_batch_size, precision = 1, 10, "float32"

        @staticmethod
        def epoch(cursor):
            return 0.0

    class Laps:
        def lap(self):
            return {}

    monitor.setup, monitor.bar, monitor._stages, monitor._epochs = Setup, MagicMock(), Laps(), 1
    monitor.allreduce_bytes = {0: 0}
    monitor._steps = 0
    monitor.restart()
    report = {"finite": 1.0, "loss": 1.0, "top1": 1.0, "samples": 10.0, "norm": 1.0, "stop": 0.0}
    span = type("Span", (), {"index": 0, "phase": type("Phase", (), {"part": "all"})})
    for number, seconds in enumerate([9.0, 1.0, 3.0]):
        monitor.after_step(StepRecord(number + 1, 10, span, 0.1, report, seconds, seconds / 4, None, 0))
    assert monitor.images_per_second == 5  # the first step compiles; 20 images in 4 seconds
    assert monitor.waiting_share == 0.25
