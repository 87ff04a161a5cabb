"""Name the images in any image files with a trained run.

    shardline-predict --run RUN --input photo.jpg --output csv
    shardline-predict --run RUN --input 'photos/**/*.png' --output predictions.parquet --gallery look.png

Files are read exactly as the converter read the training images. A file that cannot be read becomes a row with
its reason. --input may be repeated; arguments that are no flags count as inputs too, so the shell may expand '*'.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from shardline.pipeline import cli as command
from shardline.pipeline.cli import progress
from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer.checks import check_target, find_run

FLAGS = flags.FLAGS

FORMATS = ("csv", "jsonl", "parquet")
GALLERY_IMAGES = 48
SKIPPED = {"thumbs.db", "desktop.ini"}  # what file managers leave behind


@dataclass(frozen=True)
class Row:
    """What came of one file: its most probable classes, or why there are none."""

    path: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


def main(arguments: list[str]) -> None:
    """Flags to one prediction."""
    directory = find_run(FLAGS.run, FLAGS.checkpoint)
    form, target = parse_output(FLAGS.output)
    if FLAGS.gallery and not FLAGS.gallery.lower().endswith(".png"):
        raise UsageError(f"--gallery={FLAGS.gallery}: name a file that ends in .png")
    paths = find_files([*FLAGS.input, *arguments])
    for flag, path in (("--output", target), ("--gallery", FLAGS.gallery)):
        if path:
            check_target(flag, path)

    command.import_tensorflow()
    from shardline.trainer.state import load_run

    run = load_run(str(directory), FLAGS.checkpoint or None)
    top = min(FLAGS.top, len(run.labels))
    rows: list[Row] = []
    shown: list[tuple[np.ndarray | None, Row]] = []
    with progress(total=len(paths), desc="predict", unit="image") as bar:
        for row, image in predict(run, paths, top=top, batch_size=FLAGS.batch_size):
            rows.append(row)
            if FLAGS.gallery and len(shown) < GALLERY_IMAGES:
                shown.append((image, row))
            bar.update()
    write(rows, form, target, top)
    if FLAGS.gallery:
        draw_gallery(shown, len(rows), FLAGS.gallery)
    broken = sum(bool(row.error) for row in rows)
    if broken == len(rows):
        raise Failure(f"none of {len(rows)} files could be read; the first, {rows[0].path}: {rows[0].error}")
    where = f" -> {target}" if target else ""
    print(f"{len(rows) - broken} predicted, {broken} unreadable{where}", file=sys.stderr)


# ------------------------------------------------------------------------------------------- input


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
            if not name.startswith(".") and name.lower() not in SKIPPED:
                yield os.path.join(folder, name)


# ------------------------------------------------------------------------------------- predictions


def predict(run: Any, paths: Sequence[str], *, top: int, batch_size: int) -> Iterator[tuple[Row, np.ndarray | None]]:
    """A row for each path, in order, and the square the model saw (None for a broken file)."""
    import tensorflow as tf

    from shardline.pipeline.images import set_up_process
    from shardline.trainer.evaluation.model_input import stored_options

    set_up_process()
    options = stored_options(run)
    forward = tf.function(lambda images: run.model(images, training=False), jit_compile=run.config.jit, autograph=False)
    size = run.config.image_size
    chunks = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
    rows = min(batch_size, len(paths))  # short batches are filled up, so that the model is traced once
    with ThreadPoolExecutor() as pool:

        def start(chunk: Sequence[str]) -> list[Any]:
            return [pool.submit(load, path, run, options) for path in chunk]

        coming = start(chunks[0])
        for number, chunk in enumerate(chunks):
            loaded = [future.result() for future in coming]
            coming = start(chunks[number + 1]) if number + 1 < len(chunks) else []  # while the model runs
            batch = np.zeros((rows, size, size, 3), np.uint8)
            for i, (image, _) in enumerate(loaded):
                if image is not None:
                    batch[i] = image
            probabilities = forward(tf.constant(batch)).numpy()
            for path, (image, error), row in zip(chunk, loaded, probabilities, strict=False):
                if image is None:
                    yield Row(path, error=error), None
                    continue
                best = np.argsort(-row, kind="stable")[:top]
                yield Row(path, tuple(run.labels[c] for c in best), tuple(float(row[c]) for c in best)), image


def load(path: str, run: Any, options: Any) -> tuple[np.ndarray | None, str]:
    """What the model is shown of a file, or why it cannot be."""
    from shardline.pipeline.images import BadImage
    from shardline.trainer.evaluation import model_input

    try:
        return model_input.load_image(Path(path).read_bytes(), run, options), ""
    except BadImage as error:
        return None, " ".join(str(error).split())
    except OSError as error:
        return None, f"cannot be read: {error.strerror or error}"
    except MemoryError:
        return None, "too large for this machine's memory"


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


def write(rows: Sequence[Row], form: str, target: str, top: int) -> None:
    """All rows to the file, whole or not at all, or to the terminal."""
    if form == "parquet":
        data = _parquet(rows)
    else:
        data = (_csv(rows, top) if form == "csv" else _jsonl(rows)).encode("utf-8", "surrogateescape")
    if not target:
        sys.stdout.buffer.write(data)
        return
    temporary = Path(target + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(target)


def _csv(rows: Sequence[Row], top: int) -> str:
    """path, label, probability, then label2, probability2, …, and the error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ["", *map(str, range(2, top + 1))]
    writer.writerow(["path", *(f"{name}{n}" for n in numbers for name in ("label", "probability")), "error"])
    for row in rows:
        pairs = list(zip(row.labels, (f"{p:.6f}" for p in row.probabilities), strict=True)) or [("", "")] * top
        writer.writerow([row.path, *(value for pair in pairs for value in pair), row.error])
    return text.getvalue()


