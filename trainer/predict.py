"""Classify image files with a trained run.

    shardline-predict --run RUN --input photo.jpg --output csv
    shardline-predict --run RUN --input 'photos/**/*.png' --output predictions.parquet --gallery look.png

    shardline-predict --run RUN --data DATASET --split test --output submission.csv

Files are read exactly as the converter read the training images. The last form predicts the records of a converted
split, which may be one without labels. A file that cannot be read becomes a row with the
reason. --input may be repeated; arguments that are not flags are inputs too, so the shell may expand '*'.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shardline import pipeline
from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import atomic_write, own_file
from shardline.pipeline.manifest import NO_LABEL
from shardline.pipeline.options import option
from shardline.pipeline.remote import DataCacheOptions
from shardline.pipeline.text import csv_cell, json_display
from shardline.pipeline.wording import count, shorten_middle
from shardline.tools.plot_style import save_figure, set_title
from shardline.trainer.checks import (
    ModelConfig,
    check_labels,
    check_target,
    find_run,
    say_stored_otherwise,
    say_weights,
)
from shardline.trainer.hosts import HostsConfig, ends_together, find_hosts
from shardline.trainer.run_dir import ChosenWeights, Run, choose_weights, read_config, weights_text
from shardline.trainer.xla import start_tensorflow

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from shardline.pipeline.dataset import Dataset
    from shardline.trainer.evaluation.inference import FilePrediction

FORMATS = ("csv", "jsonl", "parquet")
GALLERY_IMAGES = 48
IGNORED_FILES = {"thumbs.db", "desktop.ini"}  # what file managers leave behind


@dataclass(frozen=True)
class PredictConfig(DataCacheOptions, HostsConfig, ModelConfig):
    """Which files to predict, and where the rows go."""

    input: tuple[str, ...] = option(
        (), "image file, directory (with its subdirectories) or glob; may be repeated", positional=True, path="any"
    )
    data: str = option(
        "", "dataset (directory, s3://… or gs://…): predict the records of --split in it, and no files", path="dataset"
    )
    split: str = option("test", "split of --data to predict; it needs no labels")
    output: str = option(
        "csv", "csv or jsonl: print in this format; else a file that ends in .csv, .jsonl or .parquet", path="any"
    )
    top: int = option(5, "number of classes to list for each image, most probable first", low=1)
    gallery: str = option(
        "", "PNG file for a gallery of the first images with their predictions; empty: none", path="file"
    )
    batch_size: int = option(32, "images per forward pass", low=1)


@ends_together
def predict(config: PredictConfig) -> list[FilePrediction]:
    """A row for each file or record, in order, with its most probable classes or the reason why it has none.

    Rows are written to `config.output` when that is a file, and a gallery when one is asked for. Of several hosts each
    predicts its part, all return every row, and the chief writes.

    Raises:
      UsageError: a run, input or target that cannot be used.
      Failure: another process writes to the same target.
    """
    directory = find_run(config.run, config.checkpoint)
    _, target = parse_output(config.output)
    if config.gallery and not config.gallery.lower().endswith(".png"):
        raise UsageError(f"--gallery={config.gallery}: name a file that ends in .png")
    data = open_records(config, directory) if config.data else None
    paths = [] if data else find_files(config.input)
    chosen = choose_weights(directory, config.checkpoint)
    hosts = find_hosts(config)
    if config.gallery and len(hosts.addresses) > 1:
        raise UsageError(f"--gallery={config.gallery} draws what one host predicts; leave it out on several")
    with contextlib.ExitStack() as owned:
        for flag, path in (("--output", target), ("--gallery", config.gallery)):
            if path and hosts.own == 0:
                check_target(flag, path)
                owned.enter_context(own_file(path, flag))
        say_weights(chosen)
        return _predict(config, directory, chosen, data, paths)


def _predict(
    config: PredictConfig, directory: Path, chosen: ChosenWeights, data: Dataset | None, paths: Sequence[str]
) -> list[FilePrediction]:
    if data:
        data.start_workers()
    start_tensorflow()  # takes seconds: after what can be refused at once, as the imports below
    from shardline.trainer.cluster import create_cluster
    from shardline.trainer.evaluation.inference import all_predictions, predict_files, predict_records
    from shardline.trainer.handshake import check_equal
    from shardline.trainer.run_dir import load_run

    form, target = parse_output(config.output)
    hosts = find_hosts(config)
    devices = create_cluster("multi_worker" if len(hosts.addresses) > 1 else "one_device", 0, config)
    check_equal(devices, hosts_agree_on(config, chosen, data, paths))
    with devices.strategy.scope():
        run = load_run(str(directory), chosen)
    rows: list[FilePrediction] = []
    shown: list[tuple[np.ndarray | None, FilePrediction, str]] = []
    settings = {"top": num_listed(config), "batch_size": config.batch_size}
    if data:
        rows += predict_records(run, devices, data, config.split, **settings)
        if config.gallery:
            shown += records_to_show(run, data, config.split, rows)
    else:
        with command_line.progress(total=len(paths), desc="predict", unit="image") as bar:
            shared = {"host": devices.host, "hosts": devices.hosts}
            for row, image in predict_files(run, paths, images=GALLERY_IMAGES, **settings, **shared):
                rows.append(row)
                if config.gallery and len(shown) < GALLERY_IMAGES:
                    shown.append((image, row, ""))
                bar.update()
        rows = all_predictions(devices, rows, config.batch_size)
    rows = [replace(row, weights=chosen.facts()) for row in rows]
    if target and devices.chief:
        atomic_write(target, as_bytes(rows, form, num_listed(config)))
    if config.gallery:
        command_line.log(f"drawing {config.gallery} …")
        draw_gallery(shown, len(rows), config.gallery)
    return rows


def hosts_agree_on(
    config: PredictConfig, chosen: ChosenWeights, data: Dataset | None, paths: Sequence[str]
) -> dict[str, str | int]:
    """What must be the same on all hosts."""
    names = "".join(f"{path}\0" for path in paths).encode(errors="surrogateescape")
    inputs = {"dataset": data.manifest.digest} if data else {"--input, as SHA-256": hashlib.sha256(names).hexdigest()}
    flags = {f"--{name}": getattr(config, name) for name in ("split", "top", "batch_size")}
    return {**inputs, "SHA-256 of the weights": chosen.sha256, **flags}


def main(config: PredictConfig) -> None:
    """The command: predict, and print the rows when they go to no file."""
    rows = predict(config)
    if find_hosts(config).own:
        return
    form, target = parse_output(config.output)
    if not target:
        sys.stdout.buffer.write(as_bytes(rows, form, num_listed(config)))
    unreadable = sum(bool(row.error) for row in rows)
    if unreadable == len(rows):
        raise Failure(f"no prediction of {count(len(rows), 'file')}; the first, {rows[0].path}: {rows[0].error}")
    where = f" -> {target}" if target else ""
    print(f"{len(rows) - unreadable} predicted, {unreadable} unreadable{where}", file=sys.stderr)


# ------------------------------------------------------------------------------------------- input


def open_records(config: PredictConfig, run: Path) -> Dataset:
    """The dataset to predict, of the run's classes and with records in the split."""
    if config.input:
        raise UsageError(f"--data={config.data} and --input: predict records or files; leave one out")
    data = pipeline.open_dataset(config.data, config)
    check_labels(read_config(run)["labels"], data.labels, config.data)
    if not data.num_records(config.split):
        raise UsageError(f"--split={config.split}: this split holds no records; name another one")
    say_stored_otherwise(run, data)
    return data


