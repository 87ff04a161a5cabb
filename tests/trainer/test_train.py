"""Whole runs: what they leave behind, that any break continues to the same bits, and what is refused in one line."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.manifest import shard_name
from shardline.trainer import metrics_log, selftest
from shardline.trainer.actions import SaveCheckpoint
from shardline.trainer.checkpoints import list_checkpoints
from shardline.trainer.config import TrainConfig
from shardline.trainer.input_profile import InputProfile
from shardline.trainer.run_dir import CONFIG_FILE, load_run
from shardline.trainer.train import train

ROOT = Path(__file__).parents[2]


def check_train(folder, *sections):
    """Two logical CPUs, in a process of their own."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("check_train.py"), folder, *sections],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One run, one killed and continued, and what is refused."""
    return check_train(tmp_path_factory.mktemp("train"), "refusals", "replicas")


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """Every other way to break a run off, stored features, early stopping: minutes."""
    sections = "restarts", "features", "resizing", "stopping", "allreduce", "compiled_replicas"
    return check_train(tmp_path_factory.mktemp("more"), *sections)


def test_a_run_leaves_what_its_readers_need(results):
    whole = results["whole"]
    assert {"config.json", "metrics.jsonl", "input_profile.json", "checkpoints", "plots", "model.keras"} <= set(
        whole["files"]
    )
    assert whole["checkpoints"] == ["step-00000006.npz", "step-00000007.npz"]  # --keep_checkpoints=2
    assert whole["curves_bytes"] > 10_000
    assert whole["steps"] == list(range(1, 8))
    assert whole["phases"] == ["head"] * 3 + ["all"] * 4
    assert whole["evals"][-1] == [7, 11, "validation"]  # not test, and each record once
    assert whole["labels"] == 10 and whole["preprocessing"]["color"] == "rgb"


def test_the_saved_model_is_uint8_to_probabilities_in_builtin_layers(results):
    whole = results["whole"]
    assert whole["input"] == ["uint8", [None, 32, 32, 3]]
    assert whole["custom_layers"] == 0
    assert whole["dtype"] == "float32"
    assert whole["rows_sum"] == pytest.approx([1, 1, 1], abs=1e-5)
    assert whole["agree"] < 1e-5


def test_a_finished_run_is_left_alone(results):
    assert results["whole"]["again"] == {}


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_replicas_evaluate_to_the_same_digits(jit, request):
    if jit:
        found = request.getfixturevalue("more")["compiled_replicas"]
    else:
        found = request.getfixturevalue("results")["replicas"]
    one, two = found["metrics"]
    assert one.pop("environment") != two.pop("environment") and one.pop("checksum") != two.pop("checksum")
    assert one == two and one["n"] == 5
    assert found["same_predictions"]


def test_a_process_that_split_its_cpu_still_trains_on_one_device(results):
    assert results["whole"]["replicas"] == [2, 1]


def test_killed_it_ends_with_the_same_bits(results):
    """Two replicas, dropout, augmentation, a moving average, killed just after the border of two phases."""
    killed = results["killed4"]
    assert killed["weights_sha256"] == results["whole"]["result"]["weights_sha256"]
    assert killed["steps"] == list(range(1, 8))  # the log holds no step twice
    assert not killed["leftover"]  # of a file that was being written


@pytest.mark.slow
@pytest.mark.parametrize("step", (2, 6))
def test_killed_at_any_step_it_ends_with_the_same_bits(step, more):
    killed = more["restarts"][f"killed{step}"]
    assert killed["weights_sha256"] == more["whole"]["result"]["weights_sha256"]
    assert killed["steps"] == list(range(1, 8))


@pytest.mark.slow
def test_images_grow_within_a_phase_and_a_kill_around_it_costs_no_bit(more):
    """40 records, 8 a step: the steps at samples 0, 8 and 16 are before the half, those at 24 and 32 are not."""
    found = more["resizing"]
    assert found["begun"] == [[0, 32], [24, 40]]
    for number, begun in ((2, [[0, 32], [24, 40]]), (3, [[16, 32], [24, 40]]), (5, [[32, 40]])):
        killed = found[f"killed{number}"]
        assert killed["weights_sha256"] == found["whole"]["weights_sha256"]
        assert killed["begun"] == begun
    assert found["steps"] == [1, 2, 3, 4, 5]
    assert "progressive_resizing: '0.8:0.5' -> ''" in found["changed"]


