"""Every loader to compare with that needs no package of its own makes the batches it is said to make."""

import numpy as np
import pytest

from benchmarks.input_peers import NOT_MEASURED, PEERS, _pillow, _window, doc, prepare
from tests.tools.folders import class_folders, config
from tools.conversion import convert

FLOATS = ("Model Garden, float32", "Keras from directory, float32")
HERE = [name for name, (_, packages) in PEERS.items() if not packages]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("peers")
    convert(config(class_folders(root / "photos", classes=2, images=6), root / "data", size=40))
    prepare(str(root / "data"), root)
    return root


@pytest.mark.parametrize("name", HERE)
def test_batches_are_what_they_are_said_to_be(name, folder):
    batches = PEERS[name][0](folder, 4, 32, 1)
    for _ in range(5):  # more than the twelve pictures
        batch = next(batches)
    if name == "TensorFlow, decode only":
        assert batch.shape == (4, 3)
        return
    pixels = np.asarray(batch["image"] if isinstance(batch, dict) else batch)
    assert pixels.shape[0] == 4 and pixels.shape[3] == 3
    assert pixels.dtype == (np.float32 if name in FLOATS else np.uint8)
    if "device" not in name:
        assert pixels.shape == (4, 32, 32, 3)
    assert pixels.std() > 0.5


def test_pillows_crops_are_squares_of_the_picture(folder):
    data = (folder / "files" / "000000.jpg").read_bytes()
    assert _pillow(data, 32).shape == (32, 32, 3)
    for _ in range(100):
        top, left, height, width = _window(40, 60)
        assert 0 <= top <= top + height <= 40 and 0 <= left <= left + width <= 60 and height and width


def test_each_says_in_a_line_what_it_does():
    assert all(doc(name) and "\n" not in doc(name) for name in PEERS)
    assert not set(NOT_MEASURED) & set(PEERS)
