"""What an evaluation finds: every number from the predictions alone, and its files. No TensorFlow.

metrics.json is written last, so a directory that holds one is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer.evaluation import metrics

METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"

if TYPE_CHECKING:
    from shardline.trainer.evaluation.inference import Predictions


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found: the numbers, and the rows they were computed from."""

    metrics: dict[str, Any]  # the content of metrics.json
    predictions: Predictions
    paths: list[str]  # source file of each row
    labels: tuple[str, ...]
    calibrated: np.ndarray | None  # probabilities after the fitted temperature
    leaks: list[Any]  # shardline.trainer.evaluation.leakage.LeakedRecord

    @property
    def confusion(self) -> np.ndarray:
        """Counts [true, predicted]."""
        rows = self.predictions
        return metrics.confusion_matrix(rows.labels, rows.probabilities.argmax(axis=1), len(self.labels))


# ----------------------------------------------------------------------------------------- numbers


def evaluate(
    predictions: Predictions,
    data: Any,
    split: str,
    calibration: Predictions | None = None,
    calibration_split: str = "",
    leaks: list[Any] | None = None,
) -> Evaluation:
    """All numbers of one evaluation, from predictions alone."""
    labels, targets, probabilities = data.labels, predictions.labels, predictions.probabilities
    paths = [filename for _, _, filename in data.records(split, predictions.records.tolist())]
    ranks = metrics.label_ranks(probabilities, targets)
    confusion = metrics.confusion_matrix(targets, probabilities.argmax(axis=1), len(labels))
    by_class = metrics.class_scores(confusion)
    found = [metrics.detection(probabilities[:, c], targets == c) for c in range(len(labels))]
    top5 = np.array([[np.sum(ranks < 5), np.sum(ranks >= 5)], [0, 0]])  # as a matrix, to draw its interval
    values: dict[str, Any] = {
        "split": split,
        "n": len(targets),
        "records": predictions.num_stored,
        "count": predictions.count_line,
        "top1": float(np.mean(ranks < 1)),
        "top5": float(np.mean(ranks < 5)),
        "macro_f1": by_class.macro_f1,
        "interval95": {
            "top1": metrics.bootstrap_interval(confusion, metrics.accuracy),
            "top5": metrics.bootstrap_interval(top5, lambda matrix: matrix[0, 0] / matrix.sum()),
            "macro_f1": metrics.bootstrap_interval(confusion, lambda matrix: metrics.class_scores(matrix).macro_f1),
        },
        "log_loss": metrics.log_loss(probabilities, targets),
        "ece": metrics.reliability(probabilities, targets).ece,
        "mean_roc_auc": _mean([curve.roc_auc for curve in found if curve]),
        "mean_average_precision": _mean([curve.average_precision for curve in found if curve]),
        "classes": [
            {
                "label": labels[c],
                "support": int(by_class.support[c]),
                "predicted": int(by_class.predicted[c]),
                "precision": float(by_class.precision[c]),
                "recall": float(by_class.recall[c]),
                "f1": float(by_class.f1[c]),
                "roc_auc": curve.roc_auc if curve else None,
                "average_precision": curve.average_precision if curve else None,
            }
            for c, curve in enumerate(found)
        ],
    }
    calibrated = None
    if calibration is not None:
        temperature = metrics.fit_temperature(calibration.probabilities, calibration.labels)
        calibrated = metrics.apply_temperature(probabilities, temperature)
        values["temperature"] = {
            "fitted_on": calibration_split,
            "fitted_on_records": len(calibration.records),
            "value": temperature,
            "ece": metrics.reliability(calibrated, targets).ece,
            "log_loss": metrics.log_loss(calibrated, targets),
        }
    if leaks:
        clean = ~np.isin(predictions.records, [leak.record for leak in leaks])
        values["without_leaks"] = {
            "n": int(clean.sum()),
            "top1": _mean((ranks[clean] < 1).tolist()),
            "top5": _mean((ranks[clean] < 5).tolist()),
        }
    values["leaks"] = len({leak.record for leak in leaks or []})
    return Evaluation(values, predictions, paths, tuple(labels), calibrated, leaks or [])


