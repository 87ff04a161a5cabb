"""shardline-merge: several datasets under one manifest, shards linked and not rewritten wherever the labels allow."""

import os
import shutil

import pytest

from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.manifest import Manifest, index_path
from shardline.pipeline.sources_table import read_sources
from shardline.tools.adopt import AdoptConfig, adopt
from shardline.tools.conversion.run import convert
from shardline.tools.merge import MergeConfig, merge
from shardline.tools.verify import VerifyConfig, verify
from tests.pipeline.tiny import payloads, write_dataset
from tests.tools.folders import Run, class_folders, config, draw, records, shard_hashes
from tests.tools.test_adopt_others import ints, put, texts

SHARES = {"train": 0.75, "test": 0.25}


def faults(directory):
    return list(verify(VerifyConfig(data=directory, workers=1)).faults)


def names(directory, split):
    """File name and class of each record."""
    labels = Manifest.load(directory).labels
    return [(example.filename, labels[example.label]) for example in records(directory, split)]


@pytest.fixture
def a(tmp_path):
    convert(config(class_folders(tmp_path / "sa", 2, 12), tmp_path / "a", splits=SHARES, shards=2))
    return tmp_path / "a"


@pytest.fixture
def b(tmp_path):
    """The classes of `a` and one that comes after them."""
    source = class_folders(tmp_path / "sb", 3, 8, "x") / "x"
    convert(config(source, tmp_path / "b", splits=SHARES, shards=2))
    return tmp_path / "b"


@pytest.fixture
def c(tmp_path):
    """A class that comes first by its name: all others have other numbers than in `a`."""
    source = class_folders(tmp_path / "sc", 2, 8, "yy") / "yy"
    for i in range(8):
        draw(source / "another" / f"{i}.jpg", 9000 + i)
    convert(config(source, tmp_path / "c", splits=SHARES, shards=2))
    return tmp_path / "c"


def test_shards_are_linked_where_labels_allow(a, b, tmp_path):
    before = shard_hashes(a) | shard_hashes(b)
    whole = merge(MergeConfig(data=(a, b), output=tmp_path / "out"))
    assert whole == Manifest.load(tmp_path / "out") and whole.labels == ("class0", "class1", "class2")
    for split in ("train", "test"):
        files = [source / s.file for source in (a, b) for s in Manifest.load(source).splits[split].shards]
        for file, shard in zip(files, whole.splits[split].shards, strict=True):
            assert os.path.samefile(file, tmp_path / "out" / shard.file)
            assert os.path.samefile(index_path(file), index_path(tmp_path / "out" / shard.file))
        assert names(tmp_path / "out", split) == names(a, split) + names(b, split)
    assert shard_hashes(a) | shard_hashes(b) == before
    assert whole.ledger.inputs == 24 + 24 and faults(tmp_path / "out") == []


def test_other_label_numbers_rewrite_records_with_the_same_images(a, c, tmp_path):
    whole = merge(MergeConfig(data=(a, c), output=tmp_path / "out"))
    assert whole.labels == ("class0", "class1", "another")
    for split in ("train", "test"):
        assert names(tmp_path / "out", split) == names(a, split) + names(c, split)
        images = [e.image for source in (a, c) for e in records(source, split)]
        assert [bytes(e.image) for e in records(tmp_path / "out", split)] == list(map(bytes, images))
    assert faults(tmp_path / "out") == []
    table = read_sources(tmp_path / "out", ["path", "label_name"]).to_pylist()
    assert all(row["path"].startswith(row["label_name"]) for row in table)


def test_the_digest_is_a_function_of_the_datasets_and_their_order(a, b, c, tmp_path):
    first = merge(MergeConfig(data=(a, b, c), output=tmp_path / "1")).digest
    shutil.copytree(a, tmp_path / "elsewhere")
    assert merge(MergeConfig(data=(tmp_path / "elsewhere", b, c), output=tmp_path / "2")).digest == first
    assert merge(MergeConfig(data=(b, a, c), output=tmp_path / "3")).digest != first


