"""Rungs on tiny datasets: what is damaged does not count, what is empty or unreadable is said in one line."""

from dataclasses import replace

import pytest

from shardline.benchmarks import stages
from shardline.benchmarks.bottleneck import HOST_STAGES
from shardline.benchmarks.measure import Rate
from shardline.pipeline import InputConfig, open_dataset
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.manifest import Manifest, index_path, load_index
from shardline.tools.conversion.run import convert
from tests.tools.folders import class_folders, config

CONFIG = InputConfig(global_batch_size=4, image_size=32, threads=2)


@pytest.fixture
def dataset(tmp_path):
    """Four images of 40 x 60 in one shard."""
    convert(config(class_folders(tmp_path / "photos", classes=1, images=4), tmp_path / "data", size=40))
    return tmp_path / "data"


def damage(dataset, count):
    """Flip a byte in the payload of the first `count` records."""
    (shard,) = Manifest.load(dataset).split("train").shards
    path = dataset / shard.file
    content = bytearray(path.read_bytes())
    for offset, _ in load_index(index_path(path))[:count].tolist():
        content[offset + 20] ^= 0xFF
    path.write_bytes(content)


def test_every_rung_does_work(dataset):
    data = open_dataset(dataset)
    for name, rung in stages.rungs(data, "train", CONFIG, seconds=0.02).items():
        assert rung().rate > 0, name
    assert set(stages.rungs(data, "train", CONFIG, seconds=0.02)) == {*HOST_STAGES, *stages.COLD}


def test_damaged_records_take_their_time_and_do_not_count(dataset, capsys, monkeypatch):
    counted = []
    monkeypatch.setattr(stages, "timed", lambda work: counted.append(work()) or Rate(1, 1))
    damage(dataset, 3)
    data = open_dataset(dataset)
    stages.rungs(data, "train", replace(CONFIG, threads=1), seconds=10)["augment (cold)"]()
    assert counted == [1]  # one pass over four records, three of them damaged
    stages.facts(data, "train")
    assert "3 of 4 sampled records of train cannot be decoded (record 0: " in capsys.readouterr().err


def test_nothing_readable_and_no_records_are_refused(dataset, monkeypatch):
    damage(dataset, 4)
    with pytest.raises(Failure, match=r"4 of 4 sampled records of train .* tools\.verify"):
        stages.facts(open_dataset(dataset), "train")
    empty = open_dataset(dataset)
    monkeypatch.setattr(empty, "num_records", lambda split: 0)
    with pytest.raises(UsageError, match=r"--split=train .* holds no records"):
        stages.facts(empty, "train")


def test_dropped_pages_are_counted(dataset):
    files = list(dataset.glob("*.tfrecord-*-of-?????"))
    kept = stages.drop_page_cache(files)
    assert kept != kept or 0 <= kept <= 1  # NaN where the file system does not tell
    assert "cache" in stages.cold_cache_text(open_dataset(dataset), "train")


@pytest.mark.parametrize(
    ("stored", "image", "smaller"), [(256, 224, 224), (512, 224, 384), (224, 224, None), (40, 32, None)]
)
def test_the_next_smaller_size_covers_the_training_size(stored, image, smaller):
    assert stages.smaller_size(stored, image) == smaller
