"""Class names: what a name may be, which two are one, and which number each gets. No TensorFlow.

The one place for class folders, tables, prepared TFDS datasets and adopted shards. Names that --class_names lists are
taken at their word: what is refused here because it looks like a slip can be listed there and so be kept.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from shardline.pipeline.class_gaps import class_gaps
from shardline.pipeline.errors import UsageError
from shardline.pipeline.text import has_control_characters, parse_json
from shardline.pipeline.wording import shorten_list
from shardline.tools.conversion.sources import SourcesBuilder

# Names that mean a split, also with a word or number after them: test2017, train_images, "Training Set".
_SPLITS = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "eval": 1, "evaluation": 1}
_SPLITS |= {"test": 2, "testing": 2}
_SPLIT = re.compile(rf"({'|'.join(_SPLITS)})(?:[-_ ]?(?:sets?|data|images?|imgs?|splits?|folders?|\d+))*", re.ASCII)
# 7, 10.0, 0,5, 1.0e+01. Programs write a sign after the e; 1E5 is a name, as 4D2 is, and what Python cannot read.
_NUMBER = re.compile(r"[+-]?\d{1,999}(\.\d{0,999}|,\d\d?)?(e[+-]\d\d?)?", re.ASCII | re.IGNORECASE)
_THOUSANDS = re.compile("[1-9]\\d{0,2}(?:[.,' \u00a0\u202f\u2019]\\d{3})+", re.ASCII)  # of spreadsheets
_PLAIN = re.compile(r"[+-]?\d+", re.ASCII)
NOTHING = {  # what programs write for no value
    *("", "nan", "NaN", "NAN", "-nan", "-NaN", "NaT", "<NA>", "None", "NULL", "null", "N/A", "n/a"),
    *("#N/A", "#NA", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NUM!", "#NULL!"),
}
_MARKS = {  # what people write, or a class
    *("na", "none", "null", "nil", "nan", "-", "--", "?", "??", ".", "missing"),
    *("no_label", "no label", "nolabel", "unlabeled", "unlabelled", "unannotated"),
}
AFTER_NUMBER = r"(?:\s*[:,;)=|]\s*|\s*\.\s+|\s+(?:-\s+)?)"  # between the number and the name in a line
BEFORE_NUMBER = r"[\s,:;=|]+"  # between the name and the number
HEADINGS = {
    "label",
    "labels",
    "label_name",
    "class",
    "classes",
    "class_name",
    "class_names",
    "category",
    "name",
    "names",
    "synset",
    "wnid",
}
_NO_LISTS = (".csv", ".tsv", ".yaml", ".yml", ".pbtxt", ".xml", ".npy", ".pkl", ".mat", ".xlsx")
_LIST = re.compile(r"\[.*\]|\(.*\)|\{.*\}", re.DOTALL)
_BETWEEN = re.compile(r"[|;,]")  # several labels in one cell


# Of names that only look alike: letters that are drawn as a Latin one, and what separates words.
_LATIN = str.maketrans("АВЕКМНОРСТХІЈЅаеорсхуіјѕ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧον", "ABEKMHOPCTXIJSaeopcxyijs" + "ABEZHIKMNOPTYXov")
_COPY = re.compile(  # what file managers and people add
    r"(?<=\w)(?:[ _-]+(?:copy(?: ?\d+)?|aug(?:mented)?|old|backup|bak)| *\(\d\d?\))+$", re.IGNORECASE
)
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[\s_.,:;/-]+(?=\d)")
_MANY_SETS = 8  # names, of which half as many words are sets of labels
_QUOTED = re.compile(r"""="(.*)"|'(.*)'|"(.*)"|'([^']+)""")  # the first and last of Excel, to keep 001 a text
_SIGNS = "#%&*!?@"  # that tell names apart, as mathematical ones do
_JOINERS = "\u200c\u200d"  # invisible, and part of emoji and of some scripts


@dataclass(frozen=True)
class LabelOptions:
    """What a person says of the classes.

    Attributes:
      names: the classes in label order; (): as found.
      merge_similar: make one class of names that differ in case, spaces or Unicode form only, and do not refuse them.
      kind: what a label is: "name", "index" (a position in `names`), "onehot", or "" to find out.
      open_ended: classes that `names` does not list come after those that it does.
    """

    names: tuple[str, ...] = ()
    merge_similar: bool = False
    kind: str = ""
    open_ended: bool = False


def split_rank(name: str) -> int | None:
    """0 for a name that means training, 1 validation, 2 test; None for one that means no split."""
    found = _SPLIT.fullmatch(name.strip().lower())
    return _SPLITS[found[1]] if found else None


def similarity_key(name: str) -> str:
    """Equal for names that a reader takes for one: case, width, spaces, invisible characters and Unicode form aside."""
    shown = "".join(c for c in unicodedata.normalize("NFKC", name) if not _is_invisible(c))
    return unicodedata.normalize("NFKC", " ".join(shown.casefold().split()))


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"  # variants of a character


def _lookalike_key(name: str) -> str:
    """Equal for names that may be one: accents, word separators, alphabets of letters and marks of a copy aside."""
    text = _COPY.sub("", unicodedata.normalize("NFC", name).translate(_LATIN))
    text = similarity_key(re.sub(r"(?<=\w)-$", "\u2212", text))  # A- is not A
    if _NUMBER.fullmatch(text):  # 7 and 7.0 beside names, where numbers are not compared as such
        whole, mark, rest = f"{number(text):f}".partition(".")
        return whole + (mark + rest.rstrip("0")).rstrip(".")
    if _THOUSANDS.fullmatch(text):
        return re.sub(r"\D", "", text)
    text = unicodedata.normalize("NFKD", _BETWEEN_DIGITS.sub("|", text))
    text = re.sub("(?<=[a-z])[\u0300-\u036f]+", "", text)
    return "".join(c for c in text if c in _SIGNS or unicodedata.category(c)[0] not in "ZP") or text


def lookalike_notes(names: Iterable[str], listed: Iterable[str] = ()) -> tuple[str, ...]:
    """On names that look like another one or like what they are not; none of those that a person listed."""
    names, listed = sorted(set(names)), set(listed)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_lookalike_key(name), []).append(name)
    alike = [group for group in groups.values() if len(group) > 1 and not listed.issuperset(group)]
    odd = [f"{name!r} ({why})" for name in names if name not in listed and (why := _odd_characters(name))]
    notes = _split_word_notes(names, listed) + _several_notes([name for name in names if name not in listed])
    if alike:
        pairs = shorten_list(" and ".join(map(repr, group)) for group in alike)
        notes.append(f"class names that look alike: {pairs}; if they are one class, give its images one name")
    if odd:
        notes.append(f"odd characters in class names: {shorten_list(odd)}")
    return tuple(notes)


def _split_word_notes(names: Sequence[str], listed: set[str]) -> list[str]:
    """On names that are one but for a word that means a split: cat and cat_test, trainA and testA."""
    groups: dict[str, list[str]] = {}
    marked = set()
    for name in names:
        words = [word for word in re.split(r"[-_. ]+|(?<=[a-z])(?=[A-Z])", name) if word]
        rest = [word for word in words if split_rank(word) is None]
        groups.setdefault(" ".join(rest or words).casefold(), []).append(name)
        marked |= {name} if 0 < len(rest) < len(words) else set()
    several = [group for group in groups.values() if len(group) > 1 and marked & set(group) - listed]
    pairs = shorten_list(" and ".join(map(repr, group)) for group in several)
    return [
        f"class names that are one but for the name of a split: {pairs}; if those are splits, tell them by folders or "
        "in a table's column split, and call the class alike"
    ] * bool(several)


def _several_notes(names: Sequence[str]) -> list[str]:
    """On names whose parts, or words, come again in others: several labels an image, each set of them a class."""
    parts = {name: [part.strip() for part in _BETWEEN.split(name) if part.strip()] for name in names}
    often = Counter(part for held in parts.values() for part in set(held))
    found = []
    for name, held in parts.items():
        again = [often[part] > 1 for part in held]
        if len(held) > 1 and (any(again) if re.search("[|;]", name) else all(again)):  # a comma: synonyms, as well
            found.append(name)
    words = {word for name in names for word in name.split()}
    if len(names) >= _MANY_SETS and 2 * len(words) < len(names):
        found = [name for name in names if len(name.split()) > 1]
    return [
        f"classes that seem to be several labels each: {shorten_list(map(repr, found), 3)}; shardline takes one label "
        "an image, so choose one of them, or leave it if each set is a class"
    ] * bool(found)


def _odd_characters(name: str) -> str:
    """What of a name does not show, or shows as something else; "" for nothing."""
    for word in re.findall(r"[^\W\d_]+", unicodedata.normalize("NFC", name)):
        foreign = [letter for letter in word if not letter.isascii()]
        if foreign and len(foreign) < len(word) and word.translate(_LATIN).isascii():
            return f"{unicodedata.name(foreign[0])} among Latin letters"
    joined = not name.translate(dict.fromkeys(map(ord, _JOINERS))).isascii()
    for character in name:
        if unicodedata.category(character) == "Cf" and not (joined and character in _JOINERS):
            return f"invisible {unicodedata.name(character, hex(ord(character)))}"
    if (meant := _decoded(name)) != name:
        return f"perhaps {meant!r}"
    if re.search(r"\\x[0-9a-f]{2}|[\u2500-\u259f]", name):  # bytes of a folder, or lines and blocks of an archive's
        return "another encoding than UTF-8; unpack or rename its folder"
    return "a space at an end" if name != name.strip() else ""


def _decoded(name: str) -> str:
    """A name that was written for an address, a page or a spreadsheet, or read in another encoding than written in."""
    if quoted := _QUOTED.fullmatch(name):
        return quoted[quoted.lastindex or 0]
    try:
        plain = html.unescape(name) if re.search(r"&#?\w+;", name) else unquote(name, errors="strict")
        return plain if name.isascii() else name.encode("cp1252").decode()
    except UnicodeError:
        return name


def clean_name(name: str) -> str:
    """A name as it is written when similar ones are merged: composed, without spaces around it."""
    return unicodedata.normalize("NFC", name).strip()


def similar_names(names: Iterable[str], *, as_numbers: bool = True) -> list[list[str]]:
    """Groups of different names that a reader takes for one, in text order; numbers are compared as numbers."""
    names = sorted(set(names))
    key: Callable[[str], str | Decimal] = number if as_numbers and are_numbers(names) else similarity_key
    groups: dict[str | Decimal, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all names are numbers, as `7`, `-1`, `010`, `10.0`, `0,5` and `1.0e+01` are."""
    return all(map(_NUMBER.fullmatch, names))


