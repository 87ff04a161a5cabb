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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex, TypeVar

from shardline.pipeline.errors import UsageError
from shardline.pipeline.paths import local_path

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


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
      path: what a text names, one of `paths.KINDS`; "": nothing on disk. `paths.local_path` takes it apart.
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
    path: str = ""
    positional: bool = False
    group: str = ""
    flag: bool = True

    def range_text(self, whole: bool) -> str:
        """The allowed numbers in words, e.g. `a whole number from 1 to 100`."""
        number = "a whole number" if whole else "a number"
        if self.low is not None and self.high is not None:
            words = f"{number} from {self.low:.10g} to {self.high:.10g}"
        else:
            bounds = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
            limits = ", ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)
            words = f"{number} {limits}".replace(f"{number} at", f"{number} of at")
            words = words.strip() if limits or whole else "a finite number"
        return words + "".join(f", or {value:g}" for value in self.also)

    def allows(self, value: float) -> bool:
        """Whether a number is finite and within the bounds, or one of `also`."""
        return value in self.also or (
            (isinstance(value, int) or math.isfinite(value))  # which no whole number above 1e308 can be asked
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True)
class Field:
    """An option with what its dataclass says of it. A bool that may be None is a switch with a third state, "auto".

    Attributes:
      name: of the field and of the flag.
      option: help, choices and range.
      kind: bool, int, float, str, tuple (of str), or object where `Option.parse` makes the value.
      optional: whether None is allowed.
      default: the field's.
    """

    name: str
    option: Option
    kind: type[object]
    optional: bool
    default: object

    @property
    def is_switch(self) -> bool:
        """Whether it is on, off or None: automatic."""
        return self.kind is bool and self.optional

    @property
    def default_text(self) -> str:
        """The default as a person would type it; "" for none."""
        if self.is_switch and self.default is None:
            return "auto"
        if self.default is None or isinstance(self.default, str):
            return self.default or ""
        if self.option.parse:
            return self.option.text(self.default)
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return " ".join(self.default) if isinstance(self.default, tuple) else str(self.default)

    @property
    def wanted(self) -> str:
        """What a value has to be, in words."""
        if self.kind in (int, float):
            return self.option.range_text(self.kind is int)
        return {bool: "true or false", tuple: "a list of text"}.get(self.kind, "text")


def option(default: object, help: str, **facts: Any) -> Any:
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
    """Two numbers for people, with six digits: for `Option.text`."""
    return ",".join(f"{number:g}" for number in value)


@lru_cache(maxsize=64)
def options(config: type[DataclassInstance]) -> dict[str, Field]:
    """The fields of a config class that have an `Option`, by name."""
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
        if kind not in (bool, int, float, str, tuple) or field.metadata["option"].parse:
            kind = object
        found[field.name] = Field(field.name, field.metadata["option"], kind, optional, field.default)
    return found


def check_options(config: DataclassInstance) -> None:
    """Check and convert each field of a new frozen dataclass: call it in `__post_init__`.

    Text is parsed where the field has a `parse`, paths become str, lists become tuples.

    Raises:
      UsageError: a value that cannot work; the message names the field, the value and what would work.
    """
    for name, field in options(type(config)).items():
        object.__setattr__(config, name, value_of(field, getattr(config, name)))


def narrowed(config: DataclassInstance, base: type[C]) -> C:
    """The part of a config that is `base`'s: a config class inherits the fields that it shares with another."""
    return base(**{field.name: getattr(config, field.name) for field in dataclasses.fields(base)})


def from_text(field: Field, given: object) -> object:
    """A number for the text of one, as a command line gives it, and YAML for 1e-3; anything else as it is.

    Raises:
      UsageError: the field is a number and this text is none.
    """
    if field.kind not in (int, float) or not isinstance(given, str):
        return given
    try:
        return int(given) if field.kind is int else float(given)
    except ValueError:
        raise UsageError(f"--{field.name}={given}: use {field.wanted}") from None


def value_of(field: Field, value: object) -> object:
    """What a config of this field's class holds for a value.

    Raises:
      UsageError: a value that cannot work.
    """
    if value is None and field.optional:
        return None
    option = field.option
    try:
        converted = option.parse(value) if option.parse else _converted(field, value)
    except ValueError as error:
        raise UsageError(f"--{field.name}={value}: {error}") from None
    except (TypeError, AttributeError):  # a `parse` that was given neither text nor what it makes of it
        raise UsageError(f"--{field.name}={value!r}: use text, as on a command line") from None
    if option.path:
        converted = _located(field, converted)
    if option.choices and converted not in option.choices:
        raise UsageError(f"--{field.name}={value}: use one of {', '.join(filter(None, option.choices))}")
    if isinstance(converted, (int, float)) and field.kind in (int, float) and not option.allows(converted):
        raise UsageError(f"--{field.name}={value}: use {field.wanted}")
    return converted


def _located(field: Field, value: object) -> object:
    """The paths that a text or several name on this machine; the default may be ""."""
    if isinstance(value, tuple):
        return tuple(_located(field, name) for name in value)
    if value == field.default == "" or not isinstance(value, str):
        return value
    try:
        return local_path(value, field.option.path)
    except ValueError as error:
        raise UsageError(f"--{field.name}={value}: {error}") from None


def _converted(field: Field, value: object) -> object:
    """The value as its field's type. Raises ValueError with the remedy."""
    try:
        if field.kind is bool and isinstance(value, bool):
            return value
        if field.is_switch and value == "auto":
            return None
        if field.kind is int and isinstance(value, SupportsIndex) and not isinstance(value, bool):
            return operator.index(value)
        if field.kind is float and isinstance(value, (SupportsFloat, SupportsIndex)) and not isinstance(value, bool):
            return float(value)
        if field.kind is str and isinstance(value, (str, os.PathLike)):
            return os.fsdecode(value)
        if field.kind is tuple and isinstance(value, (str, os.PathLike)):
            return (os.fsdecode(value),)
        if field.kind is tuple and isinstance(value, Iterable):
            return tuple(map(os.fsdecode, value))
    except (TypeError, OverflowError):
        pass  # e.g. an array of several numbers, or a number that no float holds
    raise ValueError(f"use {field.wanted}")
