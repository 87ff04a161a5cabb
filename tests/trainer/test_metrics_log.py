"""Numbers over time survive kills."""

import json
import os

import pytest

from shardline.pipeline.errors import UsageError
from shardline.trainer import metrics_log
from shardline.trainer.callbacks import Report

LINE = dict.fromkeys(("epoch", "top1", "learning_rate", "images_per_second", "waiting_percent"), 0.5)


def write(folder, resumed, *steps):
    log = metrics_log.MetricsLog(str(folder), resumed)
    for step in steps:
        log.report(Report(step, 0.5, "train", LINE | {"loss": step / 10, "phase": "head"}))
    log.end()


def test_a_restart_drops_the_steps_it_will_run_again(tmp_path):
    write(tmp_path, 0, 1, 2, 3)
    write(tmp_path, 2, 3)
    assert [(line["step"], line["loss"]) for line in metrics_log.read(tmp_path)] == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_speed_is_that_of_the_lines_after_first_steps():
    """A run of 23 steps in three image sizes, as it logs them: each size begins with a step that compiles."""
    lines = [{"kind": "train", "step": step} for step in (1, 8, 10, 15, 20)] + [{"kind": "eval", "step": 20}]
    assert [line["step"] for line in metrics_log.steady(lines, 10)] == [10, 20]
    assert [line["step"] for line in metrics_log.steady(lines, 1)] == [1, 8, 10, 15, 20]
    assert [line["step"] for line in metrics_log.steady(lines[:2], 10)] == [1, 8]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    write(tmp_path, 0, 1, 2)
    path = tmp_path / metrics_log.FILE_NAME
    path.write_bytes(path.read_bytes()[:-5])
    assert [line["step"] for line in metrics_log.read(tmp_path)] == [1]


@pytest.mark.parametrize(
    "line", ["[]", "{}", "7", '{"step": 2}', "[" * 100_000, '{"step": 2, "kind": "train", "loss": "x"}']
)
def test_a_damaged_line_is_left_out_and_told(line, tmp_path, capsys):
    write(tmp_path, 0, 1, 2, 3)
    path = tmp_path / metrics_log.FILE_NAME
    first, _, third = path.read_text().splitlines()
    path.write_text(f"{first}\n{line}\n{third}\n")
    assert [line["step"] for line in metrics_log.read(tmp_path)] == [1, 3]
    assert capsys.readouterr().err == f"warning: {path}, line 2 is damaged and left out\n"


def test_no_flipped_bit_of_a_line_changes_a_number(tmp_path):
    write(tmp_path, 0, 1)
    path = tmp_path / metrics_log.FILE_NAME
    good, (line,) = path.read_bytes(), metrics_log.read(tmp_path)
    for i in range(len(good)):
        for bit in range(8):
            path.write_bytes(good[:i] + bytes([good[i] ^ 1 << bit]) + good[i + 1 :])
            # In the name of the checksum, or the space before it, a flip is one of a line without a checksum.
            for found in metrics_log.read(tmp_path):
                assert {name: found[name] for name in line} == line


def test_lines_without_a_checksum_are_read(tmp_path):
    write(tmp_path, 0, 1)
    path = tmp_path / metrics_log.FILE_NAME
    found = metrics_log.read(tmp_path)
    path.write_text(json.dumps(found[0]) + "\n")
    assert metrics_log.read(tmp_path) == found


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_log_that_is_no_file_is_refused_in_one_line(tmp_path, make):
    make(tmp_path / metrics_log.FILE_NAME)
    with pytest.raises(UsageError, match=r"metrics.jsonl cannot be read \(is no regular file\); move it away$"):
        metrics_log.read(tmp_path)
