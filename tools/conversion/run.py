"""One conversion from start to end: scan, plan, write shards, resolve duplicates, put in place. No TensorFlow.

`shardline-convert` is its command line; `tools.convert.convert` its Python function.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from shardline.pipeline.cli import progress
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.images import KERNEL, versions
from shardline.pipeline.machine import available_cores
from shardline.pipeline.manifest import ImageFormat, Manifest
from shardline.tools.conversion import deduplicate, executors, resume
from shardline.tools.conversion.config import ConvertConfig
from shardline.tools.conversion.deduplicate import DedupResult, Finished
from shardline.tools.conversion.estimate import Forecast, forecast, seconds_text
from shardline.tools.conversion.scan import read_class_names, scan
from shardline.tools.conversion.shard_writer import ShardResult, ShardTask, write_shard
from shardline.tools.conversion.sources import Sources
from shardline.tools.conversion.splits import Plan, make_plan
from shardline.tools.conversion.tfds_metadata import write_tfds_metadata

SAMPLE = 200  # inputs that --dry_run converts


def convert(config: ConvertConfig) -> Manifest:
    """Scan, plan, write shards, resolve duplicates, put everything in place; the manifest last."""
    started = time.monotonic()
    _check_places(config)
    sources, plan = prepare(config)
    request = resume.Request(config.stored_options(), _versions(), sources.fingerprint(times=False))
    removed = config.overwrite and resume.remove_dataset(config.directory)
    manifest = None if removed else resume.finished_already(config.directory, request, sources)
    if manifest:
        _log_line(f"{config.output} is finished already: same sources, same options; nothing to do")
        return manifest
    with resume.workspace(config.directory, plan, request, sources) as work:
        receipts, resumed, predicted = _write_shards(config, sources, plan, work)
        dedup = deduplicate.resolve_duplicates(
            receipts, plan, sources, config.duplicates, keep_apart=bool(config.splits)
        )
        _warn_of_duplicates(config, dedup)
        _refuse_empty_classes(config, sources, dedup, receipts)
        finished = deduplicate.finish(config.directory, receipts, dedup, plan, sources)
        manifest = _manifest(config, plan, sources, dedup, finished, resume.request_record(request))
        write_tfds_metadata(config.directory, manifest, finished.common_size)
        seconds = time.monotonic() - started
        _report(config, manifest, dedup, sources, seconds, resumed, predicted)
        manifest.save(config.directory)
        resume.remove_work(config.directory)
    _summarize(config, manifest, dedup, seconds, resumed)
    return manifest


def _workers(config: ConvertConfig) -> int:
    return config.workers or available_cores()


def prepare(config: ConvertConfig) -> tuple[Sources, Plan]:
    """Find the inputs and decide what to do with them."""
    with progress(total=None, desc="scan", unit="file") as bar:
        sources = scan(
            config.source,
            label_from=config.label_from,
            class_names=tuple(read_class_names(config.class_names)) if config.class_names else (),
            tfds_dir=config.tfds_dir,
            on_progress=lambda count: bar.update(count - bar.n),
        )
    for note in sources.notes:
        _log_line(f"note: {note}")
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


def make_tasks(config: ConvertConfig, sources: Sources, plan: Plan, work: Path) -> Iterator[ShardTask]:
    """One task a shard, in the plan's order."""
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
    config: ConvertConfig, sources: Sources, plan: Plan, work: Path
) -> tuple[list[ShardResult], int, Forecast | None]:
    """Run every task that has no valid receipt.

    Returns:
      All receipts, how many inputs were done before, and what the first finished shard foretold of the rest.
    """
    outputs = [_shard_output(work, plan, split, shard) for split, shard, _ in plan.members()]
    receipts = resume.finished_tasks(outputs, plan.digest)
    number_of = {output: number for number, output in enumerate(outputs)}
    lengths = [len(members) for _, _, members in plan.members()]
    resumed = sum(lengths[number] for number in receipts)
    if receipts:
        _log_line(f"continuing: {resumed:,} of {len(sources):,} inputs are done")
    predicted = None
    bad = sum(receipt.quarantined for receipt in receipts.values())
    tasks = (task for number, task in enumerate(make_tasks(config, sources, plan, work)) if number not in receipts)
    with progress(total=len(sources), initial=resumed, desc="convert", unit="img") as bar:
        for receipt in executors.run(
            write_shard, tasks, engine=config.engine, workers=_workers(config), on_progress=bar.update
        ):
            receipts[number_of[receipt.output]] = receipt
            predicted = predicted or forecast([receipt], len(sources), min(_workers(config), len(outputs)))
            bad += receipt.quarantined
            _refuse_too_many_bad(config, bad, len(sources))
    return [receipts[number] for number in range(len(outputs))], resumed, predicted


def _refuse_too_many_bad(config: ConvertConfig, bad: int, inputs: int) -> None:
    """Held against all inputs, so the verdict does not depend on which shards came first."""
    fraction = 0.5 if config.max_bad_fraction is None else config.max_bad_fraction
    if bad > fraction * inputs and (config.max_bad_fraction is not None or bad >= 50):
        raise Failure(
            f"{bad} bad images are more than --max_bad_fraction={fraction:g} of {inputs}; "
            "--dry_run samples the reasons; raise the flag to go on from here"
        )


