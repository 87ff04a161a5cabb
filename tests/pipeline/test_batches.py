"""A batch is a function of its positions; a bad record costs that record and nothing else. No TensorFlow."""

import os
import shutil

import cv2
import numpy as np
import pytest
import simplejpeg

from shardline.pipeline.augment_params import AugmentParams
from shardline.pipeline.batches import BadRecords, BatchBuilder
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import Failure
from shardline.pipeline.example import encode_example
from shardline.pipeline.manifest import ImageFormat, Manifest
from shardline.pipeline.shards import Shards
from shardline.pipeline.tfrecord import FRAME_BYTES
from tests.pipeline.tiny import LABELS, encode, image, payloads, write_dataset


def reader(directory, bad=None, split="train", encoding="jpeg", exact=False, **config):
    config = InputConfig(**{"global_batch_size": 8, "image_size": 16, "max_bad_records": 100} | config)
    shards = Shards(Manifest.load(directory), directory, split)
    return BatchBuilder(shards, config, ImageFormat(encoding), bad=bad, exact=exact)


EVERYTHING = {
    "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "random_erasing": 0.5, "randaugment_layers": 2,
    "mixup": 0.2, "cutmix": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["default", "everything"])
def test_a_batch_is_cut_from_one_stream_wherever_it_starts(tiny, on_device, options):
    batches = reader(tiny, **options)
    step = 2  # pairs are mixed
    stream = [batches.train(np.arange(p, p + step), on_device) for p in range(0, 80, step)]
    for start in (0, 6, 30, 36, 38, 72):
        for rows in (2, 8):
            batch = batches.train(np.arange(start, start + rows), on_device)
            for name, value in batch.items():
                expected = np.concatenate([part[name] for part in stream[start // step : (start + rows) // step]])
                np.testing.assert_array_equal(value, expected, err_msg=name)


def test_pixels_differ_from_epoch_to_epoch_but_not_from_seed_to_same_seed(tiny):
    first, second = (reader(tiny).train(np.arange(start, start + 37), False) for start in (0, 37))
    order = np.argsort(first["record"]), np.argsort(second["record"])
    same = (first["image"][order[0]] == second["image"][order[1]]).all((1, 2, 3))
    assert not same.any()
    again = reader(tiny).train(np.arange(37), False)
    np.testing.assert_array_equal(first["image"], again["image"])
    other = reader(tiny, seed=1).train(np.arange(37), False)
    assert (other["record"] != first["record"]).any()


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
def test_every_encoding_shows_the_stored_images(tmp_path, encoding):
    images = [image(number, 40, 40) for number in range(6)]
    records = [encode_example(encode(pixels, encoding), 1, "", 40, 40) for pixels in images]
    write_dataset(tmp_path, {"train": records}, encoding=encoding)
    whole = {"horizontal_flip": False, "shuffle": False, "crop_area": (1, 1), "crop_ratio": (1, 1)}
    batch = reader(tmp_path, encoding=encoding, **whole).train(np.arange(6), False)
    assert batch["weight"].tolist() == [1] * 6
    for found, pixels in zip(batch["image"], images, strict=True):
        expected = cv2.resize(pixels, (16, 16), interpolation=cv2.INTER_AREA)
        assert np.abs(found.astype(int) - expected).mean() <= (5 if encoding == "jpeg" else 0)


@pytest.mark.parametrize("size", [16, 20, 56, 64])
def test_a_batch_is_what_the_plain_loop_makes(tiny, size):
    """Decode all of it, crop, resize, flip: whatever is left out, or done in another order, shows in no pixel."""
    batches, positions = reader(tiny, image_size=size, crop_area=(0.08, 1)), np.arange(37)
    found, params = batches.train(positions, False), AugmentParams(batches.config, positions)
    for row, record in enumerate(found["record"].tolist()):
        pixels = simplejpeg.decode_jpeg(batches.shards.read(record).image, fastdct=True, fastupsample=True)
        top, left, height, width = params.crop(row, *pixels.shape[:2])
        kernel = cv2.INTER_AREA if max(height, width) > 2 * size else cv2.INTER_LINEAR
        expected = cv2.resize(pixels[top : top + height, left : left + width], (size, size), interpolation=kernel)
        if params.values[row, params.columns["flip"]].any():
            expected = expected[:, ::-1]
        np.testing.assert_array_equal(found["image"][row], expected)


def damaged(tmp_path, harm):
    """A dataset of 12 records in one shard whose bytes `harm` changes after the start, as a failing disk would."""
    write_dataset(tmp_path, {"train": payloads(12)}, shards=1)
    (shard,) = tmp_path.glob("*.tfrecord-00000-of-00001")
    bad = BadRecords()
    batches = reader(tmp_path, bad, shuffle=False)
    _, offset, size = batches.shards.index[5]
    data = bytearray(shard.read_bytes())
    harm(data, int(offset), int(size))
    shard.write_bytes(data)
    return batches, bad, int(offset)


def flip_bit(where):
    def harm(data, offset, size):
        data[offset + where(size)] ^= 0x10

    return harm


def zero(length):
    def harm(data, offset, size):
        data[offset : offset + length] = bytes(length)

    return harm


def cut(share):
    def harm(data, offset, size):
        del data[offset + int(size * share) :]

    return harm


# What is done to record 5 of 12, and which records that costs: the expected-loss table.
LOSSES = {
    "bit of the length": (flip_bit(lambda size: 0), [5]),
    "high bit of the length": (flip_bit(lambda size: 7), [5]),
    "bit of the length's checksum": (flip_bit(lambda size: 9), [5]),
    "first bit of the payload": (flip_bit(lambda size: 12), [5]),
    "bit of the image": (flip_bit(lambda size: size // 2), [5]),
    "bit of the payload's checksum": (flip_bit(lambda size: size - 1), [5]),
    "header zeroed": (zero(FRAME_BYTES), [5]),
    "64 bytes zeroed": (zero(64), [5]),
    "shard cut inside the record": (cut(0.5), [5, 6, 7, 8, 9, 10, 11]),
    "shard cut before the record": (cut(0), [5, 6, 7, 8, 9, 10, 11]),
}


@pytest.mark.parametrize("harm", LOSSES)
def test_damage_costs_exactly_the_records_it_touches(tmp_path, harm):
    change, lost = LOSSES[harm]
    whole = write_dataset(tmp_path / "whole", {"train": payloads(12)}, shards=1)
    batches, bad, offset = damaged(tmp_path, change)
    found = batches.train(np.arange(24), False)
    expected = reader(whole, shuffle=False).train(np.arange(24), False)
    kept = ~np.isin(found["record"], lost)
    assert found["weight"].tolist() == kept.astype(float).tolist()
    for name in ("image", "label", "record", "position"):
        np.testing.assert_array_equal(found[name][kept], expected[name][kept])
    assert not found["image"][~kept].any()
    assert sorted(record for _, record in bad.records) == lost  # distinct ones, though met in two epochs
    assert bad.records["train", 5].shard == "tiny-train.tfrecord-00000-of-00001"
    assert bad.records["train", 5].offset == offset


def unusable(kind):
    good = encode(image(0, 40, 40), "jpeg")
    return {
        "cut JPEG": encode_example(good[: len(good) // 2], 0, "a", 40, 40),
        "no image": encode_example(b"hello", 0, "a", 40, 40),
        "empty image": encode_example(b"", 0, "a", 40, 40),
        "label of no class": encode_example(good, len(LABELS), "a", 40, 40),
        "no Example": b"something else",
        "empty payload": b"",
    }[kind]


@pytest.mark.parametrize(
    "kind", ["cut JPEG", "no image", "empty image", "label of no class", "no Example", "empty payload"]
)
def test_stored_whole_but_unusable_costs_one_record(tmp_path, kind, caplog):
    records = list(payloads(6))
    records[2] = unusable(kind)
    write_dataset(tmp_path, {"train": records}, shards=2)
    bad = BadRecords()
    for _ in range(2):
        batch = reader(tmp_path, bad, shuffle=False).train(np.arange(6), False)
    assert batch["weight"].tolist() == [1, 1, 0, 1, 1, 1]
    assert len(bad) == 1
    assert len(caplog.records) == 1  # named once, with where it lies
    assert "tiny-train.tfrecord-00000-of-00002, offset" in caplog.text


def test_too_many_bad_records_stop_the_run_with_the_flag_to_change(tmp_path):
    records = [b"junk" if n in (1, 3, 4) else record for n, record in enumerate(payloads(6))]
    write_dataset(tmp_path, {"train": records})
    reader(tmp_path, max_bad_records=3).train(np.arange(60), False)
    with pytest.raises(Failure, match="3 bad records, more than max_bad_records=2; the last: record"):
        reader(tmp_path, max_bad_records=2).train(np.arange(6), False)


def test_a_shard_deleted_while_running_stops_the_run(tmp_path, tiny):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    batches = reader(copy)
    for shard in copy.glob("*train.tfrecord*"):
        os.remove(shard)
    with pytest.raises(FileNotFoundError, match=r"train\.tfrecord"):
        batches.train(np.arange(8), False)


def test_bad_records_are_never_mixed_into_others(tmp_path):
    records = [b"junk" if n == 1 else record for n, record in enumerate(payloads(4))]
    write_dataset(tmp_path, {"train": records})
    batch = reader(tmp_path, shuffle=False, mixup=1.0).train(np.arange(4), False)
    plain = reader(tmp_path, shuffle=False).train(np.arange(4), False)
    np.testing.assert_array_equal(batch["image"][:2], plain["image"][:2])
    assert batch["label_share"][:2].tolist() == [1, 1]
    assert (batch["image"][2:] != plain["image"][2:]).any()
