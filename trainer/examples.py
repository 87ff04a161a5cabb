"""What a model gets right and wrong on a held-out split, class by class, with images: a part of RUN/report.html."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shardline.pipeline.dataset import Dataset
from shardline.pipeline.image_bytes import encode_rgb, fit
from shardline.pipeline.preprocessing import eval_geometry
from shardline.pipeline.wording import count, shorten, shorten_middle
from shardline.tools.html_report import Example, HtmlReport
from shardline.trainer.callbacks import Answers
from shardline.trainer.config import TrainConfig
from shardline.trainer.evaluation.model_input import stored_images

PAIRS = 20  # of confused classes, in the table
CLASSES, EACH = 12, 4  # classes with images, the most often mistaken; images of each kind
SHEET = 16  # mistakes on the sheet
THUMBNAIL, TILE, CAPTION = 72, 128, 26  # pixels


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A held-out split as the model answered it.

    Attributes:
      labels: what people are shown for each class.
    """

    data: Dataset
    split: str
    config: TrainConfig
    labels: Sequence[str]
    answers: Answers
    hosts: int = 1  # of which the first one's answers are these

    def __str__(self) -> str:
        return self.split if self.hosts == 1 else f"{self.split} (the part of host 0 of {self.hosts})"

    @property
    def wrong(self) -> np.ndarray:
        """bool [n]"""
        mistaken: np.ndarray = self.answers.predicted != self.answers.labels
        return mistaken

    def images(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """What the model is shown of some rows: uint8 RGB [image_size, image_size, 3]."""
        size, fraction = self.config.image_size, self.config.eval_crop_fraction
        for image in stored_images(self.data, self.split, self.answers.records[rows]):
            yield np.zeros((size, size, 3), np.uint8) if image is None else eval_geometry(image, size, fraction)

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Records and right answers of each class, int64 [classes]."""
        found, number = self.answers, len(self.labels)
        right = found.labels[~self.wrong]
        return np.bincount(found.labels, minlength=number), np.bincount(right, minlength=number)

    def confused(self) -> list[tuple[int, int, int]]:
        """True class, predicted class and records of each confused pair, the most frequent first."""
        found, wrong, number = self.answers, self.wrong, len(self.labels)
        keys, counts = np.unique(found.labels[wrong] * number + found.predicted[wrong], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(int(keys[i] // number), int(keys[i] % number), int(counts[i])) for i in order]

    def caption(self, row: int) -> str:
        """`87%`, or `tulip 87%` where that is wrong."""
        sure = f"{self.answers.confidence[row]:.0%}"
        return f"{self.labels[self.answers.predicted[row]]} {sure}" if self.wrong[row] else sure


def add_examples(page: HtmlReport, found: HeldOut) -> None:
    """Confused pairs, all classes, and images of those that are mistaken most often."""
    records, right = found.counts()
    pairs = found.confused()
    if pairs:
        rows = [(found.labels[a], found.labels[b], n, int(records[a])) for a, b, n in pairs[:PAIRS]]
        note = f"{count(int(found.wrong.sum()), 'mistake')} of {count(len(found.wrong), 'record')} of {found}"
        note += f"; the {PAIRS} most frequent of {len(pairs):,} pairs." if len(pairs) > PAIRS else "."
        page.table("Confused pairs", ("true class", "predicted as", "records", "of"), rows, note=note)
    else:
        page.text("Confused pairs", f"No mistake among the {count(len(found.wrong), 'record')} of {found}.")
    present = np.flatnonzero(records)
    classes = present[np.argsort(right[present] / records[present], kind="stable")].tolist()
    recalls = [(found.labels[c], int(records[c]), int(right[c]), f"{right[c] / records[c]:.1%}") for c in classes]
    page.table("Classes", ("class", "records", "right", "recall"), recalls, note="The lowest recall first.")
    shown = classes[:CLASSES]
    few = f" of the {len(shown)} classes of lowest recall" if len(shown) < len(classes) else " of each class"
    page.examples(
        "Right and wrong",
        [(f"{found.labels[c]}: {right[c]:,} of {records[c]:,} right", list(_examples(found, c))) for c in shown],
        note=f"Records{few} in {found}, as the model is shown them: the ones it is surest of, "
        f"up to {EACH} right and {EACH} wrong.",
    )


def _examples(found: HeldOut, label: int) -> Iterator[Example]:
    own = np.flatnonzero(found.answers.labels == label)
    own = own[np.argsort(-found.answers.confidence[own], kind="stable")]
    rows = np.concatenate([own[~found.wrong[own]][:EACH], own[found.wrong[own]][:EACH]])
    for row, image in zip(rows.tolist(), found.images(rows), strict=True):
        yield Example(webp(image), found.caption(row), right=not found.wrong[row])


def mistakes_sheet(found: HeldOut) -> bytes:
    """The mistakes the model is surest of, each with its two classes, as one JPEG; b"" where there are none."""
    wrong = np.flatnonzero(found.wrong)
    rows = wrong[np.argsort(-found.answers.confidence[wrong], kind="stable")][:SHEET]
    captions = [f"{found.labels[found.answers.labels[row]]}\n→ {found.caption(row)}" for row in rows]
    return contact_sheet(list(found.images(rows)), captions, columns=min(4, len(rows))) if len(rows) else b""


def webp(image: np.ndarray, side: int = THUMBNAIL) -> bytes:
    """A square image, uint8 RGB, at most `side` pixels wide."""
    return encode_rgb(fit(image, side), "webp", 75)


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 8) -> bytes:
    """Square images, uint8 RGB, in rows, each above its caption of up to two lines: one JPEG."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (TILE + CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = number % columns * TILE, number // columns * (TILE + CAPTION)
        sheet.paste(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BOX), (left, top))
        lines = [shorten_middle(shorten(line, 60), TILE // 6) for line in caption.split("\n")]
        draw.multiline_text((left + 2, top + TILE), "\n".join(lines), "black", font, spacing=1)
    return encode_rgb(np.asarray(sheet), "jpg", 85)
