"""The leak guard: evaluated images of which the training split holds a copy, exact or near.

Hashes come from the dataset's ledger, so nothing is decoded but the few pairs that look alike. A pair of similar
perceptual hashes counts only when the pixels agree too: plain skies have equal hashes. With features, crops and
mirror images are found as well: the model proposes the nearest training images, and again pixels decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shardline.pipeline.errors import UsageError

SOURCES_FILE = "sources.parquet"  # written by shardline-convert
HASH_BITS = 6  # of 64 that may differ between look-alikes
CORRELATION = 0.8  # of small gray versions, from which pixels agree; tuned on photographs with known re-crops
NEIGHBORS = 5  # nearest training images by features that are compared by pixels
OVERLAP = 0.97  # correlation from which the middle of one image is found again in another
MAX_CANDIDATES = 50_000  # pairs that are compared by pixels


@dataclass(frozen=True)
class LeakedRecord:
    """One evaluated record and its closest copy in the training split."""

    record: int
    train_record: int
    path: str
    train_path: str
    kind: str  # same file, same pixels, look alike, crop or mirror image

    def __str__(self) -> str:
        return f"{self.path} = {self.train_path} ({self.kind})"


def find(
    run: Any, cluster: Any, data: Any, split: str, records: np.ndarray, *, features: bool = False, rows: int = 32
) -> tuple[list[LeakedRecord], str]:
    """Those `records` of `split` that have a copy in the training split; and one line on what was compared.

    Args:
      features: look for crops and mirror images too, which runs the model over both splits, `rows` at a time.
    """
    trained_on, problem = training_data(run, data)
    if trained_on is None:
        return [], problem
    train_split = run.config.train_split
    if trained_on.manifest.digest == data.manifest.digest and split == train_split:
        return [], f"{split} is the split this run was trained on: nothing in it is held out"
    evaluated, training = read_hashes(data, split), read_hashes(trained_on, train_split)
    found: dict[int, LeakedRecord] = {}
    if evaluated is None or training is None:
        # Adopted datasets have no ledger; equal stored bytes can still be told.
        evaluated, training = stored_hashes(data, split), stored_hashes(trained_on, train_split)
        compared = "stored bytes (there is no ledger)"
    else:
        compared = "file, pixel and perceptual hashes"
    evaluated = {name: column[np.isin(evaluated["record"], records)] for name, column in evaluated.items()}
    for kind, key in (("same file", "sha256"), ("same pixels", "pixel_hash")):
        for i, j in _equal(evaluated[key], training[key]):
            found.setdefault(int(evaluated["record"][i]), _leak(evaluated, training, i, j, kind))
    if "perceptual_hash" in evaluated:
        pairs = look_alikes(evaluated["perceptual_hash"], training["perceptual_hash"])
        pairs = [(i, j) for i, j in pairs if int(evaluated["record"][i]) not in found]
        if len(pairs) > MAX_CANDIDATES:
            compared += f" (the closest {MAX_CANDIDATES:,} of {len(pairs):,} look-alikes)"
            pairs = pairs[:MAX_CANDIDATES]
        for i, j in confirmed(data, split, evaluated, trained_on, train_split, training, pairs):
            found.setdefault(int(evaluated["record"][i]), _leak(evaluated, training, i, j, "look alike"))
    if features:
        compared += " and features"
        pairs = neighbors(run, cluster, data, split, trained_on, train_split, rows)
        ours = _positions(evaluated["record"])
        pairs = [(record, train_record) for record, train_record in pairs if record not in found]
        theirs = _positions(training["record"])
        for record, train_record in overlapping(data, split, trained_on, train_split, pairs):
            i, j = ours[record], theirs[train_record]
            found.setdefault(record, _leak(evaluated, training, i, j, "crop or mirror image"))
    note = f"{len(found)} of {len(evaluated['record']):,} images have a copy in {train_split}; compared by {compared}"
    return [found[record] for record in sorted(found)], note


def training_data(run: Any, data: Any) -> tuple[Any, str]:
    """The dataset the run was trained on, or None and why it cannot be had."""
    from shardline import pipeline

    digest = run.dataset["dataset"]
    if data.manifest.digest == digest:
        trained_on = data
    else:
        where = run.config.data
        try:
            trained_on = pipeline.open_dataset(where)
        except UsageError:
            return None, f"not looked for: the training data, {where}, is not there"
        if trained_on.manifest.digest != digest:
            return None, f"not looked for: {where} is no longer the dataset the run was trained on"
    if run.config.train_split not in trained_on.manifest.splits:
        return None, f"not looked for: the training data has no split {run.config.train_split}"
    return trained_on, ""


# ------------------------------------------------------------------------------------------ hashes


def read_hashes(data: Any, split: str) -> dict[str, np.ndarray] | None:
    """record, path and hashes of a split's records, from the ledger; None without one."""
    import pyarrow.parquet as pq

    path = Path(data.directory) / SOURCES_FILE
    if not path.is_file():
        return None
    columns = ["record", "path", "sha256", "pixel_hash", "perceptual_hash"]
    table = pq.read_table(path, columns=columns, filters=[("split", "=", split), ("record", ">=", 0)])
    return {name: table[name].to_numpy() for name in columns}


def stored_hashes(data: Any, split: str) -> dict[str, np.ndarray]:
    """The same from the stored bytes, for datasets without a ledger."""
    import hashlib

    rows: list[tuple[int, str, str]] = []
    for record in range(data.num_records(split)):
        with suppress(ValueError):  # an unreadable record is no copy of anything
            image, _, filename = next(data.records(split, [record]))
            rows.append((record, filename, hashlib.sha256(image).hexdigest()))
    numbers, paths, digests = (np.array([row[i] for row in rows], object) for i in range(3))
    return {"record": numbers.astype(int), "path": paths, "sha256": digests, "pixel_hash": digests}


