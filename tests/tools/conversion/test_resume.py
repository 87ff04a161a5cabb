"""Interruptions: whatever ends a conversion, nothing looks whole that is not, and the next run gives the same bytes."""

import os
import resource
import signal
import subprocess
import sys
import time

import psutil
import pytest

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import exclusive
from shardline.pipeline.images import KERNEL
from shardline.pipeline.manifest import Manifest
from shardline.tools.conversion.run import convert
from tests.few import few
from tests.tools.folders import ROOT, Run, class_folders, config, draw, shard_hashes, without_progress

SHARDS = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    # Large enough that a conversion takes a second: a kill lands in the middle.
    return class_folders(tmp_path_factory.mktemp("s"), 3, 20, height=1200, width=1600)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Shard hashes of a conversion that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole") / "d"
    convert(config(source, output, shards=SHARDS))
    return shard_hashes(output)


def start(source, output, *more, **options):
    args = ["--source", source, "--output", output, "--size", 16, "--shards", SHARDS, "--workers", 2, "--noreport"]
    command = [sys.executable, "-m", "shardline.tools.convert", "--name", "images", *map(str, [*args, *more])]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
    return found


def receipts(output):
    work = output / ".convert"
    return list(work.glob("*.receipt.arrow")) if work.exists() else []


def workers_of(process):
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize(
    "how", few(["kill parent", "terminate", "interrupt", "kill worker"], "kill parent", "kill worker")
)
def test_any_kill_and_a_second_run_give_the_same_bytes(source, whole, tmp_path, how):
    output = tmp_path / "d"
    process = start(source, output)
    wait_for(lambda: len(receipts(output)) >= 2)
    workers = workers_of(process)
    assert workers
    if how == "kill worker":
        workers[0].kill()
        assert process.wait(600) == 0, process.stderr.read()
    else:
        number = {"kill parent": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}[how]
        os.kill(process.pid, number)
        code = process.wait(600)
        assert code == {"kill parent": -9, "terminate": 143, "interrupt": 130}[how]
        assert not (output / "manifest.json").exists()
        psutil.wait_procs(workers, timeout=120)
        assert not any(worker.is_running() for worker in workers), "orphans"
        done = len(receipts(output))
        assert 2 <= done < SHARDS
        if how != "kill parent":
            assert process.stderr.read().strip().splitlines()[-1] == "shardline.tools.convert: error: interrupted"
        again = Run(
            "shardline.tools.convert", "--source", source, "--output", output, "--size", 16, "--shards", SHARDS,
            "--name", "images", "--engine", "inline", "--noreport",
        )  # fmt: skip
        assert again.code == 0, again.stderr
        assert f"continuing: {done * 5} of 60 inputs are done" in again.stderr
    assert shard_hashes(output) == whole
    assert not (output / ".convert").exists()
    assert Manifest.load(output).ledger.written == 60


@pytest.mark.ray
def test_ray_leaves_nothing_running_and_gives_the_same_bytes(source, whole, tmp_path):
    pytest.importorskip("ray")
    output = tmp_path / "d"
    process = start(source, output, "--engine", "ray")
    wait_for(lambda: len(receipts(output)) >= 2, 300)
    # Ray's agents hold no work of ours and need a minute or more to notice.
    children = psutil.Process(process.pid).children(recursive=True)
    cluster = [child for child in children if not child.name().endswith("Agent")]
    assert any("raylet" in child.name() for child in cluster)
    process.kill()
    process.wait(600)
    _, alive = psutil.wait_procs(cluster, timeout=60)
    assert not alive, "orphans"
    assert not (output / "manifest.json").exists()
    again = start(source, output, "--engine", "ray")
    message = again.communicate(timeout=300)[1]
    assert again.returncode == 0, message
    assert "continuing: " in message
    assert shard_hashes(output) == whole


def test_a_kill_while_shards_are_put_in_place(source, whole, tmp_path, monkeypatch):
    from shardline.tools.conversion import finalize

    output = tmp_path / "d"
    placed = []

    def place(*args, **kwargs):
        placed.append(1)
        if len(placed) == 5:
            raise KeyboardInterrupt
        return genuine(*args, **kwargs)

    genuine = finalize._place
    monkeypatch.setattr(finalize, "_place", place)
    with pytest.raises(KeyboardInterrupt):
        convert(config(source, output, shards=SHARDS))
    assert not (output / "manifest.json").exists()
    monkeypatch.setattr(finalize, "_place", genuine)
    monkeypatch.setattr("shardline.tools.conversion.shard_writer.process", None)  # no image is converted a second time
    convert(config(source, output, shards=SHARDS))
    assert shard_hashes(output) == whole


@pytest.mark.parametrize("limit", few([3_000, 4_500, 9_000], 4_500))  # hits the notes, a shard, sources.parquet
def test_a_full_disk_ends_in_one_line_and_can_be_continued(source, whole, tmp_path, monkeypatch, limit):
    output = tmp_path / "d"
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # its data are larger than this disk

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = start(source, output, preexec_fn=small_disk)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(without_progress(message).splitlines()) == 1 and "File too large; free some space" in message, message
    assert not (output / "manifest.json").exists()
    convert(config(source, output, shards=SHARDS))
    assert shard_hashes(output) == whole


