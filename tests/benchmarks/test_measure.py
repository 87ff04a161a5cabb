"""Canned rates in, the table's numbers out; what is compared really takes turns."""

import json
import sys

import numpy as np
import pytest
import scipy.stats

from shardline.benchmarks.measure import (
    CONTROL,
    Interrupted,
    Measurement,
    append_results,
    interleave,
    interval,
    load_machine,
    load_results,
    machine,
    ratio,
    reference_of,
    table,
)
from shardline.benchmarks.processes import ProcessError, Rate
from shardline.benchmarks.targets import TARGETS, summary
from shardline.pipeline.errors import Failure, UsageError


def test_runs_take_turns_and_the_warmup_is_not_counted():
    order = []

    def run(name, rates):
        rates = iter(rates)
        return lambda: order.append(name) or Rate(next(rates))

    measured = interleave(
        "toy",
        {"a": run("a", [999, 999, 10, 11, 20, 21]), "b": run("b", [999, 30, 40])},
        repeats=2,
        reference="a",
    )
    assert order == ["a", "b", "a", "a", "b", "a", "a", "b", "a"]
    assert [m.name for m in measured] == ["a", "b", CONTROL]
    assert measured[1].repeats == (30, 40)
    assert len(measured[2].repeats) == 2
    assert reference_of(measured[::-1]).name == "a"


def test_every_other_turn_runs_backwards():
    order = []
    runs = {name: lambda name=name: order.append(name) or Rate(1.0) for name in ("a", "b", "c")}
    interleave("toy", runs, repeats=2)
    assert "".join(order) == "abc" + "cba" + "abc"


def test_ctrl_c_keeps_the_complete_turns():
    calls = iter([1.0] * 5)

    def rate():
        try:
            return Rate(next(calls))
        except StopIteration:
            raise KeyboardInterrupt from None

    with pytest.raises(Interrupted) as caught:
        interleave("toy", {"a": rate, "b": rate}, repeats=9)
    assert [m.repeats for m in caught.value.measurements] == [(1.0,), (1.0,)]


def test_a_process_that_ends_too_early_is_a_failure_that_names_the_row():
    def dying():
        raise ProcessError("ended with exit code -9: no message")

    with pytest.raises(Failure, match=r"^toy: b ended with exit code -9: no message$"):
        interleave("toy", {"a": lambda: Rate(1.0), "b": dying}, repeats=1)


def test_ratios_are_taken_turn_by_turn():
    # The machine halves its speed in the second turn: rates move, the ratio does not.
    slow, fast = (Measurement("s", name, "x/s", repeats) for name, repeats in (("slow", (10, 5)), ("fast", (20, 10))))
    assert ratio(fast, slow) == (2, 2, 2)
    assert "2.00 (2.00–2.00)" in table([slow, fast])


def test_an_interval_is_scipys_and_says_what_cannot_be_told_apart():
    draw = np.random.default_rng(0)
    one, other, faster = (
        Measurement("s", name, "x/s", tuple(100 * times * draw.lognormal(0, 0.1, 30)))
        for name, times in (("one", 1), ("other", 1), ("faster", 1.5))
    )
    for row in (other, faster):
        ratios = np.array(row.repeats) / one.repeats
        theirs = scipy.stats.bootstrap((ratios,), np.median, method="percentile", rng=draw).confidence_interval
        assert interval(row, one) == pytest.approx(tuple(theirs), abs=0.02)
        assert interval(row, one) == interval(row, one)  # the seed decides
    words = {
        line.split()[0]: "not distinguishable from 1" in line for line in table([one, other, faster]).splitlines()[1:]
    }
    assert words == {"one": False, "other": True, "faster": False}


def test_measurements_survive_the_file_with_every_repeat(tmp_path):
    measurements = [Measurement("s", "a", "images/s", (1.5, 2.5, 9.0), "did it", (0.5,), {"size": 224})]
    append_results(tmp_path, [])
    assert not (tmp_path / "results.jsonl").exists()
    append_results(tmp_path, measurements)
    assert load_results(tmp_path) == load_results(tmp_path / "results.jsonl") == measurements
    assert machine()["cpu"] and machine()["cores"] >= 1


def test_what_is_measured_tells_whether_the_compiled_module_was_used(tmp_path):
    append_results(tmp_path, [Measurement("s", "a", "x/s", (1.0,))])
    assert load_machine(tmp_path).compiled is ("shardline.pipeline._native" in sys.modules)
    line = {"suite": "s", "name": "a", "unit": "x/s", "repeats": [1.0], "machine": {"cpu": "older"}}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    assert load_machine(tmp_path).compiled is None


