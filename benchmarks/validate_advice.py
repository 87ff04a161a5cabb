"""Advice put to the test: convert a sample of the images as the verdict advises, and measure the host again.

The sample is converted twice, as the dataset is and with the one change, and both are read in turns: the ratio is
what the prediction has to meet. More cores than there are cannot be had, so fewer are tried: the claim is the same.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shardline.benchmarks import stages
from shardline.benchmarks.bottleneck import Verdict
from shardline.benchmarks.measure import Measurement, Rate
from shardline.pipeline import InputConfig, open_dataset
from shardline.pipeline.dataset import Dataset
from shardline.pipeline.encodings import ENCODINGS
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.machine import available_cores
from shardline.pipeline.shards import Shards
from shardline.tools.conversion.run import Config, convert

SUITE, BASE = "prove", "as it is"
SAMPLE = 512  # images
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
Measure = Callable[[Mapping[str, Callable[[], Rate]]], list[Measurement]]  # all contenders, in turns


def prove(
    verdict: Verdict, data: Dataset, split: str, raw_images: str, config: InputConfig, seconds: float, work: Path,
    measure: Measure,
) -> list[Measurement]:  # fmt: skip
    """Measure every piece of advice.

    Args:
      verdict: whose advice it is.
      data: the dataset that was measured; the sample is taken from it, unless
      raw_images: names a folder to take it from.
      config: of the batches.
      seconds: of one repeat.
      work: an empty directory.
      measure: called once with the contenders.

    Returns:
      A row for the sample as it is, and one for each change, whose settings hold the `predicted` ratio to it.
    """
    cores = sorted(os.sched_getaffinity(0))
    source = _from_folder(Path(raw_images), work) if raw_images else _from_shards(data, split, work)
    options = _options(data)
    base = _batches(source, work / "base", options, config, seconds)
    contenders: dict[str, Callable[[], Rate]] = {BASE: base}
    predicted: dict[str, float] = {}
    unproved: dict[str, str] = {}
    for advice in verdict.advice:
        if not advice.change.startswith("--"):  # N more cores
            if len(cores) < 2:
                unproved[advice.change] = "this machine has one core"
                continue
            fewer = len(cores) // 2
            name = f"{fewer} of {len(cores)} cores (for {advice.change})"
            small = _batches(source, work / "base", options, replace(config, threads=fewer), seconds)
            contenders[name], predicted[name] = on_cores(cores[:fewer], small), fewer / len(cores)
            continue
        flag, value = advice.change.removeprefix("--").split()
        kind = type(getattr(options, flag))
        changed = replace(options, **{flag: kind(value)})
        contenders[advice.change] = _batches(source, work / flag, changed, config, seconds)
        predicted[advice.change] = advice.alone
    if not predicted:
        return []
    return [
        replace(m, settings={**m.settings, "unproved": unproved, "predicted": predicted.get(m.name)})
        for m in measure(contenders)
    ]


def on_cores(cores: list[int], work: Callable[[], Rate]) -> Callable[[], Rate]:
    """Pin every thread that `work` starts to these cores."""

    def pinned() -> Rate:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            return work()
        finally:
            os.sched_setaffinity(0, allowed)

    return pinned


def _batches(source: Path, output: Path, options: ImageOptions, config: InputConfig, seconds: float) -> Any:
    """The host's batches from the sample, converted with these options."""
    if not output.exists():
        talk = io.StringIO()  # its summary is not about the user's data
        with (
            contextlib.redirect_stderr(talk),
            contextlib.redirect_stdout(talk),
        ):
            workers = available_cores()
            convert(Config(str(source), output, "sample", options, {}, workers=workers, report=False))
    return stages.rungs(open_dataset(output), "train", config, seconds=seconds)["batch"]


def _options(data: Dataset) -> ImageOptions:
    """How the dataset was made, as far as it says so."""
    known: dict[str, Any] = {
        f.name: data.manifest.options[f.name] for f in fields(ImageOptions) if f.name in data.manifest.options
    }
    image = data.manifest.image
    encoding = image.encoding if ENCODINGS[image.encoding].writable else "jpeg"
    stored: dict[str, Any] = {"resize": image.resize, "size": image.size, "encoding": encoding}
    return ImageOptions(**stored | known)


def _from_shards(data: Dataset, split: str, work: Path) -> Path:
    """Stored images as files again, spread evenly over the split; raw pixels as PNG."""
    folder = work / "source" / "sample"
    folder.mkdir(parents=True)
    shards = Shards(data.manifest, data.directory, split)
    encoding = ENCODINGS[data.manifest.image.encoding]
    for record in np.unique(np.linspace(0, len(shards) - 1, SAMPLE).astype(int)).tolist():
        try:
            example = shards.read(record)
            image = bytes(example.image)
            if not encoding.self_describing:
                pixels = cv2.cvtColor(encoding.decode(example), cv2.COLOR_RGB2BGR)
                image = cv2.imencode(".png", pixels)[1].tobytes()
        except ValueError:
            continue  # the ladder has told of it
        (folder / f"{record:08d}.{'jpg' if encoding.name == 'jpeg' else 'png'}").write_bytes(image)
    return folder.parent


def _from_folder(raw_images: Path, work: Path) -> Path:
    """Links to images of a folder, spread evenly over it."""
    folder = work / "source" / "sample"
    folder.mkdir(parents=True)
    paths = sorted(path for path in raw_images.rglob("*") if path.suffix.lower() in _IMAGES)
    for number in np.unique(np.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).astype(int)).tolist():
        (folder / f"{number:08d}{paths[number].suffix}").symlink_to(paths[number].resolve())
    return folder.parent
