"""Convert raw images into TFRecord shards with a manifest, indexes, a ledger, a report and TFDS metadata.

    python -m tools.convert --source photos --output data --splits train=0.9,validation=0.1

--source is a folder of class folders, a folder of split folders (train, validation, test) of class folders, a .csv,
.tsv or .parquet table with the columns path,label[,split][,group], or tfds:NAME[:VERSION]. Broken images are set
aside with a reason. An interrupted run continues where it stopped when the same command is given again. The same
sources and options give the same bytes for any number of workers. The last line on stdout is the dataset's digest.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from absl import flags

from pipeline.cli import Failure, UsageError, progress, run

if TYPE_CHECKING:
    from pipeline.manifest import Manifest
    from tools.forecast import Forecast
    from tools.images import ImageOptions
    from tools.ledger import Finished, Settlement
    from tools.plan import Plan
    from tools.scan import Sources
    from tools.shard import ShardReceipt, ShardTask

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
_ENCODING = flags.DEFINE_enum("encoding", "jpeg", ["jpeg", "png", "raw"], "how pictures are stored")
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
_REPORT = flags.DEFINE_bool("report", True, "write report.html and its pictures")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "convert a sample, predict size, time and bad fraction, write nothing")

SAMPLE = 200  # inputs that --dry_run converts


@dataclass(frozen=True)
class Config:
    """One conversion. The fields carry the names of the flags."""

    source: str
    output: Path
    name: str
    image: ImageOptions
    splits: dict[str, float]
    label_from: str = ""
    class_names: tuple[str, ...] = ()
    tfds_dir: str = ""
    duplicates: str = "keep"
    on_bad_image: str = "quarantine"
    max_bad_fraction: float | None = None
    shards: int = 0
    shard_mb: float = 128
    seed: int = 0
    workers: int = 1
    engine: str = "processes"
    overwrite: bool = False
    report: bool = True

    def stored_options(self) -> dict[str, Any]:
        """What the stored bytes depend on, besides the sources."""
        options = {
            name: getattr(self, name)
            for name in ("name", "splits", "label_from", "duplicates", "shards", "shard_mb", "seed")
        }
        return options | asdict(self.image)


def main() -> None:
    """Flags in, dataset out."""
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
    from tools.images import ImageOptions
    from tools.plan import parse_shares
    from tools.scan import read_class_names

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
        shard_mb=_SHARD_MB.value,
        seed=_SEED.value,
        workers=_WORKERS.value or len(os.sched_getaffinity(0)),
        engine=_ENGINE.value,
        overwrite=_OVERWRITE.value,
        report=_REPORT.value,
    )


def convert(config: Config) -> Manifest:
    """Scan, plan, write shards, settle duplicates, put everything in place; the manifest last."""
    from tools import ledger, workspace
    from tools.tfds_metadata import write_tfds_metadata

    started = time.monotonic()
    _check_places(config)
    sources, plan = prepare(config)
    request = workspace.Request(config.stored_options(), _versions(), sources.fingerprint(times=False))
    removed = config.overwrite and workspace.remove_dataset(config.output)
    manifest = None if removed else workspace.finished_already(config.output, request, sources)
    if manifest:
        _say(f"{config.output} is finished already: same sources, same options; nothing to do")
        return manifest
    with workspace.workspace(config.output, plan, request, sources) as work:
        receipts, resumed, predicted = _write_shards(config, sources, plan, work)
        settlement = ledger.settle(receipts, plan, sources, config.duplicates, keep_apart=bool(config.splits))
        _warn_of_duplicates(config, settlement)
        _refuse_empty_classes(config, sources, settlement, receipts)
        finished = ledger.finish(config.output, receipts, settlement, plan, sources)
        manifest = _manifest(config, plan, sources, settlement, finished, workspace.request_record(request))
        write_tfds_metadata(config.output, manifest, finished.common_size)
        seconds = time.monotonic() - started
        _report(config, manifest, settlement, sources, seconds, resumed, predicted)
        manifest.save(config.output)
        workspace.remove_work(config.output)
    _summarise(config, manifest, settlement, seconds, resumed)
    return manifest


def prepare(config: Config) -> tuple[Sources, Plan]:
    """Find the inputs and decide what to do with them."""
    from tools.plan import make_plan
    from tools.scan import scan

    with progress(total=None, desc="scan", unit="file") as bar:
        sources = scan(
            config.source,
            label_from=config.label_from,
            class_names=config.class_names,
            tfds_dir=config.tfds_dir,
            tick=lambda count: bar.update(count - bar.n),
        )
    for note in sources.notes:
        _say(f"note: {note}")
    plan = make_plan(
        sources,
        name=config.name,
        shares=config.splits,
        seed=config.seed,
        shards=config.shards,
        shard_bytes=int(config.shard_mb * 1e6),
        record_bytes=_expected_record_bytes(config.image, sources),
        options={**config.stored_options(), "versions": _versions()},
    )
    return sources, plan


def make_tasks(config: Config, sources: Sources, plan: Plan, work: Path) -> Iterator[ShardTask]:
    """One task a shard, in the plan's order."""
    from tools.shard import ShardTask

    for split, shard, members in plan.members():
        yield ShardTask(
            root=os.path.abspath(sources.root),
            inputs=tuple((number, sources.path(number), int(sources.label[number])) for number in members.tolist()),
            output=_shard_output(work, plan, split, shard),
            digest=plan.digest,
            options=config.image,
            features=sources.features,
            fail_on_bad_image=config.on_bad_image == "fail",
        )


