"""Adopting what people really have: labels of other kinds, splits of other names, records that are no images.

Field reports: tensorflow/models#4396 (one-hot labels), tensorflow/datasets#3202 (EXIF), Kaggle's flowers (folders).
"""

import struct
from dataclasses import replace

import cv2
import numpy as np
import pytest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.example import feature_values, parse_example
from shardline.pipeline.manifest import NO_LABEL, Manifest
from shardline.pipeline.shards import Shards
from shardline.pipeline.tfrecord import frame_record
from shardline.tools.adopt import AdoptConfig, adopt
from shardline.tools.conversion.run import convert
from shardline.tools.conversion.scan import ScanOptions, scan
from shardline.tools.shard_files import split_of_name
from shardline.tools.verify import VerifyConfig, verify
from tests.tools.folders import class_folders, config
from tests.tools.test_adopt import example, tag, varint


def jpeg(seed):
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(coarse, (48, 32)))[1].tobytes()


def ints(*numbers):
    return tag(3, tag(1, b"".join(varint(number % 2**64) for number in numbers)))


def unpacked_ints(*numbers):
    return tag(3, b"".join(b"\x08" + varint(number) for number in numbers))


def floats(*numbers):
    return tag(2, tag(1, struct.pack(f"<{len(numbers)}f", *numbers)))


def texts(*values):
    return tag(1, b"".join(tag(1, value) for value in values))


