"""Conversions into and out of object stores: the bytes of a local one, whatever fails on the way, and nothing half."""

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

import pytest

from shardline.pipeline import object_store, workers
from shardline.pipeline.dataset import open_dataset
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import owner
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.object_store import Store
from shardline.pipeline.remote import DataCacheOptions
from shardline.tools.browse import BrowseConfig, browse
from shardline.tools.conversion.run import convert
from shardline.tools.conversion.scan import scan
from shardline.tools.inspect import InspectConfig, inspect
from shardline.tools.verify import VerifyConfig, verify
from tests.pipeline.stores import store_bucket
from tests.tools.conversion.test_resume import wait_for
from tests.tools.folders import ROOT, class_folders, config, draw

pytestmark = pytest.mark.object_store
pytest.importorskip("boto3")
pytest.importorskip("moto.server")

SHARDS = 3


@pytest.fixture(scope="module")
def server(request):
    with store_bucket(getattr(request, "param", "s3")) as bucket:
        yield bucket


also_google = pytest.mark.parametrize("server", ["s3", "gs"], indirect=True)


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(object_store, "_PAUSE_SECONDS", 0)
    server.clear()
    for name in server.files(""):
        server.client.delete_object(Bucket="bucket", Key=name)
    contents = server.client.list_objects_v2(Bucket="bucket").get("Contents", ())
    for entry in contents:
        server.client.delete_object(Bucket="bucket", Key=entry["Key"])
    object_store.client.cache_clear()
    monkeypatch.setattr(workers, "_pool", workers._Pool())  # those of earlier tests know another server
    yield server
    workers._pool.close()
    object_store.client.cache_clear()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """60 images; two of them are the same, in two splits, so that shards are made anew in the end."""
    folder = tmp_path_factory.mktemp("s")
    class_folders(folder, 3, 12, "train")
    class_folders(folder, 3, 8, "test")
    (folder / "test/class1/copy.jpg").write_bytes((folder / "train/class1/img_003.jpg").read_bytes())
    (folder / "train/class2/broken.jpg").write_bytes(b"no image")
    return folder


OPTIONS = {"shards": SHARDS, "duplicates": "drop", "report": True}


@pytest.fixture(scope="module")
def local(source, tmp_path_factory):
    """Content by name of the same conversion into a folder."""
    output = tmp_path_factory.mktemp("local") / "d"
    convert(config(source, output, **OPTIONS))
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def without_page(files, *more):
    """What is the same whenever it is made: not the page, which tells how long that took."""
    return {name: content for name, content in files.items() if name not in ("report.html", *more)}


@pytest.mark.parametrize(
    ("server", "engine"), [("s3", "inline"), ("s3", "processes"), ("gs", "processes")], indirect=["server"]
)
def test_a_store_gets_the_bytes_of_a_folder_and_each_shard_is_put_once(bucket, source, local, engine):
    manifest = convert(config(source, f"{bucket.url}/out", engine=engine, workers=2, **OPTIONS))
    found = bucket.files("out")
    assert found.keys() == local.keys()
    assert without_page(found) == without_page(local)
    assert b"train/class2/broken.jpg" in found["report.html"]
    puts = [request for request in bucket.requests if request.startswith("PUT")]
    assert len(puts) == len(set(puts)) + sum("manifest" in put for put in puts) - 1  # and no part of a larger one
    assert "manifest.json" in puts[-1]
    assert manifest.digest == Manifest.parse(found["manifest.json"], what="").digest
    assert not os.path.exists(f"{bucket.scheme}:")


