"""Check how this installation handles each kind of image file: a corpus is made, converted and compared.

    shardline-doctor                  # the table; exit code 1 if any row is not as it should be
    shardline-doctor --corpus=DIR     # also keep the files, to try other tools on them

Also says which NVIDIA GPUs there are, and fails if TensorFlow cannot use them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardline.pipeline import cli as command_line
from shardline.pipeline import executors, nvidia
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.executors import WHY, Show, Task, no_show
from shardline.pipeline.machine import available_cores
from shardline.pipeline.options import check_options, option

if TYPE_CHECKING:
    import numpy as np

    from shardline.tools.malformed_images import Case

__all__ = ["DoctorConfig", "Row", "doctor"]

CASES = 20  # that a worker examines in a row


@dataclass(frozen=True)
class DoctorConfig:
    """One examination of this installation."""

    corpus: str = option(
        "", "new or empty folder to keep the malformed images in; default: none are kept", path="folder"
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Row:
    """What became of one file."""

    name: str
    outcome: str  # "written" or "quarantined: reason"
    difference: float | None  # from the image it was made from, mean in levels of 255; None where there is none
    oracles: str  # the same of other decoders: what they are, or whether they refuse the file
    detail: str
    error: str  # "" where all is as it should be


def doctor(config: DoctorConfig) -> list[Row]:
    """Convert every sound variant and every malformed image, and hold the outcome against what it must be.

    Raises:
      UsageError: `corpus` exists and is not an empty folder.
    """
    folder = Path(config.corpus)
    if config.corpus and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--corpus={folder}: exists and is not an empty folder; name a new one")
    command_line.log("examine: making sound and malformed files …")  # importing the decoders takes seconds, too
    from shardline.pipeline.images import set_up_process  # OpenCV: not for --help
    from shardline.tools import image_variants, malformed_images

    set_up_process()
    cases = [*malformed_images.cases(), *image_variants.variants()]
    if config.corpus:
        malformed_images.write(folder, cases)
    return examine_all(cases)


@dataclass(frozen=True)
class _Cases(Task):
    """Cases to examine: the task of a worker."""

    first: int  # number of the first case
    cases: tuple[Case, ...]

    def __len__(self) -> int:
        return len(self.cases)

    def describe(self, position: int) -> str:
        """Name of the file."""
        return self.cases[position].name


def examine_all(cases: Sequence[Case]) -> list[Row]:
    """A row for each case, in order: examined in processes of their own, as any of these decoders may crash."""
    tasks = [_Cases(first, tuple(cases[first : first + CASES])) for first in range(0, len(cases), CASES)]
    with command_line.progress(total=len(cases), desc="examine", unit="file") as bar:
        found = dict(executors.run(_examine, tasks, workers=available_cores(), on_progress=bar.update))
    return [row for first in sorted(found) for row in found[first]]


def _examine(task: _Cases, show: Show = no_show) -> tuple[int, list[Row]]:
    from shardline.pipeline.images import set_up_process  # OpenCV: not for --help

    set_up_process()
    rows = []
    for position, case in enumerate(task.cases):
        show(position, decoding=True)
        if reason := dict(task.unsafe).get(position):
            error = f"expected {case.reason or 'an image'}"
            rows.append(Row(case.name, f"quarantined: {reason}", None, "", WHY[reason], error))
        else:
            rows.append(examine(case))
    return task.first, rows


def examine(case: Case) -> Row:
    """Convert one case as the converter would, and hold the result against what it must be."""
    from shardline.pipeline.image_options import ImageOptions
    from shardline.pipeline.image_types import BadImage
    from shardline.pipeline.images import load_rgb, process  # OpenCV: not for --help

    oracles = _oracles(case)
    try:
        image = process(case.data, ImageOptions())
    except BadImage as bad:
        error = "" if bad.reason == case.reason else f"expected {case.reason or 'an image'}"
        return Row(case.name, f"{bad.status}: {bad.reason}", None, oracles, bad.detail, error)
    faults = [f"expected quarantine for {case.reason}"] if case.reason else []
    if case.note not in image.note:
        faults.append(f"expected the note {case.note!r}")
    if any(mark in image.data for mark in (b"Exif\0\0", b"ICC_PROFILE", b"MPF\0", b"must not survive")):
        faults.append("metadata survived")
    difference = None
    if case.rgb is not None:
        rgb = load_rgb(case.data, ImageOptions(resize="none"))
        difference = _difference(rgb, case.rgb)
        if rgb.shape != case.rgb.shape or difference > case.tolerance:
            faults.append(f"{rgb.shape[0]}x{rgb.shape[1]}, differs by {difference:.1f}, more than {case.tolerance:g}")
    made = f"{image.source_format} {image.source_width}x{image.source_height}"
    detail = f"{made}; {image.note}" if image.note else made
    return Row(case.name, "written", difference, oracles, detail, "; ".join(faults))


def _difference(rgb: np.ndarray, truth: np.ndarray) -> float:
    return float(abs(rgb.astype(float) - truth).mean()) if rgb.shape == truth.shape else 255.0


def _oracles(case: Case) -> str:
    """`Pillow 0.1, imagecodecs refuses`; "" where there is no truth to hold them against."""
    from shardline.tools import image_oracles

    if case.rgb is None:
        return ""
    found = image_oracles.verdicts(case.data, case.rgb)
    return ", ".join(f"{name} {'refuses' if value is None else format(value, '.1f')}" for name, value in found.items())


def table(rows: Iterable[Row]) -> str:
    """One line a file: what became of it, how far ours and those of other decoders are from the truth."""
    lines = [
        (
            "WRONG" if row.error else "ok",
            row.name,
            row.outcome,
            "" if row.difference is None else f"{row.difference:.1f}",
            row.oracles,
            row.detail + (f"  << {row.error}" if row.error else ""),
        )
        for row in rows
    ]
    heads = ("", "file", "outcome", "ours", "others", "detail")
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    texts = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (heads, *lines))
    return "\n".join(text.rstrip() for text in texts)


def gpus() -> tuple[list[str], str]:
    """What is said of this machine's NVIDIA cards, a line each, and what is wrong with them; "" for nothing."""
    found = nvidia.cards()
    if not found:
        return ["no NVIDIA GPU"], ""
    tf = command_line.import_tensorflow()
    build, seen = tf.sysconfig.get_build_info(), tf.config.list_physical_devices("GPU")
    lines = [nvidia.description(found, build), *(f"warning: {line}" for line in nvidia.warnings(found))]
    try:
        nvidia.refuse_unused(found, build, len(seen))
    except UsageError as error:
        return lines, str(error)
    return lines, ""