def _refuse_empty_classes(
    config: ConvertConfig, sources: Sources, dedup: DedupResult, receipts: Sequence[ShardResult]
) -> None:
    had = np.bincount(sources.label, minlength=len(sources.labels)) > 0
    dead = [sources.labels[number] for number in np.flatnonzero(had & (dedup.class_counts == 0))]
    if dead:
        names = ", ".join(dead[:5]) + (" and more" if len(dead) > 5 else "")
        raise Failure(
            f"--source={config.source}: not one image of {names} could be used "
            f"({_first_reason(receipts, set(dead), sources)}); mend or remove the class, then use --overwrite"
        )


def _warn_of_duplicates(config: ConvertConfig, dedup: DedupResult) -> None:
    conflicts = dedup.conflicts
    if conflicts:
        example = f"{conflicts[0].paths[0]} and {conflicts[0].paths[1]}"
        _log_line(f"note: {len(conflicts):,} sets of equal images carry different labels, e.g. {example}")
    leaks = [twins for twins in dedup.twins if twins.across_splits]
    if leaks and not config.splits and config.duplicates == "keep":
        example = f"{leaks[0].paths[0]} and {leaks[0].paths[1]}"
        _log_line(
            f"note: {len(leaks):,} sets of equal images lie in several splits, e.g. {example}; see --duplicates=drop"
        )


def _first_reason(receipts: Sequence[ShardResult], dead: set[str], sources: Sources) -> str:
    for receipt in receipts:
        for row in receipt.rows():
            if sources.labels[row["label"]] in dead:
                return f"e.g. {row['path']}: {row['reason']}"
    return ""


def _manifest(
    config: ConvertConfig, plan: Plan, sources: Sources, dedup: DedupResult, finished: Finished, request: Any
) -> Manifest:
    return Manifest(
        name=plan.name,
        labels=sources.labels,
        splits=finished.splits,
        ledger=dedup.ledger,
        image=ImageFormat(
            encoding=config.image.encoding,
            resize=config.image.resize,
            size=config.image.size,
            max_height=finished.max_height,
            max_width=finished.max_width,
            kernel=KERNEL,
        ),
        class_counts=finished.class_counts,
        options={**config.stored_options(), "request": request},
        versions=_versions(),
    )


def _report(
    config: ConvertConfig,
    manifest: Manifest,
    dedup: DedupResult,
    sources: Sources,
    seconds: float,
    resumed: int,
    predicted: Forecast | None,
) -> None:
    if not config.report:
        return
    from shardline.tools.conversion.report import write_report

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
        config.directory,
        manifest,
        dedup,
        sources,
        performance=performance,
        run=[
            ("source", config.source),
            ("workers", f"{_workers(config)} ({config.engine})"),
            ("rate", f"{(account.inputs - resumed) / seconds:,.0f} inputs/s"),
            ("machine", f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}"),
            ("Python", platform.python_version()),
        ],
    )
    if pairs:
        _log_line(f"note: {pairs:,} pairs of near duplicates, see {config.output}/report.html")


def _summarize(config: ConvertConfig, manifest: Manifest, dedup: DedupResult, seconds: float, resumed: int) -> None:
    """Three lines a person can paste into a ticket."""
    account = manifest.ledger
    why = ", ".join(f"{reason} {count}" for reason, count in dedup.reasons.most_common(6))
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
        f"{(account.inputs - resumed) / seconds:,.0f} inputs/s with {_workers(config)} workers"
    )


def dry_run(config: ConvertConfig) -> None:
    """Convert a sample into a temporary folder and print what a run would give."""
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
            receipts = list(executors.run(write_shard, [task], workers=1, on_progress=bar.update))
        workers = min(_workers(config), plan.num_tasks)
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


def _check_places(config: ConvertConfig) -> None:
    if re.match(r"[a-z0-9]+:/", str(config.directory)):
        raise UsageError(f"--output={config.output} is no local folder; convert into one and copy it there")
    if config.source.startswith("tfds:"):
        return
    source = Path(config.source).resolve()
    output = config.directory.resolve()
    if source.is_dir() and (output == source or source in output.parents):
        raise UsageError(f"--output={config.output} lies inside --source={config.source}; name a folder outside it")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output={config.output} is a file; name a folder")


def _expected_record_bytes(image: ImageOptions, sources: Sources) -> int:
    """Rough: it only decides the number of shards, and it must not depend on anything but options and sources."""
    known = sources.size[sources.size > 0]
    mean_source = int(known.mean()) if len(known) else 100_000
    return ENCODINGS[image.encoding].expected_bytes(mean_source, image)


def _versions() -> dict[str, str]:
    return {"shardline": metadata.version("shardline"), **versions()}


def _log_line(text: str) -> None:
    print(text, file=sys.stderr)
