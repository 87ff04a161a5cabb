"""Class names: which are refused, which two are one, and how they are numbered, whatever they come from."""

import unicodedata

import numpy as np
import pytest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import Manifest
from shardline.tools.conversion.labels import (
    LabelOptions,
    check_names,
    listed_by_position,
    order_labels,
    read_class_names,
    similarity_key,
    split_rank,
)
from shardline.tools.conversion.scan import ScanOptions
from shardline.tools.conversion.scan import scan as scan_sources
from tests.tools.folders import Run, draw

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def scan(source, **options):
    return scan_sources(source, ScanOptions(**options))


def order(*found, **options):
    return order_labels(found, LabelOptions(**options), "--source=s")


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return str(root)


def table(root, *rows, header="path,label", name="t.csv"):
    lines = [header, *(",".join(row) for row in rows)]
    for row in rows:
        touch(root, row[0])
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(root / name)


# --------------------------------------------------------------------------------------- similar names

SIMILAR = [
    (NFC, NFD, "look the same and differ in characters only"),
    ("Cat", "cat", "differ in case or spaces only"),
    ("cat ", "cat", "look the same"),
    ("big  cat", "big cat", "differ in case or spaces only"),
    ("cat\u00a0", "cat", "look the same"),
    ("ca\u200bt", "cat", "differ in case or spaces only"),  # a zero-width space
    ("STRASSE", "straße", "differ in case or spaces only"),
    ("\uff11a", "1a", "differ in case or spaces only"),  # of full width
    ("10", "010", "are the same number"),
    ("10.0", "10", "are the same number"),
]


@pytest.mark.parametrize(("one", "other", "why"), SIMILAR)
def test_similar_names_are_refused_in_tables_and_merged_when_asked(tmp_path, one, other, why):
    if one.strip() != one:  # cells of a table are stripped
        pytest.skip("only folders can be called so")
    source = table(tmp_path, ("1.jpg", one), ("2.jpg", other), ("3.jpg", other))
    with pytest.raises(UsageError, match=why) as error:
        scan(source)
    assert "--merge_similar_labels" in str(error.value) or "merge_similar_labels" in str(error.value)
    merged = scan(source, labels=LabelOptions(merge_similar=True))
    assert len(merged.labels) == 1
    assert merged.label.tolist() == [0, 0, 0]
    assert any("merged similar labels" in note for note in merged.notes)


@pytest.mark.parametrize(("one", "other", "why"), SIMILAR)
def test_similar_folders_are_refused_and_merged_when_asked(tmp_path, one, other, why):
    source = touch(tmp_path, f"{one}/1.jpg", f"{other}/2.jpg")
    with pytest.raises(UsageError, match=why):
        scan(source)
    merged = scan(source, labels=LabelOptions(merge_similar=True))
    assert (len(merged.labels), merged.label.tolist()) == (1, [0, 0])
    assert unicodedata.normalize("NFC", merged.labels[0]).strip() == merged.labels[0]


@pytest.mark.parametrize(("one", "other", "why"), SIMILAR)
def test_each_remedy_for_similar_names_is_right(tmp_path, one, other, why):
    third = "7" if other[0].isdigit() else "owl"
    source = touch(tmp_path / "s", f"{one}/1.jpg", f"{other}/2.jpg", f"{third}/3.jpg")
    with pytest.raises(UsageError, match=why) as error:
        scan(source)
    (tmp_path / "names").write_text(f"{third}\n{one}\n{other}\n", encoding="utf-8")
    if "class_names" in str(error.value):
        names = read_class_names(str(tmp_path / "names"))
        assert scan(source, labels=LabelOptions(names)).labels == (third, one, other)
    else:  # it would not help
        with pytest.raises(UsageError):
            scan(source, labels=LabelOptions(read_class_names(str(tmp_path / "names"))))
    assert "merge_similar_labels" in str(error.value)
    assert len(scan(source, labels=LabelOptions(merge_similar=True)).labels) == 2
    (tmp_path / "s" / one).rename(tmp_path / "s" / "renamed")
    assert len(scan(source).labels) == 3


