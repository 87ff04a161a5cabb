"""The Python of the pages runs, block after block, as a reader would paste it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from shardline.benchmarks import verdict
from tests.shell_commands import blocks

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_examples_run_on_a_converted_folder(tmp_path):
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("validation", 3)):
        for label in ("dark", "light"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 128, (80, 90, 3), np.uint8) + (127 if label == "light" else 0)
                cv2.imwrite(str(folder / f"{number}.png"), pixels.astype(np.uint8))
    convert = [sys.executable, "-m", "shardline.tools.convert", "--source=photos", "--output=data", "--size=72"]
    subprocess.run(convert, cwd=tmp_path, check=True, env=environment(), capture_output=True)

    python, serving, readme = (
        blocks((ROOT / name).read_text(), "python")
        for name in ("docs/guides/python.md", "docs/guides/serving.md", "README.md")
    )
    assert [len(found) for found in (python, serving, readme)] == [4, 1, 1]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join([*readme, *python[:2], *LOSS, *python[2:], *EXPORT, *serving, *TOLD])],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    printed, true = (float(x) for x in re.search(r"val_loss (\S+) (\S+)", result.stdout).groups())
    assert abs(printed - true) < 1e-5  # t15: six records in a batch of 32
    assert "cursor 96" in result.stdout and "val_accuracy" in result.stdout
    assert "status [b'ok'] (1, 64, 64, 3)" in result.stdout
    assert [line.split(",")[0] for line in (tmp_path / "log.csv").read_text().split()] == ["epoch", "0", "1"]


LOSS = (  # of the validation images, one by one
    "import numpy as np",
    "rows = list(data.eval_batches('validation', config).as_numpy_iterator())",
    "keep = np.concatenate([b['weight'] for b in rows]) > 0",
    "images, labels = (np.concatenate([b[name] for b in rows])[keep] for name in ('image', 'label'))",
    "chosen = model.predict(images, verbose=0)[range(len(labels)), labels]",
    "print('\\nval_loss', model.history.history['val_loss'][-1], -np.log(chosen).mean())",
)


EXPORT = (
    "from shardline.trainer.export import ExportConfig, export",
    "export(ExportConfig(run='run', output='exported', formats='saved_model', parity_images=2))",
    "open('photo.jpg', 'wb').write(open('photos/validation/dark/0.png', 'rb').read())",
)
TOLD = ("print('cursor', cursor)", "print('status', answer['status'].numpy(), shown.shape)")


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}


def test_every_word_of_a_verdict_has_an_example():
    words = [f"{stage}-bound" for stage in (*verdict.HOST_STAGES, "copy", "step")]
    words += ["balanced", "tie: ", verdict.QUOTA, verdict.TAKEN, "cannot tell", "epoch 1: ", "withdrawn"]
    said = (ROOT / "docs/guides/slow_pipeline.md").read_text().replace("-`", "-bound")  # `order-`, … and `batch-bound`
    assert [word for word in words if word not in said] == []
