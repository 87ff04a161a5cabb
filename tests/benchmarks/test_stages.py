"""Stages on tiny datasets: what is damaged does not count, what is empty or unreadable is said in one line."""

from dataclasses import replace

import pytest

from shardline.benchmarks import stages
from shardline.benchmarks.bottleneck import COLD, SEQUENTIAL
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.processes import Rate
from shardline.benchmarks.verdict import HOST_STAGES
from shardline.pipeline import InputConfig, open_dataset
from shardline.pipeline.errors import Failure
from shardline.pipeline.manifest import Manifest, index_path, load_index
from shardline.tools.conversion.run import convert
from tests.tools.folders import class_folders, config

CONFIG = InputConfig(global_batch_size=4, image_size=32, threads=2, max_bad_records=4)


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


def bench(dataset):
    return BenchConfig(data=str(dataset), output=str(dataset / "report"), image_size=32)


def test_every_stage_does_work(dataset):
    with stages.host_stages(open_dataset(dataset), "train", CONFIG, seconds=0.02) as runs:
        for name, run in runs.items():
            assert run().rate > 0, name
    assert set(runs) == {*HOST_STAGES, SEQUENTIAL, *COLD}


def test_damaged_records_take_their_time_and_do_not_count(dataset, capsys, monkeypatch):
    counted = []
    monkeypatch.setattr(stages, "timed", lambda work: counted.append(work()) or Rate(1))
    damage(dataset, 3)
    worker = stages.StageWorker(str(dataset), "train", CONFIG, on_device=False)
    for stage in ("augment", "decode"):
        worker(stage, 10, 0, 1, once=True)
    assert counted == [1, 1]  # one pass over four records, three of them damaged
    stages.describe(open_dataset(dataset), bench(dataset), step_on_host=False)
    assert "3 of 4 sampled records of train cannot be decoded (record 0: " in capsys.readouterr().err


def test_processes_share_one_pass_between_them(dataset, monkeypatch):
    counted = []
    monkeypatch.setattr(stages, "timed", lambda work: counted.append(work()) or Rate(1))
    worker = stages.StageWorker(str(dataset), "train", replace(CONFIG, global_batch_size=1), on_device=False)
    for first in range(3):
        worker("augment", 10, first, 3, once=True)
    assert counted == [2, 1, 1]


def test_nothing_readable_is_refused(dataset):
    damage(dataset, 4)
    with pytest.raises(Failure, match=r"4 of 4 sampled records of train .* shardline-verify"):
        stages.describe(open_dataset(dataset), bench(dataset), step_on_host=False)


def test_dropped_pages_are_counted_without_reading_them_again(dataset):
    files = list(dataset.glob("*.tfrecord-*-of-?????"))
    files[0].read_bytes()
    with files[0].open("rb") as file:
        assert all(stages._resident_pages(file.fileno()))
    kept = stages.drop_page_cache(files)
    assert kept == -1 or 0 <= kept <= 1  # -1 where the file system does not tell
    with files[0].open("rb") as file:
        pages = stages._resident_pages(file.fileno())
    assert kept == -1 or sum(pages) / len(pages) == kept


def test_a_run_from_disk_begins_with_nothing_in_memory(dataset, monkeypatch):
    events = []
    monkeypatch.setattr(stages, "drop_page_cache", events.append)
    paths = stages.files(open_dataset(dataset), "train")
    run = stages.from_disk(lambda: events.append("run") or Rate(1.0), paths)
    assert run() == run() == Rate(1.0) and events == [paths, "run"] * 2


def test_each_cold_run_is_preceded_by_a_drop_whose_success_is_noted(dataset, monkeypatch):
    monkeypatch.setattr(stages, "drop_page_cache", lambda files: 0.25)
    kept = []
    with stages.host_stages(open_dataset(dataset), "train", CONFIG, seconds=0.02, kept=kept) as runs:
        for name in (*COLD, "storage"):
            runs[name]()
    assert kept == [0.25, 0.25]


def test_batches_are_counted_by_their_readable_images(dataset):
    damage(dataset, 1)
    batches = stages.Batches(str(dataset), "train", CONFIG)
    rate = batches(0.02).rate
    assert rate > 0
    assert batches._take(iter(batches._batches), 3) == 9.0  # an epoch of four is a batch, with one damaged


@pytest.mark.parametrize(
    ("stored", "image", "smaller"),
    [(256, 224, (224,)), (512, 224, (384, 256)), (4000, 224, (512, 256)), (224, 224, ()), (40, 32, ())],
)
def test_smaller_sizes_cover_the_training_size(stored, image, smaller):
    assert stages.smaller_sizes(stored, image) == smaller


def test_advice_on_sizes_goes_by_the_stored_pixels_and_not_by_the_option(tmp_path):
    photos = class_folders(tmp_path / "photos", classes=1, images=3, height=100, width=140)
    for folder, size, flags, found in (("enlarged", 512, "--size 96", 100), ("small", 80, "--size 72", 80)):
        convert(config(photos, tmp_path / folder, size=size))
        facts = stages.describe(
            open_dataset(tmp_path / folder), replace(bench(tmp_path), image_size=64), step_on_host=False
        )
        assert facts.stored_size == found and next(iter(facts.smaller)) == flags
    assert facts.smaller["--size 72"] == pytest.approx((72 / 80) ** 2)
    assert facts.smaller.keys() == {"--size 72"}  # 64 would leave no margin
