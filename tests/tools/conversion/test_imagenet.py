"""ImageNet as published, on a small replica: each form in one command, the same dataset, labels in Keras's order."""

import json
import tarfile
import zipfile

import numpy as np
import pytest

from shardline.pipeline import stored
from shardline.pipeline.errors import UsageError, command_line
from shardline.pipeline.manifest import Manifest
from shardline.tools.conversion.label_files import read_class_words, read_label_order, read_split_labels
from tests.tools.folders import Run, draw, records

# Synsets in the devkit's order of ILSVRC2012_IDs, which is not the sorted one that Keras's weights have.
DEVKIT = ("n02119789", "n02100735", "n02110185", "n01440764", "n01443537")
WORDS = {
    "n02119789": "kit fox, Vulpes macrotis",
    "n02100735": "English setter",
    "n02110185": "Siberian husky",
    "n01440764": "tench, Tinca tinca",
    "n01443537": "goldfish, Carassius auratus",
}
GROUND_TRUTH = (4, 1, 3, 5, 2, 4, 4, 1)  # an ILSVRC2012_ID for each validation image, in order
VALIDATION = {f"ILSVRC2012_val_{i:08}.JPEG": DEVKIT[number - 1] for i, number in enumerate(GROUND_TRUTH, 1)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Everything as it can be downloaded."""
    root = tmp_path_factory.mktemp("imagenet")
    base = root / "ILSVRC/Data/CLS-LOC"
    seed = 0
    for synset in DEVKIT:
        for i in range(3):
            seed += 1
            draw(base / "train" / synset / f"{synset}_{i + 10}.JPEG.jpg", seed).rename(
                base / "train" / synset / f"{synset}_{i + 10}.JPEG"
            )
    for folder, names in (("val", VALIDATION), ("test", [f"ILSVRC2012_test_{i:08}.JPEG" for i in range(1, 5)])):
        for name in names:
            seed += 1
            draw(base / folder / f"{name}.jpg", seed).rename(base / folder / name)
    boxes = {name[:-5]: f"{synset} 111 108 230 193 {synset} 1 2 3 4 " for name, synset in VALIDATION.items()}
    rows = sorted(boxes.items(), key=lambda pair: pair[1])  # Kaggle's is in no order
    (root / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n" + "".join(f"{name},{text}\n" for name, text in rows)
    )
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in GROUND_TRUTH))
    (root / "order.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(DEVKIT, 1)))
    (root / "synset_labels.txt").write_text("".join(f"{synset}\n" for synset in VALIDATION.values()))
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{name} {WORDS[name]}\n" for name in sorted(WORDS)))
    index = {str(i): [name, WORDS[name].split(",")[0].replace(" ", "_")] for i, name in enumerate(sorted(WORDS))}
    (root / "imagenet_class_index.json").write_text(json.dumps(index))
    for synset in DEVKIT:
        with tarfile.open(root / f"{synset}.tar", "w") as archive:
            for path in sorted((base / "train" / synset).iterdir()):
                archive.add(path, path.name)
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as archive:
        for synset in DEVKIT:
            archive.add(root / f"{synset}.tar", f"{synset}.tar")
            (root / f"{synset}.tar").unlink()
    for name in ("val", "test"):
        with tarfile.open(root / f"ILSVRC2012_img_{name}.tar", "w") as archive:
            for path in sorted((base / name).iterdir()):
                archive.add(path, path.name)
    with zipfile.ZipFile(root / "kaggle.zip", "w") as archive:
        for path in sorted(base.rglob("*")):
            archive.write(path, path.relative_to(root))
        archive.writestr("ILSVRC/Annotations/CLS-LOC/train/n01440764/n01440764_10.xml", "<annotation/>")
        for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
            archive.write(root / name, name)
    return root


def convert(published, output, *flags, code=0):
    flags = [flag.replace("ROOT", str(published)) for flag in flags]
    result = Run("shardline.tools.convert", *flags, f"--output={output}", "--size=16", "--name=imagenet", "--noreport",
                 "--engine=inline")  # fmt: skip
    assert result.code == code, result.stderr
    return result


@pytest.fixture(scope="module")
def from_folders(published, tmp_path_factory):
    output = tmp_path_factory.mktemp("d") / "d"
    convert(published, output, "--source=ROOT/ILSVRC/Data/CLS-LOC", "--split_labels=val=ROOT/LOC_val_solution.csv",
            "--unlabelled=test", "--class_words=ROOT/LOC_synset_mapping.txt")  # fmt: skip
    return output


def test_labels_are_in_the_order_of_sorted_synsets(from_folders):
    manifest = Manifest.load(from_folders)
    assert manifest.labels == tuple(sorted(DEVKIT))
    assert {name: split.records for name, split in manifest.splits.items()} == {"train": 15, "val": 8, "test": 4}
    found = {example.filename: example.label for example in records(from_folders, "val")}
    assert found == {f"val/{name}": sorted(DEVKIT).index(synset) for name, synset in VALIDATION.items()}
    assert {example.label for example in records(from_folders, "test")} == {-1}
    for example in records(from_folders, "train"):
        assert example.filename.split("/")[1] == manifest.labels[example.label]
    assert manifest.words == tuple(WORDS[name] for name in sorted(DEVKIT))
    assert manifest.shown_labels == ("tench", "goldfish", "English setter", "Siberian husky", "kit fox")


@pytest.mark.parametrize(
    "flags",
    [
        ("--source=ROOT/kaggle.zip/ILSVRC/Data/CLS-LOC", "--split_labels=val=ROOT/kaggle.zip/LOC_val_solution.csv",
         "--class_words=ROOT/kaggle.zip/LOC_synset_mapping.txt"),
        ("--source=ROOT/ILSVRC/Data/CLS-LOC", "--split_labels=val=ROOT/synset_labels.txt",
         "--class_words=ROOT/LOC_synset_mapping.txt"),
        ("--source=ROOT/ILSVRC/Data/CLS-LOC", "--split_labels=val=ROOT/ILSVRC2012_validation_ground_truth.txt",
         "--label_order=ROOT/order.txt", "--class_words=ROOT/LOC_synset_mapping.txt"),
        ("--source=train=ROOT/ILSVRC2012_img_train.tar", "--source=val=ROOT/ILSVRC2012_img_val.tar",
         "--source=test=ROOT/ILSVRC2012_img_test.tar", "--split_labels=val=ROOT/synset_labels.txt",
         "--class_words=ROOT/LOC_synset_mapping.txt"),
    ],
    ids=["kaggle.zip", "synset_labels", "ground_truth", "tars"],
)  # fmt: skip
def test_each_form_gives_the_same_dataset(published, from_folders, tmp_path, flags):
    result = convert(published, tmp_path / "d", *flags, "--unlabelled=test")
    assert result.stdout.splitlines()[-1] == Manifest.load(from_folders).digest
    assert Manifest.load(tmp_path / "d").words == Manifest.load(from_folders).words


def test_valpreps_folders_give_the_same_labels(published, from_folders, tmp_path):
    base = published / "ILSVRC/Data/CLS-LOC"
    (tmp_path / "s").mkdir()
    (tmp_path / "s/train").symlink_to(base / "train")
    for name, synset in VALIDATION.items():
        (tmp_path / "s/val" / synset).mkdir(parents=True, exist_ok=True)
        (tmp_path / "s/val" / synset / name).symlink_to(base / "val" / name)
    (tmp_path / "s/val/valprep.sh").write_text("mkdir -p n01440764\n")
    result = convert(published, tmp_path / "d", f"--source={tmp_path}/s")
    assert "ignored 1 file beside the class folders (val/valprep.sh)" in result.stderr
    found = {example.filename.rpartition("/")[2]: example.label for example in records(tmp_path / "d", "val")}
    assert found == {name: sorted(DEVKIT).index(synset) for name, synset in VALIDATION.items()}


def test_a_blacklist_leaves_images_out(published, tmp_path):
    (tmp_path / "blacklist").write_text("ILSVRC2012_val_00000002\nn02100735_11.JPEG\n")
    convert(published, tmp_path / "d", "--source=ROOT/ILSVRC/Data/CLS-LOC", "--exclude=test",
            "--split_labels=val=ROOT/synset_labels.txt", f"--exclude={tmp_path}/blacklist")  # fmt: skip
    found = {example.filename.rpartition("/")[2]: example.label for example in records(tmp_path / "d", "val")}
    assert found == {
        name: sorted(DEVKIT).index(synset) for name, synset in VALIDATION.items() if not name.endswith("2.JPEG")
    }  # lines are told by number: the images after the one left out keep their labels
    assert Manifest.load(tmp_path / "d").split("train").records == 14


def test_the_tree_without_flags_is_refused_with_what_helps(published, tmp_path):
    message = convert(published, tmp_path / "d", "--source=ROOT/ILSVRC/Data/CLS-LOC", code=2).stderr
    assert "--unlabelled=test" in message or "--split_labels=val=FILE" in message
    message = convert(published, tmp_path / "d", "--source=ROOT/kaggle.zip", code=2).stderr
    assert f"give --source={published}/kaggle.zip/ILSVRC/Data/CLS-LOC" in message
    assert "label_from" not in message


# ------------------------------------------------------------------------------------------ files of labels


def refused(call, *arguments):
    with pytest.raises(UsageError) as error:
        call(*arguments)
    with command_line():
        return str(error.value)


def test_numbers_in_the_order_of_sorted_synsets_are_refused(published, tmp_path):
    (tmp_path / "sorted.txt").write_text("".join(f"{name}\n" for name in sorted(DEVKIT)))
    message = refused(read_label_order, str(tmp_path / "sorted.txt"))
    assert "1 is n02119789" in message
    assert "is no number that --label_order names" in refused(
        read_split_labels, "--split_labels=val", str(published / "LOC_val_solution.csv"), {1: "n1"}
    )


def test_ground_truth_without_an_order_is_refused(published, tmp_path):
    message = convert(
        published, tmp_path / "d", "--source=ROOT/ILSVRC/Data/CLS-LOC", "--exclude=test",
        "--split_labels=val=ROOT/ILSVRC2012_validation_ground_truth.txt", code=2,
    ).stderr  # fmt: skip
    assert "--label_order" in message


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("1 b\n2 a\n", {1: "b", 2: "a"}),
        ("1,b\n2,a\n", {1: "b", 2: "a"}),
        ("b\na\n", {1: "b", 2: "a"}),
        ("b\n\na\n", "name 2 of the list is empty, but places in it are labels"),
        ("1 b\n\n2 a\n", {1: "b", 2: "a"}),
        ("id,name\n1,b\n2,a\n", {1: "b", 2: "a"}),  # a heading
        ("1. b\n2. a\n", {1: "b", 2: "a"}),
        ("0=b\n1=a\n", {0: "b", 1: "a"}),
        ("b | 0\na | 1\n", {0: "b", 1: "a"}),
        ('{"1": ["n01443537", "goldfish"], "0": ["n01440764", "tench"]}', {0: "n01440764", 1: "n01443537"}),
        ('{"b": 1, "a": 2}', {1: "b", 2: "a"}),
        ('{"names": ["b", "a"]}', "no JSON of a number for each name; write lines NUMBER NAME"),
        ('{"b": 1, "a": 1}', "no JSON of a number for each name"),
        ("n02119789 kit fox\nn01440764 tench\n", {1: "n02119789", 2: "n01440764"}),
        ("1 b\n1 a\n", "occurs twice"),
        ("/a/alley 1\n/a/abbey 0\n", {1: "/a/alley", 0: "/a/abbey"}),  # Places365's
        ("boeing 747\nboeing 737\n", {1: "boeing 747", 2: "boeing 737"}),
        ("name\nb\na\n", "its first name, 'name', seems to be a heading and would be label 1; remove it"),
        ("name id\nb 1\na 2\n", {1: "b", 2: "a"}),
        ("name id\nb 0\na 1\n", "its lines are numbered from 0"),
        ("1" * 5000 + " b\n2 a\n", {1: "1" * 5000 + " b", 2: "2 a"}),
        ('{"b": Infinity}', "no JSON of a number for each name"),
        ('{"b": 1, "a": 2, "b": 3}', "no JSON of a number for each name"),
        ("", "no lines"),
    ],
)
def test_orders(tmp_path, text, order):
    (tmp_path / "order").write_text(text)
    if isinstance(order, str):
        assert order in refused(read_label_order, str(tmp_path / "order"))
    else:
        assert read_label_order(str(tmp_path / "order")) == order


def test_the_devkits_matlab_file_is_read(tmp_path):
    from scipy.io import savemat

    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(float(i), name, WORDS[name], 0.0) for i, name in enumerate(DEVKIT, 1)] + [
        (6.0, "n00001740", "entity", 2.0)
    ]
    savemat(tmp_path / "meta.mat", {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    assert read_label_order(str(tmp_path / "meta.mat")) == dict(enumerate(DEVKIT, 1))
    (tmp_path / "other.mat").write_bytes(b"no matlab")
    assert "no meta.mat of ImageNet's devkit" in refused(read_label_order, str(tmp_path / "other.mat"))


NAMES = [b"a.jpg", b"b.png", b"c.jpg"]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("image,label\nb.png,dog\na.jpg,cat\nc.jpg,cat\nunknown.jpg,x\n", ["cat", "dog", "cat"]),
        ("id;class\nb;dog\na;cat\nc;cat\n", ["cat", "dog", "cat"]),
        ("val/a.jpg cat\nval/b.png dog\nval/c.jpg cat\n", ["cat", "dog", "cat"]),
        ("a.jpg|cat\nb.png | dog\nc.jpg|cat\n", ["cat", "dog", "cat"]),
        ("a.jpg: cat\nb.png: dog\nc.jpg: cat\n", ["cat", "dog", "cat"]),
        ("image|label\na.jpg|cat\nb.png|dog\nc.jpg|cat\n", ["cat", "dog", "cat"]),
        ("cat a.jpg\ndog b.png\ncat c.jpg\n", "hold more than a label"),  # each line would be a class
        ("a.jpg=cat\nb.png=dog\nc.jpg=cat\n", "hold more than a label"),
        ("a.jpg\nb.png\nc.jpg\n", "hold more than a label"),
        ("cat\nbig dog\ncat\n", ["cat", "big dog", "cat"]),
        ("image,label\na.jpg,cat\nb.png,dog\n", "no label for 1 file of val, e.g. c.jpg"),
        ("img_name,class_name\nb.png,dog\na.jpg,cat\nc.jpg,cat\n", ["cat", "dog", "cat"]),
        ("apple_pie/a\napple_pie/b\npizza/c\n", "hold more than a label"),  # Food-101's meta/train.txt
        ("1 7\n2 9\n3 7\n", "hold more than a label"),  # CUB-200's image_class_labels.txt
        ("tench, Tinca tinca\nkit fox\ntench, Tinca tinca\n", ["tench, Tinca tinca", "kit fox", "tench, Tinca tinca"]),
        ("cat\ndog\n", "2 lines, but 3 images in val"),
        ("cat\ndog\ncat\ncat\n", "4 lines, but 3 images in val"),
        ("image,label\na.jpg,cat\na.jpg,dog\n", "a.jpg has two labels, cat and dog"),
        ("image,label\na,cat\na.jpg,dog\nb.png,dog\nc.jpg,cat\n", "val/a.jpg has two labels, cat and dog"),
        ("label\ncat\ndog\n", "its first line, 'label', is a heading"),
        ("label\nlabel\ncat\n", ["label", "label", "cat"]),
        ("cat\n\ndog\ncat\n\n", "a line is empty"),
        ("cat\ndog\ncat\n\n \n", ["cat", "dog", "cat"]),
        ("image,label\na.jpg\n", "line 2: fewer columns"),
        ("image,label\na.jpg,cat\nb.png,dog, big\nc.jpg,cat\n", "line 3: more columns than the first line names"),
        ("image,label\na.jpg,cat,\nb.png,dog, \nc.jpg,cat\n", ["cat", "dog", "cat"]),
        ("\n", "the file is empty"),
    ],
)
def test_labels_of_a_split(tmp_path, text, labels):
    (tmp_path / "labels").write_text(text)
    call = lambda: read_split_labels("--split_labels=val", str(tmp_path / "labels"), {}).match(NAMES, "val")  # noqa: E731
    if isinstance(labels, str):
        assert labels in refused(call)
    else:
        assert call() == labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("a/1.jpg cat\nb/1.jpg dog\nb/my 2.jpg fox\n", ["cat", "dog", "fox"]),
        ("/data/val/a/1.jpg,cat\n/data/val/b/1.jpg,dog\nmy 2.jpg,fox\n", ["cat", "dog", "fox"]),
        ("image,label\na\\1.jpg,cat\nb\\1.jpg,dog\nx/my 2,fox\n", ["cat", "dog", "fox"]),
        ("a/1.jpg cat\nmy 2.jpg fox\n", "no label for 1 file of val, e.g. b/1.jpg"),
        ("1.jpg cat\nmy 2.jpg fox\n", "no label for 2 files of val, e.g. a/1.jpg"),
        ("a/1.jpg cat\nval/a/1.jpg dog\nb/1.jpg dog\nmy 2.jpg fox\n", "val/a/1.jpg has two labels, cat and dog"),
    ],
)
def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path, text, labels):
    (tmp_path / "labels").write_text(text)
    paths = [b"a/1.jpg", b"b/1.jpg", b"b/my 2.jpg"]
    call = lambda: read_split_labels("--split_labels=val", str(tmp_path / "labels"), {}).match(paths, "val")  # noqa: E731
    if isinstance(labels, str):
        assert labels in refused(call)
    else:
        assert call() == labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("train/1.jpg cat\ntrain/2.jpg dog\n", "no label for 2 files of val, e.g. 1.jpg"),
        ("/data/test/train/1.jpg cat\nmy-set/val/1.jpg fox\nimages/2.jpg dog\n", ["fox", "dog"]),
        ("image,label\nvalidation/1,cat\nval_256/2,dog\n", ["cat", "dog"]),
    ],
)
def test_labels_of_another_split_are_none(tmp_path, text, labels):
    """Files of several splits have the same names: 1.jpg, 2.jpg."""
    (tmp_path / "labels").write_text(text)
    found = read_split_labels("--split_labels=val", str(tmp_path / "labels"), {})
    if isinstance(labels, str):
        assert labels in refused(found.match, [b"1.jpg", b"2.jpg"], "val")
    else:
        assert found.match([b"1.jpg", b"2.jpg"], "val") == labels


def test_lines_are_in_the_order_of_names_whatever_the_order_of_files(tmp_path):
    (tmp_path / "labels").write_text("cat\ndog\nfox\n")
    assert read_split_labels("--split_labels=val", str(tmp_path / "labels"), {}).match(
        [b"3.jpg", b"1.jpg", b"2.jpg"], "val"
    ) == ["fox", "cat", "dog"]


def test_labels_in_order_are_refused_where_files_have_two_orders(tmp_path):
    """As text 10.jpg comes before 2.jpg: nearly every image would get another one's label."""
    names = [b"%d.jpg" % number for number in range(1, 12)]
    (tmp_path / "labels").write_text("".join(f"c{number}\n" for number in range(1, 12)))
    call = lambda: read_split_labels("--split_labels=val", str(tmp_path / "labels"), {}).match(names, "val")  # noqa: E731
    assert "line 2 is that of 10.jpg or 2.jpg, as text or by number; write lines NAME.jpg LABEL" in refused(call)
    (tmp_path / "labels").write_text("".join(f"{number}.jpg c{number}\n" for number in range(1, 12)))
    assert call() == [f"c{number}" for number in range(1, 12)]
    (tmp_path / "labels").write_text("cat\n" * 11)
    assert call() == ["cat"] * 11
    (tmp_path / "labels").write_text("".join(f"c{number}\n" for number in range(1, 12)))
    names = [b"%03d.jpg" % number for number in range(1, 12)]
    assert call() == [f"c{number}" for number in range(1, 12)]
    names[-1] = b"1" * 5000 + b".jpg"  # more digits than Python makes a number of
    assert call() == [f"c{number}" for number in range(1, 12)]
    (tmp_path / "labels").write_text("image,label,label\n1.jpg,cat,dog\n")
    assert "two columns are called 'label'" in refused(
        read_split_labels, "--split_labels=val", f"{tmp_path}/labels", {}
    )
    number_of_5000_digits = read_split_labels  # a label
    (tmp_path / "labels").write_text("9" * 5000 + "\n")
    assert "is no number that" in refused(
        number_of_5000_digits, "--split_labels=val", str(tmp_path / "labels"), {1: "n"}
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n01440764 tench, Tinca tinca\nn02119789 kit fox\n",
         {"n01440764": "tench, Tinca tinca", "n02119789": "kit fox"}),
        ("n01440764\ttench\n", {"n01440764": "tench"}),
        ("hot dog: Hotdog\ncat: Katze: die\n", {"hot dog": "Hotdog", "cat": "Katze: die"}),
        ("n01: a\nn02 b\n", {"n01": "a", "n02": "b"}),
        ("a = Rose\nb - Tulip\n", {"a": "Rose", "b": "Tulip"}),
        ("a;Rose\nb|Tulip, red\n", {"a": "Rose", "b": "Tulip, red"}),
        ('{"0": ["n01440764", "tench"], "1": ["n02100735", "English_setter"]}',
         {"n01440764": "tench", "n02100735": "English setter"}),
        ('{"cat": "Katze"}', {"cat": "Katze"}),
        ("n01440764 a\nn01440764 b\n", "stands there twice"),
        ("n01440764 a\x1b[31m\n", "control characters"),
        ('{"0": [1, 2]}', "no JSON of classes and words"),
        ('{"cat": "Katze", "cat": "Hund"}', "no JSON of classes and words"),
        ('{"0": ', "no JSON of classes and words"),
        ("", "no line has a class name and words"),
    ],
)  # fmt: skip
def test_class_words(tmp_path, text, words):
    (tmp_path / "words").write_text(text)
    if isinstance(words, str):
        assert words in refused(read_class_words, str(tmp_path / "words"))
    else:
        assert read_class_words(str(tmp_path / "words")) == words


