"""Evaluate a trained run on a split: exact metrics, pictures, one page.

    python -m trainer.evaluate --run RUN --data DATASET --split test --output DIR

Writes metrics.json, predictions.parquet, PNGs and report.html. Every stored record counts once, on any number of
replicas, and the digits do not depend on that number.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from absl import flags

from pipeline import cli as command
from pipeline.cli import UsageError

FLAGS = flags.FLAGS


def main() -> None:
    """Flags to one evaluation."""
    started = time.monotonic()
    run_directory = find_run(FLAGS.run, FLAGS.checkpoint)
    if not FLAGS.data:
        raise UsageError("--data is missing: name the dataset directory to evaluate on")
    command.import_tensorflow()
    import pipeline
    from trainer.evaluation import check_labels, evaluate, make_directory, summary, write
    from trainer.state import load_run, read_config

    # Everything that a person may have got wrong is looked at before TensorFlow is started.
    labels = tuple(read_config(run_directory)["labels"])
    data = pipeline.open_dataset(FLAGS.data)
    check_labels(labels, data.labels, FLAGS.data)
    data.manifest.split(FLAGS.split)
    temperature_split = choose_temperature_split(FLAGS.temperature_split, FLAGS.split, tuple(data.manifest.splits))

    from trainer import cluster as clusters
    from trainer.forward import Predictions, predict_split

    cluster = clusters.start("mirrored", FLAGS.logical_cpus)
    with cluster.strategy.scope():
        run = load_run(str(run_directory), FLAGS.checkpoint or None)
    output = make_directory(FLAGS.output or str(run_directory / f"evaluation-{FLAGS.split}"))

    def predict(split: str) -> Predictions:
        return predict_split(run, cluster, data, split, rows=FLAGS.batch_size, views=FLAGS.tta)

    predictions = predict(FLAGS.split)
    calibration = predict(temperature_split) if temperature_split else None
    leaks, leak_note = find_leaks(run, cluster, data)
    evaluation = evaluate(predictions, data, FLAGS.split, calibration, temperature_split, leaks)
    evaluation.metrics.update(
        leak_guard=leak_note,
        run=str(run_directory),
        checkpoint=FLAGS.checkpoint,
        data=str(data.directory),
        digest=data.manifest.digest,
        tta=FLAGS.tta,
        how={"devices": str(cluster), "batch_size": FLAGS.batch_size, "seconds": round(time.monotonic() - started, 1)},
    )
    write(evaluation, output)
    if FLAGS.report:
        from trainer.report import write_report

        write_report(output / "report.html", run_directory, run, data, evaluation)
    print(summary(evaluation))
    print(predictions.count_line)
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


# ------------------------------------------------------------------------------------------- input


def find_run(run: str, checkpoint: str) -> Path:
    """The run directory: named, or the one a checkpoint lies in."""
    if run:
        return Path(run)
    if not checkpoint:
        raise UsageError("--run is missing: name a run directory written by trainer.train (or a --checkpoint in one)")
    for parent in Path(checkpoint).absolute().parents:
        if (parent / "config.json").is_file():
            return parent
    raise UsageError(f"--checkpoint={checkpoint} lies in no run directory (no config.json above it); add --run")


def choose_temperature_split(wanted: str, evaluated: str, splits: tuple[str, ...]) -> str:
    """The split to calibrate on; "" for none."""
    if wanted == "none":
        return ""
    if wanted == "auto":
        return "validation" if "validation" in splits and evaluated != "validation" else ""
    if wanted == evaluated:
        raise UsageError(
            f"--temperature_split={wanted} is the evaluated split: a temperature fitted there flatters itself; "
            "name another split, or none"
        )
    if wanted not in splits:
        raise UsageError(f"--temperature_split={wanted}: this dataset has {', '.join(splits)}")
    return wanted


def find_leaks(run: Any, cluster: Any, data: Any) -> tuple[list[Any], str]:
    """Copies of evaluated pictures in the training split, and what was compared."""
    from trainer import leaks

    if FLAGS.leaks == "none":
        return [], "not looked for (--leaks=none)"
    return leaks.find(run, cluster, data, FLAGS.split, features=FLAGS.leaks == "features", rows=FLAGS.batch_size)


def define_flags() -> None:
    """Only when this is the program: several commands may then be imported side by side."""
    flags.DEFINE_string("run", "", "run directory written by trainer.train")
    flags.DEFINE_string(
        "checkpoint", "", "evaluate this checkpoint instead of the run's final model; --run may then be left out"
    )
    flags.DEFINE_string("data", "", "dataset directory")
    flags.DEFINE_string("split", "test", "split to evaluate")
    flags.DEFINE_string("output", "", "directory for the results; default: RUN/evaluation-SPLIT")
    flags.DEFINE_integer("batch_size", 32, "pictures in one forward pass of one device", lower_bound=1)
    flags.DEFINE_integer("logical_cpus", 0, "split the CPU into this many devices", lower_bound=0)
    flags.DEFINE_enum(
        "tta", "none", ["none", "flip", "5", "10"],
        "test-time augmentation, averaged: centre crop and its mirror image; centre and corners; those mirrored too",
    )  # fmt: skip
    flags.DEFINE_string(
        "temperature_split", "auto", "split to fit the temperature on, not the evaluated one; auto: validation if it "
        "exists; none: do not fit",
    )  # fmt: skip
    flags.DEFINE_enum(
        "leaks", "hashes", ["none", "hashes", "features"],
        "look for copies of evaluated pictures in the training split: by hashes from the ledger; by the model's "
        "features too, which runs the model over the training split",
    )  # fmt: skip
    flags.DEFINE_boolean("report", True, "write report.html")


def cli() -> None:
    """Entry point of shardline-evaluate."""
    define_flags()
    command.run(main)


if __name__ == "__main__":
    cli()
