"""The command measures, stores and draws on a real (tiny) dataset, and refuses in one line what it cannot measure."""

import contextlib
import os
import re
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest

from shardline.benchmarks import bench_convert
from shardline.benchmarks import run as run_module
from shardline.benchmarks.bottleneck import COLD, SEQUENTIAL
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import CONTROL, load_results
from shardline.benchmarks.processes import Rate
from shardline.benchmarks.verdict import HOST_STAGES
from shardline.pipeline.errors import UsageError
from shardline.tools.conversion.run import convert
from tests.tools.folders import Run, class_folders, config

QUICK = ("--repeats=1", "--seconds=0.05", "--image_size=32", "--global_batch_size=4", "--precision=float32", "--nojit")


def run(*args, cores=None):
    command = [sys.executable, "-m", "shardline.benchmarks.run", *map(str, args)]
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=pin)


@pytest.fixture(scope="module")
def one_image(tmp_path_factory):
    """A dataset of one image of 40 x 60."""
    folder = tmp_path_factory.mktemp("one")
    convert(config(class_folders(folder / "photos", classes=1, images=1), folder / "data", size=40))
    return folder / "data"


def rows(output, suite):
    return {m.name: m for m in load_results(output) if m.suite == suite}


@pytest.mark.slow
def test_one_image_one_core_no_gpu_still_give_every_stage(one_image, tmp_path):
    flags = (*QUICK, "--suite=short", "--width=0.03", "--profile", "--validate_advice", "--price_per_hour=3")
    done = run(f"--data={one_image}", f"--output={tmp_path}", *flags, cores=[min(os.sched_getaffinity(0))])
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path, "stages")
    assert list(found) == [*HOST_STAGES, SEQUENTIAL, *COLD, "copy", "step", "end_to_end", CONTROL]
    assert all(m.median > 0 for m in found.values())
    assert "width multiplier 0.03, 32 px, batches of 4, float32" in found["step"].what
    assert "no accelerator" in found["copy"].what
    assert list(rows(tmp_path, "scaling")) == ["shardline, 1 core", CONTROL]
    bottleneck, report = done.stdout.splitlines()
    assert re.match(r"(epoch 1: )?([a-z]+-bound|balanced|tie: |cannot tell|CPU )", bottleneck)
    assert report == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "end to end" in page and "Cost of a million images" in page and "self ms" in page
    assert {"stages.png", "forecast.png"} <= {path.name for path in tmp_path.glob("*.png")}


@pytest.mark.parametrize("turns", [0, 2])
def test_ctrl_c_keeps_and_draws_the_complete_turns(turns, one_image, tmp_path, monkeypatch):
    calls = Counter()

    def stage(name):
        calls[name] += 1
        if name == "decode" and calls[name] > 1 + turns:  # after the warm-up and so many turns
            raise KeyboardInterrupt
        return Rate(100.0, 0.01)

    runs = {name: partial(stage, name) for name in (*HOST_STAGES, SEQUENTIAL, *COLD)}
    fake = contextlib.nullcontext(runs)
    monkeypatch.setattr("shardline.benchmarks.stages.host_stages", lambda *args, **options: fake)
    stopped = Run(
        "shardline.benchmarks.run",
        f"--data={one_image}",
        f"--output={tmp_path}",
        "--suite=short",
        "--gpu_step_rate=1000",
    )
    assert stopped.code == 130 and stopped.stderr.endswith("interrupted\n")
    assert (tmp_path / "stages.png").exists() == (turns > 0)
    if turns:
        assert [len(m.repeats) for m in rows(tmp_path, "stages").values()] == [turns] * (len(runs) + 1)
        assert str(tmp_path / "report.html") in stopped.stdout


@pytest.mark.slow
def test_the_suite_of_scaling_counts_cores_and_replicas(one_image, tmp_path):
    cores = sorted(os.sched_getaffinity(0))[:2]
    done = run(f"--data={one_image}", f"--output={tmp_path}", *QUICK, "--suite=scaling", "--width=0.03", cores=cores)
    assert done.returncode == 0, done.stderr
    assert "--raw_images" in done.stderr  # would also scale the converter
    many = ["2 cores", "2 replicas"] if len(cores) == 2 else []
    found = {m.name: m for m in load_results(tmp_path)}
    assert {"shardline, 1 core", "shardline, 1 replica", *(f"shardline, {name}" for name in many)} <= set(found)
    assert all(m.median > 0 for m in found.values())