def number(name: str) -> Decimal:
    """The value of a name that is a number."""
    return Decimal(name.replace(",", "."))


def _is_whole(name: str) -> bool:
    # Not by % 1, which Decimal refuses for more digits than its context has.
    return _NUMBER.fullmatch(name) is not None and number(name) == number(name).to_integral_value()


def check_names(names: Sequence[str], what: str, remedy: str) -> None:
    """Refuse a list of class names that cannot be told apart or shown.

    Args:
      names: in label order.
      what: where they stand, for the message, e.g. `--class_names=FILE`.
      remedy: what to do about it.

    Raises:
      UsageError: a name is empty, has control characters, or is as good as another one.
    """
    for name in names:
        _check_characters(name, what, remedy)
        if not name.strip():
            raise UsageError(f"{what}: a class name is empty; {remedy}")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UsageError(f"{what}: {shorten_list(twice)} listed twice; {remedy}")
    for group in similar_names(names):
        raise UsageError(f"{what}: {as_one(group)}; {remedy}")


def _check_characters(name: str, what: str, remedy: str) -> None:
    if has_control_characters(name):
        raise UsageError(f"{what}: the class name {name!r} has control characters; {remedy}")


def can_be_listed(group: Sequence[str]) -> bool:
    """Whether --class_names can keep similar names apart: its lines are stripped, and no two may look the same."""
    return len(set(map(clean_name, group))) == len(group) and all(name == name.strip() for name in group)


