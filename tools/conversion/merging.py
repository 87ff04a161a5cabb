"""Join converted datasets into one: their shards, tables of sources and classes under one manifest. No TensorFlow.

A shard is a second name of the input's file, or a copy on another disk, unless its classes get other numbers: then its
records are written anew, with the same images. Nothing is taken for a dataset before the manifest is there.

Records of adopted datasets stay as they are, so their classes have to have the same numbers, or to be stored by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardline.pipeline.class_gaps import class_gaps
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.example import encode_example, parse_example
from shardline.pipeline.files import atomic_writer, file_sha256, own_directory
from shardline.pipeline.manifest import (
    FILE_NAME,
    NO_LABEL,
    Features,
    Ledger,
    Manifest,
    Shard,
    Split,
    check_files,
    index_path,
    load_index,
    shard_name,
    shard_path,
    write_index,
)
from shardline.pipeline.progress import log, progress
from shardline.pipeline.sources_table import SOURCES, iterate_sources, read_rows, sources_writer
from shardline.pipeline.split_index import file_name, index_writer
from shardline.pipeline.tfrecord import frame_record, unframe_record
from shardline.pipeline.wording import count
from shardline.tools.conversion import resume
from shardline.tools.conversion.append import earlier_images
from shardline.tools.conversion.config import name_of
from shardline.tools.conversion.labels import LabelOptions, order_labels, similar_split, split_notes
from shardline.tools.conversion.output import NOTE, WORK, Output, link_or_copy
from shardline.tools.conversion.tfds_metadata import write_tfds_metadata

# How images were made, which all have to share: training, prediction and export do the same to any image.
_IMAGE_OPTIONS = ("upscale", "trim_borders", "depth_range")
_OF_A_DATASET = ("splits", "seed")  # options that a later --append goes on with, where all agree


@dataclass(frozen=True, eq=False)
class _Input:
    """A dataset to join.

    Attributes:
      relabel: int32, for each of its labels the number in the result; -1 for -1, which comes last.
      first_record: of each split, the number that its first record gets.
    """

    directory: Path
    manifest: Manifest
    relabel: np.ndarray
    first_record: dict[str, int]

    @property
    def keeps_records(self) -> bool:
        """Whether its records stay what they are: its labels keep their numbers, or the records name them."""
        keeps_labels = np.array_equal(self.relabel[:-1], np.arange(len(self.relabel) - 1))
        return keeps_labels or self.manifest.features.label_kind == "name"


def merge(
    directories: Sequence[str], output: str, *, name: str = "", merge_similar: bool = False, refuse_duplicates: bool
) -> Manifest:
    """Join the datasets in `directories`, in this order. See `shardline.tools.merge.merge`."""
    with contextlib.ExitStack() as stack:
        manifests = [stack.enter_context(Manifest.opened(directory)) for directory in directories]
        for directory, manifest in zip(directories, manifests, strict=True):
            _refuse_misfit(directories[0], manifests[0], directory, manifest)
            for split in manifest.splits:
                check_files(manifest, directory, split)
        for (one, first), (other, second) in combinations(zip(directories, manifests, strict=True), 2):
            if first.generation_of(second.digest) or second.generation_of(first.digest):
                raise UsageError(
                    f"--data={other}: its images lie in {one}, too, as the same dataset or one that grew from it, and "
                    "would be there twice; name one of the two"
                )
        labels, inputs = _united(directories, manifests, merge_similar)
        for directory, each in zip(directories, inputs, strict=True):
            _refuse_rewriting(directory, each, labels)
        whole = _joined(inputs, labels, name_of(name, manifests[0].name) if name else manifests[0].name)
        stack.enter_context(own_directory(output, "--output"))
        if finished := _finished(Path(output), whole):
            log(f"{output} is finished already: the same datasets; nothing to do")
            return finished
        _note_duplicates(inputs, tuple(whole.splits), refuse=refuse_duplicates)
        return _write(Path(output), inputs, whole)


def _refuse_misfit(first: str, model: Manifest, directory: str, manifest: Manifest) -> None:
    """Raise UsageError where the records of a dataset were not made as those of the first one."""
    what = f"--data={directory}"
    if manifest.adopted != model.adopted:
        made = {True: "adopted", False: "converted"}
        raise UsageError(
            f"{what} was {made[manifest.adopted]}, {first} {made[model.adopted]}; convert the images of both together"
        )
    features = [(field.name, getattr(manifest.features, field.name), getattr(model.features, field.name))
                for field in fields(Features) if field.name != "names"]  # fmt: skip
    if differing := [f"{name} {there!r} there, {here!r} in {first}" for name, there, here in features if there != here]:
        raise UsageError(f"{what}: its records have other features ({'; '.join(differing)}); write one of them again")
    ours = {field.name: getattr(manifest.image, field.name) for field in fields(manifest.image)}
    theirs = {field.name: getattr(model.image, field.name) for field in fields(model.image)}
    for size in ("max_height", "max_width", *(["encoding"] if manifest.adopted else [])):
        del ours[size], theirs[size]
    ours |= {option: manifest.options.get(option) for option in _IMAGE_OPTIONS}
    theirs |= {option: model.options.get(option) for option in _IMAGE_OPTIONS}
    differing = [f"{name} {ours[name]} there, {theirs[name]} in {first}" for name in ours if ours[name] != theirs[name]]
    if differing:
        raise UsageError(
            f"{what}: its images were made in another way ({'; '.join(differing)}); convert one of them again, alike"
        )
    for name, split in manifest.splits.items():
        if name in model.splits and model.splits[name].unlabelled != split.unlabelled:
            raise UsageError(f"{what}: split {name} has labels in one dataset and none in another; convert one again")


def _refuse_rewriting(directory: str, each: _Input, labels: tuple[str, ...]) -> None:
    """Raise UsageError where records of an adopted dataset would have to be other ones."""
    features = each.manifest.features
    known = set(each.manifest.labels) <= set(labels)
    wide = features.label_kind == "onehot" and len(each.manifest.labels) < len(labels)
    if each.manifest.adopted and (not each.keeps_records or not known or wide):
        raise UsageError(
            f"--data={directory} was adopted with other classes than the rest, and its records are not "
            "rewritten; adopt all with the same --class_names"
        )


def _united(
    directories: Sequence[str], manifests: Sequence[Manifest], merge_similar: bool
) -> tuple[tuple[str, ...], list[_Input]]:
    """The classes of all, by name, and the inputs with their numbers in them."""
    labels: tuple[str, ...] = ()
    inputs: list[_Input] = []
    records: dict[str, int] = {}
    for directory, manifest in zip(directories, manifests, strict=True):
        order = order_labels(
            manifest.labels,
            LabelOptions(labels or manifest.labels, merge_similar=merge_similar, open_ended=True),
            f"--data={directory}",
            listed=True,
        )
        labels = order.names
        for note in order.notes:
            log(f"note: {note}")
        inputs.append(_Input(Path(directory), manifest, np.append(order.relabel, NO_LABEL), dict(records)))
        for name, split in manifest.splits.items():
            if other := similar_split(name, records):
                raise UsageError(
                    f"--data={directory}: the splits {other!r} of another dataset and {name!r} differ in case only; "
                    "convert one again with its splits called alike"
                )
            records[name] = records.get(name, 0) + split.records
    for note in split_notes(records):
        log(f"note: {note}")
    return labels, inputs


def _joined(inputs: Sequence[_Input], labels: tuple[str, ...], name: str) -> Manifest:
    """The result, but for what its shards' bytes will be."""
    manifests = [each.manifest for each in inputs]
    splits: dict[str, Split] = {}
    class_counts: dict[str, tuple[int, ...]] = {}
    for split in dict.fromkeys(split for manifest in manifests for split in manifest.splits):
        parts = [each for each in inputs if split in each.manifest.splits]
        shards = [shard for each in parts for shard in each.manifest.splits[split].shards]
        named = (replace(shard, file=shard_name(name, split, n, len(shards))) for n, shard in enumerate(shards))
        splits[split] = Split(split, tuple(named), parts[0].manifest.splits[split].unlabelled)
        counts = np.zeros(len(labels), np.int64)
        for each in parts:
            np.add.at(
                counts, each.relabel[:-1][: len(each.manifest.class_counts[split])], each.manifest.class_counts[split]
            )
        class_counts[split] = () if splits[split].unlabelled else tuple(counts.tolist())
    ledgers = [vars(manifest.ledger) for manifest in manifests]
    images = [manifest.image for manifest in manifests]
    return Manifest(
        name=name,
        labels=labels,
        features=replace(manifests[0].features, names=labels if manifests[0].features.names else ()),
        words=_words(inputs, len(labels)),
        splits=splits,
        ledger=Ledger(**{field: sum(ledger[field] for ledger in ledgers) for field in ledgers[0]}),
        image=replace(
            images[0],
            encoding=images[0].encoding if len({image.encoding for image in images}) == 1 else "any",
            max_height=max(image.max_height for image in images),
            max_width=max(image.max_width for image in images),
        ),
        class_counts=class_counts,
        options={**_options(manifests), "name": name, "merged": [manifest.digest for manifest in manifests]},
        versions={
            tool: ", ".join(sorted({manifest.versions.get(tool, "unknown") for manifest in manifests}))
            for tool in dict.fromkeys(tool for manifest in manifests for tool in manifest.versions)
        },
    )


