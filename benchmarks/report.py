"""Draw a report from results.jsonl: report.html and PNGs, from the stored numbers only.

    python -m benchmarks.report DIR [--baseline OTHER_DIR] [--check BASELINE_DIR --tolerance 0.1]

With --check, ratios within each suite are held against those of an earlier report: exit code 1 names the row that
fell. Ratios, not rates: another machine, or the same one on a busy day, moves all rates together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.measure import CONTROL, Measurement, load_jsonl, ratio
from benchmarks.verdict import HOST_STAGES, STAGES, Verdict, judge, stage_seconds
from pipeline.cli import Failure, UsageError, run

_BASELINE = flags.DEFINE_string("baseline", "", "another report's directory: its rates are set beside these")
_CHECK = flags.DEFINE_string("check", "", "a report's directory or results.jsonl: fail where a ratio fell below it")
_TOLERANCE = flags.DEFINE_float("tolerance", 0.1, "how far a ratio may fall before --check fails", lower_bound=0)

STAGE_TEXT = {
    "storage": "read the shards' bytes",
    "records": "read each record, checksums verified",
    "parse": "find image and label in it",
    "decode": "decode the whole picture",
    "augment": "random crop, resize, flip",
    "batch": "uint8 batches out of tf.data",
    "copy": "batches to the device",
    "step": "training step on batches in memory",
    "end_to_end": "training step on real input",
}


def main(arguments: list[str]) -> None:
    """Draw, compare, check."""
    if len(arguments) != 1:
        raise UsageError("name one report directory: python -m benchmarks.report DIR")
    directory = Path(arguments[0])
    measurements = load_results(directory)
    baseline = load_results(Path(_BASELINE.value)) if _BASELINE.value else []
    write_report(directory, measurements, baseline)
    print(directory / "report.html")
    if _CHECK.value:
        fallen = check(measurements, load_results(Path(_CHECK.value)), _TOLERANCE.value)
        if fallen:
            raise Failure(f"--check={_CHECK.value}: {'; '.join(fallen)}")


def load_results(directory: Path) -> list[Measurement]:
    """The newest measurement of each (suite, name) in DIRECTORY/results.jsonl, in the order first taken."""
    path = directory / "results.jsonl" if directory.is_dir() else directory
    if not path.is_file():
        raise UsageError(f"{directory}: no results.jsonl there; make one with benchmarks.run --output {directory}")
    try:
        newest = {(m.suite, m.name): m for m in load_jsonl(path)}
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); run benchmarks.run again") from None
    if not newest:
        raise UsageError(f"{path} is empty; run benchmarks.run again")
    return list(newest.values())


def ladder_verdict(measurements: Sequence[Measurement]) -> Verdict | None:
    """The verdict on the ladder among the measurements; None where there is no whole ladder."""
    ladder = {m.name: m for m in measurements if m.suite == "ladder" and m.name in STAGES}
    if not {"storage", "decode", "batch"} <= set(ladder):
        return None
    facts = ladder["batch"].settings["facts"]
    return judge({name: m.median for name, m in ladder.items()}, **facts)


def check(measurements: Sequence[Measurement], baseline: Sequence[Measurement], tolerance: float) -> list[str]:
    """Rows whose ratio to their suite's baseline row fell by more than `tolerance`, as readable lines."""
    before, now = _ratios(baseline), _ratios(measurements)
    return [
        f"{suite}: {name} fell from {before[suite, name]:.2f}x to {now[suite, name]:.2f}x of "
        f"{_suite_baseline(measurements, suite).name}"
        for suite, name in before
        if (suite, name) in now and name != CONTROL and now[suite, name] < before[suite, name] * (1 - tolerance)
    ]


def write_report(directory: Path, measurements: Sequence[Measurement], baseline: Sequence[Measurement] = ()) -> None:
    """Write report.html and one PNG a figure into `directory`."""
    from tools.page import Page

    suites = list(dict.fromkeys(m.suite for m in measurements))
    page = Page("shardline benchmarks", _machine_line(directory))
    verdict = ladder_verdict(measurements)
    if verdict is not None:
        page.text("Verdict", str(verdict), f"Predicted pace of training: {verdict.images_per_second:,.1f} images/s.")
    for suite in suites:
        rows = [m for m in measurements if m.suite == suite]
        if suite == "ladder":
            _ladder_section(page, directory, rows)
        else:
            _suite_section(page, directory, suite, rows)
    if baseline:
        _baseline_section(page, measurements, baseline)
    page.table("All measurements", _HEADER, [_row(m, measurements) for m in measurements])
    page.save(directory / "report.html")


