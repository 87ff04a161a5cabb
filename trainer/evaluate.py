"""Evaluate a trained run on a split: exact metrics, images, one page.

    shardline-evaluate --run RUN --data DATASET --split test --output DIR

Writes metrics.json, predictions.parquet, PNGs and report.html. Every stored record counts once, on any number of
replicas, and the digits do not depend on that number.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from absl import flags

from shardline import pipeline
from shardline.pipeline import cli as command
from shardline.pipeline.errors import UsageError
from shardline.pipeline.manifest import Split
from shardline.trainer.checks import check_labels, find_run, make_directory
from shardline.trainer.state import read_config

FLAGS = flags.FLAGS


def main() -> None:
    """Flags to one evaluation."""
    started = time.monotonic()
    directory = find_run(FLAGS.run, FLAGS.checkpoint)
    if not FLAGS.data:
        raise UsageError("--data is missing: name the dataset directory to evaluate on")
    data = pipeline.open_dataset(FLAGS.data)
    check_labels(read_config(directory)["labels"], data.labels, FLAGS.data)
    if not data.num_records(FLAGS.split):
        raise UsageError(f"--split={FLAGS.split}: this split holds no records; name another one")
    calibration_split = choose_temperature_split(FLAGS.calibration_split, FLAGS.split, data.manifest.splits)
    output = make_directory(FLAGS.output or str(directory / f"evaluation-{FLAGS.split}"))

    command.import_tensorflow()
    from shardline.trainer import cluster as clusters
    from shardline.trainer.evaluation.inference import Predictions, predict_split
    from shardline.trainer.evaluation.results import METRICS, evaluate, images, summary, write
    from shardline.trainer.state import load_run

    cluster = clusters.start("mirrored", FLAGS.logical_cpus)
    with cluster.strategy.scope():
        run = load_run(str(directory), FLAGS.checkpoint or None)

    def predict(split: str) -> Predictions:
        return predict_split(run, cluster, data, split, rows=FLAGS.batch_size, views=FLAGS.tta)

    predictions = predict(FLAGS.split)
    calibration = predict(calibration_split) if calibration_split else None
    leaks, leak_note = find_leaks(run, cluster, data, predictions)
    evaluation = evaluate(predictions, data, FLAGS.split, calibration, calibration_split, leaks)
    evaluation.metrics.update(
        leak_guard=leak_note,
        run=str(directory),
        checkpoint=FLAGS.checkpoint,
        data=str(data.directory),
        digest=data.manifest.digest,
        tta=FLAGS.tta,
        how={"devices": str(cluster), "batch_size": FLAGS.batch_size, "seconds": round(time.monotonic() - started, 1)},
    )
    drawn = images(evaluation)
    (output / METRICS).unlink(missing_ok=True)  # an earlier evaluation's; it comes back when all else is new
    if FLAGS.report:
        from shardline.trainer.evaluation.report import write_report

        write_report(output / "report.html", directory, run, data, evaluation, drawn)
    write(evaluation, drawn, output)
    print(summary(evaluation))
    print(predictions.count_line)
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


# ------------------------------------------------------------------------------------------- input


def choose_temperature_split(wanted: str, evaluated: str, splits: Mapping[str, Split]) -> str:
    """The split to calibrate on; "" for none."""
    if wanted == "none":
        return ""
    if wanted == "auto":
        held_out = evaluated != "validation" and "validation" in splits and splits["validation"].records
        return "validation" if held_out else ""
    if wanted == evaluated:
        raise UsageError(
            f"--calibration_split={wanted} is the evaluated split: a temperature fitted there flatters itself; "
            "name another split, or none"
        )
    if wanted not in splits:
        raise UsageError(f"--calibration_split={wanted}: this dataset has {', '.join(splits)}")
    if not splits[wanted].records:
        raise UsageError(f"--calibration_split={wanted}: this split holds no records; name another one, or none")
    return wanted


def find_leaks(run: Any, cluster: Any, data: Any, predictions: Any) -> tuple[list[Any], str]:
    """Copies of evaluated images in the training split, and what was compared."""
    from shardline.trainer.evaluation import leakage

    if FLAGS.leaks == "none":
        return [], "not looked for (--leaks=none)"
    features, rows = FLAGS.leaks == "features", FLAGS.batch_size
    return leakage.find(run, cluster, data, FLAGS.split, predictions.records, features=features, rows=rows)


def define_flags() -> None:
    """Only when this is the program: several commands may then be imported side by side."""
    flags.DEFINE_string("run", "", "run directory written by shardline-train")
    flags.DEFINE_string(
        "checkpoint", "", "evaluate this checkpoint instead of the run's final model; --run may then be left out"
    )
    flags.DEFINE_string("data", "", "dataset directory")
    flags.DEFINE_string("split", "test", "split to evaluate")
    flags.DEFINE_string("output", "", "directory for the results; default: RUN/evaluation-SPLIT")
    flags.DEFINE_integer("batch_size", 32, "images in one forward pass of one device", lower_bound=1)
    flags.DEFINE_integer("logical_cpus", 0, "split the CPU into this many devices", lower_bound=0)
    flags.DEFINE_enum(
        "tta", "none", ["none", "flip", "5", "10"],
        "test-time augmentation, averaged: center crop and its mirror image; center and corners; those mirrored too",
    )  # fmt: skip
    flags.DEFINE_string(
        "calibration_split", "auto", "split to fit the temperature on, not the evaluated one; auto: validation if it "
        "exists; none: do not fit",
    )  # fmt: skip
    flags.DEFINE_enum(
        "leaks", "hashes", ["none", "hashes", "features"],
        "look for copies of evaluated images in the training split: by hashes from the ledger; by the model's "
        "features too, which runs the model over the training split",
    )  # fmt: skip
    flags.DEFINE_boolean("report", True, "write report.html")


def cli() -> None:
    """Entry point of shardline-evaluate."""
    define_flags()
    command.run(main)


if __name__ == "__main__":
    cli()