def put(path, labels, **more):
    """A shard with an image for each label; None: a record without the feature."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for number, label in enumerate(labels):
        features = {"image": texts(jpeg(number)), **more} | ({} if label is None else {"label": label})
        records.append(frame_record(example(**features)))
    path.write_bytes(b"".join(records))
    return path


def adopted(folder, **options):
    return adopt(AdoptConfig(data=folder, workers=1, **options))


def refusal(folder, **options):
    with pytest.raises(UsageError) as error:
        adopted(folder, **options)
    assert "\n" not in str(error.value) and not (folder / "manifest.json").exists()
    return str(error.value)


def labels(folder, split="train"):
    """As a reader sees them."""
    shards = Shards(Manifest.load(folder), folder, split)
    return [shards.read(record).label for record in range(len(shards))]


def sound(folder):
    result = verify(VerifyConfig(data=folder, workers=1))
    assert result.faults == ()
    return result.records


# --------------------------------------------------------------------------------------------- kinds of labels


@pytest.mark.parametrize("kind", [ints, unpacked_ints, floats])
def test_one_hot_labels_are_refused_until_they_are_called_so(tmp_path, kind):
    hot = np.eye(5, dtype=int)[[0, 1, 2, 3, 4, 2]].tolist()
    put(tmp_path / "train.tfrecord", [kind(*row) for row in hot])
    message = refusal(tmp_path)
    assert "feature 'label' holds 5 numbers, one of them 1" in message and "label_kind=onehot" in message
    manifest = adopted(tmp_path, label_kind="onehot")
    assert labels(tmp_path) == [0, 1, 2, 3, 4, 2]
    assert manifest.labels == ("0", "1", "2", "3", "4") and manifest.class_counts["train"] == (1, 1, 2, 1, 1)
    assert sound(tmp_path) == 6


def test_a_one_hot_label_keeps_classes_that_no_record_has(tmp_path, capsys):
    put(tmp_path / "train.tfrecord", [ints(1, 0, 0), ints(0, 1, 0)])
    assert adopted(tmp_path, label_kind="onehot").labels == ("0", "1", "2")
    assert "1 of 3 classes has no record: 2" in capsys.readouterr().err


def test_several_labels_an_image_are_refused_in_words(tmp_path, capsys):
    put(tmp_path / "train.tfrecord", [ints(3, 4), ints(1)])
    assert "several labels; shardline takes one label an image" in refusal(tmp_path)
    put(tmp_path / "train.tfrecord", [ints(1), ints(0), ints(3, 4)])  # K4: not only in the first record
    assert adopted(tmp_path).class_counts["train"] == (1, 1)
    assert "feature 'label' holds 2 labels; shardline takes one label an image; left out" in capsys.readouterr().err


def test_one_hot_labels_that_are_not(tmp_path, capsys):
    put(tmp_path / "train.tfrecord", [ints(0, 1, 0), ints(1, 1, 0), ints(0, 0, 0), ints(2, 1, 0), None])
    assert adopted(tmp_path, label_kind="onehot").class_counts["train"] == (0, 1, 0)
    assert capsys.readouterr().err.count("is not one-hot") == 4
    put(tmp_path / "train.tfrecord", [ints(0, 1, 0), ints(1, 0)])
    with pytest.raises(UsageError, match="labels have 2, 3 numbers"):
        adopted(tmp_path, label_kind="onehot", overwrite=True)


def test_labels_that_are_names_are_ordered_as_the_converter_orders_them(tmp_path):
    put(tmp_path / "train.tfrecord", [texts(name) for name in (b"dog", b"cat", "café".encode(), b"dog")])
    assert "feature 'label' holds text; if that is the class's name, use label_kind=name" in refusal(tmp_path)
    manifest = adopted(tmp_path, label_kind="name")
    assert manifest.labels == ("café", "cat", "dog") and manifest.class_counts["train"] == (1, 1, 2)
    assert labels(tmp_path) == [2, 1, 0, 2]
    assert sound(tmp_path) == 4
    (tmp_path / "names.txt").write_text("0:dog\n1:café\n2:cat\n3:owl\n")
    adopted(tmp_path, label_kind="name", class_names=tmp_path / "names.txt", overwrite=True)
    assert labels(tmp_path) == [0, 2, 1, 0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((b"cat", b"Cat"), "'Cat' and 'cat' differ in case or spaces only"),
        ((b"cat", b"cat "), "differ in characters only (SPACE)"),
        (("caf\u00e9".encode(), "cafe\u0301".encode()), "look the same"),
        ((b"a\nb", b"c"), "has control characters"),
        ((b"nan", b"c"), "is no class but a missing value"),
        ((b"train", b"c"), "is the name of a split and no class"),
        ((b"[1, 2]", b"c"), "one label an image"),
        ((b"01", b"1"), "are the same number"),
    ],
)  # fmt: skip
def test_names_that_the_converter_refuses_are_refused(tmp_path, names, message):
    put(tmp_path / "train.tfrecord", [texts(name) for name in names])
    found = refusal(tmp_path, label_kind="name")
    assert message in found and "merge_similar" not in found  # which adopt does not have
    (tmp_path / "names.txt").write_bytes(b"\n".join(names))
    options = {"label_kind": "name", "class_names": tmp_path / "names.txt"}
    if "class_names" in found:
        assert sorted(adopted(tmp_path, **options).labels) == sorted(name.decode() for name in names)
    else:  # it would not help
        refusal(tmp_path, **options)


def test_names_that_are_alike_are_kept_apart_by_listing_them(tmp_path):
    put(tmp_path / "train.tfrecord", [texts(b"cat"), texts(b"Cat")])
    assert "list all names in class_names" in refusal(tmp_path, label_kind="name")
    (tmp_path / "names.txt").write_text("cat\nCat\n")
    adopted(tmp_path, label_kind="name", class_names=tmp_path / "names.txt")
    assert labels(tmp_path) == [0, 1]


def test_numbers_stored_as_text_are_ordered_as_numbers(tmp_path):
    put(tmp_path / "train.tfrecord", [texts(b"%d" % number) for number in range(12)])
    assert adopted(tmp_path, label_kind="name").labels[2:11] == ("2", "3", "4", "5", "6", "7", "8", "9", "10")
    assert labels(tmp_path) == list(range(12))


@pytest.mark.parametrize("kind", [lambda n: floats(n), lambda n: texts(b"%d" % n), lambda n: texts(b"%d.0" % n)])
def test_numbers_of_other_types_are_read_when_called_an_index(tmp_path, kind):
    put(tmp_path / "train.tfrecord", [kind(number) for number in (3, 0, 10, 1)])
    assert "label_kind=" in refusal(tmp_path)
    assert len(adopted(tmp_path, label_kind="index").labels) == 11
    assert labels(tmp_path) == [3, 0, 10, 1]


def test_numbers_that_are_none_are_no_labels(tmp_path, capsys):
    put(tmp_path / "train.tfrecord", [floats(0), floats(1), floats(float("nan")), floats(0.5)])
    assert adopted(tmp_path, label_kind="index").class_counts["train"] == (1, 1)
    assert capsys.readouterr().err.count("no whole number; left out") == 2
    put(tmp_path / "text" / "train.tfrecord", [texts(text) for text in (b"0", b"1", b"1_0", b"0x1", b"inf")])
    assert adopted(tmp_path / "text", label_kind="index").class_counts["train"] == (1, 1)
    assert capsys.readouterr().err.count("no whole number; left out") == 3


def test_names_that_are_numbered_have_the_numbers_of_the_records(tmp_path, capsys):
    put(tmp_path / "train.tfrecord", [ints(1), ints(2)])
    (tmp_path / "names").write_text("1:daisy\n2:rose\n3:tulip\n")
    assert "numbered from 1" in refusal(tmp_path, class_names=tmp_path / "names")
    manifest = adopted(tmp_path, class_names=tmp_path / "names", label_offset=-1)
    assert (manifest.labels, labels(tmp_path)) == (("daisy", "rose", "tulip"), [0, 1])
    (tmp_path / "names").write_text('{"0": "background", "1": "daisy", "2": "rose"}')
    capsys.readouterr()
    assert adopted(tmp_path, class_names=tmp_path / "names", overwrite=True).class_counts["train"] == (0, 1, 1)
    assert "label_offset" not in capsys.readouterr().err  # which would make each daisy a background


@pytest.mark.parametrize("highest", [20240115, 2**33, 2**62])
def test_numbers_that_are_no_class_numbers_are_refused(tmp_path, highest):
    put(tmp_path / "train.tfrecord", [ints(0), ints(1), ints(highest)])
    assert f"labels run to {highest:,} but only 3 differ" in refusal(tmp_path)


def test_flags_that_contradict_the_labels(tmp_path):
    put(tmp_path / "train.tfrecord", [ints(0), ints(1)])
    assert "label_kind=name: feature 'label' holds int64" in refusal(tmp_path, label_kind="name")
    with pytest.raises(UsageError, match="labels of label_kind=onehot have none"):
        adopted(tmp_path, label_kind="onehot", label_offset=1)


# ----------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-01024", "train"),
        ("train-00000-of-00002.tfrecord", "train"),
        ("train.record-00000-of-00010", "train"),  # the object detection API's
        ("flowers-train.tfrecord-00000-of-00016", "train"),  # TFDS's
        ("flowers_train_00000-of-00005.tfrecord", "train"),  # slim's
        ("flowers_validation_00000-of-00005.tfrecord", "validation"),
        ("val.tfrecord", "val"),
        ("test.tfrecords", "test"),
        ("train00-2071.tfrec", "train"),  # Kaggle's melanoma
        ("ld_test00-1.tfrec", "test"),  # Kaggle's cassava
        ("cifar10_train.tfrecord", "train"),
        ("mnist-train-00000.tfrecord", "train"),
        ("train_part_3.tfrecord", "train"),
        ("val-images.tfrecords.gz", "val"),
        ("Train-0.TFRecord", "train"),
        ("train2017.tfrecord", "train"),
        ("extra-00000-of-00004", "extra"),
        ("svhn_cropped-extra.tfrecord-00000-of-00004", "extra"),
        ("train_clean-00000-of-00004", "train_clean"),
        ("flowers.tfrecord", "flowers"),
        ("00-192x192-798.tfrec", ""),
        ("part-r-00000", ""),
        ("train_test_split.tfrecord", ""),  # which of the two?
        ("data.tfrecord", ""),
    ],
)
def test_the_split_that_a_name_tells(name, split):
    assert split_of_name(name) == split


def test_splits_of_different_forms_of_name_are_all_found(tmp_path):
    for name in ("train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord", "val.tfrecord", "test.tfrecords"):
        put(tmp_path / name, [ints(number % 3) for number in range(6)])
    (tmp_path / "README.md").write_text("flowers")
    manifest = adopted(tmp_path)
    assert {name: split.records for name, split in manifest.splits.items()} == {"test": 6, "train": 12, "val": 6}


def test_folders_that_are_splits(tmp_path):
    for split in ("train", "val"):
        put(tmp_path / split / "00-192x192-6.tfrec", [ints(number % 3) for number in range(6)])
        put(tmp_path / split / "01-192x192-6.tfrec", [ints(number % 3) for number in range(6)])
    manifest = adopted(tmp_path)
    assert {name: split.records for name, split in manifest.splits.items()} == {"train": 12, "val": 12}
    assert manifest.splits["val"].shards[0].file == "val/00-192x192-6.tfrec"
    assert labels(tmp_path, "val") == [0, 1, 2, 0, 1, 2] * 2
    assert sound(tmp_path) == 24


def test_a_folder_of_one_split_whose_files_do_not_name_it(tmp_path):
    put(tmp_path / "00-192x192-6.tfrec", [ints(0), ints(1)])
    assert "--split=train" not in (found := refusal(tmp_path)) and "split=train takes all files" in found
    assert list(adopted(tmp_path, split="train").splits) == ["train"]


def test_files_are_known_by_content_too(tmp_path):
    put(tmp_path / "train.bin", [ints(0), ints(1)])
    (tmp_path / "train.txt").write_bytes(b"no record at all")
    assert adopted(tmp_path).splits["train"].shards[0].file == "train.bin"


@pytest.mark.parametrize(
    ("files", "note"),
    [
        (
            ["cat.tfrecord", "dog.tfrecord"],
            "so cat, dog are taken for splits; if they are classes or parts, --split=train",
        ),
        (
            ["flowers_train.tfrecord", "birds_train.tfrecord"],
            "files of several names (birds_train.tfrecord, flowers_train",
        ),
        ([f"train/{i:02}-192x192-2.tfrec" for i in (0, 1, 3, 4)], "has 4 files, but none of number 2; restore"),
        (["train-0.tfrecord", "train-20240115.tfrecord", "val.tfrecord"], ""),
        (["train-8f3a.tfrecord", "train-1bcd.tfrecord", "val.tfrecord"], ""),
        (["train-0-of-1.tfrecord", "holdout.tfrecord"], ""),
    ],
)
def test_names_that_may_tell_no_split_and_missing_numbers_are_noted(tmp_path, capsys, files, note):
    for number, name in enumerate(files):
        put(tmp_path / name, [ints(number % 2), ints(1)])
    adopted(tmp_path)
    told = [line for line in capsys.readouterr().err.splitlines() if "file" in line and line.startswith("note")]
    assert note in "\n".join(told) if note else not told


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (["train.tfrecord", "00-6.tfrec"], {}, "the split of 00-6.tfrec (1 file of 2) is not told by its name"),
        (["train/val-0.tfrecord"], {}, "the split of train/val-0.tfrecord"),
        (["train-0.tfrecord", "copy/train-0.tfrecord"], {}, "has files in ., copy; leave a copy out with exclude=copy"),
        (["deep/er/train/0.tfrecord"], {}, "deep/er: give that as data"),
        (["a-train.tfrecord-0-of-1", "b-train.tfrecord-0-of-1"], {}, "split 'train' has 2 shards, their names say 1"),
        (["extra.tfrecord", "Extra.tfrecord"], {}, "the splits 'Extra' and 'extra' differ in case only"),
        (["train.tfrecord", "x.tfrecord"], {"split_pattern": r"(?P<split>train).*"}, "does not match x.tfrecord"),
        (["train.tfrecord"], {"split": "train", "split_pattern": "x"}, "give one of them"),
        (["train.tfrecord"], {"unlabelled": "test"}, "unlabelled=test: the directory has the splits train"),
        (["train.tfrecord"], {"exclude": "tset.tfrecord"}, "exclude=tset.tfrecord: no list, and nothing"),
    ],
)  # fmt: skip
def test_files_that_are_in_no_split_or_in_two_end_the_adoption(tmp_path, files, options, message):
    for name in files:
        put(tmp_path / name, [ints(0), ints(1)])
    assert message in refusal(tmp_path, **options)


def test_files_that_lie_deeper_are_never_passed_over(tmp_path):
    for name in ("train/0.tfrecord", "more/val/0.tfrecord", ".git/a/b/0.tfrecord"):
        (tmp_path / name).parent.mkdir(parents=True)
        put(tmp_path / name, [ints(0), ints(1)])
    assert "lie deeper, too, in more/val; move them into a folder" in (message := refusal(tmp_path))
    assert "exclude=more/val" in message
    for name in ("more/val", "more"):
        assert list(adopted(tmp_path, exclude=(name,), overwrite=True).splits) == ["train"]
    (tmp_path / "more" / "val").rename(tmp_path / "val")
    assert list(adopted(tmp_path, overwrite=True).splits) == ["train", "val"]


def test_compressed_shards_are_named_as_such(tmp_path):
    import gzip
    import zlib

    data = put(tmp_path / "x", [ints(0)]).read_bytes()
    (tmp_path / "x").unlink()
    for packed, name in ((gzip.compress(data), "gzip"), (zlib.compress(data), "zlib")):
        (tmp_path / "train.tfrecord").write_bytes(packed)
        assert f"{name}-compressed, decompress it first" in refusal(tmp_path)


# ------------------------------------------------------------------------------------------ splits without labels


@pytest.fixture
def without_labels(tmp_path):
    put(tmp_path / "train.tfrecord", [ints(number % 3) for number in range(6)])
    put(tmp_path / "test.tfrecord", [None] * 3)
    return tmp_path


def test_a_split_without_labels_is_named_with_two_ways_on(without_labels):
    message = refusal(without_labels)
    assert "the first record of test.tfrecord has no label" in message
    assert "unlabelled=test adopts" in message and "exclude='test.tfrecord' leaves it out" in message
    manifest = adopted(without_labels, unlabelled="test")
    assert manifest.splits["test"].unlabelled and labels(without_labels, "test") == [NO_LABEL] * 3
    assert sound(without_labels) == 9
    adopted(without_labels, exclude="test.tfrecord", overwrite=True)
    assert list(Manifest.load(without_labels).splits) == ["train"]


@pytest.mark.parametrize(
    ("files", "exclusion"),
    [
        (["test/00-3.tfrec", "test/01-3.tfrec"], "test"),
        (["test-00000-of-00002", "test-00001-of-00002"], "test-*-of-*"),
        (["a-test.tfrecord-00000-of-00002", "a-test.tfrecord-00001-of-00002"], "a-test.tfrecord-*-of-*"),
    ],
)  # fmt: skip
def test_a_split_without_labels_in_many_files_is_left_out_by_one_flag(tmp_path, files, exclusion):
    put(tmp_path / "train-00000-of-00001", [ints(0), ints(1)])
    for file in files:
        put(tmp_path / file, [None] * 3)
    assert f"exclude='{exclusion}' leaves it out" in refusal(tmp_path)
    adopted(tmp_path, exclude=exclusion)
    assert list(Manifest.load(tmp_path).splits) == ["train"]


def test_images_without_any_labels_are_adopted_for_prediction_when_classes_are_named(tmp_path):
    put(tmp_path / "test.tfrecord", [None, None, None])
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    manifest = adopted(tmp_path, unlabelled=("test",), class_names=str(tmp_path / "names.txt"))
    assert manifest.labels == ("cat", "dog") and manifest.splits["test"].unlabelled
    assert labels(tmp_path, "test") == [-1, -1, -1] and sound(tmp_path) == 3


def test_a_sequence_of_images_a_record_is_called_so(tmp_path):
    steps = tag(2, tag(1, tag(1, b"frames") + tag(2, tag(1, texts(jpeg(0))))))
    (tmp_path / "train.tfrecord").write_bytes(frame_record(example(label=ints(1)) + steps))
    assert "a tf.train.SequenceExample" in refusal(tmp_path)


def test_a_folder_that_is_a_dataset_of_its_own_is_named(tmp_path):
    convert(config(class_folders(tmp_path / "s", 2, 3), tmp_path / "d" / "1.0.0"))
    assert "1.0.0 is a dataset of its own (dataset_info.json); give " in refusal(tmp_path / "d")
    put(tmp_path / "d" / "train.tfrecord", [ints(0), ints(1)])
    assert adopted(tmp_path / "d", exclude="1.0.0").splits["train"].records == 2


def test_a_copy_in_a_folder_is_left_out_by_its_folder(tmp_path):
    for name in ("train-0.tfrecord", "copy/train-0.tfrecord"):
        put(tmp_path / name, [ints(0), ints(1)])
    assert "leave a copy out with exclude=copy" in refusal(tmp_path)
    assert adopted(tmp_path, exclude="copy").splits["train"].shards[0].file == "train-0.tfrecord"


def test_a_later_record_of_several_labels_or_images_is_left_out(tmp_path, capsys):
    """Of a list, the first value would stand for all."""
    several = [ints(1, 0), unpacked_ints(2, 1)]
    put(tmp_path / "train.tfrecord", [ints(0), *several, ints(1)])
    manifest = adopted(tmp_path)
    assert "holds 2 labels; shardline takes one label an image; left out" in capsys.readouterr().err
    assert (manifest.class_counts["train"], labels(tmp_path), sound(tmp_path)) == ((1, 1), [0, 1], 2)
    for label in several:  # a reader that meets one after all does not take the first either
        with pytest.raises(ValueError, match="'label' holds 2 labels"):
            parse_example(example(image=texts(jpeg(0)), label=label), manifest.features)
    two = {"image": texts(jpeg(0), jpeg(1))}
    put(tmp_path / "images" / "train.tfrecord", [ints(0)] * 3, **two)
    assert "feature 'image' holds 2 values, and no one image" in refusal(tmp_path / "images")


def test_labels_of_minus_one_are_left_out_and_never_made_class_0(tmp_path, capsys):
    put(tmp_path / "train.tfrecord", [ints(number % 3) for number in range(6)])
    put(tmp_path / "test.tfrecord", [ints(-1)] * 3)
    manifest = adopted(tmp_path)
    assert "left out 3 records of test without a label (-1); " in (said := capsys.readouterr().err)
    assert "unlabelled=test" in said and "label_offset" not in said
    assert list(manifest.splits) == ["train"] and manifest.labels == ("0", "1", "2")
    manifest = adopted(tmp_path, unlabelled="test", overwrite=True)
    assert manifest.splits["test"].records == 3 and labels(tmp_path, "test") == [NO_LABEL] * 3


def test_labels_of_minus_one_among_others(tmp_path, capsys):
    put(tmp_path / "train.tfrecord", [ints(number) for number in (-1, 0, -1, 1, 2, -1)])
    manifest = adopted(tmp_path)
    assert "left out 3 records of train" in capsys.readouterr().err
    assert (manifest.splits["train"].records, manifest.class_counts["train"]) == (3, (1, 1, 1))
    assert labels(tmp_path) == [0, 1, 2]
    assert sound(tmp_path) == 3


@pytest.mark.parametrize("mark", [-100, -5, -2])
def test_other_negative_labels_are_never_advised_to_be_class_0(tmp_path, mark):
    put(tmp_path / "train.tfrecord", [ints(number) for number in (0, 1, mark, 2)])
    said = refusal(tmp_path)
    assert f"labels run from {mark} to 2, expected 0 or more; {mark} seems to mark images without a label" in said
    assert "to -1" not in said and "make the lowest" not in said


def test_labels_around_0_may_be_shifted_as_advised(tmp_path):
    put(tmp_path / "train.tfrecord", [ints(number) for number in (-3, -2, 0, 1)])
    assert "label_offset=3 would make the lowest 0" in refusal(tmp_path)
    assert adopted(tmp_path, label_offset=3).class_counts["train"] == (1, 1, 0, 1, 1)


def test_labels_of_minus_one_are_class_0_when_asked(tmp_path):
    put(tmp_path / "train.tfrecord", [ints(number) for number in (-1, 0, 1)])
    assert adopted(tmp_path, label_offset=1).class_counts["train"] == (1, 1, 1)
    assert labels(tmp_path) == [0, 1, 2]


# --------------------------------------------------------------------------------------------------- images


def test_raw_pixels_are_read_when_they_are_rgb_bytes_and_refused_in_words_otherwise(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (28, 30, 3), np.uint8)

    def raw(data, **sides):
        features = {name: ints(side) for name, side in sides.items()}
        record = example(image_raw=texts(data), label=ints(0), **features)
        (tmp_path / "train.tfrecords").write_bytes(frame_record(record))

    raw(pixels[..., 0].tobytes(), height=28, width=30)
    assert "perhaps 28x30x1 samples of 1 byte; of raw pixels, only height*width*3 bytes" in refusal(tmp_path)
    raw(pixels.astype(np.float32).tobytes(), height=28, width=30)
    assert "perhaps 28x30x3 samples of 4 bytes" in refusal(tmp_path)
    raw(pixels.tobytes())
    assert "in records with features height and width" in refusal(tmp_path)
    raw(pixels.tobytes(), height=28, width=30)
    assert adopted(tmp_path).image.encoding == "raw"
    stored = Shards(Manifest.load(tmp_path), tmp_path, "train").read(0)
    assert bytes(stored.image) == pixels.tobytes() and (stored.height, stored.width) == (28, 30)


def photograph(height, width):
    """Smooth, as photographs are: what is stored in another order is not."""
    coarse = np.random.default_rng(1).integers(0, 255, (5, 6, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"shape": ints(3, 48, 64)}, "feature 'shape' says 3 x 48 x 64 in"),
        ({"image__shape": ints(3, 48, 64)}, "feature 'image/shape' says 3 x 48 x 64 in"),
        ({"dims": ints(64, 48, 3)}, "feature 'dims' says 64 x 48 x 3, height and width 48 x 64 in"),
        ({"data_format": texts(b"channels_first")}, "feature 'data_format' says channels_first in"),
        ({"image__colorspace": texts(b"BGR")}, "feature 'image/colorspace' says BGR in"),
    ],
)
@pytest.mark.parametrize("sides", [True, False])
def test_raw_pixels_in_another_order_are_refused_where_a_feature_says_so(tmp_path, told, message, sides):
    pixels = photograph(48, 64).transpose(2, 0, 1).tobytes()
    size = {"height": ints(48), "width": ints(64)} if sides else {}
    put(tmp_path / "train.tfrecord", [ints(0)], **({"image": texts(pixels)} | size | told))
    if not sides and "dims" in told:
        message = "in records with features height and width"
    found = refusal(tmp_path)
    assert message in found
    assert sides or "dims" in told or "raw pixels are read as height x width x 3, RGB; write the records again" in found


@pytest.mark.parametrize("damage", [b"\x0a\xff", b"\x08\x01"])
@pytest.mark.parametrize("name", ["image", "label", "shape"])
def test_a_first_record_whose_values_are_damaged_is_passed_over_and_left_out(tmp_path, capsys, name, damage):
    put(tmp_path / "train.tfrecord", [ints(0), ints(1)])
    more = {"image": texts(jpeg(0)), "label": ints(0), "shape": ints(32, 48, 3), name: tag(1, damage)}
    whole = (tmp_path / "train.tfrecord").read_bytes()
    (tmp_path / "train.tfrecord").write_bytes(frame_record(example(**more)) + whole)
    assert adopted(tmp_path).splits["train"].records == 2 + (name == "shape")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.tfrecord").write_bytes(frame_record(example(**more)))
    assert "its first record is damaged or no tf.train.Example" in refusal(tmp_path / "bad")


def test_a_shape_that_fits_and_one_beside_an_image_file_are_no_reason(tmp_path):
    size = {"height": ints(48), "width": ints(64), "shape": ints(48, 64, 3), "image__colorspace": texts(b"RGB")}
    put(tmp_path / "a" / "train.tfrecord", [ints(0)], image=texts(photograph(48, 64).tobytes()), **size)
    assert adopted(tmp_path / "a").image.encoding == "raw"
    size |= {"height": texts(b"48 rows"), "width": floats(float("nan"))}  # which are no sides
    put(tmp_path / "c" / "train.tfrecord", [ints(0)], image=texts(photograph(48, 64).tobytes()), **size)
    assert "not one record of train.tfrecord can be used" in refusal(tmp_path / "c")
    put(tmp_path / "b" / "train.tfrecord", [ints(0)], shape=ints(3, 32, 48))
    assert adopted(tmp_path / "b").image.encoding == "jpeg"


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (48, 64), (96, 50)])
@pytest.mark.parametrize("gray", [False, True])
def test_raw_pixels_that_look_stored_channel_by_channel_are_noted(tmp_path, capsys, size, gray):
    pixels = photograph(*size)
    if gray:
        pixels = np.repeat(pixels[..., :1], 3, 2)
    sides = {"height": ints(size[0]), "width": ints(size[1])}
    for name, order in {"last": (0, 1, 2), "first": (2, 0, 1)}.items():
        put(tmp_path / name / "train.tfrecord", [ints(0)], **sides, image=texts(pixels.transpose(order).tobytes()))
        adopted(tmp_path / name)
        said = capsys.readouterr().err
        assert ("1 of 1 images of raw pixels look as if stored channel by channel" in said) is (name == "first")
        assert "exchanged" not in said


def test_raw_pixels_whose_height_and_width_seem_exchanged_are_noted(tmp_path, capsys):
    put(
        tmp_path / "train.tfrecord",
        [ints(0)],
        image=texts(photograph(48, 64).tobytes()),
        height=ints(64),
        width=ints(48),
    )
    adopted(tmp_path)
    assert "1 of 1 images of raw pixels look as if stored with height and width exchanged" in capsys.readouterr().err


def test_shards_with_fewer_records_than_they_say_are_noted(tmp_path, capsys):
    put(tmp_path / "k" / "train" / "00-192x192-798.tfrec", [ints(0), ints(1)])
    put(tmp_path / "k" / "train" / "01-192x192-2.tfrec", [ints(1), ints(0)])
    adopted(tmp_path / "k")
    said = capsys.readouterr().err
    assert "train/00-192x192-798.tfrec holds 2 records, but its name says 798; restore it" in said
    assert "01-192x192-2.tfrec" not in said
    convert(config(class_folders(tmp_path / "s", 2, 3), tmp_path / "tfds" / "mine" / "1.0.0"))
    folder = tmp_path / "tfds" / "mine" / "1.0.0"
    (shard,) = folder.glob("*.tfrecord-00000-of-00001")
    offset = int((folder / f"{shard.name}.idx").read_text().splitlines()[-1].split()[0])
    shard.write_bytes(shard.read_bytes()[:offset])  # cut between two records
    (folder / "manifest.json").unlink()
    adopted(folder)
    told = f"{shard.name} holds 5 records, but dataset_info.json says 6; restore it from a copy"
    assert told in capsys.readouterr().err
    assert told in scan("tfds:mine", ScanOptions(tfds_dir=str(tmp_path / "tfds"))).notes


def test_shards_of_equal_bytes_are_noted(tmp_path, capsys):
    for name in ("train", "val"):
        put(tmp_path / f"{name}.tfrecord", [ints(0), ints(1)])
    put(tmp_path / "test.tfrecord", [ints(1), ints(0)])
    adopted(tmp_path)
    said = capsys.readouterr().err
    assert "train.tfrecord and val.tfrecord hold the same bytes: one is a copy" in said and "test.tfrecord" not in said


def test_names_of_tfds_are_read_as_tfds_reads_them(tmp_path):
    convert(config(class_folders(tmp_path / "s", 2, 3), tmp_path / "d"))
    (tmp_path / "d" / "manifest.json").unlink()
    names = tmp_path / "d" / "label.labels.txt"
    names.write_text("cat \n\n dog\n")
    assert adopted(tmp_path / "d").labels == ("cat", "dog")
    import tensorflow_datasets as tfds

    assert tfds.features.ClassLabel(names_file=str(names)).names == ["cat", "dog"]
    names.write_text("cat\n")  # TFDS: "number of names do not match"
    (tmp_path / "d" / "manifest.json").unlink()
    with pytest.raises(UsageError, match=r"label\.labels\.txt has 1 name, but features\.json 2 classes"):
        adopted(tmp_path / "d")


def test_names_that_look_alike_are_noted(tmp_path, capsys):
    put(tmp_path / "train.tfrecord", [texts("\u0441at".encode()), texts(b"cat"), texts(b"cat.")])
    adopted(tmp_path, label_kind="name")
    assert "class names that look alike: 'cat' and 'cat.' and '\u0441at'" in capsys.readouterr().err
    put(tmp_path / "two" / "train.tfrecord", [ints(0)])
    put(tmp_path / "two" / "training.tfrecord", [ints(0), ints(0)])
    adopted(tmp_path / "two")
    assert "the splits train and training are of one kind by their names" in capsys.readouterr().err


def test_all_records_decide_the_encoding_and_bad_ones_are_named(tmp_path, capsys):
    png = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    images = [*map(jpeg, range(10)), png, b"<html>"]
    records = (frame_record(example(image=texts(image), label=ints(0))) for image in images)
    (tmp_path / "train.tfrecord").write_bytes(b"".join(records))
    assert adopted(tmp_path).image.encoding == "any"
    assert "not-an-image: an HTML page" in capsys.readouterr().err


def test_turned_images_are_told_of(tmp_path, capsys):
    turned = (
        jpeg(1)[:2]
        + b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        + jpeg(1)[2:]
    )
    record = frame_record(example(image=texts(turned), label=ints(0)))
    (tmp_path / "train.tfrecord").write_bytes(record * 2)
    image = adopted(tmp_path).image
    assert (image.max_height, image.max_width) == (48, 32)  # as readers show them
    assert "2 images have an EXIF orientation; readers turn them upright" in capsys.readouterr().err


def test_the_feature_that_holds_images_goes_before_one_that_is_only_called_so(tmp_path, capsys):
    """A path called image, beside the file's bytes."""
    put(tmp_path / "train.tfrecord", [ints(0), ints(1)], image=texts(b"a/1.jpg"), **{"image/encoded": texts(jpeg(0))})
    assert adopted(tmp_path).features.image == "image/encoded"
    assert "image_feature is 'image/encoded'; there is image too" in capsys.readouterr().err