def interrupted(source, output):
    """A conversion that ended after its shards were written, before they were put in place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardline.tools.conversion.run.finalize", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(config(source, output, shards=SHARDS))


def test_pixels_made_in_another_way_are_neither_mixed_nor_taken_for_the_same(tmp_path, monkeypatch):
    """A version of this program that stores other bytes of the same image says so by KERNEL."""
    source, begun, whole = class_folders(tmp_path / "s", 2, 5), tmp_path / "begun", tmp_path / "whole"
    interrupted(source, begun)
    convert(config(source, whole, shards=SHARDS))
    for module in ("run", "append"):
        monkeypatch.setattr(f"shardline.tools.conversion.{module}.KERNEL", "lanczos")
    for output, append in ((begun, False), (whole, False), (whole, True)):
        with pytest.raises(UsageError, match=r"other versions: .*lanczos|this version makes them by"):
            convert(config(source, output, shards=SHARDS, append=append))


def test_what_differs_is_told_as_one_types_it_and_of_versions_those_alone_that_do(tmp_path, monkeypatch):
    source, begun = class_folders(tmp_path / "s", 2, 5), tmp_path / "begun"
    interrupted(source, begun)
    monkeypatch.setattr("shardline.tools.conversion.run.KERNEL", "lanczos")
    with pytest.raises(UsageError) as caught:
        convert(config(source, begun, shards=SHARDS, splits={"train": 0.75, "test": 0.25}))
    then = f"(splits= then, train=0.75,test=0.25 now; other versions: pixels={KERNEL} then, lanczos now)"
    assert then in str(caught.value)


def test_changed_options_and_sources_are_refused_with_the_difference(tmp_path):
    source, output = class_folders(tmp_path / "s", 2, 5), tmp_path / "d"
    args = ["--source", source, "--output", output, "--shards", SHARDS, "--name", "images", "--engine", "inline"]
    interrupted(source, output)
    changed = Run("shardline.tools.convert", *args, "--size", 24, "--quality", 80)
    assert changed.code == 2
    assert "interrupted conversion" in changed.stderr
    assert "--quality=90 then, 80 now; --size=16 then, 24 now" in changed.stderr
    draw(source / "class1" / "new.jpg", 5)
    (source / "class0" / "img_000.jpg").unlink()
    draw(source / "class0" / "img_001.jpg", 77)
    changed = Run("shardline.tools.convert", *args, "--size", 16)
    assert changed.code == 2
    for phrase in (
        "1 input added, e.g. class1/new.jpg",
        "1 input removed, e.g. class0/img_000.jpg",
        "1 input changed, e.g. class0/img_001.jpg",
    ):
        assert phrase in changed.stderr
    assert Run("shardline.tools.convert", *args, "--size", 16, "--overwrite", "--noreport").code == 0
    assert Manifest.load(output).ledger.inputs == 10


def test_a_finished_dataset_is_left_alone(tmp_path):
    source, output = class_folders(tmp_path / "s", 2, 5), tmp_path / "d"
    args = ["--source", source, "--output", output, "--engine", "inline", "--noreport"]
    first = Run("shardline.tools.convert", *args, "--size", 16)
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    again = Run("shardline.tools.convert", *args, "--size", 16)
    assert again.stdout.splitlines() == first.stdout.splitlines()[-1:]
    assert "finished already" in again.stderr
    other = Run("shardline.tools.convert", *args, "--size", 24)
    assert (other.code, "--size=16 then, 24 now" in other.stderr) == (2, True)
    draw(source / "class0" / "img_000.jpg", 99)
    touched = Run("shardline.tools.convert", *args, "--size", 16)
    assert touched.code == 2
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before


def test_overwrite_deletes_the_dataset_and_nothing_else(tmp_path):
    source, output = class_folders(tmp_path / "s", 2, 5), tmp_path / "d"
    convert(config(source, output, shards=4, report=True))
    (output / "my notes.txt").write_text("keep")
    convert(config(source, output, shards=2, overwrite=True))
    names = {path.name for path in output.iterdir()}
    assert "my notes.txt" in names
    assert not names & {"report.html", "plots"}
    assert len(shard_hashes(output)) == 2 * 2  # shards and their indexes


def test_two_conversions_into_one_folder_do_not_mix(tmp_path):
    source, output = class_folders(tmp_path / "s", 2, 5), tmp_path / "d"
    interrupted(source, output)
    for overwrite in (False, True):
        with exclusive(output / ".lock", "it"), pytest.raises(Failure, match=f"^output={output} is in use by process"):
            convert(config(source, output, shards=SHARDS, overwrite=overwrite))
    convert(config(source, output, shards=SHARDS))


def test_an_interrupted_conversion_of_an_older_version_is_refused_in_one_line(tmp_path):
    source, output = class_folders(tmp_path / "s", 2, 5), tmp_path / "d"
    args = ["--source", source, "--output", output, "--size", 16, "--engine", "inline", "--noreport"]
    (output / ".convert").mkdir(parents=True)
    (output / ".convert" / "request.json").write_text('{"plan": "1234", "request": {"size": 16}}')
    old = Run("shardline.tools.convert", *args)
    assert (old.code, len(old.stderr.strip().splitlines())) == (2, 1), old.stderr
    assert "request.json has format none, this program reads" in old.stderr
    assert "start over with --overwrite" in old.stderr
    assert Run("shardline.tools.convert", *args, "--overwrite").code == 0
    assert Manifest.load(output).ledger.inputs == 10


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: b"junk" * 100])
def test_a_damaged_receipt_costs_its_shard_and_nothing_else(tmp_path, damage):
    source, output = class_folders(tmp_path / "s", 2, 6), tmp_path / "d"
    convert(config(source, tmp_path / "whole", shards=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardline.tools.conversion.run.finalize", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(config(source, output, shards=3))
    receipt = receipts(output)[0]
    receipt.write_bytes(damage(receipt.read_bytes()))
    again = Run(
        "shardline.tools.convert", "--source", source, "--output", output, "--size", 16, "--shards", 3, "--name",
        "images", "--engine", "inline", "--noreport",
    )  # fmt: skip
    assert again.code == 0 and "continuing: 8 of 12 inputs are done" in again.stderr
    assert shard_hashes(output) == shard_hashes(tmp_path / "whole")
