"""What a flag may point to: local names in every spelling, and no other place, whatever it is called."""

import os
from pathlib import Path

import pytest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.paths import local_path
from tests.pipeline.command import CommandConfig


@pytest.mark.parametrize(
    "address",
    [
        "s3://b/run", "S3://b/run", "s3:/b/run", "s3:", "s3:b", "gs://b", "gcs://b", "http://h/x", "https://h/x?y=1",
        "memory://x", "az://c/x", "abfs://c@a/x", "hdfs://h/x", "ftp://h/x", "hf://datasets/x", "webhdfs://h/x",
        "host:/folder", "user@host:/x", "test=s3://b/labels.txt", "runs/s3:/b", "a/gs:", "new+scheme://x", "./s3:/b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["folder", "table", "inputs"])
def test_addresses_are_refused_in_one_line(address, field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in (address, Path(address)):
        with pytest.raises(UsageError) as refusal:
            CommandConfig(**{field: value})
        message = str(refusal.value)
        assert message.startswith(f"{field}=") and "cannot be read or written yet; name a local place" in message
        assert "\n" not in message
    assert not os.listdir()


@pytest.mark.parametrize(
    "name",
    ["run", "/a/b", "./x", "../x", "a:b", "a/b:c/d", "10:30", "tfds:mnist:3.0.1", "tfds:a/b", "photos/https:__a.jpg",
     "-", "*.jpg", "SPLIT=a", "s3", "s3/x", "x/s3", "C:"],
)  # fmt: skip
def test_local_names_are_left_as_they_are(name):
    assert local_path(name, "any") == name
    assert CommandConfig(inputs=name).inputs == (name,)


def test_homes_and_file_urls_become_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert local_path("~/x", "any") == f"{tmp_path}/x"
    assert local_path("~root/x", "any") == f"{os.path.expanduser('~root')}/x"
    assert local_path("file:///a%20b/c", "any") == "/a b/c" == local_path("file://localhost/a%20b/c", "any")
    with pytest.raises(ValueError, match=r"no user is called 'nobody-at-all'; give the path in full, or \./~nobody"):
        local_path("~nobody-at-all/x", "any")
    with pytest.raises(ValueError, match="of another host, 'h'; copy or mount it"):
        local_path("file://h/x", "any")
    Path("~odd").write_text("")
    assert local_path("~odd", "file") == "~odd"  # it is there


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert CommandConfig(folder=tmp_path, table=tmp_path / "file").folder == str(tmp_path)
    assert CommandConfig(folder=tmp_path / "new", table=tmp_path / "new")
    with pytest.raises(UsageError, match=f"^folder={tmp_path}/file: is a file; name a folder$"):
        CommandConfig(folder=tmp_path / "file")
    with pytest.raises(UsageError, match=f"^table={tmp_path}: is a folder; name a file$"):
        CommandConfig(table=tmp_path)


def test_nothing_and_nul_are_no_names():
    assert CommandConfig(folder="").folder == ""  # the default: not given
    with pytest.raises(UsageError, match=r"^table=: is empty; name a file$"):
        CommandConfig(table="")
    with pytest.raises(UsageError, match=r"^inputs=: is empty; name a file or folder$"):
        CommandConfig(inputs=("a", ""))
    with pytest.raises(UsageError, match=r"^folder=a\\x00b: holds a NUL character"):
        CommandConfig(folder="a\0b")