@pytest.mark.parametrize("name", ["nan", "None", "train", "test2017", "[1, 2]", "(cat)", "cat|owl", " nan"])
def test_each_remedy_for_a_label_that_seems_none_is_right(tmp_path, name):
    source = touch(tmp_path / "s", f"{name}/1.jpg", "cat/2.jpg", "owl/3.jpg")
    with pytest.raises(UsageError) as error:
        scan(source)
    (tmp_path / "names").write_text(f"owl\n{name}\ncat\n", encoding="utf-8")
    labels = LabelOptions(read_class_names(str(tmp_path / "names")))
    if "class_names" in str(error.value):
        assert scan(source, labels=labels).labels == ("owl", name, "cat")
    else:
        with pytest.raises(UsageError):
            scan(source, labels=labels)


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "\u0441at"),  # a Cyrillic es
        ("COP", "\u0421\u041e\u0420"),  # all of it
        ("Zebra", "\u0396ebra"),  # a Greek zeta
        ("cat", "cat."),
        ("hot dog", "hot-dog", "hot_dog"),
        ("'cat'", "cat"),
        ("Irish setter", "Irish_Setter"),
        ("cafe", "caf\u00e9"),
        ("cat", "cat (1)", "cat - Copy"),
        ("cat", "cat_augmented"),
        ("IL-2", "IL2"),
        ("St. Bernard", "St Bernard"),
        ("1,000", "1000"),
        ("20 000", "20000"),
        ("7", "7.0"),  # of two tables, one of them with an empty cell, in one
        ("007", "7"),
    ],
)
def test_names_that_only_look_alike_are_noted_and_kept_apart(names):
    found = order(*names, "owl")
    assert set(found.names) == {*names, "owl"}
    shown = " and ".join(map(repr, sorted(names)))
    assert f"class names that look alike: {shown}; if they are one class, give its images one name" in found.notes
    assert order(*names, "owl", names=("owl", *names)).notes == ()  # listed by a person


@pytest.mark.parametrize(
    "names",
    [
        ("A", "A+", "A-", "B+"), ("C", "C++", "C#"), ("1/2 cup", "12 cup"), ("<5", ">5", "5"),
        ("3-5 years", "35 years"),
        ("\u3070\u3089", "\u306f\u3089"), ("\u043c\u043e\u0439", "\u043c\u043e\u0438"),  # other letters
        ("+", "=", "*", ",", "!"), ("TNF\u03b1", "IL1\u03b2"), ("5\u03bcm", "5mm"), ("cat", "cats", "kat"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u0926\u0940"),  # vowel signs are letters
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f468\u200d\U0001f469"),  # joiners where they belong
        ("007", "0x07"), ("1,000", "1", "owl"), ("1E5", "100000"), ("7", "70", "owl"), ("1.1", "11", "owl"),
        ("n01440764", "n01443537"), ("001.Black_footed_Albatross", "002.Laysan_Albatross"),
    ],
)  # fmt: skip
def test_names_that_do_not_look_alike_are_not_noted(names):
    assert order(*names).notes == ()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("\u0441at", "CYRILLIC SMALL LETTER ES among Latin letters"),
        ("Au\u0391", "GREEK CAPITAL LETTER ALPHA among Latin letters"),
        ("ca\u200bt", "invisible ZERO WIDTH SPACE"),
        ("\ufeffcat", "invisible ZERO WIDTH NO-BREAK SPACE"),
        ("ca\u200dt", "invisible ZERO WIDTH JOINER"),
        ("caf\u00e9\u00ad", "invisible SOFT HYPHEN"),
        ("cat ", "a space at an end"),
        ("hot%20dog", "perhaps 'hot dog'"),
        ('="001"', "perhaps '001'"),
        ("'001", "perhaps '001'"),
        ("'cat'", "perhaps 'cat'"),
        ("Mac &amp; cheese", "perhaps 'Mac & cheese'"),
        ("caf\u00c3\u00a9", "perhaps 'caf\u00e9'"),
        ("\u00f5\\xb9\\xe5", "another encoding than UTF-8; unpack or rename its folder"),  # a folder in GBK
        ("\u73ab\u7470".encode("gbk").decode("cp437"), "another encoding than UTF-8; unpack or rename its folder"),
    ],
)
def test_names_with_characters_that_do_not_show_are_noted(name, why):
    assert order(name, "owl").notes == (f"odd characters in class names: {name!r} ({why})",)
    sound = ("\u043a\u043e\u0442", "caf\u00e9", "\u03b1-ketoglutarate", "R&D", "50%", "100%2", "\u00c3rea", "\u732b")
    assert order(*sound).notes == ()


