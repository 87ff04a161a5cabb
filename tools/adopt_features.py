"""Which features of foreign records hold the image and the label, found in the first record of each split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import UsageError
from shardline.pipeline.example import feature_kinds, feature_values
from shardline.pipeline.manifest import Features
from shardline.pipeline.sniff import sniff
from shardline.pipeline.text import display
from shardline.pipeline.tfrecord import index_records, read_framed, unframe_record
from shardline.pipeline.wording import shorten_list
from shardline.tools.shard_files import exclusion

IMAGES = ("image", "image/encoded", "image_raw", "encoded", "jpeg", "png", "data")
LABELS = ("label", "image/class/label", "image/label", "class", "image/class", "labels", "target")
FILENAMES = ("image/filename", "file_name", "filename", "image/source_id", "image_name", "id")
HEIGHTS, WIDTHS = ("image/height", "height"), ("image/width", "width")
_SHAPE = re.compile("shape|dims?$|dimensions", re.IGNORECASE)
_OTHER_ORDERS = (b"bgr", b"chw", b"nchw", b"channels_first", b"channel_first")
_TRIED = 10  # records of a file, for one that is sound


@dataclass(frozen=True)
class FeatureOptions:
    """What a person says of the records.

    Attributes:
      image, label: names of features; "": the usual ones.
      label_kind: index, name or onehot; "": an integer.
      unlabelled: splits without labels.
    """

    image: str = ""
    label: str = ""
    label_kind: str = ""
    unlabelled: tuple[str, ...] = ()


@dataclass(frozen=True)
class _First:
    """The first sound record of a split."""

    split: str
    files: Sequence[str]  # of the split
    file: str
    payload: bytes
    kinds: Mapping[str, str]  # of its features


def find_features(directory: Path, splits: Mapping[str, Sequence[str]], wanted: FeatureOptions) -> Features:
    """The features' names and what the label is. Raises UsageError that lists what there is, or the flag that helps."""
    firsts = [first for split, files in splits.items() if (first := _first_record(directory, split, files))]
    if not firsts:
        raise UsageError(f"--data={directory}: all files are empty")
    labelled = [first for first in firsts if first.split not in wanted.unlabelled]
    usual = sorted(IMAGES, key=lambda name: not all(_holds_image(first, name) for first in firsts))
    image = _choose("image_feature", wanted.image, usual, ("bytes",), firsts)
    _refuse_other_pixels(directory, image, firsts)
    label, kind = _find_label(directory, labelled, wanted) if labelled else ("", "")
    found = {name for first in firsts for name, kind in first.kinds.items() if kind == "int64"}
    texts = {name for first in firsts for name, kind in first.kinds.items() if kind == "bytes"}
    return Features(
        image=image,
        label=label,
        label_kind=kind,
        filename=next((name for name in FILENAMES if name in texts - {image, label}), ""),
        height=next((name for name in HEIGHTS if name in found), ""),
        width=next((name for name in WIDTHS if name in found), ""),
    )


def _first_record(directory: Path, split: str, files: Sequence[str]) -> _First | None:
    """None for a split without records."""
    for file in files:
        try:
            index = index_records(directory / file)
        except ValueError as error:
            raise UsageError(f"{directory / file}: {error}") from None
        fault = None
        for offset, size in index[:_TRIED].tolist():
            try:
                payload = unframe_record(read_framed(directory / file, offset, size))
                kinds = feature_kinds(payload)
                for name in kinds:
                    feature_values(payload, name)  # which are looked at later, and may be damaged as well
                return _First(split, files, file, payload, kinds)
            except ValueError as error:
                fault = fault or error
        if fault:
            raise UsageError(
                f"{directory / file}: its first record is damaged or no tf.train.Example ({fault}); leave the file out "
                f"with --exclude={display(file)}, or write it again with a tf.train.Example for each image"
            )
    return None


def _choose(flag: str, wanted: str, usual: Sequence[str], kinds: Sequence[str], firsts: Sequence[_First]) -> str:
    """A feature that the first record of each split has."""
    fitting = [name for name in firsts[0].kinds if all(first.kinds.get(name) in kinds for first in firsts)]
    chosen = next((name for name in ([wanted] if wanted else usual) if name in fitting), "")
    if not chosen:
        what = f"--{flag}={wanted}: no such feature of the right kind" if wanted else f"--{flag} is needed"
        without = next((first for first in firsts if not set(first.kinds) & {wanted, *usual}), firsts[0])
        raise UsageError(f"{what}; the first record has {_listed(without)}, in {display(without.file)}")
    if others := [name for name in usual if name in fitting and name != chosen and not wanted]:
        command_line.log(f"note: {flag} is {chosen!r}; there is {shorten_list(others)} too, which --{flag} can name")
    return chosen


def _holds_image(first: _First, name: str) -> bool:
    """Whether a feature begins as a file does that is known here; raw pixels and paths do not."""
    values = feature_values(first.payload, name)
    return bool(values) and isinstance(values[0], bytes) and bool(sniff(values[0]))