def as_one(group: Sequence[str]) -> str:
    """Why two names are one, in words."""
    listed = " and ".join(map(repr, group[:3]))
    if are_numbers(group):
        return f"{listed} are the same number"
    if len(set(map(clean_name, group))) < len(group):
        codes = ", ".join(unicodedata.name(c, hex(ord(c))) for c in sorted(set(group[0]) ^ set(group[1]))[:3])
        return f"the class names {listed} look the same and differ in characters only ({codes or 'their order'})"
    return f"the class names {listed} differ in case or spaces only"


def read_class_names(path: str) -> tuple[str, ...]:
    """Class names in label order: one a line, also as `0:daisy` and `0<TAB>daisy`, or JSON.

    JSON is a list of names, or names by number or numbers by name, as id2label and class_to_idx are, or a dataset's
    manifest.json or a run's config.json.
    """
    what = f"--class_names={path}"
    try:
        text = "" if path.lower().endswith(_NO_LISTS) else Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{what}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    listed = [line.strip() for line in text.split("\n") if line.strip()]  # a line separator is part of a name: refused
    bullets = [line for line in listed if not line.endswith(":")]
    if path.lower().endswith(_NO_LISTS) or (bullets and all(line.startswith("- ") for line in bullets)):  # of YAML
        raise UsageError(f"{what} is no list of names; write the names alone, one a line, in label order, into a .txt")
    if path.lower().endswith(".json") or re.match(r"\s*[\[{]\s*\"", text):
        names = _json_names(text, what)
    elif re.fullmatch(r"""\s*[\[({]\s*(?:\d+\s*:\s*)?["'].*[\])}]\s*""", text, re.DOTALL):
        raise UsageError(f"{what} is a list as Python prints it; write it as JSON, or the names alone, one a line")
    else:
        names = _without_numbers(_unquoted(listed), r"\s*[:\t]\s*", r"\s*[:\t]\s*")
    if not names:
        raise UsageError(f"{what}: the file is empty")
    if names[0].startswith("# "):
        raise UsageError(f"{what}: the first line, {names[0]!r}, is a comment and would be a class; remove it")
    for name in names:
        _check_characters(name, what, "rewrite it")
    alike: dict[str, str] = {}
    for name in names:
        key = clean_name(name)
        if key in alike:
            again = f"{name!r} listed twice" if alike[key] == name else as_one([alike[key], name])
            raise UsageError(f"{what}: {again}; list each class once, and rename what only looks like it")
        alike[key] = name
    return tuple(names)