def test_names_that_class_names_lists_are_kept_apart(tmp_path):
    source = touch(tmp_path, "A/1.jpg", "a/2.jpg", "b/3.jpg")
    with pytest.raises(UsageError, match="'A' and 'a'"):
        scan(source)
    (tmp_path / "names").write_text("a\nA\nb\n")
    names = read_class_names(str(tmp_path / "names"))
    (tmp_path / "names").unlink()
    sources = scan(source, labels=LabelOptions(names))
    assert (sources.labels, sources.label.tolist()) == (("a", "A", "b"), [1, 0, 2])


def test_merged_names_take_the_listed_one():
    merged = order("Cat", "cat", "dog", names=("dog", "cat"), merge_similar=True)
    assert (merged.names, merged.relabel.tolist()) == (("dog", "cat"), [1, 1, 0])


def test_unlike_names_stay_apart():
    names = ("cat", "cats", "the cat", "c-at", "kat", "猫", "1", "1a")
    assert len({similarity_key(name) for name in names}) == len(names)
    assert order(*names).names == tuple(sorted(names))


def test_splits_in_a_column_that_differ_in_case_are_refused(tmp_path):
    rows = [("1.jpg", "a", "train"), ("2.jpg", "a", "Train"), ("3.jpg", "a", "test")]
    source = table(tmp_path, *rows, header="path,label,split")
    with pytest.raises(UsageError, match="row 3: the splits 'train' and 'Train' differ in case"):
        scan(source)
    sources = scan(source, labels=LabelOptions(merge_similar=True))
    assert (sources.splits, sources.split.tolist()) == (("train", "test"), [0, 0, 1])


def test_split_folders_that_differ_in_case_are_refused(tmp_path):
    with pytest.raises(UsageError, match="the splits 'Train' and 'train'"):
        scan(touch(tmp_path, "train/a/1", "Train/a/2", "test/a/3"))
    sources = scan(str(tmp_path), labels=LabelOptions(merge_similar=True))
    assert (sources.splits, sources.split.tolist()) == (("Train", "test"), [0, 0, 1])


# ------------------------------------------------------------------------------ classes of one split only


def test_a_class_of_the_test_split_only_is_noted_at_conversion(tmp_path):
    for number, path in enumerate(("train/cat", "train/dog", "test/cat", "test/bird")):
        for i in range(3):
            draw(tmp_path / "s" / path / f"{i}.jpg", 10 * number + i)
    result = Run(
        "shardline.tools.convert", f"--source={tmp_path}/s", f"--output={tmp_path}/d", "--noreport", "--engine=inline"
    )
    assert result.code == 0, result.stderr
    assert "note: classes in test but not in train: bird\n" in result.stderr
    assert "note: classes in train but not in test: dog\n" in result.stderr
    assert Manifest.load(tmp_path / "d").labels == ("bird", "cat", "dog")
    assert read_class_names(str(tmp_path / "d" / "manifest.json")) == ("bird", "cat", "dog")


def test_a_class_misspelled_in_one_split_is_refused_and_the_split_named(tmp_path):
    source = touch(tmp_path, "train/cat/1", "train/dog/1", "test/cat/1", "test/Dog/1")
    with pytest.raises(UsageError, match=r"'Dog' and 'dog'.*classes in test but not in train: Dog"):
        scan(source)
    merged = scan(source, labels=LabelOptions(merge_similar=True))
    assert merged.labels == ("Dog", "cat")


# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ([f"{float(i)}" for i in range(12)], [str(i) for i in range(12)]),
        (["10", "9", "-1", "2"], ["-1", "2", "9", "10"]),
        (["010", "9", "2"], ["2", "9", "010"]),
        (["10.", "9"], ["9", "10"]),
        (["20240115123456790", "20240115123456789"], ["20240115123456789", "20240115123456790"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["1.5", "10", "9"], ["1.5", "9", "10"]),
        ([f"{i:.18e}" for i in range(12)], [str(i) for i in range(12)]),  # of numpy.savetxt
        ([f"{i},0" for i in range(12)], [str(i) for i in range(12)]),  # of pandas, decimal=","
        (["1e+2", "9", "-5E-1"], ["-5E-1", "9", "1e+2"]),
        (["1,000", "2", "b"], ["1,000", "2", "b"]),
        (["2" * 40, "1" * 40, "3" * 39], ["3" * 39, "1" * 40, "2" * 40]),  # more digits than decimal computes with
        (["1e+99", "1" + "0" * 40 + ".0"], ["1" + "0" * 40, "1" + "0" * 99]),
        (["b", "9" * 5000, "1.0"], ["1.0", "9" * 5000, "b"]),  # more than Python makes a number of
    ],
)
def test_numbers_are_in_numerical_order(found, names):
    result = order(*found)
    assert list(result.names) == names
    if "b" not in names:
        assert [float(names[label]) for label in result.relabel] == [float(name.replace(",", ".")) for name in found]


