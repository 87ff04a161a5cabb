"""--append: another generation beside the old ones, whose bytes, numbers and digests stay what they are."""

import hashlib
import json
import shutil
from itertools import islice

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from shardline import pipeline
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.remote import DataCacheOptions
from shardline.pipeline.sources_table import read_sources
from shardline.tools.conversion.run import convert
from shardline.tools.inspect import InspectConfig, inspect
from shardline.tools.verify import VerifyConfig, verify
from tests.pipeline.stores import folder_store
from tests.pipeline.tiny import edit_stored
from tests.tools.conversion.test_resume import SHARDS, receipts, start, wait_for
from tests.tools.folders import Run, class_folders, config, draw, records

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def files(directory):
    """Every file of a dataset but its manifest, by path, with its content and when it was written."""
    return {
        str(path.relative_to(directory)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def faults(directory):
    return list(verify(VerifyConfig(data=directory, workers=1)).faults)


def splits(directory):
    table = read_sources(directory, ["path", "split"]).to_pylist()
    return {row["path"]: row["split"] for row in table}


@pytest.fixture
def source(tmp_path):
    return class_folders(tmp_path / "s", 2, 12)


@pytest.fixture
def dataset(source, tmp_path):
    convert(config(source, tmp_path / "d", splits=SHARES, shards=2))
    return tmp_path / "d"


@pytest.fixture
def more(tmp_path):
    """Eight images of a class there is, and eight of one that comes first by its name."""
    for i in range(8):
        draw(tmp_path / "more" / "class1" / f"new_{i:03d}.jpg", 5000 + i)
        draw(tmp_path / "more" / "a_class" / f"img_{i:03d}.jpg", 6000 + i)
    return tmp_path / "more"


def add(more, dataset, **changes):
    return convert(config(more, dataset, append=True, **{"shards": 2, "image": {}} | changes))


def test_a_generation_changes_no_byte_and_no_number_of_what_was_there(dataset, more, tmp_path, capsys):
    before, old = files(dataset), Manifest.load(dataset)
    stored = {name: records(dataset, name) for name in old.splits}
    grown = add(more, dataset)
    assert "note: new class: 'a_class' is label 2" in capsys.readouterr().err
    after = files(dataset)
    assert {path: after[path] for path in before} == before
    assert all(path.startswith("generation-00002/") for path in after.keys() - before.keys())
    assert grown == Manifest.load(dataset) and grown.labels == ("class0", "class1", "a_class")
    assert [then.digest for then in grown.generations] == [old.digest, grown.digest]
    first = grown.at(1)
    assert (first.digest, first.labels, first.ledger, first.image) == (old.digest, old.labels, old.ledger, old.image)
    assert (first.class_counts, first.splits) == (old.class_counts, old.splits)
    for name, examples in stored.items():
        assert records(dataset, name)[: len(examples)] == examples
    assert sum(split.records for split in grown.splits.values()) == 24 + 16 == grown.ledger.written
    assert faults(dataset) == []
    assert f"generation 1: 24 written, digest {old.digest}" in inspect(InspectConfig(data=dataset))
    # Where each image lies is what a conversion of all of them at once would say.
    shutil.copytree(more, tmp_path / "s", dirs_exist_ok=True)
    convert(config(tmp_path / "s", tmp_path / "whole", splits=SHARES))
    assert splits(dataset) == splits(tmp_path / "whole")


def test_a_folder_that_grew_adds_only_what_is_new(source, dataset, more, capsys):
    shutil.copytree(more, source, dirs_exist_ok=True)
    grown = add(source, dataset)
    assert "left out 24 inputs that the dataset has already, unchanged" in capsys.readouterr().err
    assert grown.ledger.inputs == 40
    again = add(source, dataset)
    assert again == grown and "nothing to add" in capsys.readouterr().err
    assert not (dataset / "generation-00003").exists()
    draw(source / "class0" / "img_000.jpg", 777)  # another image under a known name
    assert add(source, dataset).num_generations == 3
    assert "1 input with a path that the dataset has, but other content, e.g. class0/img_000.jpg" in (
        capsys.readouterr().err
    )
    assert faults(dataset) == []


def test_a_single_image_can_be_added_and_moves_none(dataset, tmp_path):
    before = splits(dataset)
    draw(tmp_path / "one" / "class0" / "img_100.jpg", 4242)
    grown = add(tmp_path / "one", dataset)
    assert grown.ledger.written == 25 and faults(dataset) == []
    assert splits(dataset) == before | {"class0/img_100.jpg": splits(dataset)["class0/img_100.jpg"]}


def test_two_generations_of_the_same_inputs_are_the_same_bytes(source, dataset, more, tmp_path):
    shutil.copytree(dataset, tmp_path / "e")
    first = add(more, dataset)
    assert add(more, tmp_path / "e", engine="processes", workers=2).digest == first.digest


@pytest.mark.parametrize("duplicates", ["keep", "drop", "fail"])
def test_images_that_the_dataset_has_are_found_by_their_pixels(source, dataset, more, duplicates):
    held = splits(dataset)
    copied = [path for path in held if held[path] != "train"][:3] + [path for path in held if held[path] == "train"][:1]
    for number, path in enumerate(copied):
        shutil.copy(source / path, more / "class1" / f"copy_{number}.jpg")
    before, old = files(dataset), (dataset / "manifest.json").read_bytes()
    if duplicates == "fail":
        with pytest.raises(Failure, match=r"4 of 20 images have the pixels of another, e\.g\. class1/copy_"):
            add(more, dataset, duplicates=duplicates)
        assert (dataset / "manifest.json").read_bytes() == old
        assert {path: fact for path, fact in files(dataset).items() if path in before} == before
        return
    grown = add(more, dataset, duplicates=duplicates)
    assert grown.ledger.duplicates == (4 if duplicates == "drop" else 0)
    assert faults(dataset) == []
    if duplicates == "keep":
        assert [splits(dataset)[f"class1/copy_{n}.jpg"] for n in range(4)] == [held[path] for path in copied]


def test_near_duplicates_of_earlier_generations_are_reported_with_both_images(source, dataset, more):
    held = splits(dataset)
    for number, path in enumerate(("class0/img_003.jpg", "class1/img_005.jpg")):
        near = cv2.imread(str(source / path))
        cv2.imwrite(str(more / "class1" / f"near_{number}.jpg"), cv2.convertScaleAbs(near, alpha=0.9, beta=5))
    shutil.copy(source / "class0" / "img_004.jpg", more / "class1" / "equal.jpg")  # is told as equal, not as alike
    add(more, dataset, report=True)
    written = (dataset / "generation-00002" / "near_duplicates.csv").read_text().splitlines()[1:]
    rows = {tuple(line.split(",")[:4]): line.split(",")[4] for line in written}
    first = ("class1/near_0.jpg", "class0/img_003.jpg", "class1", "class0")
    second = ("class1/near_1.jpg", "class1/img_005.jpg", "class1", "class1")
    assert rows.keys() == {first, second}
    for new, old, *_ in rows:
        assert (splits(dataset)[new] != held[old]) is (rows[new, old, *_] == "1")
    page = (dataset / "generation-00002" / "report.html").read_text()
    assert "In 2 pairs the other image is one of an earlier generation" in page
    third = Manifest.load(dataset)
    draw(more / "class0" / "later.jpg", 31)
    assert add(more, dataset, report=True).num_generations == 3 > third.num_generations


@pytest.mark.parametrize("where", ["finalize._place", "run.write_tfds_metadata", "run.write_shard", "Manifest.save"])
def test_killed_anywhere_it_is_the_old_dataset_whole_and_goes_on(dataset, more, tmp_path, monkeypatch, where):
    shutil.copytree(dataset, tmp_path / "e")
    wanted = add(more, tmp_path / "e").digest
    old = (dataset / "manifest.json").read_bytes()
    target = (
        f"shardline.tools.conversion.{where}" if "Manifest" not in where else f"shardline.pipeline.manifest.{where}"
    )
    with monkeypatch.context() as patch:
        patch.setattr(target, lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add(more, dataset)
    assert (dataset / "manifest.json").read_bytes() == old and faults(dataset) == []
    assert len(pipeline.open_dataset(dataset).shards("train")) == Manifest.load(dataset).splits["train"].records
    assert add(more, dataset).digest == wanted
    assert faults(dataset) == [] and not list(dataset.rglob(".convert"))


def test_killed_when_all_was_done_the_next_run_sweeps(dataset, more, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shardline.tools.conversion.output.Output.remove_work", lambda place: None)
        grown = add(more, dataset)
    assert list(dataset.rglob(".convert"))
    assert add(more, dataset).digest == grown.digest
    assert not list(dataset.rglob(".convert"))


def test_an_interrupted_one_is_not_mixed_with_another(dataset, more, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shardline.tools.conversion.run.write_tfds_metadata", None)
        with pytest.raises(TypeError):
            add(more, dataset)
    draw(more / "class0" / "late.jpg", 99)
    with pytest.raises(UsageError, match=r"interrupted conversion that was asked for something else .*1 input added"):
        add(more, dataset)
    assert add(more, dataset, overwrite=True).ledger.written == 24 + 17
    assert faults(dataset) == []


def test_readers_see_the_generation_they_ask_for(dataset, more):
    old = pipeline.open_dataset(dataset)
    settings = pipeline.InputConfig(global_batch_size=4, image_size=32, workers=0, threads=1)
    order = [next(old.numpy_batches("train", settings))["record"] for _ in range(1)]
    add(more, dataset)
    new, then = pipeline.open_dataset(dataset), pipeline.open_dataset(dataset, DataCacheOptions(generation=1))
    assert new.num_records("train") > old.num_records("train") == then.num_records("train")
    assert new.labels == ("class0", "class1", "a_class") and then.labels == old.labels == ("class0", "class1")
    assert then.manifest.digest == old.manifest.digest != new.manifest.digest
    assert pipeline.open_dataset(dataset, digest=old.manifest.digest).manifest.digest == old.manifest.digest
    np.testing.assert_array_equal([next(then.numpy_batches("train", settings))["record"]], order)
    last = new.num_records("train") - 1
    assert [name for _, _, name in new.records("train", [last])] == [records(dataset, "train")[-1].filename]
    with pytest.raises(UsageError, match=r"generation=3: this dataset has 2 generations"):
        pipeline.open_dataset(dataset, DataCacheOptions(generation=3))


def test_a_grown_dataset_in_an_object_store_is_read_as_here(dataset, more, tmp_path, monkeypatch):
    add(more, dataset)
    store = folder_store(monkeypatch, dataset, tmp_path / "cache")
    settings = pipeline.InputConfig(global_batch_size=8, image_size=32, workers=0, threads=1)
    here, there = pipeline.open_dataset(dataset), pipeline.open_dataset("s3://bucket/data")
    for ours, theirs in zip(*(islice(data.numpy_batches("train", settings), 5) for data in (here, there)), strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"])
        np.testing.assert_array_equal(ours["record"], theirs["record"])
    table = read_sources(there.companion("sources.parquet").parent, ["path", "record"])
    assert table == read_sources(dataset, ["path", "record"]) and len(table) == 40
    assert not any(name.endswith(".idx") for name in store.opened)  # that of each split is enough
    index = there.directory / "images-train.index"
    index.write_bytes(bytes(len(index.read_bytes())))  # as a disk that lost its power leaves it
    again = pipeline.open_dataset("s3://bucket/data")
    assert store.opened[index.name] == 2
    np.testing.assert_array_equal(again.shards("train").locations(np.arange(4)),
                                  here.shards("train").locations(np.arange(4)))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("receipts_there", [0, 1, 3])
def test_kill_9_leaves_the_old_dataset_whole(tmp_path, receipts_there):
    convert(config(class_folders(tmp_path / "s", 2, 8), tmp_path / "d"))
    more = class_folders(tmp_path / "m", 2, 20, "more", height=1200, width=1600) / "more"
    shutil.copytree(tmp_path / "d", tmp_path / "e")
    wanted = convert(config(more, tmp_path / "e", append=True, shards=SHARDS)).digest
    old = (tmp_path / "d" / "manifest.json").read_bytes()
    process = start(more, tmp_path / "d", "--append")
    wait_for(lambda: (tmp_path / "d" / "generation-00002").exists())
    wait_for(lambda: len(receipts(tmp_path / "d" / "generation-00002")) >= receipts_there)
    process.kill()
    process.wait(60)
    assert (tmp_path / "d" / "manifest.json").read_bytes() == old and faults(tmp_path / "d") == []
    assert convert(config(more, tmp_path / "d", append=True, shards=SHARDS)).digest == wanted
    assert faults(tmp_path / "d") == [] and not list((tmp_path / "d").rglob(".convert"))


def test_splits_of_folders_and_new_ones(tmp_path):
    source = class_folders(class_folders(tmp_path / "s", 2, 4, "train"), 2, 4, "validation")
    convert(config(source, tmp_path / "d"))
    more = class_folders(class_folders(tmp_path / "m", 2, 3, "train"), 2, 3, "test")
    shutil.copytree(class_folders(tmp_path / "x", 2, 3, "other") / "other", more / "train", dirs_exist_ok=True)
    grown = add(more, tmp_path / "d")
    assert list(grown.splits) == ["train", "validation", "test"]
    assert list(grown.at(1).splits) == ["train", "validation"]
    assert faults(tmp_path / "d") == []


def test_splits_that_are_called_otherwise_are_refused_or_noted(tmp_path, capsys):
    convert(config(class_folders(class_folders(tmp_path / "s", 2, 4, "train"), 2, 4, "val"), tmp_path / "d"))
    with pytest.raises(UsageError, match="the split Val is val in the dataset, and differs in case or spaces only"):
        add(class_folders(tmp_path / "x", 2, 3, "Val"), tmp_path / "d")
    add(class_folders(tmp_path / "y", 2, 3, "valid"), tmp_path / "d")
    assert "the splits val and valid are of one kind by their names" in capsys.readouterr().err


def test_options_of_the_dataset_are_told_as_one_types_them(dataset, more, capsys):
    add(more, dataset, splits={}, image={"size": 256})
    assert "note: as the dataset: --splits=train=0.6,validation=0.2,test=0.2 --size=16\n" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_in_one_line(dataset, more, tmp_path):
    for changes, said in [
        ({"image": {"size": 32}}, "size=32: the dataset was made with 16, which append keeps"),
        ({"seed": 5}, "seed=5: the dataset was made with 0"),
        (
            {"splits": {"train": 1.0}},
            "splits=train=1: the dataset was made with train=0.6,validation=0.2,test=0.2, which",
        ),
        ({"name": "others"}, "name=others: the dataset was made with images"),
    ]:
        with pytest.raises(UsageError) as caught:
            add(more, dataset, **changes)
        assert said in str(caught.value)
    draw(tmp_path / "similar" / "Class1" / "x.jpg", 1)
    with pytest.raises(UsageError, match="differ in case or spaces only"):
        add(tmp_path / "similar", dataset)
    (tmp_path / "names").write_text("class1\nclass0\nother\n")
    with pytest.raises(UsageError, match="does not begin with the dataset's classes"):
        add(more, dataset, class_names=tmp_path / "names")
    with pytest.raises(UsageError, match="no such directory"):
        add(more, tmp_path / "nowhere")
    add(more, dataset)
    with pytest.raises(UsageError, match=r"holds another dataset, 'images' \(2 generations\); add to it with append"):
        convert(config(more, dataset))


def cut(table):
    return table.slice(0, len(table) - 1)


def with_value(name, value):
    """The table with another value in its second row."""

    def change(table):
        values = table[name].to_pylist()
        values[1] = value
        return table.set_column(
            table.schema.names.index(name), table.schema.field(name), [pa.array(values, table.schema.field(name).type)]
        )

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut, "23 rows, the manifest says 24"),
        (lambda table: pa.concat_tables([table, table]), "48 rows, the manifest says 24"),
        (lambda table: table.slice(0, 0), "0 rows, the manifest says 24"),
        (with_value("path", None), "values of path are missing"),
        (with_value("split", "elsewhere"), "values of split are not this dataset's"),
        (with_value("label", 2), "values of label are not this dataset's"),
        (with_value("label", -2), "values of label are not this dataset's"),
        (with_value("status", "lost"), "values of status are not this dataset's"),
        (with_value("pixel_hash", "z" * 32), "values of pixel_hash are not this dataset's"),
        (with_value("sha256", "0" * 64 + "\n"), "values of sha256 are not this dataset's"),
    ],
)
def test_a_table_that_is_not_the_dataset_s_is_nothing_to_add_to(dataset, more, change, said):
    """What it leaves out would be taken for new, and be in the dataset twice."""
    parquet.write_table(change(parquet.read_table(dataset / "sources.parquet")), dataset / "sources.parquet")
    before = files(dataset)
    with pytest.raises(UsageError) as refusal:
        add(more, dataset)
    assert said in str(refusal.value) and Manifest.load(dataset).num_generations == 1
    assert {name: facts for name, facts in files(dataset).items() if name in before} == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shard", "../../etc/passwd"),
        ("offset", 2**62),
        ("offset", -(2**62)),
        ("size", 2**62),
        ("size", -5),
        ("record", 99),
    ],
)
def test_rows_that_lead_elsewhere_are_not_followed(dataset, name, value):
    table = parquet.read_table(dataset / "sources.parquet")
    parquet.write_table(with_value(name, value)(table), dataset / "sources.parquet")
    with pytest.raises(UsageError, match=f"values of {name} are not this dataset's"):
        read_sources(dataset, [name])


def test_overwrite_removes_every_generation(source, dataset, more):
    wanted = Manifest.load(dataset).digest
    add(more, dataset)
    assert convert(config(source, dataset, splits=SHARES, shards=2, overwrite=True)).digest == wanted
    assert not (dataset / "generation-00002").exists() and faults(dataset) == []


def test_the_command_takes_the_dataset_s_own_options(dataset, more):
    result = Run("shardline.tools.convert", "--source", more, "--output", dataset, "--append", "--engine", "inline")
    assert result.code == 0, result.stderr
    assert "--name=images" in result.stderr and "--size=16" in result.stderr
    assert "this is generation 2 of" in result.stderr
    assert result.stdout.splitlines()[-1] == Manifest.load(dataset).digest
    assert (dataset / "generation-00002" / "report.html").exists()
    assert faults(dataset) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["generations"][0].update(labels=9), "a generation has less than the one before"),
        (lambda c: c["generations"][1].update(labels=2), "its last generation is not what it is"),
        (lambda c: c["generations"].pop(), "its last generation is not what it is"),
        (lambda c: c["generations"][0]["shards"].update(train=1), "names files that are not its shards"),
    ],
)
def test_generations_that_cannot_be_are_refused(dataset, more, change, said):
    add(more, dataset)
    edit_stored(dataset / "manifest.json", change)
    with pytest.raises(UsageError, match=said):
        Manifest.load(dataset)


