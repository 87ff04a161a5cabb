"""Train/test leakage: evaluated images of which the training split holds a copy, exact or near.

Hashes come from the dataset's ledger, so nothing is decoded but the few pairs that look alike. A pair of similar
perceptual hashes counts only when the pixels agree too: plain skies have equal hashes. With features, crops and
flipped copies are found as well: the model proposes the nearest training images, and again pixels decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import keras
import numpy as np

from shardline import pipeline
from shardline.pipeline.errors import UsageError
from shardline.pipeline.near_duplicates import near_duplicates
from shardline.pipeline.sources_table import SOURCES_FILE, read_sources
from shardline.pipeline.wording import count
from shardline.trainer.evaluation.gradcam import clone_functional
from shardline.trainer.evaluation.inference import predict_split
from shardline.trainer.evaluation.model_input import stored_images

if TYPE_CHECKING:
    from shardline.pipeline.dataset import Dataset
    from shardline.trainer.cluster import Cluster
    from shardline.trainer.run_dir import Run

HASH_BITS = 6  # of 64 that may differ between copies; of copies cropped by 3%, 3 bits find 42%, 6 find 89%
CORRELATION = 0.8  # of small gray versions, from which pixels agree; tuned on photographs with known re-crops
NEIGHBORS = 5  # nearest training images by features that are compared by pixels
OVERLAP = 0.97  # correlation from which the middle of one image is found again in another
MAX_CANDIDATES = 50_000  # pairs that are compared by pixels
SIDE = 32  # pixels, of the gray squares that are compared

Pairs = Sequence[tuple[int, int]]  # record number in the evaluated split, record number in the training split


@dataclass(frozen=True)
class LeakedRecord:
    """One evaluated record and its closest copy in the training split."""

    record: int
    train_record: int
    path: str
    train_path: str
    kind: str  # same file, same pixels, near duplicate, crop or flip

    def __str__(self) -> str:
        return f"{self.path} = {self.train_path} ({self.kind})"


@dataclass(frozen=True)
class Leakage:
    """What a search for leakage found."""

    records: tuple[LeakedRecord, ...]  # in record order
    note: str  # what was compared, and how many were found; or why nothing was compared


@dataclass(frozen=True)
class HashedSplit:
    """Records of a split with the hashes of their images."""

    data: Dataset
    split: str
    columns: dict[str, np.ndarray]  # record, path, sha256, pixel_hash and, from a ledger, perceptual_hash

    def only(self, records: np.ndarray) -> HashedSplit:
        """Of these records alone."""
        kept = np.isin(self.columns["record"], records)
        return replace(self, columns={name: column[kept] for name, column in self.columns.items()})


def find_leakage(
    run: Run,
    devices: Cluster,
    data: Dataset,
    split: str,
    records: np.ndarray,
    *,
    features: bool = False,
    batch_size: int = 32,
) -> Leakage:
    """Those `records` of `split` that have a copy in the split that the run was trained on.

    Args:
      features: look for crops and flipped copies too, which runs the model over both splits.
      batch_size: images in one forward pass of one device.
    """
    train_split = run.config.train_split
    trained_on, problem = training_data(run, data)
    if trained_on is None:
        return Leakage((), problem)
    if trained_on.manifest.digest == data.manifest.digest and split == train_split:
        return Leakage((), f"{split} is the split this run was trained on: nothing in it is held out")
    compared = ["file, pixel and perceptual hashes"]
    evaluated, training = read_hashes(data, split), read_hashes(trained_on, train_split)
    if evaluated is None or training is None:
        compared = ["stored bytes (there is no ledger)"]  # adopted datasets have none
        evaluated, training = hash_stored(data, split), hash_stored(trained_on, train_split)
    evaluated = evaluated.only(records)
    found = {"same file": equal_pairs(evaluated, training, "sha256")}
    found["same pixels"] = equal_pairs(evaluated, training, "pixel_hash")
    near = without(near_pairs(evaluated, training), found)
    if len(near) > MAX_CANDIDATES:
        compared.append(f"the closest {MAX_CANDIDATES:,} of {len(near):,} near duplicates by their pixels")
    found["near duplicate"] = confirm(evaluated, training, near[:MAX_CANDIDATES], _small_square, _agree)
    if features:
        compared.append("features")
        near = without(neighbors(run, devices, evaluated, training, batch_size), found)
        found["crop or flip"] = confirm(evaluated, training, near, _small_gray, overlap)
    return _leakage(found, evaluated, training, compared)


def without(pairs: Pairs, found: Mapping[str, Pairs]) -> Pairs:
    """The pairs of records of which no pair is found yet."""
    known = {record for pairs in found.values() for record, _ in pairs}
    return [pair for pair in pairs if pair[0] not in known]


def _leakage(
    found: Mapping[str, Pairs], evaluated: HashedSplit, training: HashedSplit, compared: Sequence[str]
) -> Leakage:
    """Of each record the first pair."""
    first: dict[int, tuple[int, str]] = {}
    for kind, pairs in found.items():
        for record, train_record in pairs:
            first.setdefault(record, (train_record, kind))
    ours, theirs = (
        dict(zip(side.columns["record"].tolist(), side.columns["path"], strict=True)) for side in (evaluated, training)
    )
    leaked = tuple(
        LeakedRecord(record, train_record, str(ours[record]), str(theirs[train_record]), kind)
        for record, (train_record, kind) in sorted(first.items())
    )
    have = "has" if len(leaked) == 1 else "have"
    of = f"{len(leaked):,} of {count(len(ours), 'image')} {have} a copy in {training.split}"
    return Leakage(leaked, f"{of}; compared by {' and '.join(compared)}")


def training_data(run: Run, data: Dataset) -> tuple[Dataset | None, str]:
    """The dataset the run was trained on; None, and why, when it cannot be had."""
    digest = run.dataset["dataset"]
    if data.manifest.digest == digest:
        trained_on = data
    else:
        where = run.config.data
        try:
            trained_on = pipeline.open_dataset(where, run.config, digest=digest)
        except UsageError:
            return None, f"not searched for: the training data, {where}, is not there"
        if trained_on.manifest.digest != digest:
            return None, f"not searched for: {where} is no longer the dataset the run was trained on"
    if run.config.train_split not in trained_on.manifest.splits:
        return None, f"not searched for: the training data has no split {run.config.train_split}"
    return trained_on, ""


# ------------------------------------------------------------------------------------------ hashes


def read_hashes(data: Dataset, split: str) -> HashedSplit | None:
    """The hashes of a split's records, from the ledger; None without one."""
    columns = ["record", "path", "sha256", "pixel_hash", "perceptual_hash"]
    try:
        table = read_sources(
            data.companion(SOURCES_FILE).parent,
            columns,
            where=[("split", "=", split), ("record", ">=", 0), ("record", "<", data.num_records(split))],
        )
    except FileNotFoundError:
        return None
    if not np.array_equal(np.sort(table["record"].to_numpy()), np.arange(data.num_records(split))):
        raise UsageError(
            f"{data.where}: {SOURCES_FILE} has not a row of each record of {split}; restore it from a copy"
        )
    return HashedSplit(data, split, {name: table[name].to_numpy() for name in columns})


