"""Each phase of each command announces itself on a terminal: counted, not timed."""

import re

import pytest

from tests.test_scripts import BIN, type_in

pytestmark = pytest.mark.slow

QUICK = ["--width=0.125", "--image_size=32", "--global_batch_size=8", "--phases=head:1@0.01,all:1@0.01"]


def phases(place, script, *arguments):
    """What the command showed, a line for every time the cursor went back to the left."""
    code, shown = type_in(BIN / f"shardline-{script}", *arguments, cwd=place)
    assert code == 0, shown
    lines = [line for line in re.split(r"[\r\n]+", re.sub("\x1b\\[[A-Z]", "", shown)) if line.strip()]
    return shown, lines


def assert_in_order(shown, *announced):
    where = 0
    for text in announced:
        assert text in shown[where:], f"{text!r} is not announced after {shown[:where][-300:]!r}"
        where = shown.index(text, where) + len(text)


def test_every_phase_of_a_day_announces_itself(tmp_path):
    place = tmp_path
    shown, _ = phases(place, "sample-data", "--output=photos", "--images_per_class=6", "--classes=2")
    assert_in_order(shown, "draw: ", "images of 2 classes")

    splits = "--splits=train=0.5,validation=0.25,test=0.25"
    shown, _ = phases(place, "convert", "--source=photos", "--output=data", "--size=40", splits)
    assert_in_order(
        shown, "scan: ", "convert: ", "duplicates: 16 inputs", "finish: ", "near duplicates: ",
        "report: classes", "report: contact sheets", "report: facts", "data: ",
    )  # fmt: skip

    shown, _ = phases(place, "verify", "data", "--sources=photos")
    assert_in_order(shown, "verify: ", "compare sources: ", "no faults")

    shown, _ = phases(place, "doctor")
    assert_in_order(shown, "examine: making sound and malformed files", "examine: ")

    shown, _ = phases(place, "inspect", "data", "--save=grid.png")
    assert_in_order(shown, "draw: ", "saved grid.png")

    trained, lines = phases(place, "train", "data", "--workdir=run", *QUICK)
    assert_in_order(
        trained, "data: data, 2 classes, records: ", "run: head:1@0.01,all:1@0.01, ", "writes to: run",
        "loading TensorFlow …", "devices: 1 × CPU", "compiling the step", "evaluate validation: ",
        "compiling the step", "evaluate validation: ", "saving the model …",
    )  # fmt: skip
    bars = [line for line in lines if line.startswith("epoch ") and "left" in line]
    assert bars and max(map(len, bars)) <= 80, bars
    assert re.fullmatch(r"epoch \d\.\d/2 .* left, loss \d\.\d+, [\d.,]+ images/s, input wait \d+%", bars[-1]), bars[-1]

    shown, _ = phases(place, "evaluate", "--run=run", "data")
    assert_in_order(
        shown, "weights: ", "loading TensorFlow …", "evaluate test: ", "leakage: ", "evaluate validation: ", "draw: ",
        "report: result",
        "report: mistakes, Grad-CAM", "top-1 ",
    )  # fmt: skip

    shown, _ = phases(place, "predict", "--run=run", "photos")
    assert_in_order(shown, "weights: ", "loading TensorFlow …", "predict: ", "predicted, ")

    shown, _ = phases(place, "export", "--run=run", "--output=exported", "--formats=keras")
    assert_in_order(shown, "weights: ", "loading TensorFlow …", "export: ", "compare: ", "keras: ")

    # The run again, compared with the first, and to be continued, from its own config.
    sha256 = r'"weights_sha256": "(\w+)"'
    again, _ = phases(place, "train", "--config=run/config.json", "--workdir=run2")
    assert "writes to: run2\n" in again and re.search(sha256, again)[1] == re.search(sha256, trained)[1]
    shown, _ = phases(place, "compare", "run", "run2", "--output=compared")
    assert_in_order(shown, "read: ", "curves: ", "compared")
    again, _ = phases(place, "train", "--config=run/config.json")
    assert "writes to: run\n" in again and "nothing to do" in again
