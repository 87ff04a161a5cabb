"""Prediction by the real command: every file a row, broken ones with their reason, the training's own preprocessing."""

import csv
import io
import json
import os

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from shardline.pipeline.errors import Failure
from shardline.pipeline.files import exclusive
from shardline.pipeline.text import has_control_characters
from shardline.trainer import predict
from shardline.trainer.evaluation.inference import FilePrediction, predict_files
from shardline.trainer.predict import PredictConfig
from tests.trainer.tiny import COLORS, command, draw, refusal, save


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(7)
    image = draw(random, COLORS["red"])
    save(folder / "a" / "plain.png", image)
    save(folder / "a" / "really a jpeg.png", image)  # what a name says does not matter:
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    (folder / "a" / "really a jpeg.png").write_bytes(jpeg)
    (folder / "a" / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "a" / "empty.jpg").write_bytes(b"")
    (folder / "a" / ".hidden.jpg").write_bytes(b"")
    save(folder / "b" / "grün [1].bmp", draw(random, COLORS["green"]))
    return folder


def test_each_file_is_a_row_and_a_broken_one_has_its_reason(photos, tiny_run, tmp_path):
    target = tmp_path / "rows.csv"
    result = command("shardline.trainer.predict", "--run", tiny_run, "--input", photos, "--top", 2, "--output", target,
                     "--gallery", tmp_path / "g.png", "--batch_size", 2)  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(target.read_text(encoding="utf-8"))))
    assert [row["path"].removeprefix(f"{photos}/") for row in rows] == [
        "a/empty.jpg", "a/plain.png", "a/really a jpeg.png", "a/truncated.jpg", "b/grün [1].bmp"
    ]  # fmt: skip
    broken = {row["path"].rpartition("/")[2]: row["error"] for row in rows if row["error"]}
    assert set(broken) == {"empty.jpg", "truncated.jpg"} and all(len(reason) > 5 for reason in broken.values())
    good = [row for row in rows if not row["error"]]
    assert all({row["label"], row["label2"]} < set(COLORS) for row in good)
    assert all(0.3 < float(row["probability"]) >= float(row["probability2"]) for row in good)
    assert "3 predicted, 2 unreadable" in result.stderr
    assert cv2.imread(str(tmp_path / "g.png")).shape[1] > 500


