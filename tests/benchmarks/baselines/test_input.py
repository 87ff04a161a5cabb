"""Every loader to compare with that needs no package of its own makes the batches it is said to make."""

import json
import subprocess
import sys

import numpy as np
import pytest

from shardline.benchmarks.baselines.input import LOADERS, NOT_MEASURED, _crop_box, _pillow, prepare
from shardline.pipeline.dataset import Dataset
from shardline.tools.conversion.run import convert
from tests.tools.folders import ROOT, class_folders, config

OURS = [name for name in LOADERS if name.startswith("shardline")]
TENSORFLOWS = {
    "TensorFlow, decode only": [[4, 3], "int32"],
    "Model Garden, float32": [[4, 32, 32, 3], "float32"],
    "Keras from directory, float32": [[4, 32, 32, 3], "float32"],
    "TFDS": [[4, 32, 32, 3], "uint8"],
}
SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from shardline.benchmarks.baselines.input import LOADERS
found = {}
for name in sys.argv[2:]:
    batches = LOADERS[name].make(Path(sys.argv[1]), 4, 32, 1)
    batch = [np.asarray(next(batches)) for _ in range(5)][-1]  # more than the twelve images
    assert batch.std() > 0.5
    found[name] = batch.shape, batch.dtype.name
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("loaders")
    convert(
        config(
            class_folders(root / "photos", classes=2, images=6),
            root / "data",
            size=40,
            splits={"train": 0.75, "test": 0.25},
        )
    )
    prepare(str(root / "data"), root)
    return root


@pytest.mark.parametrize("name", OURS)
def test_our_batches_are_what_they_are_said_to_be(name, folder):
    batches = LOADERS[name].make(folder, 4, 32, 1)
    for _ in range(5):
        pixels = next(batches)["image"].numpy()
    assert pixels.dtype == np.uint8 and len(pixels) == 4 and pixels.std() > 0.5
    assert pixels.shape == (4, 32, 32, 3) or "device" in name


def test_comparisons_state_their_input_whatever_the_defaults_are(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(Dataset, "train_batches", lambda data, split, config: asked.append((split, config)) or [])
    for name in OURS:
        LOADERS[name].make(folder, 64, 224, 1)
    assert {split for split, _ in asked} == {"train"}
    for _, asked_for in asked:
        assert (asked_for.global_batch_size, asked_for.image_size) == (64, 224)
        assert (asked_for.crop_area, asked_for.crop_ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
        assert asked_for.horizontal_flip and (asked_for.threads, asked_for.workers) == (1, 0)
    assert [asked_for.augment_on for _, asked_for in asked] == ["host"] * 3 + ["device", "host", "device"]


@pytest.mark.slow
def test_tensorflows_batches_are_what_they_are_said_to_be(folder):
    # In a process of its own: other tests ask TensorFlow for determinism, which these loaders do not offer.
    command = [sys.executable, "-c", SCRIPT, str(folder), *TENSORFLOWS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == TENSORFLOWS
    assert set(TENSORFLOWS) | set(OURS) == {name for name, loader in LOADERS.items() if not loader.packages}


def test_pillows_crops_are_squares_of_the_image(folder):
    data = (folder / "files" / "000000.jpg").read_bytes()
    assert _pillow(data, 32).shape == (32, 32, 3)
    for _ in range(100):
        top, left, height, width = _crop_box(40, 60)
        assert 0 <= top <= top + height <= 40 and 0 <= left <= left + width <= 60 and height and width


def test_each_says_in_a_line_what_it_does():
    assert all(loader.what and "\n" not in loader.what for loader in LOADERS.values())
    assert not set(NOT_MEASURED) & set(LOADERS)
