"""The command measures, stores and draws on a real (tiny) dataset, and refuses in one line what it cannot measure."""

import subprocess
import sys

import pytest

from benchmarks.measure import CONTROL, load_jsonl
from benchmarks.verdict import HOST_STAGES
from tests.tools.folders import class_folders, config
from tools.conversion import convert


def run(*args):
    command = [sys.executable, "-m", "benchmarks.run", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_short_suite_leaves_rows_a_report_and_a_verdict(tmp_path):
    convert(config(class_folders(tmp_path / "photos", classes=1, images=1), tmp_path / "data", size=40))
    output = tmp_path / "report"
    flags = ("--suite=short", "--repeats=1", "--seconds=0.05", "--image_size=32", "--global_batch_size=4")
    done = run(f"--data={tmp_path / 'data'}", f"--output={output}", "--gpu_images_per_second=1e9", *flags)
    assert done.returncode == 0, done.stderr
    names = [m.name for m in load_jsonl(output / "results.jsonl") if m.suite == "ladder"]
    assert names == [*HOST_STAGES, "storage (cold)", CONTROL, "step"]
    verdict, report = done.stdout.splitlines()
    assert verdict.split(":")[0] in ("storage-bound", "decode-bound", "augment-bound")
    assert report == str(output / "report.html") and (output / "report.html").stat().st_size > 10_000
    assert (output / "ladder.png").exists()


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