def _refuse_other_pixels(directory: Path, image: str, firsts: Sequence[_First]) -> None:
    """Raise UsageError where a feature says that raw pixels are not height x width x 3, RGB: so they would be read."""
    for first in firsts:
        if _holds_image(first, image) or not feature_values(first.payload, image):
            continue
        for name in first.kinds:
            values = feature_values(first.payload, name)
            shape = " x ".join(map(str, values)) if len(values) == 3 and _SHAPE.search(name) else ""
            sides = _sides(first)
            if shape and (values[2] != 3 or (sides[0] and sides != list(values[:2]))):
                told = f"{shape}, height and width {sides[0]} x {sides[1]}" if values[2] == 3 else shape
            elif len(values) == 1 and isinstance(values[0], bytes) and values[0].lower() in _OTHER_ORDERS:
                told = display(values[0])
            else:
                continue
            raise UsageError(
                f"--data={directory}: feature {display(name)!r} says {told} in {display(first.file)}, but raw pixels "
                "are read as height x width x 3, RGB; write the records again so, or name another feature with "
                "--image_feature"
            )


def _sides(first: _First) -> list[int]:
    """Stored height and width, 0 for one that is not."""
    found = [
        next((feature_values(first.payload, name) for name in names if name in first.kinds), ())
        for names in (HEIGHTS, WIDTHS)
    ]
    return [values[0] if len(values) == 1 and isinstance(values[0], int) else 0 for values in found]


def _listed(first: _First) -> str:
    return ", ".join(f"{display(name)} ({kind})" for name, kind in sorted(first.kinds.items())) or "no feature"


# -------------------------------------------------------------------------------------------------- label


def _find_label(directory: Path, firsts: Sequence[_First], wanted: FeatureOptions) -> tuple[str, str]:
    """Name of the label's feature, and the kind that readers need to know."""
    kinds = {"": ("int64",), "index": ("int64", "float", "bytes"), "name": ("bytes",), "onehot": ("int64", "float")}
    usual = [wanted.label] if wanted.label else LABELS
    having = [first for first in firsts if any(first.kinds.get(name, "nothing") != "nothing" for name in usual)]
    if having and (without := [first for first in firsts if first not in having]):
        first = without[0]
        raise UsageError(
            f"--data={directory}: the first record of {display(first.file)} has no label ({_listed(first)}); "
            f"--unlabelled={first.split} adopts split {first.split} for prediction, "
            f"--exclude='{exclusion(first.files)}' leaves it out"
        )
    if not wanted.label_kind:
        _refuse_other_kinds(directory, usual, firsts)
    else:
        _refuse_contradiction(directory, usual, firsts, wanted.label_kind, kinds[wanted.label_kind])
    name = _choose("label_feature", wanted.label, LABELS, kinds[wanted.label_kind], firsts)
    stored = {first.kinds[name] for first in firsts}
    return name, "" if wanted.label_kind in ("", "index") and stored == {"int64"} else wanted.label_kind


def _refuse_contradiction(
    directory: Path, usual: Sequence[str], firsts: Sequence[_First], label_kind: str, kinds: Sequence[str]
) -> None:
    """Raise UsageError where what there is, is of another kind than the person says."""
    held = [(name, first.kinds[name], first.file) for name in usual for first in firsts if name in first.kinds]
    if held and not any(kind in kinds for _, kind, _ in held):
        name, kind, file = held[0]
        raise UsageError(
            f"--label_kind={label_kind}: feature {display(name)!r} holds {kind} in {directory / file}; name another "
            "feature with --label_feature, or leave the flag out"
        )


def _refuse_other_kinds(directory: Path, usual: Sequence[str], firsts: Sequence[_First]) -> None:
    """Raise UsageError where no feature holds one integer, with the flag that would read what there is."""
    reasons = []
    for name in usual:
        told = [(first, _other_kind(name, first)) for first in firsts if name in first.kinds]
        if told and not any(why for _, why in told):
            return
        reasons += [f"in {display(first.file)}, {why}" for first, why in told if why]
    if reasons:
        raise UsageError(f"--data={directory}: {reasons[0]}")


def _other_kind(name: str, first: _First) -> str:
    """What a feature holds instead of one integer, and what to do about it; "" for one integer."""
    values = feature_values(first.payload, name)
    what = f"feature {display(name)!r} holds"
    if not values:
        return f"{what} nothing; name another with --label_feature"
    if isinstance(values[0], bytes):
        return f"{what} text; if that is the class's name, use --label_kind=name, if it is its number, =index"
    if len(values) > 1:
        if sorted(values)[-2:] == [0, 1] and set(values) <= {0, 1}:
            return f"{what} {len(values)} numbers, one of them 1; if its position is the class, use --label_kind=onehot"
        return (
            f"{what} {len(values)} numbers, several labels; shardline takes one label an image: name another feature "
            "with --label_feature"
        )
    if isinstance(values[0], float):
        return f"{what} the fraction {values[0]:g}; if it is the class's number, use --label_kind=index"
    return ""
