"""Stored numbers in, pages and gates out; nothing is measured here."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest

from shardline.benchmarks.bottleneck import bottleneck_of
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.measure import CONTROL, Measurement, append_results, load_results
from shardline.benchmarks.report import ReportConfig, check, main, write_report
from shardline.benchmarks.run import benchmark
from shardline.pipeline.errors import Failure
from shardline.pipeline.files import exclusive
from tests.few import few

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
    "order": 80_000,
    "storage": 40_000,
    "records": 30_000,
    "parse": 20_000,
    "decode": 5_600,
    "augment": 4_700,
    "batch": 4_600,
    "step": 9_000,
    "end_to_end": 4_500,
}


FORECAST = {
    "gradient_bytes": 59e6,
    "step_batch_size": 90,
    "device": "GPU",
    "interconnect_gbps": 100,
    "price_per_hour": 3.6,
}


SETTINGS = {"facts": FACTS, "forecast": FORECAST}


def canned():
    stages = [
        Measurement("stages", name, "images/s", (rate * 0.95, rate, rate * 1.02), name, (1.84 / rate,) * 3, SETTINGS)
        for name, rate in RATES.items()
    ]
    loaders = [
        Measurement(
            "input", name, "images/s", tuple(rate * x for x in (0.97, 1, 1.01)), settings={"reference": "DataLoader"}
        )
        for name, rate in (("DataLoader", 2_310), ("shardline host", 2_600), ("Grain", 1_900), (CONTROL, 2_300))
    ]
    return [*stages, *loaders]


def test_the_report_stands_alone_and_names_the_bottleneck(tmp_path):
    append_results(tmp_path, canned())
    write_report(tmp_path, load_results(tmp_path), canned())
    page = (tmp_path / "report.html").read_text()
    assert "decode-bound: " in page and "--size 224" in page and "Compared with the earlier report" in page
    assert "Input: shardline host at 1.13 times the rate of DataLoader, the fastest other" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {"host_time.png", "stages.png", "forecast.png", "input_images_per_s.png"}


def cells(page, head):
    """The rows of the first table whose header begins so, as lists of text."""
    table = re.search(rf"<thead><tr>.{{0,90}}>{head}<.*?</table>", page, re.S)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], re.S)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_stages_tell_their_share_of_both_upper_bounds_and_of_the_cpu(tmp_path):
    write_report(tmp_path, canned())
    page = (tmp_path / "report.html").read_text()
    by_name = {row[0]: row[1:] for row in cells(page, "stage")}
    images, _, _, per_core, use, megabytes, of_decode, of_storage, _ = by_name["batch"]
    assert (images, per_core) == ("4,600", "2,500")
    assert use == "92%"
    assert megabytes == f"{4_600 * 29_000 / 1e6:.4g}"
    assert (of_decode, of_storage) == (f"{4_600 / 5_600:.1%}", f"{4_600 / 40_000:.1%}")
    assert by_name["parse"][6:8] == ["", "50.0%"]  # decoding is no upper bound of what comes before it
    assert "Measured end to end: 4,500 images/s; the prediction is 2% too high." in page


def test_what_the_input_of_more_gpus_needs_and_costs(tmp_path):
    write_report(tmp_path, canned())
    page = (tmp_path / "report.html").read_text()
    assert "The input reaches 51% of what one GPU needs for 9,000 images/s" in page
    rows = cells(page, "GPUs")
    # A step takes 10 ms; two GPUs exchange 59 MB at 12.5 GB/s after it, 4.72 ms.
    efficiency = 10 / (10 + 4.72)
    assert rows[1] == ["2", f"{efficiency:.0%}", f"{2 * 9_000 * efficiency:,.0f}", "8", "4"]
    assert [row[3] for row in rows] == ["4", "8", "16", "32"]  # 9,000 at 2,300 a core
    assert "59.0 MB of gradients over 100 Gbit/s" in page
    prices = {row[0]: float(row[2]) for row in cells(page, "change")}
    assert prices["unchanged"] == pytest.approx(1e6 / 4_600 / 1_000, rel=1e-3)
    assert prices["--size 224"] < prices["unchanged"]


def test_a_host_that_trains_by_itself_is_not_fed_by_hosts(tmp_path):
    settings = {"facts": FACTS | {"step_on_host": True}, "forecast": FORECAST | {"device": "host"}}
    write_report(tmp_path, [replace(m, settings=settings) for m in canned() if m.suite == "stages"])
    page = (tmp_path / "report.html").read_text()
    reached = 8 * 9_000 * 10 / (10 + 59e6 / 12.5e9 * 1e3 * 2 * 7 / 8)
    assert f"8 hosts like this one would train at {reached:,.0f} images/s" in page
    assert len(cells(page, "hosts")[0]) == 3 and "cores needed" not in page
    assert cells(page, "change")[0][0] == "unchanged"


@pytest.mark.parametrize(
    ("two", "title"),
    [
        (150.0, "shardline, 2 cores at 1.50 times the rate of shardline, 1 core"),
        (90.0, "nothing is faster than shardline, 1 core"),
    ],
)
def test_the_title_of_scaling_says_what_it_brought(two, title, tmp_path):
    rows = [
        Measurement("scaling", name, "images/s", (rate,), settings={"reference": "shardline, 1 core"})
        for name, rate in (("shardline, 1 core", 100.0), ("shardline, 2 cores", two))
    ]
    write_report(tmp_path, rows)
    assert f"Scaling: {title}" in (tmp_path / "report.html").read_text()


def test_predictions_stand_beside_measurements(tmp_path):
    settings = {"reference": "unchanged"}
    rows = [
        Measurement("validation", "unchanged", "images/s", (100.0, 200.0), settings=settings),
        Measurement("validation", "--size 224", "images/s", (110.0, 240.0), settings={**settings, "predicted": 1.38}),
        Measurement(
            "validation", "--encoding raw", "images/s", (200.0, 400.0), settings={**settings, "predicted": 2.0}
        ),
    ]
    write_report(tmp_path, rows)
    page = (tmp_path / "report.html").read_text()
    assert "Predictions against measurements: the largest error is +20%" in page
    assert cells(page, "change")[0][:3] == ["--size 224", "1.38x", "1.15x"]
    assert (tmp_path / "validation.png").exists()


def test_who_was_absent_is_named(tmp_path):
    settings = {"reference": "plain loop", "absent": {"FFCV writer": "ffcv not installed"}}
    write_report(tmp_path, [Measurement("convert", "plain loop", "images/s", (1.0,), settings=settings)])
    assert "Not measured: FFCV writer (ffcv not installed)." in (tmp_path / "report.html").read_text()


def test_a_dataset_larger_than_memory_reads_from_cold_storage():
    cold = Measurement("stages", "storage (cold)", "images/s", (800.0,) * 3, cpu_seconds=(0.0001,) * 3)
    fits = [*canned(), cold]
    larger = [replace(m, settings={"facts": FACTS | {"fits_memory": False}}) for m in canned()]
    assert bottleneck_of(fits).word == "decode-bound"
    found = bottleneck_of([*larger, cold])
    assert found.word == "storage-bound" and found.cold is None
    warm = 1 / 4_600 - 1 / 40_000 + 1 / 80_000  # what is left without warm reads
    assert found.images_per_second == pytest.approx(1 / (warm + 1 / 800 - 1 / 80_000), rel=0.02)


def test_some_of_the_stages_show_no_bottleneck_and_still_a_report(tmp_path):
    part = [m for m in canned() if m.name in ("storage", "records")]
    assert bottleneck_of(part) is None
    write_report(tmp_path, part)
    assert (tmp_path / "stages.png").exists()


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


def test_the_gate_does_not_look_at_the_control():
    noisy = [replace(m, repeats=tuple(r / 2 for r in m.repeats)) if m.name == CONTROL else m for m in canned()]
    assert check(noisy, canned(), 0.1) == []


def test_the_title_of_a_comparison_takes_the_ratio_turn_by_turn(tmp_path):
    # The ratios of the turns are 2, 2 and 1; the medians of the rates are equal.
    rows = [
        Measurement("input", name, "images/s", rates)
        for name, rates in (("shardline", (200.0, 20.0, 60.0)), ("other", (100.0, 10.0, 60.0)))
    ]
    write_report(tmp_path, rows)
    assert (
        "Input: shardline at 2.00 times the rate of other, the fastest other" in (tmp_path / "report.html").read_text()
    )


@pytest.mark.parametrize(("control", "within"), [(1.0, False), (0.8, True)])
def test_a_difference_within_the_noise_is_said_to_be_none(control, within, tmp_path):
    rates = {"other": 100.0, "shardline": 113.0, CONTROL: 100.0 * control}
    settings = {"reference": "other"}
    write_report(tmp_path, [Measurement("input", n, "images/s", (r,), settings=settings) for n, r in rates.items()])
    page = (tmp_path / "report.html").read_text()
    assert ("differ by no more than the noise of 20.0%" in page) == within
    assert ("1.13 times" in page) != within


def test_the_gate_exits_with_1(tmp_path):
    append_results(tmp_path, canned())
    (tmp_path / "before").mkdir()
    better = [
        Measurement(
            m.suite, m.name, m.unit, tuple(r * (2 if m.name == "Grain" else 1) for r in m.repeats), "", (), m.settings
        )
        for m in canned()
    ]
    append_results(tmp_path / "before", better)
    command = [sys.executable, "-m", "shardline.benchmarks.report", str(tmp_path), f"--check={tmp_path / 'before'}"]
    result = subprocess.run(command, capture_output=True, text=True)
    *told, line = result.stderr.splitlines()
    assert result.returncode == 1 and "Grain fell" in line and all(said.startswith("report: ") for said in told)


def test_zero_rates_divide_nothing(tmp_path):
    rows = [Measurement("input", name, "images/s", (0.0, 0.0)) for name in ("a", "shardline b")]
    rows += [Measurement("stages", m.name, m.unit, (0.0,) * 3, settings=m.settings) for m in canned()[:9]]
    rows += [
        Measurement("validation", name, "images/s", (0.0,), settings={"reference": "unchanged", "predicted": 1.5})
        for name in ("unchanged", "--size 224")
    ]
    assert bottleneck_of(rows) is None
    write_report(tmp_path, rows, rows)
    assert check(rows, rows, 0.1) == []


@pytest.mark.parametrize("dead", few(RATES, "storage", "step"))
def test_any_one_dead_stage_still_leaves_a_report(dead, tmp_path):
    rows = [replace(m, repeats=(0.0,) * 3) if m.name == dead else m for m in canned() if m.suite == "stages"]
    write_report(tmp_path, rows)
    assert f">{dead}<" in (tmp_path / "report.html").read_text()


def test_only_figures_of_a_report_are_removed(tmp_path):
    for name in ("mine.png", "stages.png", "forecast.png"):
        (tmp_path / name).write_bytes(b"x")
    rows = [Measurement("convert", "plain loop", "images/s", (1.0,))]
    write_report(tmp_path, rows)
    assert {path.name for path in tmp_path.glob("*.png")} == {"mine.png", "convert_images_per_s.png"}


def test_a_report_directory_has_one_owner(tmp_path):
    append_results(tmp_path, [Measurement("convert", "plain loop", "images/s", (1.0,))])
    with exclusive(tmp_path / ".lock", "it"):
        bench = BenchConfig(suite="convert", raw_images=str(tmp_path), output=str(tmp_path))
        for act in (partial(main, ReportConfig(report=str(tmp_path))), partial(benchmark, bench)):
            with pytest.raises(Failure, match=f"={tmp_path} is in use by process {os.getpid()} on "):
                act()


def test_a_step_that_was_measured_on_all_gpus_is_forecast_by_the_share_of_one(tmp_path):
    settings = {**SETTINGS, "forecast": FORECAST | {"devices": 3}}
    write_report(tmp_path, [replace(m, settings=settings) for m in canned() if m.suite == "stages"])
    assert "what one GPU needs for 3,000 images/s" in (tmp_path / "report.html").read_text()