def test_verify_finds_an_older_generation_that_is_not_what_it_was(dataset, more):
    add(more, dataset)
    edit_stored(dataset / "manifest.json", lambda c: c["generations"][0].update(digest="0" * 64))
    assert any("generation 1 is not what it was" in fault for fault in faults(dataset))
    (dataset / "generation-00002" / "features.json").write_text(json.dumps({}))
    assert any(fault.startswith("generation-00002/features.json") for fault in faults(dataset))


def test_tfds_opens_a_generation_by_itself(dataset, more):
    tfds = pytest.importorskip("tensorflow_datasets")
    grown = add(more, dataset)
    builder = tfds.builder_from_directory(dataset / "generation-00002")
    added = {name: sum(shard.records for shard in shards) for name, shards in grown.added(2).items() if shards}
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == added
    assert tuple(builder.info.features["label"].names) == grown.labels


def test_an_input_whose_class_is_another_now_is_refused_and_never_left_out_as_unchanged(tmp_path, capsys):
    for number in range(4):
        draw(tmp_path / f"{number}.jpg", number)
    table = tmp_path / "t.csv"
    table.write_text("path,label,split\n0.jpg,cat,train\n1.jpg,dog,train\n2.jpg,dog,test\n")
    convert(config(table, tmp_path / "d"))
    table.write_text("path,label,split\n0.jpg,dog,train\n1.jpg,dog,train\n2.jpg,dog,test\n3.jpg,cat,train\n")
    with pytest.raises(UsageError) as error:
        convert(config(table, tmp_path / "d", append=True))
    assert "1 input that the dataset has already is of another class now, e.g. 0.jpg: 'cat' there, 'dog'" in str(error)
    convert(config(table, tmp_path / "d", append=True, exclude=("0.jpg",)))
    named = {row["path"]: row["label_name"] for row in read_sources(tmp_path / "d", ["path", "label_name"]).to_pylist()}
    assert named == {"0.jpg": "cat", "1.jpg": "dog", "2.jpg": "dog", "3.jpg": "cat"}
    capsys.readouterr()
    table.write_text("path,label,split\n0.jpg,cat,train\n1.jpg,dog,train\n2.jpg,dog,train\n")
    convert(config(table, tmp_path / "d", append=True))
    assert "1 input in another split than in the dataset, e.g. 2.jpg" in capsys.readouterr().err
