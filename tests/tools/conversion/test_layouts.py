"""Folders: which are splits and which are classes; what is neither is refused, and each remedy, followed, is right."""

import os
import re
import shlex
import shutil

import numpy as np
import pytest

from shardline.pipeline.errors import UsageError, command_line
from shardline.pipeline.manifest import Manifest
from shardline.tools.conversion.labels import LabelOptions
from shardline.tools.conversion.scan import ScanOptions
from shardline.tools.conversion.scan import scan as scan_sources
from tests.tools.folders import Run, draw, records


def scan(*sources, **options):
    """The inputs: a dictionary path -> (label or None, split)."""
    found = scan_sources([str(source) for source in sources], ScanOptions(**options))
    return found, {
        path.decode(): (found.labels[label] if label >= 0 else None, found.splits[split] if split >= 0 else "")
        for path, label, split in zip(found.paths(), found.label.tolist(), found.split.tolist(), strict=True)
    }


def refusal(source, **options):
    with command_line(), pytest.raises(UsageError) as error:
        scan(source, **options)
    with command_line():
        message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def flags_in(message):
    """The flags that a message advises, with their values."""
    _, _, message = message.partition(": ")
    return dict(flag.split("=", 1) for flag in re.findall(r"--(\w+=(?:'[^']*'|[^\s,;)]+))", message))


F12 = tuple(f"{path}/{i}.jpg" for path in ("train/cat", "train/dog", "test") for i in range(4))
F13 = tuple(
    f"{path}/{i}.jpg"
    for path in ("train/cat", "test/cat", "valid/cat", "to_predict/cat", "train/dog", "test/dog")
    for i in range(4)
)
IMAGENET = (
    *(f"train/n0000000{c}/n0000000{c}_{i}.JPEG" for c in range(1, 4) for i in range(3)),
    *(f"val/ILSVRC2012_val_0000000{i}.JPEG" for i in range(1, 4)),
    *(f"test/ILSVRC2012_test_0000000{i}.JPEG" for i in range(1, 4)),
)


# ------------------------------------------------------------------------------------------- flat splits


def test_a_flat_test_folder_is_named_with_three_remedies(tmp_path):
    message = refusal(touch(tmp_path, *F12))
    assert "test holds 4 images and no class folders" in message
    assert "--unlabelled=test" in message and "--exclude=test" in message and "--split_labels=test=FILE" in message
    assert "label_from" not in message


def test_each_remedy_for_a_flat_test_folder_is_right(tmp_path):
    source = touch(tmp_path / "s", *F12)
    labelled = {f"train/{name}/{i}.jpg": (name, "train") for name in ("cat", "dog") for i in range(4)}
    found, listed = scan(source, unlabelled=("test",))
    assert listed == labelled | {f"test/{i}.jpg": (None, "test") for i in range(4)}
    assert (found.labels, found.unlabelled) == (("cat", "dog"), ("test",))
    _, listed = scan(source, exclude=("test",))
    assert listed == labelled
    (tmp_path / "labels.csv").write_text(
        "image,label\n" + "".join(f"{i}.jpg,{'cat' if i else 'dog'}\n" for i in range(4))
    )
    _, listed = scan(source, split_labels={"test": str(tmp_path / "labels.csv")})
    assert listed == labelled | {f"test/{i}.jpg": ("cat" if i else "dog", "test") for i in range(4)}


def test_the_advice_about_imagenet_never_makes_classes_of_splits(tmp_path):
    source = touch(tmp_path, *IMAGENET)
    message = refusal(source)
    assert "test holds 3 images" in message or "val holds 3 images" in message
    for label_from in ("parent", "first"):  # what was advised once
        assert "holds 3 images and no class folders" in refusal(source, label_from=label_from)
    found, _ = scan(source, unlabelled=("val", "test"))
    assert (found.labels, found.splits) == (("n00000001", "n00000002", "n00000003"), ("train", "val", "test"))


@pytest.mark.parametrize("leftover", ["val/valprep.sh", "val/n00000001/x.JPEG"])
def test_leftovers_in_a_flat_split_do_not_make_it_another_layout(tmp_path, leftover):
    source = touch(tmp_path, *IMAGENET, leftover)
    message = refusal(source, exclude=("test",))
    assert re.search(
        "val holds 3 images and no class folders|3 images such as val/.* beside the class folders", message
    )


def test_a_leftover_script_beside_class_folders_is_ignored_and_named(tmp_path):
    source = touch(tmp_path, *F12[:8], "test/cat/9.jpg", "test/dog/9.jpg", "test/valprep.sh", "train/labels.csv")
    found, listed = scan(source)
    assert len(listed) == 10
    assert "ignored 2 files beside the class folders (test/valprep.sh, train/labels.csv)" in found.notes[0]


def test_flat_splits_alone_need_labels_from_a_file(tmp_path):
    message = refusal(touch(tmp_path, "train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg"))
    assert "train2017 holds 2 images and no class folders" in message
    assert "--unlabelled" not in message and "--exclude" not in message
    assert "list path,label" in message


def test_an_empty_split_folder_is_named(tmp_path):
    touch(tmp_path, *F12[:8])
    (tmp_path / "val").mkdir()
    message = refusal(tmp_path)
    assert "val is empty" in message
    _, listed = scan(tmp_path, exclude=(flags_in(message)["exclude"],))
    assert len(listed) == 8


# ------------------------------------------------------------------------------ folders beside the splits


def test_a_folder_beside_the_splits_is_named(tmp_path):
    source = touch(tmp_path, *F13)
    message = refusal(source)
    assert "to_predict lies beside the split folders test, train, valid" in message
    assert flags_in(message)["exclude"] == "to_predict"
    found, listed = scan(source, exclude=("to_predict",))
    assert (found.splits, found.labels) == (("train", "valid", "test"), ("cat", "dog"))
    assert len(listed) == 20 and not any(path.startswith("to_predict") for path in listed)
    assert "left out 1 file or folder that --exclude names" in found.notes


