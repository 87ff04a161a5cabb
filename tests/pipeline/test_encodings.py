"""Each encoding writes what other decoders read, reads it back, and tells what is not its own."""

import io
import subprocess
import sys
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
from PIL import Image

from shardline.pipeline.batches import BatchBuilder
from shardline.pipeline.config import InputConfig
from shardline.pipeline.encodings import ENCODINGS, WRITABLE, Encoding, recognize
from shardline.pipeline.example import Example, encode_example
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.manifest import ImageFormat, Manifest
from shardline.pipeline.shards import Shards
from tests.pipeline.tiny import encode, image, write_dataset

IMAGE = image(3, 40, 56)


def example(data, height=40, width=56):
    return Example(memoryview(data), 0, "", height, width)


def planes(rgb, encoding):
    """What the converter hands to an encoder."""
    if not encoding.subsampled:
        return [cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)]
    luma, red, blue = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb))
    half = (-(-rgb.shape[1] // 2), -(-rgb.shape[0] // 2))
    return [luma, *(cv2.resize(plane, half, interpolation=cv2.INTER_AREA) for plane in (blue, red))]


def by_others(data, name):
    """The image as Pillow or NumPy reads it."""
    if name == "raw":
        return np.frombuffer(data, np.uint8).reshape(IMAGE.shape)
    found = Image.open(io.BytesIO(data))
    assert found.format.lower() == name
    return np.asarray(found)


@pytest.mark.parametrize("name", WRITABLE)
def test_what_is_written_is_what_others_read_and_what_is_read_back(name):
    encoding = ENCODINGS[name]
    data = encoding.encode(planes(IMAGE, encoding), ImageOptions(quality=95))
    expected = by_others(data, name)
    assert np.abs(expected.astype(int) - IMAGE).mean() <= (4 if encoding.lossy else 0)
    np.testing.assert_array_equal(encoding.decode(example(data), exact=True), expected)


def test_the_quality_option_reaches_the_encoder():
    jpeg = ENCODINGS["jpeg"]
    sizes = [len(jpeg.encode(planes(IMAGE, jpeg), ImageOptions(quality=quality))) for quality in (30, 90, 100)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("stored", "name"), [(a, b) for a in WRITABLE for b in WRITABLE])
def test_an_image_is_at_fault_in_a_dataset_of_another_encoding_alone(stored, name):
    data = example(encode(IMAGE, stored))
    assert recognize(data) == stored
    assert bool(ENCODINGS[name].fault(data)) == (stored != name)
    assert not ENCODINGS["any"].fault(data)


def test_faults_name_what_is_there_and_what_should_be():
    assert ENCODINGS["jpeg"].fault(example(encode(IMAGE, "png"))) == "a png image in a dataset of jpeg"
    assert ENCODINGS["raw"].fault(example(bytes(99))) == "99 raw bytes are not 40x56 pixels"
    assert ENCODINGS["raw"].fault(example(b"", 0, 0))  # no image has no pixels
    assert recognize(example(b"something else")) == "any"


@pytest.mark.parametrize(
    ("options", "expected"),
    [  # The number of shards follows from these, so they may not change: (256 * 256 * 1.35 = 88,473.6 pixels)
        ({}, 27_782),
        ({"quality": 100, "upscale": True}, 35_389),
        ({"quality": 100}, 30_000),  # no more than the source
        ({"encoding": "png"}, 159_252),
        ({"encoding": "raw"}, 265_420),
        ({"resize": "squash", "encoding": "raw"}, 196_608),
        ({"resize": "none"}, 30_000),
        ({"resize": "none", "encoding": "png"}, 180_000),
        ({"resize": "none", "encoding": "raw"}, 300_000),
    ],
)
def test_expected_sizes(options, expected):
    options = ImageOptions(**options)
    assert ENCODINGS[options.encoding].expected_bytes(30_000, options) == expected


def test_the_converter_offers_what_can_be_written():
    (field,) = (field for field in fields(ImageOptions) if field.name == "encoding")
    assert field.metadata["option"].choices == WRITABLE == ("jpeg", "png", "raw")
    with pytest.raises(NotImplementedError, match="any"):
        ENCODINGS["any"].encode([IMAGE], ImageOptions())


class Negative(Encoding):
    """Raw pixels, inverted."""

    name = "negative"
    self_describing = False

    def decode(self, example, *, exact=False, window=None, checked=False):
        return 255 - ENCODINGS["raw"].decode(example, exact=exact, window=window, checked=checked)


def test_a_new_encoding_is_an_object_in_one_file(tmp_path, monkeypatch):
    records = [encode_example(encode(255 - IMAGE, "raw"), 1, "", 40, 56)] * 2
    write_dataset(tmp_path, {"train": records}, encoding="raw", shards=1)
    monkeypatch.setitem(ENCODINGS, "negative", Negative())
    manifest = replace(Manifest.load(tmp_path), image=ImageFormat("negative"))
    config = InputConfig(image_size=40, crop_area=(1, 1), crop_ratio=(1.4, 1.4), horizontal_flip=False)
    batch = BatchBuilder(Shards(manifest, tmp_path, "train"), config, manifest.image).train(np.arange(2), False)
    assert batch["weight"].tolist() == [1, 1]
    np.testing.assert_array_equal(batch["image"][0], cv2.resize(IMAGE, (40, 40), interpolation=cv2.INTER_LINEAR))


def test_names_are_known_without_opencv():
    code = "import sys; from shardline.pipeline.image_options import ImageOptions; assert 'cv2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