def test_two_features_that_may_be_the_image_are_told_of(tmp_path, capsys):
    put(tmp_path / "train.tfrecord", [ints(0)], png=texts(b"mask"))
    adopted(tmp_path)
    assert "image_feature is 'image'; there is png too" in capsys.readouterr().err


def test_records_that_name_their_class_otherwise_are_told_of(tmp_path, capsys):
    """Shards of two runs that numbered the same classes differently."""

    def written(name, *pairs):
        records = (
            {"image": texts(jpeg(i)), "label": ints(n), "class/text": texts(t)} for i, (n, t) in enumerate(pairs)
        )
        (tmp_path / name).write_bytes(b"".join(frame_record(example(**record)) for record in records))

    written("train.tfrecord", (0, b"cat"), (1, b"dog"), (1, b"dog"))
    written("test.tfrecord", (0, b"dog"), (1, b"cat"))
    adopted(tmp_path)
    told = capsys.readouterr().err
    assert "'class/text' has several names for one class: '0' is 'cat' (1 record) and 'dog' (1 record), '1' is" in told
    adopted(tmp_path, label_kind="name", label_feature="class/text", overwrite=True)  # as the note says
    assert Manifest.load(tmp_path).labels == ("cat", "dog")
    assert (labels(tmp_path), labels(tmp_path, "test")) == ([0, 1, 1], [1, 0])
    written("test.tfrecord", (0, b"cat"), (1, b"dog"))
    (tmp_path / "names").write_text("dog\ncat\n")
    adopted(tmp_path, class_names=tmp_path / "names", overwrite=True)
    told = capsys.readouterr().err
    assert (
        "'class/text' names classes otherwise: 'dog' is 'cat', 'cat' is 'dog'; list the names in the order of" in told
    )
    for name in ("cat\ndog\n", "tabby\nhound\n"):
        (tmp_path / "names").write_text(name)
        adopted(tmp_path, class_names=tmp_path / "names", overwrite=True)
    written("test.tfrecord", *((i % 2, b"a caption of image %d" % i) for i in range(9)))
    adopted(tmp_path, overwrite=True)
    assert "class/text" not in capsys.readouterr().err