def test_a_dataset_that_was_added_to_becomes_one_folder_that_tfds_opens(a, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    grown = convert(config(class_folders(tmp_path / "more", 3, 4, "zzz") / "zzz", a, append=True))
    flat = merge(MergeConfig(data=(a,), output=tmp_path / "flat"))
    assert {name: split.records for name, split in flat.splits.items()} == {
        name: split.records for name, split in grown.splits.items()
    }
    assert faults(tmp_path / "flat") == []
    found = tfds.builder_from_directory(tmp_path / "flat").info.splits
    assert {name: split.num_examples for name, split in found.items()} == {
        name: split.records for name, split in flat.splits.items()
    }
    # It can be added to again.
    more = class_folders(tmp_path / "again", 2, 3, "wwww") / "wwww"
    assert convert(config(more, tmp_path / "flat", append=True)).num_generations == 2
    assert faults(tmp_path / "flat") == []


def test_duplicates_across_are_noted_or_refused(a, tmp_path, capsys):
    source = class_folders(tmp_path / "sb", 2, 8, "x") / "x"
    for i in range(12):
        shutil.copy(tmp_path / "sa" / "class0" / f"img_{i:03d}.jpg", source / "class0" / f"copy_{i * 7}.jpg")
    convert(config(source, tmp_path / "b", splits=SHARES))
    capsys.readouterr()
    with pytest.raises(Failure, match=r"12 images have the pixels of one in another dataset, e\.g\. class0/"):
        merge(MergeConfig(data=(a, tmp_path / "b"), output=tmp_path / "out", duplicates="fail"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    merge(MergeConfig(data=(a, tmp_path / "b"), output=tmp_path / "out"))
    assert "note: 12 images have the pixels of one in another dataset" in capsys.readouterr().err
    assert faults(tmp_path / "out") == []


def test_splits_that_two_datasets_call_otherwise_are_noted(a, tmp_path, capsys):
    convert(config(class_folders(tmp_path / "y", 2, 4, "training"), tmp_path / "other"))
    assert set(merge(MergeConfig(data=(a, tmp_path / "other"), output=tmp_path / "out")).splits) > {"train", "training"}
    assert "the splits train and training are of one kind by their names" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_in_words(a, tmp_path):
    source = class_folders(tmp_path / "x", 2, 4)
    for number, (changes, said) in enumerate(
        [
            ({"image": {"size": 20}}, "size 20 there, 16 in "),
            ({"image": {"encoding": "png"}}, "encoding png there, jpeg in "),
            ({"image": {"resize": "squash"}}, "resize squash there, short in "),
            ({"image": {"upscale": True}}, "upscale True there, False in "),
        ]
    ):
        convert(config(source, tmp_path / f"{number}", **changes))
        with pytest.raises(UsageError) as caught:
            merge(MergeConfig(data=(a, tmp_path / f"{number}"), output=tmp_path / "out"))
        assert said in str(caught.value)
    draw(tmp_path / "similar" / "Class1" / "x.jpg", 1)
    convert(config(tmp_path / "similar", tmp_path / "s"))
    with pytest.raises(UsageError, match=r"differ in case or spaces only; .* with merge_similar_labels$"):
        merge(MergeConfig(data=(a, tmp_path / "s"), output=tmp_path / "out"))
    together = merge(MergeConfig(data=(a, tmp_path / "s"), output=tmp_path / "out", merge_similar_labels=True))
    assert together.labels == ("class0", "class1") and faults(tmp_path / "out") == []
    convert(config(class_folders(tmp_path / "y", 2, 4, "Train"), tmp_path / "upper"))
    with pytest.raises(UsageError, match="the splits 'train' of another dataset and 'Train' differ in case only"):
        merge(MergeConfig(data=(a, tmp_path / "upper"), output=tmp_path / "out2"))
    with pytest.raises(UsageError, match="holds another dataset"):
        merge(MergeConfig(data=(a,), output=tmp_path / "out"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        merge(MergeConfig(data=(a,), output=tmp_path / "full"))


def test_adopted_ones_and_converted_ones_are_not_joined_and_nothing_is_appended(a, tmp_path):
    write_dataset(tmp_path / "theirs", {"train": payloads(8)})
    for name in ("manifest.json", *(path.name for path in (tmp_path / "theirs").glob("*.idx"))):
        (tmp_path / "theirs" / name).unlink()
    adopt(AdoptConfig(data=tmp_path / "theirs", workers=1))
    with pytest.raises(UsageError, match=r"theirs was adopted, \S+ converted; convert the images of both together$"):
        merge(MergeConfig(data=(a, tmp_path / "theirs"), output=tmp_path / "out"))
    with pytest.raises(UsageError, match=r"holds shards that were adopted, .* and run shardline-adopt overwrite, or"):
        convert(config(tmp_path / "sa", tmp_path / "theirs", append=True))


def theirs(folder, name, labels, *, make=ints, files=2, gap=False, **options):
    """A dataset of shards of somebody else's, in folders; with a record that cannot be used."""
    for number in range(files):
        kept = [*map(make, labels), *([None] if gap and not number else [])]
        put(folder / name / "train" / f"{number:02}-48x32-{len(labels)}.tfrec", kept)
    put(folder / name / "val" / "00.tfrec", map(make, labels[:2]))
    return adopt(AdoptConfig(data=folder / name, workers=1, **options))


@pytest.mark.parametrize(
    ("make", "kind", "one", "two"),
    [
        (ints, "", [0, 1, 2, 1], [1, 0, 2, 3]),  # one more class in the second
        (lambda name: texts(name.encode()), "name", ["rose", "tulip"], ["iris", "tulip", "rose"]),  # other numbers
        (lambda label: ints(*(int(label == n) for n in range(3))), "onehot", [0, 2, 1], [2, 1, 0]),
    ],
)
def test_adopted_ones_are_joined_by_links_with_their_records_and_classes(tmp_path, make, kind, one, two):
    theirs(tmp_path, "a", one, make=make, gap=True, label_kind=kind)
    theirs(tmp_path, "b", two, make=make, label_kind=kind)
    before = shard_hashes(tmp_path)
    whole = merge(MergeConfig(data=(tmp_path / "a", tmp_path / "b"), output=tmp_path / "out"))
    assert whole == Manifest.load(tmp_path / "out") and whole.adopted
    assert whole.ledger.quarantined == 1
    for split, count in (("train", 2), ("val", 1)):
        parts = [Manifest.load(tmp_path / side).splits[split].shards for side in "ab"]
        files = [tmp_path / side / shard.file for side, shards in zip("ab", parts, strict=True) for shard in shards]
        assert len(files) == 2 * count
        for file, shard in zip(files, whole.splits[split].shards, strict=True):
            assert os.path.samefile(file, tmp_path / "out" / shard.file)
        assert names(tmp_path / "out", split) == names(tmp_path / "a", split) + names(tmp_path / "b", split)
        images = [bytes(example.image) for side in "ab" for example in records(tmp_path / side, split)]
        assert [bytes(example.image) for example in records(tmp_path / "out", split)] == images
        labels = [label for _, label in names(tmp_path / "out", split)]
        assert whole.class_counts[split] == tuple(map(labels.count, whole.labels))
    assert shard_hashes(tmp_path).items() >= before.items()
    assert faults(tmp_path / "out") == []
    again = merge(MergeConfig(data=(tmp_path / "a", tmp_path / "b"), output=tmp_path / "out"))
    assert again.digest == whole.digest
    more = merge(MergeConfig(data=(tmp_path / "out", tmp_path / "b"), output=tmp_path / "more"))
    assert len(more.splits["train"].shards) == 6 and faults(tmp_path / "more") == []


def test_the_same_images_twice_are_refused(a, b, tmp_path):
    """A dataset under two names, or one and what it has grown to."""
    shutil.copytree(a, tmp_path / "grown")
    more = class_folders(tmp_path / "more", 2, 3, "wwww") / "wwww"
    convert(config(more, tmp_path / "grown", append=True))
    shutil.copytree(a, tmp_path / "copy")
    for data in ((a, b, a), (b, a, tmp_path / "copy"), (a, tmp_path / "grown"), (tmp_path / "grown", a)):
        with pytest.raises(UsageError, match=r"its images lie in \S+, too, .* name one of the two"):
            merge(MergeConfig(data=data, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_adopted_ones_that_do_not_fit_are_refused_in_one_line(tmp_path):
    (tmp_path / "rt").write_text("rose\ntulip\n")
    (tmp_path / "tr").write_text("tulip\nrose\n")
    theirs(tmp_path, "a", [0, 1], class_names=str(tmp_path / "rt"))
    theirs(tmp_path, "b", [0, 1], class_names=str(tmp_path / "tr"))
    theirs(tmp_path, "c", [1, 2], label_offset=-1)
    theirs(tmp_path, "d", [0, 1], make=lambda label: ints(int(label == 0), int(label == 1)), label_kind="onehot")
    theirs(tmp_path, "e", [0, 2], make=lambda n: ints(*(int(n == i) for i in range(3))), label_kind="onehot")
    theirs(tmp_path, "f", ["Rose"], make=lambda name: texts(name.encode()), label_kind="name")
    theirs(tmp_path, "g", ["rose"], make=lambda name: texts(name.encode()), label_kind="name")
    theirs(tmp_path, "h", [1, 0], class_names=str(tmp_path / "rt"))
    for data, options, message in (
        ("ab", {}, r"b was adopted with other classes than the rest, and its records are not rewritten; adopt"),
        ("ac", {}, r"c: its records have other features \(label_offset -1 there, 0 in \S+a\); write one of them again"),
        ("ad", {}, r"label_kind 'onehot' there, '' in "),
        ("de", {}, r"d was adopted with other classes"),
        ("fg", {"merge_similar_labels": True}, r"g was adopted with other classes"),
        (
            "ah",
            {"duplicates": "fail"},
            r"duplicates=fail: adopted datasets do not tell the pixels of their images",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            merge(MergeConfig(data=tuple(tmp_path / name for name in data), output=tmp_path / "out", **options))
        assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("where", ["merging._place", "merging.write_tfds_metadata"])
def test_killed_it_is_no_dataset_and_begins_again(a, b, tmp_path, monkeypatch, where):
    from shardline.tools.conversion import merging

    wanted = merge(MergeConfig(data=(a, b), output=tmp_path / "whole")).digest
    calls = []
    genuine = getattr(merging, where.split(".")[1])

    def fail(*args):
        calls.append(args)
        if len(calls) == 3 or "tfds" in where:
            raise KeyboardInterrupt
        return genuine(*args)

    with monkeypatch.context() as patch:
        patch.setattr(f"shardline.tools.conversion.{where}", fail)
        with pytest.raises(KeyboardInterrupt):
            merge(MergeConfig(data=(a, b), output=tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert merge(MergeConfig(data=(a, b), output=tmp_path / "out")).digest == wanted
    assert faults(tmp_path / "out") == [] and not (tmp_path / "out" / ".convert").exists()


def test_the_command_prints_the_digest_and_does_it_once(a, b, tmp_path):
    for _ in range(2):
        result = Run("shardline.tools.merge", a, b, "--output", tmp_path / "out")
        assert result.code == 0, result.stderr
        assert result.stdout == f"{Manifest.load(tmp_path / 'out').digest}\n"
    assert "finished already" in result.stderr
    assert Run("shardline.tools.merge", "--output", tmp_path / "x").code == 2
