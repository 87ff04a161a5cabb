"""Names from outside are harmless where they are shown."""

import csv
import io
import json
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardline.pipeline.text import csv_cell, display, has_control_characters, json_display

BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"x\x1b]0;owned\x07a.jpg", r"x\x1b]0;owned\x07a.jpg"),
        (b"\xc2\x9b31mred.jpg", r"\x9b31mred.jpg"),  # C1: CSI in one character
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        (b"caf\xe9.jpg", r"caf\xe9.jpg"),  # latin-1, no UTF-8
        ("café \u0645\u0631\u062d\u0628\u0627 🐱.jpg", "café \u0645\u0631\u062d\u0628\u0627 🐱.jpg"),
        ("a\nb\tc", r"a\x0ab\x09c"),
        (os.fsdecode(b"\xff.jpg"), r"\xff.jpg"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(name, shown):
    assert display(name) == shown


@given(st.text(st.characters(codec=None)))
def test_no_text_keeps_a_control_or_a_bidi_control(text):
    # Held against the Unicode database, not our own list.
    for character in display(text):
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(character) not in BIDI
    assert has_control_characters(text) == (display(text) != text)


@given(st.text(st.characters(codec="utf-8")))
def test_json_keeps_its_values(text):
    line = json_display(json.dumps({"path": text}, ensure_ascii=False))
    assert json.loads(line) == {"path": text}
    assert not has_control_characters(line)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_a_spreadsheet_runs_no_cell(start):
    text = io.StringIO()
    csv.writer(text).writerow([csv_cell(start + "cmd|' /C calc'!A0")])
    (cell,) = next(csv.reader(io.StringIO(text.getvalue())))
    assert cell.startswith("'")
    assert csv_cell("plain=1") == "plain=1"
