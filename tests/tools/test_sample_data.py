"""The sample images: the same bytes for a seed, not solved by color alone, and the difficult files as promised."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from shardline.pipeline.errors import UsageError
from shardline.tools import sample_data, sample_images
from shardline.tools.sample_data import SampleDataConfig
from tests.tools.folders import Run

CLASSES, PER_CLASS, SEED = 6, 16, 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sample") / "photos"
    assert draw(output, CLASSES, PER_CLASS, SEED) == (CLASSES * PER_CLASS + 4, 4)
    return output


def draw(output: Path, classes: int, images_per_class: int, seed: int) -> tuple[int, int]:
    return sample_data.sample_data(SampleDataConfig(str(output), classes, images_per_class, seed))


def clean_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/[0-9][0-9][0-9][0-9].*"))


def mean_colors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The mean RGB of every clean image, and its class."""
    names = sorted(path.name for path in folder.iterdir())
    colors, labels = [], []
    for path in clean_files(folder):
        with Image.open(path) as image:
            colors.append(np.asarray(image.convert("RGB")).mean(axis=(0, 1)))
        labels.append(names.index(path.parent.name))
    return np.array(colors), np.array(labels)


def nearest_mean_color(train: np.ndarray, train_labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    centers = np.array([train[train_labels == label].mean(axis=0) for label in range(train_labels.max() + 1)])
    return np.linalg.norm(colors[:, None] - centers, axis=2).argmin(axis=1)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def difficult(folder: Path, stem: str) -> tuple[bytes, np.ndarray]:
    """A difficult file, and the image that was drawn for it."""
    (task,) = [task for task in sample_data.plan_files(CLASSES, PER_CLASS) if task.path.stem == stem]
    rng = np.random.default_rng([SEED, list(sample_images.KINDS).index(task.class_name), task.number])
    drawn = sample_images.paint(sample_images.KINDS[task.class_name], rng)
    return (folder / task.path).read_bytes(), drawn


def difference(image: Image.Image, drawn: np.ndarray) -> float:
    return float(np.abs(np.asarray(image.convert("RGB"), np.float32) - drawn).mean())


def test_every_class_has_its_number_of_varied_images(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == set(list(sample_images.KINDS)[:CLASSES])
    sizes, formats = set(), set()
    for class_folder in folder.iterdir():
        files = [path for path in clean_files(folder) if path.parent == class_folder]
        assert [path.stem for path in files] == [f"{number:04d}" for number in range(1, PER_CLASS + 1)]
        for path in files:
            with Image.open(path) as image:
                image.load()
                assert image.mode == "RGB"
                assert image.format == {".jpg": "JPEG", ".png": "PNG"}[path.suffix]
                assert 140 <= min(image.size) <= max(image.size) <= 480
                sizes.add(image.size)
                formats.add(image.format)
    assert formats == {"JPEG", "PNG"}
    assert len(sizes) > CLASSES * PER_CLASS / 2


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_images(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("again", SEED), ("other", SEED + 1)):
        draw(tmp_path / name, 2, 3, seed)
    drawn, again, other = digests(folder), digests(tmp_path / "again"), digests(tmp_path / "other")
    clean = [name for name in again if name[-8:-4].isdigit()]
    assert len(clean) == 6
    # An image depends neither on how many are drawn nor on the order in which threads draw them.
    assert all(again[name] == drawn[name] for name in clean)
    assert again.keys() == other.keys()
    assert not set(again.values()) & set(other.values())


def test_no_two_files_are_the_same(folder: Path) -> None:
    assert len(set(digests(folder).values())) == CLASSES * PER_CLASS + 4


def test_the_mean_color_does_not_tell_the_class(folder: Path) -> None:
    colors, labels = mean_colors(folder)
    held_out = np.arange(len(labels)) % 3 == 0
    right = []
    for part in (held_out, np.roll(held_out, 1), np.roll(held_out, 2)):  # each image is held out once
        guesses = nearest_mean_color(colors[~part], labels[~part], colors[part])
        right.extend(guesses == labels[part])
    assert len(right) == CLASSES * PER_CLASS
    assert np.mean(right) <= 0.55


def test_classes_come_in_pairs_of_one_hue() -> None:
    hues = [kind.hue for kind in sample_images.KINDS.values()]
    assert len(hues) == sample_data.MAX_CLASSES
    assert hues[0::2] == hues[1::2]
    assert len(set(hues)) == len(hues) // 2


def test_the_truncated_file_is_a_jpeg_without_its_end(folder: Path) -> None:
    data, _ = difficult(folder, "truncated")
    assert data.startswith(b"\xff\xd8\xff")
    assert not data.endswith(b"\xff\xd9")
    with pytest.raises(ValueError, match="Premature end"):
        simplejpeg.decode_jpeg(data, strict=True)


def test_the_sideways_file_is_upright_once_its_orientation_is_applied(folder: Path) -> None:
    from PIL import ImageOps

    data, drawn = difficult(folder, "sideways")
    image = Image.open(io.BytesIO(data))
    assert image.getexif()[0x0112] == 6
    assert image.size == drawn.shape[:2]  # (width, height) as stored: turned
    assert difference(ImageOps.exif_transpose(image), drawn) < 8


def test_the_cmyk_file_is_cmyk_and_shows_the_image(folder: Path) -> None:
    data, drawn = difficult(folder, "cmyk")
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("JPEG", "CMYK")
    assert difference(image, drawn) < 8


def test_the_png_named_jpg_is_a_png(folder: Path) -> None:
    data, drawn = difficult(folder, "really-a-png")
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert difference(image, drawn) == 0


@pytest.mark.parametrize("existed", [False, True])
def test_a_failure_leaves_nothing_behind(existed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(sample_data, "_draw_file", full_disk)
    output = tmp_path / "photos"
    if existed:
        output.mkdir()
    with pytest.raises(OSError, match="No space"):
        draw(output, 2, 1, 0)
    assert list(tmp_path.rglob("*")) == ([output] if existed else [])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output": ""}, "--output is missing"),
        ({"classes": 1}, "--classes=1: use a whole number from 2 to 12"),
        ({"classes": 13}, "--classes=13: use a whole number from 2 to 12"),
        ({"images_per_class": 0}, "--images_per_class=0: use a whole number from 1 to 9999"),
        ({"images_per_class": 10000}, "--images_per_class=10000: use a whole number from 1 to 9999"),
        ({"seed": -1}, "--seed=-1: use a whole number of at least 0"),
    ],
)
def test_a_wrong_flag_is_named_with_its_remedy(values: dict, message: str, tmp_path: Path) -> None:
    given = {"output": str(tmp_path / "photos"), **values}
    run = Run("shardline.tools.sample_data", *(f"--{name}={value}" for name, value in given.items()))
    assert run.code == 2 and message in run.stderr
    assert not list(tmp_path.iterdir())


def test_an_output_in_use_is_refused_untouched_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, "-m", "shardline.tools.sample_data", "--output", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(sample_data.__file__).parents[1])
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"shardline.tools.sample_data: error: --output={tmp_path} exists and is not an empty folder; name another\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_output_that_cannot_be_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UsageError,
        match=f"^output={tmp_path / name}(: is a file; name a folder| cannot be made: .*; name another folder)$",
    ):
        draw(tmp_path / name, 2, 1, 0)