def test_words_of_other_classes_are_refused(published, tmp_path):
    (tmp_path / "words").write_text("cat Katze\n")
    message = convert(published, tmp_path / "d", "--source=ROOT/ILSVRC/Data/CLS-LOC/train",
                      f"--class_words={tmp_path}/words", code=2).stderr  # fmt: skip
    assert "has words for none of the classes" in message


def test_words_of_some_of_the_classes_are_told_of(tmp_path):
    """Words by numbers from 0 for folders that count from 1: each would show its neighbour's."""
    for number in (1, 2):
        draw(tmp_path / "s" / str(number) / "1.jpg", number)
    (tmp_path / "words").write_text('{"0": "cat", "1": "dog"}')
    flags = f"--class_words={tmp_path / 'words'}", "--noreport", "--engine=inline", "--size=16"
    result = Run("shardline.tools.convert", f"--source={tmp_path / 's'}", f"--output={tmp_path / 'd'}", *flags)
    assert "note: --class_words has no words for 2; are its names those of the classes?" in result.stderr


def test_other_words_make_another_dataset(published, from_folders, tmp_path):
    flags = "--source=ROOT/ILSVRC/Data/CLS-LOC/train", "--class_words=ROOT/imagenet_class_index.json"
    convert(published, tmp_path / "d", *flags)
    assert Manifest.load(tmp_path / "d").shown_labels == Manifest.load(from_folders).shown_labels
    assert "finished already" in convert(published, tmp_path / "d", *flags).stderr
    assert "--class_words" in convert(published, tmp_path / "d", flags[0], code=2).stderr


def test_words_of_two_classes_that_are_alike_are_told_apart(tmp_path):
    from shardline.pipeline.manifest import shown_labels

    assert shown_labels(("n1", "n2", "n3", "n4"), ("crane, bird", "crane", "", "maillot")) == (
        "crane (n1)", "crane (n2)", "n3", "maillot",
    )  # fmt: skip


def test_words_that_do_not_fit_are_refused_on_load(from_folders, tmp_path):
    content = json.loads((from_folders / "manifest.json").read_text())
    content.pop("checksum"), content.pop("format")
    content["words"] = content["words"][:-1]
    (tmp_path / "manifest.json").write_bytes(stored.sealed(content, format="shardline/2"))
    assert "class words do not fit" in refused(Manifest.load, tmp_path)