@pytest.mark.slow
def test_a_signal_ends_it_with_a_checkpoint_it_continues_from(more):
    stopped = more["restarts"]["stopped"]
    assert stopped["printed"]["error"].startswith("Interrupted: stopped at step") and not stopped["model"]
    assert stopped["kept"][-1] in ("step-00000005.npz", "step-00000006.npz")
    assert stopped["weights_sha256"] == more["whole"]["result"]["weights_sha256"]


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(more):
    assert more["restarts"]["damaged"]["weights_sha256"] == more["whole"]["result"]["weights_sha256"]


@pytest.mark.slow
def test_it_continues_on_another_number_of_replicas(more):
    assert more["restarts"]["alone"]["difference"] < 1e-5


def test_other_flags_are_refused_with_the_difference_unless_allowed(results):
    found = results["refusals"]
    assert "dropout: 0.4 -> 0.1" in found["changed"] and "allow_changes" in found["changed"]
    assert "log_every_steps" not in found["changed"]
    assert "continuing " in found["allowed"]["logged"] and " at step 2 (epoch 0.4)" in found["allowed"]["logged"]


def test_another_order_of_samples_is_refused_with_both_keys(results):
    assert "another order of samples (seed 3 there, 4 here); use the same" in results["refusals"]["seed"]


@pytest.mark.parametrize(
    "case, named",
    [
        ("model", "is a checkpoint of another model"),
        ("foreign", "is not empty and no run directory of shardline"),
        ("batch", "global_batch_size=9 does not divide over 2 replicas; use a multiple of 2, e.g. 8 or 10"),
        ("micro", "micro_batches=3 does not cut each replica's 4 samples"),
        ("split", "train_split=night: this dataset has train, validation, test"),
        ("eval_split", "eval_split=night: this dataset has train, validation, test"),
        ("test", "best_metric=top1 would choose the model by test"),
        ("data", "no such directory"),
        ("weights", "no such file"),
    ],
)
def test_refused_in_one_line(case, named, results):
    text = results["refusals"][case]
    assert text.startswith("UsageError: ") and named in text and "\n" not in text


def test_what_is_refused_leaves_nothing_behind(results):
    assert not results["refusals"]["left_behind"]


def test_a_loss_that_is_not_finite_stops_the_run_naming_step_and_records(results):
    text = results["refusals"]["allowed"]["error"]
    assert text.startswith("Failure: the ") and "is not finite" in text and "records of split train: " in text


@pytest.mark.slow
def test_steps_that_run_in_one_call_are_the_same_steps(more):
    calls = more["restarts"]["calls"]
    assert calls["weights_sha256"] == more["whole"]["result"]["weights_sha256"]
    assert calls["lines"] == [1, 3, 4, 7]  # the first step of each phase, and the others of each before its evaluation


@pytest.mark.slow
def test_a_head_on_stored_features_is_the_head_trained_through_the_frozen_layers(more):
    features = more["features"]
    assert features["shape"] == [2, 40, 15]
    assert features["difference"] < 1e-4
    assert features["moved"] > 1e-3
    assert features["first_views_differ"]


@pytest.mark.slow
def test_gradients_in_bfloat16_travel_in_half_the_bytes_along_nearly_the_same_curve(more):
    """25 steps on two replicas: the losses part by less than a hundredth of them."""
    found = more["allreduce"]
    head, whole = found["parameters"]
    assert found["bytes"] == {"float32": [4 * head, 4 * whole], "bfloat16": [2 * head, 2 * whole]}
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        each = f"head {size * head / 1e6:.3g} MB, all {size * whole / 1e6:.3g} MB"
        assert found["logged"][dtype] == [f"all-reduce: {dtype} gradients, a step of each replica: {each}"]
    exact, rounded = (np.array(found["losses"][dtype]) for dtype in ("float32", "bfloat16"))
    strays = np.abs(rounded / exact - 1)
    print(f"largest relative difference of a loss: {strays.max():.2g}")
    assert len(exact) == 25 and 0 < strays.max() < 0.01


@pytest.mark.slow
def test_early_stopping_keeps_the_best_checkpoint(more):
    """At a rate of 0 nothing gets better: the first evaluation, after step 5, stays the best."""
    again = {"step": True, "weights_sha256": True}  # and a kill before the model is written changes nothing
    assert more["stopping"] == {"step": 5, "last_step": 15, "best_step": 5, "again": again, "model": True}


@pytest.fixture(scope="module")
def thin(undrawn, shallow, tmp_path_factory):
    """Settings of a run of three steps on one device of this process."""
    data = tmp_path_factory.mktemp("data")
    selftest.write_dataset(data, {"train": 24}, side=32)
    return {
        "data": data, "global_batch_size": 8, "image_size": 32, "width": 0.03, "phases": "all:1@0.05", "workers": 0,
        "precision": "float32", "strategy": "one_device", "peak_tflops": 1.0,
    }  # fmt: skip