def refuse_gaps(lines: Sequence[str], what: str) -> None:
    """Refuse a list with an empty entry before a name, where places are labels: nobody can tell whether it counts."""
    names = [place for place, line in enumerate(lines, 1) if line.strip()]
    if gap := next((place for number, place in enumerate(names, 1) if place > number), 0):
        raise UsageError(
            f"{what}: name {gap - 1} of the list is empty, but places in it are labels; remove it, or name that class"
        )


def _json_names(text: str, what: str) -> list[str]:
    try:
        names = parse_json(text)
        if isinstance(names, dict) and isinstance(names.get("labels"), list):  # a manifest.json, or a run's config.json
            names = names["labels"]
        if isinstance(names, dict):
            by_number = names_by_number(names)
            names = [by_number[number] for number in range(len(by_number))]
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            refuse_gaps(names, what)
            return [name.strip() for name in names if name.strip()]
    except (ValueError, LookupError, RecursionError):
        pass
    raise UsageError(
        f"{what} is no JSON of class names, a list of them or a number of 0 or more for each; write the names alone, "
        "one a line, in label order, into a .txt"
    )


def names_by_number(content: Mapping[str, Any]) -> dict[int, str]:
    """Classes by number, of JSON as id2label, class_to_idx and imagenet_class_index.json are.

    Raises:
      ValueError: it is another one, has a number twice, or one that is not whole.
    """
    try:
        content = content.get("id2label", content)
        pairs = [(key, value) if key.isdecimal() else (value, key) for key, value in content.items()]
        by_number = {_whole(number): name[0] if isinstance(name, list) else name for number, name in pairs}
    except (TypeError, LookupError, AttributeError):
        raise ValueError("no name for each number") from None
    if len(by_number) < len(pairs) or not all(isinstance(name, str) for name in by_number.values()):
        raise ValueError("no name for each number")
    return by_number