@also_google
def test_a_finished_conversion_is_found_and_writes_nothing(bucket, source, capsys):
    convert(config(source, f"{bucket.url}/out", **OPTIONS))
    bucket.clear()
    convert(config(source, f"{bucket.url}/out", verify=True, **OPTIONS))
    assert "is finished already" in capsys.readouterr().err
    assert not [request for request in bucket.requests if request.startswith(("PUT", "DELETE", "POST"))]
    name = next(name for name in bucket.files("out") if name.endswith("-of-00003"))
    content = bucket.get(f"out/{name}")
    bucket.put(f"out/{name}", content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UsageError, match=f"output={bucket.url}/out: the SHA-256 of {name} is not the manifest's"):
        convert(config(source, f"{bucket.url}/out", verify=True, **OPTIONS))
    bucket.put(f"out/{name}", content[:-1])
    with pytest.raises(UsageError, match=f"output={bucket.url}/out: {name} is missing or has another size"):
        convert(config(source, f"{bucket.url}/out", **OPTIONS))
    with pytest.raises(UsageError, match=rf"output={bucket.url}/out holds another dataset.*seed=0 then, 1 now"):
        convert(config(source, f"{bucket.url}/out", seed=1, **OPTIONS))


def test_overwrite_deletes_what_a_conversion_wrote_and_nothing_else(bucket, source, local):
    convert(config(source, f"{bucket.url}/out", **{**OPTIONS, "shards": 5}))
    bucket.put("out/notes.txt", b"mine")
    bucket.put("out/.convert/thesis.doc", b"mine")
    convert(config(source, f"{bucket.url}/out", overwrite=True, **OPTIONS))
    found = bucket.files("out")
    assert found.pop("notes.txt") == found.pop(".convert/thesis.doc") == b"mine"
    assert without_page(found) == without_page(local)


def test_a_folder_with_something_else_is_refused(bucket, source):
    bucket.put("out/thesis.doc", b"mine")
    with pytest.raises(UsageError, match=rf"output={bucket.url}/out is not empty \(thesis.doc\) and holds no dataset"):
        convert(config(source, f"{bucket.url}/out", **OPTIONS))
    assert bucket.files("out") == {"thesis.doc": b"mine"}


def start(source, output, environment):
    args = ["--source", source, "--output", output, "--size", 16, "--shards", 12, "--workers", 2, "--noreport"]
    command = [sys.executable, "-m", "shardline.tools.convert", "--name", "images", *map(str, args)]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@also_google
