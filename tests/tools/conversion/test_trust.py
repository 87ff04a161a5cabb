"""Nothing is deleted that a conversion did not write, and nothing is vouched for unread."""

import contextlib
import errno
import os
import re
import shutil
import socket
from dataclasses import replace

import numpy as np
import pytest

from shardline.pipeline import stored
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import temporary_path
from shardline.pipeline.manifest import Manifest, index_path
from shardline.pipeline.source_files import MachineFault, read_file
from shardline.tools.conversion import resume, shard_writer
from shardline.tools.conversion.shard_writer import ShardTask, load_receipt, receipt_path, write_shard
from shardline.tools.convert import convert
from tests.pipeline.tiny import edit_stored
from tests.tools.folders import Run, class_folders, config, draw, shard_hashes

SHARDS = 3


@pytest.fixture
def source(tmp_path):
    return class_folders(tmp_path / "s", 2, 6)


@pytest.fixture
def dataset(source, tmp_path):
    convert(config(source, tmp_path / "d", shards=SHARDS))
    return tmp_path / "d"


@pytest.fixture
def whole(dataset):
    return shard_hashes(dataset)


def interrupted(source, output, at="finalize"):
    """A conversion that ended after its shards were written, or while they were put in place."""
    with pytest.MonkeyPatch.context() as patch:
        if at == "finalize":
            patch.setattr("shardline.tools.conversion.run.finalize", lambda *args, **kwargs: 1 / 0)
        else:
            patch.setattr("shardline.tools.conversion.run.write_tfds_metadata", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(config(source, output, shards=SHARDS))
    return output


def written_shards(output):
    return sorted(
        path for path in (output / ".convert").iterdir() if path.name.startswith("train-") and not path.suffix
    )


# Deleting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../victim.txt", "victim.txt", "/etc/victim"])
def test_m1_a_manifest_that_names_other_files_deletes_none(source, dataset, tmp_path, name):
    victims = [tmp_path / "victim.txt", dataset / "victim.txt"]
    for victim in victims:
        victim.write_text("dear")

    def forge(content):
        content["splits"]["train"]["shards"][0]["file"] = name

    edit_stored(dataset / "manifest.json", forge)
    before = sorted(os.listdir(dataset))
    with pytest.raises(UsageError, match="overwrite: "):
        convert(config(source, dataset, shards=SHARDS, overwrite=True))
    assert sorted(os.listdir(dataset)) == before and all(victim.exists() for victim in victims)


def test_m2_a_resume_deletes_no_stranger_s_file(source, whole, tmp_path):
    output = interrupted(source, tmp_path / "again")
    foreign = ["other-train.tfrecord-00000-of-00002", "train.tfrecord-00000-of-00001", "x.tmp", "notes.txt"]
    for place in (output, output / ".convert"):
        for name in foreign:
            (place / name).write_text(name)
    ours = [temporary_path(output / "dataset_info.json"), temporary_path(written_shards(output)[0])]
    for path in ours[1:]:
        path.write_text("of a killed writer")
    convert(config(source, output, shards=SHARDS))
    assert not ours[1].exists()
    for place in (output, output / ".convert"):
        assert {name: (place / name).read_text() for name in foreign} == {name: name for name in foreign}
    mine = {name: sha256 for name, sha256 in shard_hashes(output).items() if name not in foreign}
    assert mine == whole and sorted(os.listdir(output / ".convert")) == sorted(foreign)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name",
    ["thesis.doc", "features.json", "x.tfrecord-00000-of-00001\n", ".", "..", "other-train.tfrecord-00000-of-00002"],
)
def test_a_note_of_placed_files_that_somebody_made_deletes_no_stranger_s_file(source, tmp_path, name, overwrite):
    """With a checksum that is right. Of an --overwrite nobody knows any more what the dataset was called."""
    (tmp_path / "d" / ".convert").mkdir(parents=True)
    stored.save(tmp_path / "d" / ".convert" / "placed.json", {"files": [name]}, format=resume.FORMAT)
    if name not in (".", ".."):
        (tmp_path / "d" / name).write_text("dear")
    with contextlib.suppress(UsageError):
        convert(config(source, tmp_path / "d", shards=SHARDS, overwrite=overwrite))
    if name not in (".", "..", "features.json") and not (overwrite and name.startswith("other-")):
        assert (tmp_path / "d" / name).read_text() == "dear"


