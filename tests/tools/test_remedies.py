"""Each remedy that an error message about sources names, followed through the command: it gives the right dataset.

Images are told by their file names, which are numbers; `1 cat train` says that 1.jpg is stored as class cat of split
train, `3 - test` that 3.jpg has no label. Messages of which no case is here are listed with the reason.
"""

# ruff: noqa: E501

import ast
import gzip
import io
import re
import shlex
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from shardline.pipeline.manifest import Manifest
from shardline.pipeline.shards import Shards
from shardline.pipeline.tfrecord import frame_record
from shardline.tools.conversion.run import convert as run_conversion
from tests.tools.folders import ROOT, Run, config, draw, records
from tests.tools.test_adopt import example, tag
from tests.tools.test_adopt_others import floats, ints, put, texts

pytestmark = pytest.mark.slow


def nothing(root: Path) -> None:
    pass


@dataclass
class Way:
    """One remedy: what of the message names it, what is done, the flags it adds, and the dataset it has to give."""

    says: str
    gives: str
    flags: str = ""  # SOURCE: the folder; beside it lie the files that `do` makes
    do: Callable[[Path], None] = nothing
    source: str = ""  # instead of the case's, flags for several
    drops: str = ""  # of the case's flags


@dataclass
class Case:
    """A source that is refused. Files end in / for empty folders; what is no image is written as it is given."""

    files: str
    refused: str
    ways: list[Way]
    flags: str = ""
    do: Callable[[Path], None] = nothing
    source: str = "--source=SOURCE"
    texts: dict[str, str | bytes] = field(default_factory=dict)  # more files, beside the folder if they begin with ../


