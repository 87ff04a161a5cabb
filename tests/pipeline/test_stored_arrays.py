"""Stored arrays come back as they were, or a line says that they do not."""

import io
import zipfile

import google_crc32c
import numpy as np
import pytest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.stored_arrays import load_arrays, save_arrays

ARRAYS = {
    "model/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.uint8),
    "turned": np.arange(6).reshape(2, 3).T,
    "names": np.array(["a", "ü"]),
}


def read(path):
    return load_arrays(path, format="arrays/1", remedy="make it again")


def refusal(path):
    with pytest.raises(UsageError) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("; make it again")
    return str(caught.value)


@pytest.fixture
def stored(tmp_path):
    save_arrays(tmp_path / "x.npz", {"step": 7, "best": None}, ARRAYS, format="arrays/1")
    return tmp_path / "x.npz"


def test_what_was_saved_is_loaded_and_numpy_opens_it(stored):
    header, arrays = read(stored)
    assert header == {"step": 7, "best": None}
    with np.load(stored, allow_pickle=False) as other:  # an oracle that is not us
        assert set(other.files) == {"header", *ARRAYS}
        for name, array in ARRAYS.items():
            assert arrays[name].dtype == array.dtype == other[name].dtype
            assert np.array_equal(arrays[name], array) and np.array_equal(other[name], array)
    assert [path.name for path in stored.parent.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_any_flipped_bit_and_any_cut_is_found(stored, every):
    good = stored.read_bytes()
    for i in range(0, len(good), every):
        stored.write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
        refusal(stored)
        if i % 3 == 0:
            stored.write_bytes(good[:i])
            refusal(stored)


def with_right_checksum(path, data):
    """What somebody writes who knows how the last checksum is made."""
    path.write_bytes(data[:-8] + google_crc32c.Checksum(data[:-8]).hexdigest())


def test_behind_the_last_checksum_every_array_has_its_own(stored):
    good = stored.read_bytes()
    changed = good.replace(ARRAYS["model/kernel"].tobytes(), (ARRAYS["model/kernel"] + 1).tobytes())
    assert changed != good
    with_right_checksum(stored, changed)
    assert "Bad CRC-32" in refusal(stored) or "SHA-256" in refusal(stored)
    at = good.index(b'"step": 7')
    with_right_checksum(stored, good[: at + 8] + b"8" + good[at + 9 :])
    assert "damaged" in refusal(stored)


def test_forged_members_are_refused_unallocated(stored):
    good = stored.read_bytes()
    huge = good.replace(b"(2, 3), }", b"(2,10**9)")
    assert huge != good
    with_right_checksum(stored, huge)
    refusal(stored)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.npy", bytes(10**8))  # a bomb
        archive.comment = b"crc32c 00000000"
    with_right_checksum(stored, data.getvalue())
    assert "cannot have its size" in refusal(stored)


def test_another_format_and_another_file_are_told_apart(stored, tmp_path):
    with pytest.raises(UsageError, match="has format arrays/1, this program reads arrays/2"):
        load_arrays(stored, format="arrays/2", remedy="make it again")
    np.savez(tmp_path / "old.npz", header=np.array("{}"))
    assert "its checksum does not match" in refusal(tmp_path / "old.npz")
    (tmp_path / "empty.npz").write_bytes(b"")
    refusal(tmp_path / "empty.npz")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.npz")
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path)