@pytest.mark.parametrize("mark", [".", ",", "'", " ", "\u00a0", "\u202f", "\u2019"])
@pytest.mark.parametrize("kind", ["", "index"])
def test_numbers_with_marks_of_thousands_are_refused(mark, kind):
    """Excel's: 1.000 was class 1, and --merge_similar_labels, as advised beside a 1, made one class of both."""
    for found in (("1", f"1{mark}000"), ("999", f"12{mark}345")):
        with pytest.raises(UsageError, match=f" may be {found[1].replace(mark, '')} or less; write"):
            order(*found, kind=kind)
    assert order("1", f"1{mark}000", names=("1", f"1{mark}000")).names == ("1", f"1{mark}000")
    assert order("1.000", "2.000", "10.000", kind=kind).relabel.tolist() == ([1, 2, 10] if kind else [0, 1, 2])
    assert order("0.125", "1").names == ("0.125", "1")


def test_names_that_a_spreadsheet_takes_for_numbers_are_names():
    assert order("1E5", "2E5", "10E1").names == ("10E1", "1E5", "2E5")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("cat", "cat_test", "dog"), "'cat' and 'cat_test'"),
        (("trainA", "testA", "trainB"), "'testA' and 'trainA'"),
        (("Cat Train", "cat-val", "owl"), "'Cat Train' and 'cat-val'"),
        (("crash_test", "car"), ""),
        (("train_station", "bus_station"), ""),
    ],
)
def test_splits_in_the_names_of_classes_are_noted(names, told):
    notes = order(*names).notes
    if told:
        assert f"class names that are one but for the name of a split: {told}; if those are splits" in notes[0]
    else:
        assert notes == ()
    assert order(*names, names=names).notes == ()


def test_sets_of_labels_are_noted_where_not_each_stands_alone():
    told = "classes that seem to be several labels each: "
    assert f"{told}'cat|dog', 'dog;owl'; shardline takes one label" in order("cat|dog", "dog;owl", "bird").notes[0]
    words = ("clear primary", "haze primary", "cloudy", "clear haze", "primary road", "road haze", "road clear",
             "road primary clear", "cloudy road", "haze primary clear", "road haze clear")  # fmt: skip
    assert f"{told}'clear haze', 'clear primary', 'cloudy road' and 7 more" in order(*words).notes[0]  # Planet's
    assert order("maillot", "maillot, tank suit", "great white shark, man-eater", "tiger shark").notes == ()
    assert order("cat|dog", "dog|owl", names=("cat|dog", "dog|owl")).notes == ()


def test_numbers_as_floats_in_a_table(tmp_path):
    sources = scan(table(tmp_path, *((f"{i:02}.jpg", str(float(i))) for i in range(12))))
    assert sources.labels == tuple(str(i) for i in range(12))
    assert sources.label.tolist() == list(range(12))


def test_the_mark_of_no_label_is_noted_where_it_may_be_one():
    (note,) = order("0", "1", "-1").notes
    assert "-1 is a class like the others; if it marks images without a label" in note
    assert order("-1", "-2", "0").notes == order("-1", "1").notes == order("0", "1").notes == ()
    assert order("0", "1", "-1", names=("-1", "0", "1")).notes == ()


@pytest.mark.parametrize("mark", ["NA", "NONE", "none", "Null", "-", "?", "nil", "missing", "no_label"])
def test_other_marks_of_no_label_are_noted_too(mark):
    (note,) = order("cat", mark).notes
    assert note == f"{mark!r} is a class like the others; if it marks images without a label, leave those out"
    assert order("cat", mark, names=("cat", mark)).notes == ()


@pytest.mark.parametrize("value", ["#REF!", "#VALUE!", "#N/A", "#NA", "#DIV/0!", "-nan"])
def test_what_a_spreadsheet_writes_for_an_error_is_no_class(value):
    with pytest.raises(UsageError, match="no class but a missing value"):
        order("cat", value)