def text(name, content):
    """Writes a file in the source, or beside it (`../name`)."""

    def write(root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def move(**moves):
    """Moves files and folders: `move(**{"old": "new"})`."""

    def act(root):
        for old, new in moves.items():
            (root / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(root / old, root / new)

    return act


def remove(*names):
    def act(root):
        for name in names:
            shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()

    return act


def add(name, seed=77):
    return lambda root: draw(root / name, seed)


def both(*acts):
    def act(root):
        for one in acts:
            one(root)

    return act


def zipped(name, folder="", keep=False):
    """Packs a folder of the source as an archive in the source, instead of the folder."""

    def act(root):
        inside = root / folder
        with zipfile.ZipFile(root.parent / "packed", "w") as archive:
            for path in sorted(inside.rglob("*")):
                archive.write(path, path.relative_to(inside))
        shutil.rmtree(inside)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root.parent / "packed", root / name)

    return act


def unzip(name, folder):
    return lambda root: zipfile.ZipFile(root / name).extractall(root / folder)


def with_link(name):
    """An archive of the source's folders with a symbolic link in it, in place of them."""

    def act(root):
        with tarfile.open(root.parent / "packed", "w") as archive:
            archive.add(root, ".")
            info = tarfile.TarInfo("cat/again.jpg")
            info.type, info.linkname = tarfile.SYMTYPE, "1.jpg"
            archive.addfile(info, io.BytesIO())
        for path in list(root.iterdir()):
            shutil.rmtree(path)
        shutil.move(root.parent / "packed", root / name)

    return act


def untar(name, folder):
    def act(root):
        with tarfile.open(root / name) as archive:
            members = [member for member in archive.getmembers() if not member.issym()]
            archive.extractall(root / folder, members, filter="data")

    return act


def joined_tars(root):
    """An archive of each folder, one after the other in one file."""
    with open(root / "x.tar", "wb") as file:
        for name in ("a", "b"):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(root / name, name)
            file.write(packed.getvalue())
            shutil.rmtree(root / name)


def untar_joined(root):
    with tarfile.open(root / "x.tar", ignore_zeros=True) as archive:  # as `tar -i`
        archive.extractall(root / "u", filter="data")


def converted(*files):
    """A dataset of other images, where the source's is to be."""

    def act(root):
        for number, name in enumerate(files):
            draw(root.parent / "before" / name, 90 + number)
        assert convert(root.parent / "before", "--source=SOURCE").code == 0

    return act


def parquet(root):
    import pyarrow as pa
    from pyarrow import parquet as pq

    pq.write_table(pa.table({"path": ["1.jpg"], "label": ["a"]}), root / "x.parquet")


FLAT = "train/cat/1.jpg train/dog/2.jpg test/3.jpg"
LABELLED = "1 cat train, 2 dog train"
LISTED = "path,label,split\n"
CASES = {
    # --- layouts
    "a flat split": Case(FLAT, "test holds 1 image and no class folders", [
        Way("--unlabelled=test converts them as a split without labels", f"{LABELLED}, 3 - test", "--unlabelled=test"),
        Way("--split_labels=test=FILE reads their labels from a file", f"{LABELLED}, 3 dog test",
            "--split_labels=test=SOURCE/../labels", text("../labels", "image,label\n3.jpg,dog\n")),
        Way("--exclude=test leaves them out", LABELLED, "--exclude=test"),
    ]),
    "all splits flat": Case("train/1.jpg train/2.jpg val/3.jpg", "train holds 2 images and no class folders", [
        Way("list path,label and perhaps split in a .csv and give that", "1 a train, 2 b train, 3 b val", "",
            text("x.csv", LISTED + "train/1.jpg,a,train\ntrain/2.jpg,b,train\nval/3.jpg,b,val\n"), "--source=SOURCE/x.csv"),
        Way("--split_labels=train=FILE reads their labels", "1 a train, 2 b train, 3 b val",
            "--split_labels=train=SOURCE/../t --split_labels=val=SOURCE/../v",
            both(text("../t", "image,label\n1.jpg,a\n2.jpg,b\n"), text("../v", "b\n"))),
    ]),
    "a flat training split": Case("train/1.jpg train/2.jpg test/cat/3.jpg test/dog/4.jpg",
                                  "train holds 2 images and no class folders", [
        Way("--split_labels=train=FILE", "1 cat train, 2 dog train, 3 cat test, 4 dog test",
            "--split_labels=train=SOURCE/../t", text("../t", "cat\ndog\n")),
    ]),
    "an empty split": Case("train/cat/1.jpg train/dog/2.jpg val/", "the folder val is empty", [
        Way("leave it out with --exclude=val", LABELLED, "--exclude=val"),
    ]),
    "a split's name": Case("train/cat/1.jpg test%20images/cat/2.jpg",
                           "the split folder 'test images' cannot be a split's name", [
        Way("use letters, digits and _", "1 cat train, 2 cat test_images", "",
            move(**{"test images": "test_images"})),
    ]),
    "images alone": Case("1.jpg 2.jpg", "2 images but no class folders", [
        Way("put the images of each class into a folder of their own", "1 cat train, 2 dog train", "",
            move(**{"1.jpg": "cat/1.jpg", "2.jpg": "dog/2.jpg"})),
        Way("one folder will do", "1 all train, 2 all train", "", move(**{"1.jpg": "all/1.jpg", "2.jpg": "all/2.jpg"})),
        Way("list path,label in a .csv and give that", "1 cat train, 2 dog train", "",
            text("x.csv", "path,label\n1.jpg,cat\n2.jpg,dog\n"), "--source=SOURCE/x.csv"),
    ]),
    "archives in a folder": Case("train/a/1.jpg train/b/2.jpg test/a/3.jpg", "2 files and no folders", [
        Way("give each archive: --source=test=", "1 a train, 2 b train, 3 a test", source="MESSAGE"),
    ], do=both(zipped("train.zip", "train"), zipped("test.zip", "test"))),
    "archives in an archive": Case("s/train/a/1.jpg s/train/b/2.jpg s/test/a/3.jpg", "2 files and no folders", [
        Way("unpack it, and give each archive: --source=test=FOLDER/test.zip", "1 a train, 2 b train, 3 a test",
            do=unzip("o.zip", "FOLDER"), source="MESSAGE"),
    ], do=both(zipped("s/train.zip", "s/train"), zipped("s/test.zip", "s/test"), zipped("o.zip", "s")),
       source="--source=SOURCE/o.zip"),
    "archives in splits": Case("train/x/a/1.jpg train/x/b/2.jpg test/a/3.jpg test/b/4.jpg", "train holds no images", [
        Way("give each archive: --source=train=", "1 a train, 2 b train, 3 a test, 4 b test", "--source=test=SOURCE/test", source="MESSAGE"),
    ], do=zipped("train/x.zip", "train/x")),
    "archives of classes": Case("n1/1.jpg n2/2.jpg", "2 files and no folders", [
        Way("or unpack each that is one class into a folder of its name", "1 n1 train, 2 n2 train", "",
            both(unzip("n1.zip", "n1"), unzip("n2.zip", "n2"), remove("n1.zip", "n2.zip"))),
    ], do=both(zipped("n1.zip", "n1"), zipped("n2.zip", "n2"))),
    "a folder of tables": Case("../1.jpg", "data holds no images", [
        Way("give a table of path,label as --source", "1 a train", source="--source=SOURCE/data/x.csv"),
    ], texts={"data/x.csv": "path,label\n../../1.jpg,a\n"}),
    "nothing": Case("", "the folder is empty", [
        Way("expected one folder a class, with its images inside", "1 a train", "", add("a/1.jpg")),
    ]),
    "a folder beside splits": Case("train/cat/1.jpg test/cat/2.jpg more/cat/3.jpg", "more lies beside the split folders", [
        Way("leave it out with --exclude=more", "1 cat train, 2 cat test", "--exclude=more"),
        Way("or convert it as a split, too, with --source=test=", "1 cat train, 2 cat test, 3 cat more",
            source="--source=train=SOURCE/train --source=test=SOURCE/test --source=more=SOURCE/more"),
    ]),
    "a class's folder beside splits": Case(
        "train/cat/1.jpg train/dog/2.jpg test/cat/3.jpg cat/4.jpg", "cat lies beside the split folders", [
        Way("leave it out with --exclude=./cat", "1 cat train, 2 dog train, 3 cat test", "--exclude=./cat"),
        Way("move its images into the folder cat of a split", "1 cat train, 2 dog train, 3 cat test, 4 cat test",
            do=move(**{"cat/4.jpg": "test/cat/4.jpg", "cat": "../moved"})),
    ]),
    "class folders beside another source's splits": Case(
        "p/cat/1.jpg q/train/cat/2.jpg q/test/cat/3.jpg", "cat lies beside the split folders test, train", [
        Way("say which split a source of class folders is (--source=train=FOLDER)", "1 cat train, 2 cat train, 3 cat test",
            source="--source=train=SOURCE/p --source=SOURCE/q"),
    ], source="--source=SOURCE/p --source=SOURCE/q"),
    "a flat folder beside splits": Case("train/cat/1.jpg test/cat/2.jpg new/3.jpg", "new lies beside the split folders", [
        Way("convert it as a split without labels with --unlabelled=new", "1 cat train, 2 cat test, 3 - new",
            "--unlabelled=new"),
        Way("leave it out with --exclude=new", "1 cat train, 2 cat test", "--exclude=new"),
    ]),
    "a class named like a split": Case("bus/1.jpg train/2.jpg car/3.jpg", "bus, car lie beside the split folder train", [
        Way("list all classes in --class_names if train is one", "1 bus train, 2 train train, 3 car train",
            "--class_names=SOURCE/../n", text("../n", "bus\ncar\ntrain\n")),
    ]),
    "VOC": Case("JPEGImages/1.jpg JPEGImages/2.jpg", "are no class but a part of a dataset for detection", [
        Way("list path,label in a .csv and give that", "1 a train, 2 b train", "",
            text("x.csv", "path,label\nJPEGImages/1.jpg,a\nJPEGImages/2.jpg,b\n"), "--source=SOURCE/x.csv"),
    ], texts={"Annotations/1.xml": "<annotation/>"}),
    "ILSVRC": Case("Data/CLS-LOC/train/n1/1.jpg Data/CLS-LOC/train/n2/2.jpg Data/CLS-LOC/val/n1/3.jpg",
                   "Annotations is no class", [
        Way("the split folders train, val lie in Data/CLS-LOC: give --source=", "1 n1 train, 2 n2 train, 3 n1 val",
            source="MESSAGE"),
    ], texts={"Annotations/n1/1.xml": "<annotation/>"}),
    "images beside classes": Case("a/1.jpg 2.jpg 3.jpg", "2 images such as 2.jpg lie beside the class folders", [
        Way("put each into the folder of its class", "1 a train, 2 a train, 3 b train", "",
            move(**{"2.jpg": "a/2.jpg", "3.jpg": "b/3.jpg"})),
        Way("or leave them out with --exclude", "1 a train", "--exclude=2.jpg --exclude=3.jpg"),
    ]),
    "folders in classes": Case("x/cat/1.jpg x/dog/2.jpg y/cat/3.jpg", "x/cat is a folder inside a class folder", [
        Way("--label_from=parent (the folder an image lies in names its class)", "1 cat train, 2 dog train, 3 cat train",
            "--label_from=parent"),
        Way("--label_from=first (the outermost folder does)", "1 x train, 2 x train, 3 y train", "--label_from=first"),
    ]),
    "splits by other names": Case("seg_train/a/1.jpg seg_train/b/2.jpg seg_test/a/3.jpg", "seem to be splits and no classes", [
        Way("seg_test, seg_train seem to be splits and no classes: give --source=", "1 a train, 2 b train, 3 a test",
            source="MESSAGE"),
        Way("if they are classes, list them in --class_names", "1 seg_train train, 3 seg_test train",
            "--class_names=SOURCE/../n", both(text("../n", "seg_test\nseg_train\n"), remove("seg_train/b"), move(**{
                "seg_train/a/1.jpg": "seg_train/1.jpg", "seg_test/a/3.jpg": "seg_test/3.jpg"}), remove("seg_train/a", "seg_test/a"))),
    ]),
    "splits by other names beside another folder": Case("seg_train/a/1.jpg seg_train/b/2.jpg seg_test/a/3.jpg seg_pred/x/4.jpg",
                                                        "seem to be splits and no classes", [
        Way("seg_test, seg_train seem to be splits and no classes: give --source=", "1 a train, 2 b train, 3 a test",
            source="MESSAGE"),
    ]),
    "splits in the names of classes": Case("train_cat/1.jpg train_dog/2.jpg test_cat/3.jpg", "seem to be splits and no classes", [
        Way("or list path,label,split in a .csv and give that", "1 cat train, 2 dog train, 3 cat test", "",
            text("x.csv", LISTED + "train_cat/1.jpg,cat,train\ntrain_dog/2.jpg,dog,train\ntest_cat/3.jpg,cat,test\n"),
            "--source=SOURCE/x.csv"),
    ]),
    "classes in a folder": Case("images/apple/1.jpg images/pie/2.jpg", "is a folder inside a class folder", [
        Way("give --source=", "1 apple train, 2 pie train", source="MESSAGE"),
    ], texts={"meta/a.txt": "x"}),
    "splits in a folder": Case("x/train/cat/1.jpg x/test/cat/2.jpg y/z/3.jpg", "x/test is a split by name", [
        Way("the split folders test, train lie in x: give --source=", "1 cat train, 2 cat test", source="MESSAGE"),
    ]),
    "splits in classes": Case("cat/train/1.jpg cat/test/2.jpg dog/train/3.jpg", "cat/test is a split by name", [
        Way("make splits the outermost folders (train/CLASS/image.jpg)", "1 cat train, 2 cat test, 3 dog train", "",
            both(move(**{"cat/train": "train/cat", "cat/test": "test/cat", "dog/train": "train/dog"}),
                 remove("cat", "dog"))),
        Way("list path,label,split in a .csv and give that", "1 cat train, 2 cat test, 3 dog train", "",
            text("x.csv", LISTED + "cat/train/1.jpg,cat,train\ncat/test/2.jpg,cat,test\ndog/train/3.jpg,dog,train\n"),
            "--source=SOURCE/x.csv"),
    ]),
    "an empty class": Case("cat/1.jpg dog/2.jpg owl/", "owl holds no images", [
        Way("remove the folder", "1 cat train, 2 dog train", "", remove("owl")),
        Way("or add images", "1 cat train, 2 dog train, 3 owl train", "", add("owl/3.jpg")),
        Way("or name every class in --class_names to keep it without images", "1 cat train, 2 dog train",
            "--class_names=SOURCE/../n", text("../n", "cat\nowl\ndog\n")),
    ]),
    "numbers beside folders": Case("train/n1/1.jpg train/n2/2.jpg val/3.jpg val/4.jpg", "its labels (1, 2) are none of the class", [
        Way("if they are numbers, say in --label_order which class each is", "1 n1 train, 2 n2 train, 3 n2 val, 4 n1 val",
            "--label_order=SOURCE/../o", text("../o", "1 n2\n2 n1\n")),
    ], "--split_labels=val=SOURCE/../v", texts={"../v": "1\n2\n"}),
    "one parent": Case("a/images/1.jpg b/images/2.jpg", "all images lie in folders called 'images'", [
        Way("use --label_from=first", "1 a train, 2 b train", "--label_from=first", drops="--label_from=parent"),
    ], "--label_from=parent"),
    "one folder of everything": Case("images/1.jpg images/2.jpg", "images would be the only class", [
        Way("put the images of each class into a folder of their own", "1 a train, 2 b train", "",
            both(move(**{"images/1.jpg": "a/1.jpg", "images/2.jpg": "b/2.jpg"}), remove("images"))),
        Way("list path,label in a .csv and give that", "1 a train, 2 b train", "",
            text("x.csv", "path,label\nimages/1.jpg,a\nimages/2.jpg,b\n"), "--source=SOURCE/x.csv"),
        Way("if it is a class, list it in --class_names", "1 images train, 2 images train", "--class_names=SOURCE/../n",
            text("../n", "images\n")),
    ]),
    "a table beside one class": Case("faces/1.jpg faces/2.jpg", "faces would be the only class, but labels.csv lies beside it", [
        Way("if that has the labels, give it, as --source", "1 a train, 2 b train", source="--source=SOURCE/labels.csv"),
        Way("if not, leave it out with --exclude=labels.csv", "1 faces train, 2 faces train", "--exclude=labels.csv"),
    ], texts={"labels.csv": "path,label\nfaces/1.jpg,a\nfaces/2.jpg,b\n"}),
    "a table beside pieces": Case("x_part_1/1.jpg x_part_2/2.jpg", "x_part_1, x_part_2 would be classes, but labels.csv lies", [
        Way("if that has the labels, give it, as --source", "1 a train, 2 b train", source="--source=SOURCE/labels.csv"),
        Way("if not, leave it out with --exclude=labels.csv", "1 x_part_1 train, 2 x_part_2 train", "--exclude=labels.csv"),
    ], texts={"labels.csv": "path,label\nx_part_1/1.jpg,a\nx_part_2/2.jpg,b\n"}),
    "a table in an archive": Case("s/faces/1.jpg s/faces/2.jpg", "faces would be the only class, but labels.csv lies beside it", [
        Way("give it, unpacked, as --source", "1 a train, 2 b train", do=unzip("s.zip", "u"),
            source="--source=SOURCE/u/labels.csv"),
        Way("if not, leave it out with --exclude=labels.csv", "1 faces train, 2 faces train", "--exclude=labels.csv"),
    ], do=zipped("s.zip", "s"), source="--source=SOURCE/s.zip",
       texts={"s/labels.csv": "path,label\nfaces/1.jpg,a\nfaces/2.jpg,b\n"}),
    # --- what is left out, several sources
    "an exclusion of nothing": Case("a/1.jpg a/3.jpg b/2.jpg", "--exclude=c.jpg: no list", [
        Way("name a file with a path or name a line", "2 b train, 3 a train", "--exclude=SOURCE/../l", text("../l", "a/1.jpg\n"), drops="--exclude=c.jpg"),
        Way("or a path, a name or a pattern like", "2 b train, 3 a train", "--exclude=[1]*", drops="--exclude=c.jpg"),
    ], "--exclude=c.jpg"),
    "a file in two sources": Case("one/a/1.jpg two/a/1.jpg two/b/2.jpg", "a/1.jpg is in", [
        Way("rename one", "1 a train, 2 b train, 3 a train", do=move(**{"two/a/1.jpg": "two/a/3.jpg"})),
        Way("make a folder with a link to each source and give that with --label_from=parent",
            "1 a train, 1 a train, 2 b train", "--label_from=parent",
            lambda root: [(root / "all").mkdir(), *((root / "all" / n).symlink_to(root / n) for n in ("one", "two"))],
            "--source=SOURCE/all"),
    ], source="--source=SOURCE/one --source=SOURCE/two"),
    "a table and a folder": Case("a/1.jpg b/2.jpg", "a table or TFDS dataset is the only source", [
        Way("give folders or archives", "1 a train, 2 b train", source="--source=SOURCE"),
    ], source="--source=SOURCE/x.csv --source=SOURCE", texts={"x.csv": "path,label\na/1.jpg,a\n"}, do=nothing),
    "several tables": Case("1.jpg 2.jpg", "a table or TFDS dataset is the only source", [
        Way("or make one table of several, with a column split", "1 a train, 2 a test", "",
            text("x.csv", LISTED + "1.jpg,a,train\n2.jpg,a,test\n"), "--source=SOURCE/x.csv"),
    ], source="--source=train=SOURCE/x.csv --source=test=SOURCE/y.csv",
       texts={"x.csv": "path,label\n1.jpg,a\n", "y.csv": "path,label\n2.jpg,a\n"}),
    "a table of a split": Case("1.jpg", "a table or TFDS dataset tells splits itself", [
        Way("give it without test=", "1 a train", source="--source=SOURCE/x.csv"),
        Way("or fill the table's column split", "1 a test", "", text("x.csv", LISTED + "1.jpg,a,test\n"), "--source=SOURCE/x.csv"),
    ], source="--source=test=SOURCE/x.csv", texts={"x.csv": "path,label\n1.jpg,a\n"}),
    "labels of a table's split": Case("1.jpg", "--split_labels is for folders and archives", [
        Way("this source has its labels", "1 a train", drops="--split_labels=test=SOURCE/../l"),
    ], "--split_labels=test=SOURCE/../l", source="--source=SOURCE/x.csv",
       texts={"x.csv": "path,label\n1.jpg,a\n", "../l": "a\n"}),
    "the folder of a table's class": Case("1.jpg", "--label_from=first is for folders and archives", [
        Way("this source has its labels", "1 a train", drops="--label_from=first"),
    ], "--label_from=first", source="--source=SOURCE/x.csv", texts={"x.csv": "path,label\n1.jpg,a\n"}),
    "a folder's column": Case("a/1.jpg", "--label_column=kind is for tables", [
        Way("give the table as --source", "1 b train", source="--source=SOURCE/x.csv"),
        Way("or leave it out", "1 a train", "--exclude=x.csv", drops="--label_column=kind"),
    ], "--label_column=kind", texts={"x.csv": "path,kind\na/1.jpg,b\n"}),
    "a heading above labels": Case("train/a/1.jpg val/2.jpg val/3.jpg", "its first line, 'label', is a heading", [
        Way("write a label a line, in the order of the file names, and nothing else", "1 a train, 2 b val, 3 a val", "",
            text("../l", "b\na\n")),
    ], "--split_labels=val=SOURCE/../l", texts={"../l": "label\nb\na\n"}),
    "an order of no labels": Case("train/a/1.jpg val/2.jpg", "says which classes the numbers in --split_labels are", [
        Way("give that", "1 a train, 2 a val", "--split_labels=val=SOURCE/../l", text("../l", "1\n")),
        Way("or leave it out", "1 a train, 2 - val", "--unlabelled=val", drops="--label_order=SOURCE/../o"),
    ], "--label_order=SOURCE/../o", texts={"../o": "1 a\n2 b\n"}),
    "one-hot folders": Case("a/1.jpg b/2.jpg", "--label_kind=onehot is for tables and adopted shards", [
        Way("a folder's name is the label", "1 a train, 2 b train", drops="--label_kind=onehot"),
    ], "--label_kind=onehot"),
    "an archive of another kind": Case("", "is an archive of a kind that is not read", [
        Way("unpack it and give the folder", "1 a train", do=add("u/a/1.jpg"), source="--source=SOURCE/u"),
    ], source="--source=SOURCE/x.tar.zst", texts={"x.tar.zst": "packed"}),
    "an archive of another kind than its name says": Case("", "is a RAR archive, and no .zip or .tar", [
        Way("unpack it and give the folder", "1 a train", do=add("u/a/1.jpg"), source="--source=SOURCE/u"),
    ], source="--source=SOURCE/x.zip", texts={"x.zip": b"Rar!\x1a\x07\1\0"}),
    "a file": Case("", "is a file; give a folder or archive", [
        Way("a table (.csv, .tsv, .tab, .parquet) with the columns path,label", "1 a train",
            do=both(move(**{"x.list": "x.csv"}), add("1.jpg")), source="--source=SOURCE/x.csv"),
    ], source="--source=SOURCE/x.list", texts={"x.list": "path,label\n1.jpg,a\n"}),
    "a link in an archive": Case("cat/1.jpg dog/2.jpg", "is a link; if you trust the archive", [
        Way("unpack it and give the folder", "1 cat train, 2 dog train", do=untar("x.tar", "u"), source="--source=SOURCE/u"),
    ], do=with_link("x.tar"), source="--source=SOURCE/x.tar"),
    "a zip bomb": Case("a/1.jpg b/2.jpg", "or more, which photographs never do", [
        Way("if you trust it, unpack it and give the folder", "1 a train, 2 b train", "--exclude=zeros.bin",
            do=unzip("x.zip", "u"), source="--source=SOURCE/u"),
    ], do=both(text("a/zeros.bin", bytes(70 << 20)), lambda root: deflate(root)), source="--source=SOURCE/x.zip"),
    "shares of splits": Case("train/a/1.jpg train/b/2.jpg train/b/3.jpg test/a/4.jpg", "the source already names its splits", [
        Way("leave the flag out", "1 a train, 2 b train, 3 b train, 4 a test", drops="--splits=train=0.5,validation=0.5"),
    ], "--splits=train=0.5,validation=0.5"),
    "too few for the splits": Case("a/1.jpg b/2.jpg", "cannot fill 3 splits", [
        Way("ask for fewer splits", "1 a train, 2 b train", "--splits=train=1", drops="--splits=a=0.4,b=0.3,c=0.3"),
    ], "--splits=a=0.4,b=0.3,c=0.3"),
    # --- names of classes
    "a missing value": Case("nan/1.jpg cat/2.jpg", "the label 'nan' is no class but a missing value", [
        Way("give each image a label", "1 dog train, 2 cat train", "", move(nan="dog")),
        Way("if it is a class, list all classes in --class_names", "1 nan train, 2 cat train", "--class_names=SOURCE/../n",
            text("../n", "cat\nnan\n")),
    ]),
    "control characters": Case("c%1Bt/1.jpg dog/2.jpg", "has control characters", [
        Way("rename it", "1 cat train, 2 dog train", "", move(**{"c\x1bt": "cat"})),
    ]),
    "a split as a label": Case("train/cat/1.jpg test/cat/2.jpg test/dog/3.jpg", "'test' is the name of a split and no class", [
        Way("give the source whose folders are the splits (SOURCE/train/CLASS/image.jpg)", "1 cat train, 2 cat test, 3 dog test",
            source="--source=SOURCE"),
        Way("or name splits in a table's column split", "1 cat train, 2 cat test, 3 dog test", "",
            text("x.csv", LISTED + "train/cat/1.jpg,cat,train\ntest/cat/2.jpg,cat,test\ntest/dog/3.jpg,dog,test\n")),
        Way("if it is a class, list all classes in --class_names", "1 cat train, 2 test train, 3 dog train",
            "--class_names=SOURCE/../n", text("../n", "cat\ndog\ntest\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "path,label\ntrain/cat/1.jpg,cat\ntest/cat/2.jpg,test\ntest/dog/3.jpg,dog\n"}),
    "several labels": Case("cat%7Cdog/1.jpg cat/2.jpg dog/3.jpg", "the label 'cat|dog' is a list", [
        Way("choose one of them", "1 cat train, 2 cat train, 3 dog train", "", move(**{"cat|dog/1.jpg": "cat/1.jpg", "cat|dog": "../gone"})),
        Way("if it is a class, list all classes in --class_names", "1 cat|dog train, 2 cat train, 3 dog train",
            "--class_names=SOURCE/../n", text("../n", "dog\ncat|dog\ncat\n")),
    ]),
    "a class that is not listed": Case("cat/1.jpg dog/2.jpg", "--class_names does not list dog", [
        Way("add the names", "1 cat train, 2 dog train", "", text("../n", "cat\ndog\n")),
        Way("or remove the images", "1 cat train", "", remove("dog")),
    ], "--class_names=SOURCE/../n", texts={"../n": "cat\n"}),
    "no JSON of an order": Case("train/a/1.jpg train/b/2.jpg val/3.jpg", "is no JSON of a number for each name", [
        Way("write lines NUMBER NAME", "1 a train, 2 b train, 3 b val", "", text("../o.json", "0 a\n1 b\n")),
    ], "--split_labels=val=SOURCE/../v --label_order=SOURCE/../o.json", texts={"../v": "1\n", "../o.json": '{"names": ["a", "b"]}'}),
    "names with numbers": Case("cat/1.jpg dog/2.jpg", "are none of those that --class_names lists", [
        Way("write one name a line there, as the source has it", "1 cat train, 2 dog train", "", text("../n", "dog\ncat\n")),
    ], "--class_names=SOURCE/../n", texts={"../n": "1 dog\n2 cat\n"}),
    "names numbered from 1": Case("0/1.jpg 1/2.jpg", "its lines are numbered from 1", [
        Way("write lines 'NUMBER NAME', numbered from 0 on", "1 dog train, 2 cat train", "", text("../n", "1 cat\n0 dog\n")),
    ], "--class_names=SOURCE/../n --label_kind=index", texts={"../n": "1:dog\n2:cat\n"}),
    "names that end in numbers": Case("0/1.jpg 1/2.jpg", "its lines are numbered from 1, as in 'Type 1', 'Model 2'", [
        Way("write lines 'NUMBER NAME', numbered from 0 on", "1 Type_1 train, 2 Model_2 train", "", text("../n", "0 Type 1\n1 Model 2\n")),
    ], "--class_names=SOURCE/../n --label_kind=index", texts={"../n": "Type 1\nModel 2\n"}),
    "a heading above names": Case("0/1.jpg 1/2.jpg", "its first name, 'label', seems to be a heading and would be label 0", [
        Way("remove it", "1 dog train, 2 cat train", "", text("../n", "dog\ncat\n")),
        Way("or, if it is a class, write lines 'NUMBER NAME', numbered from 0 on", "1 label train, 2 dog train", "",
            text("../n", "0 label\n1 dog\n2 cat\n")),
    ], "--class_names=SOURCE/../n --label_kind=index", texts={"../n": "label\ndog\ncat\n"}),
    "names of Python": Case("cat/1.jpg dog/2.jpg", "is a list as Python prints it", [
        Way("write it as JSON", "1 cat train, 2 dog train", "", text("../n", '["dog", "cat"]')),
        Way("or the names alone, one a line", "1 cat train, 2 dog train", "", text("../n", "dog\ncat\n")),
    ], "--class_names=SOURCE/../n", texts={"../n": "['dog',\n 'cat']\n"}),
    "numbers for a dataset of names": Case("0/1.jpg 1/2.jpg", "its classes (0, 1) are numbers, those before (cat, dog) are names", [
        Way("if they are positions among those, use --label_kind=index", "1 cat train, 2 dog train, 8 cat train, 9 dog train",
            "--label_kind=index"),
        Way("if they are classes, list all in --class_names, those before first", "1 0 train, 2 1 train, 8 cat train, 9 dog train",
            "--class_names=SOURCE/../n", text("../n", "cat\ndog\n0\n1\n")),
    ], "--append", do=converted("cat/8.jpg", "dog/9.jpg")),
    "names for a dataset of numbers": Case("cat/1.jpg dog/2.jpg", "its classes (cat, dog) are names, those before (0, 1) are numbers", [
        Way("if they are classes, list all in --class_names, those before first", "1 cat train, 2 dog train, 8 0 train, 9 1 train",
            "--class_names=SOURCE/../n", text("../n", "0\n1\ncat\ndog\n")),
    ], "--append", do=converted("0/8.jpg", "1/9.jpg")),
    "no list of names": Case("cat/1.jpg dog/2.jpg", "is no list of names", [
        Way("write the names alone, one a line, in label order, into a .txt", "1 cat train, 2 dog train", "--class_names=SOURCE/../n.txt",
            text("../n.txt", "dog\ncat\n"), drops="--class_names=SOURCE/../n.yaml"),
    ], "--class_names=SOURCE/../n.yaml", texts={"../n.yaml": "names:\n- dog\n- cat\n"}),
    "no JSON of names": Case("cat/1.jpg dog/2.jpg", "is no JSON of class names", [
        Way("write the names alone, one a line, in label order, into a .txt", "1 cat train, 2 dog train", "--class_names=SOURCE/../n.txt",
            text("../n.txt", "dog\ncat\n"), drops="--class_names=SOURCE/../n.json"),
    ], "--class_names=SOURCE/../n.json", texts={"../n.json": '{"names": ["dog", "cat"]}'}),
    "a comment above names": Case("cat/1.jpg dog/2.jpg", "is a comment and would be a class", [
        Way("remove it", "1 cat train, 2 dog train", "", text("../n", "dog\ncat\n")),
    ], "--class_names=SOURCE/../n", texts={"../n": "# mine\ndog\ncat\n"}),
    "positions": Case("0/1.jpg 1/2.jpg", "--class_names does not list 0, 1", [
        Way("if they are positions in it, use --label_kind=index", "1 dog train, 2 cat train", "--label_kind=index"),
    ], "--class_names=SOURCE/../n", texts={"../n": "dog\ncat\n"}),
    "similar names": Case("Cat/1.jpg cat/2.jpg dog/3.jpg", "differ in case or spaces only", [
        Way("rename one", "1 lion train, 2 cat train, 3 dog train", "", move(Cat="lion")),
        Way("make one class of them with --merge_similar_labels", "1 Cat train, 2 Cat train, 3 dog train", "--merge_similar_labels"),
        Way("keep them apart by listing all classes in --class_names", "1 Cat train, 2 cat train, 3 dog train",
            "--class_names=SOURCE/../n", text("../n", "cat\nCat\ndog\n")),
    ]),
    "similar splits": Case("Train/a/1.jpg train/a/2.jpg test/a/3.jpg", "differ in case or spaces only", [
        Way("write them alike", "1 a train, 2 a train, 3 a test", "", both(move(**{"Train/a/1.jpg": "train/a/1.jpg"}), remove("Train"))),
        Way("make one split of them with --merge_similar_labels", "1 a Train, 2 a Train, 3 a test", "--merge_similar_labels"),
    ]),
    "a damaged table": Case("1.jpg", "x.parquet is no .parquet, or a damaged one", [
        Way("write or copy it again", "1 a train", "", parquet),
    ], source="--source=SOURCE/x.parquet", texts={"x.parquet": "PAR1 and no more"}),
    "no class numbers": Case("1.jpg 2.jpg 3.jpg", "labels run to 20,240,115 but only 3 differ", [
        Way("name another column", "1 0 train, 2 1 train, 3 1 train", "--label_column=kind"),
        Way("or number the classes from 0", "1 0 train, 2 1 train, 3 2 train", "", text("x.csv", "path,label\n1.jpg,0\n2.jpg,1\n3.jpg,2\n")),
    ], "--label_kind=index", source="--source=SOURCE/x.csv",
       texts={"x.csv": "path,label,kind\n1.jpg,0,0\n2.jpg,1,1\n3.jpg,20240115,1\n"}),
    "class names in another code": Case("caf%C3%A9/1.jpg dog/2.jpg", "is not UTF-8", [
        Way("save it as UTF-8", "1 caf\u00e9 train, 2 dog train", "", text("../n", "dog\ncaf\u00e9\n")),
    ], "--class_names=SOURCE/../n", texts={"../n": "dog\ncaf\u00e9\n".encode("latin-1")}),
    "a class listed twice": Case("cat/1.jpg dog/2.jpg", "'cat' listed twice", [
        Way("list each class once", "1 cat train, 2 dog train", "", text("../n", "cat\ndog\n")),
    ], "--class_names=SOURCE/../n", texts={"../n": "cat\ndog\ncat\n"}),
    # --- files of labels
    "an image without a label": Case(FLAT + " test/4.jpg", "no label for 1 file of test, e.g. 4.jpg", [
        Way("complete the file", f"{LABELLED}, 3 dog test, 4 cat test", "", text("../l", "image,label\n3.jpg,dog\n4.jpg,cat\n")),
        Way("or leave the images out with --exclude", f"{LABELLED}, 3 dog test", "--exclude=4.jpg"),
    ], "--split_labels=test=SOURCE/../l", texts={"../l": "image,label\n3.jpg,dog\n"}),
    "lines of more than a label": Case("train/1.jpg train/2.jpg", "its lines hold more than a label and are all different", [
        Way("write lines NAME.jpg LABEL", "1 cat train, 2 dog train", "", text("../l", "1.jpg cat\n2.jpg dog\n")),
        Way("or name columns in the first line (image,label)", "1 cat train, 2 dog train", "",
            text("../l", "image,label\n1,cat\n2,dog\n")),
    ], "--split_labels=train=SOURCE/../l", texts={"../l": "1 cat\n2 dog\n"}),
    "too few lines": Case(FLAT + " test/4.jpg", "1 line, but 2 images in test", [
        Way("a file without names has a line for each image, in the order of the file names", f"{LABELLED}, 3 dog test, 4 cat test", "",
            text("../l", "dog\ncat\n")),
    ], "--split_labels=test=SOURCE/../l", texts={"../l": "dog\n"}),
    "two labels for an image": Case(FLAT, "3.jpg has two labels, dog and cat", [
        Way("give each image one", f"{LABELLED}, 3 cat test", "", text("../l", "image,label\n3.jpg,cat\n")),
    ], "--split_labels=test=SOURCE/../l", texts={"../l": "image,label\n3.jpg,dog\n3.jpg,cat\n"}),
    "a short row": Case(FLAT, "line 2: fewer columns than the first line", [
        Way("fewer columns than the first line", f"{LABELLED}, 3 dog test", "", text("../l", "image,label\n3.jpg,dog\n")),
    ], "--split_labels=test=SOURCE/../l", texts={"../l": "image,label\n3.jpg\n"}),
    "a long row": Case("train/1.jpg train/2.jpg", "line 3: more columns than the first line names", [
        Way("a value that holds what separates columns needs quotes around it", "1 cat train, 2 dog;_big train", "",
            text("../l", 'image;label\n1.jpg;cat\n2.jpg;"dog; big"\n')),
    ], "--split_labels=train=SOURCE/../l", texts={"../l": "image;label\n1.jpg;cat\n2.jpg;dog; big\n"}),
    "words with control characters": Case("a/1.jpg b/2.jpg", "the words for 'a' have control characters", [
        Way("rewrite them", "1 a train, 2 b train", "", text("../w", "a ant\nb bee\n")),
    ], "--class_words=SOURCE/../w", texts={"../w": "a an\x1bt\nb bee\n"}),
    "words twice": Case("a/1.jpg b/2.jpg", "'a' stands there twice", [
        Way("leave one", "1 a train, 2 b train", "", text("../w", "a ant\nb bee\n")),
    ], "--class_words=SOURCE/../w", texts={"../w": "a ant\na ape\nb bee\n"}),
    "sorted synsets": Case("train/n02119789/1.jpg train/n01440764/2.jpg val/ILSVRC2012_val_00000001.JPEG",
                           "its synsets are sorted", [
        Way("or write lines NUMBER SYNSET", "1 n02119789 train, 2 n01440764 train, ILSVRC2012_val_00000001 n02119789 val",
            "", text("../o", "1 n02119789\n2 n01440764\n")),
    ], "--split_labels=val=SOURCE/../l --label_order=SOURCE/../o", texts={"../l": "1\n", "../o": "n01440764\nn02119789\n"}),
    # --- tables
    "a row without a label": Case("1.jpg 2.jpg", "row 3: path and label must not be empty", [
        Way("--unlabelled=test converts that split without labels", "1 a train, 2 - test", "--unlabelled=test"),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": LISTED + "1.jpg,a,train\n2.jpg,,test\n"}),
    "a split in a table": Case("1.jpg", "'my train' is no split's name", [
        Way("write train, validation or test there", "1 a train", "", text("x.csv", LISTED + "1.jpg,a,train\n")),
        Way("or give the column another name to leave it out", "1 a train", "", text("x.csv", "path,label,pile\n1.jpg,a,my train\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": LISTED + "1.jpg,a,my train\n"}),
    "the first line again": Case("1.jpg 2.jpg", "line 3: the first line again", [
        Way("remove it", "1 a train, 2 b train", "", text("x.csv", "path,label\n1.jpg,a\n2.jpg,b\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "path,label\n1.jpg,a\npath,label\n2.jpg,b\n"}),
    "labels of files in two orders": Case("train/a/1.jpg train/b/2.jpg val/9.jpg val/10.jpg", "but line 1 is that of 10.jpg or 9.jpg", [
        Way("write lines NAME.jpg LABEL", "1 a train, 10 b val, 2 b train, 9 a val", "", text("../v", "9.jpg a\n10.jpg b\n")),
    ], "--split_labels=val=SOURCE/../v", texts={"../v": "a\nb\n"}),
    "archives joined by cat": Case("a/1.jpg b/2.jpg", "another archive follows its end, as if joined by cat", [
        Way("unpack it with `tar -i` and give the folder", "1 a train, 2 b train", do=untar_joined, source="--source=SOURCE/u"),
    ], source="--source=SOURCE/x.tar", do=joined_tars),
    "paths without suffix": Case("img/1.jpg img/2.jpg", "none of its 2 paths exists", [
        Way("img/1.jpg does: use --path_format='img/{}.jpg'", "1 a train, 2 b train", "--path_format=img/{}.jpg"),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "id,label\n1,a\n2,b\n"}),
    "paths without suffix in two folders": Case("train/1.jpg train/2.jpg test/1.jpg", "none of its 2 paths exists", [
        Way("write the folders into the paths", "1 a train, 2 b train", "",
            text("x.csv", "id,label\ntrain/1.jpg,a\ntrain/2.jpg,b\n")),
        Way("or use the one of --path_format=test/{}.jpg, train/{}.jpg that the labels are of",
            "1 a train, 2 b train", "--path_format=train/{}.jpg"),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "id,label\n1,a\n2,b\n"}),
    "images in two folders": Case("p/1.jpg q/2.jpg", "none of its 2 paths exists", [
        Way("write into each path the folder that its image lies in", "1 a train, 2 b train", "",
            text("x.csv", "id,label\np/1.jpg,a\nq/2.jpg,b\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "id,label\n1,a\n2,b\n"}),
    "folders in a table": Case("p/1.jpg q/2.jpg", "p is a folder: list the images in it", [
        Way("list the images in it", "1 a train, 2 b train", "", text("x.csv", "path,label\np/1.jpg,a\nq/2.jpg,b\n")),
        Way("or give its folder as --source", "1 p train, 2 q train", "--exclude=x.csv", source="--source=SOURCE"),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "path,label\np,a\nq,b\n"}),
    "images missing": Case("p/1.jpg p/3.jpg", "none of its 3 paths exists", [
        Way("or, if images are missing, use --path_format='p/{}.jpg'", "1 a train, 3 b train", "--path_format=p/{}.jpg"),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "id,label\n1,a\n2,b\n3,b\n"}),
    "addresses in a table": Case("1.jpg 2.jpg", "https://x.org/1.jpg does not lie below the table's folder", [
        Way("download the images, and list their paths", "1 a train", "", text("x.csv", "path,label\n1.jpg,a\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "path,label\nhttps://x.org/1.jpg,a\n"}),
    "percent signs in paths": Case("my%201.jpg", "none of its 1 path exists", [
        Way("my 1.jpg does: write the paths without percent signs", "my 1 a train", "",
            text("x.csv", "path,label\nmy 1.jpg,a\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "path,label\nmy%201.jpg,a\n"}),
    "paths elsewhere": Case("a/b/1.jpg", "none of its 1 path exists", [
        Way("--path_format='FOLDER/{}.jpg' says what they are made of", "1 x train", "--path_format=a/b/{}.jpg"),
        Way("paths are relative to the table's folder", "1 x train", "", text("x.csv", "path,label\na/b/1.jpg,x\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "id,label\n1,x\n"}),
    "a file with two labels": Case("1.jpg 2.jpg", "1.jpg is listed with the labels 'a' and 'b'", [
        Way("keep one row of each", "1 b train, 2 a train", "", text("x.csv", "path,label\n1.jpg,b\n2.jpg,a\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "path,label\n1.jpg,a\n2.jpg,a\n1.jpg,b\n"}),
    "two columns of a name": Case("1.jpg", "two columns are called 'label'", [
        Way("rename one", "1 a train", "", text("x.csv", "path,label,other\n1.jpg,a,b\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "path,label,label\n1.jpg,a,b\n"}),
    "other columns": Case("1.jpg 2.jpg", "no column 'path'", [
        Way("--path_column and --label_column name others", "1 a train, 2 b train", "--path_column=Bild --label_column=Rasse"),
        Way("the first line must name the columns path and label", "1 a train, 2 b train", "",
            text("x.csv", "path,label\n1.jpg,a\n2.jpg,b\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "Bild,Rasse\n1.jpg,a\n2.jpg,b\n"}),
    "another label column": Case("1.jpg 2.jpg", "no column 'label'", [
        Way("--label_column names another", "1 a train, 2 b train", "--label_column=kind"),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "path,kind\n1.jpg,a\n2.jpg,b\n"}),
    "a column a class": Case("1.jpg 2.jpg", "no column 'label'", [
        Way("--label_kind=onehot takes a column for each class", "1 NV train, 2 MEL train", "--label_kind=onehot"),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "image,MEL,NV\n1.jpg,0,1\n2.jpg,1.0,0.0\n"}),
    "separators in a value": Case("1.jpg 2.jpg", "line 2: 3 columns, but the first line names 2", [
        Way("a value that holds what separates columns needs quotes around it", "1 a,_b train, 2 c train", "",
            text("x.csv", 'path,label\n1.jpg,"a, b"\n2.jpg,c\n')),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "path,label\n1.jpg,a, b\n2.jpg,c\n"}),
    "several columns set": Case("1.jpg 2.jpg", "MEL, NV are set", [
        Way("shardline takes one label an image", "1 MEL train, 2 NV train", "", text("x.csv", "image,MEL,NV\n1.jpg,1,0\n2.jpg,0,1\n")),
    ], "--label_kind=onehot", source="--source=SOURCE/x.csv", texts={"x.csv": "image,MEL,NV\n1.jpg,1,1\n2.jpg,0,1\n"}),
    "a column that is no class": Case("1.jpg 2.jpg", "'7' in column 'age' is not 0 or 1", [
        Way("with --label_kind=onehot each column but path, split and group is a class", "1 MEL train, 2 NV train", "",
            text("x.csv", "image,MEL,NV\n1.jpg,1,0\n2.jpg,0,1\n")),
    ], "--label_kind=onehot", source="--source=SOURCE/x.csv", texts={"x.csv": "image,age,MEL,NV\n1.jpg,7,1,0\n2.jpg,0,0,1\n"}),
    "a list of ones": Case("1.jpg 2.jpg", "is no list of zeros and a single 1", [
        Way("shardline takes one label an image", "1 1 train, 2 0 train", "", text("x.csv", 'path,label\n1.jpg,"0 1"\n2.jpg,"1 0"\n')),
    ], "--label_kind=onehot --label_column=label", source="--source=SOURCE/x.csv",
       texts={"x.csv": 'path,label\n1.jpg,"1 1"\n2.jpg,"1 0"\n'}),
    "a spreadsheet": Case("1.jpg", "is a spreadsheet or an archive and no text", [
        Way("save it as .csv", "1 a train", "", text("x.csv", "path,label\n1.jpg,a\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": b"PK\3\4 a spreadsheet"}),
    "a table in another code": Case("1.jpg", "is not UTF-8", [
        Way("save it as UTF-8", "1 caf\u00e9 train", "", text("x.csv", "path,label\n1.jpg,caf\u00e9\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "path,label\n1.jpg,caf\u00e9\n".encode("latin-1")}),
    "a table of the images themselves": Case("1.jpg", "column 'image' holds struct<bytes: binary", [
        Way("write its images into files, and their paths and labels into a .csv, and give that", "1 a train", "",
            text("x.csv", "path,label\n1.jpg,a\n"), "--source=SOURCE/x.csv"),
    ], do=lambda root: parquet_of_images(root / "x.parquet"), source="--source=SOURCE/x.parquet"),
    # --- prepared TFDS datasets
    "a TFDS dataset elsewhere": Case("", "no folder", [
        Way("or name its parent in --tfds_dir", "x-train a train, x-train b train", source="--source=tfds:x --tfds_dir=SOURCE"),
    ], source="--source=tfds:x --tfds_dir=SOURCE/none", do=lambda root: prepared(root / "x/1.0.0")),
    "another version": Case("", "no version 2.0.0 in", [
        Way("there is ['1.0.0']", "x-train a train, x-train b train", source="--source=tfds:x:1.0.0 --tfds_dir=SOURCE"),
    ], source="--source=tfds:x:2.0.0 --tfds_dir=SOURCE", do=lambda root: prepared(root / "x/1.0.0")),
    "a config": Case("", "no version in", [
        Way("is a config missing, as in tfds:NAME/CONFIG?", "x-train a train, x-train b train", source="--source=tfds:x/c --tfds_dir=SOURCE"),
    ], source="--source=tfds:x --tfds_dir=SOURCE", do=lambda root: prepared(root / "x/c/1.0.0")),
    "a split that TFDS has not": Case("", "the dataset has the splits train", [
        Way("the dataset has the splits train", "x-train a train, x-train b train", drops="--unlabelled=test"),
    ], "--unlabelled=test", source="--source=tfds:x --tfds_dir=SOURCE", do=lambda root: prepared(root / "x/1.0.0")),
    "exclusions of records": Case("", "TFDS records have no names", [
        Way("--exclude is for folders, archives and tables", "x-train a train, x-train b train", drops="--exclude=1.jpg"),
    ], "--exclude=1.jpg", source="--source=tfds:x --tfds_dir=SOURCE", do=lambda root: prepared(root / "x/1.0.0")),
    "a cut UTF-16 table": Case("1.jpg", "is not UTF-8 (truncated data)", [
        Way("save it as UTF-8", "1 a train", "", text("x.csv", "path,label\n1.jpg,a\n")),
    ], source="--source=SOURCE/x.csv", texts={"x.csv": "path,label\n1.jpg,a\n".encode("utf-16")[:-1]}),
}  # fmt: skip


def parquet_of_images(path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"image": [{"bytes": b"x", "path": ""}], "label": ["a"]}), path)


def deflate(root):
    with zipfile.ZipFile(root.parent / "packed", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    for path in list(root.iterdir()):
        shutil.rmtree(path)
    shutil.move(root.parent / "packed", root / "x.zip")


def made(case: Case, root: Path) -> Path:
    """The case's source."""
    source = root / "s"
    source.mkdir(parents=True)
    for number, name in enumerate(case.files.split()):
        name = (
            re.sub("%(..)", lambda code: chr(int(code[1], 16)), name)
            if "%C3" not in name
            else name.replace("%C3%A9", "\u00e9")
        )
        if name.endswith("/"):
            (source / name).mkdir(parents=True)
        else:
            target = source / name
            draw(target.with_name(f"{target.name}.jpg"), 1 + number).rename(target)
    for name, content in case.texts.items():
        text(name, content)(source)
    case.do(source)
    return source


def convert(source: Path, *flags: str) -> Run:
    words = [word.replace("SOURCE", str(source)) for flag in flags for word in flag.split()]
    return Run("shardline.tools.convert", *words, f"--output={source.parent}/d", "--noreport", "--engine=inline",
               "--size=16", "--name=x")  # fmt: skip


def contents(directory: Path) -> list[str]:
    """`NUMBER CLASS SPLIT` of every record."""
    manifest = Manifest.load(directory)
    found = []
    for split in manifest.splits:
        stored = records(directory, split)
        for record in stored:
            label = manifest.labels[record.label].replace(" ", "_") if record.label >= 0 else "-"
            found.append(f"{Path(record.filename).stem} {label} {split}")
        counts = np.bincount([record.label for record in stored if record.label >= 0], minlength=len(manifest.labels))
        assert manifest.class_counts[split] == (() if manifest.splits[split].unlabelled else tuple(counts.tolist()))
    return sorted(found)


def refusal(case: Case, source: Path) -> str:
    result = convert(source, case.source, case.flags)
    assert result.code == 2, result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert case.refused in message, message
    return message


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, case in CASES.items() for number in range(len(case.ways))]
)
def test_a_remedy_gives_the_dataset_it_promises(tmp_path, name, number):
    case = CASES[name]
    way = case.ways[number]
    source = made(case, tmp_path)
    message = refusal(case, source)
    assert way.says in message, message
    way.do(source)
    given = way.source or case.source
    if given == "MESSAGE":
        advised = message.replace("=FOLDER/", f"={source}/FOLDER/")
        words = [
            word.rstrip(",;")
            for word in shlex.split(advised[advised.index("--source=", advised.index("give")) :])
            if word.startswith("--source=")
        ]
        given = " ".join(words)
    result = convert(source, given, case.flags.replace(way.drops, "") if way.drops else case.flags, way.flags)
    assert result.code == 0, result.stderr
    assert contents(tmp_path / "d") == sorted(way.gives.split(", "))


MODULES = ("layouts", "trees", "labels", "label_files", "tables", "archives", "scan", "splits", "scan_tfds")
WITHOUT_A_CASE = {  # parts of messages, and why there is no way to follow
    "cannot list ": "the file system's own words",
    "read TFRecords as they are: shardline-adopt ": "another command; test_layouts has it",
    " cannot be read: ": "the file system's own words",
    "download it again": "another download is another archive",
    "; download the archive again": "another download is another archive",
    ": the archive is empty": "another download is another archive",
    ": no .tar archive, or an empty one": "another download is another archive",
    " bytes; the archive is damaged or made to do harm": "not to be read",
    ": it is made to fill disks and is not read": "not to be read",
    ": the class folders hold no files": "nothing to convert",
    ": the table has no rows": "nothing to convert",
    ": the file is empty": "no labels to read",
    ": no folder ": "says what is not there",
    ": no such member": "says what is not there",
    ": the table has the columns ": "says what there is",
    " is no number of 0 or more": "says what a label has to be",
    ": the labels run to ": "says what the labels have to be",
    ": a class name is empty; ": "of prepared TFDS datasets; test_labels has it",
    " is no number that --label_order names (": "says what is named",
    " has words for none of the classes (": "words are shown, and no labels",
    ": no line has a class name and words, as in 'n01440764 tench'": "words are shown, and no labels",
    " is no JSON of classes and words (": "words are shown, and no labels",
    ": the column split has more than 100 values; is it another column?": "asks",
    " in the column size is no number of bytes": "of tables in object stores, which tell what is wrong",
    " holds no records": "nothing to convert",
    " has no name": "another preparation is another dataset",
    ", only tfrecord can be read": "another preparation is another dataset",
    ": needs one Image and one ClassLabel feature, found ": "another preparation is another dataset",
    ": no prepared TFDS dataset in ": "says what is not there",
    "; restore it from a copy": "another copy is another dataset",
    ": no such directory": "says what is not there",
    ": all files are empty": "nothing to adopt",
    " cannot be written; the manifest and the indexes belong beside the shards": "the machine's; root may write",
}


def messages_in(module: str) -> list[list[str]]:
    """The literal parts of each error message of a module."""
    tree = ast.parse((ROOT / f"tools/{module}.py").read_text())
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    calls = [call for call in raised if getattr(call.func, "id", "") in ("UsageError", "Failure")]
    return [
        [part.value for part in ast.walk(call) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        for call in calls
    ]


def test_every_message_that_names_a_remedy_has_a_case(tmp_path):
    said = "\n".join(refusal(case, made(case, tmp_path / str(i))) for i, case in enumerate(CASES.values()))
    assert not (missing := without_a_case(said, [f"conversion/{module}" for module in MODULES])), "\n".join(missing)


def without_a_case(said: str, modules: Sequence[str]) -> list[str]:
    """Messages of which no case is here, and no reason."""
    missing = []
    for module in modules:
        for parts in messages_in(module):
            long = [part for part in parts if len(part) >= 8] or parts
            if not any(part in said for part in long) and not any(
                named in part for part in parts for named in WITHOUT_A_CASE
            ):
                missing.append(f"{module}: {' … '.join(parts)}")
    return missing


# ------------------------------------------------------------------------------------------------ adoption


@dataclass
class Adoption:
    """Shards that are refused: labels of the records by file, None for a record without one."""

    files: dict[str, list]
    refused: str
    ways: list[Way]  # `gives`: the labels of each split, e.g. `train 0 1, test 2`
    flags: str = ""
    do: Callable[[Path], None] = nothing


def hot(*places):
    return [ints(*(int(i == place) for i in range(3))) for place in places]


def named(path, image, label):
    """A shard whose features are called so."""
    picture = draw(path.with_name(".x.jpg"), 1).read_bytes()
    records = (example(**{image: texts(picture), label: ints(number)}) for number in range(2))
    path.write_bytes(b"".join(map(frame_record, records)))


def prepared(folder, change=None):
    """A dataset as TFDS prepares it, of the classes a and b; `change` edits its description."""
    for number, name in enumerate(("a/1.jpg", "b/2.jpg")):
        draw(folder.parent / "images" / name, number)
    shutil.rmtree(folder, ignore_errors=True)
    run_conversion(config(folder.parent / "images", folder, name="x", encoding="png"))
    for path in (folder / "manifest.json", *folder.glob("*.idx"), folder / "sources.parquet"):
        path.unlink()
    if change:
        change(folder)


TWO = {"train.tfrecord": [ints(0), ints(1)]}
ADOPTIONS = {
    "a name without a split": Adoption({"00-2.tfrec": [ints(0), ints(1)], "x_val_1.records": [ints(1)]},
                                       "the split of 00-2.tfrec (1 file of 2) is not told by its name", [
        Way("--split=train takes all files as that one split", "train 0 1 1", "--split=train"),
        Way("--split_pattern tells how names are built, e.g.", "val 1", r"--split_pattern=x_(?P<split>\w+)_\d+\.records|00-2.tfrec --exclude=00-2.tfrec"),
        Way("--exclude leaves files out", "val 1", "--exclude=00-2.tfrec"),
    ]),
    "a pattern too narrow": Adoption(TWO | {"x.tfrecord": [ints(1)]}, "does not match x.tfrecord", [
        Way("widen it", "train 0 1, x 1", r"--split_pattern=(?P<split>\w+)\.tfrecord", drops="--split_pattern=(?P<split>train).*"),
        Way("or leave files out with --exclude", "train 0 1", "--exclude=x.tfrecord"),
    ], "--split_pattern=(?P<split>train).*"),
    "a copy": Adoption({"train-0.tfrecord": [ints(0)], "copy/train-0.tfrecord": [ints(0)]}, "has files in ., copy", [
        Way("leave a copy out with --exclude=copy", "train 0", "--exclude=copy"),
        Way("or move the files into one folder", "train 0 0", "", move(**{"copy/train-0.tfrecord": "train-1.tfrecord"})),
    ]),
    "shards too deep": Adoption({"train/a.tfrecord": [ints(0)], "more/test/b.tfrecord": [ints(1)]}, "lie deeper, too, in more/test", [
        Way("move them into a folder of SOURCE for each split", "train 0, test 1", "", move(**{"more/test": "test"})),
        Way("or leave them out with --exclude=more/test", "train 0", "--exclude=more/test"),
    ]),
    "shards missing": Adoption({"train-0-of-2": [ints(0)]}, "split 'train' has 1 shard, their names say 2", [
        Way("restore what is missing", "train 0 1", "", lambda root: put(root / "train-1-of-2", [ints(1)])),
    ]),
    "foreign shards": Adoption({"a-train.tfrecord-0-of-1": [ints(0)], "b-train.tfrecord-0-of-1": [ints(1)]},
                               "split 'train' has 2 shards, their names say 1", [
        Way("or leave foreign files out with --exclude", "train 0", "--exclude=b-train.tfrecord-0-of-1"),
    ]),
    "splits alike": Adoption({"extra.tfrecord": [ints(0)], "Extra.tfrecord": [ints(1)]}, "differ in case only", [
        Way("rename the files of one", "extra 0, more 1", "", move(**{"Extra.tfrecord": "more.tfrecord"})),
        Way("or leave them out with --exclude", "extra 0", "--exclude=Extra.tfrecord"),
    ]),
    "no split's name": Adoption({"a/a-b.c.tfrecord": [ints(0)]}, "is no split name", [
        Way("--split_pattern can name another part of it", "b 0", r"--split_pattern=a-(?P<split>\w)\.c.*", drops=r"--split_pattern=(?P<split>.*)\.tfrecord"),
    ], r"--split_pattern=(?P<split>.*)\.tfrecord"),
    "deeper folders": Adoption({"deep/er/train.tfrecord": [ints(0), ints(1)]}, "no TFRecord files there or in its folders", [
        Way("some lie in SOURCE/deep/er: give that as --data", "train 0 1", source="SOURCE/deep/er"),
    ]),
    "no labels in a split": Adoption(TWO | {"test.tfrecord": [None, None]}, "the first record of test.tfrecord has no label", [
        Way("--unlabelled=test adopts split test for prediction", "train 0 1, test - -", "--unlabelled=test"),
        Way("--exclude='test.tfrecord' leaves it out", "train 0 1", "--exclude=test.tfrecord"),
    ]),
    "one-hot labels": Adoption({"train.tfrecord": hot(2, 0, 1)}, "holds 3 numbers, one of them 1", [
        Way("if its position is the class, use --label_kind=onehot", "train 2 0 1", "--label_kind=onehot"),
    ]),
    "labels that are names": Adoption({"train.tfrecord": [texts(b"dog"), texts(b"cat")]}, "holds text", [
        Way("if that is the class's name, use --label_kind=name", "train dog cat", "--label_kind=name"),
    ]),
    "numbers as text": Adoption({"train.tfrecord": [texts(b"1"), texts(b"0")]}, "holds text", [
        Way("if it is its number, =index", "train 1 0", "--label_kind=index"),
    ]),
    "fractions": Adoption({"train.tfrecord": [floats(1), floats(0)]}, "holds the fraction 1", [
        Way("if it is the class's number, use --label_kind=index", "train 1 0", "--label_kind=index"),
    ]),
    "another kind": Adoption(TWO, "--label_kind=name: feature 'label' holds int64", [
        Way("or leave the flag out", "train 0 1", drops="--label_kind=name"),
    ], "--label_kind=name"),
    "labels from 1": Adoption({"train.tfrecord": [ints(1), ints(2)]}, "labels run from 1 to 2, expected 0 to 1", [
        Way("--label_offset=-1 would make the lowest 0", "train cat dog", "--label_offset=-1"),
    ], "--class_names=SOURCE/../n", do=text("../n", "cat\ndog\n")),
    "names from 1": Adoption({"train.tfrecord": [ints(1), ints(2)]}, "its lines are numbered from 1", [
        Way("write lines 'NUMBER NAME', numbered from 0 on", "train cat dog", "", text("../n", "0 none\n1 cat\n2 dog\n")),
        Way("or say with --label_offset=-1 that the records' labels count from 1", "train cat dog", "--label_offset=-1"),
    ], "--class_names=SOURCE/../n", do=text("../n", "1:cat\n2:dog\n")),
    "labels below 0": Adoption({"train.tfrecord": [ints(-3), ints(-2), ints(0)]}, "labels run from -3 to 0", [
        Way("--label_offset=3 would make the lowest 0", "train 0 1 3", "--label_offset=3"),
    ]),
    "another mark of no label": Adoption({"train.tfrecord": [ints(0), ints(-100), ints(1)]}, "labels run from -100 to 1", [
        Way("-100 seems to mark images without a label: that has to be -1, which is left out", "train 0 1", "",
            lambda root: put(root / "train.tfrecord", [ints(0), ints(-1), ints(1)])),
    ]),
    "a compressed shard": Adoption(TWO, "gzip-compressed", [
        Way("decompress it first", "train 0 1", "", lambda root: put(root / "train.tfrecord", [ints(0), ints(1)])),
    ], do=lambda root: (root / "train.tfrecord").write_bytes(gzip.compress((root / "train.tfrecord").read_bytes()))),
    "two labels of names": Adoption({"train.tfrecord": [texts(b"Cat"), texts(b"cat"), texts(b"dog")]}, "differ in case or spaces only", [
        Way("list all names in --class_names to keep them apart", "train Cat cat dog", "--class_names=SOURCE/../n",
            text("../n", "cat\nCat\ndog\n")),
        Way("write the records again with one of them", "train cat cat dog", "",
            lambda root: put(root / "train.tfrecord", [texts(b"cat"), texts(b"cat"), texts(b"dog")])),
    ], "--label_kind=name"),
    "no class numbers": Adoption({"train.tfrecord": [ints(0), ints(1), ints(20240115)]}, "labels run to 20,240,115", [
        Way("number the classes from 0", "train 0 1 2", "", lambda root: put(root / "train.tfrecord", [ints(0), ints(1), ints(2)])),
    ]),
    "a manifest there": Adoption(TWO, "has a manifest.json already", [
        Way("--overwrite replaces it", "train 0 1", "--overwrite"),
    ], do=lambda root: Run("shardline.tools.adopt", root, "--workers=1")),
    "two ways to tell splits": Adoption(TWO, "give one of them", [
        Way("give one of them", "train 0 1", drops=r"--split_pattern=(?P<split>\w+).*"),
    ], r"--split=train --split_pattern=(?P<split>\w+).*"),
    "an offset of names": Adoption({"train.tfrecord": [texts(b"dog"), texts(b"cat")]}, "labels of --label_kind=name have none", [
        Way("labels of --label_kind=name have none", "train dog cat", drops="--label_offset=1"),
    ], "--label_kind=name --label_offset=1"),
    "a split that is not there": Adoption(TWO, "the directory has the splits train", [
        Way("the directory has the splits train", "train 0 1", drops="--unlabelled=test"),
    ], "--unlabelled=test"),
    "no labels at all": Adoption({"train.tfrecord": [None, None]}, "not one record with a label could be read", [
        Way("for splits without any, --class_names names classes", "train - -", "--class_names=SOURCE/../n", text("../n", "a\nb\n")),
    ], "--unlabelled=train"),
    "one-hot labels of two lengths": Adoption({"train.tfrecord": [ints(0, 1, 0), ints(1, 0)]}, "labels have 2, 3 numbers", [
        Way("all need as many", "train 1 0", "", lambda root: put(root / "train.tfrecord", [ints(0, 1, 0), ints(1, 0, 0)])),
    ], "--label_kind=onehot"),
    "one-hot labels of more classes": Adoption({"train.tfrecord": hot(2, 0)}, "lists 2 classes, but one-hot labels have 3 numbers", [
        Way("lists 2 classes, but one-hot labels have 3 numbers", "train c a", "", text("../n", "a\nb\nc\n")),
    ], "--label_kind=onehot --class_names=SOURCE/../n", do=text("../n", "a\nb\n")),
    "steps in a record": Adoption(TWO | {"test.tfrecord": []}, "a tf.train.SequenceExample", [
        Way("leave the file out with --exclude=test.tfrecord", "train 0 1", "--exclude=test.tfrecord"),
        Way("or write it again with a tf.train.Example for each image", "train 0 1, test 1", "", lambda root: put(root / "test.tfrecord", [ints(1)])),
    ], do=lambda root: (root / "test.tfrecord").write_bytes(frame_record(tag(1, b"") + tag(2, b"")))),
    "images of another name": Adoption({"train.tfrecord": []}, "--image_feature is needed; the first record has label (int64), picture (bytes)", [
        Way("--image_feature is needed", "train 0 1", "--image_feature=picture"),
    ], do=lambda root: named(root / "train.tfrecord", "picture", "label")),
    "labels of another name": Adoption({"train.tfrecord": []}, "--label_feature is needed; the first record has image (bytes), kind (int64)", [
        Way("--label_feature is needed", "train 0 1", "--label_feature=kind"),
    ], do=lambda root: named(root / "train.tfrecord", "image", "kind")),
    "a dataset in a folder": Adoption(TWO | {"x/test.tfrecord": [ints(1)]}, "x is a dataset of its own (manifest.json)", [
        Way("give SOURCE/x as --data", "test 1", "--overwrite", source="SOURCE/x"),
        Way("or leave it out with --exclude=x", "train 0 1", "--exclude=x"),
    ], do=lambda root: Run("shardline.tools.adopt", root / "x", "--workers=1")),
    "no shards": Adoption({}, "no TFRecord files by name or content (a.txt)", [
        Way("give the folder that holds them", "train 0 1", do=lambda root: put(root / "../t/train.tfrecord", [ints(0), ints(1)]),
            source="SOURCE/../t"),
    ], do=text("a.txt", "nothing of that kind")),
    "a pattern without a group": Adoption(TWO, "needs a group (?P<split>...)", [
        Way("needs a group (?P<split>...)", "train 0 1", r"--split_pattern=(?P<split>\w+)\.tfrecord", drops="--split_pattern=train.*"),
    ], "--split_pattern=train.*"),
    "a flag that TFDS answers": Adoption({}, "describes itself (dataset_info.json); leave the flag out", [
        Way("leave the flag out", "train b a", drops="--label_feature=label"),
    ], "--label_feature=label", do=lambda root: prepared(root)),
    "a shard that TFDS names": Adoption({}, "missing; restore it", [
        Way("restore it", "train b a", "", lambda root: prepared(root)),
    ], do=lambda root: (prepared(root), next(root.glob("*tfrecord*")).unlink())),
    "a file of other records": Adoption(TWO | {"test.tfrecord": [ints(0)]}, "not one record of test.tfrecord can be used", [
        Way("or leave the file out with --exclude=test.tfrecord", "train 0 1", "--exclude=test.tfrecord"),
    ], do=lambda root: put(root / "test.tfrecord", [ints(0)], image=texts(b"<html>"))),
}  # fmt: skip


def adoption(case: Adoption, root: Path) -> Path:
    source = root / "s"
    source.mkdir(parents=True)
    for name, labels in case.files.items():
        put(source / name, labels)
    case.do(source)
    return source


def adopt(source: Path, *flags: str) -> Run:
    words = [word.replace("SOURCE", str(source)) for flag in flags for word in flag.split()]
    return Run("shardline.tools.adopt", *words, "--workers=1", "--name=x")


def refused_adoption(case: Adoption, source: Path) -> str:
    result = adopt(source, str(source), case.flags)
    assert result.code in (1, 2), result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert case.refused in message, message
    return message


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, case in ADOPTIONS.items() for number in range(len(case.ways))]
)
def test_a_remedy_of_an_adoption_gives_the_dataset_it_promises(tmp_path, name, number):
    case = ADOPTIONS[name]
    way = case.ways[number]
    source = adoption(case, tmp_path)
    message = refused_adoption(case, source)
    assert way.says.replace("SOURCE", str(source)) in message, message
    way.do(source)
    place = Path((way.source or "SOURCE").replace("SOURCE", str(source)))
    result = adopt(source, str(place), case.flags.replace(way.drops, "") if way.drops else case.flags, way.flags)
    assert result.code == 0, result.stderr
    manifest = Manifest.load(place)
    found = []
    for split in manifest.splits:
        shards = Shards(manifest, place, split)
        labels = [shards.read(record).label for record in range(len(shards))]
        found.append(" ".join([split, *(manifest.labels[label] if label >= 0 else "-" for label in labels)]))
    assert sorted(found) == sorted(way.gives.split(", "))


def test_every_message_of_an_adoption_that_names_a_remedy_has_a_case(tmp_path):
    made = ((case, adoption(case, tmp_path / str(i))) for i, case in enumerate(ADOPTIONS.values()))
    said = "\n".join(refused_adoption(case, source) for case, source in made)
    modules = ("adopt", "adopt_features", "adopt_shard", "shard_files", "conversion/tfds_metadata")
    assert not (missing := without_a_case(said, modules)), "\n".join(missing)