def _jsonl(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        pairs = zip(row.labels, row.probabilities, strict=True)
        top = [{"label": label, "probability": round(p, 6)} for label, p in pairs]
        lines.append(json.dumps({"path": row.path, "top": top, "error": row.error or None}, ensure_ascii=False))
    return "".join(line + "\n" for line in lines)


def _parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "path": pa.array([os.fsencode(row.path).decode("utf-8", "replace") for row in rows], pa.string()),
            "label": pa.array([row.labels[0] if row.labels else None for row in rows], pa.string()),
            "probability": pa.array([row.probabilities[0] if row.labels else None for row in rows], pa.float32()),
            "labels": pa.array([list(row.labels) for row in rows], pa.list_(pa.string())),
            "probabilities": pa.array([list(row.probabilities) for row in rows], pa.list_(pa.float32())),
            "error": pa.array([row.error or None for row in rows], pa.string()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def draw_gallery(shown: Sequence[tuple[np.ndarray | None, Row]], count: int, target: str) -> None:
    """The images as the model saw them, each with its best class."""
    from shardline.tools.html_report import figure_png
    from shardline.trainer.evaluation import plots

    tiles: list[tuple[np.ndarray | None, str, str]] = []
    for image, row in shown:
        name = plots.short(os.path.basename(row.path), 30)
        if image is None:
            tiles.append((None, "unreadable", f"{name}\n{plots.short(row.error, 34)}"))
        else:
            tiles.append((image, f"{plots.short(row.labels[0], 20)} {row.probabilities[0]:.0%}", name))
    figure = plots.gallery(tiles, columns=4 if len(tiles) > 6 else 3)
    if count > len(shown):
        figure.suptitle(f"the first {len(shown)} of {count:,} files", fontsize=11)
    Path(target).write_bytes(figure_png(figure))


def define_flags() -> None:
    """Only when this is the program: several commands may then be imported side by side."""
    flags.DEFINE_string("run", "", "run directory written by shardline-train")
    flags.DEFINE_string("checkpoint", "", "use this checkpoint instead of the run's final model")
    flags.DEFINE_multi_string("input", [], "image file, directory (searched through) or glob; may be repeated")
    flags.DEFINE_string(
        "output", "csv", "csv or jsonl: to the terminal; else a file that ends in .csv, .jsonl or .parquet"
    )
    flags.DEFINE_integer("top", 5, "how many classes to list for each image", lower_bound=1)
    flags.DEFINE_string("gallery", "", "also draw the first images with their predictions into this PNG")
    flags.DEFINE_integer("batch_size", 32, "images in one forward pass", lower_bound=1)


def cli() -> None:
    """Entry point of shardline-predict."""
    define_flags()
    command.run(main)


if __name__ == "__main__":
    cli()