def test_fractions_are_noted():
    assert order("0.11", "3.25", "7").notes == (
        "the labels are fractions (0.11, 3.25), and each different one is a class",
    )
    assert order("0.0", "1.0").notes == order("0.5", "1", kind="name").notes == ()


@pytest.mark.parametrize(
    ("names", "told"),
    [(("train", "training", "test"), "train and training"), (("train", "val", "valid"), "val and valid"),
     (("train_1", "train_2"), "train_1 and train_2"), (("train", "val", "dev", "eval", "test"), "")],
)  # fmt: skip
def test_splits_of_one_kind_are_noted(tmp_path, names, told):
    source = touch(tmp_path / "folders", *(f"{name}/cat/1.jpg" for name in names))
    rows = table(
        tmp_path / "t", *((f"{i}.jpg", "cat", name) for i, name in enumerate(names)), header="path,label,split"
    )
    note = (f"the splits {told} are of one kind by their names; if they are one split, call them alike",) * bool(told)
    assert scan(source).notes == note
    assert scan(rows).notes == ("every row has the label 'cat'", *note)
    assert sorted(scan(source).splits) == sorted(scan(rows).splits) == sorted(names)


def test_shares_of_splits_of_one_kind_are_noted(tmp_path):
    images = touch(tmp_path / "s", *(f"cat/{i}.jpg" for i in range(20)))
    for last, noted in (("training", True), ("test", False)):
        flags = (f"--source={images}", f"--output={tmp_path / 'o'}", f"--splits=train=0.9,{last}=0.1", "--dry_run")
        told = Run("shardline.tools.convert", *flags).stderr
        assert ("the splits train and training are of one kind" in told) == noted


def test_number_folders_are_in_numerical_order_and_the_difference_to_keras_is_noted(tmp_path):
    sources = scan(touch(tmp_path, *(f"{i}/x" for i in range(12))))
    assert sources.labels == tuple(str(i) for i in range(12))
    assert "label 2 is '2'" in sources.notes[0] and "make it '10'" in sources.notes[0]


def test_numbers_are_text_when_they_are_names():
    assert order("10", "9", "010", kind="name").names == ("010", "10", "9")


def test_index_labels_are_positions_in_the_class_names():
    result = order("2", "0", "2.0", names=("a", "b", "c"), kind="index")
    assert (result.names, result.relabel.tolist()) == (("a", "b", "c"), [2, 0, 2])
    assert order("2", "0", kind="index").names == ("0", "1", "2")
    for found, message in [(("3",), "run to 3, but"), (("x",), "x is no number"), (("-1",), "no number of 0 or more")]:
        with pytest.raises(UsageError, match=message):
            order(*found, names=("a", "b", "c"), kind="index")
    for found, told in ((("1", "3"), True), (("0", "3"), False), (("1", "4"), False)):
        with pytest.raises(UsageError, match=f"run to {found[1]}, but") as error:
            order(*found, names=("a", "b", "c"), kind="index")
        assert str(error.value).endswith("; if they count from 1, subtract 1 from each") == told
    with pytest.raises(UsageError, match="labels run to 20,240,115 but only 3 differ"):
        order("0", "1", "20240115", kind="index")
    with pytest.raises(UsageError, match="label_kind=index"):
        order("0", "1", names=("a", "b"))
    assert order("1", "0", names=("0 a", "1 b"), kind="index").names == ("a", "b")
    assert order("1", "2", names=("background", "a", "b"), kind="index").notes == ()
    for names in (("0 a", "1 b"), ("b 1", "a 0"), ("label", "cat")):  # of a dataset that is added to
        assert order("1", "0", names=names, kind="index", open_ended=True).names == names
    counted_from_1 = order("1", "2", names=("a", "b", "c", "d"), kind="index")
    assert order("1", names=("a", "b"), kind="index", open_ended=True).notes == ()  # what is added need not have all
    assert counted_from_1.notes == ("no label is 0, the lowest is 1; if they count from 1, subtract 1 from each",)


def test_names_of_no_class_are_refused_and_not_to_be_added_to():
    with pytest.raises(UsageError, match=r"its classes \(a, b\) are none of those that class_names lists \(0 a, 1 b\)"):
        order("b", "a", names=("0 a", "1 b"))


