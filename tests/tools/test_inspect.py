"""Looking into a dataset: what is printed, and what is saved."""

import cv2
import numpy as np
import pytest

from shardline.tools import inspect
from shardline.tools.conversion.run import convert
from tests.tools.folders import Run, class_folders, config, records


@pytest.fixture(scope="module", params=["jpeg", "raw"])
def dataset(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    convert(config(class_folders(folder / "s", 3, 6), folder / "d", image={"encoding": request.param}, shards=2))
    return folder / "d"


def test_summary(dataset):
    result = Run("shardline.tools.inspect", dataset)
    assert result.code == 0, result.stderr
    assert "images: 3 classes" in result.stdout
    assert "train: 18 records in 2 shards" in result.stdout
    assert "18 inputs = 18 written" in result.stdout
    assert ", 6 in each class" in result.stdout


def test_one_record_and_its_image(dataset, tmp_path):
    result = Run("shardline.tools.inspect", dataset, "--record=train:17", f"--save={tmp_path / 'r.png'}")
    assert result.code == 0, result.stderr
    example = records(dataset, "train")[17]
    assert f"label    {example.label} (class{example.label})" in result.stdout
    assert f"source   {example.filename}" in result.stdout
    saved = cv2.imread(str(tmp_path / "r.png"))[:, :, ::-1]
    if len(example.image) == saved.size:
        assert np.array_equal(saved.ravel(), np.frombuffer(example.image, np.uint8))
    assert saved.shape == (example.height, example.width, 3)


def test_a_grid(dataset, tmp_path):
    result = Run("shardline.tools.inspect", dataset, f"--save={tmp_path / 'g.png'}")
    assert result.code == 0, result.stderr
    assert min(cv2.imread(str(tmp_path / "g.png")).shape[:2]) > 200


def test_a_grid_of_what_training_shows(tmp_path, monkeypatch):
    """A row a record, a column an epoch: always that record's image and label, never the same crop throughout."""
    for label, name in enumerate(["blue", "green", "red"]):
        for number in range(3):
            bgr = np.full((40, 60, 3), 40, np.uint8)
            bgr[..., label] = np.linspace(120, 220, 60) + 5 * number
            (tmp_path / "s" / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "s" / name / f"{number}.png"), bgr)
    convert(config(tmp_path / "s", tmp_path / "d", size=32))
    grids = []
    draw = inspect._draw
    monkeypatch.setattr(inspect, "_draw", lambda *args: (grids.append(args), draw(*args)))
    result = Run(
        "shardline.tools.inspect", tmp_path / "d", "--augmented", "--image_size=32", f"--save={tmp_path / 'g.png'}"
    )
    assert result.code == 0, result.stderr
    assert min(cv2.imread(str(tmp_path / "g.png")).shape[:2]) > 400
    ((images, captions, columns, *_),) = grids
    assert (len(images), columns) == (6 * 8, 8)
    for row, stored in enumerate(records(tmp_path / "d", "train")[:6]):
        cells = images[row * columns : (row + 1) * columns]
        assert captions[row * columns] == ["blue", "green", "red"][stored.label]
        assert {2 - int(np.argmax(cell.mean(axis=(0, 1)))) for cell in cells} == {stored.label}
        assert all(cell.shape == (32, 32, 3) for cell in cells)
        assert len({cell.tobytes() for cell in cells}) == columns


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--record=train"], "say SPLIT:NUMBER"),
        (["--record=test:0"], "this dataset has train"),
        (["--record=train:18"], "train has 18 records"),
        (["--save=x.jpg"], "name a .png"),
        (["--augmented"], "give --save"),
        (["--save=/nowhere/x.png"], "no such folder"),
        (["--split=test", "--save=x.png"], "this dataset has train"),
    ],
)
def test_wrong_use_is_one_line(dataset, args, message):
    result = Run("shardline.tools.inspect", dataset, *args)
    assert (result.code, len(result.stderr.strip().splitlines())) == (2, 1), result.stderr
    assert message in result.stderr