def _whole(value: object) -> int:
    """A number as JSON has it, also as text. Raises ValueError for true, 0.5 and Infinity, which `int` takes or not."""
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is int or (isinstance(value, str) and value.isdecimal()):
        return int(value)
    raise ValueError(f"{value!r} is no whole number")


def _unquoted(lines: list[str]) -> list[str]:
    """Lines of which each is in quotation marks, as programs write text, without them; other lines as they are."""
    found = [re.fullmatch(r"""(["'])(.*\S.*)\1,?""", line) for line in lines]
    return [line[2].strip() for line in found if line] if all(found) else lines


def _without_numbers(lines: Sequence[str], after: str, before: str, first: int = 0) -> list[str]:
    """The names of lines NUMBER `after` NAME or NAME `before` NUMBER, by number from `first` on; others as they are.

    No line has a number after its name where `before` is "".
    """
    patterns = [rf"(?P<number>\d{{1,9}}){after}(?P<name>\S.*)", rf"(?P<name>\S.*?){before}(?P<number>\d{{1,9}})"]
    for pattern in patterns[: 2 if before else 1]:
        pairs = [re.fullmatch(pattern, line) for line in lines]
        by_number = {int(pair["number"]) - first: pair["name"] for pair in pairs if pair}
        if sorted(by_number) == list(range(len(lines))) and len(set(by_number.values())) == len(lines):
            return [by_number[number] for number in range(len(lines))]
    return list(lines)


def listed_by_position(names: Sequence[str], what: str, first: int = 0, hint: str = "") -> tuple[str, ...]:
    """Names whose places in a list are the labels: without the numbers that stand before or after them.

    Args:
      names: as `read_class_names` gives them.
      what: the flag, for messages.
      first: the label that is stored for the first name.
      hint: another remedy.

    Raises:
      UsageError: the lines are numbered, and from another number on, or begin with what seems to be a heading.
    """
    heading = len(names) > 2 and not names[0][0].isdecimal()
    words = set(re.split(r"\W+", " ".join(names[:1]).lower()))
    for lines in (names, names[1:])[: 1 + heading]:
        # x-1, Type 1 and rose 0 are three classes.
        before = BEFORE_NUMBER if lines is names or words & {*HEADINGS, "id", "index", "idx", "number"} else ""
        for start in (0, 1):
            if (bare := _without_numbers(lines, AFTER_NUMBER, before, start)) == list(lines):
                continue
            if start == first:
                return tuple(bare)
            raise UsageError(
                f"{what}: its lines are numbered from {start}, as in {shorten_list(map(repr, lines), 2)}, but labels "
                f"are counted from {first}; write lines 'NUMBER NAME', numbered from {first} on{hint}"
            )
    if len(names) > 1 and names[0].lower().rstrip(":") in HEADINGS:
        raise UsageError(
            f"{what}: its first name, {names[0]!r}, seems to be a heading and would be label {first}; remove it, "
            f"or, if it is a class, write lines 'NUMBER NAME', numbered from {first} on"
        )
    return tuple(names)


# ----------------------------------------------------------------------------------------------- order


