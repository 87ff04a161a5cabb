"""Finding inputs: which files count, which class they get, and what is refused."""

import errno
import os
import shutil
import threading
import zipfile

import numpy as np
import pytest

from shardline.pipeline.errors import UsageError
from shardline.tools.conversion.labels import LabelOptions, read_class_names
from shardline.tools.conversion.scan import ScanOptions
from shardline.tools.conversion.scan import scan as scan_sources


def scan(source, **options):
    return scan_sources(source, ScanOptions(**options))


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return str(root)


def listed(sources):
    return {
        path.decode(): (sources.labels[label], sources.splits[split] if split >= 0 else "")
        for path, label, split in zip(sources.paths(), sources.label, sources.split, strict=True)
    }


def test_classes_are_sorted_as_text_and_files_in_order(tmp_path):
    sources = scan(touch(tmp_path, "b/2.jpg", "b/1.jpg", "a/x", "10/x", "9/x"))
    assert sources.labels == ("10", "9", "a", "b")
    assert list(sources.paths()) == [b"10/x", b"9/x", b"a/x", b"b/1.jpg", b"b/2.jpg"]
    assert sources.label.tolist() == [0, 1, 2, 3, 3]
    assert sources.path(4) == b"b/2.jpg"
    assert sources.size.tolist() == [4, 3, 3, 7, 7]


def test_hidden_files_and_those_of_file_managers_are_no_inputs(tmp_path):
    sources = scan(touch(tmp_path, "a/1.jpg", "a/.DS_Store", "a/Thumbs.db", ".git/x", "__MACOSX/y", "a/notes.txt"))
    assert list(sources.paths()) == [b"a/1.jpg", b"a/notes.txt"]  # what is in a note is for the worker to find


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train/a/1", "test/a/2", "validation/a/3"), ("train", "validation", "test")),
        (("Training/a/1", "val/a/2"), ("Training", "val")),
        (("train/a/1", "bus/2"), None),
    ],
)
def test_split_folders_are_told_from_class_folders(tmp_path, names, splits):
    if splits is None:
        with pytest.raises(UsageError, match="bus lies beside the split folder train"):
            scan(touch(tmp_path, *names))
    else:
        assert scan(touch(tmp_path, *names)).splits == splits


@pytest.mark.parametrize(("label_from", "labels"), [("parent", ("cats", "dogs")), ("first", ("site1", "site2"))])
def test_nested_class_folders(tmp_path, label_from, labels):
    sources = scan(touch(tmp_path, "site1/cats/1", "site1/dogs/2", "site2/cats/3"), label_from=label_from)
    assert sources.labels == labels
    assert len(sources) == 3


def test_a_folder_named_like_an_image_and_broken_links_are_inputs(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/dir.jpg/inside.txt")
    os.symlink("nowhere", tmp_path / "a" / "dangling.jpg")
    os.symlink("loop.jpg", tmp_path / "a" / "loop.jpg")
    os.symlink("..", tmp_path / "a" / "up")
    sources = scan(str(tmp_path), label_from="first")
    assert list(sources.paths()) == [b"a/1.jpg", b"a/dangling.jpg", b"a/dir.jpg", b"a/loop.jpg", b"a/up"]
    assert sources.size.tolist() == [7, 0, 0, 0, 0]


def test_a_class_called_like_an_image_is_a_folder_as_in_an_archive(tmp_path):
    source = touch(tmp_path / "s", "a/1.jpg", "img.jpg/2.jpg")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name in ("a/1.jpg", "img.jpg/2.jpg"):
            archive.write(f"{source}/{name}", name)
    for found in (scan(source), scan(str(tmp_path / "s.zip"))):
        assert found.labels == ("a", "img.jpg") and list(found.paths()) == [b"a/1.jpg", b"img.jpg/2.jpg"]


def test_a_linked_class_folder_counts(tmp_path):
    touch(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "s").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "s" / "a")
    assert list(scan(str(tmp_path / "s")).paths()) == [b"a/1.jpg"]


