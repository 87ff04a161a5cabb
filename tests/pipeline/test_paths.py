"""What a flag may point to: local names in every spelling, and no other place, whatever it is called."""

import os
import re
from pathlib import Path

import pytest

from shardline.pipeline.commands import COMMANDS
from shardline.pipeline.dataset import open_dataset
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import user_cache
from shardline.pipeline.options import options, value_of
from shardline.pipeline.paths import local_path
from tests.pipeline.command import CommandConfig
from tests.tools.folders import Run


@pytest.mark.parametrize(
    "address",
    [
        "s3://b/run", "S3://b/run", "s3:/b/run", "s3:", "s3:b", "gs://b", "gcs://b", "http://h/x", "https://h/x?y=1",
        "memory://x", "az://c/x", "abfs://c@a/x", "hdfs://h/x", "ftp://h/x", "hf://datasets/x", "webhdfs://h/x",
        "host:/folder", "user@host:/x", "test=s3://b/labels.txt", "runs/s3:/b", "a/gs:", "new+scheme://x", "./s3:/b",
        " s3://b/x", "'s3://b/x'", "s3 ://b/x", "train= s3://b/x", "arn:aws:s3:::b/x",
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


ADDRESSES = ("s3://b/x", "gs://b/x", "memory://b/x", "az://b/x", "http://h/x", "s3:/b/x", "s3:b/x", "file://h/x")
STORES = ("s3://b/x", "gs://b/x")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_flag_that_names_a_file_takes_an_address_of_a_store_or_refuses_it_in_one_line(command):
    config = COMMANDS[command].config_class()
    named = {name: field for name, field in options(config).items() if field.option.path}
    assert named or command == "completion"
    for field in named.values():
        for address in ADDRESSES:
            value = (address,) if field.kind is tuple else address
            if address in STORES and field.option.path in ("dataset", "source"):
                assert value_of(field, value) == value
                continue
            with pytest.raises(UsageError, match=r"name a local place|name s3://BUCKET|copy or mount it") as refusal:
                value_of(field, value)
            assert "\n" not in str(refusal.value)
        local = "file:///tmp/x%20y"
        assert value_of(field, (local,) if field.kind is tuple else local) in ("/tmp/x y", ("/tmp/x y",))


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_names_a_file_without_saying_so(command):
    """What is parsed as a path is known as one."""
    told = re.compile(r"\b(file|folder|directory)\b(?! names?\b)")
    names = {
        name for name, field in options(COMMANDS[command].config_class()).items()
        if field.kind in (str, tuple) and not field.option.path and not field.option.choices
        and told.search(field.option.help)
    }  # fmt: skip
    assert names <= NO_PATHS, names - NO_PATHS


NO_PATHS = {"name", "weights_sha256"}  # whose help speaks of files


@pytest.mark.parametrize(
    "command",
    [
        "tools.convert --source photos --output s3:/b/x", "tools.convert --source s3:/b/x --output d",
        "tools.convert --source memory://x --output d", "tools.convert --source photos --output az://c/x",
        "tools.adopt s3://b/x", "tools.merge s3://b/x --output d", "tools.merge d --output gs://b/x",
        "tools.verify s3:/b/x", "tools.inspect http://h/x", "tools.inspect d --save s3://b/x.png",
        "tools.browse s3:/b/x", "tools.browse d --run s3://b/x", "tools.doctor --corpus s3://b/x",
        "tools.sample_data --output s3://b/x", "trainer.train d --workdir s3:/b/x", "trainer.train s3:/b/x --workdir r",
        "trainer.train d --workdir r --data_cache s3://b/x", "trainer.evaluate --run s3:/b/x d",
        "trainer.evaluate --checkpoint s3://b/x.npz d", "trainer.evaluate --run r d --output s3://b/x",
        "trainer.predict --run hf://b/x a.jpg", "trainer.predict --run r --output gs://b/x.csv a.jpg",
        "trainer.export --run s3://b/x --output s3://b/y", "trainer.compare s3:/b/x",
        "trainer.compare r s --output s3://b/x",
        "benchmarks.run s3://b/x --output r", "benchmarks.run d --output s3://b/x",
    ],
)  # fmt: skip
def test_no_command_makes_a_folder_of_an_address(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *arguments = command.split()
    result = Run(f"shardline.{name}", *arguments)
    assert result.code == 2, result.stderr
    (line,) = [line for line in result.stderr.strip().splitlines() if "error: " in line]
    assert "name a local place" in line or "name s3://BUCKET/FOLDER" in line, line
    assert os.listdir() == []


def test_a_cache_folder_that_is_an_address_is_ignored_and_a_dataset_named_by_half_of_one_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "s3://b/cache")
    assert user_cache() == Path.home() / ".cache" / "shardline"
    monkeypatch.chdir(tmp_path)
    for name in ("s3:/b/x", Path("s3://b/x"), "memory://b/x"):
        with pytest.raises(UsageError, match=r"^data=.*name s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or a local place"):
            open_dataset(name)
    assert os.listdir() == []


@pytest.mark.parametrize(
    "name",
    ["s3:/b/x", "S3:b/x", " s3://b/x", '"s3://b/x"', "./s3://b/x", "gs:", "train= s3://b/x", "s3//b/x", "gs//b/x"],
)
def test_an_address_that_is_written_wrong_is_not_called_unknown(name):
    with pytest.raises(ValueError, match=r"^an address is not written so; name s3://BUCKET/FOLDER, gs://BUCKET/FOLDER"):
        local_path(name, "dataset")


@pytest.mark.parametrize(
    "name",
    ["run", "/a/b", "./x", "../x", "a:b", "a/b:c/d", "10:30", "tfds:mnist:3.0.1", "tfds:a/b", "photos/https:__a.jpg",
     "-", "*.jpg", "SPLIT=a", "s3", "s3/x", "x/s3", "C:", "./s3//x"],
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