def test_a_folder_of_classes_beside_the_splits_may_become_a_split(tmp_path):
    source = touch(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "holdout/cat/3.jpg", "holdout/dog/4.jpg")
    message = refusal(source)
    sources = re.findall(r"--source=(\w+=[^\s,;]+)", message)
    assert flags_in(message)["exclude"] == "holdout" and len(sources) == 2
    assert scan(*sources)[1] == {
        "train/cat/1.jpg": ("cat", "train"), "train/dog/2.jpg": ("dog", "train"),
        "holdout/cat/3.jpg": ("cat", "holdout"), "holdout/dog/4.jpg": ("dog", "holdout"),
    }  # fmt: skip


def test_a_class_beside_the_splits_is_no_split_without_labels(tmp_path):
    source = touch(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "test/cat/3.jpg", "dog/4.jpg")
    message = refusal(source)
    assert "move its images into the folder dog of a split" in message and flags_in(message) == {"exclude": "./dog"}
    os.rename(tmp_path / "dog", tmp_path / "test" / "dog")
    found, listed = scan(source)
    assert found.labels == ("cat", "dog") and listed["test/dog/4.jpg"] == ("dog", "test")


def test_a_flat_folder_beside_the_splits_may_become_a_split_without_labels(tmp_path):
    source = touch(tmp_path, *F12[:8], "test/cat/1.jpg", "test/dog/1.jpg", "to_predict/1.jpg", "to_predict/2.jpg")
    message = refusal(source)
    assert flags_in(message) == {"exclude": "to_predict", "unlabelled": "to_predict"}
    found, listed = scan(source, unlabelled=("to_predict",))
    assert found.splits == ("train", "test", "to_predict")
    assert listed["to_predict/2.jpg"] == (None, "to_predict")


@pytest.mark.parametrize("label_from", ["", "parent", "first"])
@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("a/train/x/1.jpg", "a/test/x/2.jpg", "b/train/x/3.jpg"), "split"),
        (("cat/train/1.jpg", "cat/test/2.jpg", "dog/train/3.jpg"), "cat/test is a split by name"),
        (("site/test/1.jpg", "site/cat/2.jpg", "other/cat/3.jpg"), "site/test is a split by name"),
        (("train/1.jpg", "cat/1.jpg"), "cat lies beside the split folder train"),
        (("train/train/cat/1.jpg", "train/other/cat/2.jpg"), "is a split by name"),
    ],
)
def test_a_class_is_never_named_like_a_split(tmp_path, names, named, label_from):
    message = refusal(touch(tmp_path, *names), label_from=label_from)
    assert named in message or (not label_from and "is a folder inside a class folder" in message)


def test_a_split_may_be_a_class_when_all_classes_are_listed(tmp_path):
    source = touch(tmp_path, "bus/1.jpg", "train/2.jpg", "car/3.jpg")  # as CIFAR-100 has them
    message = refusal(source)
    assert "list all classes in --class_names if train is one" in message
    _, listed = scan(source, labels=LabelOptions(("bus", "car", "train")))
    assert listed["train/2.jpg"] == ("train", "")
    nested = touch(tmp_path / "n", "train/cat/2.jpg", "test/cat/3.jpg", "more/cat/4.jpg")
    assert "class_names" not in refusal(nested)


def test_a_flat_split_in_a_folder_of_its_own_name_has_the_remedies_of_a_flat_one(tmp_path):
    source = touch(tmp_path, "train/train/cat/1.jpg", "test/test/2.jpg")
    message = refusal(source)
    assert "test holds 1 image and no class folders" in message and "--unlabelled=test" in message
    _, listed = scan(source, unlabelled=("test",))
    assert listed == {"train/train/cat/1.jpg": ("cat", "train"), "test/test/2.jpg": (None, "test")}


def test_a_split_in_a_folder_of_its_own_name_is_entered(tmp_path):
    source = touch(tmp_path, "training_set/training_set/cat/1.jpg", "test_set/test_set/cat/2.jpg")
    found, listed = scan(source)
    assert found.splits == ("training_set", "test_set")
    assert listed["training_set/training_set/cat/1.jpg"] == ("cat", "training_set")


def test_nested_class_folders_are_refused_with_where_the_splits_are(tmp_path):
    base = "ILSVRC/Data/CLS-LOC"
    source = touch(tmp_path, *(f"{base}/{name}" for name in IMAGENET), "ILSVRC/Annotations/CLS-LOC/train/n1/x.xml")
    message = refusal(source)
    assert f"the split folders test, train, val lie in {base}: give --source={source}/{base}" in message
    assert "label_from" not in message
    message = refusal(source / "ILSVRC")
    assert "annotations is no class but a part of a dataset for detection" in message.lower()
    assert f"give --source={source}/ILSVRC/Data/CLS-LOC" in message
    found, _ = scan(source / base, unlabelled=("test", "val"))
    assert len(found) == 15


def test_nested_class_folders_without_splits_need_label_from(tmp_path):
    source = touch(tmp_path, "site1/cats/1.jpg", "site1/dogs/2.jpg", "site2/cats/3.jpg")
    assert "--label_from=parent" in refusal(source)
    assert scan(source, label_from="parent")[0].labels == ("cats", "dogs")
    assert scan(source, label_from="first")[0].labels == ("site1", "site2")


@pytest.mark.parametrize(
    "names",
    [
        ("JPEGImages/1.jpg", "Annotations/1.xml", "ImageSets/Main/train.txt"),
        ("images/1.jpg", "labels/1.txt"),
        ("images/1.jpg", "masks/1.png"),
        ("img/1.jpg", "mask/1.png"),
    ],
)
def test_the_parts_of_other_datasets_are_no_classes(tmp_path, names):
    message = refusal(touch(tmp_path, *names))
    assert "part of a dataset for detection or segmentation" in message and "list path,label in a .csv" in message