def _shard_output(work: Path, plan: Plan, split: int, shard: int) -> str:
    return str(work.absolute() / f"{plan.splits[split]}-{shard:05d}")


def _write_shards(
    config: Config, sources: Sources, plan: Plan, work: Path
) -> tuple[list[ShardReceipt], int, Forecast | None]:
    """Run every task that has no valid receipt.

    Returns:
      All receipts, how many inputs were done before, and what the first finished shard foretold of the rest.
    """
    from tools import engines, workspace
    from tools.forecast import forecast
    from tools.shard import write_shard

    outputs = [_shard_output(work, plan, split, shard) for split, shard, _ in plan.members()]
    receipts = workspace.finished_tasks(outputs, plan.digest)
    number_of = {output: number for number, output in enumerate(outputs)}
    lengths = [len(members) for _, _, members in plan.members()]
    resumed = sum(lengths[number] for number in receipts)
    if receipts:
        _say(f"continuing: {resumed:,} of {len(sources):,} inputs are done")
    predicted = None
    bad = sum(receipt.quarantined for receipt in receipts.values())
    tasks = (task for number, task in enumerate(make_tasks(config, sources, plan, work)) if number not in receipts)
    with progress(total=len(sources), initial=resumed, desc="convert", unit="img") as bar:
        for receipt in engines.run(write_shard, tasks, engine=config.engine, workers=config.workers, tick=bar.update):
            receipts[number_of[receipt.output]] = receipt
            predicted = predicted or forecast([receipt], len(sources), min(config.workers, len(outputs)))
            bad += receipt.quarantined
            _refuse_too_many_bad(config, bad, len(sources))
    return [receipts[number] for number in range(len(outputs))], resumed, predicted


def _refuse_too_many_bad(config: Config, bad: int, inputs: int) -> None:
    """Held against all inputs, so the verdict does not depend on which shards came first."""
    fraction = 0.5 if config.max_bad_fraction is None else config.max_bad_fraction
    if bad > fraction * inputs and (config.max_bad_fraction is not None or bad >= 50):
        raise Failure(
            f"{bad} bad images are more than --max_bad_fraction={fraction:g} of {inputs}; "
            "--dry_run samples the reasons; raise the flag to go on from here"
        )


def _refuse_empty_classes(
    config: Config, sources: Sources, settlement: Settlement, receipts: Sequence[ShardReceipt]
) -> None:
    import numpy as np

    had = np.bincount(sources.label, minlength=len(sources.labels)) > 0
    dead = [sources.labels[number] for number in np.flatnonzero(had & (settlement.class_counts == 0))]
    if dead:
        names = ", ".join(dead[:5]) + (" and more" if len(dead) > 5 else "")
        raise Failure(
            f"--source={config.source}: not one image of {names} could be used "
            f"({_first_reason(receipts, set(dead), sources)}); mend or remove the class, then use --overwrite"
        )


