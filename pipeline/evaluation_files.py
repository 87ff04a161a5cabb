"""The files of an evaluation, read back for whoever knows nothing of trainers: metrics.json and predictions.parquet.

metrics.json is written last, so a directory that holds one is whole; it carries the SHA-256 of predictions.parquet.
No TensorFlow.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from shardline.pipeline import stored
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import file_sha256
from shardline.pipeline.stored import Count, Sha256

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "shardline evaluation 1"
METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


@dataclass(frozen=True)
class _Interval:
    top1: tuple[Share, Share]


@dataclass(frozen=True)
class _Weights:
    step: Count
    sha256: Sha256


@dataclass(frozen=True)
class _StoredMetrics:
    """Those values of metrics.json that other commands use."""

    run: str
    split: str
    n: Count
    top1: Share
    top5: Share
    macro_f1: Share
    ece: float | None
    interval95: _Interval
    predictions_sha256: Sha256
    checkpoint: str = ""
    weights: _Weights | None = None


_REMEDY = "run shardline-evaluate again"


def read_metrics(directory: Path) -> dict[str, Any]:
    """metrics.json of an evaluation. Raises UsageError in one line."""
    path = directory / METRICS
    try:
        data = stored.read_bytes(path, remedy=_REMEDY)
    except FileNotFoundError:
        raise UsageError(f"{directory} holds no {METRICS}; run shardline-evaluate first") from None
    stored.unsealed(data, _StoredMetrics, format=FORMAT, what=path, remedy=_REMEDY)
    values: dict[str, Any] = stored.parse(data, dict[str, Any], what=path, remedy=_REMEDY)
    return {name: value for name, value in values.items() if name not in ("format", "checksum")}


def read_predictions(directory: str | os.PathLike[str]) -> tuple[pa.Table, dict[str, str]]:
    """The table and metadata of an evaluation directory. Raises UsageError in one line."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(directory) / PREDICTIONS
    sha256 = read_metrics(Path(directory))["predictions_sha256"]
    try:
        if file_sha256(path) != sha256:
            raise UsageError(f"{path} was edited or damaged: its SHA-256 is not that in {METRICS}; {_REMEDY}")
        table = pq.read_table(path)
        classes = getattr(table.schema.types[-1], "list_size", 1)
        if not table.schema.equals(predictions_schema(classes)):
            raise UsageError(f"{path} has other columns than shardline-evaluate writes; {_REMEDY}")
        return table, {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: names that are no UTF-8
        raise UsageError(f"{path} cannot be read ({error}); {_REMEDY}") from None


def predictions_schema(classes: int) -> pa.Schema:
    """The columns of predictions.parquet."""
    import pyarrow as pa

    return pa.schema(
        {
            "id": pa.int64(),
            "path": pa.string(),
            "label": pa.string(),
            "predicted": pa.string(),
            "correct": pa.bool_(),
            "probabilities": pa.list_(pa.float32(), classes),
        }
    )
