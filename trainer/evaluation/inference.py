"""Run a trained model over a split, or over image files, on any number of devices and hosts.

Every record of a split counts once, with the same digits on any number of replicas: replica r of R is given elements
r, r + R, r + 2R, … of a stream whose element i holds records i * b to (i + 1) * b. So a record is always computed in
the same row beside the same neighbors, and the replica count cannot matter.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from shardline.pipeline.cli import progress
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import Failure
from shardline.pipeline.image_files import load_files
from shardline.pipeline.manifest import NO_LABEL
from shardline.pipeline.wording import count
from shardline.trainer.cluster import Cluster
from shardline.trainer.evaluation.model_input import converter_options, preprocess
from shardline.trainer.exchange import gather, gather_arrays, lost_hosts
from shardline.trainer.input_errors import bad_records_in_one_line
from shardline.trainer.overlap import one_late

if TYPE_CHECKING:
    from shardline.pipeline.dataset import Dataset
    from shardline.trainer.run_dir import Run

_COLUMNS = ("records", "labels", "probabilities")
TTA_CROPS = {"none": 1, "flip": 1, "5": 5, "10": 10}  # test-time augmentation -> crops that the pipeline cuts


@dataclass(frozen=True)
class Predictions:
    """One row for each readable record of a split, in record order."""

    records: np.ndarray  # int64 [n]
    labels: np.ndarray  # int64 [n]
    probabilities: np.ndarray  # float32 [n, classes]
    num_stored: int  # records in the split, with the unreadable ones

    @property
    def predicted(self) -> np.ndarray:
        """int64 [n]: the most probable class of each record; of equal ones the first."""
        classes: np.ndarray = self.probabilities.argmax(axis=1)
        return classes

    @property
    def count_line(self) -> str:
        """`960 records, each counted once`."""
        n = len(self.records)
        lost = f", {self.num_stored - n:,} of {self.num_stored:,} unreadable" if n < self.num_stored else ""
        return f"{count(n, 'record')}, each counted once{lost}"


class DistributedModel:
    """A trained model as a function of one uint8 batch per replica to one array per replica.

    Attributes:
      function: the same as a tf.function of distributed images.
    """

    def __init__(self, model: keras.Model, devices: Cluster, tta: str, jit: bool) -> None:
        """`jit` compiles with XLA: without it, a CPU takes ten times as long in bfloat16."""
        self._devices = devices

        def on_replica(images: tf.Tensor) -> tf.Tensor:
            if images.shape.rank == 4:
                images = images[:, None]
            if tta == "flip":
                images = tf.concat([images, tf.reverse(images, [3])], 1)
            batch, crops = images.shape[:2]
            flat = model(tf.reshape(images, (batch * crops, *images.shape[2:])), training=False)
            return tf.reduce_mean(tf.reshape(flat, (batch, crops, -1)), 1)

        compiled = tf.function(on_replica, jit_compile=jit, autograph=False)

        def on_each_replica(images: tf.Tensor) -> tf.Tensor:
            return compiled(images)  # a strategy would trace a bare tf.function once for all replicas

        self.function = tf.function(
            lambda images: devices.strategy.run(on_each_replica, args=(images,)), autograph=False
        )

    def __call__(self, batches: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Outputs in the order of the batches, which are as many as replicas and all of one shape."""
        strategy, first = self._devices.strategy, self._devices.host * self._devices.local_replicas
        if self._devices.replicas == 1:
            return [strategy.experimental_local_results(self.function(batches[0]))[0]]
        placed = strategy.experimental_distribute_values_from_function(
            lambda ctx: batches[ctx.replica_id_in_sync_group - first]
        )
        return list(strategy.experimental_local_results(self.function(placed)))


def input_config(
    run: Run,
    *,
    batch_size: int,
    replicas: int,
    tta: str = "none",
    max_bad_records: int = InputConfig.max_bad_records,
) -> InputConfig:
    """How `run`'s model is shown images, in batches of `batch_size` per replica."""
    return InputConfig(
        global_batch_size=batch_size * replicas,
        image_size=run.config.image_size,
        eval_crop_fraction=run.preprocessing["crop_fraction"],
        eval_crops=TTA_CROPS[tta],
        max_bad_records=max_bad_records,
    )


def predict_split(
    run: Run,
    devices: Cluster,
    data: Dataset,
    split: str,
    *,
    batch_size: int,
    tta: str = "none",
    model: keras.Model | None = None,
    max_bad_records: int = InputConfig.max_bad_records,
) -> Predictions:
    """The probabilities of every record of `split`, which is not empty. All hosts call it, and all get every record.

    Args:
      batch_size: images in one forward pass on one replica.
      tta: test-time augmentation, one of TTA_CROPS.
      model: what to run instead of the run's own model, e.g. one that ends at the features.

    Raises:
      Failure: no record can be read, more than `max_bad_records` cannot, or the model's outputs are not finite.
    """
    num_stored, replicas = data.num_records(split), devices.replicas
    config = input_config(run, batch_size=batch_size, replicas=replicas, tta=tta, max_bad_records=max_bad_records)
    infer = DistributedModel(model or run.model, devices, tta, run.config.uses_xla)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    elements = iter(data.eval_batches(split, config, **devices.place))
    steps = iter(lambda: list(itertools.islice(elements, devices.local_replicas)), [])  # a batch for each replica
    with progress(total=num_stored, desc=f"evaluate {split}", unit="image") as bar, bad_records_in_one_line(data):
        for batches, outputs in one_late(lambda step: infer([batch["image"] for batch in step]), steps):
            for batch, output in zip(batches, outputs, strict=True):
                used = (batch["weight"].numpy() > 0) | (batch["label"].numpy() == NO_LABEL)
                parts.append((batch["record"].numpy()[used], batch["label"].numpy()[used], output.numpy()[used]))
                bar.update(int(used.sum()))
    own = dict(zip(_COLUMNS, map(np.concatenate, zip(*parts, strict=True)), strict=True))
    with lost_hosts():
        hosts = gather_arrays(devices, own)
    records, labels, probabilities = (np.concatenate([host[name] for host in hosts]) for name in _COLUMNS)
    if not len(records):
        raise Failure(f"--split={split}: none of its {num_stored} records could be read; restore the shards")
    if not np.isfinite(probabilities).all():
        raise Failure(f"the model's outputs on {split} are not finite; training diverged: name an earlier --checkpoint")
    order = np.argsort(records, kind="stable")
    assert len(np.unique(records)) == len(records), "a record was evaluated twice"
    return Predictions(records[order], labels[order].astype(np.int64), probabilities[order], num_stored)