def test_a_link_in_place_of_a_generation_leads_to_nothing_that_is_deleted_or_written(source, dataset, tmp_path):
    other = shutil.copytree(dataset, tmp_path / "other")
    before = {path.name: path.read_bytes() for path in other.iterdir() if path.is_file()}
    (dataset / "generation-00002").symlink_to(other)
    draw(tmp_path / "more" / "class0" / "new.jpg", 99)
    for change in (
        {"source": source, "shards": SHARDS, "overwrite": True},
        {"source": tmp_path / "more", "append": True},
    ):
        with pytest.raises(UsageError, match="generation-00002 is a link there; remove it"):
            convert(config(output=dataset, **change))
    assert {path.name: path.read_bytes() for path in other.iterdir() if path.is_file()} == before
    assert Manifest.load(dataset).digest == Manifest.load(other).digest


def test_links_in_a_circle_are_one_line(source, tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for source_, output, said in (
        (source, tmp_path / "circle", r"output=.*circle"),
        (tmp_path / "circle", tmp_path / "d", r"source=.*circle"),
    ):
        run = again(source_, output)
        assert run.code == 2 and re.search(said, run.stderr) and len(run.stderr.splitlines()) == 1, run.stderr


def test_a_link_in_place_of_the_report_s_folder_leads_to_nothing_that_is_deleted_or_written(source, dataset, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "classes.png").write_text("dear")
    (dataset / "plots").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match=r"plots is a link; remove it"):
        convert(config(source, dataset, shards=SHARDS, overwrite=True, report=True))
    assert (tmp_path / "mine" / "classes.png").read_text() == "dear" and len(list((tmp_path / "mine").iterdir())) == 1


def test_what_is_in_the_way_is_listed_and_refused(source, whole, tmp_path):
    output = interrupted(source, tmp_path / "again")
    way = [output / "images-train.tfrecord-00001-of-00003", output / "images-train.tfrecord-00000-of-00099"]
    for path in way:  # one would be replaced, one would be taken for ours by TFDS
        path.write_text("somebody else's")
    with pytest.raises(UsageError) as caught:
        convert(config(source, output, shards=SHARDS))
    assert all(path.name in str(caught.value) for path in way) and "in the way" in str(caught.value)
    assert all(path.read_text() == "somebody else's" for path in way)
    for path in way:
        path.unlink()
    convert(config(source, output, shards=SHARDS))
    assert shard_hashes(output) == whole


def test_overwriting_an_interrupted_conversion_deletes_what_it_had_placed_and_nothing_else(source, whole, tmp_path):
    output = interrupted(source, tmp_path / "again", at="placed")
    assert len(shard_hashes(output)) == 2 * SHARDS
    (output / "images-test.tfrecord-00000-of-00001").write_text("of an earlier life")
    (output / "notes.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"images-test.* is in the way"):
        convert(config(source, output, shards=2, overwrite=True))
    assert (output / "notes.txt").exists() and len(shard_hashes(output)) == 1
    (output / "images-test.tfrecord-00000-of-00001").unlink()
    convert(config(source, output, shards=2, overwrite=True))
    assert len(shard_hashes(output)) == 2 * 2 and (output / "notes.txt").exists()


def test_adopted_shards_are_not_overwritten(source, dataset):
    Run("shardline.tools.adopt", dataset, "--overwrite")
    assert Manifest.load(dataset).adopted
    before = shard_hashes(dataset)
    with pytest.raises(UsageError, match="adopted, not converted"):
        convert(config(source, dataset, shards=SHARDS, overwrite=True))
    assert shard_hashes(dataset) == before


def test_a_link_in_place_of_the_work_folder_is_not_followed(source, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "train-00000").write_text("dear")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".convert").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a link"):
        convert(config(source, tmp_path / "d"))
    assert os.listdir(tmp_path / "elsewhere") == ["train-00000"]


# Finished already --------------------------------------------------------------------------------------------------


def again(source, output, *flags):
    return Run(
        "shardline.tools.convert", "--source", source, "--output", output, "--size", 16, "--shards", SHARDS, "--name",
        "images", "--engine", "inline", "--noreport", *flags,
    )  # fmt: skip


