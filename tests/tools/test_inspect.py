"""Looking into a dataset: what is printed, and what is saved."""

import cv2
import numpy as np
import pytest

from shardline.tools import inspect
from shardline.tools.conversion.run import convert
from shardline.trainer.cluster import create_cluster
from shardline.trainer.config import TrainConfig
from shardline.trainer.resume import config_content
from shardline.trainer.run_dir import write_config
from shardline.trainer.setup import create_setup
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


@pytest.fixture
def colors(tmp_path):
    """Nine images of three colors."""
    for label, name in enumerate(["blue", "green", "red"]):
        for number in range(3):
            bgr = np.full((40, 60, 3), 40, np.uint8)
            bgr[..., label] = np.linspace(120, 220, 60) + 5 * number
            (tmp_path / "s" / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "s" / name / f"{number}.png"), bgr)
    convert(config(tmp_path / "s", tmp_path / "d", size=32))
    return tmp_path / "d"


def drawn_grid(monkeypatch, *arguments):
    """Images, captions and number of columns of the one grid that a command draws."""
    grids = []
    draw = inspect._draw
    monkeypatch.setattr(inspect, "_draw", lambda *args: (grids.append(args), draw(*args)))
    result = Run("shardline.tools.inspect", "--augmented", *arguments)
    assert result.code == 0, result.stderr
    ((images, captions, columns, *_),) = grids
    return images, captions, columns


def test_a_grid_of_what_training_shows(colors, tmp_path, monkeypatch):
    """A row a record, a column an epoch: always that record's image and label, never the same crop throughout."""
    images, captions, columns = drawn_grid(
        monkeypatch, f"--data={colors}", "--image_size=32", f"--save={tmp_path / 'g.png'}"
    )
    assert min(cv2.imread(str(tmp_path / "g.png")).shape[:2]) > 400
    assert (len(images), columns) == (6 * 8, 8)
    for row in range(6):
        cells = images[row * columns : (row + 1) * columns]
        label = ["blue", "green", "red"].index(captions[row * columns])
        assert {2 - int(np.argmax(cell.mean(axis=(0, 1)))) for cell in cells} == {label}
        assert all(cell.shape == (32, 32, 3) for cell in cells)
        assert len({cell.tobytes() for cell in cells}) == columns


@pytest.mark.parametrize(
    "settings",
    [
        {"brightness": 0.4, "random_erasing": 0.5},
        pytest.param({"mixup": 0.5}, marks=pytest.mark.slow),
        {"balanced_sampling": True},
        pytest.param({"shuffle_block_size": 2}, marks=pytest.mark.slow),
    ],
)
def test_n1_the_grid_of_a_run_is_what_that_run_trained_on(settings, colors, tmp_path, monkeypatch):
    """Against the batches that the trainer reads, with the run's own flags."""
    trained = TrainConfig(
        data=str(colors), global_batch_size=2, image_size=32, seed=7, crop_area=(0.2, 0.4), workers=0, **settings
    )
    (tmp_path / "run").mkdir()
    setup = create_setup(trained, create_cluster("one_device", 0))
    write_config(tmp_path / "run", config_content(setup))
    images, _, columns = drawn_grid(monkeypatch, f"--run={tmp_path / 'run'}", f"--save={tmp_path / 'g.png'}")
    assert columns == 8 or settings == {"balanced_sampling": True}
    shown = {}
    batches = setup.data.train_batches("train", setup.input, sampler=setup.sampler)
    for batch in batches.take(-(-9 * 8 // 2)).as_numpy_iterator():
        for image, record, position in zip(batch["image"], batch["record"], batch["position"], strict=True):
            shown.setdefault(int(record), {}).setdefault(int(position) // 9, image)
    for row, record in enumerate(list(shown)[:6]):
        for column, epoch in enumerate(list(shown[record])[:columns]):
            np.testing.assert_array_equal(images[row * columns + column], shown[record][epoch])


def test_a_run_of_another_dataset_is_refused(colors, dataset, tmp_path):
    setup = create_setup(TrainConfig(data=str(colors), image_size=32, workers=0), create_cluster("one_device", 0))
    write_config(tmp_path, config_content(setup))
    result = Run("shardline.tools.inspect", dataset, f"--run={tmp_path}", "--augmented", f"--save={tmp_path / 'g.png'}")
    assert result.code == 2 and "was trained on a dataset of digest" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--record=train"], "say SPLIT:NUMBER"),
        ([f"--record=train:{'9' * 5000}"], "say SPLIT:NUMBER"),
        (["--record=test:0"], "this dataset has the splits train"),
        (["--record=train:18"], "train has 18 records"),
        (["--save=x.jpg"], "name a .png"),
        (["--augmented"], "give --save"),
        (["--run=x"], "--run=x is for --augmented"),
        (["--run=x", "--augmented", "--save=x.png"], "no config.json there"),
        (["--run=x", "--augmented", "--save=x.png", "--seed=1"], "leave out --image_size and --seed"),
        (["--save=/nowhere/x.png"], "no such folder"),
        (["--split=test", "--save=x.png"], "this dataset has train"),
    ],
)
def test_wrong_use_is_one_line(dataset, args, message):
    result = Run("shardline.tools.inspect", dataset, *args)
    assert (result.code, len(result.stderr.strip().splitlines())) == (2, 1), result.stderr
    assert message in result.stderr
