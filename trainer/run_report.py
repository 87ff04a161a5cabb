"""RUN/report.html: how a run stands, written anew at each evaluation; and the batches as the model is shown them."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shardline import pipeline
from shardline.pipeline.files import atomic_write
from shardline.pipeline.wording import count
from shardline.tools.html_report import HtmlReport, replace_links
from shardline.trainer import metrics_log
from shardline.trainer.callbacks import Callback, Report, Start
from shardline.trainer.examples import HeldOut, add_examples, contact_sheet, mistakes_sheet, webp
from shardline.trainer.run_dir import BATCHES, CONFIG_FILE, CURVES, MISTAKES, PLOTS, REPORT, read_config
from shardline.trainer.run_sections import add_curves, add_numbers, add_settings, headline

if TYPE_CHECKING:
    from shardline.trainer.setup import TrainSetup

FILES = "Files"  # heading of the links
REFRESH_SECONDS = 30  # of an open page, while the run goes on
SHOWN = 24  # samples of training


class RunReport(Callback):
    """The run's own callback that keeps its page."""

    def __init__(self, setup: TrainSetup) -> None:
        self.setup, self.directory = setup, Path(setup.config.workdir)
        self._seen: list[tuple[np.ndarray, str]] = []
        self._start: Start | None = None
        self._held_out: HeldOut | None = None

    def begin(self, start: Start) -> None:
        """Draw the first samples that this call of training takes."""
        self._start = start
        self._seen = samples_as_seen(self.setup, round(start.epoch * self.setup.num_records))
        if self._seen:
            self._save(BATCHES, contact_sheet(*zip(*self._seen, strict=True)))

    def report(self, report: Report) -> None:
        """At each evaluation."""
        if report.kind != "eval":
            return
        if report.answers and isinstance(self.setup.data, pipeline.Dataset):
            labels, split = self.setup.data.manifest.shown_labels, self.setup.eval_split
            hosts = self.setup.cluster.hosts
            self._held_out = HeldOut(self.setup.data, split, self.setup.config, labels, report.answers, hosts)
            self._save(MISTAKES, mistakes_sheet(self._held_out))
        self._write(finished=False)

    def end(self) -> None:
        """Once more, to be read again no longer."""
        if self._start:
            self._write(finished=True)

    def _save(self, name: str, sheet: bytes) -> None:
        """Write an image to plots/; without one, remove that of before."""
        path = self.directory / PLOTS / name
        path.parent.mkdir(exist_ok=True)
        if sheet:
            atomic_write(path, sheet, durable=False)
        else:
            path.unlink(missing_ok=True)

    def _write(self, *, finished: bool) -> None:
        config, log = self.setup.config, metrics_log.read(self.directory)
        page = HtmlReport(
            f"{self.directory.absolute().name}: {headline(log)}",
            subtitle=f"VGG16, {count(len(self.setup.labels), 'class')}, {config.phases}, "
            + ("training has ended." if finished else "training goes on; this page reloads itself."),
            refresh_seconds=0 if finished else REFRESH_SECONDS,
        )
        (self.directory / PLOTS).mkdir(exist_ok=True)
        add_curves(page, config, log, self.directory / PLOTS / CURVES)
        add_numbers(page, log)
        if self._held_out:
            add_examples(page, self._held_out)
        if self._seen:
            note = "The first samples of this run, cropped and augmented as the model is shown them."
            page.gallery("Batches as seen", [(webp(image, 128), label) for image, label in self._seen], note=note)
        add_settings(page, config)
        page.links(FILES, files_beside(self.directory, config.data))
        page.save(self.directory / REPORT)


def refresh_links(directory: Path) -> None:
    """Let the page of a run, where it has one, lead to what was made of the run since: evaluations, benchmarks."""
    if (directory / REPORT).is_file():
        replace_links(directory / REPORT, FILES, files_beside(directory, read_config(directory)["train"]["data"]))


def files_beside(directory: Path, data: str) -> list[tuple[str, str]]:
    """What to open next, as far as it is there: text and path, from the run directory."""
    pages = [(f"{path.parent.name}: report", f"{path.parent.name}/{REPORT}") for path in pages_in(directory)]
    found = [*pages, (CONFIG_FILE, CONFIG_FILE), (metrics_log.FILE_NAME, metrics_log.FILE_NAME)]
    if data:
        where = os.path.relpath(Path(data, REPORT).absolute(), directory.absolute())
        found.insert(0, ("the dataset's report", where))
    return [(text, path) for text, path in found if (directory / path).exists()]


def pages_in(directory: Path) -> list[Path]:
    """The pages that shardline-evaluate and shardline-benchmark have written into folders of the run directory."""
    return sorted(directory.glob(f"*/{REPORT}"))


def samples_as_seen(setup: TrainSetup, cursor: int) -> list[tuple[np.ndarray, str]]:
    """The samples from `cursor` on as the step takes them, device half of augmentation included.

    Uint8 RGB [s, s, 3] and label of each. None of synthetic batches, which hold noise.
    """
    if not isinstance(setup.data, pipeline.Dataset):
        return []
    now = next(sized for span in setup.spans for sized, _ in setup.stretches(span, cursor))
    settings = replace(now.input, cache="none")
    sampler = setup.sampler if setup.config.balanced_sampling else None
    data = pipeline.open_dataset(setup.config.data, setup.config)  # of its own: the run's counts what its stages cost
    data.bad_records = setup.data.bad_records  # which nobody tries again
    batches = data.train_batches(setup.config.train_split, settings, cursor=cursor, sampler=sampler)
    labels, shown = data.manifest.shown_labels, list[tuple[np.ndarray, str]]()
    for batch in itertools.islice(batches, -(-SHOWN // settings.global_batch_size)):
        seen = pipeline.augment_on_device(batch, settings)
        images = np.clip(np.rint(np.asarray(seen["image"], np.float32)), 0, 255).astype(np.uint8)
        shown += [
            (image, labels[label])
            for image, label, weight in zip(images, batch["label"].numpy(), batch["weight"].numpy(), strict=True)
            if weight
        ]
    return shown[:SHOWN]
