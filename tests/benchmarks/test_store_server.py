"""The store that benchmarks read from: what a client of S3 gets of it, and an epoch of a dataset in it."""

import pytest

from shardline.benchmarks import bench_object_store
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import CONTROL
from shardline.benchmarks.store_server import served
from shardline.pipeline import object_store
from shardline.pipeline.object_store import Store
from tests.pipeline.tiny import payloads, write_dataset

pytestmark = pytest.mark.object_store


def test_a_folder_is_served_whole_in_ranges_and_as_a_list(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file & more").write_bytes(bytes(range(256)) * 1000)
    with served(tmp_path, 0) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        object_store.client.cache_clear()
        store = Store("s3://data/a")
        assert {name: file.size for name, file in store.files().items()} == {"b/file & more": 256_000}
        assert store.read("b/file & more") == bytes(range(256)) * 1000
        assert store.read_range("b/file & more", 255_990, 100) == bytes(range(246, 256))
        with pytest.raises(FileNotFoundError):
            store.read("b/none")
    object_store.client.cache_clear()


@pytest.mark.slow
def test_the_suite_reads_every_image_of_an_epoch_in_each_way(tmp_path):
    data = write_dataset(tmp_path / "data", {"train": payloads(4500)}, shards=4)
    config = BenchConfig(
        data=str(data), output=str(tmp_path / "report"), suite="object_store", repeats=1, image_size=32, threads=1,
        workers=0, shuffle_block_size=1,
    )  # fmt: skip
    rows = {row.name: row for row in bench_object_store.measure(config)}
    ours = {value for name, value in vars(bench_object_store).items() if name.isupper() and isinstance(value, str)}
    assert rows.keys() == (ours | {CONTROL}) - {bench_object_store.BUCKET}
    assert all(row.median > 0 for row in rows.values())