def test_images_beside_class_folders_are_refused_when_they_are_the_most(tmp_path):
    few = touch(tmp_path / "few", "a/1.jpg", "a/2.jpg", "b/1.jpg", "sample.jpg", "README.txt")
    assert "ignored 2 files beside the class folders (README.txt, sample.jpg)" in scan(few)[0].notes[0]
    many = touch(tmp_path / "many", "a/1.jpg", "x.jpg", "y.jpg")
    message = refusal(many)
    assert "2 images such as x.jpg lie beside the class folders, more than in them" in message
    assert len(scan(many, exclude=("x.jpg", "y.jpg"))[1]) == 1


# ---------------------------------------------------------------------------- remedies, each of them followed


def sources_in(message):
    """The values of --source that a message advises."""
    words = shlex.split(message.partition(": ")[2])
    return [word.partition("=")[2].rstrip(",;") for word in words if word.startswith("--source=")]


def listed_in_a_table(folder, rows):
    """What a table of these rows gives: what is advised where folders do not tell labels."""
    (folder / "list.csv").write_text("\n".join(["path,label,split", *map(",".join, rows)]))
    return scan(folder / "list.csv")


def test_splits_under_names_of_their_own_are_sources_and_no_classes(tmp_path):
    """--label_from=parent, advised once, puts both into train and makes a class of the images to predict."""
    names = [f"seg_{part}/seg_{part}/{name}/{part}{i}.jpg" for part in ("train", "test") for name in "ab" for i in "12"]
    source = touch(tmp_path / "s p", *names, "seg_pred/seg_pred/1.jpg")
    message = refusal(source)
    assert "seg_test, seg_train seem to be splits and no classes" in message and "label_from" not in message
    assert ", which leaves out seg_pred" in message
    found, listed = scan(*sources_in(message))
    assert (found.labels, found.splits, len(listed)) == (("a", "b"), ("train", "test"), 8)
    for path, (label, split) in listed.items():
        assert re.fullmatch(rf"{split}/seg_{split}/{label}/{split}[12]\.jpg", path)


def test_classes_that_sound_like_a_split_are_none(tmp_path):
    source = touch(tmp_path, "test_tube/site1/1.jpg", "beaker/site1/2.jpg")
    assert "--label_from=first" in refusal(source)
    assert scan(source, label_from="first")[0].labels == ("beaker", "test_tube")


@pytest.mark.parametrize("split", ["", "train/"])
@pytest.mark.parametrize("pair", [("images", "labels"), ("images", "masks")])
def test_parts_of_a_dataset_for_detection_are_no_classes_of_a_split_either(tmp_path, split, pair):
    names = [f"{split}{pair[0]}/{i}.jpg" for i in range(3)]
    source = touch(tmp_path, *names, *(f"{split}{pair[1]}/{i}.txt" for i in range(3)))
    message = refusal(source)
    assert f"{', '.join(pair)} are no class but a part" in message and "list path,label in a .csv" in message
    found, _ = listed_in_a_table(tmp_path, [(name, "ab"[i % 2], "train") for i, name in enumerate(names)])
    assert (found.labels, found.splits, len(found)) == (("a", "b"), ("train",), 3)


def test_flat_splits_in_a_folder_are_not_where_to_look(tmp_path):
    """A source that would be refused again is no remedy."""
    names = ("images/train/1.jpg", "images/val/2.jpg", "labels/train/1.txt")
    message = refusal(touch(tmp_path / "a", *names))
    assert "list path,label in a .csv" in message and not sources_in(message)
    names = ("cat/train/1.jpg", "cat/test/2.jpg", "dog/train/3.jpg", "dog/test/4.jpg")
    message = refusal(touch(tmp_path / "b", *names))
    assert "or list path,label,split in a .csv" in message and not sources_in(message)
    found, listed = listed_in_a_table(tmp_path / "b", [(name, name[:3], name.split("/")[1]) for name in names])
    assert (found.labels, found.splits) == (("cat", "dog"), ("train", "test"))
    assert listed["dog/test/4.jpg"] == ("dog", "test")


def test_images_without_folders_may_be_moved_or_listed(tmp_path):
    source = touch(tmp_path, "cat.1.jpg", "dog.1.jpg", "cat.2.jpg")
    message = refusal(source)
    assert "SOURCE/CLASS/image.jpg" in message and "list path,label in a .csv" in message
    found, _ = listed_in_a_table(source, [(path.name, path.name[:3], "train") for path in source.glob("*.jpg")])
    assert (found.labels, found.class_counts().tolist()) == (("cat", "dog"), [2, 1])
    (source / "list.csv").unlink()
    for path in list(source.glob("*.jpg")):
        touch(source, f"{path.name[:3]}/{path.name}")
        path.unlink()
    assert scan(source)[0].class_counts().tolist() == [2, 1]


def test_flat_splits_alone_may_be_listed_or_have_files_of_labels(tmp_path):
    source = touch(tmp_path / "s", "train/1.jpg", "train/2.jpg", "val/3.jpg")
    message = refusal(source)
    assert "list path,label and perhaps split in a .csv" in message and "--split_labels=train=FILE" in message
    rows = [("train/1.jpg", "a", "train"), ("train/2.jpg", "b", "train"), ("val/3.jpg", "a", "val")]
    found, _ = listed_in_a_table(source, rows)
    assert (found.labels, found.splits) == (("a", "b"), ("train", "val"))
    (source / "list.csv").unlink()
    (tmp_path / "t.csv").write_text("image,label\n1.jpg,a\n2.jpg,b\n")
    (tmp_path / "v.csv").write_text("image,label\n3.jpg,b\n")
    found, listed = scan(source, split_labels={"train": str(tmp_path / "t.csv"), "val": str(tmp_path / "v.csv")})
    assert listed == {"train/1.jpg": ("a", "train"), "train/2.jpg": ("b", "train"), "val/3.jpg": ("b", "val")}


