"""ImageOptions and ConvertConfig: what to make of each image, and what one conversion is. No OpenCV, no TensorFlow."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from shardline.pipeline import executors
from shardline.pipeline.errors import UsageError
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.options import check_options, narrowed, option

ARCHIVE = r"\.(zip|tar|tgz|tbz2|txz|tar\.gz|tar\.bz2|tar\.xz)$"  # suffixes of archives that are read


def parse_shares(value: str | Mapping[str, float]) -> dict[str, float]:
    """`train=0.9,validation=0.1`, or a mapping, as shares. Raises ValueError unless they are positive and sum to 1."""
    if isinstance(value, str):
        pieces = (piece.partition("=") for piece in value.split(",") if piece.strip())
        pairs = [(name.strip(), share.strip()) for name, _, share in pieces]
    else:
        pairs = [(name, str(share)) for name, share in value.items()]
    shares: dict[str, float] = {}
    for name, text in pairs:
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if not is_split_name(name) or not 0 < share <= 1:
            raise ValueError(f"{name}={text} is not NAME=SHARE with a share above 0; use e.g. train=0.9,validation=0.1")
        if name in shares:
            raise ValueError(f"{name!r} is given twice; give each split one share")
        if other := next((other for other in shares if other.lower() == name.lower()), ""):
            raise ValueError(f"the splits {other!r} and {name!r} differ in case only; call them otherwise")
        shares[name] = share
    if shares and abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"the shares sum to {sum(shares.values()):g}; make them sum to 1")
    return shares


def shares_text(shares: Mapping[str, float]) -> str:
    """Inverse of `parse_shares`."""
    return ",".join(f"{name}={share:g}" for name, share in shares.items())


def is_split_name(name: str) -> bool:
    """Whether TFDS and our file names can carry this split name."""
    return name.isascii() and name.isidentifier()


@dataclass(frozen=True)
class ConvertConfig(ImageOptions):
    """One conversion: `shardline.tools.convert.convert(ConvertConfig(source=…, output=…))`. One field, one flag."""

    GROUPS: ClassVar = ("data", "images", "checks", "shards", "run")
    COMMON: ClassVar = (
        *("source", "output", "splits", "name", "class_names", "label_from", "exclude", "resize", "size", "upscale"),
        *("encoding", "quality", "duplicates", "on_bad_image", "shard_mb", "seed", "workers", "append", "overwrite"),
        "dry_run",
    )

    source: tuple[str, ...] = option(
        (),
        "folder or archive (.zip, .tar, .tar.gz) of class folders or of split folders of class folders; table of "
        "path,label; each also as s3://… or gs://…, but for archives; or tfds:NAME[:VERSION]; may be repeated, also as "
        "SPLIT=SOURCE",
        group="data", path="source",
    )  # fmt: skip
    output: str = option(
        "", "folder for the dataset, also s3://BUCKET/FOLDER or gs://…; new, empty, or one to continue", group="data",
        path="dataset",
    )  # fmt: skip
    name: str = option("", "dataset name, the start of every shard's name; default: the source's", group="data")
    label_from: str = option(
        "", "which folder of a nested class folder names the class", choices=("", "parent", "first"), group="data"
    )
    class_names: str = option(
        "",
        "file with one class name a line, in label order, or JSON (id2label, class_to_idx, another dataset's "
        "manifest.json); default: sorted names",
        group="data",
        path="file",
    )
    label_kind: str = option(
        "",
        "what a label is: a class name, or an index into --class_names; default: names, in numerical order if all are "
        "numbers",
        choices=("", "name", "index", "onehot"), group="data",
    )  # fmt: skip
    class_words: str = option(
        "",
        "file of words to show for class names, lines 'n01440764 tench' or a JSON class index; default: the names",
        group="data",
        path="file",
    )
    split_labels: tuple[str, ...] = option(
        (),
        "SPLIT=FILE, for a split without class folders: file of its labels, by file name or a line an image; may be "
        "repeated",
        group="data", path="any",
    )  # fmt: skip
    label_order: str = option(
        "",
        "file that says which class a number in --split_labels is: lines NUMBER NAME, names counted from 1, JSON "
        "as id2label is, or ImageNet's meta.mat",
        group="data",
        path="file",
    )
    unlabelled: tuple[str, ...] = option(
        (), "split whose images have no labels, which is converted for prediction; may be repeated", group="data"
    )
    exclude: tuple[str, ...] = option(
        (),
        "file with one path or base name a line to leave out, or such a path, name or pattern; may be repeated",
        group="data",
        path="any",
    )
    path_column: str = option(
        "", "column of a table that holds the paths; default: path, image, filename, …", group="data"
    )
    label_column: str = option("", "column of a table that holds the labels; default: label, class, …", group="data")
    path_format: str = option(
        "{}", "what the paths of a table are made of the cells {}, e.g. train/{}.jpg", group="data"
    )
    merge_similar_labels: bool = option(
        False,
        "make one class of names that differ in case, spaces or Unicode form only; by default they end the run",
        group="data",
    )
    tfds_dir: str = option(
        "",
        "where prepared TFDS datasets lie; default: $TFDS_DATA_DIR or ~/tensorflow_datasets",
        group="data",
        path="folder",
    )
    splits: Mapping[str, float] = option(
        "", "shares, e.g. train=0.9,validation=0.1; default: the source's splits, or all in train",
        parse=parse_shares, text=shares_text, group="data",
    )  # fmt: skip
    duplicates: str = option(
        "keep",
        "what to do with images of equal pixels: keep them, in one split; drop all but one; or end the run",
        choices=("keep", "drop", "fail"),
        group="checks",
    )
    on_bad_image: str = option(
        "quarantine", "what to do with an image that cannot be used: set it aside, or end the run",
        choices=("quarantine", "fail"), group="checks",
    )  # fmt: skip
    max_bad_fraction: float | None = option(
        None, "end the run when more of the inputs are bad; default: 0.5, and never for fewer than 50 bad images",
        low=0, high=1, group="checks",
    )  # fmt: skip
    shards: int = option(0, "number of shards of each split; 0: by --shard_mb", low=0, group="shards")
    shard_mb: float = option(128.0, "size to aim for in a shard, in MB", low=0.001, high=1e6, group="shards")
    seed: int = option(0, "seed of the splits and of the stored order", low=-1e18, high=1e18, group="shards")
    workers: int = option(
        0, "processes (Ray: tasks) at a time; 0: one for each core, with Ray of the whole cluster", low=0, group="run"
    )
    engine: str = option(
        "processes",
        "executor of the work: worker processes; this process alone, which a decoder that crashes then ends; or a Ray "
        "cluster",
        choices=tuple(executors.EXECUTORS), group="run",
    )  # fmt: skip
    ray_address: str = option(
        "",
        "cluster of --engine=ray: HOST:PORT, ray://HOST:PORT, auto (one that runs on this machine) or local (one that "
        "is started for this run); default: RAY_ADDRESS, else local",
        group="run",
    )
    image_timeout: float = executors.image_timeout_option("it is set aside", group="run")
    verify: bool = option(
        False, "if the dataset is finished already, read all of it and compare the SHA-256 of each shard", group="run"
    )
    append: bool = option(
        False,
        "add what is new in --source to the dataset in --output, as another generation: its shards, labels and splits "
        "stay what they are",
        group="run",
    )
    overwrite: bool = option(
        False, "delete the dataset in --output first; with --append, only what an interrupted one left", group="run"
    )
    report: bool = option(True, "write report.html and its plots", group="run")
    dry_run: bool = option(False, "convert a sample, estimate size, time and bad fraction, write nothing", group="run")

    def __post_init__(self) -> None:
        check_options(self)
        if not all(self.source) or not self.source:
            raise UsageError("--source is missing: name a folder of class folders, an archive, a table, or tfds:NAME")
        if self.ray_address and self.engine != "ray":
            raise UsageError(f"--ray_address={self.ray_address} is for --engine=ray: add that, or leave it out")
        if not self.output and not self.dry_run:
            raise UsageError("--output is missing: name the folder to write the dataset to")
        if "{}" not in self.path_format:
            raise UsageError(f"--path_format={self.path_format} has no {{}} for what stands in the column")
        _ = self.label_files
        object.__setattr__(self, "source", tuple(source.rstrip("/") or source for source in self.source))
        object.__setattr__(self, "name", name_of(self.name, self.source[0]))

    @property
    def label_files(self) -> dict[str, str]:
        """File of labels, by split."""
        files: dict[str, str] = {}
        for item in self.split_labels:
            split, _, path = item.partition("=")
            if not path or split in files:
                raise UsageError(f"--split_labels={item}: use SPLIT=FILE, once for each split")
            files[split] = path
        return files

    @property
    def directory(self) -> Path:
        """`output` as a path."""
        return Path(self.output)

    @property
    def image(self) -> ImageOptions:
        """What to make of each image: the fields that are ImageOptions'."""
        return narrowed(self, ImageOptions)

    def stored_options(self) -> dict[str, Any]:
        """What the stored bytes depend on, besides the sources."""
        names = ("name", "splits", "label_from", "duplicates", "shards", "shard_mb", "seed")
        return {name: getattr(self, name) for name in names} | asdict(self.image)


def name_of(name: str, source: str) -> str:
    """A dataset's name: the one that was given, or its source's where that is "". Raises UsageError."""
    if not name:
        path = re.sub(ARCHIVE, "", split_and_path(source)[1], flags=re.IGNORECASE)
        stem = source.split(":")[1].split("/")[0] if source.startswith("tfds:") else Path(os.path.realpath(path)).stem
        return dataset_name(stem)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(f"--name={name}: use lower-case letters, digits and _, a letter first")
    return name


def split_and_path(source: str) -> tuple[str, str]:
    """Both of `SPLIT=PATH`; no split for a path alone, which may have an equals sign in it."""
    split, mark, path = source.partition("=")
    if not mark or os.path.lexists(source) or not is_split_name(split):
        return "", source
    return split, path


def dataset_name(text: str) -> str:
    """The name that TFDS allows nearest to a text: lower-case letters, digits and underscores, the first a letter."""
    cleaned = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return cleaned if cleaned[:1].isalpha() else f"data_{cleaned}".rstrip("_")
