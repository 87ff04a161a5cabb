"""The simulated pipelines cost what they say, and a wrong word said with confidence fails."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shardline.benchmarks import verdicts
from shardline.benchmarks.bottleneck import Bottleneck
from shardline.benchmarks.verdict import HOST_STAGES, Cost, judge
from shardline.benchmarks.verdicts import Load
from shardline.pipeline.errors import Failure
from shardline.pipeline.machine import cpu_quota
from tests.benchmarks.test_verdict import CORES, make_turns


def test_every_stage_and_every_kind_of_word_has_a_scenario():
    words = {scenario.words[0] for scenario in verdicts.scenarios()}
    assert {f"{stage}-bound" for stage in (*HOST_STAGES, "copy", "step")} <= words
    assert any(word.startswith("CPU quota") for word in words) and verdicts.TAKEN in words
    assert len(verdicts.scenarios()) >= 16 and "balanced" in words and any(word.startswith("tie") for word in words)


@pytest.mark.slow  # it looks at the clock, and a busy machine has its own
def test_a_pipeline_keeps_the_pace_of_its_costs_and_knows_who_waits():
    sleepy = verdicts.run_pipeline(Cost(0.0, 5_000.0), Cost(0.0), threads=2, seconds=0.3)
    assert 100 < sleepy.rate < 500 and sleepy.waiting > 0.5  # 400 images a second, fewer on a busy machine
    slow = verdicts.run_pipeline(Cost(0.0, 10.0), Cost(0.0, 5_000.0), threads=2, seconds=0.3)
    assert slow.rate < 220 and slow.waiting < 0.3
    burning = verdicts.run_pipeline(Cost(2_000.0), Cost(0.0), threads=1, seconds=0.3)
    assert burning.cpu_seconds == pytest.approx(0.002, rel=0.5)


@pytest.mark.slow  # as above
def test_a_slow_copy_holds_the_pipeline_up():
    slow = verdicts.run_pipeline(Cost(0.0, 10.0), Cost(0.0, 10.0), Cost(0.0, 5_000.0), threads=2, seconds=0.3)
    assert slow.rate < 220 and slow.waiting > 0.5  # 200 images a second


def test_a_quota_is_that_of_a_control_group_for_a_while():
    before = cpu_quota()
    try:
        with verdicts.quota(0.25):
            assert cpu_quota() == pytest.approx(0.25)
    except OSError:
        pytest.skip("no control group can be made here")
    assert cpu_quota() == before and not list(verdicts._GROUPS.glob("**/shardline-verdicts-*"))


def test_a_scenario_that_cannot_be_made_is_named_and_none_is_counted(monkeypatch, capsys):
    def refuse(scenario, config):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(verdicts, "measure", refuse)
    verdicts.main(verdicts.VerdictsConfig(only="quota"))
    out = capsys.readouterr().out
    assert "a CPU quota: not measured, this machine does not allow it (Permission denied)" in out
    assert "right words: 0 of 0" in out


def test_a_scenario_leaves_a_stage_out():
    scenario = verdicts.Scenario("x", ("decode-bound",), {"decode": 400.0}, {"storage": 70.0})
    assert scenario.cost("storage") == Load(16.0, 70.0)
    assert scenario.cost("batch").cpu - scenario.cost("batch", without="decode").cpu == 400.0
    # As a verdict means them: storage is the waiting of all reads, records their CPU time.
    slow = replace(scenario, waiting={"storage": 70.0, "records": 5.0}, disk=1e-3)
    assert slow.cost("batch", file="x") == Load(531.0, 75.0, 1, "x")
    assert slow.cost("batch", without="storage", file="x") == Load(531.0, 0.0, 0, "x")
    assert slow.cost("batch", without="records", file="x") == Load(501.0, 75.0, 1, "x")


def test_the_matrix_is_printed_and_a_wrong_word_fails(monkeypatch, capsys):
    found = Bottleneck(judge(make_turns(), CORES), {})
    assert found.word == "decode-bound"
    right = verdicts.Scenario("photographs", ("decode-bound",))
    monkeypatch.setattr(verdicts, "measure", lambda scenario, config: (found, (1.5, 1.4, 1.6)))
    monkeypatch.setattr(verdicts, "scenarios", lambda: [right])
    verdicts.main(verdicts.VerdictsConfig())
    out = capsys.readouterr().out
    assert "1 decode-bound -> decode-bound" in out and "right words: 1 of 1" in out
    assert "factors within the predicted range: 1 of 1" in out
    monkeypatch.setattr(verdicts, "scenarios", lambda: [right, replace(right, name="disk", words=("storage-bound",))])
    with pytest.raises(Failure, match="wrong words said with confidence: disk: decode-bound"):
        verdicts.main(verdicts.VerdictsConfig())
    assert "1 storage-bound -> decode-bound" in capsys.readouterr().out


@pytest.mark.slow
def test_sigterm_leaves_no_file_system_mounted():
    command = [sys.executable, "-m", "shardline.benchmarks.verdicts", "--only=of a file", "--repeats=1000"]
    before = mounts()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not mounts() - before:
        if process.poll() is not None:
            pytest.skip(f"no file system can be mounted here: {process.communicate()[0]}")
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err.splitlines()[-1]) == (143, "shardline.benchmarks.verdicts: error: interrupted")
    assert not mounts() - before


def mounts():
    """Slow disks, by their folders."""
    lines = Path("/proc/mounts").read_text().splitlines()
    return {line.split()[1] for line in lines if line.startswith("slow\\040disk")}
