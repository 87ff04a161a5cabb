"""The values of one evaluation: computed from predictions alone, written to its directory, read back. No TensorFlow.

metrics.json is written last, so a directory that holds one is whole; it carries the SHA-256 of predictions.parquet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardline.pipeline import stored
from shardline.pipeline.evaluation_files import FORMAT, METRICS, PREDICTIONS, predictions_schema
from shardline.pipeline.evaluation_files import read_metrics as read_metrics  # the inverse of `write`
from shardline.pipeline.evaluation_files import read_predictions as read_predictions
from shardline.pipeline.files import atomic_write, atomic_writer, file_sha256
from shardline.pipeline.manifest import shown_labels
from shardline.pipeline.wording import count
from shardline.trainer.evaluation import metrics

if TYPE_CHECKING:
    from shardline.tools.plot_style import Plot
    from shardline.trainer.evaluation.inference import Predictions
    from shardline.trainer.evaluation.leakage import Leakage

Curves = Sequence[metrics.BinaryCurves | None]  # one a class

REPORT = "report.html"


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found: the numbers, and the rows they were computed from."""

    metrics: dict[str, Any]  # the content of metrics.json
    predictions: Predictions
    paths: list[str]  # source file of each row
    labels: tuple[str, ...]
    calibrated: np.ndarray | None  # probabilities after the fitted temperature
    leakage: Leakage
    words: tuple[str, ...] = ()  # to show for each label; (): the labels

    @property
    def shown_labels(self) -> tuple[str, ...]:
        """What people are shown for each label."""
        return shown_labels(self.labels, self.words)

    @property
    def confusion(self) -> np.ndarray:
        """Counts [true, predicted]."""
        rows = self.predictions
        return metrics.confusion_matrix(rows.labels, rows.predicted, len(self.labels))


# ----------------------------------------------------------------------------------------- numbers


def compute(
    predictions: Predictions,
    split: str,
    labels: tuple[str, ...],
    paths: list[str],
    leakage: Leakage,
    *,
    words: tuple[str, ...] = (),
    calibration: Predictions | None = None,
    calibration_split: str = "",
) -> Evaluation:
    """All numbers of one evaluation.

    Args:
      paths: source file of each row.
      words: what people are shown for each label; (): the labels.
      calibration: predictions of `calibration_split`, to fit a temperature on.
    """
    confusion = metrics.confusion_matrix(predictions.labels, predictions.predicted, len(labels))
    curves = [metrics.one_vs_rest(predictions.probabilities[:, c], predictions.labels == c) for c in range(len(labels))]
    values: dict[str, Any] = {
        "split": split,
        "n": len(predictions.records),
        "records": predictions.num_stored,
        "count": predictions.count_line,
        **_overall(predictions, confusion, curves),
        "classes": _by_class(labels, metrics.class_scores(confusion), curves),
    }
    calibrated = None
    if calibration is not None:
        temperature = metrics.fit_temperature(calibration.probabilities, calibration.labels)
        calibrated = metrics.apply_temperature(predictions.probabilities, temperature)
        after = metrics.reliability(calibrated, predictions.labels)
        values["calibration"] = {
            "split": calibration_split,
            "records": len(calibration.records),
            "temperature": temperature,
            "ece": after.ece,
            "ece_interval95": after.ece_interval(),
            "log_loss": metrics.log_loss(calibrated, predictions.labels),
        }
    values["leakage"] = _leakage(predictions, leakage)
    for entry, meaning in zip(values["classes"], words, strict=False):
        entry["words"] = meaning
    return Evaluation(values, predictions, paths, labels, calibrated, leakage, words)


def _overall(rows: Predictions, confusion: np.ndarray, curves: Curves) -> dict[str, Any]:
    """Numbers over all records, those of hits with a 95% interval."""
    ranks = metrics.label_ranks(rows.probabilities, rows.labels)
    reliability = metrics.reliability(rows.probabilities, rows.labels)
    top5 = np.array([[np.sum(ranks < 5), np.sum(ranks >= 5)], [0, 0]])  # as a matrix, to draw its interval
    return {
        "top1": float(np.mean(ranks < 1)),
        "top5": float(np.mean(ranks < 5)),
        "macro_f1": metrics.class_scores(confusion).macro_f1,
        "interval95": {
            "top1": metrics.bootstrap_interval(confusion, metrics.accuracy),
            "top5": metrics.bootstrap_interval(top5, lambda matrix: matrix[0, 0] / matrix.sum()),
            "macro_f1": metrics.bootstrap_interval(confusion, lambda matrix: metrics.class_scores(matrix).macro_f1),
            "ece": reliability.ece_interval(),
        },
        "log_loss": metrics.log_loss(rows.probabilities, rows.labels),
        "ece": reliability.ece,
        "mean_roc_auc": _mean([curve.roc_auc for curve in curves if curve]),
        "mean_average_precision": _mean([curve.average_precision for curve in curves if curve]),
    }


