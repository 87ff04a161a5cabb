"""The plan: splits that stay, shares that are met, an order that is shuffled, shards of near-equal size."""

import numpy as np
import pytest

from shardline.pipeline.errors import UsageError
from shardline.tools.conversion.config import ConvertConfig, parse_shares
from shardline.tools.conversion.sources import SourcesBuilder
from shardline.tools.conversion.splits import make_plan

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def listing(names, groups=None):
    """Sources without files: names are CLASS/FILE."""
    builder = SourcesBuilder()
    labels, folders = {}, {}
    for number, name in enumerate(names):
        folder, _, base = name.rpartition("/")
        if folder not in folders:
            folders[folder] = builder.enter(folder.encode())
        builder.add(folders[folder], base.encode(), labels.setdefault(folder, len(labels)), -1, 1000, 0)
        if groups:
            builder.group.append(groups[number])
    return builder.finish("/nowhere", list(labels), (), np.arange(len(labels)), ())


def plan(sources, shares=SHARES, **changes):
    config = ConvertConfig(source="s", output="d", splits=shares, **({"shard_mb": 1} | changes))
    return make_plan(config, sources, record_bytes=1000)


def assignment(sources, **changes):
    made = plan(sources, **changes)
    return {path: made.splits[split] for path, split in zip(sources.paths(), made.split, strict=True)}


def numbered(classes, images, start=0):
    return [f"c{c:02d}/image_{i:05d}.jpg" for c in range(classes) for i in range(start, start + images)]


def test_adding_images_moves_none():
    before = assignment(listing(numbered(10, 50)))
    after = assignment(listing(numbered(12, 90)))
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize("images", [20, 57, 100, 400])
def test_every_class_gets_its_shares_within_two_images(images):
    sources = listing(numbered(30, images, start=801))
    made = plan(sources)
    for label in range(30):
        counts = np.bincount(made.split[sources.label == label], minlength=3)
        for count, share in zip(counts, SHARES.values(), strict=True):
            assert abs(count - share * images) <= 2.5, (label, counts)


def test_names_without_numbers_come_out_as_close_as_coin_tosses():
    names = [f"c{i % 5}/{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}.jpg" for i in range(5000)]
    counts = np.bincount(plan(listing(names)).split)
    for count, share in zip(counts, SHARES.values(), strict=True):
        assert abs(count - share * 5000) < 4 * (5000 * share * (1 - share)) ** 0.5


def test_another_seed_is_another_split_and_order():
    sources = listing(numbered(4, 100))
    one, other = plan(sources), plan(sources, seed=1)
    assert 0.1 < (one.split != other.split).mean() < 0.6
    assert one.digest != other.digest


def test_groups_never_lie_in_two_splits():
    groups = [1 + i // 7 for i in range(700)]
    sources = listing(numbered(7, 100), groups)
    made = plan(sources)
    for group in set(groups):
        assert len(set(made.split[sources.group == group].tolist())) == 1
    assert 0.6 < (made.split == 0).mean() < 0.95


def test_a_number_of_more_digits_than_python_reads_divides_as_others_do():
    names = [f"a/{'9' * 5000}{number:04}.jpg" for number in range(100)]
    assert 0.75 < (plan(listing(names)).split == 0).mean() < 0.85


@pytest.mark.parametrize(("name", "value"), [("seed", 10**60), ("seed", -(10**60)), ("shard_mb", 1e308)])
def test_numbers_that_nothing_can_be_computed_with_are_refused(name, value):
    with pytest.raises(UsageError, match=f"{name}=.*: use a "):
        ConvertConfig(source="s", output="d", **{name: value})


@pytest.mark.parametrize("images", [2, 3, 5, 9])
@pytest.mark.parametrize("seed", range(5))
def test_few_images_come_out_sane(images, seed):
    """Keras' validation_split makes of 5 files and 0.1 no training files at all."""
    shares = {"train": 0.9, "validation": 0.1}
    made = plan(listing(numbered(1, images)), shares, seed=seed)
    counts = np.bincount(made.split, minlength=2)
    assert counts[0] >= counts[1] >= 1
    assert counts[1] <= 2


def test_every_class_can_be_trained():
    sources = listing(numbered(200, 3))
    made = plan(sources, {"train": 0.5, "test": 0.5})
    assert set(sources.label[made.split == 0].tolist()) == set(range(200))


@pytest.mark.parametrize("seed", range(12))
def test_a_group_that_is_a_whole_split_is_not_taken_out_of_it(seed):
    """Neither to fill another split, nor so that the largest has its class."""
    made = plan(listing(["a/1.jpg", "b/2.jpg", "b/3.jpg"], [0, 7, 7]), {"train": 0.5, "test": 0.5}, seed=seed)
    assert np.bincount(made.split, minlength=2).all() and made.split[1] == made.split[2]
    with pytest.raises(UsageError, match="cannot fill 2 splits"):
        plan(listing(["b/2.jpg", "b/3.jpg"], [7, 7]), {"train": 0.5, "test": 0.5}, seed=seed)


def test_splits_that_cannot_be_filled_are_refused():
    with pytest.raises(UsageError, match="cannot fill 3 splits"):
        plan(listing(numbered(1, 2)))
    with pytest.raises(UsageError, match="cannot fill 2 splits"):
        plan(listing(numbered(1, 9), [5] * 9), {"train": 0.5, "test": 0.5})


@pytest.mark.parametrize(
    "text",
    ["train", "train=", "train=0.5", "train=1.5,a=-0.5", "a=0.5,a=0.5", "a=0.5,A=0.5", "a-b=1", "train=nan"],
)
def test_shares_that_are_refused(text):
    with pytest.raises(UsageError, match=r"^splits="):
        ConvertConfig(source="s", output="d", splits=text)


def test_shares_are_read():
    assert parse_shares("train=0.9, validation=0.1") == {"train": 0.9, "validation": 0.1}
    assert parse_shares("") == {}


def test_order_is_a_shuffle_and_shards_tile_it():
    sources = listing(numbered(10, 100))
    made = plan(sources, {}, shards=7)
    members = [inputs for _, _, inputs in made.members()]
    assert sorted(np.concatenate(members).tolist()) == list(range(1000))
    assert {len(inputs) for inputs in members} <= {142, 143}
    for inputs in members:  # every shard is a fair mixture of the classes
        assert np.bincount(sources.label[inputs], minlength=10).min() > 3


@pytest.mark.parametrize(
    ("records", "shards", "expected"),
    [(1, 0, 1), (3, 8, 3), (100, 0, 3), (5000, 0, 19), (10_000, 5, 5), (200_000, 0, 200)],
)
def test_shard_counts(records, shards, expected):
    assert plan(listing(numbered(1, records)), {}, shards=shards).shards == (expected,)