def find_files(inputs: Sequence[str]) -> list[str]:
    """The files that inputs name, each once, in order. An input is a file, a directory or a glob."""
    if not inputs:
        raise UsageError("--input is missing: name an image file, a directory or a glob such as 'photos/*.jpg'")
    found: dict[str, None] = {}
    for item in inputs:
        if os.path.isdir(item):
            files = sorted(_walk(item))
        elif os.path.exists(item):  # before globbing: names may hold brackets
            files = [item]
        else:
            files = sorted(path for path in glob.glob(item, recursive=True) if os.path.isfile(path))
        if not files:
            what = "this directory holds no files" if os.path.isdir(item) else "no such file, and no file matches it"
            raise UsageError(f"--input={item}: {what}")
        found.update(dict.fromkeys(files))
    return list(found)


def _walk(directory: str) -> Iterator[str]:
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower() not in IGNORED_FILES:
                yield os.path.join(folder, name)


# ------------------------------------------------------------------------------------------ output


def parse_output(value: str) -> tuple[str, str]:
    """Format and file of `--output`; no file means the terminal."""
    if value in FORMATS:
        if value == "parquet":
            raise UsageError("--output=parquet needs a file; name one that ends in .parquet")
        return value, ""
    form = value.rpartition(".")[2].lower()
    if form not in FORMATS:
        raise UsageError(f"--output={value}: use csv, jsonl, or a file that ends in .csv, .jsonl or .parquet")
    return form, value


def num_listed(config: PredictConfig) -> int:
    """How many classes are listed for each image: `--top`, or all when there are fewer."""
    return min(config.top, len(read_config(find_run(config.run, config.checkpoint))["labels"]))


def as_bytes(rows: Sequence[FilePrediction], form: str, top: int) -> bytes:
    """All rows as a file of this format, with `top` classes each."""
    if form == "parquet":
        return _parquet(rows)
    return (_csv(rows, top) if form == "csv" else _jsonl(rows)).encode()


