"""Advice put to the test: convert a sample of the images as advised, and measure the host's batches again.

The sample is converted twice, as the dataset is and with the one change, and both are read in turns: the ratio is what
the prediction has to meet. The sample lies beside the dataset, on the same file system; if it
cannot, in the report.
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

import cv2

from shardline.benchmarks.bottleneck import VALIDATION_SUITE, Bottleneck, bottleneck_of
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.images import evenly_spaced, find_images
from shardline.benchmarks.measure import Measurement, interleave, load_results
from shardline.benchmarks.processes import Rate, WorkerProcess
from shardline.benchmarks.stages import Batches
from shardline.pipeline.dataset import Dataset, open_dataset
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.shards import Shards
from shardline.tools.convert import ConvertConfig, convert

UNCHANGED = "unchanged"
SAMPLE = 512  # images


@dataclass(frozen=True)
class Trial:
    """A change that was carried out: a dataset, and the predicted ratio to the unchanged."""

    directory: Path
    predicted: float | None = None


def measure(config: BenchConfig) -> list[Measurement]:
    """The advice from the stages just measured, carried out on a sample."""
    bottleneck = bottleneck_of(load_results(config.directory))
    if not config.validate_advice or bottleneck is None:
        return []
    if not bottleneck.advice:
        print(f"--validate_advice: a {bottleneck.word} pipeline gets no advice to validate", file=sys.stderr)
        return []
    beside = Path(config.data).resolve().parent
    place = beside if os.access(beside, os.W_OK) else config.directory
    with tempfile.TemporaryDirectory(dir=place, prefix=".shardline-sample-") as work, contextlib.ExitStack() as stack:
        trials = carry_out(bottleneck, config, Path(work))
        runs: dict[str, Callable[[], Rate]] = {}
        for name, trial in trials.items():
            make = partial(Batches, str(trial.directory), "train", config.input)
            runs[name] = partial(stack.enter_context(WorkerProcess(make)), config.seconds)
        what = {name: f"{name} instead" for name in trials}
        what[UNCHANGED] = "a sample of the images, converted again with the dataset's own options"
        settings = {"image_size": config.image_size, "sample": SAMPLE}
        measured = interleave(
            VALIDATION_SUITE, runs, repeats=config.repeats, reference=UNCHANGED, what=what, settings=settings
        )  # fmt: skip
    return [
        replace(m, settings={**m.settings, "predicted": trials[m.name].predicted if m.name in trials else None})
        for m in measured
    ]


def carry_out(bottleneck: Bottleneck, config: BenchConfig, work: Path) -> dict[str, Trial]:
    """Convert a sample into `work`, unchanged and with each change; the trials by name, UNCHANGED first."""
    data = open_dataset(config.data)
    source = work / "source" / "sample"  # a class folder
    source.mkdir(parents=True)
    if config.raw_images:
        link_sample(Path(config.raw_images), source)
    else:
        extract_sample(data, config.split, source)
    options = dataset_options(data)
    trials = {UNCHANGED: Trial(_converted(source.parent, work / "unchanged", options))}
    for advice in bottleneck.advice:
        flag, value = advice.change.removeprefix("--").split()
        changed = replace(options, **{flag: type(getattr(options, flag))(value)})
        trials[advice.change] = Trial(_converted(source.parent, work / flag, changed), advice.input_factor)
    return trials


def dataset_options(data: Dataset) -> ImageOptions:
    """How the dataset was made, as far as it says so."""
    image, stored = data.manifest.image, data.manifest.options
    known: dict[str, Any] = {field.name: stored[field.name] for field in fields(ImageOptions) if field.name in stored}
    encoding = image.encoding if ENCODINGS[image.encoding].writable else "jpeg"
    return replace(ImageOptions(resize=image.resize, size=image.size, encoding=encoding), **known)


def extract_sample(data: Dataset, split: str, folder: Path) -> None:
    """Stored images as files again, spread evenly over the split; raw pixels as PNG."""
    shards = Shards(data.manifest, data.directory, split)
    encoding = ENCODINGS[data.manifest.image.encoding]
    for record in evenly_spaced(len(shards), SAMPLE):
        try:
            example = shards.read(record)
            image = bytes(example.image)
            if not encoding.self_describing:
                pixels = cv2.cvtColor(encoding.decode(example), cv2.COLOR_RGB2BGR)
                image = cv2.imencode(".png", pixels)[1].tobytes()
        except ValueError:
            continue  # the stages have told of it
        (folder / f"{record:08d}.{'jpg' if encoding.name == 'jpeg' else 'png'}").write_bytes(image)


def link_sample(raw_images: Path, folder: Path) -> None:
    """Links to images of a folder, spread evenly over it."""
    for number, path in enumerate(find_images(raw_images, SAMPLE)):
        (folder / f"{number:08d}{path.suffix}").symlink_to(path.resolve())


def _converted(source: Path, output: Path, options: ImageOptions) -> Path:
    """The dataset of the sample with these options."""
    quiet = io.StringIO()  # a summary that is not about the user's data
    with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
        convert(
            ConvertConfig(source=(str(source),), output=str(output), name="sample", report=False, **asdict(options))
        )
    return output
