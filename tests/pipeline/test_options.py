"""A config class takes what can work, converts it, and refuses the rest by field, value and remedy."""

import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import Option, narrowed, options, pair, pair_text
from shardline.tools.conversion.config import ConvertConfig
from shardline.trainer.config import TrainConfig
from tests.pipeline.command import BaseConfig, CommandConfig


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"size": np.int64(5)}, 5),
        ({"rate": np.float32(0.25)}, 0.25),
        ({"pause": 3}, 3.0),
        ({"pause": -1}, -1.0),
        ({"fail": Path("a/b")}, "a/b"),
        ({"inputs": "one"}, ("one",)),
        ({"inputs": ["one", Path("two")]}, ("one", "two")),
        ({"ratio": "0.5,2"}, (0.5, 2.0)),
        ({"ratio": [1, 2]}, (1.0, 2.0)),
        ({"limit": None}, None),
        ({"limit": 3}, 3),
        ({"quiet": True}, True),
        ({"hidden": 9}, 9),
    ],
)
def test_values_become_what_the_field_holds(given, stored):
    ((name, _),) = given.items()
    found = getattr(CommandConfig(**given), name)
    assert found == stored and type(found) is type(stored)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"size": 0}, "size=0: use a whole number from 1 to 1000"),
        ({"size": 1001}, "size=1001: use a whole number from 1 to 1000"),
        ({"size": 10**400}, "use a whole number from 1 to 1000"),
        ({"size": 2.0}, "size=2.0: use a whole number from 1 to 1000"),
        ({"size": "5"}, "size=5: use a whole number from 1 to 1000"),
        ({"size": True}, "size=True: use a whole number from 1 to 1000"),
        ({"size": None}, "size=None: use a whole number from 1 to 1000"),
        ({"size": np.array([1, 2])}, "size=[1 2]: use a whole number from 1 to 1000"),
        ({"seed": -1}, "seed=-1: use a whole number of at least 0"),
        ({"rate": 0}, "rate=0: use a number above 0, below 1"),
        ({"rate": 1}, "rate=1: use a number above 0, below 1"),
        ({"rate": math.nan}, "rate=nan: use a number above 0, below 1"),
        ({"rate": "0.5"}, "rate=0.5: use a number above 0, below 1"),
        ({"rate": 10**400}, "use a number above 0, below 1"),
        ({"pause": -2}, "pause=-2: use a number of at least 0, or -1"),
        ({"pause": math.inf}, "pause=inf: use a number of at least 0, or -1"),
        ({"mode": "medium"}, "mode=medium: use one of slow, fast"),
        ({"mode": 3}, "mode=3: use text"),
        ({"quiet": 1}, "quiet=1: use true or false"),
        ({"quiet": "yes"}, "quiet=yes: use true or false"),
        ({"limit": 0}, "limit=0: use a whole number of at least 1"),
        ({"inputs": 3}, "inputs=3: use a list of text"),
        ({"inputs": [3]}, "inputs=[3]: use a list of text"),
        ({"ratio": (1,)}, "ratio=(1,): needs two numbers, e.g. 0.35,1"),
        ({"ratio": "1,x"}, "ratio=1,x: needs two numbers, e.g. 0.35,1"),
        ({"size": 13}, "size=13: brings bad luck; use size=14, or mode=slow"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(given, complaint):
    with pytest.raises(UsageError) as refusal:
        CommandConfig(**given)
    assert complaint in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_usage_error_is_no_value_error():
    # Bad records are ValueErrors, and passed over: a mistake of the user's must not be.
    assert not issubclass(UsageError, ValueError)


def test_ranges_in_words():
    said = [
        Option("", low=1, high=9).range_text(True),
        Option("", high=9).range_text(True),
        Option("", below=9).range_text(False),
        Option("", above=0, high=1, also=(-1, 5)).range_text(False),
        Option("").range_text(True),
        Option("").range_text(False),
    ]
    assert said == [
        "a whole number from 1 to 9", "a whole number of at most 9", "a number below 9",
        "a number above 0, at most 1, or -1, or 5", "a whole number", "a finite number",
    ]  # fmt: skip


def test_fields_say_what_they_are():
    found = options(CommandConfig)
    assert [field.name for field in found.values()][:2] == ["size", "seed"]  # inherited fields come first
    kinds = {name: (field.kind, field.optional) for name, field in found.items()}
    assert kinds["limit"] == (int, True) and kinds["inputs"] == (tuple, False) and kinds["ratio"] == (object, False)
    assert found["ratio"].default_text == "0.75,1.33333" and found["limit"].default_text == ""


def test_the_part_of_another_class():
    narrow = narrowed(CommandConfig(size=5, seed=3, rate=0.25), BaseConfig)
    assert narrow == BaseConfig(size=5, seed=3) and type(narrow) is BaseConfig
    with pytest.raises(FrozenInstanceError):
        narrow.size = 6


def test_pairs_are_text_for_people():
    assert pair(pair_text((0.35, 1.0))) == (0.35, 1.0)
    assert pair_text((3 / 4, 4 / 3)) == "0.75,1.33333"


@pytest.mark.parametrize("value", [None, 3, 2.5, object(), [None], {"a": None}])
def test_a_value_of_no_kind_that_a_parser_knows_is_one_line(value):
    with pytest.raises(UsageError, match=r"^ratio="):
        CommandConfig(ratio=value)
    for field, config in (("splits", ConvertConfig), ("phases", TrainConfig)):
        if value is not None and not isinstance(value, dict):
            with pytest.raises(UsageError, match=f"^{field}="):
                config(**{field: value})