def _equal(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs (i, j) with first[i] == second[j]; the lowest j of each."""
    where: dict[Any, int] = {}
    for j, value in enumerate(second.tolist()):
        where.setdefault(value, j)
    for i, value in enumerate(first.tolist()):
        if value in where:
            yield i, where[value]


def look_alikes(first: np.ndarray, second: np.ndarray, bits: int = HASH_BITS) -> list[tuple[int, int]]:
    """Pairs of 64-bit hashes that differ in at most `bits` bits, closest first."""
    first, second = first.astype(np.uint64), second.astype(np.uint64)
    found: list[tuple[int, int, int]] = []
    for i, value in enumerate(first):  # a billion comparisons a second: 50,000 against 1.3 million in a minute or two
        distance = np.bitwise_count(second ^ value)
        found += [(int(distance[j]), i, int(j)) for j in np.flatnonzero(distance <= bits)]
    return [(i, j) for _, i, j in sorted(found)]


def confirmed(
    data: Any, split: str, evaluated: dict, trained_on: Any, train_split: str, training: dict, pairs: list
) -> Iterator[tuple[int, int]]:
    """The pairs whose pixels agree."""
    first = {i: n for n, i in enumerate(sorted({i for i, _ in pairs}))}
    second = {j: n for n, j in enumerate(sorted({j for _, j in pairs}))}
    small_first = _thumbnails(data, split, evaluated["record"][list(first)])
    small_second = _thumbnails(trained_on, train_split, training["record"][list(second)])
    for i, j in pairs:
        if float(np.mean(small_first[first[i]] * small_second[second[j]])) >= CORRELATION:
            yield i, j


def _thumbnails(data: Any, split: str, records: np.ndarray) -> list[np.ndarray]:
    """Each record as a 32 x 32 gray square of mean 0 and deviation 1, so that a mean product is a correlation."""
    from shardline.trainer.evaluation.model_input import stored_images

    small = []
    for image in stored_images(data, split, records):
        if image is None:
            small.append(np.zeros((32, 32), np.float32))  # resembles nothing
            continue
        gray = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
        centered = gray.astype(np.float32) - gray.mean()
        small.append(centered / max(float(centered.std()), 1.0))
    return small


# ---------------------------------------------------------------------------------------- features


def neighbors(
    run: Any, cluster: Any, data: Any, split: str, trained_on: Any, train_split: str, rows: int
) -> list[tuple[int, int]]:
    """(record, train record): the training images of most similar features, nearest first."""
    import keras

    from shardline.trainer.evaluation.gradcam import clone_functional
    from shardline.trainer.evaluation.inference import predict_split

    with cluster.strategy.scope():
        whole = clone_functional(run.model)
        dense = [layer for layer in whole.layers if isinstance(layer, keras.layers.Dense)][-1]
        model = keras.Model(whole.input, keras.ops.cast(dense.input, "float32"))
    evaluated = predict_split(run, cluster, data, split, rows=rows, model=model)
    training = predict_split(run, cluster, trained_on, train_split, rows=rows, model=model)
    center = training.probabilities.mean(axis=0)  # what all images share says nothing about a pair
    ours, theirs = _unit(evaluated.probabilities - center), _unit(training.probabilities - center)
    pairs = []
    for record, features in zip(evaluated.records, ours, strict=True):
        for j in np.argsort(-(theirs @ features), kind="stable")[:NEIGHBORS]:
            pairs.append((int(record), int(training.records[j])))
    return pairs


def overlapping(
    data: Any, split: str, trained_on: Any, train_split: str, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """The pairs of records that show the same: one is a crop or a mirror image of the other."""
    first = _grays(data, split, sorted({record for record, _ in pairs}))
    second = _grays(trained_on, train_split, sorted({record for _, record in pairs}))
    for record, train_record in pairs:
        if overlap(first[record], second[train_record]) >= OVERLAP:
            yield record, train_record


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Best correlation of the middle of one gray image, scaled and mirrored, with any place of the other."""
    best = -1.0
    for one, other in ((first, second), (second, first)):
        top, left = one.shape[0] // 2 - 16, one.shape[1] // 2 - 16
        middle = one[top : top + 32, left : left + 32]
        if middle.std() < 5:  # a plain patch is found everywhere
            continue
        for patch in (middle, middle[:, ::-1]):
            for scale in (0.7, 0.85, 1.0, 1.2, 1.4):
                template = cv2.resize(patch, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                best = max(best, float(cv2.matchTemplate(other, template, cv2.TM_CCOEFF_NORMED).max()))
    return best


def _grays(data: Any, split: str, records: Sequence[int]) -> dict[int, np.ndarray]:
    """Gray images by record, their short side 64 pixels."""
    from shardline.trainer.evaluation.model_input import stored_images

    made: dict[int, np.ndarray] = {}
    for record, image in zip(records, stored_images(data, split, records), strict=True):
        if image is None:
            made[record] = np.zeros((64, 64), np.uint8)  # resembles nothing
            continue
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        scale = 64 / min(gray.shape)
        size = max(64, round(gray.shape[1] * scale)), max(64, round(gray.shape[0] * scale))
        made[record] = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    return made


def _positions(records: np.ndarray) -> dict[int, int]:
    return {record: i for i, record in enumerate(records.tolist())}


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _leak(evaluated: dict, training: dict, i: int, j: int, kind: str) -> LeakedRecord:
    return LeakedRecord(
        int(evaluated["record"][i]),
        int(training["record"][j]),
        str(evaluated["path"][i]),
        str(training["path"][j]),
        kind,
    )
