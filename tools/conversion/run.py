"""One conversion from start to end: scan, plan, write shards, resolve duplicates, put in place. No TensorFlow.

`shardline-convert` is its command line; `tools.convert.convert` its Python function.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from shardline.pipeline import executors
from shardline.pipeline.class_gaps import class_gaps
from shardline.pipeline.cli import log, show
from shardline.pipeline.cli import progress as progress_bar
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.images import KERNEL, versions
from shardline.pipeline.machine import available_cores
from shardline.pipeline.manifest import ImageFormat, Manifest, generation_folder
from shardline.pipeline.paths import absolute, is_remote
from shardline.pipeline.ray_executor import Cluster, cluster_cpus
from shardline.pipeline.source_files import TAR, ZIP
from shardline.pipeline.sources_table import QUARANTINED, SOURCES_FILE
from shardline.pipeline.wording import count, shorten_list
from shardline.tools.conversion import append, resume
from shardline.tools.conversion.config import ConvertConfig, split_and_path
from shardline.tools.conversion.deduplicate import DedupResult, DuplicateGroup, resolve_duplicates
from shardline.tools.conversion.estimate import Estimate, estimate_from, seconds_text
from shardline.tools.conversion.finalize import Finished, finalize
from shardline.tools.conversion.label_files import read_class_words, words_for
from shardline.tools.conversion.labels import LabelOptions, read_class_names, split_notes
from shardline.tools.conversion.output import Output, open_output
from shardline.tools.conversion.report import Conversion, write_report
from shardline.tools.conversion.scan import ScanOptions, scan
from shardline.tools.conversion.scan_tfds import find_dataset
from shardline.tools.conversion.shard_writer import ShardResult, ShardTask, source_sha256, write_shard
from shardline.tools.conversion.sources import Sources
from shardline.tools.conversion.splits import Plan, make_plan
from shardline.tools.conversion.tfds_metadata import write_tfds_metadata
from shardline.tools.conversion.trees import IMAGE_SUFFIXES

SAMPLE = 200  # inputs that --dry_run converts


def convert(config: ConvertConfig) -> Manifest:
    """Scan, plan, write shards, resolve duplicates, put everything in place; the manifest last."""
    started = time.monotonic()
    _check_places(config)
    if config.append:
        return _append(config, started)
    sources, plan = prepare(config)
    words = {"class_words": sources.words} if sources.words else {}
    request = resume.Request(config.stored_options() | words, _versions(), sources.fingerprint(stamps=False))

    with open_output(config.output) as output:

        def finished() -> Manifest | None:
            hash_input = _hash_input(config, sources)
            return resume.finished_already(output, request, sources, hash_input, verify=config.verify)

        manifest = None if config.overwrite else finished()  # before anything is written: the disk may be read-only
        if not manifest:
            with output.owned():
                removed = config.overwrite and resume.remove_dataset(output)
                manifest = None if removed else finished()  # another process may have made it meanwhile
                if not manifest:
                    return _convert(config, output, sources, plan, request, started)
    log(f"{config.output} is finished already: same sources, same options; nothing to do")
    return manifest


def _append(config: ConvertConfig, started: float) -> Manifest:
    """Add what is new in the sources to a finished dataset."""
    with open_output(config.output) as output:
        base = append.base_of(config, output)
        with output.owned():
            base = append.base_of(config, output)  # another process may have added to it meanwhile
            config = append.with_options_of(base, config)
            for generation in range(1, base.num_generations + 1):  # of a run that was killed when all was done
                output.generation(generation).remove_work()
            place = output.generation(base.num_generations + 1)
            if config.overwrite:
                resume.remove_dataset(place)
            sources, plan = prepare(config, base, output)
            if not len(sources):
                return _nothing_to_add(config, base, place)
            for label in range(len(base.labels), len(sources.labels)):
                log(f"note: new class: {sources.labels[label]!r} is label {label}")
            place.directory.mkdir(exist_ok=True)
            request = resume.Request(config.stored_options(), _versions(), sources.fingerprint(stamps=False))
            return _convert(
                config, place, sources, plan, request, started, append.Base(base, output.directory, output.read)
            )


def _nothing_to_add(config: ConvertConfig, base: Manifest, place: Output) -> Manifest:
    resume.remove_dataset(place)
    place.sync()
    with contextlib.suppress(OSError):
        place.directory.rmdir()
    log(f"{config.output} has all of this already; nothing to add")
    return base


def _convert(
    config: ConvertConfig,
    place: Output,
    sources: Sources,
    plan: Plan,
    request: resume.Request,
    started: float,
    to: append.Base | None = None,
) -> Manifest:
    """The work, in a folder that is ours alone: the dataset's, or that of the generation that is added to another."""
    base = to.manifest if to else None
    work = resume.workspace(place, plan, request, sources)
    if config.report:
        _load_ahead("matplotlib.figure")
    progress = _write_shards(config, place, sources, plan, work)
    log(f"duplicates: {count(len(sources), 'input')}")
    earlier = append.earlier_images(to.manifest, to.directory, plan.splits) if to else None
    dedup = resolve_duplicates(
        progress.results, plan, sources, config.duplicates, keep_together=bool(config.splits), earlier=earlier
    )
    _note_duplicates(config, dedup)
    _note_faint(dedup)
    _refuse_empty_classes(config, sources, dedup, progress.results, first=len(base.labels) if base else 0)
    if base and not dedup.ledger.written:
        return _nothing_to_add(config, base, place)
    finished = finalize(place, progress.results, dedup, plan, sources, base)
    added = _manifest(config, plan, sources, dedup, finished, request)
    manifest = base.grown(added) if base else added
    for gap in class_gaps(manifest.labels, manifest.class_counts):
        log(f"note: {gap}")
    write_tfds_metadata(place.directory, added, finished.common_size)
    seconds = time.monotonic() - started
    if config.report:
        place.sync()  # the report shows stored images
        read = to.read if to else place.read
        conversion = Conversion(place.directory, added, manifest.digest, dedup, sources, read)
        _report(config, conversion, progress, seconds)
    if not base:
        resume.write_stamps(place.directory, sources)
    place.sync()
    manifest.save(to.directory if to else place.directory)
    place.sync()
    place.remove_work()
    _summarize(config, added, dedup, seconds, progress.resumed)
    if base:
        log(f"this is generation {manifest.num_generations} of {config.output}: {manifest.ledger}")
    return manifest


