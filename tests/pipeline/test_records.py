"""What a stored record's bytes promise, checked against TensorFlow's own reader and message classes."""

import subprocess
import sys

import pytest

from pipeline.records import encode_example, frame_record, unframe_record


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
    code = "from pipeline.records import *; print(frame_record(encode_example(b'x', 3, 'a.jpg', 1, 2)).hex())"
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
    with pytest.raises(ValueError, match="negative"):
        encode_example(b"", -1, "", 1, 1)
