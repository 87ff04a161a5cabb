"""Made-up advice on a tiny dataset: what was advised is what is measured."""

import os

import cv2
import pytest

from shardline.benchmarks import validate_advice
from shardline.benchmarks.bottleneck import Advice, Verdict
from shardline.benchmarks.measure import interleave
from shardline.pipeline import InputConfig, open_dataset
from shardline.pipeline.manifest import Manifest
from shardline.tools.conversion.run import convert
from tests.tools.folders import class_folders, config

CONFIG = InputConfig(global_batch_size=4, image_size=32)


@pytest.fixture
def folders(tmp_path):
    """Photographs of 100 x 120, and a dataset of them at short side 80."""
    class_folders(tmp_path / "photos", classes=2, images=3, height=100, width=120)
    convert(config(tmp_path / "photos", tmp_path / "data", size=80))
    return tmp_path


def carry_out(advice, folders, raw_images=""):
    verdict = Verdict("decode-bound", 1000.0, advice, "made up")
    (folders / "work").mkdir()

    def measure(contenders):
        return interleave(validate_advice.SUITE, contenders, repeats=1, settings={"baseline": validate_advice.BASE})

    data = open_dataset(folders / "data")
    return validate_advice.prove(verdict, data, "train", raw_images, CONFIG, 0.02, folders / "work", measure)


def stored(folders, name):
    manifest = Manifest.load(folders / "work" / name)
    data = open_dataset(folders / "work" / name)
    image, _, _ = next(iter(data.records("train", [0])))
    return manifest.image.encoding, manifest.image.size, manifest.split("train").records, image


@pytest.mark.parametrize("source", ["shards", "raw images"])
def test_each_change_is_converted_and_measured(folders, source):
    advice = (Advice("--size 48", 1.2, alone=1.5), Advice("--encoding raw", 1.3, "9x the bytes", alone=2.5))
    base, size, raw = carry_out(advice, folders, str(folders / "photos") if source == "raw images" else "")
    assert [m.settings["predicted"] for m in (base, size, raw)] == [None, 1.5, 2.5]
    assert all(m.median > 0 for m in (base, size, raw))
    assert stored(folders, "base")[:3] == ("jpeg", 80, 6)
    assert stored(folders, "size")[:3] == ("jpeg", 48, 6)
    assert stored(folders, "encoding")[:3] == ("raw", 80, 6)
    assert len(stored(folders, "encoding")[3]) == 80 * 96 * 3


def test_raw_pixels_can_be_the_source(folders):
    convert(config(folders / "photos", folders / "raw", size=80, image={"encoding": "raw"}))
    (folders / "data").rename(folders / "jpeg")
    (folders / "raw").rename(folders / "data")
    carry_out((Advice("--size 48", 1.2, alone=1.5),), folders)
    before, _, _ = next(iter(open_dataset(folders / "data").records("train", [0])))
    (first, *_) = sorted((folders / "work" / "source" / "sample").iterdir())
    assert cv2.cvtColor(cv2.imread(str(first)), cv2.COLOR_BGR2RGB).tobytes() == before


def test_more_cores_are_proved_with_fewer_or_not_at_all(folders):
    advice = (Advice("7 more cores", 2.0, alone=4.5),)
    allowed = os.sched_getaffinity(0)
    measured = carry_out(advice, folders)
    if len(allowed) > 1:
        fewer = len(allowed) // 2
        assert measured[1].name == f"{fewer} of {len(allowed)} cores (for 7 more cores)"
        assert measured[1].settings["predicted"] == fewer / len(allowed)
    assert os.sched_getaffinity(0) == allowed
    os.sched_setaffinity(0, [min(allowed)])
    try:
        (folders / "work").rename(folders / "done")
        assert carry_out(advice, folders) == []
    finally:
        os.sched_setaffinity(0, allowed)