def _warn_of_duplicates(config: Config, settlement: Settlement) -> None:
    conflicts = settlement.conflicts
    if conflicts:
        example = f"{conflicts[0].paths[0]} and {conflicts[0].paths[1]}"
        _say(f"note: {len(conflicts):,} sets of equal pictures carry different labels, e.g. {example}")
    leaks = [twins for twins in settlement.twins if twins.straddling]
    if leaks and not config.splits and config.duplicates == "keep":
        example = f"{leaks[0].paths[0]} and {leaks[0].paths[1]}"
        _say(
            f"note: {len(leaks):,} sets of equal pictures lie in several splits, e.g. {example}; see --duplicates=drop"
        )


def _first_reason(receipts: Sequence[ShardReceipt], dead: set[str], sources: Sources) -> str:
    for receipt in receipts:
        for row in receipt.rows():
            if sources.labels[row["label"]] in dead:
                return f"e.g. {row['path']}: {row['reason']}"
    return ""


def _manifest(
    config: Config, plan: Plan, sources: Sources, settlement: Settlement, finished: Finished, request: Any
) -> Manifest:
    from pipeline.manifest import ImageFormat, Manifest

    return Manifest(
        name=plan.name,
        labels=sources.labels,
        splits=finished.splits,
        ledger=settlement.ledger,
        image=ImageFormat(
            encoding=config.image.encoding,
            resize=config.image.resize,
            size=config.image.size,
            max_height=finished.max_height,
            max_width=finished.max_width,
        ),
        class_counts=finished.class_counts,
        options={**config.stored_options(), "request": request},
        versions=_versions(),
    )


def _report(
    config: Config,
    manifest: Manifest,
    settlement: Settlement,
    sources: Sources,
    seconds: float,
    resumed: int,
    predicted: Forecast | None,
) -> None:
    if not config.report:
        return
    from tools.convert_report import write_report
    from tools.forecast import seconds_text

    account = manifest.ledger
    size = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    performance = []
    if predicted:
        performance = [
            ("output", f"{predicted.output_bytes / 1e6:,.1f} MB", f"{size / 1e6:,.1f} MB"),
            ("time", seconds_text(predicted.seconds), seconds_text(seconds) + (" (resumed)" if resumed else "")),
            ("bad images", f"{predicted.bad_fraction:.1%}", f"{account.quarantined / account.inputs:.1%}"),
            ("told from", f"the first {predicted.sampled:,} inputs", f"{account.inputs:,} inputs"),
        ]
    pairs = write_report(
        config.output,
        manifest,
        settlement,
        sources,
        performance=performance,
        run=[
            ("source", config.source),
            ("workers", f"{config.workers} ({config.engine})"),
            ("rate", f"{(account.inputs - resumed) / seconds:,.0f} inputs/s"),
            ("machine", f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}"),
            ("Python", platform.python_version()),
        ],
    )
    if pairs:
        _say(f"note: {pairs:,} pairs of near duplicates, see {config.output}/report.html")


def _summarise(config: Config, manifest: Manifest, settlement: Settlement, seconds: float, resumed: int) -> None:
    """Three lines a person can paste into a ticket."""
    account = manifest.ledger
    why = ", ".join(f"{reason} {count}" for reason, count in settlement.reasons.most_common(6))
    print(
        f"{config.output}: {account.written:,} of {account.inputs:,} inputs written; "
        f"quarantined {account.quarantined:,}, duplicates {account.duplicates:,}, filtered {account.filtered:,}"
        + (f" ({why})" if why else "")
    )
    splits = ", ".join(
        f"{name} {split.records:,} in {len(split.shards)} shard{'s' * (len(split.shards) > 1)}"
        for name, split in manifest.splits.items()
    )
    size = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    print(
        f"{splits}; {len(manifest.labels)} classes; {size / 1e6:,.1f} MB in {seconds:.1f} s, "
        f"{(account.inputs - resumed) / seconds:,.0f} inputs/s with {config.workers} workers"
    )