@pytest.mark.parametrize("split", ["", "train/"])
def test_a_folder_alone_beside_a_table_is_no_class(tmp_path, split):
    names = [f"{split}faces/{i}.jpg" for i in range(4)]
    source = touch(tmp_path, *names)
    (source / f"{split}labels.csv").write_text("path,label\n" + "".join(f"faces/{i}.jpg,{i % 2}\n" for i in range(4)))
    message = refusal(source)
    assert f"faces would be the only class, but {split}labels.csv lies beside it" in message
    found, _ = scan(source / f"{split}labels.csv")
    assert (found.labels, found.class_counts().tolist()) == (("0", "1"), [2, 2])
    found, _ = scan(source, exclude=(flags_in(message)["exclude"],))
    assert (found.labels, found.class_counts().tolist()) == (("faces",), [4])
    assert scan(source, labels=LabelOptions(("faces",)))[0].labels == ("faces",)


@pytest.mark.parametrize("beside", ["imagelabels.mat", "labels.json", "train.lst", "a/1.xml", "a/1.txt", "a/1.cls"])
def test_a_folder_alone_with_files_that_may_have_the_labels_is_no_class(tmp_path, beside):
    source = touch(tmp_path, "a/1.jpg", "a/2.jpg", beside)
    message = refusal(source)
    assert f"a would be the only class, but {beside} lies beside" in message
    _, listed = scan(source, exclude=(flags_in(message)["exclude"].strip("'"),))
    assert listed == {"a/1.jpg": ("a", ""), "a/2.jpg": ("a", "")}
    assert "list path,label in a .csv and give that" in message
    assert listed_in_a_table(source, [("a/1.jpg", "cat", "train"), ("a/2.jpg", "dog", "train")])[0].labels == (
        "cat",
        "dog",
    )


def test_masks_beside_their_images_are_noted(tmp_path):
    """BUSI's: each mask would be one more image of its class."""
    names = [f"{name}/{name} ({i}){end}.png" for name in ("benign", "normal") for i in (1, 2) for end in ("", "_mask")]
    source = touch(tmp_path, *names, "benign/benign (1)_mask_1.png", "normal/face_mask.png")
    note = scan(source)[0].notes[0]
    assert "benign/benign (1)_mask.png is called as an image beside it is; if such files are masks" in note
    _, listed = scan(source, exclude=(flags_in(f"note: {note}")["exclude"].strip("'"),))
    assert {path for path in listed if "mask" in path} == set()
    tensors = touch(tmp_path / "webdataset", "a/0.jpg", "a/0.mask.png", "b/1.jpg")
    assert "a/0.mask.png is called as an image beside it is" in scan(tensors)[0].notes[0]
    assert scan(touch(tmp_path / "faces", "with_mask/1_with_mask.jpg", "bare/1.jpg"))[0].notes == ()


def test_folders_that_are_put_beside_classes_are_noted(tmp_path):
    source = touch(tmp_path / "s", "cat/1.jpg", "dog/2.jpg", "Masks/1.jpg")
    note = "'Masks' is a class like the others; if not, leave it out with --exclude=Masks"
    assert note in scan(source)[0].notes
    assert scan(source, exclude=("Masks",))[0].labels == ("cat", "dog")
    touch(source, "New folder/1.jpg", "owl.zip")
    notes = scan(source)[0].notes
    assert "'Masks', 'New folder' are classes like the others; if not, leave each out with --exclude=Masks" in notes
    assert any("(owl.zip): only files in one have a class, and archives there are not opened" in note for note in notes)
    caltech = touch(tmp_path / "101", "BACKGROUND_Google/1.jpg", "cup/2.jpg")
    assert "'BACKGROUND_Google' is a class like the others; if not" in scan(caltech)[0].notes[0]


def test_classes_of_several_folders_of_one_name_are_noted(tmp_path):
    """SUN397's c/church/indoor and c/cafe/indoor."""
    source = touch(tmp_path / "sun", "a/alley/1.jpg", "c/church/indoor/2.jpg", "c/cafe/indoor/3.jpg")
    (note,) = scan(source, label_from="parent")[0].notes
    assert "1 class of several folders of one name, e.g. indoor in c/cafe, c/church; if those are classes" in note
    splits = touch(
        tmp_path / "splits", "train/x/cat/1.jpg", "train/x/dog/2.jpg", "test/x/cat/3.jpg", "test/x/dog/4.jpg"
    )
    assert scan(splits, label_from="parent")[0].notes == ()


def test_classes_that_lie_in_a_folder_beside_them_too_are_no_class_of_its_name(tmp_path):
    """Kaggle's flowers, which hold themselves once more, and a folder of augmented images."""
    for outer, left in (("flowers", "flowers"), ("train/augmented", "train/augmented")):
        names = [f"{name}/{i}.jpg" for i, name in enumerate(("daisy", "rose"))]
        above = outer.rpartition("/")[0]
        source = touch(
            tmp_path / above, *(f"{folder}/{name}".strip("/") for name in names for folder in (above, outer))
        )
        message = refusal(source)
        assert f"daisy, rose lie beside {outer}, too" in message and "--label_from=first" not in message
        assert f"--exclude={left}," in message
        kept = scan(source, exclude=(left,))
        assert kept[0].labels == ("daisy", "rose") and len(kept[1]) == 2
        joined = scan(source, label_from="parent")
        assert joined[0].labels == ("daisy", "rose") and len(joined[1]) == 4
    twice = touch(tmp_path / "twice", "cat/cat/1.jpg", "dog/dog/2.jpg")
    assert "exclude" not in refusal(twice)


def test_folders_that_hold_the_same_classes_may_be_splits(tmp_path):
    source = touch(tmp_path, "simpsons/bart/1.jpg", "simpsons/lisa/2.jpg", "simpsons_testset/bart/3.jpg")
    message = refusal(source)
    assert "--label_from=parent" in message
    flags = [flag.removeprefix("--source=SPLIT=") for flag in message.split() if flag.startswith("--source=SPLIT=")]
    found, listed = scan(*(f"{split}={flag}" for split, flag in zip(("train", "test"), flags, strict=True)))
    assert found.splits == ("train", "test") and found.labels == ("bart", "lisa")
    assert [split for _, split in listed.values()] == ["train", "train", "test"]
    assert "SPLIT" not in refusal(touch(tmp_path / "other", "a/x/1.jpg", "b/y/2.jpg"))