def test_names_that_are_not_utf8_survive(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    assert list(scan(str(tmp_path)).paths()) == [b"a/caf\xe9.jpg"]


def test_class_names_fix_the_order_and_may_name_more(tmp_path):
    (tmp_path / "names").write_text("b\nc\n\na\n")
    names = read_class_names(str(tmp_path / "names"))
    sources = scan(touch(tmp_path / "s", "a/1", "b/2"), labels=LabelOptions(names))
    assert (sources.labels, sources.label.tolist()) == (("b", "c", "a"), [2, 0])
    assert sources.notes == ("1 of 3 classes has no image: c",)
    headed = LabelOptions(("name", "a", "b"))  # a heading moves every number by one
    assert scan(str(tmp_path / "s"), labels=headed).notes == ("1 of 3 classes has no image: name",)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables(tmp_path, suffix):
    touch(tmp_path, "p/1.jpg", "p/2.jpg", "3.jpg")
    rows = [("p/1.jpg", "10", "train", "g1"), ("p/2.jpg", "9", "test", ""), ("3.jpg", "10", "train", "g1")]
    table = tmp_path / f"t.{suffix}"
    header = ("path", "label", "split", "group")
    if suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as parquet

        columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
        parquet.write_table(pa.table(columns | {"label": pa.array([10, 9, 10])}), table)
    else:
        mark = "," if suffix == "csv" else "\t"
        table.write_text("\ufeff" + "\r\n".join(mark.join(row) for row in [header, *rows]), encoding="utf-8")
    sources = scan(str(table))
    assert sources.labels == ("9", "10")  # whole numbers sort as numbers
    assert listed(sources) == {"p/1.jpg": ("10", "train"), "p/2.jpg": ("9", "test"), "3.jpg": ("10", "train")}
    assert sources.group[0] == sources.group[2] != 0
    assert sources.group[1] == 0
    assert sources.root == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("where,label\n", "no column 'path'"),
        ("path,label\n", "no rows"),
        ("path,label\na.jpg\n", "line 2: 1 column, expected 2"),
        ("path,label\na.jpg,\n", "row 2: path and label must not be empty"),
        ("path,label\nnone.jpg,x\n", "none of its 1 path exists"),
        ("path,label,split\na.jpg,x,a b\n", "'a b' is no split's name"),
        ('path,label\n"a.jpg,x\n', "line 2"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    touch(tmp_path, "a.jpg")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        scan(str(tmp_path / "t.csv"))


def test_fingerprint_sees_every_change(tmp_path):
    touch(tmp_path, "a/1", "a/2", "b/3")
    first = scan(str(tmp_path))
    assert first.fingerprint(stamps=True) == scan(str(tmp_path)).fingerprint(stamps=True)
    os.utime(tmp_path / "a" / "1", ns=(1, 1))
    touched = scan(str(tmp_path))
    assert touched.fingerprint(stamps=False) == first.fingerprint(stamps=False)
    assert touched.fingerprint(stamps=True) != first.fingerprint(stamps=True)
    os.rename(tmp_path / "a" / "2", tmp_path / "b" / "2")
    assert scan(str(tmp_path)).fingerprint(stamps=False) != first.fingerprint(stamps=False)


def test_prepared_tfds_datasets_are_inputs(tmp_path):
    from shardline.tools.conversion.run import convert
    from tests.tools.folders import class_folders, config, records

    source = class_folders(class_folders(tmp_path / "s", 2, 3, "train"), 2, 2, "test")
    prepared = tmp_path / "tfds" / "mine" / "1.0.0"
    convert(config(source, prepared, image={"encoding": "png"}))
    (tmp_path / "tfds" / "mine" / "0.9.0").mkdir()  # no dataset in it
    sources = scan("tfds:mine", tfds_dir=str(tmp_path / "tfds"))
    assert (len(sources), sources.labels, sources.splits) == (10, ("class0", "class1"), ("train", "test"))
    again = convert(
        config("tfds:mine:1.0.0", tmp_path / "d", image={"encoding": "png"}, tfds_dir=str(tmp_path / "tfds"))
    )
    assert {name: split.records for name, split in again.splits.items()} == {"train": 6, "test": 4}
    for split in again.splits:
        images = lambda directory: sorted((e.label, bytes(e.image)) for e in records(directory, split))  # noqa: B023, E731
        assert images(tmp_path / "d") == images(prepared)
    with pytest.raises(UsageError, match="lies inside source=tfds:mine"):  # it would be deleted before it is read
        convert(config("tfds:mine", prepared, tfds_dir=str(tmp_path / "tfds"), overwrite=True))
    assert len(records(prepared, "train")) == 6
    for wrong, message in [("tfds:other", "no folder"), ("tfds:mine:2.0.0", "no version 2.0.0")]:
        with pytest.raises(UsageError, match=message):
            scan(wrong, tfds_dir=str(tmp_path / "tfds"))
    names = (prepared / "label.labels.txt").read_text()
    (prepared / "label.labels.txt").write_text("class0\nclass0\n")
    with pytest.raises(UsageError, match=r"class0 listed twice in .*, so two labels would be one class"):
        scan("tfds:mine", tfds_dir=str(tmp_path / "tfds"))
    (prepared / "label.labels.txt").write_text(names)
    info = (prepared / "dataset_info.json").read_text()
    assert '"shardLengths": ["6"]' in " ".join(info.split()).replace("[ ", "[").replace(" ]", "]")
    for length in ("x", "9.0", "-6", "1_0", "9" * 5000):
        (prepared / "dataset_info.json").write_text(info.replace('"6"', f'"{length}"'))
        with pytest.raises(UsageError, match=r"dataset_info.json is damaged"):
            scan("tfds:mine", tfds_dir=str(tmp_path / "tfds"))
    (prepared / "dataset_info.json").write_text(info)
    next(prepared.glob("*-test.tfrecord-*-of-00001")).unlink()
    with pytest.raises(UsageError, match=r"test.tfrecord-00000-of-00001 is missing; restore it"):
        scan("tfds:mine", tfds_dir=str(tmp_path / "tfds"))


@pytest.mark.parametrize("archive", ["", "tar", "zip"])
def test_hidden_folders_with_images_are_noted(tmp_path, archive):
    for name in (".net/1.jpg", "java/2.jpg", "java/.ipynb_checkpoints/2-checkpoint.jpg", ".git/HEAD", "java/.DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = shutil.make_archive(f"{tmp_path}-packed", archive, tmp_path) if archive else str(tmp_path)
    found = scan(source)
    assert found.labels == ("java",)
    assert found.notes == ("left out 2 hidden folders with images (.net, java/.ipynb_checkpoints)",)


def test_columns_stay_small(tmp_path):
    """Ten million inputs must fit: about 60 bytes and the name for each."""
    sources = scan(touch(tmp_path, *(f"a/{i:05d}" for i in range(500))))
    columns = [value for value in vars(sources).values() if isinstance(value, np.ndarray)]
    assert sum(column.nbytes for column in columns) / len(sources) <= 40
    assert len(sources.names) == 5 * 500


def test_names_beyond_what_32_bits_count(tmp_path, monkeypatch):
    source = touch(tmp_path, "b/2.jpg", "b/1.jpg", "a/x", "10/x", "9/x")
    narrow = scan(source)
    monkeypatch.setattr("shardline.tools.conversion.sources.WIDE", 8)
    wide = scan(source)
    assert (narrow.ends.dtype, wide.ends.dtype) == (np.uint32, np.uint64)
    assert list(wide.paths()) == list(narrow.paths()) and wide.path(3) == b"b/1.jpg"
    some = np.array([True, False, False, True, True])
    assert list(wide.only(some).paths()) == list(narrow.only(some).paths()) == [b"10/x", b"b/1.jpg", b"b/2.jpg"]
    assert wide.only(some).label.tolist() == [0, 3, 3]


def test_folders_are_listed_several_at_a_time(tmp_path, monkeypatch):
    source = touch(tmp_path, *(f"{c}/{i}" for c in "abcd" for i in range(3)))
    wanted = list(scan(source).paths())
    together, genuine = threading.Barrier(4), os.scandir

    def scandir(path):
        if os.path.basename(path) in (b"a", b"b", b"c", b"d"):
            together.wait(60)  # for three others, which would never come one after another
        return genuine(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list(scan(source).paths()) == wanted and len(wanted) == 12


def test_a_folder_that_cannot_be_listed_is_named_though_it_was_listed_ahead(tmp_path, monkeypatch):
    source = touch(tmp_path, *(f"{c}/x" for c in "abc"))
    genuine = os.scandir

    def scandir(path):
        if os.path.basename(path) == b"b":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return genuine(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=r"cannot list .*/b: Permission denied"):
        scan(source)