@pytest.mark.slow
def test_the_converter_is_measured_with_every_count_of_workers(one_image, tmp_path):
    photos = one_image.parent / "photos"
    bench = BenchConfig(
        data=str(one_image), output=str(tmp_path), raw_images=str(photos), convert_images=800, repeats=1
    )
    found = bench_convert.scaling(bench)
    assert len(found) == len(os.sched_getaffinity(0)).bit_length() + 1 and all(m.median > 0 for m in found)


@pytest.mark.slow
def test_conversions_of_large_images_are_measured_beside_the_plain_loop(one_image, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_convert, "CAMERA_IMAGES", 24)
    photos = one_image.parent / "photos"
    bench = BenchConfig(output=str(tmp_path), suite="convert", raw_images=str(photos), repeats=1)
    found = bench_convert.large_images(bench)
    assert [m.name for m in found] == ["shardline", "plain loop", CONTROL] and all(m.median > 0 for m in found)


def test_tools_that_are_not_installed_are_named(one_image, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_convert, "take_turns", lambda suite, turn, **facts: facts)
    monkeypatch.setattr(bench_convert, "missing_packages", lambda python, names: sorted({"ffcv"} & set(names)))
    photos = one_image.parent / "photos"
    facts = bench_convert.photographs(BenchConfig(output=str(tmp_path), suite="convert", raw_images=str(photos)))
    assert set(facts["settings"]["absent"]) == {"FFCV writer", "FFCV writer, OpenCV"}
    assert {"shardline", "plain loop", "TFDS builder", "img2dataset"} <= set(facts["what"]) - {"FFCV writer"}
    assert "not measured: FFCV writer (ffcv not installed, its build needs" in capsys.readouterr().err


@pytest.mark.slow
def test_one_image_training_and_loaders_are_measured(one_image, tmp_path):
    from shardline.benchmarks import bench_image, bench_input, bench_train

    values = {"image_size": 32, "width": 0.03, "seconds": 0.05, "repeats": 1, "jit": False, "cache_features": 2}
    photos = one_image.parent / "photos"
    bench = BenchConfig(data=str(one_image), output=str(tmp_path), raw_images=str(photos), **values)
    for part in (bench_image.photographs, bench_train.measure, bench_train.measure_head, bench_input.measure):
        found = {m.name: m for m in part(bench)}
        assert CONTROL in found and all(m.median > 0 for m in found.values())
    assert "PyTorch DataLoader + OpenCV" in {*found, *found[CONTROL].settings["absent"]}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--output is missing"),
        (["--output=OUT"], "--data is missing"),
        (["--output=OUT", "--data=nowhere"], "no such directory"),
        (["--output=OUT", "--suite=convert"], "--raw_images"),
        (["--output=OUT", "--suite=convert", "--raw_images=nowhere"], "no such folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(flags, said, tmp_path):
    done = Run("shardline.benchmarks.run", *(flag.replace("OUT", str(tmp_path / "out")) for flag in flags))
    assert done.code == 2 and said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_wrong_dataset_or_split_is_refused_before_tensorflow_is_imported(one_image, tmp_path):
    code = (
        "import sys\n"
        "from shardline.benchmarks import run\n"
        "try: run.cli()\n"
        "finally: assert 'tensorflow' not in sys.modules\n"
    )
    for flags, said in (
        (["--data=nowhere"], "--data=nowhere: no such directory"),
        ([f"--data={one_image}", "--split=tset"], "--split=tset: this dataset has train"),
    ):
        command = [sys.executable, "-c", code, f"--output={tmp_path / 'out'}", *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_split_without_records_is_refused(one_image, tmp_path, monkeypatch):
    monkeypatch.setattr("shardline.pipeline.dataset.Dataset.num_records", lambda self, split: 0)
    with pytest.raises(UsageError, match=r"split=train of .* holds no records"):
        run_module.check(BenchConfig(data=str(one_image), output=str(tmp_path)))