def test_folds_are_no_classes_by_advice(tmp_path):
    source = touch(tmp_path, *(f"fold{i}/{name}/{i}.jpg" for i in (1, 2, 3) for name in ("cat", "dog")))
    message = refusal(source)
    assert "--label_from=parent" in message and "--label_from=first" not in message
    assert scan(source, label_from="parent")[0].labels == ("cat", "dog")


def test_classes_below_a_folder_of_images_are_advised(tmp_path):
    """Office-31's: --label_from=first alone, advised once, makes classes of its domains."""
    names = [f"{domain}/images/{name}/1.jpg" for domain in ("amazon", "dslr") for name in ("bike", "mug")]
    source = touch(tmp_path, *names)
    assert "--label_from=parent (the folder an image lies in names its class)" in refusal(source)
    assert scan(source, label_from="parent")[0].labels == ("bike", "mug")


def test_splits_alike_but_for_the_word_are_none_beside_another_folder(tmp_path):
    """Market-1501's: three folders of images, which would be three classes."""
    source = touch(tmp_path / "s", "bounding_box_train/1.jpg", "bounding_box_test/2.jpg", "query/3.jpg")
    message = refusal(source)
    assert "bounding_box_test, bounding_box_train seem to be splits and no classes" in message
    for split in ("train", "test"):
        (tmp_path / split).write_text(f"{'1' if split == 'train' else '2'}.jpg 0007\n")
        assert f"--split_labels={split}=FILE" in message
    files = {split: str(tmp_path / split) for split in ("train", "test")}
    sources = [source.rstrip(",") for source in sources_in(message)]
    found, _ = scan(*sources, split_labels=files)
    assert (found.labels, found.splits) == (("0007",), ("train", "test"))
    stations = touch(tmp_path / "t", "train_station/1.jpg", "test_tube/2.jpg", "street/3.jpg")
    assert scan(stations)[0].labels == ("street", "test_tube", "train_station")


def test_a_table_in_a_split_is_named_in_the_flag_that_reads_it(tmp_path):
    """Hugging Face's imagefolder, with a metadata.csv in each split."""
    source = touch(tmp_path / "a b", "train/1.jpg", "train/2.jpg", "test/3.jpg")
    (source / "train/metadata.csv").write_text("file_name,label\n1.jpg,cat\n2.jpg,dog\n")
    (source / "test/metadata.csv").write_text("file_name,label\n3.jpg,dog\n")
    message = refusal(source)
    assert f"--split_labels=test='{source}/test/metadata.csv' reads their labels" in message
    for other in ("_classes.csv", "metadata.parquet"):  # which that flag does not read
        (source / "test/metadata.csv").rename(source / "test" / other)
        (source / "test" / other).write_text("filename, cat, dog\n3.jpg, 0, 1\n")
        assert "--split_labels=test=FILE reads" in refusal(source)
        (source / "test" / other).rename(source / "test/metadata.csv")
    (source / "test/metadata.csv").write_text("file_name,label\n3.jpg,dog\n")
    files = {split: f"{source}/{split}/metadata.csv" for split in ("train", "test")}
    _, listed = scan(source, split_labels=files)
    assert listed == {"train/1.jpg": ("cat", "train"), "train/2.jpg": ("dog", "train"), "test/3.jpg": ("dog", "test")}


TINY_IMAGENET = (
    *(f"train/n{c}/images/n{c}_{i}.JPEG" for c in (1, 2) for i in range(3)),
    *(f"train/n{c}/n{c}_boxes.txt" for c in (1, 2)),
    *(f"{split}/images/{split}_{i}.JPEG" for split in ("val", "test") for i in range(2)),
    "val/val_annotations.txt",
)


def test_listed_images_that_a_split_lacks_are_noted(tmp_path):
    source = touch(tmp_path / "s", "train/cat/1.jpg", "train/dog/2.jpg", "val/3.jpg", "val/4.jpg")
    labels = tmp_path / "labels"
    for others, told in (("5", 1), ("56789", 0)):  # more are those of other splits
        labels.write_text("3.jpg cat\n4.jpg dog\n" + "".join(f"{name}.jpg cat\n" for name in others))
        notes = scan(source, split_labels={"val": str(labels)})[0].notes
        assert sum("labels lists 1 file that val does not hold, e.g. 5.jpg" in note for note in notes) == told


def test_tiny_imagenet_step_by_step(tmp_path):
    """--label_from=parent, advised once, made one class called images of all of it."""
    source = touch(tmp_path, *TINY_IMAGENET)
    (source / "val/val_annotations.txt").write_text("val_0.JPEG\tn2\t0\t32\t44\t62\nval_1.JPEG\tn1\t52\t55\t57\t59\n")
    options = {"exclude": ("*.txt",)}
    message = refusal(source, **options)
    assert "test holds 2 images and no class folders" in message and "--unlabelled=test" in message
    options["unlabelled"] = ("test",)
    message = refusal(source, **options)
    assert "val holds 2 images and no class folders" in message and "--split_labels=val=FILE" in message
    options["split_labels"] = {"val": str(source / "val/val_annotations.txt")}
    message = refusal(source, **options)
    assert "say --label_from=first" in message and "parent" not in message
    found, listed = scan(source, label_from="first", **options)
    assert (found.labels, found.splits) == (("n1", "n2"), ("train", "val", "test"))
    assert listed["val/images/val_0.JPEG"] == ("n2", "val") and listed["test/images/test_1.JPEG"] == (None, "test")
    assert listed["train/n2/images/n2_0.JPEG"] == ("n2", "train") and len(listed) == 10
    assert "'images', which would be the only class" in refusal(source, label_from="parent", **options)