def _load_ahead(module: str) -> None:
    """Import what the last steps need while workers convert: time that nobody then waits for.

    Not TensorFlow Datasets: while it is imported, it replaces Python's own import for all threads by one that refuses
    relative imports.
    """
    threading.Thread(target=importlib.import_module, args=[module], daemon=True).start()


def dry_run(config: ConvertConfig) -> Estimate:
    """Convert a sample into a temporary folder and estimate what a run would give."""
    config = replace(config, on_bad_image="quarantine")  # the sample's reasons are wanted
    with open_output(config.output) if config.append else contextlib.nullcontext() as output:
        base = append.base_of(config, output) if output else None
        config = append.with_options_of(base, config) if base else config
        sources, plan = prepare(config, base, output)
    if not len(sources):
        raise UsageError(f"--append: {config.output} has all of this already; nothing to add")
    share = min(1.0, SAMPLE / len(sources))
    sample = np.concatenate([order[: max(1, round(len(order) * share))] for order in plan.order])
    with tempfile.TemporaryDirectory() as folder:
        task = _task(config, sources, sample, output=os.path.join(folder, "sample"))
        # In one process of its own, so that a decoder that crashes costs the sample one image here, too.
        with progress_bar(total=len(task), desc="sample", unit="image") as bar:
            (result,) = executors.run(
                write_shard, [task], workers=1, on_progress=bar.update, image_timeout=config.image_timeout
            )
        bad = [row for row in result.rows().select(["path", "reason", "detail"]).to_pylist() if row["reason"]]
        estimate = estimate_from([result], len(sources), min(_workers(config), plan.num_tasks))
    splits = ", ".join(
        f"{name} {len(order):,} in {count(shards, 'shard')}"
        for name, order, shards in zip(plan.splits, plan.order, plan.shards, strict=True)
    )
    return replace(
        estimate,
        layout=f"{count(len(sources.labels), 'class')}: {splits}",
        examples=tuple(f"{row['path']}: {row['reason']}: {row['detail']}" for row in bad[:5]),
    )


def _workers(config: ConvertConfig) -> int:
    """Processes at a time; on Ray tasks, as many as the cluster has CPUs once it is connected."""
    return config.workers or (cluster_cpus() if config.engine == "ray" else available_cores())