def _mean(values: list[Any]) -> float | None:
    return float(np.mean(values)) if values else None


# ------------------------------------------------------------------------------------------ output


def summary(evaluation: Evaluation) -> str:
    """One line with the headline numbers."""
    m = evaluation.metrics
    low, high = m["interval95"]["top1"]
    line = (
        f"top-1 {m['top1']:.1%} (95 % interval {low:.1%} to {high:.1%}), top-5 {m['top5']:.1%}, "
        f"macro-F1 {m['macro_f1']:.3f}, ECE {m['ece']:.1%}"
    )
    if "without_leaks" in m and m["without_leaks"]["n"]:
        clean = m["without_leaks"]
        line += f"; without {m['leaks']} images that are also in training: top-1 {clean['top1']:.1%} (n = {clean['n']})"
    return line


def images(evaluation: Evaluation) -> dict[str, bytes]:
    """The plots as PNGs, by name; without `roc_pr` where only one class occurs."""
    from shardline.tools.html_report import figure_png
    from shardline.trainer.evaluation import plots

    rows, labels, calibrated = evaluation.predictions, evaluation.labels, evaluation.calibrated
    made = {
        "confusion": plots.confusion(evaluation.confusion, labels),
        "classes": plots.classes(metrics.class_scores(evaluation.confusion), labels),
        "roc_pr": plots.detection(rows.probabilities, rows.labels, labels),
        "calibration": plots.calibration(
            metrics.reliability(rows.probabilities, rows.labels),
            None if calibrated is None else metrics.reliability(calibrated, rows.labels),
            1.0 if calibrated is None else evaluation.metrics["temperature"]["value"],
        ),
    }
    return {name: figure_png(figure) for name, figure in made.items() if figure is not None}


def write(evaluation: Evaluation, drawn: Mapping[str, bytes], output: Path) -> None:
    """The PNGs, predictions.parquet and, last, metrics.json."""
    for name, png in drawn.items():
        (output / f"{name}.png").write_bytes(png)
    write_predictions(evaluation, output / PREDICTIONS)
    temporary = output / f"{METRICS}.tmp"
    temporary.write_text(json.dumps(evaluation.metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(output / METRICS)


def write_predictions(evaluation: Evaluation, path: Path) -> None:
    """One row a record: id, path, label, prediction and all probabilities; the class names lie in the metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = evaluation.predictions
    num_classes = len(evaluation.labels)
    names = np.array(evaluation.labels, dtype=object)
    predicted = rows.probabilities.argmax(axis=1)
    flat = pa.array(rows.probabilities.ravel(), pa.float32())
    table = pa.table(
        {
            "id": pa.array(rows.records, pa.int64()),
            "path": pa.array(evaluation.paths, pa.string()),
            "label": pa.array(names[rows.labels], pa.string()),
            "predicted": pa.array(names[predicted], pa.string()),
            "correct": pa.array(predicted == rows.labels, pa.bool_()),
            "probabilities": pa.FixedSizeListArray.from_arrays(flat, num_classes),
        }
    )
    metadata = {
        "labels": json.dumps(evaluation.labels, ensure_ascii=False),
        "split": evaluation.metrics["split"],
        "digest": str(evaluation.metrics.get("digest", "")),
    }
    temporary = path.with_suffix(".tmp")
    pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")
    temporary.replace(path)


def read_predictions(directory: str | os.PathLike[str]) -> tuple[Any, dict[str, str]]:
    """The table and metadata of an evaluation directory. Raises UsageError or Failure in one line."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(directory) / PREDICTIONS
    if not path.is_file():
        raise UsageError(f"{directory} holds no {PREDICTIONS}; run shardline-evaluate first")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise Failure(f"{path} is damaged ({error}); run shardline-evaluate again") from None
    return table, {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