def test_only_a_way_that_gives_several_classes_is_advised(tmp_path):
    source = touch(tmp_path / "a", "images/apple/1.jpg", "images/pie/2.jpg", "meta/train.txt")
    (inner,) = sources_in(message := refusal(source))
    assert "label_from" not in message and scan(inner)[0].labels == ("apple", "pie")
    source = touch(tmp_path / "b", "cat/persian/1.jpg", "cat/2.jpg", "dog/3.jpg")
    assert "--label_from=first" in (message := refusal(source)) and "parent" not in message
    assert scan(source, label_from="first")[0].labels == ("cat", "dog")


def test_a_folder_of_annotations_is_no_class_that_is_advised(tmp_path):
    """Stanford Dogs; CVS is a shop, and was left out like what a program of that name leaves behind."""
    source = touch(tmp_path / "a", "Images/n1-chihuahua/n1_1.jpg", "Images/n2-spaniel/n2_2.jpg")
    for name in ("Annotation/n1-chihuahua/n1_1", "Annotation/n2-spaniel/n2_2", "lists/train_list.mat"):
        touch(source, name)
    (inner,) = sources_in(message := refusal(source))
    assert "label_from" not in message and scan(inner)[0].labels == ("n1-chihuahua", "n2-spaniel")
    assert scan(touch(tmp_path / "b", "CVS/1.jpg", "Walgreens/2.jpg"))[0].labels == ("CVS", "Walgreens")


@pytest.mark.parametrize("name", ["jpg", "images", "Photos"])
def test_a_folder_that_holds_everything_is_no_class(tmp_path, name):
    """Flowers-102: jpg/image_00001.jpg, with the labels in a .mat beside it."""
    source = touch(tmp_path, f"{name}/1.jpg", f"{name}/2.jpg", "imagelabels.mat")
    assert f"{name} would be the only class" in refusal(source)
    assert scan(source, labels=LabelOptions((name,)))[0].labels == (name,)


@pytest.mark.parametrize("name", ["x-train.tfrecord-00000-of-00001", "data/train.tfrecord", "train/0.tfrec"])
def test_records_are_for_another_command(tmp_path, name):
    touch(tmp_path, name)
    assert f"read TFRecords as they are: shardline-adopt {(tmp_path / name).parent}" in refusal(tmp_path)


def test_archives_that_lie_in_the_source_are_sources(tmp_path):
    for name, inside in (("train", ("a/1.jpg", "b/2.jpg")), ("test", ("a/3.jpg",))):
        touch(tmp_path / "x" / name, *inside)
        shutil.make_archive(str(tmp_path / "s" / name), "zip", tmp_path / "x" / name)
    message = refusal(tmp_path / "s")
    assert "2 files and no folders; give each archive" in message
    _, listed = scan(*sources_in(message))
    assert listed == {"test/a/3.jpg": ("a", "test"), "train/a/1.jpg": ("a", "train"), "train/b/2.jpg": ("b", "train")}
    shutil.make_archive(str(tmp_path / "outer"), "zip", tmp_path / "s")
    assert "unpack it, and give each archive: --source=test=FOLDER/test.zip" in refusal(tmp_path / "outer.zip")


def test_shares_of_a_source_with_splits_are_refused_and_both_remedies_work(tmp_path):
    source = tmp_path / "s"
    for i in range(8):
        for folder in ("train/a", "train/b", "test/a"):
            draw(source / folder / f"{i}.jpg", hash(folder) % 1000 + i)
    output = f"--output={tmp_path}/d"
    message = convert(f"--source={source}", output, "--splits=train=0.5,validation=0.5", code=2).stderr
    assert "already names its splits (train, test); leave the flag out, or give the folder of one of them" in message
    convert(f"--source={source}", output)
    assert Manifest.load(tmp_path / "d").class_counts == {"train": (8, 8), "test": (8, 0)}
    convert(f"--source={source}/train", f"--output={tmp_path}/e", "--splits=train=0.5,validation=0.5")
    counts = Manifest.load(tmp_path / "e").class_counts
    assert np.sum(list(counts.values()), axis=0).tolist() == [8, 8] and list(counts) == ["train", "validation"]
    for split, code in (("train", 0), ("test", 2), ("valid", 2)):  # one split alone
        told = convert(
            f"--source={split}={source}/train",
            f"--output={tmp_path}/f",
            "--splits=train=0.5,val=0.5",
            "--dry_run",
            code=code,
        ).stderr
        if code:
            assert f"already names its splits ({split}); leave the flag out" in told
        else:
            assert "note: the shares of --splits divide the source's split train" in told
    message = convert(f"--source=test={source}/train", f"--output={tmp_path}/e", "--append", code=2).stderr
    assert "(test); the shares of this dataset divide what is added, so give the folder" in message
    (source / "test" / "b").mkdir()
    draw(source / "test" / "b" / "1.jpg", 77)
    convert(f"--source={source}/test", f"--output={tmp_path}/e", "--append")
    counts = Manifest.load(tmp_path / "e").class_counts
    assert np.sum(list(counts.values()), axis=0).tolist() == [16, 9]


# --------------------------------------------------------------------------------------- what is left behind


@pytest.mark.parametrize(
    "name",
    ["lost+found", "$RECYCLE.BIN", "RECYCLER", "System Volume Information", "__MACOSX", ".ipynb_checkpoints",
     ".Trash-1000", ".git", "@eaDir", "#recycle", "__pycache__", "FOUND.000"],
)  # fmt: skip
def test_folders_that_systems_leave_are_no_classes(tmp_path, name):
    source = touch(tmp_path, "a/1.jpg", "b/2.jpg", f"{name}/3.jpg", f"a/{name}/4.jpg")
    assert scan(source)[1] == {"a/1.jpg": ("a", ""), "b/2.jpg": ("b", "")}
    (tmp_path / name / "3.jpg").unlink()
    os.chmod(tmp_path / name, 0)
    try:
        assert len(scan(source)[1]) == 2  # nobody looks into it: lost+found is root's
    finally:
        os.chmod(tmp_path / name, 0o755)