def hash_stored(data: Dataset, split: str) -> HashedSplit:
    """Hashes of the stored bytes, for datasets without a ledger."""
    rows: list[tuple[int, str, str]] = []
    for record in range(data.num_records(split)):
        with suppress(ValueError):  # an unreadable record is no copy of anything
            image, _, filename = next(data.records(split, [record]))
            rows.append((record, filename, hashlib.sha256(image).hexdigest()))
    numbers, paths, digests = (np.array([row[i] for row in rows], object) for i in range(3))
    columns = {"record": numbers.astype(int), "path": paths, "sha256": digests, "pixel_hash": digests}
    return HashedSplit(data, split, columns)


def equal_pairs(evaluated: HashedSplit, training: HashedSplit, hash_name: str) -> Pairs:
    """Pairs of equal hash; of equal training records the lowest."""
    theirs, ours = (
        list(zip(side.columns[hash_name].tolist(), side.columns["record"].tolist(), strict=True))
        for side in (training, evaluated)
    )
    where = dict(reversed(theirs))
    return [(record, where[value]) for value, record in ours if value in where]


def near_pairs(evaluated: HashedSplit, training: HashedSplit) -> Pairs:
    """Pairs whose perceptual hashes differ in few bits, closest first."""
    sides = (evaluated, training)
    if any("perceptual_hash" not in side.columns for side in sides):
        return []
    sizes = [len(side.columns["record"]) for side in sides]
    found = near_duplicates(
        np.concatenate([side.columns["perceptual_hash"] for side in sides]).astype(np.uint64),
        np.concatenate([side.columns["record"] for side in sides]),
        np.repeat([0, 1], sizes),
        limit=4 * MAX_CANDIDATES,
        bits=HASH_BITS,
        across_only=True,
    )
    return [(pair.first, pair.second) for pair in found]