def test_numbers_are_no_classes_beside_names_unless_somebody_says_so():
    """What --append adds stays, so that classes 0 and 1 beside cat and dog could not be taken back."""
    with pytest.raises(
        UsageError, match=r"its classes \(1, 0\) are numbers, .*\(dog, cat\) are names; .*label_kind=index"
    ):
        order("1", "0", names=("dog", "cat"), open_ended=True)
    added = order("1", "0", names=("dog", "cat"), open_ended=True, kind="index")
    assert (added.names, added.relabel.tolist()) == (("dog", "cat"), [1, 0])
    assert order("0", "1", names=("dog", "cat", "0", "1")).relabel.tolist() == [2, 3]
    assert order("2", names=("0", "1"), open_ended=True).names == ("0", "1", "2")
    assert order("cat", "7", names=("dog", "cat"), open_ended=True).names == ("dog", "cat", "7")
    assert order("cat", names=("dog", "cat"), open_ended=True).notes == ()
    merged = order_labels(["0", "1"], LabelOptions(("dog", "cat"), open_ended=True), "--data=d", listed=True)
    assert merged.names == ("dog", "cat", "0", "1") and "if the numbers stand for the names, convert" in merged.notes[0]
    with pytest.raises(UsageError, match=r"its classes \(cat\) are names, .*\(0, 1\) are numbers; if they are classes"):
        order("cat", names=("0", "1"), open_ended=True)
    merged = order_labels(["dog"], LabelOptions(("0", "1"), open_ended=True), "--data=d", listed=True)
    assert merged.names == ("0", "1", "dog") and "if the numbers stand for the names, convert" in merged.notes[0]


# ----------------------------------------------------------------------------------- what is no class


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("a\nb", "control characters"),
        ("a\x1b[31m", "control characters"),
        ("a\u202eb", "control characters"),
        ("a\x7f", "control characters"),
        ("nan", "missing value"),
        ("NaN", "missing value"),
        ("None", "missing value"),
        ("<NA>", "missing value"),
        ("[1, 0, 0]", "one label an image"),
        ("['cat', 'dog']", "one label an image"),
        ("{'id': 3}", "one label an image"),
        ("train", "name of a split"),
        ("Test", "name of a split"),
        ("val2017", "name of a split"),
        ("test_images", "name of a split"),
    ],
)
def test_what_is_no_class_is_refused_by_name(label, message):
    with pytest.raises(UsageError, match=message) as error:
        order("cat", label)
    assert len(str(error.value).splitlines()) == 1


def test_several_labels_in_a_cell_are_told_by_their_parts():
    with pytest.raises(UsageError, match=r"'cat\|dog' is a list; shardline takes one label an image"):
        order("cat", "dog", "cat|dog")
    assert order("crane, bird", "crane, machine").names == ("crane, bird", "crane, machine")
    with pytest.raises(UsageError, match="'scab rust' is a list; shardline takes one label an image"):
        order("scab", "rust", "scab rust")  # Kaggle's Plant Pathology
    assert order("golden retriever", "retriever").names == ("golden retriever", "retriever")


def test_what_class_names_lists_is_a_class():
    names = ("bus", "train", "None", "[]")
    assert order(*names, names=names).names == names


def test_values_that_are_no_text_in_a_parquet_table(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    touch(tmp_path, "1.jpg", "2.jpg")
    for column, message in [
        (pa.array([1.0, float("nan")]), "missing value"),
        (pa.array(["a", None]), "row 2: path and label must not be empty"),
        (pa.array([[1, 0], [0, 1]]), "one label an image"),
    ]:
        parquet.write_table(pa.table({"path": ["1.jpg", "2.jpg"], "label": column}), tmp_path / "t.parquet")
        with pytest.raises(UsageError, match=message):
            scan(str(tmp_path / "t.parquet"))
    parquet.write_table(pa.table({"path": ["1.jpg", "2.jpg"], "label": [b"cat", b"dog"]}), tmp_path / "t.parquet")
    assert scan(str(tmp_path / "t.parquet")).labels == ("cat", "dog")


def test_control_characters_in_a_folder_name_are_refused_and_escaped(tmp_path):
    with pytest.raises(UsageError, match="control characters") as error:
        scan(touch(tmp_path, "a/1", "b\x1b]0;x\a/2"))
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "rank"),
    [("train", 0), ("Training Set", 0), ("valid", 1), ("VAL", 1), ("dev", 1), ("eval", 1), ("test2017", 2),
     ("training_set", 0), ("test_images", 2), ("to_predict", None), ("trainer", None), ("contest", None), ("t", None)],
)  # fmt: skip
def test_names_that_mean_a_split(name, rank):
    assert split_rank(name) == rank