@dataclass(frozen=True, eq=False)
class LabelOrder:
    """The classes in label order, and what became of the labels that were found.

    Attributes:
      names: in label order.
      relabel: int32, for each found label its number in `names`.
      notes: what a person should know, a line each.
    """

    names: tuple[str, ...]
    relabel: np.ndarray
    notes: tuple[str, ...] = ()


def order_labels(
    found: Sequence[str],
    options: LabelOptions,
    what: str,
    *,
    listed: bool = False,
    places: Mapping[str, str] | None = None,
) -> LabelOrder:
    """Number the labels that a source has: numbers by their value, anything else as text, as Keras and torchvision do.

    Args:
      found: the different labels, as text.
      options: what is known of the classes; `names` decide the order where they are given.
      what: the source, for messages, e.g. `--source=photos`.
      listed: `found` is a list of classes that somebody made, in label order, as TFDS's is.
      places: of a label that is in some splits only, words that say so.

    Raises:
      UsageError: a label is no name of a class, or two names are as good as one.
    """
    wanted = dict.fromkeys(options.names)
    if options.kind == "index":
        _check_thousands(found, what)
        return _by_index(found, options, what)
    if not listed and not options.kind:
        _check_thousands(
            [name for name in found if name not in wanted], what, ", or, if such are names, list all in --class_names"
        )
    for name in found:
        if listed:
            _check_characters(name, what, "rename it")
        elif name not in wanted:
            _check_label(name, found, what)
    chosen = _merged(found, options, what, places or {}, can_list=not (listed and options.open_ended))
    used = dict.fromkeys(chosen)
    more: tuple[str, ...] = ()
    if wanted:
        ordered = list(wanted)
        unknown = _in_order(set(used) - set(wanted), options)
        if options.open_ended and (kinds := _other_kinds(used, wanted)):
            added, before = shorten_list(used, 3), shorten_list(wanted, 3)
            told = f"{what}: its classes ({added}) are {kinds[0]}, those before ({before}) are {kinds[1]}"
            if not listed:  # what is added to a dataset stays there
                positions = "if they are positions among those, use --label_kind=index, " * (kinds[0] == "numbers")
                raise UsageError(
                    f"{told}; {positions}if they are classes, list all in --class_names, those before first"
                )
            more = (
                f"{told}; if the numbers stand for the names, convert them again with --label_kind=index and "
                "--class_names",
            )
        if options.open_ended:
            ordered += unknown
        elif unknown:
            hint = "; if they are positions in it, use --label_kind=index" if are_numbers(unknown) else ""
            if used.keys().isdisjoint(wanted) and not hint:
                raise UsageError(
                    f"{what}: its classes ({shorten_list(unknown, 3)}) are none of those that --class_names lists "
                    f"({shorten_list(ordered, 3)}); write one name a line there, as the source has it"
                )
            raise UsageError(
                f"--class_names does not list {shorten_list(unknown)}; add the names or remove the images{hint}"
            )
    elif listed:
        ordered = list(used)
    else:
        ordered = _in_order(used, options)
    numbers = {name: number for number, name in enumerate(ordered)}
    relabel = np.array([numbers[name] for name in chosen], np.int32)
    notes = _merge_notes(found, chosen) + lookalike_notes(ordered, wanted) + more
    if not wanted and not listed:
        notes += _mark_notes(ordered, options)
    return LabelOrder(tuple(ordered), relabel, notes)


def _other_kinds(used: Mapping[str, None], wanted: Mapping[str, None]) -> tuple[str, str] | None:
    """What labels and classes are if one are numbers and the other names: the numbers may be positions among those."""
    for numbers, names, kinds in ((used, wanted, ("numbers", "names")), (wanted, used, ("names", "numbers"))):
        if numbers and names and are_numbers(numbers) and not any(map(_NUMBER.fullmatch, names)):
            return kinds
    return None


def _in_order(names: Iterable[str], options: LabelOptions) -> list[str]:
    """Numbers by their value, anything else as text."""
    return sorted(names, key=number) if options.kind != "name" and are_numbers(names) else sorted(names)


