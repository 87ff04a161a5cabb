"""The sizing page: its table and arithmetic are what the measured rates give."""

import re
from pathlib import Path

import pytest

from shardline.benchmarks.sizing import INDEX_BYTES, KNOWN, Rates, SizingConfig, arithmetic, measured, sizes, table
from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import Ledger, Manifest, Shard, Split, shard_name
from shardline.pipeline.stored import LIMIT_BYTES

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "sizing.md"


def test_the_page_shows_what_the_measured_rates_give():
    rates, config = measured(), SizingConfig()
    wanted = f"<!-- sizing -->\n\n{table(config, rates)}\n\n{arithmetic(config, rates)}\n\n<!-- end -->"
    assert wanted in PAGE.read_text(), f"{PAGE} has to say:\n{wanted}"


def test_the_text_around_it_follows_from_the_same_rates():
    rates = measured()
    text = " ".join(PAGE.read_text().split())
    assert f"reads some {round(rates.gpu_images * rates.record_bytes / 1e7) * 10} MB/s of JPEGs" in text
    assert "some 200 bytes each, and may have 64 MB: from 300,000 shards on" in text
    million = (PAGE.parents[1] / "guides/million_images.md").read_text()
    assert f"A million photographs of 256 px are about {round(rates.record_bytes / 1e4) * 10} GB" in million


def test_without_measurements_it_says_where_there_are_some(tmp_path):
    with pytest.raises(UsageError, match="is not there: a package comes without measurements; run"):
        measured(tmp_path / "results")


def test_a_manifest_of_300_000_shards_is_still_read(tmp_path):
    sizes = []
    for number in (1000, 2000):
        shards = tuple(
            Shard(shard_name("dataset", "train", n, 300_000), 5000, 128_000_000, "0" * 64) for n in range(number)
        )
        ledger = Ledger(5000 * number, 5000 * number)
        Manifest("dataset", ("a",), {"train": Split("train", shards)}, ledger).save(tmp_path)
        sizes.append((tmp_path / "manifest.json").stat().st_size)
    each = (sizes[1] - sizes[0]) / 1000
    assert 180 < each < 220 and 300_000 * each < LIMIT_BYTES


def test_the_arithmetic_by_hand():
    rates = Rates(convert_seconds=0.0036, record_bytes=25_600, read_seconds=0.001, gpu_images=1000)
    config = SizingConfig(cores=10, hours=1, epochs=2, gpus=4, core_price=0.05, gpu_price=2, shard_mb=128)
    assert list(sizes(10_000_000, config, rates).values()) == [
        *("10,000,000", "256 GB", "2,000", "80 MB", "10", "1", "$0.5", "5.56", "1.39", "$11.1"),
    ]
    assert INDEX_BYTES * KNOWN["a billion"] == 8 * 10**9


def test_a_number_of_ones_own():
    (head, _, first, *_) = table(SizingConfig(images=250_000_000), measured()).splitlines()
    assert head == "| | images |" and first == "| images | 250,000,000 |"
    assert re.search(r"at \$0.03 a core-hour", table(SizingConfig(images=5, core_price=0.03), measured()))