_HEADER = ("suite", "name", "unit", "median", "min", "max", "ratio", "per core", "busy cores", "MB/s", "what it did")


def _row(m: Measurement, measurements: Sequence[Measurement]) -> tuple[Any, ...]:
    middle, _, _ = ratio(m, _suite_baseline(measurements, m.suite)) if _comparable(m, measurements) else (None, 0, 0)
    stored = m.settings.get("facts", {}).get("image_bytes")
    return (
        m.suite,
        m.name,
        m.unit,
        m.median,
        *m.spread,
        "" if middle is None else middle,
        m.per_core or "",
        m.busy_cores or "",
        m.median * stored / 1e6 if stored and m.unit == "images/s" else "",
        m.what,
    )


def _ladder_section(page: Any, directory: Path, rows: Sequence[Measurement]) -> None:
    from tools.page import PALETTE, new_figure

    ladder = {m.name: m for m in rows if m.name in STAGES}
    seconds = stage_seconds({name: m.median for name, m in ladder.items()})
    heavy = max(seconds, key=lambda stage: seconds[stage])
    share = seconds[heavy] / sum(seconds.values())

    title = f"{heavy} takes {share:.0%} of the host's time"
    figure = new_figure(8, 2.2)
    axes = figure.subplots()
    left = 0.0
    for stage, colour in zip(HOST_STAGES, PALETTE, strict=False):
        if stage in seconds:
            width = seconds[stage] * 1e6
            axes.barh(0, width, left=left, color=colour, label=f"{stage} {width:,.0f}")
            left += width
    axes.set(xlabel="µs an image (wall clock, all cores together)", yticks=[])
    axes.legend(ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.35), frameon=False, fontsize=8)
    _bare(axes)
    alt = ", ".join(f"{stage} {value * 1e6:.0f} µs" for stage, value in seconds.items())
    page.figure(title, figure, alt=alt, png=directory / "host_time.png")

    figure = new_figure(8, 0.45 * len(ladder) + 1)
    axes = figure.subplots()
    names = [name for name in STAGES if name in ladder]
    for position, name in enumerate(names):
        m = ladder[name]
        low, high = m.spread
        axes.plot((low, high), (position, position), color="black", linewidth=1.5, zorder=1)
        axes.scatter(m.median, position, s=60, color=PALETTE[0] if name in HOST_STAGES else PALETTE[1], zorder=2)
        axes.text(high * 1.08, position, f"{m.median:,.0f}" if m.median >= 10 else f"{m.median:.2g}", va="center")
    # Stages differ by orders of magnitude; the figure above has the zero-based view.
    axes.set_xscale("log")
    for axis_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_formatter("{x:,.0f}")
    axes.tick_params(axis="x", which="both", labelsize=7, rotation=45)
    axes.grid(axis="y", color="#dddddd")
    axes.set_yticks(range(len(names)), [f"{name}: {STAGE_TEXT[name]}" for name in names])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="images/s, logarithmic (black: smallest to largest repeat)")
    _bare(axes)
    alt = ", ".join(f"{name} {ladder[name].median:,.0f}" for name in names) + " images/s"
    page.figure("How fast each stage could go", figure, alt=alt, png=directory / "ladder.png")
    if {"decode", "storage", "batch"} <= set(ladder):
        decode, storage, batch = (ladder[name].median for name in ("decode", "storage", "batch"))
        ceilings = f"{batch / decode:.0%} of the pure decode ceiling and {batch / storage:.0%} of storage's"
        page.text("How fast each stage could go", f"Host batches reach {ceilings}.")
    skipped = [m for m in rows if m.name not in STAGES]
    if skipped:
        page.table("Controls", _HEADER, [_row(m, rows) for m in skipped])


