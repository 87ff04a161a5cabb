"""Stored numbers in, pages and gates out; nothing is measured here."""

import subprocess
import sys

import pytest

from benchmarks.measure import CONTROL, Measurement, append_jsonl
from benchmarks.report import check, ladder_verdict, load_results, write_report
from pipeline.cli import UsageError

FACTS = {
    "cores": 2,
    "image_bytes": 29_000,
    "stored_pixels": 256 * 340,
    "step_on_host": False,
    "encoding": "jpeg",
    "stored_size": 256,
    "smaller_size": 224,
}
RATES = {
    "storage": 40_000,
    "records": 30_000,
    "parse": 20_000,
    "decode": 5_600,
    "augment": 4_700,
    "batch": 4_600,
    "step": 9_000,
    "end_to_end": 4_500,
}


def canned():
    ladder = [
        Measurement("ladder", name, "images/s", (rate * 0.95, rate, rate * 1.02), name, (0.0004,) * 3, {"facts": FACTS})
        for name, rate in RATES.items()
    ]
    peers = [
        Measurement(
            "input", name, "images/s", tuple(rate * x for x in (0.97, 1, 1.01)), settings={"baseline": "DataLoader"}
        )
        for name, rate in (("DataLoader", 2_310), ("shardline host", 2_600), ("Grain", 1_900), (CONTROL, 2_300))
    ]
    return [*ladder, *peers]


def test_the_report_stands_alone_and_names_the_bottleneck(tmp_path):
    append_jsonl(tmp_path / "results.jsonl", canned())
    write_report(tmp_path, load_results(tmp_path), canned())
    page = (tmp_path / "report.html").read_text()
    assert "decode-bound: " in page and "--size 224" in page and "Against the baseline" in page
    assert "input: shardline host 1.13x DataLoader, the fastest other" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert {path.name for path in tmp_path.glob("*.png")} == {"host_time.png", "ladder.png", "input_images_per_s.png"}


def test_only_the_newest_measurement_of_a_row_counts(tmp_path):
    append_jsonl(tmp_path / "results.jsonl", [Measurement("input", "a", "images/s", (1.0,))])
    append_jsonl(tmp_path / "results.jsonl", [Measurement("input", "a", "images/s", (2.0,))])
    assert [m.median for m in load_results(tmp_path)] == [2.0]


def test_a_part_of_a_ladder_has_no_verdict_and_still_a_report(tmp_path):
    part = [m for m in canned() if m.name in ("storage", "records")]
    assert ladder_verdict(part) is None
    write_report(tmp_path, part)
    assert (tmp_path / "ladder.png").exists()


def test_the_gate_looks_at_ratios_not_rates():
    now = [
        Measurement(m.suite, m.name, m.unit, tuple(r / 2 for r in m.repeats), settings=m.settings) for m in canned()
    ]  # half the machine, same ratios
    assert check(now, canned(), 0.1) == []
    slower = [
        Measurement(m.suite, m.name, m.unit, tuple(r * 0.8 for r in m.repeats), settings=m.settings)
        if m.name == "shardline host"
        else m
        for m in canned()
    ]
    (fallen,) = check(slower, canned(), 0.1)
    assert fallen == "input: shardline host fell from 1.13x to 0.90x of DataLoader"


def test_the_gate_exits_with_1(tmp_path):
    append_jsonl(tmp_path / "results.jsonl", canned())
    (tmp_path / "before").mkdir()
    better = [
        Measurement(
            m.suite, m.name, m.unit, tuple(r * (2 if m.name == "Grain" else 1) for r in m.repeats), "", (), m.settings
        )
        for m in canned()
    ]
    append_jsonl(tmp_path / "before" / "results.jsonl", better)
    command = [sys.executable, "-m", "benchmarks.report", str(tmp_path), f"--check={tmp_path / 'before'}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "Grain fell" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [None, "", "{half a line"])
def test_missing_or_damaged_results_are_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(UsageError, match=r"benchmarks\.run"):
        load_results(tmp_path)


def test_zero_rates_divide_nothing(tmp_path):
    rows = [Measurement("input", name, "images/s", (0.0, 0.0)) for name in ("a", "shardline b")]
    write_report(tmp_path, rows)
    assert check(rows, rows, 0.1) == []
