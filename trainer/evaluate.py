"""Evaluate a trained run on a split: exact metrics, plots, one page.

    shardline-evaluate --run RUN --data DATASET --split test --output DIR

Writes metrics.json, predictions.parquet, PNGs and report.html. Every stored record counts once, on any number of
replicas, and the digits do not depend on that number.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardline import pipeline
from shardline.pipeline import cli as command_line
from shardline.pipeline.class_gaps import class_gaps
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import own_directory
from shardline.pipeline.options import option
from shardline.pipeline.paths import absolute, is_remote
from shardline.pipeline.remote import DataCacheOptions
from shardline.pipeline.wording import count
from shardline.trainer.checks import (
    ModelConfig,
    check_labels,
    find_run,
    make_directory,
    say_stored_otherwise,
    say_weights,
)
from shardline.trainer.data import HELD_OUT, held_out
from shardline.trainer.evaluation import results
from shardline.trainer.hosts import HostsConfig, ends_together, find_hosts
from shardline.trainer.run_dir import choose_weights, read_config
from shardline.trainer.xla import start_tensorflow

if TYPE_CHECKING:
    from shardline.pipeline.dataset import Dataset
    from shardline.pipeline.manifest import Split
    from shardline.trainer.cluster import Cluster
    from shardline.trainer.evaluation.inference import Predictions
    from shardline.trainer.evaluation.results import Evaluation
    from shardline.trainer.run_dir import ChosenWeights, Run


@dataclass(frozen=True)
class EvaluateConfig(DataCacheOptions, HostsConfig, ModelConfig):
    """What to evaluate, on which records, and how much to look into."""

    data: str = option("", "dataset to evaluate on: directory, s3://… or gs://…", positional=True, path="dataset")
    split: str = option("test", "split to evaluate")
    output: str = option("", "directory of this host for the results; empty: RUN/evaluation-SPLIT", path="folder")
    batch_size: int = option(32, "images per forward pass on each device", low=1)
    logical_cpus: int = option(
        0, "split the CPU into this many devices, to try replicas without GPUs; 0: do not", low=0
    )
    tta: str = option(
        "none",
        "test-time augmentation, averaged; flip: the center crop and its horizontal flip; 5: center and corners; 10: "
        "those and their flips",
        choices=("none", "flip", "5", "10"),
    )
    calibration_split: str = option(
        "auto",
        "split to fit the temperature on, another than the evaluated one; auto: validation or val, if it is there "
        "and not trained on; none: no calibration",
    )
    leakage: str = option(
        "hashes",
        "search the training split for copies of evaluated images; hashes: equal files, equal pixels and near "
        "duplicates, by the hashes in the ledger; features: crops and flipped copies as well, which runs the model "
        "over the training split",
        choices=("none", "hashes", "features"),
    )
    max_bad_records: int = option(
        InputConfig.max_bad_records, "distinct unreadable records after which the evaluation stops", low=0
    )
    report: bool = option(True, "write report.html")


@ends_together
def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate a run, write the results to `output_directory(config)`, and return them.

    Of several hosts each evaluates its part, all return the whole, and the chief writes.

    Raises:
      UsageError: a run, dataset, split or directory that cannot be used.
      Failure: no record of the split can be read, or another process writes to the same directory.
    """
    started = time.monotonic()
    output, chief = output_directory(config), find_hosts(config).own == 0
    directory = find_run(config.run, config.checkpoint)
    chosen = choose_weights(directory, config.checkpoint)
    data = open_data(config, directory)
    train_split = read_config(directory)["train"]["train_split"]
    calibration_split = choose_calibration_split(
        config.calibration_split, config.split, data.manifest.splits, train_split
    )
    if chief:
        make_directory(str(output))
    say_weights(chosen)
    for gap in class_gaps(data.labels, data.manifest.class_counts, train_split, config.split):
        command_line.log(f"note: {gap}")

    with own_directory(output, "--output") if chief else contextlib.nullcontext():
        data.start_workers()
        start_tensorflow()  # takes seconds: after what can be refused at once, as the imports below
        from shardline.trainer.cluster import create_cluster
        from shardline.trainer.evaluation.plots import draw
        from shardline.trainer.evaluation.report import write_report
        from shardline.trainer.handshake import check_equal
        from shardline.trainer.run_dir import load_run
        from shardline.trainer.run_report import refresh_links

        devices = create_cluster("auto", config.logical_cpus, config)
        check_equal(devices, hosts_agree_on(config, chosen, data))
        with devices.strategy.scope():
            run = load_run(str(directory), chosen)
        evaluation = measure(config, run, devices, data, calibration_split)
        evaluation.metrics.update(
            run=absolute(config.run or str(directory)),
            checkpoint=config.checkpoint,
            weights=chosen.facts(),
            data=absolute(data.where),
            digest=data.manifest.digest,
            tta=config.tta,
            batch_size=config.batch_size,
            environment={"devices": str(devices), "seconds": round(time.monotonic() - started, 1)},
        )
        if not chief:
            return evaluation
        plots = draw(evaluation)
        (output / results.METRICS).unlink(missing_ok=True)  # comes back when all else is new
        if config.report:
            write_report(output, directory, run, data, evaluation, plots)
        results.write(evaluation, plots, output)
        refresh_links(directory)
    return evaluation