def dry_run(config: Config) -> None:
    """Convert a sample into a temporary folder and print what a run would give."""
    from itertools import islice

    import numpy as np

    from tools import engines
    from tools.forecast import forecast, seconds_text
    from tools.shard import ShardTask, write_shard

    sources, plan = prepare(config)
    share = min(1.0, SAMPLE / len(sources))
    sample = np.concatenate([order[: max(1, round(len(order) * share))] for order in plan.order])
    with tempfile.TemporaryDirectory() as folder:
        task = ShardTask(
            root=os.path.abspath(sources.root),
            inputs=tuple((number, sources.path(number), int(sources.label[number])) for number in sample.tolist()),
            output=os.path.join(folder, "sample"),
            digest="",
            options=config.image,
            features=sources.features,
        )
        # In one process of its own, so that a decoder that crashes costs the sample one image here, too.
        with progress(total=len(task), desc="sample", unit="img") as bar:
            receipts = list(engines.run(write_shard, [task], workers=1, tick=bar.update))
        workers = min(config.workers, plan.num_tasks)
        told = forecast(receipts, len(sources), workers)
        bad = [row for row in receipts[0].rows() if row["reason"]]
    splits = ", ".join(
        f"{name} {len(order):,} in {count} shard{'s' * (count > 1)}"
        for name, order, count in zip(plan.splits, plan.order, plan.shards, strict=True)
    )
    reasons = ", ".join(f"{reason} {count}" for reason, count in told.reasons)
    print(f"{len(sources):,} inputs, {len(sources.labels)} classes: {splits}")
    shares = f"{told.bad_fraction:.1%} bad, {told.filtered_fraction:.1%} filtered"
    print(f"sampled {told.sampled:,}: {shares}" + (f" ({reasons})" if reasons else ""))
    for row in islice(bad, 5):
        print(f"  {row['path']}: {row['reason']}: {row['detail']}")
    print(
        f"predicted: {told.output_bytes / 1e6:,.1f} MB, {seconds_text(told.seconds)} with {workers} "
        f"worker{'s' * (workers > 1)}; nothing was written"
    )


def _check_places(config: Config) -> None:
    if config.source.startswith("tfds:"):
        return
    source = Path(config.source).resolve()
    output = config.output.resolve()
    if source.is_dir() and (output == source or source in output.parents):
        raise UsageError(f"--output={config.output} lies inside --source={config.source}; name a folder outside it")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output={config.output} is a file; name a folder")


def _dataset_name(name: str, source: str) -> str:
    """TFDS allows lower-case letters, digits and underscores, the first a letter."""
    if name:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UsageError(f"--name={name}: use lower-case letters, digits and _, a letter first")
        return name
    stem = source.split(":")[1].split("/")[0] if source.startswith("tfds:") else Path(source).resolve().stem
    cleaned = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    return cleaned if cleaned[:1].isalpha() else f"data_{cleaned}".rstrip("_")


def _expected_record_bytes(image: ImageOptions, sources: Sources) -> int:
    """Rough: it only decides the number of shards, and it must not depend on anything but options and sources."""
    known = sources.size[sources.size > 0]
    mean_source = int(known.mean()) if len(known) else 100_000
    pixels = image.size**2 * (1.0 if image.resize in ("squash", "center_crop") else 1.35)
    if image.resize == "none":
        return mean_source * {"jpeg": 1, "png": 6, "raw": 10}[image.encoding]
    stored = int(pixels * {"jpeg": 0.15 + 0.25 * (image.quality / 100) ** 4, "png": 1.8, "raw": 3}[image.encoding])
    return min(stored, mean_source) if image.encoding == "jpeg" and not image.upscale else stored


def _versions() -> dict[str, str]:
    from tools.images import versions

    return {"shardline": metadata.version("shardline"), **versions()}


def _stop_on_sigterm() -> None:
    """End as Ctrl-C does: workers stopped, what is finished kept."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started with & inherits it ignored


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def cli() -> None:
    """Console script."""
    run(main)


if __name__ == "__main__":
    cli()
