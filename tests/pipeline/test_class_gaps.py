"""Which classes a split lacks, in words."""

import pytest

from shardline.pipeline.class_gaps import class_gaps

LABELS = ("bird", "cat", "dog")


@pytest.mark.parametrize(
    ("counts", "arguments", "lines"),
    [
        ({"train": (0, 2, 3), "test": (1, 2, 0)}, {}, ["classes in test but not in train: bird",
                                                      "classes in train but not in test: dog"]),
        ({"train": (1, 2, 3), "test": (1, 1, 1)}, {}, []),
        ({"train": (1, 2, 3)}, {}, []),
        ({"train": (1, 2, 3), "test": ()}, {}, []),  # no labels, no counts
        ({"a": (1, 0, 3), "b": (1, 1, 1)}, {}, ["classes in b but not in a: cat"]),
        ({"train": (1, 1, 1), "validation": (0, 1, 1), "test": (1, 0, 1)}, {"split": "test"},
         ["classes in train but not in test: cat"]),
        ({"train": (1, 1, 1), "test": (1, 0, 1)}, {"split": "train"}, []),
        ({"train": (1, 1, 1), "test": (1, 0, 1)}, {"train": "test"}, ["classes in train but not in test: cat"]),
    ],
)  # fmt: skip
def test_gaps_are_named_both_ways(counts, arguments, lines):
    assert class_gaps(LABELS, counts, **arguments) == lines


def test_many_are_counted():
    labels = [f"c{i}" for i in range(20)]
    assert class_gaps(labels, {"train": [1] * 20, "test": [1] + [0] * 19}) == [
        "classes in train but not in test: c1, c2, c3, c4, c5 and 14 more"
    ]
