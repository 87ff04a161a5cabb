"""Convert raw images into TFRecord shards with a manifest, indexes, a ledger, a report and TFDS metadata.

    shardline-convert --source photos --output data --splits train=0.9,validation=0.1

--source is a folder of class folders, a folder of split folders (train, validation, test) of class folders, a .csv,
.tsv or .parquet table with the columns path,label[,split][,group], or tfds:NAME[:VERSION]. Broken images are set
aside with a reason. An interrupted run continues where it stopped when the same command is given again. The same
sources and options give the same bytes for any number of workers. The last line on stdout is the dataset's digest.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from absl import flags

from shardline.pipeline.cli import run
from shardline.pipeline.errors import Failure, UsageError

if TYPE_CHECKING:
    from shardline.tools.conversion.run import Config

_SOURCE = flags.DEFINE_string("source", "", "folder of class folders, table of path,label, or tfds:NAME[:VERSION]")
_OUTPUT = flags.DEFINE_string("output", "", "folder for the dataset; new, empty, or one to continue")
_NAME = flags.DEFINE_string("name", "", "dataset name, the start of every shard's name; default: the source's")
_LABEL_FROM = flags.DEFINE_enum(
    "label_from", None, ["parent", "first"], "which folder of a nested class folder names the class"
)
_CLASS_NAMES = flags.DEFINE_string(
    "class_names", "", "file with one class name a line: the label order; default: sorted"
)
_TFDS_DIR = flags.DEFINE_string(
    "tfds_dir", "", "where prepared TFDS datasets lie; default: $TFDS_DATA_DIR or ~/tensorflow_datasets"
)
_SPLITS = flags.DEFINE_string(
    "splits", "", "shares, e.g. train=0.9,validation=0.1; default: the source's splits, or all in train"
)
_RESIZE = flags.DEFINE_enum(
    "resize", "short", ["short", "long", "squash", "center_crop", "none"], "which side --size sets"
)
_SIZE = flags.DEFINE_integer("size", 256, "pixels", lower_bound=1)
_UPSCALE = flags.DEFINE_bool("upscale", False, "enlarge smaller images, too")
_ENCODING = flags.DEFINE_enum("encoding", "jpeg", ["jpeg", "png", "raw"], "how images are stored")
_QUALITY = flags.DEFINE_integer("quality", 90, "of JPEG", lower_bound=1, upper_bound=100)
_TRIM = flags.DEFINE_bool("trim_borders", False, "cut uniform frames")
_MEGAPIXELS = flags.DEFINE_float("max_megapixels", None, "refuse larger images before decoding them; default: 128")
_MIN_SIDE = flags.DEFINE_integer("min_side", 0, "leave out images with a shorter side; pixels", lower_bound=0)
_MIN_SHARPNESS = flags.DEFINE_float("min_sharpness", 0.0, "leave out images with a lower variance of the Laplacian")
_DUPLICATES = flags.DEFINE_enum("duplicates", "keep", ["keep", "drop", "fail"], "what to do with equal pixels")
_ON_BAD = flags.DEFINE_enum("on_bad_image", "quarantine", ["quarantine", "fail"], "set aside, or end the run")
_MAX_BAD = flags.DEFINE_float(
    "max_bad_fraction", None, "end the run when more of the inputs are bad; default: 0.5, and never for fewer than 50",
    lower_bound=0, upper_bound=1,
)  # fmt: skip
_SHARDS = flags.DEFINE_integer("shards", 0, "number of shards of each split; 0: by --shard_mb", lower_bound=0)
_SHARD_MB = flags.DEFINE_float("shard_mb", 128, "aim for shards of this many MB", lower_bound=0.001)
_SEED = flags.DEFINE_integer("seed", 0, "chooses splits and the stored order")
_WORKERS = flags.DEFINE_integer("workers", 0, "processes (Ray: tasks) at a time; 0: one a core", lower_bound=0)
_ENGINE = flags.DEFINE_enum("engine", "processes", ["processes", "inline", "ray"], "what runs the work")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "delete the dataset in --output first")
_REPORT = flags.DEFINE_bool("report", True, "write report.html and its images")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "convert a sample, predict size, time and bad fraction, write nothing")


def main() -> None:
    """Flags in, dataset out."""
    from shardline.tools.conversion.run import convert, dry_run

    config = config_from_flags()
    _stop_on_sigterm()
    if _DRY_RUN.value:
        dry_run(config)
        return
    try:
        manifest = convert(config)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise Failure(
            f"--output={config.output}: {os.strerror(error.errno)}; free some space and run the same command again, it "
            "continues where it stopped"
        ) from None
    print(manifest.digest)


def config_from_flags() -> Config:
    """Check the flags against one another."""
    from shardline.pipeline.images import ImageOptions
    from shardline.tools.conversion.run import Config
    from shardline.tools.conversion.scan import read_class_names
    from shardline.tools.conversion.splits import parse_shares

    source = _SOURCE.value.rstrip("/") or _SOURCE.value
    if not source:
        raise UsageError("--source is missing: a folder of class folders, a table, or tfds:NAME")
    if not _OUTPUT.value and not _DRY_RUN.value:
        raise UsageError("--output is missing: the folder to write the dataset to")
    limits = {} if _MEGAPIXELS.value is None else {"max_megapixels": _MEGAPIXELS.value}
    return Config(
        source=source,
        output=Path(_OUTPUT.value),
        name=_dataset_name(_NAME.value, source),
        image=ImageOptions(
            resize=_RESIZE.value,
            size=_SIZE.value,
            upscale=_UPSCALE.value,
            encoding=_ENCODING.value,
            quality=_QUALITY.value,
            trim_borders=_TRIM.value,
            min_side=_MIN_SIDE.value,
            min_sharpness=_MIN_SHARPNESS.value,
            **limits,
        ),
        splits=parse_shares(_SPLITS.value),
        label_from=_LABEL_FROM.value or "",
        class_names=tuple(read_class_names(_CLASS_NAMES.value)) if _CLASS_NAMES.value else (),
        tfds_dir=_TFDS_DIR.value,
        duplicates=_DUPLICATES.value,
        on_bad_image=_ON_BAD.value,
        max_bad_fraction=_MAX_BAD.value,
        shards=_SHARDS.value,
        shard_mb=float(_SHARD_MB.value),
        seed=_SEED.value,
        workers=_WORKERS.value or len(os.sched_getaffinity(0)),
        engine=_ENGINE.value,
        overwrite=_OVERWRITE.value,
        report=_REPORT.value,
    )


def _dataset_name(name: str, source: str) -> str:
    """TFDS allows lower-case letters, digits and underscores, the first a letter."""
    if name:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UsageError(f"--name={name}: use lower-case letters, digits and _, a letter first")
        return name
    stem = source.split(":")[1].split("/")[0] if source.startswith("tfds:") else Path(source).resolve().stem
    cleaned = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    return cleaned if cleaned[:1].isalpha() else f"data_{cleaned}".rstrip("_")


def _stop_on_sigterm() -> None:
    """End as Ctrl-C does: workers stopped, what is finished kept."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started with & inherits it ignored


def cli() -> None:
    """Console script."""
    run(main)


if __name__ == "__main__":
    cli()