def _check_thousands(found: Sequence[str], what: str, remedy: str = "") -> None:
    """Refuse numbers of which some have a mark before each three digits: 1.000 is a thousand, or 1."""
    marked = [name for name in found if _THOUSANDS.fullmatch(name)]
    others = set(found).difference(marked)
    if marked and all(map(_PLAIN.fullmatch, others)) and (others or not are_numbers(marked)):
        raise UsageError(
            f"{what}: {marked[0]!r} may be {re.sub('[^0-9]', '', marked[0])} or less; write numbers without a mark "
            f"between their digits{remedy}"
        )


def _check_label(name: str, found: Sequence[str], what: str) -> None:
    """Refuse a label that is none, or several."""
    listed = "; if it is a class, list all classes in --class_names" if can_be_listed([name]) and name else ""
    if name.strip() in NOTHING:
        raise UsageError(f"{what}: the label {name!r} is no class but a missing value; give each image a label{listed}")
    _check_characters(name, what, "rename it")
    if split_rank(name) is not None:
        raise UsageError(
            f"{what}: {name!r} is the name of a split and no class; give the source whose folders are the splits "
            f"(SOURCE/train/CLASS/image.jpg), or name splits in a table's column split{listed}"
        )
    several = ([part.strip() for part in _BETWEEN.split(name)], name.split())
    if _LIST.fullmatch(name.strip()) or any(len(parts) > 1 and set(parts) <= set(found) for parts in several):
        raise UsageError(
            f"{what}: the label {name!r} is a list; shardline takes one label an image, so choose one of them{listed}"
        )


def _merged(
    found: Sequence[str], options: LabelOptions, what: str, places: Mapping[str, str], *, can_list: bool
) -> list[str]:
    """For each found label the name of its class; `can_list`: whether the command has --class_names."""
    names = dict.fromkeys(options.names)
    alike = similar_names([*found, *names], as_numbers=options.kind != "name")
    group_of = {name: group for group in alike for name in group}
    chosen = []
    for name in found:
        group = group_of.get(name, [name]) if name not in names else [name]
        if len(group) > 1 and not options.merge_similar:
            where = "".join(f" ({places[member]})" for member in group if member in places)
            apart = ", or keep them apart by listing all classes in --class_names"
            apart *= can_list and can_be_listed(group)
            raise UsageError(
                f"{what}: {as_one(group)}{where}; rename one, or make one class of them with --merge_similar_labels"
                + apart
            )
        listed = [member for member in group if member in names]
        chosen.append((listed or [min(map(clean_name, group))])[0] if len(group) > 1 else name)
    if not names and options.kind != "name" and all(map(_is_whole, chosen)):
        return [name if _PLAIN.fullmatch(name) else str(int(number(name))) for name in chosen]
    return chosen


