"""Made-up advice on a tiny dataset: what was advised is what is converted."""

import os

import cv2
import pytest

from shardline.benchmarks import validate_advice
from shardline.benchmarks.bottleneck import Advice, Bottleneck
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.validate_advice import UNCHANGED
from shardline.pipeline import open_dataset
from shardline.pipeline.manifest import Manifest
from shardline.tools.conversion.run import convert
from tests.tools.folders import class_folders, config


@pytest.fixture
def folders(tmp_path):
    """Photographs of 100 x 120, and a dataset of them at short side 80."""
    class_folders(tmp_path / "photos", classes=2, images=3, height=100, width=120)
    convert(config(tmp_path / "photos", tmp_path / "data", size=80))
    return tmp_path


def carry_out(advice, folders, raw_images=""):
    bottleneck = Bottleneck("decode", 1000.0, advice, "made up")
    (folders / "work").mkdir()
    bench = BenchConfig(data=str(folders / "data"), output=str(folders / "report"), raw_images=raw_images)
    return validate_advice.carry_out(bottleneck, bench, folders / "work")


def stored(trial):
    manifest = Manifest.load(trial.directory)
    image, _, _ = next(iter(open_dataset(trial.directory).records("train", [0])))
    return manifest.image.encoding, manifest.image.size, manifest.split("train").records, image


@pytest.mark.parametrize("source", ["shards", "raw images"])
def test_each_change_is_converted(folders, source):
    advice = (Advice("--size 48", 1.2, input_factor=1.5), Advice("--encoding raw", 1.3, "9x the bytes", 2.5))
    trials, untried = carry_out(advice, folders, str(folders / "photos") if source == "raw images" else "")
    assert list(trials) == [UNCHANGED, "--size 48", "--encoding raw"] and not untried
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


def test_more_cores_are_validated_with_fewer_or_not_at_all(folders):
    advice = (Advice("7 more cores", 2.0, input_factor=4.5),)
    allowed = os.sched_getaffinity(0)
    trials, untried = carry_out(advice, folders)
    if len(allowed) > 1:
        fewer = len(allowed) // 2
        trial = trials[f"{fewer} of {len(allowed)} cores (for 7 more cores)"]
        assert (trial.directory, trial.cores) == (trials[UNCHANGED].directory, fewer)
        assert trial.predicted == fewer / len(allowed) and not untried
    os.sched_setaffinity(0, [min(allowed)])
    try:
        (folders / "work").rename(folders / "done")
        trials, untried = carry_out(advice, folders)
        assert list(trials) == [UNCHANGED] and untried == {"7 more cores": "this machine has one core"}
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.slow
def test_each_trial_is_measured_beside_the_unchanged_sample(folders, monkeypatch):
    advice = (Advice("1 more core", 2.0, input_factor=4.5), Advice("--size 48", 1.2, input_factor=1.5))
    found = Bottleneck("decode", 1000.0, advice, "made up")
    monkeypatch.setattr(validate_advice, "load_results", lambda path: [])
    monkeypatch.setattr(validate_advice, "bottleneck_of", lambda measurements: found)
    values = {"validate_advice": True, "global_batch_size": 4, "image_size": 32, "seconds": 0.02, "repeats": 1}
    bench = BenchConfig(data=str(folders / "data"), output=str(folders / "report"), **values)
    measured = {m.name: m for m in validate_advice.measure(bench)}
    assert measured["--size 48"].settings["predicted"] == 1.5
    assert all(m.median > 0 for m in measured.values()) and measured[UNCHANGED].settings["reference"] == UNCHANGED