@pytest.mark.parametrize("damage", ["delete", "cut", "index", "flip", "index of the split"])
def test_m3_a_dataset_that_lost_a_shard_is_not_finished(source, dataset, damage):
    shard = dataset / "images-train.index" if "split" in damage else sorted(dataset.glob("*.tfrecord-*[0-9]"))[1]
    data = shard.read_bytes()
    match damage:
        case "index of the split":
            shard.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        case "delete":
            shard.unlink()
        case "cut":
            shard.write_bytes(data[:-1])
        case "index":
            index_path(shard).unlink()
        case "flip":
            shard.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    result = again(source, dataset, *["--verify"] * (damage == "flip"))
    assert (result.code, result.stdout) == (2, "") and "finished already" not in result.stderr
    assert shard.name in result.stderr and "--overwrite" in result.stderr
    assert again(source, dataset, "--overwrite").code == 0
    assert "finished already" in again(source, dataset, "--verify").stderr


def test_f21_a_source_of_the_same_size_and_an_older_time_is_noticed(source, dataset):
    path = source / "class0" / "img_002.jpg"
    other = path.read_bytes()[:-2] + b"\0\0"
    (source / "new").write_bytes(other)
    os.utime(source / "new", (1e9, 1e9))
    os.replace(source / "new", path)
    result = again(source, dataset)
    assert (result.code, result.stdout) == (2, "")
    assert "1 input changed since, e.g. class0/img_002.jpg" in result.stderr


def test_content_changed_in_place_under_the_same_time_is_noticed(source, dataset):
    """`cp -p`, unzip of files that all carry one time: size, time and inode are the same."""
    path = source / "class0" / "img_002.jpg"
    facts = path.stat()
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\0\0")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_ino) == (
        facts.st_size, facts.st_mtime_ns, facts.st_ino,
    )  # fmt: skip
    assert "1 input changed since" in again(source, dataset).stderr


def test_a_copy_of_the_sources_is_the_same_sources(source, dataset, tmp_path, monkeypatch):
    shutil.copytree(source, tmp_path / "copy")
    shutil.rmtree(source)
    (tmp_path / "copy").rename(source)
    hashed = []
    genuine = shard_writer.source_sha256
    monkeypatch.setattr("shardline.tools.conversion.run.source_sha256", lambda *a: hashed.append(1) or genuine(*a))
    assert "finished already" in again(source, dataset).stderr and len(hashed) == 12
    assert "finished already" in again(source, dataset).stderr and len(hashed) == 12  # the second time it is known


def test_without_the_table_of_sources_nothing_is_vouched_for(source, dataset):
    (dataset / ".sources.json").unlink()
    (dataset / "sources.parquet").write_bytes(b"junk")
    result = again(source, dataset)
    assert (result.code, result.stdout) == (2, "") and "sources.parquet" in result.stderr


# Resume ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train-00001", "train-00001.receipt.arrow"])
@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_any_flip_or_cut_of_a_finished_shard_or_receipt_is_found(source, whole, tmp_path, name, every):
    output = interrupted(source, tmp_path / "again")
    inputs = np.array(load_inputs(output / ".convert" / "train-00001"))
    digest = load_digest(output / ".convert" / "train-00001")
    path, shard = output / ".convert" / name, str(output / ".convert" / "train-00001")
    good = path.read_bytes()
    assert load_receipt(shard, digest, inputs)
    tried = 0
    for i in range(0, len(good), every):
        for bad in (good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :], good[:i]):
            path.write_bytes(bad)
            tried += 1
            assert load_receipt(shard, digest, inputs) is None
    assert tried > 30
    convert(config(source, output, shards=SHARDS))
    assert shard_hashes(output) == whole


def load_inputs(output):
    return shard_writer.read_receipt(str(output))["input"].to_pylist()


def load_digest(output):
    facts = shard_writer.read_receipt(str(output)).schema.metadata[b"shardline"]
    return facts.decode().split('"digest": "')[1][:64]


def test_a_source_that_changed_during_an_interruption_is_converted_again(source, tmp_path):
    output = interrupted(source, tmp_path / "again")
    path = source / "class1" / "img_003.jpg"
    size = path.stat().st_size
    draw(path, 99)
    path.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
    os.utime(path, (1e9, 1e9))
    result = again(source, output)
    assert result.code == 0 and result.stderr.count("is written again") == 1
    convert(config(source, tmp_path / "fresh", shards=SHARDS))
    assert shard_hashes(output) == shard_hashes(tmp_path / "fresh")