def prepare(config: ConvertConfig, base: Manifest | None = None, output: Output | None = None) -> tuple[Sources, Plan]:
    """Find the inputs, those that `base`, which lies in `output`, does not have, and decide what to do with them."""
    with progress_bar(total=None, desc="scan", unit="file", leave=False) as bar:
        sources = scan(
            config.source,
            options=ScanOptions(
                labels=append.label_options(base, config)
                if base
                else LabelOptions(
                    names=read_class_names(config.class_names) if config.class_names else (),
                    merge_similar=config.merge_similar_labels,
                    kind=config.label_kind,
                ),
                label_from=config.label_from,
                tfds_dir=config.tfds_dir,
                unlabelled=config.unlabelled,
                split_labels=config.label_files,
                label_order=config.label_order,
                exclude=config.exclude,
                path_column=config.path_column,
                label_column=config.label_column,
                path_format=config.path_format,
                spool_beside=os.path.join(tempfile.gettempdir(), "x") if is_remote(config.output) else config.output,
            ),
            on_progress=lambda found: bar.update(found - bar.n),
        )
    if config.class_words:
        words = words_for(sources.labels, read_class_words(config.class_words), config.class_words)
        sources = replace(sources, words=words)
        if without := [name for name, text in zip(sources.labels, words, strict=True) if not text]:
            log(f"note: --class_words has no words for {shorten_list(without)}; are its names those of the classes?")
    for note in (*sources.notes, *split_notes(config.splits)):
        log(f"note: {note}")
    if base and output:
        sources = append.with_words_of(base, sources)
        for generation in range(1, base.num_generations + 1):
            output.companion(generation_folder(generation) + SOURCES_FILE)
        sources = append.only_new(base, output.directory, sources, _hash_input(config, sources))
    record_bytes = _expected_record_bytes(config.image, sources)
    plan = make_plan(config, sources, record_bytes=record_bytes, versions=_versions(), base=base)
    if config.splits and sources.splits:
        log(f"note: the shares of --splits divide the source's split {sources.splits[0]}")
    return sources, plan


def make_tasks(
    config: ConvertConfig, sources: Sources, plan: Plan, work: Path, address: str = ""
) -> Iterator[ShardTask]:
    """One task for each shard, in the plan's order. `address`: of a store that they go to in place of `work`."""
    for split, shard, members in plan.members():
        task = _task(config, sources, members, _shard_output(work, plan, split, shard), plan.digest)
        yield replace(task, address=address)


def _task(config: ConvertConfig, sources: Sources, members: np.ndarray, output: str, digest: str = "") -> ShardTask:
    return ShardTask(
        root=absolute(sources.root),
        inputs=tuple((number, sources.path(number), int(sources.label[number])) for number in members.tolist()),
        places=tuple((sources.place(number), int(sources.size[number])) for number in members.tolist())
        if sources.origins
        else (),
        origins=sources.origins,
        output=output,
        digest=digest,
        options=config.image,
        features=sources.features,
        fail_on_bad_image=config.on_bad_image == "fail",
        unseen=frozenset(np.flatnonzero(sources.stamp[members] == 0).tolist()),
        scan_host=socket.gethostname(),
    )


def _some_files(sources: Sources) -> tuple[str, ...]:
    """The archives among the sources, or the first and the last file: what another machine has to see."""
    if sources.origins:
        return tuple(os.path.abspath(os.fsdecode(o.path)) for o in sources.origins if o.kind in (TAR, ZIP))
    seen = np.flatnonzero(sources.stamp)
    found = (os.fsdecode(sources.path(int(number))) for number in {*seen[:1].tolist(), *seen[-1:].tolist()})
    names = (name.rpartition("@")[0] if sources.features else name for name in found)
    return tuple(os.path.join(os.path.abspath(sources.root), name) for name in names)


def _shard_output(work: Path, plan: Plan, split: int, shard: int) -> str:
    return str(work.absolute() / f"{plan.splits[split]}-{shard:05d}")


def _hash_input(config: ConvertConfig, sources: Sources) -> Callable[[int], str]:
    """The SHA-256 of an input, by number, as its row in sources.parquet has it."""
    return lambda number: source_sha256(_task(config, sources, np.array([number]), output=""), 0)


@dataclass
class _Progress:
    """What was written, and how it went."""

    results: list[ShardResult]  # in the order of the plan's tasks
    resumed: int  # inputs that an interrupted run had done
    estimate: Estimate | None  # from the first shard of this run


