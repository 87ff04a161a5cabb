"""An evaluation's values: defined for any split, whatever occurs in it; written whole, read back, damage named."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import file_sha256
from shardline.tools.plot_style import Plot
from shardline.trainer.evaluation import results
from shardline.trainer.evaluation.inference import Predictions
from shardline.trainer.evaluation.leakage import Leakage, LeakedRecord
from tests.pipeline.tiny import edit_stored

NOT_SEARCHED = Leakage((), "not searched for")


def predictions(records, classes, seed=0, present=None):
    random = np.random.default_rng(seed)
    weights = random.integers(1, 4, (records, classes)).astype(np.float32)  # with ties
    labels = random.choice(present or classes, records)
    return Predictions(np.arange(records), labels, weights / weights.sum(axis=1, keepdims=True), records)


def computed(rows, classes, leakage=NOT_SEARCHED, **calibration):
    labels = tuple(f"class {c}" for c in range(classes))
    evaluation = results.compute(rows, "test", labels, [f"{r}.jpg" for r in rows.records], leakage, **calibration)
    evaluation.metrics.update(run="run", digest="0" * 64, weights={"step": 3, "sha256": "0" * 64})
    return evaluation


def numbers(value):
    """Every number in nested dicts and lists."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


@given(st.integers(1, 20), st.integers(2, 6), st.integers(0, 1000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_number_is_finite_or_none_for_single_classes_and_absent_ones(records, classes, seed, single):
    rows = predictions(records, classes, seed, present=[classes - 1] if single else None)
    values = computed(rows, classes, calibration=predictions(5, classes, seed + 1), calibration_split="v").metrics
    assert json.loads(json.dumps(values, allow_nan=False)) and all(map(np.isfinite, numbers(values)))
    low, high = values["calibration"]["ece_interval95"]
    assert 0 <= low <= high <= 1
    assert values["n"] == records and sum(c["support"] for c in values["classes"]) == records
    assert (values["mean_roc_auc"] is None) == (len(set(rows.labels.tolist())) == 1)
    assert values["top1"] <= values["top5"] <= 1 and values["interval95"]["top1"][0] <= values["top1"]


def test_leaked_records_are_counted_out():
    rows = predictions(10, 3)
    leaked = tuple(LeakedRecord(record, 0, "a", "b", "same file") for record in range(4))
    values = computed(rows, 3, Leakage(leaked, "4 of 10")).metrics
    right = rows.predicted == rows.labels
    assert values["leakage"] == {
        "records": 4, "note": "4 of 10", "without": {"n": 6, "top1": np.mean(right[4:]), "top5": 1.0}
    }  # fmt: skip
    assert f"without 4 copies of training images: top-1 {np.mean(right[4:]):.1%} (n = 6)" in results.summary(values)


def test_when_all_records_leaked_nothing_is_left_to_count():
    leaked = tuple(LeakedRecord(record, 0, "a", "b", "same file") for record in range(3))
    values = computed(predictions(3, 2), 2, Leakage(leaked, "3 of 3")).metrics
    assert "without" not in values["leakage"] and "without" not in results.summary(values)


def test_what_is_written_is_read_back(tmp_path):
    evaluation = computed(predictions(7, 3), 3)
    results.write(evaluation, {"confusion": Plot("<svg/>", b"png")}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"confusion.png", "predictions.parquet", "metrics.json"}
    sha256 = hashlib.sha256((tmp_path / "predictions.parquet").read_bytes()).hexdigest()
    wanted = json.loads(json.dumps({**evaluation.metrics, "predictions_sha256": sha256}))
    assert results.read_metrics(tmp_path) == wanted
    table, metadata = results.read_predictions(tmp_path)
    assert np.array(table["probabilities"].to_pylist(), np.float32) == pytest.approx(
        evaluation.predictions.probabilities
    )
    assert json.loads(metadata["labels"]) == ["class 0", "class 1", "class 2"] and metadata["digest"] == "0" * 64


def test_an_interrupted_write_leaves_no_metrics_and_nothing_half(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    def break_off(table, file, **settings):
        file.write(b"PAR1 and then the power went")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", break_off)
    with pytest.raises(KeyboardInterrupt):
        results.write(computed(predictions(7, 3), 3), {"confusion": Plot("<svg/>", b"png")}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]


def test_numbers_of_a_model_that_diverged_are_stored_as_none(tmp_path):
    evaluation = computed(predictions(7, 3), 3)
    evaluation.metrics["ece"] = evaluation.metrics["classes"][0]["f1"] = float("nan")
    results.write(evaluation, {}, tmp_path)
    found = results.read_metrics(tmp_path)
    assert found["ece"] is None and found["classes"][0]["f1"] is None


def test_a_missing_evaluation_is_named(tmp_path):
    for read in (results.read_predictions, results.read_metrics):
        with pytest.raises(UsageError, match=f"{tmp_path} holds no metrics.json; run shardline-evaluate first"):
            read(tmp_path)


@pytest.mark.parametrize("each", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["metrics.json", "predictions.parquet"])
def test_every_flipped_or_cut_byte_is_noticed_in_one_line(tmp_path, name, each):
    """Of every eleventh byte among the fast tests."""
    results.write(computed(predictions(3, 2), 2), {}, tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for at in range(0, len(whole), each):
        for damaged in (whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :], whole[:at]):
            path.write_bytes(damaged)
            with pytest.raises(UsageError, match=rf"{name} .*; run shardline-evaluate again") as refusal:
                results.read_predictions(tmp_path)
            assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "change",
    [
        {"top1": 2}, {"top1": "1"}, {"run": 5}, {"n": -1}, {"interval95": {}}, {"interval95": {"top1": [0.5]}},
        {"predictions_sha256": "../victim"}, {"ece": []},
    ],
)  # fmt: skip
def test_values_of_other_types_and_ranges_are_refused(tmp_path, change):
    results.write(computed(predictions(3, 2), 2), {}, tmp_path)
    edit_stored(tmp_path / "metrics.json", lambda content: content.update(change))
    with pytest.raises(UsageError, match=r"metrics.json is damaged \(.*; run shardline-evaluate again"):
        results.read_metrics(tmp_path)


def test_another_table_with_the_right_hash_is_refused(tmp_path):
    results.write(computed(predictions(3, 2), 2), {}, tmp_path)
    path = tmp_path / "predictions.parquet"
    for table in (pa.table({"path": ["a"]}), pq.read_table(path).drop_columns(["correct"])):
        pq.write_table(table, path)
        edit_stored(tmp_path / "metrics.json", lambda content: content.update(predictions_sha256=file_sha256(path)))
        with pytest.raises(UsageError, match="has other columns than shardline-evaluate writes"):
            results.read_predictions(tmp_path)