@pytest.mark.parametrize("file", ["request.json", "sources.npz", "placed.json"])
@pytest.mark.parametrize("every", [419, pytest.param(7, marks=pytest.mark.slow)])
def test_damaged_notes_end_in_a_line_or_change_nothing(source, whole, tmp_path, file, every):
    output = interrupted(source, tmp_path / "again", at="placed")
    good = {path.name: path.read_bytes() for path in (output / ".convert").iterdir()}
    placed = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    data = good[file]
    for i in range(0, len(data), every):
        (output / ".convert").mkdir(exist_ok=True)
        for name, content in {**good, file: data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]}.items():
            (output / ".convert" / name).write_bytes(content)
        result = again(source, output)
        assert "Traceback" not in result.stderr
        if file == "sources.npz":
            assert result.code == 0, result.stderr
            assert shard_hashes(output) == whole
            (output / "manifest.json").unlink()
            for path in output.iterdir():
                path.unlink()
            for name, content in placed.items():
                (output / name).write_bytes(content)
        else:
            assert result.code == 2 and "error: " in result.stderr.splitlines()[-1], result.stderr
            assert not (output / "manifest.json").exists()


def test_a_shard_that_changed_after_its_receipt_is_not_placed(source, tmp_path, monkeypatch):
    """Seen: a second attempt truncated the first one's file; the receipt was accepted, the bytes were wrong."""

    def resolve(*args, **kwargs):
        victim = written_shards(tmp_path / "d")[0]
        victim.write_bytes(bytes(victim.stat().st_size))
        return genuine(*args, **kwargs)

    from shardline.tools.conversion.deduplicate import resolve_duplicates as genuine

    monkeypatch.setattr("shardline.tools.conversion.run.resolve_duplicates", resolve)
    with pytest.raises(Failure, match=r"train-0000\d is not what its receipt says"):
        convert(config(source, tmp_path / "d", shards=SHARDS))
    assert not (tmp_path / "d" / "manifest.json").exists()
    monkeypatch.undo()
    convert(config(source, tmp_path / "d", shards=SHARDS))
    convert(config(source, tmp_path / "fresh", shards=SHARDS))
    assert shard_hashes(tmp_path / "d") == shard_hashes(tmp_path / "fresh")


# Attempts ----------------------------------------------------------------------------------------------------------


def task_of(source, output):
    paths = sorted(os.path.relpath(path, source).encode() for path in source.rglob("*.jpg"))
    inputs = tuple((number, path, number % 2) for number, path in enumerate(paths))
    return ShardTask(str(source), inputs, str(output), "0" * 64)


def test_two_attempts_of_one_shard_at_once_cannot_meet(source, tmp_path):
    """The second begins while the first is half done, and overtakes it."""
    task = task_of(source, tmp_path / "shard")
    second = []

    def overtake(position, decoding=False):
        if position == 5 and not second:
            second.append(None)
            second[0] = write_shard(task)

    first = write_shard(task, overtake)
    assert replace(first, seconds=0) == replace(second[0], seconds=0)
    assert load_receipt(task.output, task.digest, np.arange(len(task)))
    assert sorted(os.listdir(tmp_path)) == sorted(["s", "shard", receipt_path("shard").name])


def test_two_attempts_in_processes_give_one_shard(source, tmp_path):
    from multiprocessing import get_context

    task = task_of(source, tmp_path / "shard")
    with get_context("spawn").Pool(2) as pool:
        results = pool.map(write_shard, [task] * 6, chunksize=1)
    assert len({replace(result, seconds=0) for result in results}) == 1
    assert load_receipt(task.output, task.digest, np.arange(len(task)))


# Machine faults ----------------------------------------------------------------------------------------------------

MACHINE = ["EIO", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "ENOTCONN", "EMFILE", "ENFILE", "ENOMEM", "EREMOTEIO", "ENETDOWN"]