def codecs() -> list[str]:
    """The image libraries inside this OpenCV, as it names them."""
    import cv2

    wanted = ("JPEG:", "WEBP:", "AVIF:", "PNG:", "TIFF:", "JPEG 2000:", "GIF:")
    lines = (" ".join(line.split()) for line in cv2.getBuildInformation().splitlines())
    return [line for line in lines if line.startswith(wanted)]


def main(config: DoctorConfig) -> None:
    """The command: print the table and the versions; fail if any row is wrong."""
    rows = doctor(config)
    from shardline.pipeline.images import versions  # OpenCV: not for --help

    print("How far an image is from what it was made from: mean difference in levels of 255.\n")
    print(table(rows))
    print("\n" + ", ".join(f"{name} {version}" for name, version in versions().items()))
    print("\n".join(codecs()))
    cards, unused = gpus()
    print("\n".join(cards))
    if unused:
        raise Failure(unused)
    wrong = [row.name for row in rows if row.error]
    if wrong:
        raise Failure(f"{len(wrong)} of {len(rows)} kinds of file are handled wrongly here: {', '.join(wrong)}")
    print(f"\nall {len(rows)} kinds of file are handled as they should be")


def cli() -> None:
    """Run the console script `shardline-doctor`."""
    command_line.run(main, DoctorConfig, __doc__)


if __name__ == "__main__":
    cli()