@pytest.mark.slow
def test_a_process_trains_many_times_also_in_a_thread(thin, tmp_path):
    """As in a notebook: results are returned, nothing of the process stays changed, and the bits are the same."""
    handlers, found = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], []

    def run(name):
        found.append(train(TrainConfig(**thin, workdir=tmp_path / name)))

    run("first")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "config.json.host-1-01234567.tmp").touch()  # of a killed start: still empty
    thread = threading.Thread(target=run, args=["second"])
    thread.start()
    thread.join()
    first, second = found
    assert first["step"] == 3 and first["weights_sha256"] == second["weights_sha256"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert os.environ["XLA_FLAGS"].count("deterministic") == 1
    assert load_run(tmp_path / "second").config == TrainConfig(**thin, jit=True, workdir=tmp_path / "second")


def test_a_held_out_split_of_which_nothing_can_be_read_is_no_loss_of_zero(thin, tmp_path):
    selftest.write_dataset(tmp_path, {"train": 24, "validation": 5}, side=32)
    shard = tmp_path / shard_name("selftest", "validation", 0, 1)
    shard.write_bytes(bytes(shard.stat().st_size))
    config = TrainConfig(**{**thin, "data": tmp_path}, best_metric="loss", workdir=tmp_path / "run")
    with pytest.raises(Failure, match="eval_split=validation: none of its records could be read; restore"):
        train(config)
    assert not list_checkpoints(config.workdir)


def test_a_run_leaves_and_tells_what_its_input_costs_and_how_long_the_step_waited(thin, tmp_path, capsys):
    train(TrainConfig(**{**thin, "eval_split": "train", "log_every_steps": 1}, workdir=tmp_path / "run"))
    found = InputProfile.load(tmp_path / "run")
    (host,) = found.hosts
    assert found.step == 3 and host.training.samples >= 24 and host.evaluation.samples >= 24
    stages = {"training": {"order", "read", "decode", "augment"}, "evaluation": {"read", "decode", "preprocess"}}
    for name, times in host.tables:
        assert set(times.cpu_microseconds) == set(times.microseconds) == stages[name]
        assert 0 <= times.waiting_share <= 1
    err = capsys.readouterr().err
    assert f"input, training:\n{host.training}" in err and f"input, evaluation:\n{host.evaluation}" in err
    assert "(input waits " in err
    lines = metrics_log.read(tmp_path / "run")
    assert {line["kind"] for line in lines if "stage_microseconds" in line} == {"train", "eval"}
    for line in lines:
        for cost in line.get("stage_microseconds", {}).values():
            assert cost["cpu"] >= 0 <= cost["waiting"]
    assert all(0 <= line["waiting_percent"] <= 100 for line in lines if line["kind"] == "train")


@pytest.mark.parametrize(("seconds", "step"), [pytest.param(0.0, 3, marks=pytest.mark.slow), (1e6, 1)])
def test_a_run_that_breaks_leaves_what_its_input_had_cost(seconds, step, thin, tmp_path, monkeypatch):
    def broken(self, state):
        raise KeyboardInterrupt

    monkeypatch.setattr(SaveCheckpoint, "act", broken)
    monkeypatch.setattr("shardline.trainer.actions.PROFILE_SECONDS", seconds)
    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig(**{**thin, "log_every_steps": 1}, workdir=tmp_path / "run"))
    found = InputProfile.load(tmp_path / "run")
    assert found.step == step and found.hosts[0].training.samples >= 8 * step


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"data": ""}, "data is missing"),
        ({"workdir": ""}, "workdir is missing"),
        ({"data": "/nowhere"}, "data=/nowhere: no such directory"),
    ],
)
def test_a_caller_from_python_reads_the_name_of_the_field(settings, named, thin, tmp_path):
    with pytest.raises(UsageError) as error:
        train(TrainConfig(**{**thin, "workdir": tmp_path / "run", **settings}))
    assert str(error.value).startswith(named) and "--" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ("shardline-run/1", 3))
def test_a_run_directory_of_another_format_is_refused_and_left_as_it_is(format, thin, tmp_path):
    content = json.dumps({"format": format, "train": {}, "labels": []})
    (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(UsageError, match=f"^{tmp_path}/config.json has format {format}, this program reads"):
        train(TrainConfig(**thin, workdir=tmp_path))
    assert [path.read_text() for path in tmp_path.iterdir()] == [content]