def _by_class(labels: tuple[str, ...], scores: metrics.ClassScores, curves: Curves) -> list[dict[str, Any]]:
    """Numbers of each class; areas are None where it has no record or all of them."""
    return [
        {
            "label": labels[c],
            "support": int(scores.support[c]),
            "predicted": int(scores.predicted[c]),
            "precision": float(scores.precision[c]),
            "recall": float(scores.recall[c]),
            "f1": float(scores.f1[c]),
            "roc_auc": curve.roc_auc if curve else None,
            "average_precision": curve.average_precision if curve else None,
        }
        for c, curve in enumerate(curves)
    ]


def _leakage(rows: Predictions, leakage: Leakage) -> dict[str, Any]:
    """How many records leaked, how they were searched for, and top-1 and top-5 of the others."""
    values: dict[str, Any] = {"records": len(leakage.records), "note": leakage.note}
    clean = ~np.isin(rows.records, [found.record for found in leakage.records])
    if leakage.records and clean.any():
        ranks = metrics.label_ranks(rows.probabilities[clean], rows.labels[clean])
        values["without"] = {"n": len(ranks), "top1": float(np.mean(ranks < 1)), "top5": float(np.mean(ranks < 5))}
    return values


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def summary(values: Mapping[str, Any]) -> str:
    """One line with the headline numbers of metrics.json."""
    low, high = values["interval95"]["top1"]
    line = (
        f"top-1 {values['top1']:.1%} (95% interval {low:.1%} to {high:.1%}), top-5 {values['top5']:.1%}, "
        f"macro-F1 {values['macro_f1']:.3f}, ECE {values['ece']:.1%}"
    )
    leakage = values["leakage"]
    if clean := leakage.get("without"):
        copies = count(leakage["records"], "copy of a training image", "copies of training images")
        line += f"; without {copies}: top-1 {clean['top1']:.1%} (n = {clean['n']})"
    return line


# ------------------------------------------------------------------------------------------- files


def default_directory(run: Path, split: str) -> Path:
    """Where shardline-evaluate writes unless told otherwise."""
    return run / f"evaluation-{split}"


def write(evaluation: Evaluation, plots: Mapping[str, Plot], output: Path) -> None:
    """The PNGs, predictions.parquet and, last, metrics.json."""
    for name, plot in plots.items():
        atomic_write(output / f"{name}.png", plot.png, durable=False)
    write_predictions(evaluation, output / PREDICTIONS)
    content = {**_plain(evaluation.metrics), "predictions_sha256": file_sha256(output / PREDICTIONS)}
    stored.save(output / METRICS, content, format=FORMAT)


def _plain(value: Any) -> Any:
    """A value of metrics.json; None for what is no number, as of a model that diverged."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_predictions(evaluation: Evaluation, path: Path) -> None:
    """One row a record: id, path, label, prediction and all probabilities; the class names lie in the metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, names = evaluation.predictions, np.array(evaluation.labels, dtype=object)
    flat = pa.array(rows.probabilities.ravel(), pa.float32())
    columns = {
        "id": rows.records,
        "path": evaluation.paths,
        "label": names[rows.labels],
        "predicted": names[rows.predicted],
        "correct": rows.predicted == rows.labels,
        "probabilities": pa.FixedSizeListArray.from_arrays(flat, len(names)),
    }
    table = pa.table(columns, schema=predictions_schema(len(names)))
    metadata = {
        "labels": json.dumps(evaluation.labels, ensure_ascii=False),
        "split": evaluation.metrics["split"],
        "digest": evaluation.metrics["digest"],
        "weights": json.dumps(evaluation.metrics["weights"]),
    }
    with atomic_writer(path) as file:
        pq.write_table(table.replace_schema_metadata(metadata), file, compression="zstd")