@pytest.mark.parametrize("name", ["Thumbs.db", "ehthumbs.db", "desktop.ini", ".DS_Store", "._1.jpg", "Icon\r"])
def test_files_that_systems_leave_are_no_inputs(tmp_path, name):
    assert len(scan(touch(tmp_path, "a/1.jpg", f"a/{name}", name))[1]) == 1


# ------------------------------------------------------------------------------------------------ exclude


def test_exclude_takes_files_of_paths_and_names(tmp_path):
    source = touch(tmp_path / "s", "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/3.JPEG", "c/4.jpg", "c/5.xml")
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbf# known to be wrong\na\\1.jpg\r\n\r\n3\n./c/4.jpg\nnowhere.jpg\n")
    found, listed = scan(source, exclude=(str(tmp_path / "list"), "*.xml"), labels=LabelOptions(("a", "b", "c")))
    assert sorted(listed) == ["a/2.jpg", "b/1.jpg"]
    assert "left out 4 files and folders that --exclude names" in found.notes
    assert "--exclude: 1 line matches nothing: nowhere.jpg" in found.notes


def test_a_name_on_the_command_line_that_matches_nothing_is_a_slip(tmp_path):
    assert "--exclude=lst.txt: no list, and nothing in the source" in refusal(
        touch(tmp_path, "a/1.jpg"), exclude=("lst.txt",)
    )


