"""Text from outside (file names, class names, messages) made safe for a terminal, JSON lines and spreadsheets.

A file may be called anything: escape sequences that retitle or repaint a terminal, marks that turn the reading
direction, a formula. Names are stored as they are and made harmless where they are shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

# C0 and DEL, C1, line and paragraph separators, what turns the reading direction, and bytes that are no UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # full-width ones, too


def display(name: bytes | str) -> str:
    r"""A name or a line of text as a terminal may get it: control characters and stray bytes are escaped as \x1b."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    return _UNSAFE.sub(_escaped, text)


def has_control_characters(text: str) -> bool:
    """Whether `display` would change the text."""
    return _UNSAFE.search(text) is not None


def json_display(line: str) -> str:
    r"""A line of JSON with the same characters written as \u001b: the same values, harmless on a terminal."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def parse_json(text: str) -> Any:
    """JSON in which no object has a name twice, of which Python would take the last. Raises ValueError."""
    return json.loads(text, object_pairs_hook=unique)


def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """What an object holds. Raises ValueError for a name that is there twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is given twice; leave one")
        found[name] = value
    return found


def csv_cell(text: str) -> str:
    """A cell that a spreadsheet shows as text and never runs as a formula: `'` in front of those it would run."""
    return f"'{display(text)}" if text.startswith(_FORMULA) else display(text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as the file system's decoding keeps it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
