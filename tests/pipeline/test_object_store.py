"""Folders of object stores: what lies there is read, written and listed under its own name, or one line says why."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from shardline.pipeline import object_store
from shardline.pipeline.errors import Failure, UsageError, explain
from shardline.pipeline.object_store import Store
from shardline.pipeline.paths import local_path
from shardline.pipeline.working_copy import WorkingCopy
from tests.pipeline.stores import store_bucket

pytestmark = pytest.mark.object_store
pytest.importorskip("boto3")
pytest.importorskip("moto.server")


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(request):
    with store_bucket(request.param) as bucket:
        yield bucket


@pytest.fixture
def bucket(server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "_PAUSE_SECONDS", 0)
    server.clear()
    object_store.client.cache_clear()
    yield server
    object_store.client.cache_clear()


NAMES = [
    "a b",
    "a+b",
    "a%20b",
    "100%",
    "é",
    "e\u0301",
    "日本",
    "a&b=c?d#e",
    "a'b\"c",
    "a\\b",
    "~x",
    "a:b",
    "x*",
    " y ",
    "<|>",
]


def test_names_are_taken_as_they_are(bucket):
    """Folders and files: none is a pattern, or part of a URL."""
    for folder in ("a%20b", "q?x=1#y", "é + 100%"):
        store = Store(local_path(f"{bucket.url}/{folder}", "dataset"))
        for name in NAMES:
            store.put(f"in/{name}", name.encode())
        assert bucket.files(folder) == {f"in/{name}": name.encode() for name in NAMES}
        assert store.entries("")[0] == ["in"] and sorted(store.entries("in")[1]) == sorted(NAMES)
        assert [store.read(f"in/{name}") for name in NAMES] == [name.encode() for name in NAMES]
        store.copy(f"in/{NAMES[3]}", "copy")
        store.delete([f"in/{name}" for name in NAMES])
        assert store.files().keys() == {"copy"} and store.read("copy") == NAMES[3].encode()
        store.delete(["copy", "nothing"])


def test_a_folder_is_not_another_one_that_begins_alike(bucket):
    bucket.put("data/a", b"1")
    bucket.put("data2/b", b"22")
    for address in ("data", "data/", "data//"):
        store = Store(local_path(f"{bucket.url}/{address}", "dataset"))
        assert store.files().keys() == {"a"} and store.entries("")[1].keys() == {"a"}


def test_all_pages_of_a_listing_are_asked_for(bucket):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: bucket.put(f"many/{number}", b""), range(1002)))
    bucket.clear()
    store = Store(f"{bucket.url}/many")
    assert len(store.files()) == len(store.entries("")[1]) == 1002
    assert len([request for request in bucket.requests if "list-type" in request]) == 4


def test_what_consoles_make_a_folder_of_is_no_file(bucket, tmp_path):
    for name, content in {"": b"", "full/": b"", "full/a": b"1", "empty/": b"", "none": b""}.items():
        bucket.put(f"console/{name}", content)
    store = Store(f"{bucket.url}/console")
    assert store.files().keys() == {"full/a", "empty", "none"}
    assert store.entries("") == (["empty", "full"], {"none": store.files()["none"]})
    copy = WorkingCopy(store.url, tmp_path, lambda name: True)
    copy.pull()
    kept = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == {"full/a": b"1", "none": b""}


@pytest.mark.parametrize("name", ["a//b", "./a", "a/../b", "a\tb", "/a"])
def test_a_name_that_the_client_cannot_read_is_one_line_at_once(bucket, name, caplog):
    folder = f"odd-{name.encode().hex()}"
    bucket.put(f"{folder}/{name}", b"x")
    with pytest.raises(
        Failure, match=rf"^{bucket.url}/{folder}: .*; rename that file: no part of a path may"
    ) as failure:
        Store(f"{bucket.url}/{folder}").files()
    assert "\n" not in str(failure.value) and "trying again" not in caplog.text


def test_a_file_that_is_gone_is_one_line(bucket, tmp_path):
    store = Store(f"{bucket.url}/x")
    for ask in (
        lambda: store.read("gone"),
        lambda: store.read_range("gone", 0, 1),
        lambda: store.fetch("gone", tmp_path / "x"),
        lambda: store.copy("gone", "y"),
    ):
        with pytest.raises(FileNotFoundError) as error:
            ask()
        assert explain(error.value) == f"{bucket.url}/x/gone: No such file or directory; check the path"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "remedy"),
    [
        ((403, "RequestTimeTooSkewed"), "the clock of this host is wrong: set it"),
        ((403, "AccessDenied"), "check the credentials"),  # a bucket that may only be read
        ((401, "AuthenticationRequired"), "check the credentials"),
    ],
)
def test_what_the_next_attempt_would_meet_again_is_said_at_once(bucket, how, remedy, caplog):
    bucket.put("x/there", b"1")
    bucket.clear(["PUT", how])
    for ask in (
        lambda: Store(f"{bucket.url}/x").put("there", b"2"),
        lambda: Store(f"{bucket.url}/x").create("new", b"2"),
    ):
        with pytest.raises(Failure, match=rf"^{bucket.url}/x/\w+: .*; {remedy}"):
            ask()
    assert Store(f"{bucket.url}/x").read("there") == b"1" and "trying again" not in caplog.text


def test_a_bucket_that_keeps_versions_shows_the_last_one(bucket):
    versions = {"Status": "Enabled"}
    bucket.client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration=versions)
    store = Store(f"{bucket.url}/versions")
    for _ in range(2):  # what was deleted is not there, and may be made
        assert store.create("lock", b"1") and not store.create("lock", b"2")
        store.put("x", b"old")
        etag = store.put("x", b"new")
        store.copy("x", "y")
        assert store.files()["x"].etag == etag and store.read("y") == b"new"
        store.delete(["x", "y", "lock"])
        assert store.files() == {} == store.entries("")[1]
    bucket.client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Suspended"})


def test_without_credentials_it_is_one_line(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_BEARER_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # of a machine's role: nobody answers
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    # Of Google's, the file that is named is missing.
    with pytest.raises(Failure, match=rf"^{bucket.url}/x/a: .*; (there are no|name a file of) credentials") as failure:
        Store(f"{bucket.url}/x").read("a")
    assert "\n" not in str(failure.value) and "times" not in str(failure.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AWS_ENDPOINT_URL", "localhost:9000", "AWS_ENDPOINT_URL=localhost:9000 is no server's address; write http"),
        ("AWS_ENDPOINT_URL_S3", "http://", "AWS_ENDPOINT_URL_S3=http:// is no server's address"),
        ("AWS_ENDPOINT_URL", "http://a host:1", "is no server's address"),
        ("AWS_REGION", "eu central", "AWS_REGION holds a space"),
        ("AWS_SECRET_ACCESS_KEY", "secret\n", "AWS_SECRET_ACCESS_KEY holds a space, an end of line or another letter"),
        ("GOOGLE_BASE_URL", "host/path", "GOOGLE_BASE_URL=host/path is no server's address"),
        ("GOOGLE_BEARER_TOKEN", "token ", "GOOGLE_BEARER_TOKEN holds a space"),
    ],
)
def test_what_the_environment_has_wrong_is_one_line(monkeypatch, name, value, message):
    """The client ends in a panic over it, or sends it."""
    monkeypatch.setenv(name, value)
    object_store.client.cache_clear()
    with pytest.raises(UsageError) as refused:
        Store("gs://bucket/x" if name.startswith("GOOGLE") else "s3://bucket/x").read("a")
    assert message in str(refused.value) and "secret" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[other]\naws_access_key_id = key\n", "None from session.get_credentials"), ("[a]\nb\n", "Unable to parse")],
)
def test_a_profile_that_cannot_be_read_is_one_line(monkeypatch, tmp_path, content, message):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").write_text(content)
    object_store.client.cache_clear()
    with pytest.raises(UsageError, match=f"{message}.*; check AWS_PROFILE and ~/.aws, or set AWS_ACCESS_KEY_ID"):
        Store("s3://bucket/x").read("a")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UsageError, match=r"nobody.*; check AWS_PROFILE" if "other" in content else "; check AWS"):
        Store("s3://bucket/x").read("a")


@pytest.mark.parametrize("content", [None, "no JSON"])
def test_a_file_of_credentials_that_cannot_be_read_is_one_line_at_once(monkeypatch, tmp_path, content, caplog):
    for name in ("GOOGLE_BEARER_TOKEN", "GOOGLE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    if content:
        (tmp_path / "key.json").write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    object_store.client.cache_clear()
    with pytest.raises(Failure, match=r"; name a file of credentials by GOOGLE_APPLICATION_CREDENTIALS$"):
        Store("gs://bucket/x").read("a")
    assert "trying again" not in caplog.text


def test_a_store_that_is_slow_to_take_a_file_is_waited_for_and_one_that_is_silent_is_told(bucket, monkeypatch, caplog):
    monkeypatch.setitem(object_store._REQUEST, "read_timeout", "1s")
    monkeypatch.setattr(object_store, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(object_store, "_heard", set())
    late = lambda content: time.sleep(3) or content  # noqa: E731
    bucket.clear(["PUT", late])
    Store(f"{bucket.url}/slow").put("x", b"content")
    Store(f"{bucket.url}/slow").copy("x", "y")
    bucket.clear(["GET", late])
    endpoint = "AWS_ENDPOINT_URL" if bucket.scheme == "s3" else "GOOGLE_BASE_URL"
    with pytest.raises(
        Failure, match=rf"^{bucket.url}/silent/x: .*; nothing answers: check the network.*{endpoint}\)$"
    ):
        Store(f"{bucket.url}/silent").read("x")
    assert f"{bucket.url}/silent/x: no answer yet; waiting for one" in caplog.text


def test_a_missing_bucket_is_no_folder_and_takes_nothing(bucket):
    store = Store(f"{bucket.scheme}://none/x")
    assert store.files() == {} and store.entries("") == ([], {})
    with pytest.raises(UsageError, match=rf"^{bucket.scheme}://none/x: there is no such bucket; make it, or check the"):
        store.put("a", b"1")