def test_exclude_takes_an_image_that_lies_where_it_is_typed_for_a_path_and_no_list(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    (tmp_path / "a/1.jpg").write_bytes(b"2.jpg\n")  # as a list, it would leave out another image
    monkeypatch.chdir(tmp_path)
    assert sorted(scan(tmp_path, exclude=("a/1.jpg",))[1]) == ["a/2.jpg", "b/1.jpg"]
    assert "nothing in the source has this path" in refusal(tmp_path, exclude=(str(tmp_path / "a/1.jpg"),))


def test_a_folder_beside_splits_is_left_out_and_the_class_of_its_name_stays(tmp_path):
    source = touch(tmp_path, *F12[:8], "test/cat/1.jpg", "test/dog/1.jpg", "cat/7.jpg")
    flags = flags_in(refusal(source))
    assert flags == {"exclude": "./cat"}
    listed = scan(source, exclude=(flags["exclude"],))[1]
    assert sorted(listed) == sorted([*F12[:8], "test/cat/1.jpg", "test/dog/1.jpg"])
    (tmp_path / "list").write_text("./cat\nlist\n")
    assert scan(source, exclude=(str(tmp_path / "list"),))[1] == listed


def test_flags_that_name_no_split_are_refused(tmp_path):
    source = touch(tmp_path, *F12[:8])
    assert "no folder 'tst'" in refusal(source, unlabelled=("tst",))
    (tmp_path / "labels").write_text("cat\n")
    assert "no folder 'val'" in refusal(source, split_labels={"val": str(tmp_path / "labels")}, exclude=("labels",))


# ---------------------------------------------------------------------------------------- several sources


def test_pieces_of_a_dataset_beside_its_labels_are_no_classes(tmp_path):
    ham = touch(
        tmp_path / "ham", "HAM10000_images_part_1/1.jpg", "HAM10000_images_part_2/2.jpg", "HAM10000_metadata.csv"
    )
    touch(tmp_path / "img", "00000/000000000.jpg", "00001/000010000.jpg", "00000_stats.json")
    assert "HAM10000_metadata.csv lies beside them; if that has the labels, give it" in refusal(ham)
    assert "00000, 00001 would be classes, but 00000_stats.json lies beside" in refusal(tmp_path / "img")
    assert scan(ham, labels=LabelOptions(("HAM10000_images_part_1", "HAM10000_images_part_2")))[0].notes == (
        "ignored 1 file beside the class folders (HAM10000_metadata.csv): only files in one have a class",
    )
    (note,) = scan(touch(tmp_path / "utk", "part1/1.jpg", "part2/2.jpg", "part3/3.jpg"))[0].notes
    assert note.startswith("part1, part2, part3 are classes; if they are pieces of a dataset, list path,label")
    assert scan(touch(tmp_path / "gtsrb", "00000/1.jpg", "00001/2.jpg", "Readme.txt"))[0].labels == ("00000", "00001")
    assert scan(touch(tmp_path / "type", "part a/1.jpg", "part b/2.jpg"))[0].notes == ()


def test_remedies_for_several_sources_are_no_paths_that_nobody_has(tmp_path):
    p = touch(tmp_path / "p", "train/a/1.jpg", "test/b/2.jpg")
    q = touch(tmp_path / "q", "a/3.jpg", "b/4.jpg")
    with pytest.raises(UsageError) as error:
        scan(f"train={p}", f"test={q}")
    assert "p, " not in str(error.value).partition(": ")[2] and "outermost folders" in str(error.value)
    with pytest.raises(UsageError) as error:
        scan(p, q)
    assert "(source=train=FOLDER)" in str(error.value)
    assert scan(p, f"train={q}")[1] == {
        "train/a/1.jpg": ("a", "train"), "train/a/3.jpg": ("a", "train"), "train/b/4.jpg": ("b", "train"),
        "test/b/2.jpg": ("b", "test"),
    }  # fmt: skip


def test_a_dataset_is_no_source(tmp_path):
    made = touch(tmp_path, "x-train.tfrecord-00000-of-00001", "manifest.json", "sources.parquet")
    assert f"train on it as it is: shardline-train --data {made} --workdir RUN" in refusal(made)


def test_several_sources_are_one(tmp_path):
    touch(tmp_path / "one", "a/1.jpg", "b/2.jpg")
    touch(tmp_path / "two", "a/3.jpg", "c/4.jpg")
    found, listed = scan(tmp_path / "one", tmp_path / "two")
    assert listed == {"a/1.jpg": ("a", ""), "a/3.jpg": ("a", ""), "b/2.jpg": ("b", ""), "c/4.jpg": ("c", "")}
    assert [found.place(i).origin for i in range(4)] == [0, 1, 0, 1]


def test_a_file_in_two_sources_is_refused_and_the_remedy_works(tmp_path):
    touch(tmp_path / "one", "a/1.jpg")
    touch(tmp_path / "two", "a/1.jpg")
    with pytest.raises(UsageError, match=r"a/1.jpg is in .*one and in .*two; .*label_from=parent"):
        scan(tmp_path / "one", tmp_path / "two")
    (tmp_path / "all").mkdir()
    for name in ("one", "two"):
        (tmp_path / "all" / name).symlink_to(tmp_path / name)
    assert scan(tmp_path / "all", label_from="parent")[1] == {"one/a/1.jpg": ("a", ""), "two/a/1.jpg": ("a", "")}


def test_a_source_may_be_a_split(tmp_path):
    split = touch(tmp_path / "split", "train/a/1.jpg", "train/b/2.jpg", "holdout/a/3.jpg", "holdout/b/3.jpg")
    apart = scan(f"train={split}/train", f"holdout={split}/holdout")
    assert apart[1]["holdout/b/3.jpg"] == ("b", "holdout")
    touch(tmp_path / "named", "train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg", "test/b/3.jpg")
    one = scan(tmp_path / "named")
    two = scan(f"train={tmp_path}/named/train", f"test={tmp_path}/named/test")
    assert one[0].fingerprint(stamps=True) == two[0].fingerprint(stamps=True)


def test_a_path_with_an_equals_sign_is_a_path(tmp_path, monkeypatch):
    touch(tmp_path, "size=160/a/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert scan("size=160")[0].splits == ()


def test_tables_are_alone(tmp_path):
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "t.csv").write_text("path,label\na/1.jpg,a\n")
    with pytest.raises(UsageError, match="is the only source"):
        scan(tmp_path / "t.csv", tmp_path)


# ------------------------------------------------------------------------------------------------ commands


def convert(*arguments, code=0):
    result = Run("shardline.tools.convert", *arguments, "--noreport", "--engine=inline", "--size=16", "--name=x")
    assert result.code == code, result.stderr
    return result


@pytest.fixture(scope="module")
def flat_test(tmp_path_factory):
    """Two classes to train with, and a flat test folder."""
    root = tmp_path_factory.mktemp("kaggle")
    for number, name in enumerate(F12):
        draw(root / name, number)
    return root


def test_several_sources_give_the_same_dataset_as_one(flat_test, tmp_path):
    one = convert(f"--source={flat_test}", f"--output={tmp_path}/one", "--unlabelled=test")
    two = convert(
        f"--source=train={flat_test}/train", f"--source=test={flat_test}/test", f"--output={tmp_path}/two",
        "--unlabelled=test",
    )  # fmt: skip
    assert one.stdout.splitlines()[-1] == two.stdout.splitlines()[-1]


def test_a_split_without_labels_is_stored_and_verified(flat_test, tmp_path):
    convert(f"--source={flat_test}", f"--output={tmp_path}/d", "--unlabelled=test")
    manifest = Manifest.load(tmp_path / "d")
    assert manifest.split("test").unlabelled and not manifest.split("train").unlabelled
    assert manifest.class_counts == {"train": (4, 4), "test": ()}
    assert [example.label for example in records(tmp_path / "d", "test")] == [-1] * 4
    assert Run("shardline.tools.verify", tmp_path / "d", "--workers=1").code == 0
    shown = Run("shardline.tools.inspect", tmp_path / "d").stdout
    assert "no labels" in shown
    assert "label    -1 (none)" in Run("shardline.tools.inspect", tmp_path / "d", "--record=test:0").stdout
    again = Run("shardline.tools.convert", f"--source={flat_test}", f"--output={tmp_path}/d", "--unlabelled=test",
                "--noreport", "--size=16", "--name=x")  # fmt: skip
    assert "is finished already" in again.stderr
    relabelled = Manifest.load(tmp_path / "d").digest
    convert(f"--source={flat_test}", f"--output={tmp_path}/e", "--exclude=test")
    assert Manifest.load(tmp_path / "e").digest != relabelled


def test_the_report_of_a_dataset_with_such_a_split(flat_test, tmp_path):
    result = Run("shardline.tools.convert", f"--source={flat_test}", f"--output={tmp_path}/d", "--unlabelled=test",
                 "--engine=inline", "--size=16")  # fmt: skip
    assert result.code == 0, result.stderr
    assert (tmp_path / "d" / "report.html").exists()


def test_side_files_end_the_run_with_reasons_and_a_remedy_that_works(tmp_path):
    for c in range(2):
        for i in range(30):
            draw(tmp_path / f"s/class{c}/{i}.jpg", 100 * c + i)
            (tmp_path / f"s/class{c}/{i}.xml").write_text("<annotation/>")
    (tmp_path / "s/class0/x.xml").write_text("<annotation/>")
    message = convert(f"--source={tmp_path}/s", f"--output={tmp_path}/d", code=1).stderr
    assert re.search(r"61 bad images are more than .*: 61 \S+ \(e\.g\. class\d/\w+\.xml\)", message)
    remedy = re.search(r"--exclude='\*\.xml'", message)[0]
    convert(f"--source={tmp_path}/s", f"--output={tmp_path}/e", *shlex.split(remedy))
    assert Manifest.load(tmp_path / "e").ledger.inputs == 60


def test_mixed_reasons_are_counted_each_with_an_example(tmp_path):
    for i in range(3):
        draw(tmp_path / f"s/a/{i}.jpg", i)
    for i in range(40):
        (tmp_path / f"s/a/empty{i}.jpg").write_bytes(b"")
    for i in range(20):
        (tmp_path / f"s/a/text{i}.jpg").write_text("no image at all, but text")
    message = convert(f"--source={tmp_path}/s", f"--output={tmp_path}/d", code=1).stderr
    assert re.search(r"\d+ empty \(e\.g\. a/empty\d+\.jpg\), \d+ \S+ \(e\.g\. a/text\d+\.jpg\)", message)
    assert "--exclude" not in message
