"""Run a trained model over a split: every record once, on any number of replicas, with the same digits.

Replica r of R is given elements r, r + R, r + 2R, … of a stream whose element i holds records i * b to (i + 1) * b.
So a record is always computed in the same row beside the same neighbors, and the replica count cannot matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from shardline.pipeline.cli import progress
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import Failure
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.images import BadImage, set_up_process
from shardline.trainer.cluster import Cluster
from shardline.trainer.evaluation.model_input import load_image, stored_options

if TYPE_CHECKING:
    from shardline.trainer.state import Run

VIEWS = {"none": 1, "flip": 1, "5": 5, "10": 10}  # test-time augmentation -> crops the pipeline cuts


@dataclass(frozen=True)
class Predictions:
    """One row for each readable record of a split, in record order."""

    records: np.ndarray  # int64 [n]
    labels: np.ndarray  # int64 [n]
    probabilities: np.ndarray  # float32 [n, classes]
    num_stored: int  # records in the split, with the unreadable ones

    @property
    def count_line(self) -> str:
        """`n = N/N, each once`."""
        n = len(self.records)
        lost = f"; {self.num_stored - n} unreadable" if n < self.num_stored else ""
        return f"n = {n}/{self.num_stored}, each once{lost}"


class Forward:
    """A function of one uint8 batch per replica to one array per replica."""

    def __init__(self, model: Any, cluster: Cluster, views: str, jit: bool):
        """`jit` compiles with XLA: without it, a CPU takes ten times as long in bfloat16."""
        self._cluster = cluster

        def on_replica(images: Any) -> Any:
            if images.shape.rank == 4:
                images = images[:, None]
            if views == "flip":
                images = tf.concat([images, tf.reverse(images, [3])], 1)
            batch, count = images.shape[:2]
            flat = model(tf.reshape(images, (batch * count, *images.shape[2:])), training=False)
            return tf.reduce_mean(tf.reshape(flat, (batch, count, -1)), 1)

        compiled = tf.function(on_replica, jit_compile=jit, autograph=False)

        def own(images: Any) -> Any:  # a strategy would trace a bare tf.function once for all replicas
            return compiled(images)

        self._run = tf.function(lambda images: cluster.strategy.run(own, args=(images,)), autograph=False)

    def __call__(self, batches: Sequence[Any]) -> list[np.ndarray]:
        """Outputs in the order of the batches, which are as many as replicas and all of one shape."""
        strategy = self._cluster.strategy
        if self._cluster.replicas == 1:
            return [strategy.experimental_local_results(self._run(batches[0]))[0].numpy()]
        placed = strategy.experimental_distribute_values_from_function(
            lambda ctx: batches[ctx.replica_id_in_sync_group]
        )
        return [part.numpy() for part in strategy.experimental_local_results(self._run(placed))]


def input_config(run: Any, *, rows: int, replicas: int, views: str = "none") -> InputConfig:
    """How `run`'s model is shown images, in batches of `rows` per replica."""
    return InputConfig(
        global_batch_size=rows * replicas,
        image_size=run.config.image_size,
        eval_crop_fraction=run.preprocessing["crop_fraction"],
        eval_crops=VIEWS[views],
    )


def predict_split(
    run: Any, cluster: Cluster, data: Any, split: str, *, rows: int, views: str = "none", model: Any = None
) -> Predictions:
    """The probabilities of every record of `split`, which is not empty.

    Args:
      rows: examples in one forward pass on one replica.
      model: what to run instead of the run's own model, e.g. one that ends at the features.
    """
    num_stored = data.num_records(split)
    config = input_config(run, rows=rows, replicas=cluster.replicas, views=views)
    forward = Forward(model or run.model, cluster, views, run.config.jit)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    batches: list[dict[str, Any]] = []
    with progress(total=num_stored, desc=f"evaluate {split}", unit="image") as bar:
        for batch in data.eval_batches(split, config, replicas=cluster.replicas):
            batches.append(batch)
            if len(batches) < cluster.replicas:
                continue
            for done, outputs in zip(batches, forward([b["image"] for b in batches]), strict=True):
                used = done["weight"].numpy() > 0
                parts.append((done["record"].numpy()[used], done["label"].numpy()[used], outputs[used]))
                bar.update(int(used.sum()))
            batches.clear()
    records, labels, outputs = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(records):
        raise Failure(f"--split={split}: none of its {num_stored} records could be read; restore the shards")
    order = np.argsort(records, kind="stable")
    assert len(np.unique(records)) == len(records), "a record was evaluated twice"
    return Predictions(records[order], labels[order].astype(np.int64), outputs[order], num_stored)


# ------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class FilePrediction:
    """The most probable classes of one image file, or why there are none."""

    path: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


def predict_files(
    run: Run, paths: Sequence[str], *, top: int, batch_size: int
) -> Iterator[tuple[FilePrediction, np.ndarray | None]]:
    """A prediction for each path, in order, and the image the model was shown (None for an unreadable file)."""
    set_up_process()
    options = stored_options(run)
    size = run.config.image_size
    chunks = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
    rows = min(batch_size, len(paths))  # short batches are filled up, so that the model is traced once
    forward = tf.function(
        lambda images: run.model(images, training=False), jit_compile=run.config.jit, autograph=False
    ).get_concrete_function(tf.TensorSpec((rows, size, size, 3), tf.uint8))
    with ThreadPoolExecutor() as pool:

        def start(chunk: Sequence[str]) -> list[Any]:
            return [pool.submit(_load, path, run, options) for path in chunk]

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
                yield (_best(path, run, row, top) if image is not None else FilePrediction(path, error=error)), image


def _load(path: str, run: Run, options: ImageOptions) -> tuple[np.ndarray | None, str]:
    """What the model is shown of a file, or why it cannot be."""
    try:
        return load_image(Path(path).read_bytes(), run, options), ""
    except BadImage as error:
        return None, " ".join(str(error).split())
    except OSError as error:
        return None, f"cannot be read: {error.strerror or error}"
    except MemoryError:
        return None, "too large for this machine's memory"


def _best(path: str, run: Run, probabilities: np.ndarray, top: int) -> FilePrediction:
    classes = np.argsort(-probabilities, kind="stable")[:top]
    return FilePrediction(path, tuple(run.labels[c] for c in classes), tuple(float(probabilities[c]) for c in classes))
