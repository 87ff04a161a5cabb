"""RUN/report.html: how a run stands, written anew at each evaluation; and the batches as the model is shown them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from shardline import pipeline
from shardline.pipeline.files import atomic_write
from shardline.pipeline.paths import is_remote
from shardline.pipeline.wording import as_flag, count, noun_after
from shardline.tools.html_report import HtmlReport
from shardline.trainer import curves, metrics_log
from shardline.trainer.callbacks import Callback, Report, Start
from shardline.trainer.config import TrainConfig
from shardline.trainer.run_dir import BATCHES, CONFIG_FILE, PLOTS, REPORT

if TYPE_CHECKING:
    from shardline.trainer.setup import TrainSetup

REFRESH_SECONDS = 30  # of an open page, while the run goes on
SHOWN = 24  # samples of training


class RunReport(Callback):
    """The run's own callback that keeps its page."""

    def __init__(self, setup: TrainSetup) -> None:
        self.setup, self.directory = setup, Path(setup.config.workdir)
        self._seen: list[tuple[bytes, str]] = []
        self._start: Start | None = None

    def begin(self, start: Start) -> None:
        """Draw the first samples that this call of training takes."""
        self._start = start
        self._seen = samples_as_seen(self.setup, round(start.epoch * self.setup.num_records))
        if self._seen:
            sheet = contact_sheet([data for data, _ in self._seen])
            (self.directory / PLOTS).mkdir(exist_ok=True)
            atomic_write(self.directory / PLOTS / BATCHES, sheet, durable=False)

    def report(self, report: Report) -> None:
        """At each evaluation."""
        if report.kind == "eval":
            self._write(finished=False)

    def end(self) -> None:
        """Once more, to be read again no longer."""
        if self._start:
            self._write(finished=True)

    def _write(self, *, finished: bool) -> None:
        config, log = self.setup.config, metrics_log.read(self.directory)
        page = HtmlReport(
            f"{self.directory.absolute().name}: {headline(log)}",
            subtitle=f"VGG16, {count(len(self.setup.labels), 'class')}, {config.phases}, "
            + ("training has ended." if finished else "training; this page is read again by itself."),
            refresh_seconds=0 if finished else REFRESH_SECONDS,
        )
        add_curves(page, config, log)
        add_numbers(page, log)
        if self._seen:
            note = "The first samples of this run, cropped and augmented as the model is shown them."
            page.gallery("Batches as seen", self._seen, note=note)
        add_settings(page, config)
        page.links("Files", files_beside(self.directory, config.data))
        page.save(self.directory / REPORT)


def headline(log: Sequence[Mapping[str, Any]]) -> str:
    """What is known last, in a few words."""
    held_out = [line for line in log if line["kind"] == "eval"]
    if not held_out:
        return f"loss {log[-1]['loss']:.3f} at step {log[-1]['step']:,}" if log else "no step yet"
    last = held_out[-1]
    epochs = f"{last['epoch']:.3g} {noun_after(last['epoch'], 'epoch')}"
    return f"{last['top1']:.1%} top-1 on {last['split']} after {epochs}"


def add_curves(page: HtmlReport, config: TrainConfig, log: list[dict[str, Any]]) -> None:
    """Loss, top-1 and rate with phase marks; throughput and waiting for input."""
    if not log:
        page.text("Training", "This run directory holds no metrics.jsonl, so there are no curves.")
        return
    epochs = itertools.accumulate((phase.epochs for phase in config.phase_list), initial=0.0)
    phases = [(phase.part, epoch) for phase, epoch in zip(config.phase_list, epochs, strict=False)]
    evaluations = [line for line in log if line["kind"] == "eval"]
    last = (evaluations or log)[-1]
    alt = f"loss, top-1 and learning rate over epochs; last: loss {last['loss']:.3f}, top-1 {last['top1']:.1%}"
    held_out = evaluations[0]["split"] if evaluations else ""
    page.figure("Training", curves.training_curves(log, phases, held_out), alt)
    throughput = curves.throughput_curves(log, phases)
    if throughput is not None:
        page.figure("Throughput", throughput, "images per second and share of time waiting for input, over epochs")


