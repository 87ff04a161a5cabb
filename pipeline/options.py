"""Config fields that carry their own help, choices and range: one definition for Python callers, flags and reports.

    @dataclass(frozen=True)
    class ThumbnailConfig:
        source: str = option("", "folder of images")
        size: int = option(256, "length of the short side, in pixels", low=1)

        def __post_init__(self) -> None:
            check_options(self)

`pipeline.cli.run` makes a command of such a class: every field is a flag of the same name. No TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from shardline.pipeline.errors import UsageError

C = TypeVar("C")


@dataclass(frozen=True)
class Option:
    """What a config field is, beyond its type and default.

    Attributes:
      help: one line that stands alone, with the unit and, where it is not plain, the default's reason.
      choices: the allowed values; empty for any.
      low, high: the smallest and largest allowed value.
      above, below: bounds that are not allowed themselves.
      also: allowed values outside these bounds, e.g. -1 for "automatic".
      parse: text from the command line, or a value from Python -> the field's value; raises ValueError with the
        remedy. For fields that are no plain bool, int, float, str or tuple of str.
      text: value -> text, for --help; the default of such a field may be text, too.
      positional: arguments that are no flags go to this field.
      group: heading under which --help lists the flag.
      flag: whether a command has it as a flag.
    """

    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    also: tuple[float, ...] = ()
    parse: Callable[[Any], Any] | None = None
    text: Callable[[Any], str] = str
    positional: bool = False
    group: str = ""
    flag: bool = True

    def range_text(self, whole: bool) -> str:
        """The allowed numbers in words, e.g. `a whole number from 1 to 100`; "" if there is no bound."""
        number = "a whole number" if whole else "a number"
        if self.low is not None and self.high is not None:
            words = f"{number} from {self.low:g} to {self.high:g}"
        elif self.low is not None:
            words = f"{number} of at least {self.low:g}" + (f", below {self.below:g}" if self.below is not None else "")
        elif self.above is not None:
            end = f", at most {self.high:g}" if self.high is not None else ""
            words = f"{number} above {self.above:g}" + (f", below {self.below:g}" if self.below is not None else end)
        else:
            return ""
        return words + "".join(f", or {value:g}" for value in self.also)

    def allows(self, value: float) -> bool:
        """Whether a number is within the bounds; NaN never is, infinity only where nothing bounds it."""
        return value in self.also or (
            math.isfinite(value)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def option(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field with an `Option`; `facts` are that class's other attributes."""
    return dataclasses.field(default=default, metadata={"option": Option(help, **facts)})


def pair(value: str | Sequence[float]) -> tuple[float, float]:
    """`0.35,1`, or any two numbers: for `Option.parse`."""
    try:
        first, second = map(float, value.split(",") if isinstance(value, str) else value)
    except (ValueError, TypeError):
        raise ValueError("needs two numbers, e.g. 0.35,1") from None
    return first, second


def pair_text(value: tuple[float, float]) -> str:
    """Inverse of `pair`."""
    return ",".join(f"{number:g}" for number in value)


@lru_cache(maxsize=64)
def options(config: Any) -> dict[str, tuple[Option, type, bool, Any]]:
    """By field: its option, plain type (bool, int, float, str, tuple or object), whether None is allowed, default."""
    hints = typing.get_type_hints(config)
    found = {}
    for field in dataclasses.fields(config):
        if "option" not in field.metadata:
            continue
        hint, optional = hints[field.name], False
        if isinstance(hint, types.UnionType):
            (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
            optional = True
        kind = typing.get_origin(hint) or hint
        plain = kind if kind in (bool, int, float, str, tuple) else object
        found[field.name] = (field.metadata["option"], plain, optional, field.default)
    return found


def check_options(config: Any) -> None:
    """Check and convert each field of a new frozen dataclass: call it in `__post_init__`.

    Text is parsed where the field has a `parse`, paths become str, lists become tuples.

    Raises:
      UsageError: a value that cannot work; the message names the field, the value and what would work.
    """
    config_class: Any = type(config)
    for name, (facts, kind, optional, _) in options(config_class).items():
        value = getattr(config, name)
        if value is None and optional:
            continue
        object.__setattr__(config, name, _checked(name, value, facts, kind))


def narrowed(config: Any, base: type[C]) -> C:
    """The part of a config that is `base`'s: a config class inherits the fields that it shares with another."""
    return base(**{field.name: getattr(config, field.name) for field in dataclasses.fields(base)})  # type: ignore[arg-type]


def _checked(name: str, value: Any, facts: Option, kind: type) -> Any:
    given = value
    try:
        if facts.parse:
            value = facts.parse(value)
        elif kind is bool:
            if not isinstance(value, bool):
                raise ValueError("use true or false")
        elif kind is int:
            value = operator.index(value) if not isinstance(value, bool) else None
        elif kind is float:
            value = float(value) if not isinstance(value, (str, bool)) else None
        elif kind is str:
            value = os.fsdecode(value) if isinstance(value, (str, os.PathLike)) else None
        elif kind is tuple:
            value = tuple(map(os.fsdecode, value)) if not isinstance(value, str) else (value,)
        if value is None:
            raise TypeError
    except TypeError:
        wanted = {int: "a whole number", float: "a number", str: "text", tuple: "a list of text"}.get(kind, "text")
        raise UsageError(f"--{name}={given}: use {wanted}") from None
    except ValueError as error:
        raise UsageError(f"--{name}={given}: {error}") from None
    if facts.choices and value not in facts.choices:
        raise UsageError(f"--{name}={given}: use one of {', '.join(facts.choices)}")
    if kind in (int, float) and not facts.parse and not facts.allows(value):
        raise UsageError(f"--{name}={given}: use {facts.range_text(kind is int) or 'a finite number'}")
    return value
