"""One tiny dataset and one tiny trained run, made by the real commands once per test session."""

import json

import cv2
import numpy as np
import pytest

from tests.trainer.tiny import COLORS, command, draw, save


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Three classes of colored discs: 36 for training, 21 for testing, of which one is a copy of a training image
    and one a training image saved again at another quality; 9 for validation."""
    folder = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 3), ("test", 7)):
        for name, color in COLORS.items():
            for i in range(count):
                save(folder / "raw" / split / name / f"{i}.png", draw(random, color))
    raw = folder / "raw"
    (raw / "test/red/0.png").write_bytes((raw / "train/red/5.png").read_bytes())
    again = cv2.cvtColor(cv2.imread(str(raw / "train/blue/3.png")), cv2.COLOR_BGR2RGB)
    (raw / "test/blue/1.png").unlink()
    save(raw / "test/blue/1.jpg", again, cv2.IMWRITE_JPEG_QUALITY, 60)
    command("shardline.tools.convert", "--source", raw, "--output", folder / "data", "--size", 40, "--engine", "inline")
    return folder / "data"


@pytest.fixture(scope="session")
def tiny_run(tiny_data):
    """A thin VGG16 trained for a handful of steps; first its head, then all of it."""
    run = tiny_data.parent / "run"
    command(
        "shardline.trainer.train", "--data", tiny_data, "--workdir", run, "--width", 0.05, "--image_size", 32,
        "--phases", "head:1@1e-2,all:1@1e-2", "--global_batch_size", 12, "--precision", "float32", "--nojit",
        "--log_every_steps", 1, "--eval_split", "validation",
    )  # fmt: skip
    return run


@pytest.fixture(scope="session")
def tiny_evaluation(tiny_run, tiny_data):
    """The run evaluated on its test split by the real command."""
    output = tiny_run.parent / "evaluation"
    result = command(
        "shardline.trainer.evaluate", "--run", tiny_run, "--data", tiny_data, "--split", "test", "--output", output,
        "--batch_size", 8,
    )  # fmt: skip
    (output / "stdout.txt").write_text(result.stdout)
    return output


@pytest.fixture(scope="session")
def tiny_metrics(tiny_evaluation):
    return json.loads((tiny_evaluation / "metrics.json").read_text())


@pytest.fixture(scope="session")
def loaded_run(tiny_run):
    """The tiny run's model in this process."""
    from shardline.trainer.run_dir import load_run

    return load_run(str(tiny_run))