def predict_records(
    run: Run, devices: Cluster, data: Dataset, split: str, *, top: int, batch_size: int
) -> Iterator[FilePrediction]:
    """A prediction for each record of a split, with or without labels, in stored order, named by its source file; or
    why there is none, where this host knows."""
    found = predict_split(run, devices, data, split, batch_size=batch_size, max_bad_records=data.num_records(split))
    row_of = dict(zip(found.records.tolist(), found.probabilities, strict=True))
    for record in range(found.num_stored):
        if record in row_of:
            _, _, path = next(data.records(split, [record]))
            yield _best(path or f"{split}:{record}", run, row_of[record], top)
        else:
            bad = data.bad_records.records.get((split, record))
            yield FilePrediction(f"{split}:{record}", error=bad.reason if bad else "the record cannot be read")


# ------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class FilePrediction:
    """The most probable classes of one image file, or why there are none."""

    path: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    words: tuple[str, ...] = ()  # what people are shown for the labels, where a dataset has such words
    error: str = ""
    weights: Mapping[str, Any] | None = None  # `ChosenWeights.facts` of the model


def predict_files(
    run: Run, paths: Sequence[str], *, top: int, batch_size: int, images: int = 0, host: int = 0, hosts: int = 1
) -> Iterator[tuple[FilePrediction, np.ndarray | None]]:
    """A prediction for each path, in order; and for the first `images` paths what the model was shown, where readable.

    Files are decoded in processes of their own, which hand them over in any order: of those that wait for an earlier
    one, only the rows are kept. Of `hosts`, number `host` predicts every such batch; see `all_predictions`.
    """
    rows = min(batch_size, len(paths))  # short batches are filled up, so that the model is traced once
    firsts = range(host * batch_size, len(paths), hosts * batch_size)
    paths = [path for first in firsts for path in paths[first : first + batch_size]]
    size = run.config.image_size
    infer = tf.function(
        lambda batch: run.model(batch, training=False), jit_compile=run.config.uses_xla, autograph=False
    ).get_concrete_function(tf.TensorSpec((rows, size, size, 3), tf.uint8))
    loading: dict[int, dict[int, np.ndarray | str]] = {}  # by batch and row: what the model is shown, or why not
    done: dict[int, list[tuple[FilePrediction, np.ndarray | None]]] = {}
    following = 0
    for number, loaded in load_files(paths, converter_options(run)) if paths else ():
        batch, row = divmod(number, batch_size)
        members = loading.setdefault(batch, {})
        members[row] = loaded if isinstance(loaded, str) else preprocess(loaded, run)
        first = batch * batch_size
        names = paths[first : first + batch_size]
        if len(members) == len(names):
            del loading[batch]
            shown = np.zeros((rows, size, size, 3), np.uint8)
            for i, image in members.items():
                shown[i] = 0 if isinstance(image, str) else image
            outputs = infer(tf.constant(shown)).numpy()
            found = [_file_row(name, members[i], outputs[i], run, top) for i, name in enumerate(names)]
            done[batch] = [(line, image if first + i < images else None) for i, (line, image) in enumerate(found)]
        while following in done:
            yield from done.pop(following)
            following += 1


def _file_row(
    path: str, image: np.ndarray | str, probabilities: np.ndarray, run: Run, top: int
) -> tuple[FilePrediction, np.ndarray | None]:
    if isinstance(image, str):
        return FilePrediction(path, error=image), None
    return _best(path, run, probabilities, top), image


def all_predictions(devices: Cluster, own: Sequence[FilePrediction], batch_size: int) -> list[FilePrediction]:
    """The predictions of all hosts in the order of the paths, on every host, from those that `predict_files` gave."""
    if devices.hosts == 1:
        return list(own)
    with lost_hosts():
        texts = gather(devices, json.dumps([asdict(row) for row in own]))
    rows = [[FilePrediction(**_tuples(row)) for row in json.loads(text)] for text in texts]
    hosts = [iter(part) for part in rows]
    return [next(hosts[i // batch_size % devices.hosts]) for i in range(sum(map(len, rows)))]


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


def _best(path: str, run: Run, probabilities: np.ndarray, top: int) -> FilePrediction:
    if not np.isfinite(probabilities).all():
        return FilePrediction(path, error="the model's outputs are not finite")
    classes = np.argsort(-probabilities, kind="stable")[:top]
    words = tuple(run.shown_labels[c] for c in classes) if run.words else ()
    labels = tuple(run.labels[c] for c in classes)
    return FilePrediction(path, labels, tuple(float(probabilities[c]) for c in classes), words)
