"""What a stored record's bytes promise, checked against TensorFlow's own reader and message classes."""

import contextlib
import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardline.pipeline.example import encode_example, own_pixels, parse_example
from shardline.pipeline.manifest import Features
from shardline.pipeline.tfrecord import frame_record, unframe_record


@pytest.mark.parametrize("label", [0, 1, 127, 128, 999, 2**31])
def test_tensorflow_reads_back_what_was_encoded(label):
    import tensorflow as tf

    image = bytes(range(256)) * 3
    example = tf.train.Example.FromString(encode_example(image, label, "äöü/日本.jpg", 375, 500))
    feature = example.features.feature
    assert feature["image"].bytes_list.value[:] == [image]
    assert feature["label"].int64_list.value[:] == [label]
    assert feature["image/filename"].bytes_list.value[0].decode() == "äöü/日本.jpg"
    assert (feature["image/height"].int64_list.value[0], feature["image/width"].int64_list.value[0]) == (375, 500)
    assert len(feature) == 5


def test_equal_inputs_give_equal_bytes_in_every_process():
    code = (
        "from shardline.pipeline.example import encode_example; from shardline.pipeline.tfrecord import frame_record;"
        "print(frame_record(encode_example(b'x', 3, 'a.jpg', 1, 2)).hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert outputs == {frame_record(encode_example(b"x", 3, "a.jpg", 1, 2)).hex() + "\n"}


def test_frames_are_tfrecords(tmp_path):
    import tensorflow as tf

    payloads = [b"", b"a", b"b" * 70_000]
    path = tmp_path / "x.tfrecord"
    path.write_bytes(b"".join(map(frame_record, payloads)))
    assert list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) == payloads


def test_every_flipped_byte_of_a_frame_is_noticed():
    framed = frame_record(b"payload")
    assert unframe_record(framed) == b"payload"
    for position in range(len(framed)):
        damaged = bytearray(framed)
        damaged[position] ^= 0x10
        with pytest.raises(ValueError):
            unframe_record(bytes(damaged))
    for length in range(len(framed)):
        with pytest.raises(ValueError):
            unframe_record(framed[:length])


def test_negative_numbers_are_refused():
    for label, height, width in ((-2, 1, 1), (0, -1, 1), (0, 1, -1)):
        with pytest.raises(ValueError, match="negative"):
            encode_example(b"", label, "", height, width)


# ----------------------------------------------------------------------------------------------- parsing


@given(
    st.binary(max_size=300), st.integers(0, 2**40), st.text(max_size=40), st.integers(0, 70_000), st.integers(0, 70_000)
)
def test_parsing_undoes_encoding(image, label, filename, height, width):
    example = parse_example(encode_example(image, label, filename, height, width), Features())
    assert (bytes(example.image), example.label, example.filename) == (image, label, filename)
    assert (example.height, example.width) == (height, width)
    assert own_pixels(memoryview(encode_example(image, label, filename, height, width))) == (image, label, "", 0, 0)


@pytest.mark.parametrize("size", [0, 1, 110, 127, 128, 16_000, 16_383, 16_384, 2_100_000])
@pytest.mark.parametrize("label", [-1, 0, 127, 128, 2**31])
def test_own_examples_are_read_in_one_look(size, label):
    image = bytes(range(256)) * (size // 256 + 1)
    assert own_pixels(memoryview(encode_example(image[:size], label, "", 375, 500))) == (image[:size], label, "", 0, 0)


def test_other_examples_are_left_to_the_parser():
    """Of other writers; and cut, or with any length that is too long for what follows."""
    own = encode_example(b"image bytes", 5, "a.jpg", 10, 20)
    others = [own[:length] for length in range(len(own))] + [own + b"x", own.replace(b"label", b"labex")]
    others += [own.replace(b"image/width", b"image/depth"), b"\xff" * 3_000_000, b"\x0a" + b"\xff" * 70]
    start = own.index(b"image bytes")
    others += [
        own[: start - 1] + bytes(varint) + own[start:] for varint in ([10], [12], [0xFF, 1], [0xFF] * 4 + [0x7F])
    ]
    assert [own_pixels(memoryview(other)) for other in others] == [None] * len(others)


def test_foreign_examples_parse_like_tensorflow_reads_them():
    import tensorflow as tf

    # The layout of the ImageNet shards: other names, labels from 1, floats in between, unpacked or missing numbers.
    example = tf.train.Example()
    feature = example.features.feature
    feature["image/encoded"].bytes_list.value.append(b"pixels")
    feature["image/class/label"].int64_list.value.append(1000)
    feature["image/object/bbox/xmin"].float_list.value.extend([0.1, 0.2])
    feature["image/channels"].int64_list.value.append(-3)
    feature["image/nothing"].SetInParent()
    names = Features(
        "image/encoded", "image/class/label", filename="", height="", width="image/channels", label_offset=-1
    )
    found = parse_example(example.SerializeToString(), names)
    assert (bytes(found.image), found.label, found.filename, found.height, found.width) == (b"pixels", 999, "", 0, -3)


def test_unpacked_integers_are_read():
    def field(tag, value):
        return bytes([tag, len(value)]) + value

    label = field(0x0A, field(0x0A, b"label") + field(0x12, field(0x1A, b"\x08\x07")))  # field 1 as a plain varint
    image = field(0x0A, field(0x0A, b"image") + field(0x12, field(0x0A, field(0x0A, b"pixels"))))
    assert parse_example(field(0x0A, image + label), Features()).label == 7


@given(st.data())
def test_damaged_examples_are_refused_not_misread(data):
    whole = encode_example(b"image bytes", 5, "a.jpg", 10, 20)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError):
        parse_example(whole[:cut], Features())
    junk = data.draw(st.binary(max_size=60))
    with contextlib.suppress(ValueError):  # any other exception would be a bug
        parse_example(junk, Features())


@pytest.mark.parametrize("missing", ["image", "label"])
def test_an_example_without_what_is_needed_is_refused(missing):
    names = dataclasses.replace(Features(), **{missing: "elsewhere"})
    with pytest.raises(ValueError, match="elsewhere"):
        parse_example(encode_example(b"x", 1, "a", 1, 1), names)
