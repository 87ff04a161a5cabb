"""The report of one GPU: what is kept when a part fails, takes too long or is killed; and all of it, tiny, on a CPU."""

import json
import os
import subprocess
import sys

import pytest

from shardline.benchmarks.gpu import report as gpu_report
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import exclusive


@pytest.fixture
def report(tmp_path):
    config = gpu_report.ReportConfig(output=str(tmp_path / "out"), tiny=True, seconds=60)
    report = gpu_report.Report(config, tmp_path)
    yield report
    report.close()


def kept(tmp_path):
    return json.loads((tmp_path / "out" / gpu_report.RESULTS).read_text())["rows"]


def run_parts(monkeypatch, tmp_path, **parts):
    monkeypatch.setattr(gpu_report, "PARTS", parts)
    return gpu_report.gpu_report(gpu_report.ReportConfig(output=str(tmp_path / "out"), tiny=True))


def test_every_figure_is_in_the_file_as_soon_as_it_is_known(report, tmp_path, capsys):
    report.part = "first"
    report.add({"images_per_second": 1.5})
    assert kept(tmp_path)[0]["images_per_second"] == 1.5
    assert json.loads(capsys.readouterr().out) == kept(tmp_path)[0]
    report.add({"images_per_second": 2.5})
    assert [row["images_per_second"] for row in kept(tmp_path)] == [1.5, 2.5]


def test_a_part_that_fails_leaves_its_reason_and_the_next_one_runs(monkeypatch, tmp_path):
    def broken(report):
        report.add({"good": 1})
        raise KeyError("what")

    rows = run_parts(monkeypatch, tmp_path, broken=broken, next=lambda report: report.add({"good": 2}))
    assert [row.get("good") for row in rows] == [1, None, 2]
    assert rows[1]["error"] == "KeyError: 'what'"
    assert rows == kept(tmp_path)


def test_a_process_that_takes_too_long_is_ended_and_what_it_wrote_is_kept(report, tmp_path, monkeypatch):
    code = (
        "import sys, time; print('{\"a\": 1}', flush=True); print('why', file=sys.stderr, flush=True); time.sleep(60)"
    )
    monkeypatch.setattr(report, "seconds_left", lambda limit: limit)
    monkeypatch.setattr(gpu_report, "child_command", lambda *_: [sys.executable, "-c", code])
    assert gpu_report.measure(report, "slow", 1.5) == [{"a": 1}]
    figure, failure = kept(tmp_path)
    assert figure["a"] == 1
    assert failure["error"] == "stopped after 2 seconds"
    assert failure["last_lines"] == ["why"]


def test_a_process_that_crashes_leaves_its_last_lines(report, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "child_command", lambda *_: [sys.executable, "-c", "raise ValueError('no memory')"])
    gpu_report.measure(report, "crash", 20)
    (failure,) = kept(tmp_path)
    assert failure["error"] == "ended with exit code 1"
    assert failure["last_lines"][-1] == "ValueError: no memory"
    report.close()
    assert "no memory" in (tmp_path / "out" / gpu_report.MESSAGES).read_text()


def test_no_part_begins_when_no_time_is_left(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_report, "PARTS", {"one": lambda report: report.add({"good": 1})})
    config = gpu_report.ReportConfig(output=str(tmp_path / "out"), seconds=gpu_report.LEAST_SECONDS / 2)
    with pytest.raises(Failure, match=r"nothing could be measured; .*messages\.txt says why"):
        gpu_report.gpu_report(config)
    assert kept(tmp_path)[0]["error"] == "left out: no time is left"


def test_without_a_gpu_nothing_else_is_tried(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_report, "measure", lambda report, *_: [{"gpus": 0}])
    monkeypatch.setattr(gpu_report, "train", lambda *_, **__: pytest.fail("training was tried"))
    with pytest.raises(Failure, match="TensorFlow sees no GPU"):
        gpu_report.gpu_report(gpu_report.ReportConfig(output=str(tmp_path / "out")))


def test_a_run_is_told_by_its_lines_without_the_first_ones():
    def line(step, rate):
        return {"step": step, "images_per_second": rate, "waiting_percent": 0.0, "mfu": 0.4, "loss": 7.0}

    lines = [(20.0, line(1, 5)), (21.0, line(25, 100)), (22.0, line(50, 4000)), (23.0, line(75, 4200))]
    facts = gpu_report.run_facts(lines)
    assert facts["seconds_to_first_step"] == 20
    assert facts["images_per_second"] == 4100
    assert facts["slowest_images_per_second"] == 4000
    assert facts["last_step"] == 75
    assert gpu_report.run_facts(lines[:2])["images_per_second"] == 100
    assert gpu_report.run_facts(lines[:1]) == {"seconds_to_first_step": 20, "first_step": 1}
    assert gpu_report.run_facts([]) == {}


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match="output is missing"):
        gpu_report.ReportConfig()
    with pytest.raises(UsageError, match="only=facts,fast: fast is none of facts, default"):
        gpu_report.ReportConfig(output="x", only="facts,fast")


@pytest.mark.slow
def test_the_command_measures_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "shardline.benchmarks.gpu.report", "--tiny", f"--output={tmp_path / 'out'}"]
    parts = "facts,default,fc4096,pooling"
    done = subprocess.run([*command, f"--only={parts}"], capture_output=True, text=True, check=True)
    rows = kept(tmp_path)
    assert [json.loads(line) for line in done.stdout.splitlines()] == rows
    assert [row for row in rows if "error" in row] == []
    (default,) = (row for row in rows if row["part"] == "default")
    assert default["last_step"] == 40
    assert len(default["weights_sha256"]) == 64
    bits = [row["equal_bits"] for row in rows if "equal_bits" in row]
    assert bits == [True] * 6
    checkpoint = next(row for row in rows if row.get("what") == "checkpoint of fc4096")
    assert len(checkpoint["copy_seconds"]) == 2 and checkpoint["gb"] > 0


def test_a_folder_of_figures_has_one_owner(tmp_path):
    config = gpu_report.ReportConfig(output=str(tmp_path), tiny=True)
    with (
        exclusive(tmp_path / ".lock", "it"),
        pytest.raises(Failure, match=f"output={tmp_path} is in use by process {os.getpid()} on "),
    ):
        gpu_report.main(config)