def test_a_killed_conversion_continues_anywhere_without_its_finished_shards(bucket, tmp_path, monkeypatch):
    source = class_folders(tmp_path / "s", 3, 20, height=1200, width=1600)
    convert(config(source, tmp_path / "d", shards=12))
    whole = {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()}
    process = start(source, f"{bucket.url}/out", bucket.environment)
    done = lambda: [r for r in bucket.requests if re.match(r"PUT .*receipt\.arrow", r)]  # noqa: E731
    wait_for(lambda: len(done()) >= 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    there = bucket.files("out")
    assert "manifest.json" not in there and ".lock" in there
    finished = {name.removesuffix(".receipt.arrow") for name in there if name.endswith(".receipt.arrow")}
    assert finished and finished <= there.keys()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another host's"))
    bucket.clear()
    convert(config(source, f"{bucket.url}/out", shards=12))
    written = {request.split("/bucket/out/")[1] for request in bucket.requests if request.startswith("PUT")}
    assert not finished & written
    assert bucket.files("out") == whole


@pytest.fixture
def more(tmp_path):
    """Ten new images, two of them of a new class, and one that the dataset has."""
    folder = class_folders(tmp_path / "m", 2, 4, "train/new")
    for path in list((folder / "train" / "new").iterdir()):
        shutil.move(path, folder / "train" / path.name)
    (folder / "train" / "new").rmdir()
    for number in range(2):
        draw(folder / "train" / "zebra" / f"{number}.jpg", 7000 + number)
    return folder


def here(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_pages(files):
    return {name: content for name, content in files.items() if not name.endswith("report.html")}


@also_google
def test_a_generation_in_a_store_is_the_one_on_disk_and_interrupted_it_continues(bucket, source, local, more, tmp_path):
    shutil.copy(source / "train/class1/img_002.jpg", more / "train/class1/copy.jpg")
    shutil.copytree(source, tmp_path / "grown")
    shutil.copytree(more, tmp_path / "grown", dirs_exist_ok=True)
    added = {"append": True, **OPTIONS}
    for name, content in local.items():
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(content)
        bucket.put(f"out/{name}", content)
    wanted = convert(config(tmp_path / "grown", tmp_path / "d", **added))
    assert wanted.num_generations == 2 and wanted.ledger.duplicates == 2
    bucket.clear(["PUT .*manifest", 503])
    with pytest.raises(Failure, match="503"):
        convert(config(tmp_path / "grown", f"{bucket.url}/out", **added))
    bucket.clear()
    old = bucket.files("out")
    assert {name: old[name] for name in local} == local  # the dataset as it was, whole
    assert convert(config(tmp_path / "grown", f"{bucket.url}/out", **added)).digest == wanted.digest
    written = [request for request in bucket.requests if request.startswith("PUT")]
    assert "manifest.json" in written[-1] and not [put for put in written if ".convert/train-" in put]
    assert without_pages(bucket.files("out")) == without_pages(here(tmp_path / "d"))
    assert verify(VerifyConfig(data=f"{bucket.url}/out", workers=1)).faults == ()
    bucket.clear()
    assert convert(config(tmp_path / "grown", f"{bucket.url}/out", **added)).digest == wanted.digest
    assert not [request for request in bucket.requests if request.startswith("PUT") and ".lock" not in request]
    convert(config(source, f"{bucket.url}/out", overwrite=True, **OPTIONS))
    assert without_pages(bucket.files("out")) == without_pages(local)
    assert not os.path.exists(f"{bucket.scheme}:")


def test_adding_to_what_is_no_dataset_is_refused_in_one_line(bucket, more):
    with pytest.raises(UsageError, match=rf"append: output={bucket.url}/none holds no manifest\.json, so it is no"):
        convert(config(more, f"{bucket.url}/none", append=True))


@also_google
def test_a_finished_shard_is_known_by_its_etag_and_another_one_is_read_and_written_again(bucket, source, tmp_path):
    convert(config(source, tmp_path / "d", shards=SHARDS))
    bucket.clear(["PUT .*manifest", 503])
    with pytest.raises(Failure):
        convert(config(source, f"{bucket.url}/out", shards=SHARDS))
    bucket.clear(["PUT .*manifest", 503])
    with pytest.raises(Failure):
        convert(config(source, f"{bucket.url}/out", shards=SHARDS))
    shards = [f"/.convert/{split}-0000{n}" for split in ("train", "test") for n in range(SHARDS)]
    asked = lambda verb: [r for r in bucket.requests if r.startswith(verb) and r.endswith(tuple(shards))]  # noqa: E731
    assert not asked("PUT /bucket") and not asked("GET")  # nothing was converted or read again
    content = bucket.get("out/.convert/train-00001")
    bucket.put("out/.convert/train-00001", content[:-1] + bytes([content[-1] ^ 1]))  # the same size
    bucket.put("out/.convert/train-00002", bucket.get("out/.convert/train-00002") + b"")  # written again, the same
    bucket.clear()
    convert(config(source, f"{bucket.url}/out", shards=SHARDS))
    assert {request.split()[1].rpartition("/")[2] for request in asked("PUT")} >= {"train-00001"}
    assert not [request for request in asked("PUT") if "train-00000" in request or "train-00002" in request]
    assert without_page(bucket.files("out")) == without_page(here(tmp_path / "d"))


@also_google
def test_two_conversions_into_one_place_are_told_apart(bucket, source, local):
    theirs = "process 7 on elsewhere, started 2026-01-01 00:00:00 +0000"
    bucket.put("out/.lock", f"{theirs}\nnonce\n".encode())
    with pytest.raises(
        Failure, match=rf"output={bucket.url}/out is in use by {re.escape(theirs)}; .* delete {bucket.url}/out/\.lock"
    ):
        convert(config(source, f"{bucket.url}/out", **OPTIONS))
    assert bucket.files("out").keys() == {".lock"}
    bucket.put("out/.lock", f"{owner()}\nnonce\n".encode())
    with pytest.raises(Failure, match=f"is in use by process {os.getpid()} on {socket.gethostname()}, started"):
        convert(config(source, f"{bucket.url}/out", **OPTIONS))
    bucket.put("out/.lock", f"process {2**22 - 1} on {socket.gethostname()}, started 2026\nnonce\n".encode())
    convert(config(source, f"{bucket.url}/out", **OPTIONS))  # of a process of this host that has ended
    assert without_page(bucket.files("out")) == without_page(local)


FAULTS = [
    [["PUT .*tfrecord", 500, 2], ["PUT .*receipt", 503, 2], ["GET .*list-type", 503, 2]],
    [["PUT .*train-0000[01]$", "reset", 2], ["PUT .*receipt", "lost", 3], ["PUT .*\\.lock", "lost", 1]],
    [["GET .*receipt", "cut", 3], ["GET .*list-type", "reset", 1], ["PUT .*manifest", "lost", 1]],
    [["GET .*", "slow"], ["DELETE .*", 500, 2], ["PUT .*lock", 429, 2], ["PUT .*manifest", 429, 1]],
    # Requests to S3 are signed with the hash of what they carry. Those to Google are not: TLS vouches for it.
    [["PUT .*tfrecord", "spoilt", 2], ["PUT .*train-0000[01]$", "spoilt", 2], ["PUT .*receipt", "spoilt", 1]],
]


@pytest.mark.parametrize(
    ("server", "faults"),
    [*(("s3", faults) for faults in FAULTS), *(("gs", faults) for faults in FAULTS[:3])],
    indirect=["server"],
)
def test_a_store_that_fails_now_and_then_gets_the_same_bytes(bucket, source, local, faults):
    bucket.clear(*faults)
    convert(config(source, f"{bucket.url}/out", **OPTIONS))
    bucket.clear()
    assert without_page(bucket.files("out")) == without_page(local)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (["PUT .*train-00001$", 503], "503.*4 times; check the network"),
        (["PUT .*", 403], "403.*; check the credentials"),
        (["PUT .*receipt", "reset"], "4 times; check the network"),
    ],
)
def test_a_store_that_keeps_failing_ends_in_one_line_and_the_next_run_continues(bucket, source, local, fault, message):
    bucket.clear(fault)
    with pytest.raises(Failure, match=message) as failure:
        convert(config(source, f"{bucket.url}/out", **OPTIONS))
    assert str(failure.value).startswith(f"{bucket.url}/out/") and "\n" not in str(failure.value)
    bucket.clear()
    assert "manifest.json" not in bucket.files("out") and ".lock" not in bucket.files("out")
    convert(config(source, f"{bucket.url}/out", **OPTIONS))
    assert without_page(bucket.files("out")) == without_page(local)