def _csv(rows: Sequence[FilePrediction], top: int) -> str:
    """path, label, words where there are any, probability, then label2, words2, …, the error and the weights."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ["", *map(str, range(2, top + 1))]
    names = ("label", "words", "probability") if any(row.words for row in rows) else ("label", "probability")
    weights = ["weights"] if any(row.weights for row in rows) else []
    writer.writerow(["path", *(f"{name}{n}" for n in numbers for name in names), "error", *weights])
    for row in rows:
        words = [row.words] if "words" in names else []
        columns = [row.labels, *words, [f"{p:.6f}" for p in row.probabilities]]
        groups = list(zip(*columns, strict=True)) or [("",) * len(names)] * top
        cells = [row.path, *(value for group in groups for value in group), row.error]
        cells += [weights_text(row.weights)] if row.weights else []
        writer.writerow(map(csv_cell, cells))
    return text.getvalue()


def _jsonl(rows: Sequence[FilePrediction]) -> str:
    lines = []
    for row in rows:
        words = [{"words": name} for name in row.words] or [{}] * len(row.labels)
        groups = zip(row.labels, words, row.probabilities, strict=True)
        top = [{"label": label, **name, "probability": round(p, 6)} for label, name, p in groups]
        line: dict[str, Any] = {"path": row.path, "top": top, "error": row.error or None}
        line |= {"weights": row.weights} if row.weights else {}
        lines.append(json.dumps(line, ensure_ascii=False))
    return "".join(json_display(line) + "\n" for line in lines)


def _parquet(rows: Sequence[FilePrediction]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = [row.words for row in rows]
    table = pa.table(
        {
            "path": pa.array([os.fsencode(row.path).decode("utf-8", "replace") for row in rows], pa.string()),
            "label": pa.array([row.labels[0] if row.labels else None for row in rows], pa.string()),
            "probability": pa.array([row.probabilities[0] if row.labels else None for row in rows], pa.float32()),
            "labels": pa.array([list(row.labels) for row in rows], pa.list_(pa.string())),
            "probabilities": pa.array([list(row.probabilities) for row in rows], pa.list_(pa.float32())),
            **({"words": pa.array([list(row.words) for row in rows], pa.list_(pa.string()))} if any(words) else {}),
            "error": pa.array([row.error or None for row in rows], pa.string()),
        }
    )
    if rows and rows[0].weights:
        table = table.replace_schema_metadata({"weights": json.dumps(rows[0].weights)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def records_to_show(
    run: Run, data: Dataset, split: str, rows: Sequence[FilePrediction]
) -> Iterator[tuple[np.ndarray | None, FilePrediction, str]]:
    """Records spread evenly over a split: what the model is shown, the prediction, and the true class if it has one."""
    from shardline.trainer.evaluation.model_input import preprocess, stored_images  # OpenCV

    number = min(GALLERY_IMAGES, len(rows))
    chosen = [i * len(rows) // number for i in range(number)]
    readable = [record for record in chosen if not rows[record].error]
    labels = {record: next(data.records(split, [record]))[1] for record in readable}
    images = dict(zip(readable, stored_images(data, split, readable), strict=True))
    for record in chosen:
        image, label = images.get(record), labels.get(record, NO_LABEL)
        truth = run.shown_labels[label] if label != NO_LABEL else ""
        yield None if image is None else preprocess(image, run), rows[record], truth


def draw_gallery(shown: Sequence[tuple[np.ndarray | None, FilePrediction, str]], num_images: int, target: str) -> None:
    """The images as the model saw them, each with its best class, and whether that is right where this is known."""
    from shardline.trainer.evaluation.plots import gallery  # Matplotlib

    tiles = [tile(image, row, truth) for image, row, truth in shown]
    figure = gallery(tiles, columns=4 if len(tiles) > 6 else 3)
    if num_images > len(shown):
        set_title(figure, f"{len(shown)} of {count(num_images, 'image')}")
    save_figure(figure, target)


def tile(image: np.ndarray | None, row: FilePrediction, truth: str) -> tuple[np.ndarray | None, str, str]:
    """An image of the gallery with its two lines: `✗ rose 93%, is daisy` and the file."""
    path = row.path.rstrip("/").split("/")
    name = shorten_middle("/".join(path[-2:]), 36)
    if row.error or image is None:
        return None, "unreadable", f"{name}\n{shorten_middle(row.error, 34)}"
    best = (row.words or row.labels)[0]
    line = f"{shorten_middle(best, 20)} {row.probabilities[0]:.0%}"
    if not truth:
        return image, line, name
    return image, f"✓ {line}" if best == truth else f"✗ {line}, is {shorten_middle(truth, 16)}", name


def cli() -> None:
    """Run the console script `shardline-predict`."""
    command_line.run(main, PredictConfig, __doc__)


if __name__ == "__main__":
    cli()
