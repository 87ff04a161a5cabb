"""Singular and plural, and what is cut short."""

from shardline.pipeline.wording import count, shorten, shorten_list


def test_a_count_agrees_with_its_noun():
    assert [count(n, "file") for n in (0, 1, 2, 1200)] == ["0 files", "1 file", "2 files", "1,200 files"]
    assert [count(2, noun) for noun in ("class", "micro-batch", "box")] == ["2 classes", "2 micro-batches", "2 boxes"]
    assert (count(1, "entry", "entries"), count(2, "entry", "entries")) == ("1 entry", "2 entries")


def test_long_names_and_lists_are_cut():
    assert (shorten("abcdef", 6), shorten("abcdefg", 6)) == ("abcdef", "abcde…")
    assert (shorten_list("abc", 3), shorten_list("abcdef", 2)) == ("a, b, c", "a, b and 4 more")
