"""Checkpoints written beside training: what is waited for, what a failure and a kill leave, and the best one's name."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from shardline.pipeline.errors import Failure
from shardline.trainer import checkpoint_writer
from shardline.trainer.actions import StepMonitor
from shardline.trainer.checkpoint_writer import CheckpointWriter
from shardline.trainer.checkpoints import best_path, checkpoint_path, list_checkpoints, read_checkpoint
from shardline.trainer.config import TrainConfig
from shardline.trainer.train import train
from tests.trainer.networks import HEADER

ARRAYS = {"model/conv/kernel": np.arange(6, dtype=np.float32)}


@pytest.fixture
def held(monkeypatch):
    """Writing waits until this event is set."""
    event, genuine = threading.Event(), checkpoint_writer.write_checkpoint

    def write(path, header, arrays):
        assert event.wait(60)
        genuine(path, header, arrays)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write)
    yield event
    event.set()


def write(writer, step, best=False):
    writer.write(step, {**HEADER, "step": step}, {**ARRAYS, "model/step": np.float32(step)}, best=best)


def test_training_goes_on_while_a_checkpoint_is_written_and_leaving_waits_for_it(tmp_path, held):
    with CheckpointWriter(str(tmp_path), keep=2) as writer:
        write(writer, 1)
        writer.check()
        assert not list_checkpoints(tmp_path)
        held.set()
    assert read_checkpoint(checkpoint_path(tmp_path, 1)).header["step"] == 1


def test_the_last_ones_are_kept(tmp_path):
    with CheckpointWriter(str(tmp_path), keep=2) as writer:
        for step in range(1, 5):
            write(writer, step)
    assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, step) for step in (3, 4)]


def test_the_best_one_is_a_second_name_that_outlives_the_first(tmp_path):
    with CheckpointWriter(str(tmp_path), keep=1) as writer:
        write(writer, 1)
        write(writer, 2, best=True)
        writer.wait()
        assert os.path.samefile(best_path(tmp_path), checkpoint_path(tmp_path, 2))
        write(writer, 3)
        write(writer, 4, best=True)
        write(writer, 5)
    assert read_checkpoint(best_path(tmp_path)).header["step"] == 4
    assert sorted(path.name for path in best_path(tmp_path).parent.iterdir()) == ["best.npz", "step-00000005.npz"]


def test_a_name_that_is_there_already_is_no_trouble(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    for _ in range(2):
        checkpoint_writer.link(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_without_hard_links_the_best_one_is_written_again(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(checkpoint_writer.os, "link", refused)
    with CheckpointWriter(str(tmp_path), keep=1) as writer:
        write(writer, 7, best=True)
    assert read_checkpoint(best_path(tmp_path)).arrays["model/step"] == 7


def test_a_failure_is_told_at_the_next_look_or_when_leaving(tmp_path, monkeypatch):
    def full(path, header, arrays):
        raise Failure(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", full)
    writer = CheckpointWriter(str(tmp_path), keep=1)
    write(writer, 1)
    assert writer._writing.exception(60)
    with pytest.raises(Failure, match="No space left"):
        writer.check()
    write(writer, 2)
    with pytest.raises(Failure, match="No space left"):
        write(writer, 3)
    with pytest.raises(Failure, match="No space left"), writer:
        write(writer, 4)
    # Not in place of what has ended the run already.
    with pytest.raises(KeyboardInterrupt), CheckpointWriter(str(tmp_path), keep=1) as writer:
        write(writer, 1)
        raise KeyboardInterrupt


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        synthetic=True, workdir=str(tmp_path / "run"), eval_split="none", width=0.03, image_size=32, dropout=0.1,
        global_batch_size=16, phases="all:0.1@0.01", precision="float32", jit=False, strategy="one_device",
        checkpoint_every_steps=2, peak_tflops=1.0, log_every_steps=1,
    )  # fmt: skip


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_the_checkpoint_before(config, monkeypatch):
    genuine, steps = checkpoint_writer.write_checkpoint, []

    def full(path, header, arrays):
        if header["step"] == 4:
            raise Failure(f"{path} cannot be written: No space left on device; free some space")
        genuine(path, header, arrays)

    def after_step(self, record):
        steps.append(record.step)
        taken_in(self, record)

    taken_in = StepMonitor.after_step
    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", full)
    monkeypatch.setattr(
        StepMonitor, "after_step", lambda self, record: (steps.append(record.step), after_step(self, record))
    )
    with pytest.raises(Failure, match=r"step-00000004\.npz cannot be written: No space left"):
        train(config)
    assert list_checkpoints(config.workdir) == [checkpoint_path(config.workdir, 2)]
    assert steps[-1] <= 6  # the next checkpoint waits for the one that failed


KILLED = """
import os, signal, sys
from shardline.trainer import checkpoint_writer
from shardline.trainer.config import TrainConfig
from shardline.trainer.train import train
import shardline.pipeline.stored_arrays as stored_arrays
genuine = stored_arrays._crc
def killed(path):  # when all is written but the checksum
    if "step-00000004" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return genuine(path)
stored_arrays._crc = killed
import json
train(TrainConfig(**json.loads(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_costs_no_bit(config, tmp_path):
    whole = train(dataclasses.replace(config, workdir=str(tmp_path / "whole")))
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(config.to_dict())])
    assert done.returncode == -9
    assert list_checkpoints(config.workdir) == [checkpoint_path(config.workdir, 2)]
    assert train(config)["weights_sha256"] == whole["weights_sha256"]
    assert [path.name for path in best_path(config.workdir).parent.glob("*tmp*")] == []