def _write_shards(config: ConvertConfig, place: Output, sources: Sources, plan: Plan, work: Path) -> _Progress:
    """Run every task that has no valid receipt."""
    outputs = [_shard_output(work, plan, split, shard) for split, shard, _ in plan.members()]
    results = resume.finished_tasks(place, outputs, plan, sources, _hash_input(config, sources))
    number_of = {output: number for number, output in enumerate(outputs)}
    lengths = [len(members) for _, _, members in plan.members()]
    resumed = sum(lengths[number] for number in results)
    if results:
        log(f"continuing: {resumed:,} of {count(len(sources), 'input')} {'is' if resumed == 1 else 'are'} done")
    estimate = None
    all_tasks = make_tasks(config, sources, plan, work, place.address)
    tasks = (task for number, task in enumerate(all_tasks) if number not in results)
    with progress_bar(total=len(sources), initial=resumed, desc="convert", unit="image") as bar:
        for result in executors.run(
            write_shard,
            tasks,
            engine=config.engine,
            workers=config.workers if config.engine == "ray" else _workers(config),
            on_progress=bar.update,
            image_timeout=config.image_timeout,
            cluster=Cluster(config.ray_address, _some_files(sources), "" if place.address else str(work.absolute())),
        ):
            place.receive(result.output)
            results[number_of[result.output]] = result
            estimate = estimate or estimate_from([result], len(sources), min(_workers(config), len(outputs)))
            _refuse_too_many_bad(config, results.values(), len(sources))
    return _Progress([results[number] for number in range(len(outputs))], resumed, estimate)


def _refuse_too_many_bad(config: ConvertConfig, results: Iterable[ShardResult], inputs: int) -> None:
    """Held against all inputs, so the outcome does not depend on which shards came first."""
    results = list(results)
    bad = sum(result.quarantined for result in results)
    fraction = 0.5 if config.max_bad_fraction is None else config.max_bad_fraction
    if bad <= fraction * inputs or (config.max_bad_fraction is None and bad < 50):
        return
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    suffixes: Counter[str] = Counter()
    for result in results:
        rows = result.rows().select(["path", "status", "reason"]).to_pylist()
        for row in (row for row in rows if row["status"] == QUARANTINED):
            reasons[row["reason"]] += 1
            examples.setdefault(row["reason"], row["path"])
            suffixes[os.path.splitext(row["path"])[1]] += 1
    told = ", ".join(f"{number:,} {reason} (e.g. {examples[reason]})" for reason, number in reasons.most_common(6))
    (suffix, number), *_ = suffixes.most_common(1)
    side_files = suffix and number > 0.9 * bad and not os.fsencode(suffix.lower()).endswith(IMAGE_SUFFIXES)
    remedy = f"leave these files out with --exclude='*{suffix}', or " if side_files else ""
    raise Failure(
        f"{count(bad, 'bad image')} {'is' if bad == 1 else 'are'} more than --max_bad_fraction={fraction:g} of "
        f"{inputs:,}: {told}; {remedy}raise the flag to go on from here"
    )


def _refuse_empty_classes(
    config: ConvertConfig, sources: Sources, dedup: DedupResult, results: Sequence[ShardResult], *, first: int
) -> None:
    """Of the classes from label `first` on, which are new."""
    had_inputs = sources.class_counts() > 0
    had_inputs[:first] = False
    empty = np.flatnonzero(had_inputs & (dedup.class_counts == 0))
    if len(empty):
        names = shorten_list(sources.labels[number] for number in empty)
        raise Failure(
            f"{_what(config)}: not one image of {names} could be used (e.g. {_first_reason(results, empty)}); "
            "mend or remove the class, then use --overwrite"
        )


def _first_reason(results: Sequence[ShardResult], labels: np.ndarray) -> str:
    """Path and reason of an input of these classes, none of which could be used."""
    tables = (result.rows().select(["path", "label", "reason"]) for result in results)
    found = (table.filter(np.isin(table["label"].to_numpy(), labels)) for table in tables)
    row = next(table for table in found if len(table)).slice(0, 1).to_pylist()[0]
    return f"{row['path']}: {row['reason']}"


def _note_duplicates(config: ConvertConfig, dedup: DedupResult) -> None:
    def note(groups: Sequence[DuplicateGroup], what: str) -> None:
        if groups:
            sets = count(len(groups), "set") + " of equal images"
            log(f"note: {sets} {what}, e.g. {groups[0].paths[0]} and {groups[0].paths[1]}")

    note(dedup.conflicts, "with different labels")
    if not config.splits and config.duplicates == "keep":
        across_splits = [group for group in dedup.groups if group.across_splits]
        note(across_splits, "in several splits (--duplicates=drop leaves one of each)")