def _suite_section(page: Any, directory: Path, suite: str, rows: Sequence[Measurement]) -> None:
    from tools.page import PALETTE, new_figure

    base = _suite_baseline(rows, suite)
    for unit in dict.fromkeys(m.unit for m in rows):
        chosen = [m for m in rows if m.unit == unit and m.name != CONTROL]
        figure = new_figure(8, 0.45 * len(chosen) + 1)
        axes = figure.subplots()
        for position, m in enumerate(chosen):
            low, high = m.spread
            ours = m.name.startswith("shardline")
            axes.barh(position, m.median, color=PALETTE[0] if ours else "#999999")
            axes.plot((low, high), (position, position), color="black", linewidth=1.5)
            text = f" {m.median:,.0f}" if m.median >= 10 else f" {m.median:.2g}"
            if _comparable(m, rows):
                text += f" ({ratio(m, base)[0]:.2f}x)"
            axes.text(high, position, text, va="center")
        axes.set_yticks(range(len(chosen)), [m.name for m in chosen])
        axes.invert_yaxis()
        axes.set(
            xlim=(0, max(m.spread[1] for m in chosen) * 1.3 or 1), xlabel=f"{unit} (black: smallest to largest repeat)"
        )
        _bare(axes)
        control = next((m for m in rows if m.name == CONTROL and m.unit == unit), None)
        note = f"Ratios are to {base.name}." + (
            f" The same thing measured twice differed by {abs(ratio(control, base)[0] - 1):.0%}." if control else ""
        )
        alt = ", ".join(f"{m.name} {m.median:,.3g} {unit}" for m in chosen)
        name = f"{suite}_{unit}".replace("/", "_per_").replace(" ", "_")
        page.figure(_suite_title(suite, chosen, base), figure, alt=alt, note=note, png=directory / f"{name}.png")


def _suite_title(suite: str, rows: Sequence[Measurement], base: Measurement) -> str:
    """The message: how the best of ours does against the fastest of the others."""
    ours = [m for m in rows if m.name.startswith("shardline")]
    others = [m for m in rows if not m.name.startswith("shardline")]
    if not ours or not others or not any(m.median for m in others):
        return suite
    best, fastest = max(ours, key=lambda m: m.median), max(others, key=lambda m: m.median)
    return f"{suite}: {best.name} {best.median / fastest.median:.2f}x {fastest.name}, the fastest other"


def _baseline_section(page: Any, measurements: Sequence[Measurement], baseline: Sequence[Measurement]) -> None:
    before = {(m.suite, m.name): m for m in baseline}
    rows = [
        (m.suite, m.name, m.unit, before[m.suite, m.name].median, m.median, m.median / before[m.suite, m.name].median)
        for m in measurements
        if (m.suite, m.name) in before
    ]
    note = "Taken at different times: only differences well beyond the control's mean anything."
    page.table("Against the baseline", ("suite", "name", "unit", "before", "now", "now / before"), rows, note=note)


def _suite_baseline(measurements: Sequence[Measurement], suite: str) -> Measurement:
    """The row the ratios of a suite refer to: the one its settings name, else its first."""
    rows = [m for m in measurements if m.suite == suite]
    named = rows[0].settings.get("baseline")
    return next((m for m in rows if m.name == named), rows[0])


def _comparable(m: Measurement, measurements: Sequence[Measurement]) -> bool:
    base = _suite_baseline(measurements, m.suite)
    return base.unit == m.unit and len(base.repeats) == len(m.repeats) and 0 not in base.repeats


def _ratios(measurements: Sequence[Measurement]) -> dict[tuple[str, str], float]:
    return {
        (m.suite, m.name): ratio(m, _suite_baseline(measurements, m.suite))[0]
        for m in measurements
        if _comparable(m, measurements)
    }


def _machine_line(directory: Path) -> str:
    path = directory / "results.jsonl" if directory.is_dir() else directory
    if not path.is_file():
        return ""
    facts = json.loads(path.read_text(encoding="utf-8").splitlines()[-1]).get("machine", {})
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    return (
        f"{facts.get('cpu')}, {facts.get('cores')} cores, {facts.get('memory_gib')} GiB; "
        f"Python {facts.get('python')}, {versions}; commit {facts.get('commit')}"
    )


def _bare(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def cli() -> None:
    """Entry point."""
    run(main)


if __name__ == "__main__":
    cli()