def _merge_notes(found: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
    merged: dict[str, list[str]] = {}
    for before, after in zip(found, chosen, strict=True):
        merged.setdefault(after, []).append(repr(before))
    several = [f"{' and '.join(sorted(names))} as {name!r}" for name, names in merged.items() if len(names) > 1]
    return (f"merged similar labels: {shorten_list(sorted(several))}",) if several else ()


def _mark_notes(names: Sequence[str], options: LabelOptions) -> tuple[str, ...]:
    """On usual marks of no label, which may be classes as well, and on numbers that are no classes'."""
    notes = []
    marks = [repr(name) for name in names if name.casefold() in _MARKS] if len(names) > 1 else []
    if names[:1] == ["-1"] and len(names) > 2 and all(map(_is_whole, names)) and number(names[1]) == 0:
        marks = ["-1"]
    if marks:
        be = "are classes" if len(marks) > 1 else "is a class"
        notes.append(
            f"{shorten_list(marks)} {be} like the others; if {'they mark' if len(marks) > 1 else 'it marks'} images "
            "without a label, leave those out"
        )
    fractions = [name for name in names if not _is_whole(name)]
    if fractions and options.kind != "name" and are_numbers(names):
        notes.append(f"the labels are fractions ({shorten_list(fractions, 3)}), and each different one is a class")
    return tuple(notes)


def _by_index(found: Sequence[str], options: LabelOptions, what: str) -> LabelOrder:
    """Labels that are positions in --class_names, or the classes' numbers themselves."""
    wrong = [name for name in found if not _is_whole(name) or number(name) < 0]
    if wrong:
        raise UsageError(f"{what}: --label_kind=index, but {shorten_list(wrong, 3)} is no number of 0 or more")
    numbers = [int(number(name)) for name in found]
    # Those of a dataset that is added to are what they are, also where they end in numbers.
    names = options.names if options.open_ended else listed_by_position(options.names, "--class_names")
    count = len(names) or max(numbers) + 1
    if names and max(numbers) >= count:
        raise UsageError(
            f"{what}: the labels run to {max(numbers):,}, but --class_names lists {count:,} names (0 to {count - 1:,})"
            + "; if they count from 1, subtract 1 from each" * (min(numbers) > 0 and max(numbers) == count)
        )
    check_spread(len(set(numbers)), max(numbers), what)
    low = 0 if options.open_ended or max(numbers) + 1 == len(names) else min(numbers)
    note = f"no label is 0, the lowest is {low}; if they count from {low}, subtract {low} from each"
    return LabelOrder(names or tuple(map(str, range(count))), np.array(numbers, np.int32), (note,) * (low > 0))


def check_spread(different: int, highest: int, what: str) -> None:
    """Refuse numbers that are no class numbers: each number up to the highest would be a class.

    Raises:
      UsageError: there are far fewer labels than the highest says.
    """
    if highest >= 1000 and highest + 1 > 10 * different:
        raise UsageError(
            f"{what}: labels run to {highest:,} but only {different:,} differ; they are no class numbers: name "
            "another column or feature, or number the classes from 0"
        )


# ------------------------------------------------------------------------------------------------ splits


def check_split(name: str, known: Iterable[str], what: str, options: LabelOptions) -> str:
    """The split that a name means: itself, or one known already that is as good as it.

    Raises:
      UsageError: it differs from a known split in case or spaces only.
    """
    other = similar_split(name, known)
    if other and not options.merge_similar:
        raise UsageError(
            f"{what}: the splits {other!r} and {name!r} differ in case or spaces only; write them alike, or make one "
            "split of them with --merge_similar_labels"
        )
    return other or name


def similar_split(name: str, known: Iterable[str]) -> str:
    """A known split whose name differs in case or spaces only; "" for none."""
    return next((split for split in known if split != name and similarity_key(split) == similarity_key(name)), "")


def split_notes(names: Iterable[str]) -> list[str]:
    """On splits whose names mean the same, as train and training do."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        if found := _SPLIT.fullmatch(name.strip().lower()):
            kinds.setdefault(found[1][:3], []).append(name)
    return [
        f"the splits {' and '.join(kind)} are of one kind by their names; if they are one split, call them alike"
        for kind in kinds.values()
        if len(kind) > 1
    ]


def label_places(builder: SourcesBuilder, labels: Mapping[str, int], splits: Sequence[str]) -> dict[str, str]:
    """For each label that is not in all splits, words that say so."""
    label = np.array(builder.label, np.int64)
    if len(splits) < 2 or not len(labels):
        return {}
    pairs = (np.array(builder.split, np.int64) * len(labels) + label)[label >= 0]
    counts = np.bincount(pairs, minlength=len(splits) * len(labels)).reshape(len(splits), len(labels))
    by_split = {split: row.tolist() for split, row in zip(splits, counts, strict=True) if row.any()}
    places: dict[str, str] = {}
    for number, name in enumerate(labels):
        if gaps := class_gaps([name], {split: [row[number]] for split, row in by_split.items()}):
            places[name] = "; ".join(gaps)
    return places
