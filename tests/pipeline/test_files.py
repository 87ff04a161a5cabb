"""A file is there whole or not at all, and durable before it has its name."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shardline.pipeline import files
from shardline.pipeline.errors import UsageError, explain
from shardline.pipeline.files import (
    TEMPORARY,
    atomic_write,
    atomic_writer,
    full_disk_named,
    remove_strays,
    remove_tree,
    temporary_path,
)


def test_content_is_there_after_the_block_and_nothing_before(tmp_path):
    target = tmp_path / "file"
    with atomic_writer(target) as file:
        file.write(b"some")
        file.flush()
        assert not target.exists()
        assert [path.suffix for path in tmp_path.iterdir()] == [TEMPORARY]
    assert target.read_bytes() == b"some"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_what_was_there_and_no_temporary_file(tmp_path, error):
    target = tmp_path / "file"
    atomic_write(target, "before")
    with pytest.raises(error), atomic_writer(target) as file:
        file.write(b"half of what")
        raise error
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic_write(tmp_path / "folder", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_directory_that_is_missing_is_an_error_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "nowhere" / "file", b"x")


def test_text_is_utf_8(tmp_path):
    atomic_write(tmp_path / "file", "naïve ✓")
    assert (tmp_path / "file").read_bytes() == "naïve ✓".encode()


def test_temporary_names_are_unique_and_lie_beside_their_target(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: temporary_path(tmp_path / "file"), range(200)))
    assert len(set(names)) == 200
    assert {name.parent for name in names} == {tmp_path}
    assert all(name.name.startswith("file.") and name.name.endswith(TEMPORARY) for name in names)


def test_writers_at_the_same_time_each_write_a_whole_file(tmp_path):
    contents = [bytes([number]) * 100_000 for number in range(8)]
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            try:
                seen.add((tmp_path / "file").read_bytes())
            except FileNotFoundError:
                continue

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            list(pool.map(lambda content: atomic_write(tmp_path / "file", content, durable=False), contents))
    done.set()
    reader.join()
    assert seen and seen <= set(contents)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def calls(monkeypatch):
    """Every fsync and rename, in order: `file`, `directory`, `rename`."""
    made = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        made.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def noted_replace(source, target):
        made.append("rename")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", noted_fsync)
    monkeypatch.setattr(files.os, "replace", noted_replace)
    return made


def test_what_others_rely_on_is_on_the_disk_before_it_has_its_name_and_so_is_the_name(tmp_path, calls):
    atomic_write(tmp_path / "file", b"x")
    assert calls == ["file", "rename", "directory"]


def test_what_can_be_made_again_is_not_waited_for(tmp_path, calls):
    atomic_write(tmp_path / "file", b"x", durable=False)
    assert calls == ["rename"]


KILLED = """
import os, signal, sys
from shardline.pipeline.files import atomic_writer
with atomic_writer(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_content_and_a_file_that_says_whose_it_was(tmp_path):
    atomic_write(tmp_path / "file", b"before")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "file")])
    assert process.wait() == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() == b"before"
    (left,) = tmp_path.glob(f"*{TEMPORARY}")
    assert f"-{process.pid}-" in left.name and left.read_bytes() == b"half"


def test_a_folder_is_removed_only_if_all_in_it_is_ours(tmp_path):
    for content, link in ({"a/b/x": "", "a/y": ""}, ""), ({"a/b/x": "", "a/mine": ""}, ""), ({"a/b/x": ""}, "a/b/l"):
        for path in content:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("")
        victim = tmp_path / "victim" / "x"
        victim.parent.mkdir(exist_ok=True)
        victim.write_text("")
        if link:
            (tmp_path / link).symlink_to(victim.parent)
        before = sorted(tmp_path.rglob("*"))
        if link or "a/mine" in content:
            with pytest.raises(UsageError, match=r"/a holds (mine|b/l), which shardline did not write; move it away"):
                remove_tree(tmp_path / "a", {"b/x", "y"}.__contains__)
            assert sorted(tmp_path.rglob("*")) == before
            shutil.rmtree(tmp_path / "a")
        else:
            remove_tree(tmp_path / "a", {"b/x", "y"}.__contains__)
            assert not (tmp_path / "a").exists()
    remove_tree(tmp_path / "a", lambda name: True)  # not there
    for other in ("link", "file"):
        (tmp_path / "link").symlink_to(tmp_path / "victim") if other == "link" else (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="is no folder that shardline wrote"):
            remove_tree(tmp_path / other, lambda name: True)
    assert victim.exists()


def test_a_full_disk_is_told_with_the_name_that_was_to_be_written(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as refusal:
        atomic_write(tmp_path / "x", b"1")
    assert refusal.value.filename == str(tmp_path / "x")
    with pytest.raises(FileNotFoundError) as refusal:
        atomic_write(tmp_path / "missing" / "x", b"1")
    assert refusal.value.filename == str(tmp_path / "missing" / "x")


def test_a_full_disk_that_a_library_met_is_told_with_the_name_that_it_wrote(tmp_path):
    class ResourceExhaustedError(Exception):
        """TensorFlow's, as `errors.explain` knows it."""

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error in (full, ResourceExhaustedError(f"{{{{node}}}} a/part-0; {os.strerror(errno.ENOSPC)} [Op:SaveV2]")):
        with pytest.raises(OSError) as told, full_disk_named(tmp_path / "x"):
            raise error
        assert explain(told.value).startswith(f"{tmp_path / 'x'}: No space left on device; make room there")
    with pytest.raises(FileNotFoundError) as told, full_disk_named(tmp_path / "x"):
        os.stat(tmp_path / "y")
    assert told.value.filename == str(tmp_path / "y")
    with pytest.raises(ResourceExhaustedError), full_disk_named(tmp_path / "x"):
        raise ResourceExhaustedError("OOM when allocating tensor")


def test_strays_in_a_shared_directory_are_those_of_processes_that_ended_here(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = temporary_path(tmp_path / "a")
    host = mine.name.split(".")[1].rpartition("-")[0].rpartition("-")[0]
    left = tmp_path / f"a.{host}-{ended.pid}-0123abcd.tmp"
    elsewhere = tmp_path / f"a.another_host-{ended.pid}-0123abcd.tmp"
    foreign = [tmp_path / name for name in (f"b.{host}-{ended.pid}-0123abcd.tmp", "a.tmp", f"a.{host}-1-xyz.tmp")]
    for path in (mine, left, elsewhere, *foreign):
        path.write_text("")
    remove_strays(tmp_path, "a".__eq__, owned=False)
    assert sorted(tmp_path.iterdir()) == sorted([mine, elsewhere, *foreign])
    remove_strays(tmp_path, "a".__eq__)
    assert sorted(tmp_path.iterdir()) == sorted(foreign)
