"""Singular and plural, and what is cut short."""

from shardline.pipeline.wording import as_flag, count, decimal, noun_after, shorten, shorten_list, shorten_middle


def test_a_noun_follows_its_number():
    assert [noun_after(number, "epoch") for number in (0.5, 1, 1.0, 2)] == ["epochs", "epoch", "epoch", "epochs"]
    assert noun_after(0, "class") == "classes"


def test_a_count_agrees_with_its_noun():
    assert [count(n, "file") for n in (0, 1, 2, 1200)] == ["0 files", "1 file", "2 files", "1,200 files"]
    assert [count(2, noun) for noun in ("class", "micro-batch", "box")] == ["2 classes", "2 micro-batches", "2 boxes"]
    assert (count(1, "entry", "entries"), count(2, "entry", "entries")) == ("1 entry", "2 entries")


def test_settings_are_written_as_they_are_typed():
    assert list(map(as_flag, (True, 0.12345678, 1e-5, 16, "sgd", [0.35, 1.0], ()))) == [
        "true", "0.12345678", "1e-05", "16", "sgd", "0.35,1", ""
    ]  # fmt: skip


def test_long_names_and_lists_are_cut():
    assert (shorten("abcdef", 6), shorten("abcdefg", 6)) == ("abcdef", "abcde…")
    assert (shorten_list("abc", 3), shorten_list("abcdef", 2)) == ("a, b, c", "a, b and 4 more")


def test_class_names_keep_both_ends():
    assert shorten_middle("American Staffordshire terrier", 15) == "America…terrier"
    assert shorten_middle("rose") == "rose"


def test_a_decimal_has_about_four_digits_and_no_exponent():
    numbers = (0.0, 1.0, 1.23456, 123.45, 12345.6, 0.5, 0.012345, 2e-5, 1.998e-5, -3e-7, 1e-20)
    texts = ["0", "1", "1.235", "123.5", "12,346", "0.5", "0.0123", "0.00002", "0.00002", "-0.0000003", "0"]
    assert list(map(decimal, numbers)) == texts
    assert decimal(float("nan")) == "nan"
