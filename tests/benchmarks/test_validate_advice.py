"""Made-up advice on a tiny dataset: what was advised is what is converted."""

import cv2
import numpy as np
import pytest

from shardline.benchmarks import validate_advice
from shardline.benchmarks.bottleneck import UNCHANGED, Advice, Bottleneck
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import Measurement
from shardline.benchmarks.verdict import Cores, Cost, Turn, judge
from shardline.pipeline import open_dataset
from shardline.pipeline.manifest import Manifest
from shardline.tools.conversion.run import convert
from tests.tools.folders import class_folders, config

TURN = Turn({"decode": Cost(500.0), "augment": Cost(100.0)}, threads=2, busy_cores=2.0)


@pytest.fixture
def folders(tmp_path):
    """Photographs of 100 x 120, and a dataset of them at short side 80."""
    class_folders(tmp_path / "photos", classes=2, images=3, height=100, width=120)
    convert(config(tmp_path / "photos", tmp_path / "data", size=80))
    return tmp_path


def carry_out(advice, folders, raw_images=""):
    bottleneck = Bottleneck(judge([TURN], Cores(2, 2)), TURN.host, advice)
    (folders / "work").mkdir()
    bench = BenchConfig(data=str(folders / "data"), output=str(folders / "report"), raw_images=raw_images)
    return validate_advice.carry_out(bottleneck, bench, folders / "work")


def stored(trial):
    manifest = Manifest.load(trial.directory)
    image, _, _ = next(iter(open_dataset(trial.directory).records("train", [0])))
    return manifest.image.encoding, manifest.image.size, manifest.split("train").records, image


def test_images_that_were_not_resized_are_stored_at_a_size(folders):
    convert(config(folders / "photos", folders / "whole", image={"resize": "none"}))
    (folders / "data").rename(folders / "sized")
    (folders / "whole").rename(folders / "data")
    trials = carry_out((Advice("--resize short --size 48", 1.2, input_factor=1.5), Advice("--workers 4", 1.1)), folders)
    assert list(trials) == [UNCHANGED, "--resize short --size 48"]
    shapes = [cv2.imdecode(np.frombuffer(stored(trial)[3], np.uint8), 1).shape for trial in trials.values()]
    assert shapes == [(100, 120, 3), (48, 58, 3)]


@pytest.mark.parametrize("source", ["shards", "raw images"])
def test_each_change_is_converted(folders, source):
    advice = (Advice("--size 48", 1.2, input_factor=1.5), Advice("--encoding raw", 1.3, "9x the bytes", 2.5))
    trials = carry_out(advice, folders, str(folders / "photos") if source == "raw images" else "")
    assert list(trials) == [UNCHANGED, "--size 48", "--encoding raw"]
    unchanged, size, raw = trials.values()
    assert [trial.predicted for trial in (unchanged, size, raw)] == [None, 1.5, 2.5]
    assert stored(unchanged)[:3] == ("jpeg", 80, 6)
    assert stored(size)[:3] == ("jpeg", 48, 6)
    assert stored(raw)[:3] == ("raw", 80, 6)
    assert len(stored(raw)[3]) == 80 * 96 * 3


def test_raw_pixels_can_be_the_source(folders):
    convert(config(folders / "photos", folders / "raw", size=80, image={"encoding": "raw"}))
    (folders / "data").rename(folders / "jpeg")
    (folders / "raw").rename(folders / "data")
    carry_out((Advice("--size 48", 1.2, input_factor=1.5),), folders)
    before, _, _ = next(iter(open_dataset(folders / "data").records("train", [0])))
    (first, *_) = sorted((folders / "work" / "source" / "sample").iterdir())
    assert cv2.cvtColor(cv2.imread(str(first)), cv2.COLOR_BGR2RGB).tobytes() == before


@pytest.mark.slow
def test_each_trial_is_measured_beside_the_unchanged_sample(folders, monkeypatch):
    advice = (Advice("--size 48", 1.2, input_factor=1.5),)
    found = Bottleneck(judge([TURN], Cores(2, 2)), TURN.host, advice)
    stages = Measurement("stages", "batch", "images/s", (1.0,), settings={"facts": {"stored_pixels": 80 * 96}})
    monkeypatch.setattr(validate_advice, "load_results", lambda path: [stages])
    monkeypatch.setattr(validate_advice, "bottleneck_of", lambda measurements: found)
    values = {"validate_advice": True, "global_batch_size": 4, "image_size": 32, "seconds": 0.02, "repeats": 1}
    bench = BenchConfig(data=str(folders / "data"), output=str(folders / "report"), **values)
    measured = {m.name: m for m in validate_advice.measure(bench)}
    assert measured["--size 48"].settings["predicted"] == 1.5
    assert all(m.median > 0 for m in measured.values()) and measured[UNCHANGED].settings["reference"] == UNCHANGED
