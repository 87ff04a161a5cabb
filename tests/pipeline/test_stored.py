"""Nothing that was read from disk is believed before it was checked."""

import json
import os
import re
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import pytest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.stored import Count, Sha256, load, parse, save, stored_path


@dataclass(frozen=True)
class Part:
    file: Annotated[str, msgspec.Meta(pattern=r"^[^/\x00]+\Z")]
    sha256: Sha256
    sizes: tuple[Count, ...] = ()


@dataclass(frozen=True)
class Thing:
    name: str
    parts: dict[str, Part] = field(default_factory=dict)


CONTENT = {"name": "Äpfel", "parts": {"a": {"file": "a.bin", "sha256": "0" * 64, "sizes": [1, 2]}}}


def read(path):
    return load(path, Thing, format="thing/1", remedy="make it again")


def damaged(path, data):
    path.write_bytes(data)
    with pytest.raises(UsageError) as refusal:
        read(path)
    text = str(refusal.value)
    assert text.startswith(str(path)) and text.endswith("; make it again") and "\n" not in text, text
    return text


@pytest.fixture
def stored(tmp_path):
    save(tmp_path / "thing.json", CONTENT, format="thing/1")
    return tmp_path / "thing.json"


def test_what_was_saved_is_loaded(stored):
    assert read(stored) == Thing("Äpfel", {"a": Part("a.bin", "0" * 64, (1, 2))})
    assert list(json.loads(stored.read_text())) == ["format", "name", "parts", "checksum"]


def test_any_flipped_bit_and_any_cut_is_found(stored):
    good = stored.read_bytes()
    for i in range(len(good)):
        for bit in range(8):
            damaged(stored, good[:i] + bytes([good[i] ^ 1 << bit]) + good[i + 1 :])
        damaged(stored, good[:i])


def sealed(stored, content, format="thing/1"):
    """What somebody writes who knows how the checksum is made."""
    save(stored, content, format=format)
    return stored.read_bytes()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"name": 5}, "got `int` - at `$.name`"),
        ({"name": None}, "got `null` - at `$.name`"),
        ({"parts": []}, "at `$.parts`"),
        ({"parts": {"a": {"file": "a", "sha256": "0" * 63}}}, "sha256`"),
        ({"parts": {"a": {"file": "a", "sha256": "0" * 64 + "\n"}}}, "sha256`"),
        ({"parts": {"a": {"file": "../a", "sha256": "0" * 64}}}, "file`"),
        ({"parts": {"a": {"file": "a\0", "sha256": "0" * 64}}}, "file`"),
        ({"parts": {"a": {"file": "a", "sha256": "0" * 64, "sizes": [0, -5]}}}, "sizes[1]`"),
        ({"parts": {"a": {"file": "a", "sha256": "0" * 64, "sizes": ["8"]}}}, "sizes[0]`"),
        ({"parts": {"a": {"file": "a", "sha256": "0" * 64, "sizes": [2**60]}}}, "sizes[0]`"),
    ],
)
def test_a_value_of_another_type_or_range_is_named(stored, change, where):
    assert where in damaged(stored, sealed(stored, CONTENT | change))


def test_a_missing_value_is_named(stored):
    assert "missing required field `name`" in damaged(stored, sealed(stored, {"parts": {}}))


def test_another_format_is_told_before_anything_else(stored):
    message = damaged(stored, sealed(stored, {"strange": 1}, format="thing/2\x1b"))
    assert r"has format thing/2\x1b, this program reads thing/1" in message


@pytest.mark.parametrize("data", [b"", b"\0" * 99, b"[" * 200_000, b'{"a":' * 200_000, b'"\xff"', b"[1", b"null", b"7"])
def test_junk_is_refused_in_a_line(stored, data):
    damaged(stored, data)


def test_deep_nesting_is_refused_where_anything_may_stand():
    with pytest.raises(UsageError, match="it is damaged"):
        parse('{"a":' * 200_000, dict, what="it", remedy="remedy")


def test_a_huge_file_is_refused_unread(stored):
    os.truncate(stored, 1 << 40)  # sparse
    with pytest.raises(UsageError, match="more than the 67,108,864 allowed"):
        read(stored)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UsageError, match="is no regular file"):
            load(path, Thing, format="thing/1", remedy="make it again")
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path, Thing, format="thing/1", remedy="make it again")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


@pytest.mark.parametrize(
    "name",
    ["../a.bin", "/etc/a.bin", "b/a.bin", "a.bin\0", "a.bin\n", ".", "..", "", "other.txt", "a.bin/..", "\x1b.bin/"],
)
def test_a_name_that_leads_elsewhere_becomes_no_path(tmp_path, name):
    with pytest.raises(UsageError) as refusal:
        stored_path(tmp_path, name, r".*\.bin|\.\.?|", what="list.json")
    assert str(refusal.value).startswith("list.json names the file ") and "\x1b" not in str(refusal.value)


def test_a_name_of_the_expected_form_becomes_a_path(tmp_path):
    assert stored_path(tmp_path, "a.bin", re.compile(r"\w\.bin"), what="list.json") == tmp_path / "a.bin"