# The flags of `make demo`.
CONVERT = ["--size", "54", "--splits", "train=0.75,validation=0.05,test=0.2"]
TRAIN = ["--weights", "none", "--head", "gap", "--dropout", "0", "--phases", "all:6@2e-2", "--image_size", "48",
         "--global_batch_size", "32", "--crop_area", "0.7,1", "--crop_ratio", "0.9,1.11",
         "--precision", "mixed_bfloat16", "--logical_cpus", "2"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_vgg16_learns_them_from_scratch_far_beyond_their_color(seed: int, tmp_path: Path) -> None:
    def run(module: str, *arguments: object) -> None:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        subprocess.run(command, check=True, cwd=Path(sample_data.__file__).parents[1])

    photos, data, work, result = (tmp_path / name for name in ("photos", "data", "run", "evaluation"))
    run("shardline.tools.sample_data", "--output", photos, "--seed", seed)
    run("shardline.tools.convert", "--source", photos, "--output", data, *CONVERT)
    run("shardline.trainer.train", "--data", data, "--workdir", work, "--seed", seed, *TRAIN)
    run("shardline.trainer.evaluate", "--run", work, "--data", data, "--split", "test", "--output", result)
    top1 = json.loads((result / "metrics.json").read_text())["top1"]
    by_color = color_top1(data)
    assert top1 >= 0.8
    assert top1 >= by_color + 0.25


def color_top1(data: Path) -> float:
    """Top-1 of the nearest mean color on the split `test` of a dataset, learned from its split `train`."""
    from shardline import pipeline

    dataset = pipeline.open_dataset(data)

    def colors_and_labels(split: str) -> tuple[np.ndarray, np.ndarray]:
        records = list(dataset.records(split, range(dataset.num_records(split))))
        images = [Image.open(io.BytesIO(image)).convert("RGB") for image, _, _ in records]
        colors = [np.asarray(drawn).mean(axis=(0, 1)) for drawn in images]
        return np.array(colors), np.array([label for _, label, _ in records])

    colors, labels = colors_and_labels("test")
    return float(np.mean(nearest_mean_color(*colors_and_labels("train"), colors) == labels))