def _note_faint(dedup: DedupResult) -> None:
    """Reflectances and CT values in 16 bits come out nearly black, which no ledger shows."""
    if dedup.faint:
        verb = "has" if (images := dedup.faint.total()) == 1 else "have"
        log(
            f"note: {count(images, 'image')} {verb} little contrast, e.g. one {next(iter(dedup.faint))}; "
            "--depth_range=image or --depth_range=LOW,HIGH scales them"
        )


def _manifest(
    config: ConvertConfig, plan: Plan, sources: Sources, dedup: DedupResult, finished: Finished, request: resume.Request
) -> Manifest:
    return Manifest(
        name=plan.name,
        labels=sources.labels,
        words=sources.words,
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
        options={**config.stored_options(), "request": request.to_json()},
        versions=_versions(),
    )


def _report(config: ConvertConfig, conversion: Conversion, progress: _Progress, seconds: float) -> None:
    ledger = conversion.manifest.ledger
    size = sum(split.bytes for split in conversion.manifest.splits.values())
    performance: list[tuple[str, str, str]] = []
    if estimate := progress.estimate:
        performance = [
            ("output", f"{estimate.output_bytes / 1e6:,.1f} MB", f"{size / 1e6:,.1f} MB"),
            ("time", seconds_text(estimate.seconds), seconds_text(seconds) + " (resumed)" * bool(progress.resumed)),
            ("bad images", f"{estimate.bad_fraction:.1%}", f"{ledger.quarantined / ledger.inputs:.1%}"),
            ("based on", f"the first {count(estimate.sampled, 'input')}", count(ledger.inputs, "input")),
        ]
    pairs = write_report(
        conversion,
        performance=performance,
        run=[
            ("source", " ".join(config.source)),
            ("workers", f"{_workers(config)} ({config.engine})"),
            ("rate", f"{(ledger.inputs - progress.resumed) / seconds:,.0f} inputs/s"),
            ("machine", f"{count(available_cores(), 'CPU core')}, {platform.system()} {platform.machine()}"),
            ("Python", platform.python_version()),
        ],
    )
    if pairs:
        log(f"note: {count(pairs, 'pair')} of near duplicates, see {config.output}/report.html")


def _summarize(config: ConvertConfig, manifest: Manifest, dedup: DedupResult, seconds: float, resumed: int) -> None:
    """Two lines a person can paste into a ticket; the command adds the digest."""
    ledger = manifest.ledger
    why = ", ".join(f"{reason} {number}" for reason, number in dedup.reasons.most_common(6))
    show(f"{config.output}: {ledger}" + (f" ({why})" if why else ""))
    splits = ", ".join(
        f"{name} {split.records:,} in {count(len(split.shards), 'shard')}" for name, split in manifest.splits.items()
    )
    size = sum(split.bytes for split in manifest.splits.values())
    show(
        f"{splits}; {count(len(manifest.labels), 'class')}; {size / 1e6:,.1f} MB in {seconds:.1f} s, "
        f"{(ledger.inputs - resumed) / seconds:,.0f} inputs/s with {count(_workers(config), 'worker')}"
    )


def _check_places(config: ConvertConfig) -> None:
    output = Path(os.path.realpath(config.directory))  # unlike Path.resolve, of links in a circle, too
    for given in config.source:
        where = split_and_path(given)[1]
        if is_remote(where) and f"{config.output}/".startswith(f"{where}/"):
            raise UsageError(f"--output={config.output} lies inside --source={given}; name a folder outside it")
        if is_remote(where) or is_remote(config.output):
            continue
        source = find_dataset(where, config.tfds_dir) if where.startswith("tfds:") else Path(where)
        source = Path(os.path.realpath(source))
        if source.is_dir() and (output == source or source in output.parents):
            raise UsageError(f"--output={config.output} lies inside --source={given}; name a folder outside it")


def _what(config: ConvertConfig) -> str:
    """The sources, for a message."""
    return f"--source={shorten_list(config.source, 3)}"


def _expected_record_bytes(image: ImageOptions, sources: Sources) -> int:
    """Rough: it only decides the number of shards, and it must not depend on anything but options and sources."""
    known = sources.size[sources.size > 0]
    mean_source = int(known.mean()) if len(known) else 100_000
    return ENCODINGS[image.encoding].expected_bytes(mean_source, image)


def _versions() -> dict[str, str]:
    """What decides the stored bytes beside the options: none of it may change within a dataset, nor on resuming."""
    return {"shardline": metadata.version("shardline"), "pixels": KERNEL, **versions()}