def test_a_gallery_of_a_split_marks_what_is_right(
    loaded_run, tiny_run, tiny_data, tiny_evaluation, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(predict, "draw_gallery", lambda shown, *_: drawn.extend(shown))
    predict.predict(PredictConfig(run=tiny_run, data=tiny_data, split="test", gallery=str(tmp_path / "g.png")))
    evaluated = {row["path"]: row for row in pq.read_table(tiny_evaluation / "predictions.parquet").to_pylist()}
    assert len(drawn) == len(evaluated) == 21
    for image, row, truth in drawn:
        assert image.shape == (32, 32, 3) and truth == evaluated[row.path]["label"]
        _, first, second = predict.tile(image, row, truth)
        assert first.startswith("✓ " if evaluated[row.path]["correct"] else "✗ ") and second in row.path
        assert (f", is {truth}" in first) == (not evaluated[row.path]["correct"])


def test_a_test_image_is_predicted_as_it_was_evaluated(loaded_run, tiny_data, tiny_evaluation):
    # The stored copy went through JPEG, which changes this noise by 8 levels, the file did not: close, not equal.
    files = sorted((tiny_data.parent / "raw" / "test" / "green").glob("*.png"))
    evaluated = {row["path"]: row for row in pq.read_table(tiny_evaluation / "predictions.parquet").to_pylist()}
    rows = [row for row, _ in predict_files(loaded_run, list(map(str, files)), top=3, batch_size=4)]
    assert [row.path for row in rows] == list(map(str, files)) and len(rows) == 7
    for row, file in zip(rows, files, strict=True):
        by_label = dict(zip(row.labels, row.probabilities, strict=True))
        known = evaluated[f"test/green/{file.name}"]["probabilities"]
        assert [by_label[name] for name in sorted(by_label)] == pytest.approx(known, abs=0.06)


def test_from_python_it_returns_the_rows_it_writes(photos, tiny_run, tmp_path):
    target = tmp_path / "rows.parquet"
    config = PredictConfig(run=tiny_run, input=(photos / "a", photos / "b"), output=target, top=2)
    rows = predict.predict(config)
    assert [bool(row.error) for row in rows] == [True, False, False, True, False]
    assert [row["labels"] for row in pq.read_table(target).to_pylist()] == [list(row.labels) for row in rows]
    assert predict.predict(config) == rows


def test_nothing_readable_is_a_failure_that_says_why(photos, tiny_run, tmp_path):
    line = refusal("shardline.trainer.predict", "--run", tiny_run, "--input", photos / "a" / "truncated.jpg",
                   "--output", tmp_path / "rows.jsonl", code=1)  # fmt: skip
    assert "no prediction of 1 file; the first" in line and "truncated.jpg: " in line
    assert json.loads((tmp_path / "rows.jsonl").read_text())["error"]  # a row all the same


def test_inputs_are_files_directories_and_globs_each_file_once(photos):
    plain, odd = str(photos / "a" / "plain.png"), str(photos / "b" / "grün [1].bmp")
    assert predict.find_files([plain, plain]) == [plain]
    assert predict.find_files([odd]) == [odd]  # brackets in a name are no pattern
    assert predict.find_files([str(photos / "**" / "*.bmp"), odd]) == [odd]
    assert len(predict.find_files([str(photos)])) == 5  # without the hidden one


ROWS = [
    FilePrediction("a.jpg", ("red", "blue"), (0.75, 0.25)),
    FilePrediction('b,"x".jpg', error="truncated: after 10 bytes"),
]


def test_csv_golden():
    assert predict._csv(ROWS, 2) == (
        "path,label,probability,label2,probability2,error\n"
        "a.jpg,red,0.750000,blue,0.250000,\n"
        '"b,""x"".jpg",,,,,truncated: after 10 bytes\n'
    )


def test_a_file_name_that_is_no_utf8_is_escaped_and_the_file_is_utf8():
    rows = [FilePrediction(os.fsdecode(b"caf\xe9.jpg"), ("red",), (1.0,))]
    assert predict.as_bytes(rows, "csv", 1) == b"path,label,probability,error\ncaf\\xe9.jpg,red,1.000000,\n"
    assert os.fsencode(json.loads(predict.as_bytes(rows, "jsonl", 1))["path"]) == b"caf\xe9.jpg"


def test_jsonl_golden():
    first, second = map(json.loads, predict._jsonl(ROWS).splitlines())
    assert first == {
        "path": "a.jpg",
        "top": [{"label": "red", "probability": 0.75}, {"label": "blue", "probability": 0.25}],
        "error": None,
    }
    assert second == {"path": 'b,"x".jpg', "top": [], "error": "truncated: after 10 bytes"}


def test_pipes_devices_and_hostile_names_are_rows_and_never_commands(tiny_run, tmp_path):
    """M9 and M10: nothing waits for a pipe, nothing reaches the terminal or a spreadsheet as more than text."""
    images = tmp_path / "images"
    save(images / "good.png", np.zeros((40, 40, 3), np.uint8))
    for name in ("x\x1b]0;owned\x07a.png", "=cmd|'calc'!A0.png"):
        (images / name).write_bytes((images / "good.png").read_bytes())
    os.mkfifo(images / "pipe.png")
    arguments = ("--run", tiny_run, "--input", images, "--input", "/dev/zero")
    for form in ("csv", "jsonl"):
        result = command("shardline.trainer.predict", *arguments, "--output", tmp_path / f"out.{form}", "--top", 1)
        assert "3 predicted, 2 unreadable" in result.stderr
        text = (tmp_path / f"out.{form}").read_text()
        assert not has_control_characters(text.replace("\n", "")) and text.count("not-a-file") == 2
    (_, row) = csv.reader(predict.as_bytes([FilePrediction("=1+1.png", error="x")], "csv", 1).decode().splitlines())
    assert row == ["'=1+1.png", "", "", "x"]
    paths = [json.loads(line)["path"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert str(images / "x\x1b]0;owned\x07a.png") in paths  # JSON keeps the name itself


@pytest.mark.parametrize("flag", ["output", "gallery"])
def test_a_target_has_one_owner(photos, tiny_run, tmp_path, flag):
    targets = {"output": str(tmp_path / "rows.csv"), "gallery": str(tmp_path / "look.png")}
    config = PredictConfig(run=tiny_run, input=photos, **targets)
    lock = tmp_path / f".{os.path.basename(targets[flag])}.lock"
    with exclusive(lock, "it"), pytest.raises(Failure, match=f"^{flag}={targets[flag]} is in use by process"):
        predict.predict(config)
    assert not list(tmp_path.iterdir())