def images(where):
    data = open_dataset(where, DataCacheOptions(tempfile.mkdtemp()))
    return [image for image, _, _ in data.records("train", range(data.num_records("train")))]


flipped = lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]  # noqa: E731


@pytest.mark.parametrize(
    ("server", "how"),
    [*(("s3", how) for how in (500, 503, "reset", "cut", "slow", flipped)), ("gs", 503), ("gs", "cut")],
    indirect=["server"],
)
def test_what_fails_now_and_then_is_read_right(bucket, local, tmp_path, how):
    for name, content in local.items():
        bucket.put(f"out/{name}", content)
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(content)
    files = [r"tfrecord-00000-of-0000\d$", "tfrecord-00001", "train.index"] + ["manifest", "list-type"] * (
        how != flipped
    )
    bucket.clear(*(["GET .*" + name, how, 2] for name in files))
    assert images(f"{bucket.url}/out") == images(tmp_path / "d")


@pytest.mark.parametrize(
    ("how", "remedy"),
    [
        (403, "check the credentials"),
        ((400, "ExpiredToken"), "the credentials have expired: renew them"),
        ((401, "AuthenticationRequired"), "check the credentials"),
        ((301, "PermanentRedirect"), "in another region: name it by AWS_REGION"),
        ((400, "AuthorizationHeaderMalformed"), "in another region: name it by AWS_REGION"),
    ],
)
@pytest.mark.parametrize("writing", [True, False])
def test_what_will_not_pass_is_one_line_at_once(bucket, source, local, how, remedy, writing, caplog):
    for name, content in {} if writing else local.items():
        bucket.put(f"out/{name}", content)
    bucket.clear(["PUT .*train-00001" if writing else "GET .*tfrecord-00000", how])
    with pytest.raises(Failure, match=f"^{bucket.url}/out/.*; .*{remedy}") as failure:
        convert(config(source, f"{bucket.url}/out", **OPTIONS)) if writing else images(f"{bucket.url}/out")
    assert "\n" not in str(failure.value) and "trying again" not in caplog.text
    if writing:
        bucket.clear()
        assert "manifest.json" not in bucket.files("out") and ".lock" not in bucket.files("out")