def _words(inputs: Sequence[_Input], classes: int) -> tuple[str, ...]:
    words = [""] * classes
    for each in inputs:
        for label, word in zip(each.relabel.tolist(), each.manifest.words, strict=False):
            words[label] = words[label] or word
    return tuple(words) if any(words) else ()


def _options(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """The first dataset's; of those that a later --append goes on with, none that the others do not share."""
    options = {name: value for name, value in manifests[0].options.items() if name not in ("request", "merged")}
    for name in _OF_A_DATASET:
        if any(manifest.options.get(name) != options.get(name) for manifest in manifests):
            log(
                f"note: the datasets were made with different --{name}; --append to the result divides by folders alone"
            )
            options |= {"splits": {}}
    return options


def _finished(output: Path, whole: Manifest) -> Manifest | None:
    """What an earlier merge of the same datasets left in the output; it is emptied of one that was interrupted."""
    if (output / FILE_NAME).exists():
        manifest = Manifest.load(output)
        if (manifest.options.get("merged"), manifest.name) != (whole.options["merged"], whole.name):
            raise UsageError(f"--output={output} holds another dataset, {manifest.name!r}; name another folder")
        Output(str(output), output).check(manifest, verify=False)
        return manifest
    if (output / WORK / NOTE).exists():
        raise UsageError(f"--output={output} holds an interrupted conversion; continue it, or name another folder")
    resume.remove_dataset(Output(str(output), output))
    if foreign := [entry.name for entry in os.scandir(output) if entry.name[0] != "."]:
        raise UsageError(f"--output={output} is not empty ({', '.join(sorted(foreign)[:3])}); name a new folder")
    return None


def _note_duplicates(inputs: Sequence[_Input], splits: tuple[str, ...], *, refuse: bool) -> None:
    """Say which images of a dataset have the pixels of one of those before it, and whether in another split."""
    if inputs[0].manifest.adopted:
        if refuse:
            raise UsageError("--duplicates=fail: adopted datasets do not tell the pixels of their images; leave it out")
        return
    held = [earlier_images(each.manifest, each.directory, splits) for each in inputs] if len(inputs) > 1 else []
    equal = across = 0
    example = ""
    for number, ours in enumerate(held):
        seen = np.zeros(len(ours.pixels), bool)
        for other, theirs in enumerate(held[:number]):
            at = theirs.find(ours.pixels)
            new = np.flatnonzero((at >= 0) & ~seen)
            seen[new] = True
            equal += len(new)
            across += int((theirs.splits[at[new]] != ours.splits[new]).sum())
            if len(new) and not example:
                one, two = (
                    read_rows(side.directory, side.rows[[row]], ["path"])["path"][0].as_py()
                    for side, row in ((ours, new[0]), (theirs, at[new[0]]))
                )
                example = f"{one} of {inputs[number].directory} and {two} of {inputs[other].directory}"
    if not equal:
        return
    have = "has" if equal == 1 else "have"
    told = f"{count(equal, 'image')} {have} the pixels of one in another dataset, e.g. {example}"
    if refuse:
        raise Failure(f"--duplicates=fail: {told}; convert one of them again without these (--exclude)")
    log(
        f"note: {told}" + (f"; {across:,} in another split, where an evaluation sees training images" if across else "")
    )


# -------------------------------------------------------------------------------------------------- writing


def _write(output: Path, inputs: Sequence[_Input], whole: Manifest) -> Manifest:
    (output / WORK).mkdir(exist_ok=True)
    names = [shard.file for split in whole.splits.values() for shard in split.shards]
    resume.note_placing(
        Output(str(output), output), whole.name, [*names, *(file_name(whole.name, split) for split in whole.splits)]
    )
    splits = {name: list(split.shards) for name, split in whole.splits.items()}
    total = sum(map(len, splits.values()))
    sizes: set[tuple[int, int]] = set()
    with progress(total=total, desc="merge", unit="shard") as bar, contextlib.ExitStack() as stack:
        write = add_to_index = None
        if not whole.adopted:  # which have neither
            write = stack.enter_context(sources_writer(output))
            add_to_index = stack.enter_context(index_writer(output, whole.name))
        first_shard = dict.fromkeys(splits, 0)
        for each in inputs:
            placed_as: dict[str, str] = {}  # of its shards, in the result
            for split, part in each.manifest.splits.items():
                for shard in part.shards:
                    number = first_shard[split]
                    target = output / splits[split][number].file
                    placed = _place(each, shard, target)
                    splits[split][number] = placed
                    if add_to_index:
                        add_to_index(split, placed, load_index(index_path(target), shard.records)[:, 1])
                    placed_as[shard.file] = target.name
                    first_shard[split] += 1
                    bar.update()
            if not write:
                continue
            for rows in _rows(each, output, placed_as, whole):
                stored = rows.filter(pc.not_equal(rows["shard"], ""))
                if len(sizes) < 2:
                    sizes.update(zip(stored["height"].to_pylist(), stored["width"].to_pylist(), strict=True))
                write(rows)
    manifest = replace(
        whole, splits={name: replace(split, shards=tuple(splits[name])) for name, split in whole.splits.items()}
    )
    for gap in class_gaps(manifest.labels, manifest.class_counts):
        log(f"note: {gap}")
    if not whole.adopted:
        write_tfds_metadata(output, manifest, next(iter(sizes)) if len(sizes) == 1 else None)
    manifest.save(output)
    Output(str(output), output).remove_work()
    return manifest


def _place(each: _Input, shard: Shard, target: Path) -> Shard:
    """A shard of an input under its name in the result, with its index."""
    source = shard_path(each.directory, shard)
    if each.keeps_records:
        link_or_copy(source, target)
        link_or_copy(index_path(source), index_path(target))
        if not os.path.samefile(source, target) and file_sha256(target) != shard.sha256:
            raise Failure(f"{source} is not what its manifest says; run shardline-verify on it")
        return replace(shard, file=target.name)
    digest, sizes = hashlib.sha256(), []
    with open(source, "rb") as file, atomic_writer(target) as out:
        for offset, size in load_index(index_path(source), shard.records).tolist():
            file.seek(offset)
            try:
                example = parse_example(unframe_record(file.read(size)), each.manifest.features)
            except ValueError as error:
                raise Failure(f"{source} @ {offset}: {error}; run shardline-verify on it") from None
            framed = frame_record(
                encode_example(
                    bytes(example.image),
                    int(each.relabel[example.label]),
                    example.filename,
                    example.height,
                    example.width,
                )
            )
            out.write(framed)
            digest.update(framed)
            sizes.append(len(framed))
    ends = np.cumsum(sizes)
    write_index(index_path(target), np.column_stack((ends - sizes, sizes)))
    return Shard(target.name, shard.records, int(ends[-1]), digest.hexdigest())


def _rows(each: _Input, output: Path, names: dict[str, str], whole: Manifest) -> Iterator[pa.Table]:
    """An input's table of sources, as it is in the result."""
    labels = np.array([*whole.labels, ""], object)
    old, new = pa.array([*names, ""], pa.string()), pa.array([*names.values(), ""], pa.string())
    places = (
        {} if each.keeps_records else {split: _places(each, split, output, names) for split in each.manifest.splits}
    )
    first = np.array([each.first_record.get(split, 0) for split in each.manifest.splits])
    known = pa.array(list(each.manifest.splits), pa.string())
    for batch in iterate_sources(each.directory, SOURCES.names):
        record, split = batch["record"].to_numpy(), pc.fill_null(pc.index_in(batch["split"], known), 0).to_numpy()
        label = each.relabel[batch["label"].to_numpy()]
        columns = {
            "label": label,
            "label_name": labels[label],
            "shard": new.take(pc.index_in(batch["shard"], old)),
            "record": np.where(record >= 0, record + first[split], -1),
        }
        if places:
            columns |= {"offset": batch["offset"].to_numpy().copy(), "size": batch["size"].to_numpy().copy()}
            for number, name in enumerate(each.manifest.splits):
                there = (split == number) & (record >= 0)
                columns["offset"][there], columns["size"][there] = places[name][record[there]].T
        table = pa.Table.from_batches([batch])
        for name, column in columns.items():
            at = table.column_names.index(name)
            table = table.set_column(at, name, pa.array(column, SOURCES.field(name).type))
        yield table


def _places(each: _Input, split: str, output: Path, names: dict[str, str]) -> np.ndarray:
    """int64 [records, 2]: offset and size of an input's records in the result's shards."""
    shards = each.manifest.splits[split].shards
    return np.concatenate([load_index(index_path(output / names[shard.file]), shard.records) for shard in shards])
