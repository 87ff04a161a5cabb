"""R1: any changed bit of a checkpoint is found, and the one before it is used."""

import errno
import os

import numpy as np
import pytest

from shardline.pipeline import stored_arrays
from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer.checkpoints import (
    checkpoint_path,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)

HEADER = {
    "step": 9, "cursor": 72, "phase": 1, "best_metric": "validation top1", "best": 0.5, "best_step": 9,
    "evals_since_best": 0, "evaluation": {"step": 9, "top1": 0.5}, "train": {}, "sampler": {"seed": 3, "records": 40},
    "input_scale": 1.0,
}  # fmt: skip


def save(workdir, number, **changes):
    arrays = {"model/conv/kernel": np.full((2, 3), number, np.float32), "slots/conv/kernel/momentum": np.zeros(3)}
    write_checkpoint(checkpoint_path(workdir, number), {**HEADER, "step": number, **changes}, arrays)


@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_any_flip_or_cut_of_the_newest_is_found_and_the_one_before_is_used(tmp_path, every):
    save(tmp_path, 8)
    save(tmp_path, 9)
    newest = checkpoint_path(tmp_path, 9)
    good = newest.read_bytes()
    tried = 0
    for i in range(0, len(good), every):
        for bad in (good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :], good[:i]):
            newest.write_bytes(bad)
            tried += 1
            checkpoint, damaged = newest_checkpoint(tmp_path)
            assert checkpoint.header["step"] == 8
            (line,) = damaged
            assert line.startswith(f"{newest} is damaged or cut") and "\n" not in line
    assert tried > 100
    newest.write_bytes(good)
    checkpoint, damaged = newest_checkpoint(tmp_path)
    assert (checkpoint.header["step"], damaged) == (9, [])


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1}, {"cursor": "72"}, {"phase": None}, {"best": "x"}, {"input_scale": 0.0}, {"sampler": []},
        {"evals_since_best": 1.5}, {"input_scale": -1.0},
    ],
)  # fmt: skip
def test_a_header_of_other_types_is_refused_by_field(tmp_path, change):
    save(tmp_path, 9, **change)
    with pytest.raises(UsageError) as caught:
        read_checkpoint(checkpoint_path(tmp_path, 9))
    assert f"$.{next(iter(change))}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"sampler": {}}, {"sampler": {"records": 0}}, {"evaluation": {"step": 9, "loss": "small"}}]
)
def test_a_header_whose_numbers_could_not_be_computed_with_is_refused(tmp_path, change):
    save(tmp_path, 9, **change)
    with pytest.raises(UsageError, match=r"step-00000009.npz is damaged \(.*; give another checkpoint"):
        read_checkpoint(checkpoint_path(tmp_path, 9))


def test_a_checkpoint_under_the_name_of_another_step_is_not_the_newest(tmp_path):
    """A run that went on from it would do so from now on, whatever it saves."""
    save(tmp_path, 8)
    save(tmp_path, 9)
    other = checkpoint_path(tmp_path, 8).rename(checkpoint_path(tmp_path, 99))
    checkpoint, damaged = newest_checkpoint(tmp_path)
    assert checkpoint.header["step"] == 9
    assert damaged == [f"{other} is of step 8, not of the one in its name; rename it, or move it away"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_checkpoint_that_is_no_file_is_passed_over(tmp_path, make):
    save(tmp_path, 8)
    make(checkpoint_path(tmp_path, 9))
    checkpoint, (line,) = newest_checkpoint(tmp_path)
    assert checkpoint.header["step"] == 8 and "step-00000009.npz cannot be read (is no regular file); " in line


def test_checkpoints_of_the_former_format_and_other_files_are_refused_in_one_line(tmp_path):
    np.savez(tmp_path / "old.npz", header=np.array('{"format": 2}'))
    (tmp_path / "junk.npz").write_bytes(b"junk")
    for name in ("old.npz", "junk.npz", "none.npz", "."):
        with pytest.raises(UsageError) as caught:
            read_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value) and "give another checkpoint" in str(caught.value)


def test_files_of_other_names_are_not_the_run_s_checkpoints(tmp_path):
    save(tmp_path, 8)
    save(tmp_path, 10**9)
    for name in ("step-00000007-copy.npz", "step-7.npz", "step-abc.npz", "best.npz"):
        (tmp_path / "checkpoints" / name).write_bytes(b"mine")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000008.npz", "step-1000000000.npz"]


def test_a_full_disk_is_a_line_with_path_and_remedy(tmp_path, monkeypatch):
    save(tmp_path, 8)

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stored_arrays, "_crc", full)
    with pytest.raises(Failure, match=r"step-00000009.npz cannot be written: No space left on device; free some space"):
        save(tmp_path, 9)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000008.npz"]