# ------------------------------------------------------------------------------------------ class_names


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("b\nc\n\na\n", ("b", "c", "a")),
        ("\ufeffa\r\nb\r\n", ("a", "b")),
        ("0:daisy\n1:rose\n", ("daisy", "rose")),
        ("0\tdaisy\n1\trose\n", ("daisy", "rose")),
        ("1:daisy\n2:rose\n", ("1:daisy", "2:rose")),  # not numbered from 0: not what we know
        ("a\na\n", "'a' listed twice"),
        ("\n", "the file is empty"),
        (f"{NFC}\n{NFD}\n", "look the same"),
        ("a\x1b\n", "control characters"),
        ("a\u2028b\n", "control characters"),
        ("1:rose\n0:daisy\n", ("daisy", "rose")),  # by number, wherever the line stands
        ('["b", "a"]', ("b", "a")),
        ('{\n"1": "rose",\n"0": "daisy"\n}', ("daisy", "rose")),
        ('{"rose": 1, "daisy": 0}', ("daisy", "rose")),  # torchvision's class_to_idx
        ('{ "id2label": {"0": "daisy"}, "model_type": "vit"}', ("daisy",)),  # a config.json of Hugging Face
        ('{"0": ["n01", "daisy"]}', ("n01",)),
        ('{"format": "x", "labels": ["b", "a"], "name": "x"}', ("b", "a")),
        ('{"labels": 0, "b": 1}', ("labels", "b")),
        ('{"1": "daisy", "2": "rose"}', "a number of 0 or more for each"),
        ('["a", 1]', "no JSON of class names"),
        ('["b", "", "a"]', "name 2 of the list is empty, but places in it are labels; remove it, or name that class"),
        ('{"0": " ", "1": "a"}', "name 1 of the list is empty"),
        ('["b", "a", ""]', ("b", "a")),
        ("# of 2024\na\n", "is a comment"),
        ("[a]\n{b}\n", ("[a]", "{b}")),
        ("names:\n- rose\n- daisy\n", "is no list of names; write the names alone"),
        ("- rose\n- daisy", "is no list of names"),
        ("-1\n- 2\n", ("-1", "- 2")),
        ("['rose',\n'daisy']\n", "is a list as Python prints it; write it as JSON"),
        ("{0: 'rose', 1: 'daisy'}", "is a list as Python prints it"),
        ('("rose", "daisy")', "is a list as Python prints it"),
        ("rose\t1\ndaisy\t0\n", ("daisy", "rose")),
        ("mark:0\nmark:1\n", ("mark:0", "mark:1")),
        ('"b"\n"a, c"\n', ("b", "a, c")),
        ("'b',\n'a'\n", ("b", "a")),
        ("'tis\na\n", ("'tis", "a")),
        ("9" * 5000 + ":a\n1:b\n", ("9" * 5000 + ":a", "1:b")),
        ('{"rose": Infinity, "daisy": 0}', "no JSON of class names"),
        ('{"rose": NaN, "daisy": 0}', "no JSON of class names"),
        ('{"rose": 1e999, "daisy": 0}', "no JSON of class names"),
        ('{"rose": 1.5, "daisy": 0.5}', "no JSON of class names"),
        ('{"rose": true, "daisy": false}', "no JSON of class names"),
        ('{"rose": "1_0", "daisy": 0}', "no JSON of class names"),
        ('{"rose": 1.0, "daisy": "0"}', ("daisy", "rose")),
        ('{"0": "daisy", "0": "rose"}', "no JSON of class names"),  # of which Python takes the last
        ('{"0": "daisy", "1": "rose", "0": "tulip"}', "no JSON of class names"),
    ],
)
def test_files_of_class_names(tmp_path, text, result):
    (tmp_path / "names").write_text(text, encoding="utf-8", newline="")
    if isinstance(result, str):
        with pytest.raises(UsageError, match=result):
            read_class_names(str(tmp_path / "names"))
    else:
        assert read_class_names(str(tmp_path / "names")) == result


