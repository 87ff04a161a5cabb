"""Advice put to the test: convert a sample of the images as advised, and measure the host's batches again.

The sample is converted twice, as the dataset is and with the one change, and both are read in turns: the ratio is what
the prediction has to meet. The sample lies beside the dataset, on the same file system; if it cannot, in the report,
and the row says so.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from shardline.benchmarks.bottleneck import STAGES_SUITE, UNCHANGED, VALIDATION_SUITE, Bottleneck, bottleneck_of
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.images import evenly_spaced, find_images
from shardline.benchmarks.measure import Measurement, interleave, load_results
from shardline.benchmarks.processes import Rate, WorkerProcess
from shardline.benchmarks.stages import Batches, files, from_disk
from shardline.pipeline.dataset import Dataset, open_dataset
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.image_bytes import encode_rgb
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.shards import Shards
from shardline.tools.convert import ConvertConfig, convert

SAMPLE, SAMPLE_PIXELS = 512, 10**9  # images, and how many pixels they may have together


@dataclass(frozen=True)
class Trial:
    """A change that was carried out: a dataset, and the predicted ratio to the unchanged."""

    directory: Path
    predicted: float | None = None


def measure(config: BenchConfig) -> list[Measurement]:
    """The advice from the stages just measured, carried out on a sample."""
    results = load_results(config.directory)
    bottleneck = bottleneck_of(results)
    if not config.validate_advice or bottleneck is None:
        return []
    if not any(advice.input_factor for advice in bottleneck.advice):
        print(f"no sample is converted: {bottleneck.word} needs no images stored otherwise", file=sys.stderr)
        return []
    (batch,) = (m for m in results if m.suite == STAGES_SUITE and m.name == "batch")
    images = max(1, min(SAMPLE, int(SAMPLE_PIXELS / batch.settings["facts"]["stored_pixels"])))
    beside = Path(config.data).resolve().parent
    place = beside if os.access(beside, os.W_OK) else config.directory
    with tempfile.TemporaryDirectory(dir=place, prefix=".shardline-sample-") as work, contextlib.ExitStack() as stack:
        trials = carry_out(bottleneck, config, Path(work), images)
        runs: dict[str, Callable[[], Rate]] = {}
        for name, trial in trials.items():
            make = partial(Batches, str(trial.directory), "train", config.input)
            runs[name] = partial(stack.enter_context(WorkerProcess(make)), config.seconds)
            if "storage" in bottleneck.verdict.stages:  # the sample was just written: it is in memory
                runs[name] = from_disk(runs[name], files(open_dataset(trial.directory), "train"))
        elsewhere = "" if place == beside else "; on the report's file system, not the dataset's"
        what = {name: f"{name} instead{elsewhere}" for name in trials}
        what[UNCHANGED] = f"a sample of the images, converted again with the dataset's own options{elsewhere}"
        settings = {"image_size": config.image_size, "sample": images}
        measured = interleave(
            VALIDATION_SUITE, runs, repeats=config.repeats, reference=UNCHANGED, what=what, settings=settings
        )  # fmt: skip
    return [
        replace(m, settings={**m.settings, "predicted": trials[m.name].predicted if m.name in trials else None})
        for m in measured
    ]


def carry_out(bottleneck: Bottleneck, config: BenchConfig, work: Path, images: int = SAMPLE) -> dict[str, Trial]:
    """Convert a sample of so many images into `work`, unchanged and with each change; by name, UNCHANGED first."""
    data = open_dataset(config.data)
    source = work / "source" / "sample"  # a class folder
    source.mkdir(parents=True)
    if config.raw_images:
        link_sample(Path(config.raw_images), source, images)
    else:
        extract_sample(data, config.split, source, images)
    options = dataset_options(data)
    trials = {UNCHANGED: Trial(_converted(source.parent, work / "unchanged", options))}
    for number, advice in enumerate(advice for advice in bottleneck.advice if advice.input_factor):
        words = advice.change.split()
        flags = {flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2], strict=True)}
        changed = replace(options, **{flag: type(getattr(options, flag))(value) for flag, value in flags.items()})
        trials[advice.change] = Trial(_converted(source.parent, work / str(number), changed), advice.input_factor)
    return trials


def dataset_options(data: Dataset) -> ImageOptions:
    """How the dataset was made, as far as it says so."""
    image, stored = data.manifest.image, data.manifest.options
    known: dict[str, Any] = {field.name: stored[field.name] for field in fields(ImageOptions) if field.name in stored}
    encoding = image.encoding if ENCODINGS[image.encoding].writable else "jpeg"
    size = image.size or ImageOptions.size  # not set where images were stored as they are
    return replace(ImageOptions(resize=image.resize, size=size, encoding=encoding), **known)


def extract_sample(data: Dataset, split: str, folder: Path, images: int) -> None:
    """Stored images as files again, spread evenly over the split; raw pixels as PNG."""
    shards = Shards(data.manifest, data.directory, split)
    encoding = ENCODINGS[data.manifest.image.encoding]
    for record in evenly_spaced(len(shards), images):
        try:
            example = shards.read(record)
            image = bytes(example.image)
            if not encoding.self_describing:
                image = encode_rgb(encoding.decode(example), "png")
        except ValueError:
            continue  # the stages have told of it
        (folder / f"{record:08d}.{'jpg' if encoding.name == 'jpeg' else 'png'}").write_bytes(image)


def link_sample(raw_images: Path, folder: Path, images: int) -> None:
    """Links to images of a folder, spread evenly over it."""
    for number, path in enumerate(find_images(raw_images, images)):
        (folder / f"{number:08d}{path.suffix}").symlink_to(path.resolve())


def _converted(source: Path, output: Path, options: ImageOptions) -> Path:
    """The dataset of the sample with these options."""
    quiet = io.StringIO()  # a summary that is not about the user's data
    with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
        convert(
            ConvertConfig(source=(str(source),), output=str(output), name="sample", report=False, **asdict(options))
        )
    return output