def test_no_flipped_bit_of_the_file_changes_a_number(tmp_path):
    append_results(tmp_path, [Measurement("s", "a", "images/s", (1.5, 2.5), "did it", (0.5,), {"size": 224})])
    path = tmp_path / "results.jsonl"
    good, wanted = path.read_bytes(), load_results(tmp_path)
    noticed = 0
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
        try:
            assert load_results(tmp_path) == wanted
        except UsageError as error:
            assert "results.jsonl" in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > 0.95 * len(good)


@pytest.mark.parametrize(
    ("name", "value"),
    [("repeats", []), ("repeats", ["x"]), ("repeats", 3), ("name", 5), ("settings", []), ("cpu_seconds", [None])],
)
def test_values_of_other_types_are_refused_by_line(tmp_path, name, value):
    line = {"suite": "s", "name": "a", "unit": "x/s", "repeats": [1.0]}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {name: value}) + "\n")
    with pytest.raises(UsageError, match=r"results.jsonl, line 2, is damaged \(.*; restore it from a copy"):
        load_results(tmp_path)


def test_only_the_newest_measurement_of_a_row_counts(tmp_path):
    append_results(tmp_path, [Measurement("input", "a", "images/s", (1.0,))])
    append_results(tmp_path, [Measurement("input", "a", "images/s", (2.0,))])
    assert [m.median for m in load_results(tmp_path)] == [2.0]


@pytest.mark.parametrize("content", [None, "", "{half a line", "[1]", '{"suite": "a"}'])
def test_missing_or_damaged_results_are_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(UsageError, match=r"shardline-benchmark"):
        load_results(tmp_path)


def test_cpu_time_gives_the_rate_of_a_core_and_the_busy_cores():
    (measured,) = interleave("toy", {"a": lambda: Rate(100.0, 0.015)}, repeats=3)
    assert measured.per_core == pytest.approx(1 / 0.015)
    assert measured.busy_cores == pytest.approx(1.5)
    assert Measurement("s", "a", "x/s", (1.0,)).busy_cores is None


def test_what_did_nothing_divides_nothing():
    nothing, something = (Measurement("s", name, "x/s", (rate,)) for name, rate in (("nothing", 0), ("something", 5)))
    assert ratio(nothing, something)[0] == 0 and ratio(something, nothing)[0] == float("inf")
    assert "inf" in table([nothing, something])


def test_targets_are_reached_or_missed():
    rates = {"plain loop": 100.0, "shardline": 150.0, "FFCV writer": 100.0, CONTROL: 98.0}
    rows = [
        Measurement("convert", name, "images/s", (rate,), settings={"reference": "plain loop"})
        for name, rate in rates.items()
    ]
    text = summary(rows)
    assert "measured twice, is 0.980 times itself" in text
    assert "shardline / plain loop: 1.50 (1.50–1.50), target 1.20: reached" in text
    assert "shardline / FFCV writer: 1.50 (1.50–1.50), target 2.00: MISSED" in text
    assert "img2dataset" not in text  # was not measured


def test_every_target_names_rows_that_exist():
    from shardline.benchmarks import bench_convert, bench_input, bench_object_store, bench_train
    from shardline.benchmarks.baselines.convert import CONVERTERS
    from shardline.benchmarks.baselines.input import LOADERS

    known = {
        "input": {*LOADERS, bench_input.TWO_CORES},
        "convert": {*CONVERTERS, bench_convert.OURS, "shardline, 2 workers on 2 cores"},
        "convert 12 megapixels": {*CONVERTERS, bench_convert.OURS},
        "train": {bench_train.LOOP, bench_train.REAL, bench_train.BARE},
        "train head": {bench_train.FROZEN, bench_train.STORED},
        "object_store": {name for name in vars(bench_object_store).values() if isinstance(name, str)},
    }
    for suite, targets in TARGETS.items():
        assert {name for row, other, _ in targets for name in (row, other)} <= known[suite]


def test_arguments_are_kept_without_the_folders_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [f"--data={tmp_path}/photos/256", "--raw_images", "/h/me/my raw/", "--with=/a/b/c,/d/e", "--splits=0.5/2"]
    monkeypatch.setattr(sys, "argv", ["run", *given, "--suite", "short", "s3://bucket/data"])
    kept = ["--data=photos/256", "--raw_images", "my raw/", "--with=c,e", "--splits=0.5/2"]
    assert machine()["argv"] == [*kept, "--suite", "short", "s3://bucket/data"]