# ------------------------------------------------------------------------------------------ pixels


def confirm(
    evaluated: HashedSplit,
    training: HashedSplit,
    pairs: Pairs,
    prepare: Callable[[np.ndarray], np.ndarray],
    agree: Callable[[np.ndarray, np.ndarray], bool],
) -> Pairs:
    """The pairs whose pixels agree.

    Args:
      prepare: RGB image -> what is compared of it, and kept for all its pairs.
      agree: whether two prepared images are of the same image.
    """
    first = _prepared(evaluated, {record for record, _ in pairs}, prepare)
    second = _prepared(training, {record for _, record in pairs}, prepare)
    return [(a, b) for a, b in pairs if a in first and b in second and agree(first[a], second[b])]


def _prepared(
    where: HashedSplit, records: set[int], prepare: Callable[[np.ndarray], np.ndarray]
) -> dict[int, np.ndarray]:
    wanted = sorted(records)
    images = stored_images(where.data, where.split, wanted)
    return {record: prepare(image) for record, image in zip(wanted, images, strict=True) if image is not None}


def _small_square(image: np.ndarray) -> np.ndarray:
    """Gray [SIDE, SIDE] of mean 0 and deviation 1, so that a mean product is a correlation."""
    gray = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    centered: np.ndarray = gray.astype(np.float32) - gray.mean()
    return centered / max(float(centered.std()), 1.0)


def _agree(first: np.ndarray, second: np.ndarray) -> bool:
    return float(np.mean(first * second)) >= CORRELATION


def _small_gray(image: np.ndarray) -> np.ndarray:
    """Gray, the short side twice SIDE."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    least = 2 * SIDE
    scale = least / min(gray.shape)
    size = max(least, round(gray.shape[1] * scale)), max(least, round(gray.shape[0] * scale))
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA)


def overlap(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether one gray image is a crop of the other, flipped or not: the middle of one is found in the other."""
    for one, other in ((first, second), (second, first)):
        top, left = one.shape[0] // 2 - SIDE // 2, one.shape[1] // 2 - SIDE // 2
        middle = one[top : top + SIDE, left : left + SIDE]
        if middle.std() < 5:  # a plain patch is found everywhere
            continue
        for patch in (middle, middle[:, ::-1]):
            for scale in (0.7, 0.85, 1.0, 1.2, 1.4):
                template = cv2.resize(patch, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                if cv2.matchTemplate(other, template, cv2.TM_CCOEFF_NORMED).max() >= OVERLAP:
                    return True
    return False


# ---------------------------------------------------------------------------------------- features


def neighbors(run: Run, devices: Cluster, evaluated: HashedSplit, training: HashedSplit, batch_size: int) -> Pairs:
    """The training images of most similar features, nearest first."""
    with devices.strategy.scope():
        whole = clone_functional(run.model)
        dense = [layer for layer in whole.layers if isinstance(layer, keras.layers.Dense)][-1]
        model = keras.Model(whole.input, keras.ops.cast(dense.input, "float32"))
    ours, theirs = (
        predict_split(run, devices, where.data, where.split, batch_size=batch_size, model=model)
        for where in (evaluated, training)
    )
    center = theirs.probabilities.mean(axis=0)  # what all images share says nothing about a pair
    directions = _unit(theirs.probabilities - center)
    wanted, pairs = set(evaluated.columns["record"].tolist()), []
    for record, features in zip(ours.records, _unit(ours.probabilities - center), strict=True):
        if record in wanted:
            for j in np.argsort(-(directions @ features), kind="stable")[:NEIGHBORS]:
                pairs.append((int(record), int(theirs.records[j])))
    return pairs


def _unit(rows: np.ndarray) -> np.ndarray:
    directions: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return directions
