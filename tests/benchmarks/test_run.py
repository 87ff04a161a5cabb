"""The command measures, stores and draws on a real (tiny) dataset, and refuses in one line what it cannot measure."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.ladder import COLD
from benchmarks.measure import CONTROL, load_jsonl
from benchmarks.verdict import HOST_STAGES
from tests.tools.folders import class_folders, config
from tools.conversion import convert

QUICK = ("--repeats=1", "--seconds=0.05", "--image_size=32", "--global_batch_size=4", "--precision=float32", "--nojit")


def start(*args, cores=None):
    command = [sys.executable, "-m", "benchmarks.run", *map(str, args)]
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=pin)


def run(*args, **options):
    process = start(*args, **options)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def one_picture(tmp_path_factory):
    """A dataset of one picture of 40 x 60."""
    folder = tmp_path_factory.mktemp("one")
    convert(config(class_folders(folder / "photos", classes=1, images=1), folder / "data", size=40))
    return folder / "data"


def rows(output, suite):
    return {m.name: m for m in load_jsonl(output / "results.jsonl") if m.suite == suite}


def test_one_picture_one_core_no_gpu_still_give_every_rung(one_picture, tmp_path):
    flags = (*QUICK, "--suite=short", "--width=0.03", "--profile", "--prove", "--price_per_hour=3")
    done = run(f"--data={one_picture}", f"--output={tmp_path}", *flags, cores=[min(os.sched_getaffinity(0))])
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


@pytest.mark.slow
def test_ctrl_c_keeps_and_draws_what_was_measured(one_picture, tmp_path):
    flags = (*QUICK, "--suite=short", "--gpu_step_rate=1000", "--repeats=100000")
    process = start(f"--data={one_picture}", f"--output={tmp_path}", *flags)
    time.sleep(15)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err
    assert len(rows(tmp_path, "ladder")["batch"].repeats) >= 1
    assert str(tmp_path / "report.html") in out and (tmp_path / "ladder.png").exists()


@pytest.mark.slow
def test_the_suite_of_scaling_counts_cores_replicas_and_workers(one_picture, tmp_path):
    photos = one_picture.parent / "photos"
    flags = (*QUICK, "--suite=scaling", "--width=0.03", f"--raw_images={photos}")
    cores = sorted(os.sched_getaffinity(0))[:2]
    done = run(f"--data={one_picture}", f"--output={tmp_path}", *flags, cores=cores)
    assert done.returncode == 0, done.stderr
    many = ["2 cores", "2 replicas", "2 workers on 2 cores"] if len(cores) == 2 else []
    names = {m.name for m in load_jsonl(tmp_path / "results.jsonl")}
    assert {"shardline, 1 core", "shardline, 1 replica", "shardline"} <= names
    assert {f"shardline, {name}" for name in many} <= names


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