@pytest.mark.parametrize("name", MACHINE)
@pytest.mark.parametrize("where", ["open", "read"])
def test_a_fault_of_the_machine_ends_the_run_and_quarantines_nothing(source, whole, tmp_path, monkeypatch, name, where):
    number = getattr(errno, name)
    genuine_open, genuine_fstat = os.open, os.fstat

    def broken(path, *args, **kwargs):
        if isinstance(path, bytes) and path.endswith(b"img_003.jpg") and b"class1" in path:
            raise OSError(number, os.strerror(number))
        return genuine_open(path, *args, **kwargs)

    opened = []

    def open_and_note(path, *args, **kwargs):
        descriptor = genuine_open(path, *args, **kwargs)
        if isinstance(path, bytes) and path.endswith(b"img_003.jpg"):
            opened.append(descriptor)
        return descriptor

    def broken_stat(descriptor):
        if descriptor in opened:
            opened.remove(descriptor)
            raise OSError(number, os.strerror(number))
        return genuine_fstat(descriptor)

    monkeypatch.setattr(os, "open", broken if where == "open" else open_and_note)
    if where == "read":
        monkeypatch.setattr(os, "fstat", broken_stat)
    with pytest.raises(MachineFault) as caught:
        convert(config(source, tmp_path / "again", shards=SHARDS))
    assert "img_003.jpg cannot be read on " + socket.gethostname() in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    monkeypatch.undo()
    assert not (tmp_path / "again" / "manifest.json").exists()
    convert(config(source, tmp_path / "again", shards=SHARDS))
    assert shard_hashes(tmp_path / "again") == whole


@pytest.mark.parametrize("gone", ["file", "folder", "all"])
def test_what_the_scan_saw_and_is_gone_ends_the_run(source, tmp_path, gone, monkeypatch):
    def vanish(*args, **kwargs):
        path = {"file": source / "class1" / "img_003.jpg", "folder": source / "class1", "all": source}[gone]
        path.rename(tmp_path / "hidden")
        return genuine(*args, **kwargs)

    from shardline.tools.conversion.splits import make_plan as genuine

    monkeypatch.setattr("shardline.tools.conversion.run.make_plan", vanish)
    with pytest.raises(MachineFault, match="No such file or directory"):
        convert(config(source, tmp_path / "d", shards=SHARDS))
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_a_path_that_a_table_names_and_nobody_ever_saw_is_quarantined(source, tmp_path):
    (source / "t.csv").write_text("path,label\nclass0/img_000.jpg,a\nclass0/none.jpg,a\nclass1/img_001.jpg,b\n")
    manifest = convert(config(source / "t.csv", tmp_path / "d"))
    assert (manifest.ledger.written, manifest.ledger.quarantined) == (2, 1)


def test_want_of_memory_is_the_machine_s_fault(source, tmp_path, monkeypatch):
    def process(data, options):
        raise MemoryError

    monkeypatch.setattr(shard_writer, "process", process)
    with pytest.raises(MachineFault, match="out of memory; use fewer"):
        convert(config(source, tmp_path / "d", shards=SHARDS))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_its_own_fault_where_the_scan_ran(tmp_path):
    path = draw(tmp_path / "x.jpg", 1)
    path.chmod(0)
    with pytest.raises(ValueError, match="unreadable"):
        read_file(os.fsencode(path), 10**6, seen=True)
    with pytest.raises(MachineFault, match="Permission denied"):
        read_file(os.fsencode(path), 10**6, seen=True, seen_on="another host")


def test_permission_is_judged_by_where_the_scan_ran(tmp_path, monkeypatch):
    """The same for root, to whom nothing is denied."""

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ValueError, match="unreadable"):
        read_file(b"x.jpg", 10**6, seen=True)
    with pytest.raises(MachineFault, match="Permission denied"):
        read_file(b"x.jpg", 10**6, seen=True, seen_on="another host")


def test_a_machine_fault_crosses_processes(source, tmp_path, monkeypatch):
    """With worker processes, too, the run ends in one line that names host and path."""

    def vanish(*args, **kwargs):
        (source / "class1" / "img_003.jpg").unlink()
        return genuine(*args, **kwargs)

    from shardline.tools.conversion.splits import make_plan as genuine

    monkeypatch.setattr("shardline.tools.conversion.run.make_plan", vanish)
    result = again(source, tmp_path / "d", "--engine", "processes")
    assert (result.code, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert "class1/img_003.jpg cannot be read on " in result.stderr


def test_what_stands_in_an_image_s_place_is_its_own_fault(source, tmp_path):
    (source / "class1" / "img_003.jpg").unlink()
    os.mkfifo(source / "class1" / "img_003.jpg")
    (source / "class1" / "img_004.jpg").unlink()
    (source / "class1" / "img_004.jpg").symlink_to("nowhere")
    manifest = convert(config(source, tmp_path / "d", shards=SHARDS, engine="processes", workers=2))
    assert manifest.ledger.quarantined == 2