def add_numbers(page: HtmlReport, log: Sequence[Mapping[str, Any]]) -> None:
    """Every evaluation so far."""
    rows = [
        (f"{line['epoch']:.2f}", int(line["step"]), line["split"], f"{line['loss']:.4f}", f"{line['top1']:.1%}",
         f"{line['top5']:.1%}")
        for line in log
        if line["kind"] == "eval"
    ]  # fmt: skip
    if rows:
        page.table("Evaluations", ("epoch", "step", "split", "loss, nats", "top-1", "top-5"), rows)


def add_settings(page: HtmlReport, config: TrainConfig) -> None:
    """The flags that were given, and what the others were."""
    default, used = TrainConfig().to_dict(), config.to_dict()
    changed = [name for name, value in used.items() if value != default[name]]
    rows = [(f"--{name}", as_flag(used[name]), as_flag(default[name])) for name in changed]
    page.table("Settings", ("flag", "value", "default"), rows, note="Flags that differ from their defaults:")
    rest = ", ".join(f"{name}={as_flag(value)}" for name, value in used.items() if name not in changed)
    page.text("Settings", f"Defaults: {rest}.")


def files_beside(directory: Path, data: str) -> list[tuple[str, str]]:
    """What to open next, as far as it is there: text and path, from the run directory."""
    found = [(name, name) for name in (CONFIG_FILE, metrics_log.FILE_NAME)]
    found += [(f"{path.parent.name}: report", f"{path.parent.name}/{REPORT}") for path in evaluations_of(directory)]
    if data and not is_remote(data):
        where = os.path.relpath(Path(data, REPORT).absolute(), directory.absolute())
        found.insert(0, ("the dataset's report", where))
    return [(text, path) for text, path in found if (directory / path).exists()]


def evaluations_of(directory: Path) -> list[Path]:
    """The pages that shardline-evaluate has written into the run directory."""
    return sorted(directory.glob(f"evaluation-*/{REPORT}"))


def samples_as_seen(setup: TrainSetup, cursor: int) -> list[tuple[bytes, str]]:
    """The samples from `cursor` on as the step takes them, device half of augmentation included: JPEG and label.

    None of synthetic batches, which hold noise.
    """
    if not isinstance(setup.data, pipeline.Dataset):
        return []
    settings = replace(setup.input, cache="none")
    sampler = setup.sampler if setup.config.balanced_sampling else None
    data = pipeline.open_dataset(setup.config.data, setup.config)  # of its own: the run's counts what its stages cost
    batches = data.train_batches(setup.config.train_split, settings, cursor=cursor, sampler=sampler)
    labels, shown = data.manifest.shown_labels, list[tuple[bytes, str]]()
    for batch in itertools.islice(batches, -(-SHOWN // settings.global_batch_size)):
        seen = pipeline.augment_on_device(batch, settings)
        images = np.clip(np.rint(np.asarray(seen["image"], np.float32)), 0, 255).astype(np.uint8)
        shown += [
            (jpeg(image), labels[label])
            for image, label, weight in zip(images, batch["label"].numpy(), batch["weight"].numpy(), strict=True)
            if weight
        ]
    return shown[:SHOWN]


def jpeg(image: np.ndarray, side: int = 128) -> bytes:
    """An image, uint8 RGB [s, s, 3], at most `side` pixels wide."""
    if len(image) > side:
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def contact_sheet(images: Iterable[bytes], columns: int = 8) -> bytes:
    """Equally large JPEGs of ours in rows, as one."""
    tiles = [np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)) for data in images]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[first : first + columns]) for first in range(0, len(tiles), columns)]
    return cv2.imencode(".jpg", np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