def main(config: EvaluateConfig) -> None:
    """The command: evaluate and print the headline numbers."""
    evaluation, output = evaluate(config), output_directory(config)
    if find_hosts(config).own:
        return
    if not evaluation.metrics["weights"]["finished"]:
        print(f"unfinished run, step {evaluation.metrics['weights']['step']}")
    command_line.show(results.summary(evaluation.metrics))
    command_line.show(evaluation.predictions.count_line)
    command_line.show(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


def hosts_agree_on(config: EvaluateConfig, chosen: ChosenWeights, data: Dataset) -> dict[str, str | int]:
    """What must be the same on all hosts."""
    names = ("split", "batch_size", "tta", "calibration_split", "leakage")
    flags = {f"--{name}": getattr(config, name) for name in names}
    return {"dataset": data.manifest.digest, "SHA-256 of the weights": chosen.sha256, **flags}


def measure(config: EvaluateConfig, run: Run, devices: Cluster, data: Dataset, calibration_split: str) -> Evaluation:
    """Run the model over the split, and over the one to calibrate on; all numbers of the predictions."""
    from shardline.trainer.evaluation.inference import predict_split  # TensorFlow
    from shardline.trainer.evaluation.leakage import Leakage, find_leakage

    def predict(split: str) -> Predictions:
        settings = {"batch_size": config.batch_size, "max_bad_records": config.max_bad_records}
        return predict_split(run, devices, data, split, tta=config.tta, **settings)

    predictions = predict(config.split)
    leakage = Leakage((), "not searched for (--leakage=none)")
    if config.leakage != "none":
        command_line.log(f"leakage: {count(len(predictions.records), 'image')}")
        leakage = find_leakage(
            run, devices, data, config.split, predictions.records,
            features=config.leakage == "features", batch_size=config.batch_size,
        )  # fmt: skip
    return results.compute(
        predictions,
        config.split,
        data.labels,
        [filename for _, _, filename in data.records(config.split, predictions.records.tolist())],
        leakage,
        words=data.manifest.words,
        calibration=predict(calibration_split) if calibration_split else None,
        calibration_split=calibration_split,
    )


# ------------------------------------------------------------------------------------------- input


def output_directory(config: EvaluateConfig) -> Path:
    """Where the results go."""
    if config.output:
        return Path(config.output)
    if is_remote(config.run):
        raise UsageError(f"--output is missing: results for --run={config.run} are written to a directory of this host")
    return results.default_directory(find_run(config.run, config.checkpoint), config.split)


def open_data(config: EvaluateConfig, run: Path) -> Dataset:
    """The dataset to evaluate on, of the run's classes and with records in the split."""
    if not config.data:
        raise UsageError("--data is missing: name the dataset directory to evaluate on")
    data = pipeline.open_dataset(config.data, config)
    check_labels(read_config(run)["labels"], data.labels, config.data)
    if not data.num_records(config.split):
        raise UsageError(f"--split={config.split}: this split holds no records; name another one")
    data.manifest.refuse_unlabelled(config.split, "--split")
    data.manifest.refuse_unlabelled(config.calibration_split, "--calibration_split")
    say_stored_otherwise(run, data)
    return data


def choose_calibration_split(wanted: str, evaluated: str, splits: Mapping[str, Split], train_split: str) -> str:
    """The split to calibrate on; "" for none."""
    if wanted == "none":
        return ""
    if wanted == "auto":
        usable = [name for name, split in splits.items() if split.records and not split.unlabelled]
        return held_out([name for name in usable if name != evaluated], train_split, *HELD_OUT)
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


def cli() -> None:
    """Run the console script `shardline-evaluate`."""
    command_line.run(main, EvaluateConfig, __doc__)


if __name__ == "__main__":
    cli()
