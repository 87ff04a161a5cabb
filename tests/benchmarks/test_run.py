"""The command measures, stores and draws on a real (tiny) dataset, and refuses in one line what it cannot measure."""

import os
import re
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest

from shardline.benchmarks.bottleneck import HOST_STAGES
from shardline.benchmarks.measure import CONTROL, Rate, load_jsonl
from shardline.benchmarks.stages import COLD
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
    return {m.name: m for m in load_jsonl(output / "results.jsonl") if m.suite == suite}


def test_one_image_one_core_no_gpu_still_give_every_rung(one_image, tmp_path):
    flags = (*QUICK, "--suite=short", "--width=0.03", "--profile", "--prove", "--price_per_hour=3")
    done = run(f"--data={one_image}", f"--output={tmp_path}", *flags, cores=[min(os.sched_getaffinity(0))])
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path, "ladder")
    assert list(found) == [*HOST_STAGES, *COLD, "copy", "step", "end_to_end", CONTROL]
    assert all(m.median > 0 for m in found.values())
    assert "0.03 of its width, 32 px, batches of 4, float32" in found["step"].what
    assert "no accelerator" in found["copy"].what
    assert list(rows(tmp_path, "scaling")) == ["shardline, 1 core", CONTROL]
    verdict, report = done.stdout.splitlines()
    assert re.match(r"(storage|decode|augment|copy|step)-bound|balanced", verdict)
    assert report == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "end to end" in page and "Cost of a million images" in page and "self ms" in page
    assert {"ladder.png", "forecast.png"} <= {path.name for path in tmp_path.glob("*.png")}


@pytest.mark.parametrize("turns", [0, 2])
def test_ctrl_c_keeps_and_draws_the_complete_turns(turns, one_image, tmp_path, monkeypatch):
    calls = Counter()

    def rung(name):
        calls[name] += 1
        if name == "decode" and calls[name] > 1 + turns:  # after the warm-up and so many turns
            raise KeyboardInterrupt
        return Rate(100.0, 0.01)

    rungs = {name: partial(rung, name) for name in (*HOST_STAGES, *COLD)}
    monkeypatch.setattr("shardline.benchmarks.stages.rungs", lambda *args, **options: rungs)
    stopped = Run(
        "shardline.benchmarks.run",
        f"--data={one_image}",
        f"--output={tmp_path}",
        "--suite=short",
        "--gpu_step_rate=1000",
    )
    assert stopped.code == 130 and stopped.stderr.endswith("interrupted\n")
    assert (tmp_path / "ladder.png").exists() == (turns > 0)
    if turns:
        assert [len(m.repeats) for m in rows(tmp_path, "ladder").values()] == [turns] * (len(rungs) + 1)
        assert str(tmp_path / "report.html") in stopped.stdout


@pytest.mark.slow
def test_the_suite_of_scaling_counts_cores_and_replicas(one_image, tmp_path):
    cores = sorted(os.sched_getaffinity(0))[:2]
    done = run(f"--data={one_image}", f"--output={tmp_path}", *QUICK, "--suite=scaling", "--width=0.03", cores=cores)
    assert done.returncode == 0, done.stderr
    assert "--raw_images" in done.stderr  # would also scale the converter
    many = ["2 cores", "2 replicas"] if len(cores) == 2 else []
    found = {m.name: m for m in load_jsonl(tmp_path / "results.jsonl")}
    assert {"shardline, 1 core", "shardline, 1 replica", *(f"shardline, {name}" for name in many)} <= set(found)
    assert all(m.median > 0 for m in found.values())


@pytest.mark.slow
def test_the_converter_is_measured_with_every_count_of_workers(one_image, tmp_path):
    command = [
        sys.executable,
        "-m",
        "shardline.benchmarks.bench_convert",
        "--scaling",
        "--small=8",
        "--large=800",
        "--repeats=1",
    ]
    command += [f"--raw_images={one_image.parent / 'photos'}", f"--output={tmp_path / 'results.jsonl'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path, "scaling of the converter")
    assert len(found) == len(os.sched_getaffinity(0)).bit_length() + 1 and all(m.median > 0 for m in found.values())


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
    done = run(*(flag.replace("OUT", str(tmp_path / "out")) for flag in flags))
    assert done.returncode == 2 and said in done.stderr
    assert done.stderr.count("\n") == 1