@pytest.mark.parametrize("suffix", ["csv", "yaml", "pbtxt"])
def test_what_is_no_list_of_names_is_refused_and_never_read_as_lines(tmp_path, suffix):
    (tmp_path / f"names.{suffix}").write_text("names:\n- a\n- b\n")
    with pytest.raises(UsageError, match="no list of names; write the names alone, one a line"):
        read_class_names(str(tmp_path / f"names.{suffix}"))


@pytest.mark.parametrize(
    ("names", "first", "result"),
    [
        (("0 daisy", "1 rose"), 0, ("daisy", "rose")),  # Teachable Machine's
        (("1. rose", "0. daisy"), 0, ("daisy", "rose")),
        (("id,name", "0,daisy", "1,rose"), 0, ("daisy", "rose")),
        (("id,name", "1,daisy", "2,rose"), 0, "numbered from 1"),
        (("0 daisy", "1 rose", "2 tulip"), 0, ("daisy", "rose", "tulip")),
        (("1:daisy", "2:rose"), 0, "numbered from 1, as in '1:daisy', '2:rose', but labels are counted from 0"),
        (("1 daisy", "2 rose"), 1, ("daisy", "rose")),
        (("0 daisy", "1 rose"), 1, "numbered from 0"),
        (("1 star", "2 stars", "3 stars"), 0, ("1 star", "2 stars", "3 stars")),
        (("2 of clubs", "3 of clubs"), 0, ("2 of clubs", "3 of clubs")),
        (("0.1", "1.2"), 0, ("0.1", "1.2")),
        (("rose 1", "daisy 0"), 0, ("daisy", "rose")),
        (("rose, 0", "daisy, 1"), 0, ("rose", "daisy")),
        (("name id", "rose 0", "daisy 1"), 0, ("rose", "daisy")),
        (("x-1", "Type 1", "rose 0"), 0, ("x-1", "Type 1", "rose 0")),
        (("names:", "rose", "daisy"), 0, "seems to be a heading"),
        (("rose 0", "tulip 1", "daisy 2"), 0, ("rose", "tulip", "daisy")),
        (("rose 1", "tulip 2", "daisy 3"), 0, "numbered from 1, as in 'rose 1', 'tulip 2'"),
        (("0 Type 1", "1 Model 2"), 0, ("Type 1", "Model 2")),
        (("level 0", "level 1"), 0, ("level 0", "level 1")),
        (("boeing 737", "boeing 747"), 0, ("boeing 737", "boeing 747")),
        (("label", "rose", "daisy"), 0, "its first name, 'label', seems to be a heading and would be label 0"),
        (("0 label", "1 rose"), 0, ("label", "rose")),
        (("0=rose", "1=tulip"), 0, ("rose", "tulip")),
        (("1|rose", "0|tulip"), 0, ("tulip", "rose")),
        (("ROSE = 0", "TULIP = 1"), 0, ("ROSE", "TULIP")),
        (("1=rose", "2=tulip"), 0, "numbered from 1, as in '1=rose', '2=tulip'"),
    ],
)
def test_numbers_before_names_have_to_be_the_labels_where_places_are(names, first, result):
    if isinstance(result, str):
        with pytest.raises(UsageError, match=result):
            listed_by_position(names, "--class_names", first)
    else:
        assert listed_by_position(names, "--class_names", first) == result


def test_a_list_of_names_is_checked_as_a_whole():
    check_names(("cat", "dog"), "label.labels.txt", "mend it")
    for names, message in [
        (("a", ""), "empty"),
        (("a", "a"), "twice"),
        (("a", "A"), "case"),
        (("a", "b\n"), "control"),
    ]:
        with pytest.raises(UsageError, match=message):
            check_names(names, "label.labels.txt", "mend it")


def test_an_order_that_somebody_made_stands():
    result = order_labels(("train", "bus", "cat"), LabelOptions(), "--source=tfds:x", listed=True)
    assert (result.names, result.relabel.tolist()) == (("train", "bus", "cat"), [0, 1, 2])
    with pytest.raises(UsageError, match="'Cat' and 'cat'"):
        order_labels(("Cat", "bus", "cat"), LabelOptions(), "--source=tfds:x", listed=True)
    merged = order_labels(("Cat", "bus", "cat"), LabelOptions(merge_similar=True), "--source=tfds:x", listed=True)
    assert (merged.names, merged.relabel.tolist()) == (("Cat", "bus"), [0, 1, 0])
    assert merged.relabel.dtype == np.int32