def test_classes_that_a_split_lacks_are_told_of(tmp_path, capsys):
    put(tmp_path / "train.tfrecord", [ints(0), ints(1)])
    put(tmp_path / "test.tfrecord", [ints(1), ints(2)])
    (tmp_path / "labels.txt").write_text("0:daisy\n1:rose\n2:tulip\n")
    adopted(tmp_path)
    said = capsys.readouterr().err
    assert "classes in test but not in train: 2" in said and f"class_names={tmp_path / 'labels.txt'}" in said
    adopted(tmp_path, class_names=tmp_path / "labels.txt", overwrite=True)
    assert Manifest.load(tmp_path).labels == ("daisy", "rose", "tulip")


def test_every_value_of_a_feature_is_read():
    record = example(a=ints(1, -2, 300), b=unpacked_ints(7, 8), c=floats(0.5, 2), d=texts(b"x", b"y"), e=b"")
    found = {name: list(feature_values(record, name)) for name in "abcdef"}
    assert found == {"a": [1, -2, 300], "b": [7, 8], "c": [0.5, 2.0], "d": [b"x", b"y"], "e": [], "f": []}


@pytest.mark.parametrize(
    "file", ["../victim", "train/../../victim", "a/b/c", "/etc/passwd", "train/..", "train/.x", ".."]
)
def test_a_shard_of_an_adopted_dataset_lies_in_it_or_in_a_folder_of_it(tmp_path, file):
    put(tmp_path / "data" / "train" / "0.tfrec", [ints(0), ints(1)])
    (tmp_path / "victim").write_bytes((tmp_path / "data" / "train" / "0.tfrec").read_bytes())
    manifest = adopted(tmp_path / "data")
    split = manifest.splits["train"]
    shard = replace(split.shards[0], file=file)
    replace(manifest, splits={"train": replace(split, shards=(shard,))}).save(tmp_path / "data")
    with pytest.raises(UsageError, match=r"is damaged|which is not its own"):
        Shards(Manifest.load(tmp_path / "data"), tmp_path / "data", "train")


def test_every_image_is_decoded_and_a_sample_is_said_to_be_one(tmp_path, capsys):
    images = list(map(jpeg, range(80)))
    for bad in (1, 77):  # whose headers are sound
        images[bad] = images[bad][:-60] + b"\xff\xd9"
    records = (frame_record(example(image=texts(image), label=ints(0))) for image in images)
    (tmp_path / "train.tfrecord").write_bytes(b"".join(records))
    assert str(adopted(tmp_path).ledger).startswith("80 inputs = 78 written + 2 quarantined")
    said = capsys.readouterr().err
    assert said.count("; left out") == 2 and "sample" not in said and sound(tmp_path) == 78
    capsys.readouterr()
    assert adopted(tmp_path, check="sample", overwrite=True).ledger.written == 80
    said = capsys.readouterr().err
    assert "left out" not in said and "27 of 80 images were decoded (--check=sample); shardline-verify decodes" in said
    assert len(verify(VerifyConfig(data=tmp_path, workers=1)).faults) == 2
