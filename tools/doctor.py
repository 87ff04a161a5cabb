"""What this installation does to each kind of image file: a corpus made here, converted and compared.

shardline-doctor                  # the table; exit code 1 if any row is not as it should be
shardline-doctor --corpus=DIR     # also keep the files, to try other tools on them
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.options import check_options, option

if TYPE_CHECKING:
    from shardline.tools.malformed_images import Case

__all__ = ["DoctorConfig", "Row", "doctor"]


@dataclass(frozen=True)
class DoctorConfig:
    """One examination of this installation."""

    corpus: str = option("", "new or empty folder to keep the malformed images in; default: none are kept")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Row:
    """What became of one file."""

    name: str
    outcome: str  # "written" or "quarantined: reason"
    detail: str
    error: str  # "" where all is as it should be


def doctor(config: DoctorConfig) -> list[Row]:
    """Convert every malformed image and hold the outcome against what it must be.

    Raises:
      UsageError: `corpus` exists and is not an empty folder.
    """
    from shardline.pipeline.images import set_up_process  # OpenCV: not for --help
    from shardline.tools import malformed_images

    set_up_process()
    if not config.corpus:
        return [examine(case) for case in malformed_images.cases()]
    folder = Path(config.corpus)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--corpus={folder}: exists and is not an empty folder; name a new one")
    return [examine(case) for case in malformed_images.write(folder)]


def examine(case: Case) -> Row:
    """Convert one case as the converter would, and hold the result against what it must be."""
    from shardline.pipeline.image_options import ImageOptions
    from shardline.pipeline.images import BadImage, process

    try:
        image = process(case.data, ImageOptions())
    except BadImage as bad:
        error = "" if bad.reason == case.reason else f"expected {case.reason or 'an image'}"
        return Row(case.name, f"{bad.status}: {bad.reason}", bad.detail, error)
    faults = [f"expected quarantine for {case.reason}"] if case.reason else []
    if case.note not in image.note:
        faults.append(f"expected the note {case.note!r}")
    if b"Exif\0\0" in image.data or b"must not survive" in image.data:
        faults.append("EXIF survived")
    if case.rgb is not None:
        faults += _differences(image.data, case)
    made = f"{image.source_format} {image.source_width}x{image.source_height}"
    return Row(case.name, "written", f"{made}; {image.note}" if image.note else made, "; ".join(faults))


def _differences(stored: bytes, case: Case) -> list[str]:
    """Compare the stored image, decoded as a reader would that ignores EXIF, with the case's pixels."""
    import cv2
    import numpy as np

    bgr = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None or case.rgb is None or bgr.shape != case.rgb.shape:
        return [f"stored image is {None if bgr is None else bgr.shape}"]
    difference = float(np.abs(bgr[:, :, ::-1].astype(float) - case.rgb).mean())
    allowed = case.tolerance + 3  # for being stored as a JPEG
    return [f"differs by {difference:.1f} levels of 255, more than {allowed:g}"] if difference > allowed else []


def table(rows: Iterable[Row]) -> str:
    """One line a file."""
    rows = list(rows)
    first, second = (max(len(getattr(row, name)) for row in rows) for name in ("name", "outcome"))
    return "\n".join(
        f"{'WRONG' if row.error else 'ok':5}  {row.name:{first}}  {row.outcome:{second}}  {row.detail}"
        + (f"  << {row.error}" if row.error else "")
        for row in rows
    )


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

    print(table(rows))
    print("\n" + ", ".join(f"{name} {version}" for name, version in versions().items()))
    print("\n".join(codecs()))
    wrong = [row.name for row in rows if row.error]
    if wrong:
        raise Failure(f"{len(wrong)} of {len(rows)} kinds of file are handled wrongly here: {', '.join(wrong)}")
    print(f"\nall {len(rows)} kinds of file are handled as they should be")


def cli() -> None:
    """Run the console script `shardline-doctor`."""
    command_line.run(main, DoctorConfig, __doc__)


if __name__ == "__main__":
    cli()
