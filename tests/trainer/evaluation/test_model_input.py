"""A file is shown to the model as its stored record is, to the pixel: what is predicted is what was evaluated."""

import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from shardline import pipeline
from shardline.pipeline.images import load_rgb
from shardline.tools.convert import ConvertConfig, convert
from shardline.trainer.data import stored_as
from shardline.trainer.evaluation import model_input
from shardline.trainer.evaluation.inference import input_config

SIZE = 32


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Smooth images in the forms that decoders treat differently, and more of each class."""
    folder = tmp_path_factory.mktemp("model_input")
    random = np.random.default_rng(0)

    def smooth(height, width):
        return cv2.resize(random.integers(0, 256, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)

    turned = Image.Exif()
    turned[0x0112] = 6
    forms = {
        "large.jpg": (Image.fromarray(smooth(300, 420)), {"quality": 92}),
        "turned.jpg": (Image.fromarray(smooth(90, 70)), {"exif": turned}),
        "gray.jpg": (Image.fromarray(smooth(64, 80)).convert("L"), {}),
        "cmyk.jpg": (Image.fromarray(smooth(64, 80)).convert("CMYK"), {}),
        "palette.png": (Image.fromarray(smooth(64, 80)).convert("P"), {}),
        "alpha.png": (Image.fromarray(np.dstack([smooth(64, 80), smooth(64, 80)[..., 0]])), {}),
        "small.webp": (Image.fromarray(smooth(20, 24)), {}),
        "deep.png": (Image.fromarray(smooth(64, 80)[..., 0].astype(np.uint16) * 11 + 700), {}),  # 12 bits in 16
        "framed.png": (Image.fromarray(np.pad(smooth(64, 80), ((9, 9), (9, 9), (0, 0)))), {}),
    }
    for label in "ab":
        (folder / "raw" / label).mkdir(parents=True)
        for name, (image, options) in forms.items():
            (image if label == "a" else image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).save(
                folder / "raw" / label / name, **options
            )
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"resize": "short", "size": 48},
        {"resize": "squash", "size": 40, "upscale": True},
        {"resize": "long", "size": 64},
        {"resize": "center_crop", "size": 40, "trim_borders": True},
        {"resize": "none"},
        {"resize": "none", "trim_borders": True, "depth_range": "image"},
        {"resize": "short", "size": 48, "depth_range": "0,4095"},
    ],
    ids=str,
)
def test_a_file_is_shown_as_its_stored_record(photos, options, tmp_path):
    convert(
        ConvertConfig(
            source=photos / "raw",
            output=tmp_path,
            encoding="png",
            splits="test=1",
            engine="inline",
            report=False,
            **options,
        )
    )
    data = pipeline.open_dataset(tmp_path)
    run = SimpleNamespace(
        config=SimpleNamespace(image_size=SIZE),
        preprocessing={"crop_fraction": 0.875, "stored": stored_as(data.manifest)},
    )
    shown = {}
    for batch in data.eval_batches("test", input_config(run, batch_size=4, replicas=1)):
        kept = batch["weight"].numpy() > 0
        shown |= dict(zip(batch["record"].numpy()[kept].tolist(), batch["image"].numpy()[kept], strict=True))
    images = list(model_input.stored_images(data, "test", range(18)))
    assert len(shown) == 18
    for record, (_, _, name) in enumerate(data.records("test", range(18))):
        file = (photos / "raw" / name).read_bytes()
        assert (shown[record] == model_input.preprocess(images[record], run)).all(), name
        loaded = load_rgb(file, model_input.converter_options(run))
        assert (shown[record] == model_input.preprocess(loaded, run)).all(), name


def test_an_unreadable_record_is_none(tiny_data, tmp_path):
    shutil.copytree(tiny_data, tmp_path / "data")
    shard = next((tmp_path / "data").glob("*-test.tfrecord-00000*[0-9]"))
    content = bytearray(shard.read_bytes())
    content[60] ^= 1
    shard.write_bytes(content)
    first, second = model_input.stored_images(pipeline.open_dataset(tmp_path / "data"), "test", [0, 1])
    assert first is None and second.shape[2] == 3
