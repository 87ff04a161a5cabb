"""Words in messages: counts with their nouns, long names and long lists cut short. No TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 file`, `1,200 files`, `2 classes`; an irregular plural is given."""
    return f"{number:,} {noun if number == 1 else plural or _regular(noun)}"


def last_line(text: str, otherwise: str = "no message") -> str:
    """What a process that failed said last."""
    return (text.strip().splitlines() or [otherwise])[-1]


def noun_after(number: float, noun: str) -> str:
    """The noun alone, as it stands after a number: `epoch` after 1, `epochs` after 0.5 and 2."""
    return noun if number == 1 else _regular(noun)


def _regular(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) and not noun.endswith("epoch") else "s")


def decimal(number: float) -> str:
    """About four digits of a number, never with an exponent: `12,346`, `1.235`, `0.0123`, `0.00002`."""
    if not math.isfinite(number) or not number:
        return f"{number:g}"
    exponent = math.floor(math.log10(abs(number)))
    places = max(0, 3 - exponent) if exponent >= 0 else min(max(4, -exponent), 12)
    text = f"{number:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def shorten(text: str, length: int) -> str:
    """At most `length` characters, the last an ellipsis when some are left out."""
    return text if len(text) <= length else text[: length - 1] + "…"


def shorten_middle(text: str, length: int = 22) -> str:
    """At most `length` characters, cut in the middle: the ends of class and file names tell them apart."""
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return text[: length - 1 - end] + "…" + text[-end:]


def as_flag(value: object) -> str:
    """A setting's value as one would type it: `true`, `0.35,1`, `train=0.8,test=0.2`, `auto` for None."""
    if value is None:
        return "auto"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={as_flag(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(as_flag, value))
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def shorten_list(names: Iterable[str], limit: int = 5) -> str:
    """The first names, and how many more there are: `a, b and 7 more`."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit:,} more" if len(listed) > limit else "")