@also_google
def test_half_an_upload_is_no_file(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(object_store, "_PART_BYTES", 5 << 20)
    (tmp_path / "shard").write_bytes(bytes(range(256)) * (12 << 12))
    bucket.clear([r"PUT .*partNumber=2", 503])
    with pytest.raises(Failure, match=rf"{bucket.url}/out/shard: .*503.*4 times"):
        Store(f"{bucket.url}/out").put("shard", tmp_path / "shard")
    assert bucket.files("out") == {}
    bucket.clear(
        [r"PUT .*partNumber=2", 503, 1], [r"PUT .*partNumber=1", "spoilt" if bucket.scheme == "s3" else 503, 1]
    )
    Store(f"{bucket.url}/out").put("shard", tmp_path / "shard")
    assert bucket.files("out") == {"shard": (tmp_path / "shard").read_bytes()}


@also_google
def test_a_missing_bucket_is_one_line(bucket, source):
    with pytest.raises(UsageError, match=rf"data={bucket.scheme}://none/out: no manifest\.json there"):
        images(f"{bucket.scheme}://none/out")
    with pytest.raises(
        UsageError, match=rf"^{bucket.scheme}://none/out: there is no such bucket; make it, or check the"
    ):
        convert(config(source, f"{bucket.scheme}://none/out", **OPTIONS))


@also_google
def test_images_in_a_store_give_the_bytes_of_a_folder(bucket, source, local, tmp_path):
    bucket.upload(source, "photos")
    bucket.put("photos/train/class0/", b"")  # what consoles make a folder of
    bucket.clear(["GET .*class1", 500, 2], ["GET .*img_002", "cut", 2])
    convert(config(f"{bucket.url}/photos", tmp_path / "d", workers=2, **{**OPTIONS, "engine": "processes"}))
    found = {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir() if path.is_file()}
    here = {name: content for name, content in local.items() if "/" not in name}
    assert without_page(found, ".sources.json") == without_page(here, ".sources.json")


def test_hidden_folders_in_a_store_are_noted(bucket, source, tmp_path):
    bucket.upload(source, "photos")
    bucket.put("photos/train/.net/1.jpg", b"x")
    bucket.put("photos/.git/HEAD", b"x")
    assert scan(f"{bucket.url}/photos").notes == ("left out 1 hidden folder with images (train/.net)",)


@also_google
def test_changed_images_in_a_store_are_told_by_their_etag(bucket, source, tmp_path, capsys):
    bucket.upload(source, "photos")
    run = config(f"{bucket.url}/photos", tmp_path / "d", **OPTIONS)
    convert(run)
    bucket.clear()
    convert(run)
    assert not [request for request in bucket.requests if ".jpg" in request.split("?")[0]]  # nothing was read again
    path = "photos/train/class0/img_004.jpg"
    content = bucket.get(path)
    bucket.put(path, content[:-1] + b"x")
    with pytest.raises(UsageError, match=r"1 input changed since, e\.g\. train/class0/img_004\.jpg"):
        convert(run)
    bucket.put(path, content)
    convert(run)


@also_google
@pytest.mark.parametrize("facts", [True, False])
def test_an_inventory_in_a_store_gives_the_bytes_of_one_on_disk(bucket, source, tmp_path, facts):
    paths = sorted(str(path.relative_to(source)) for path in source.rglob("*.jpg"))
    rows = [{"path": path, "label": path.split("/")[1], "split": path.split("/")[0]} for path in paths]
    write_table(source / "list.csv", rows)
    convert(config(source / "list.csv", tmp_path / "local", **OPTIONS))
    (source / "list.csv").unlink()
    bucket.upload(source, "photos")
    for row in rows if facts else ():
        head = bucket.client.head_object(Bucket="bucket", Key=f"photos/{row['path']}")
        row |= {"size": head["ContentLength"], "etag": head["ETag"]}
    rows[3]["path"] = f"{bucket.url}/photos/{rows[3]['path']}"
    write_table(tmp_path / "list.csv", rows)
    bucket.put("photos/list.csv", (tmp_path / "list.csv").read_bytes())
    bucket.clear()
    convert(config(f"{bucket.url}/photos/list.csv", tmp_path / "d", **OPTIONS))
    assert bool([request for request in bucket.requests if "list-type" in request]) is not facts
    for name in ("manifest.json", "sources.parquet"):
        assert (tmp_path / "d" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    rows[0]["path"] = "s3://other/x.jpg"
    write_table(tmp_path / "list.csv", rows)
    with pytest.raises(UsageError, match=r"s3://other/x\.jpg does not lie below the table's folder"):
        convert(config(tmp_path / "list.csv", tmp_path / "e", **OPTIONS))


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_sources_that_cannot_be_are_refused_in_one_line(bucket, source, tmp_path):
    for name, message in {
        f"{bucket.url}/nothing": f"source={bucket.url}/nothing: nothing is there; check the address",
        f"{bucket.scheme}://none/x": f"source={bucket.scheme}://none/x: nothing is there",
        f"{bucket.url}/x.zip": "archives are read from disk only",
        f"{bucket.url}/x.csv": "there is no such table",
        "train=https://host/x": "https: is not known; name s3://BUCKET",
    }.items():
        with pytest.raises(UsageError, match=message):
            convert(config(name, tmp_path / "d"))
    with pytest.raises(UsageError, match=f"output={bucket.url}/photos/d lies inside source={bucket.url}/photos"):
        convert(config(f"{bucket.url}/photos", f"{bucket.url}/photos/d"))


@also_google
def test_browsing_a_store_shows_what_a_folder_shows_and_fetches_no_shard(bucket, local, tmp_path):
    for name, content in local.items():
        bucket.put(f"out/{name}", content)
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(content)
    bucket.clear()
    found = []
    for where in (str(tmp_path / "d"), f"{bucket.url}/out"):
        with browse(BrowseConfig(data=where)) as server:
            index = server.content.index
            example = index.data.shards("train").read(20)
            found.append((index.paths.to_pylist(), index.facts(20), bytes(example.image), example.filename))
    assert found[0] == found[1]
    assert not [path for path in index.data.directory.glob("*.tfrecord-*") if path.suffix != ".idx"]


@also_google
def test_verify_and_inspect_look_into_a_store(bucket, source, local):
    convert(config(source, f"{bucket.url}/out", **OPTIONS))
    found = verify(VerifyConfig(data=f"{bucket.url}/out", workers=2))
    assert found.faults == () and found.checked == found.records > 50
    bucket.clear()
    text = inspect(InspectConfig(data=f"{bucket.url}/out", record="train:20"))
    assert re.search(r"label    \d \(class\d\)", text)
    name = next(name for name in local if name.endswith("-of-00003"))
    content = bucket.get(f"out/{name}")
    bucket.put(f"out/{name}", content[:50] + bytes([content[50] ^ 1]) + content[51:])
    (fault,) = [line for line in verify(VerifyConfig(data=f"{bucket.url}/out", workers=1)).faults if name in line]
    assert "its SHA-256 is not the one in the manifest" in fault
