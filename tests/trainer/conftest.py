"""One tiny dataset and one tiny trained run, made by the real commands once per test session, whatever its workers."""

import fcntl
import json
import os

import cv2
import numpy as np
import pytest

from tests.trainer.networks import make_shallow
from tests.trainer.tiny import COLORS, command, draw, save


@pytest.fixture(scope="session")
def once():
    """Has one worker make what all of them read: `once(path, make)` returns the path when it is whole."""

    def made(path, make):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / f"{path.name}.made", "a+") as note:
            fcntl.flock(note, fcntl.LOCK_EX)
            if not os.fstat(note.fileno()).st_size:  # another worker may have written while this one waited
                make(path)
                note.write("whole")
        return path

    return made


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """The folder of all workers of this session; without workers, that of the session."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"


@pytest.fixture(scope="session")
def tiny_data(once, shared):
    """Three classes of colored discs: 36 for training, 21 for testing, of which one is a copy of a training image
    and one a training image saved again at another quality; 9 for validation."""
    return once(shared / "data", convert_discs)


def convert_discs(output):
    raw, random = output.parent / "raw", np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 3), ("test", 7)):
        for name, color in COLORS.items():
            for i in range(count):
                save(raw / split / name / f"{i}.png", draw(random, color))
    (raw / "test/red/0.png").write_bytes((raw / "train/red/5.png").read_bytes())
    again = cv2.cvtColor(cv2.imread(str(raw / "train/blue/3.png")), cv2.COLOR_BGR2RGB)
    (raw / "test/blue/1.png").unlink()
    save(raw / "test/blue/1.jpg", again, cv2.IMWRITE_JPEG_QUALITY, 60)
    command("shardline.tools.convert", "--source", raw, "--output", output, "--size", 40, "--engine", "inline")


@pytest.fixture(scope="session")
def tiny_run(once, tiny_data):
    """A thin VGG16 trained for a handful of steps; first its head, then all of it."""

    def train(run):
        command(
            "shardline.trainer.train", "--data", tiny_data, "--workdir", run, "--width", 0.05, "--image_size", 32,
            "--phases", "head:1@1e-2,all:1@1e-2", "--global_batch_size", 12, "--precision", "float32", "--nojit",
            "--log_every_steps", 1, "--eval_split", "validation", "--peak_tflops", 1,
        )  # fmt: skip

    return once(tiny_data.parent / "run", train)


@pytest.fixture(scope="session")
def tiny_evaluation(once, tiny_run, tiny_data):
    """The run evaluated on its test split by the real command."""

    def evaluate(output):
        result = command(
            "shardline.trainer.evaluate", "--run", tiny_run, "--data", tiny_data, "--split", "test", "--output",
            output, "--batch_size", 8,
        )  # fmt: skip
        (output / "stdout.txt").write_text(result.stdout)

    return once(tiny_run.parent / "evaluation", evaluate)


@pytest.fixture(scope="session")
def tiny_metrics(tiny_evaluation):
    return json.loads((tiny_evaluation / "metrics.json").read_text())


@pytest.fixture(scope="session")
def loaded_run(tiny_run):
    """The tiny run's model in this process."""
    from shardline.trainer.run_dir import load_run

    return load_run(str(tiny_run))


@pytest.fixture(scope="module")
def undrawn():
    """Runs of this file draw no curves and write no page, which is half of what a tiny run costs."""
    from shardline.trainer import run_report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_report.RunReport, "_write", lambda self, *, finished: None)
        yield


@pytest.fixture(scope="module")
def shallow():
    """Networks of this file have one convolution a block: what is tested there begins beyond the network."""
    with pytest.MonkeyPatch.context() as patch:
        make_shallow(patch.setattr)
        yield
