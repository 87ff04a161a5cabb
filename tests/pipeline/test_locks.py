"""One owner of a directory at a time, and a refusal that names the other."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import being_read, exclusive, nobody_reads
from tests.tools.folders import ROOT

HOLD = "import sys, time\nfrom shardline.pipeline.files import exclusive\n" + (
    "with exclusive(sys.argv[1], 'it'):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


def holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path):
    process = holder(tmp_path / "lock")
    try:
        with pytest.raises(Failure) as refusal, exclusive(tmp_path / "lock", "the cellar"):
            pass
        assert re.fullmatch(
            rf"the cellar is in use by process {process.pid} on {re.escape(socket.gethostname())}, "
            r"started \d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}; wait for it, or end it",
            str(refusal.value),
        )
    finally:
        process.kill()
        process.wait()


def test_a_killed_owner_leaves_no_lock_behind(tmp_path):
    process = holder(tmp_path / "lock")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with exclusive(tmp_path / "lock", "it"):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} ")
    assert not (tmp_path / "lock").exists()


def test_a_lock_can_be_taken_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), exclusive(tmp_path / "lock", "it"):
            raise KeyError
    with exclusive(tmp_path / "lock", "it"), pytest.raises(Failure), exclusive(tmp_path / "lock", "it"):
        pass  # this process's own second attempt counts, too


def test_a_name_that_its_owner_removes_meanwhile_is_locked_again(tmp_path, monkeypatch):
    path, real, removed = tmp_path / "lock", fcntl.flock, []

    def flock(file, operation):
        real(file, operation)
        if not removed:
            removed.append(path.unlink())  # the owner's last act, between our open and our lock

    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive(path, "it"):
        assert path.exists() and removed
        with pytest.raises(Failure), exclusive(path, "it"):
            pass


def test_escape_sequences_in_a_lock_file_are_harmless(tmp_path):
    process = holder(tmp_path / "lock")
    (tmp_path / "lock").write_bytes(b"\x1b]0;owned\x07" * 100)
    try:
        with pytest.raises(Failure) as refusal, exclusive(tmp_path / "lock", "it"):
            pass
        assert "\x1b" not in str(refusal.value) and len(str(refusal.value)) < 1000
    finally:
        process.kill()
        process.wait()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive(tmp_path / "lock", "it"):
        pass
    assert "keeps no locks (No locks available); make sure that no other process uses it" in caplog.text


@pytest.mark.parametrize("name", ["its own", "another name"])
def test_a_stranger_s_file_in_the_lock_s_place_stays_what_it_is(tmp_path, name):
    """A lock is written over and removed."""
    (tmp_path / "thesis").write_text("dear")
    if name == "its own":
        (tmp_path / "thesis").rename(tmp_path / "lock")
    else:
        (tmp_path / "lock").hardlink_to(tmp_path / "thesis")
    for _ in range(2):
        with (
            pytest.raises(UsageError, match=r"lock is in the way and no lock that shardline wrote; move it away"),
            exclusive(tmp_path / "lock", "it"),
        ):
            pass
    assert (tmp_path / "lock").read_text() == "dear"


@pytest.mark.parametrize("content", [b"", bytes(60), b"process 7 on node, started 2020-01-01"])
def test_what_a_machine_that_lost_its_power_left_is_no_obstacle(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    with exclusive(tmp_path / "lock", "it"):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / "lock").exists()


def test_a_link_in_the_lock_s_place_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError), exclusive(tmp_path / "lock", "it"):
        pass
    assert not (tmp_path / "victim").exists()


# --------------------------------------------------------------------------------------------------- readers

READ = "import sys, time\nfrom shardline.pipeline.files import being_read\n" + (
    "with being_read(sys.argv[1], 'it'):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    return tmp_path / "manifest.json"


def test_any_number_reads_and_who_would_replace_it_is_told_who(manifest):
    process = subprocess.Popen([sys.executable, "-c", READ, manifest], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout.readline() == "held\n"
        with being_read(manifest, "it"):
            pass
        with pytest.raises(Failure) as refusal, nobody_reads(manifest, "the book"):
            pass
        assert re.fullmatch(
            rf"the book is being read by process {process.pid} on {re.escape(socket.gethostname())}, "
            r"started \d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}; wait for it, or end it",
            str(refusal.value),
        )
    finally:
        process.kill()
        process.wait()
    replaced = pytest.raises(Failure, match="it is being replaced by process")
    with nobody_reads(manifest, "it"), replaced, being_read(manifest, "it"):
        pass
    assert os.listdir(manifest.parent) == ["manifest.json"]


def test_a_reader_locks_the_file_that_is_there_now(manifest, monkeypatch):
    real, replaced = fcntl.flock, []

    def flock(file, operation):
        real(file, operation)
        if not replaced:
            (manifest.parent / "new").write_text("{}")
            replaced.append(os.replace(manifest.parent / "new", manifest))  # between our open and our lock

    monkeypatch.setattr(fcntl, "flock", flock)
    with being_read(manifest, "it"), pytest.raises(Failure), nobody_reads(manifest, "it"):
        pass


def test_nothing_there_nothing_promised_and_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "missing/below", "pipe"):
        with being_read(tmp_path / name, "it"):
            pass
        with nobody_reads(tmp_path / name, "it"):
            pass


def test_reading_needs_no_locks_and_says_so_once(manifest, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(3):
        with being_read(manifest, "it"):
            pass
    assert caplog.text.count("keeps no locks (Operation not supported)") == 1
