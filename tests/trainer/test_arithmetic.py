"""Which arithmetic --precision=auto and --jit=auto choose, and that a choice stays a run's."""

import json
import subprocess
import sys
import threading

import pytest
import tqdm

from shardline.pipeline import progress
from shardline.pipeline.cli import parse
from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer import arithmetic
from shardline.trainer.arithmetic import MODES, Rates, decided
from shardline.trainer.config import TrainConfig
from tests.trainer.tiny import command


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """No rates kept; timing gives these, and counts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def rates(*values):
        monkeypatch.setattr(arithmetic, "_timed_elsewhere", lambda: calls.append(1) or values)
        return calls

    return rates


@pytest.mark.parametrize(
    ("rates", "settings", "chosen"),
    [
        ((22.5, 27.3, 21.7, 45.2), {}, ("mixed_bfloat16", False)),  # AVX512-BF16
        ((22.5, 27.3, 21.7, 2.2), {}, ("float32", False)),  # AVX2
        ((22.5, 22.0, 23.0, 2.2), {}, ("float32", True)),  # hardly faster: the first
        ((22.5, 27.3, 21.7, 45.2), {"jit": True}, ("float32", True)),
        ((22.5, 27.3, 21.7, 45.2), {"precision": "float32"}, ("float32", False)),
        ((22.5, 27.3, 21.7, 2.2), {"precision": "mixed_bfloat16"}, ("mixed_bfloat16", True)),
    ],
)
def test_the_fastest_of_what_is_left_open(timed, rates, settings, chosen):
    timed(*rates)
    config = decided(TrainConfig(**settings))
    assert (config.precision, config.jit) == chosen


def test_nothing_is_timed_where_nothing_is_open(timed):
    calls = timed(1, 1, 1, 1)
    assert decided(TrainConfig(precision="float32", jit=False)) == TrainConfig(precision="float32", jit=False)
    assert decided(TrainConfig(precision="mixed_float16")).jit is True
    assert not calls


def test_a_machine_is_timed_once(timed, monkeypatch, capsys):
    calls = timed(1.0, 2.0, 3.0, 4.0)
    assert decided(TrainConfig()) == decided(TrainConfig())
    assert len(calls) == 1
    assert "mixed_bfloat16 without XLA, the fastest here" in capsys.readouterr().err
    monkeypatch.setattr(arithmetic, "_machine", lambda: "another processor")
    decided(TrainConfig())
    assert len(calls) == 2


def test_timing_says_that_it_goes_on(timed, monkeypatch):
    timed()
    monkeypatch.setattr(progress, "SAY_SECONDS", 0.01)
    said = threading.Event()
    monkeypatch.setattr(tqdm.tqdm, "write", lambda line, **_: "seconds so far" in line and said.set())
    monkeypatch.setattr(arithmetic, "_timed_elsewhere", lambda: (1.0, 2.0, 3.0, 4.0) if said.wait(60) else ())
    assert decided(TrainConfig()).precision == "mixed_bfloat16"


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": "shardline arithmetic/1", "images_per_second": [0]}'])
def test_damaged_rates_are_timed_again(timed, content):
    calls = timed(1.0, 2.0, 3.0, 4.0)
    arithmetic._kept_at().parent.mkdir()
    arithmetic._kept_at().write_bytes(content)
    decided(TrainConfig())
    decided(TrainConfig())
    assert len(calls) == 1


def test_rates_that_cannot_be_kept_are_used(timed, monkeypatch):
    timed(1.0, 2.0, 3.0, 4.0)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/no/folder")
    assert decided(TrainConfig()).precision == "mixed_bfloat16"


def test_a_run_goes_on_in_the_arithmetic_it_has_recorded(tiny_run, timed):
    calls = timed(1.0, 2.0, 3.0, 4.0)
    config = decided(TrainConfig(workdir=str(tiny_run)))
    assert (config.precision, config.jit) == ("float32", False)
    assert not calls


def test_timing_that_fails_says_what_to_do(monkeypatch):
    failed = subprocess.CompletedProcess([], -4, stdout="", stderr="line\nIllegal instruction")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(Failure, match=r"could not be timed \(Illegal instruction\); give precision and jit"):
        arithmetic._timed_elsewhere()


@pytest.mark.parametrize(
    ("words", "jit"), [([], None), (["--jit=auto"], None), (["--jit"], True), (["--nojit"], False)]
)
def test_the_flag_has_three_states(words, jit):

    assert parse(TrainConfig, ["train", *words]).jit is jit


def test_a_wrong_state_is_refused():
    with pytest.raises(UsageError, match="jit"):
        TrainConfig(jit="perhaps")


@pytest.mark.slow
def test_this_machine_is_timed():
    done = subprocess.run([sys.executable, "-m", "shardline.trainer.arithmetic"], capture_output=True, check=True)
    rates = json.loads(done.stdout)
    assert len(rates) == len(MODES)
    assert all(0 < rate < 1e6 for rate in rates)
    assert Rates("here", tuple(rates)).fastest("auto", None) in MODES


def test_the_choice_is_recorded(undrawn, tiny_data, tmp_path):
    command(
        "shardline.trainer.train", "--data", tiny_data, "--workdir", tmp_path / "run", "--width", 0.05,
        "--image_size", 32, "--phases", "head:1@1e-2", "--global_batch_size", 12, "--eval_split", "none", "--nojit",
    )  # fmt: skip
    train = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert (train["precision"], train["jit"]) == ("mixed_bfloat16", False)
