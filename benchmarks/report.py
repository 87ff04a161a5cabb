"""Draw a report from results.jsonl: report.html and PNGs, from the stored numbers only.

    python -m shardline.benchmarks.report DIR [--baseline OTHER_DIR] [--check BASELINE_DIR --tolerance 0.1]

With --check, ratios within each suite are held against those of an earlier report: exit code 1 names the row that
fell. Ratios, not rates: another machine, or the same one on a busy day, moves all rates together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from shardline.benchmarks import plots
from shardline.benchmarks.bottleneck import HOST_STAGES, STAGES, Verdict, judge
from shardline.benchmarks.measure import CONTROL, Measurement, baseline_of, comparable, load_jsonl, ratio
from shardline.pipeline.cli import run
from shardline.pipeline.errors import Failure, UsageError

_BASELINE = flags.DEFINE_string("baseline", "", "another report's directory: its rates are set beside these")
_CHECK = flags.DEFINE_string("check", "", "a report's directory or results.jsonl: fail where a ratio fell below it")
_TOLERANCE = flags.DEFINE_float("tolerance", 0.1, "how far a ratio may fall before --check fails", lower_bound=0)


def main(arguments: list[str]) -> None:
    """Draw, compare, check."""
    if len(arguments) != 1:
        raise UsageError("name one report directory: python -m shardline.benchmarks.report DIR")
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
        raise UsageError(f"{directory}: no results.jsonl there; make one with shardline-benchmark --output {directory}")
    try:
        newest = {(m.suite, m.name): m for m in load_jsonl(path)}
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); run shardline-benchmark again") from None
    if not newest:
        raise UsageError(f"{path} is empty; run shardline-benchmark again")
    return list(newest.values())


def ladder_verdict(measurements: Sequence[Measurement]) -> Verdict | None:
    """The verdict on the ladder among the measurements; None where there is no whole ladder."""
    ladder = {m.name: m for m in measurements if m.suite == "ladder" and m.name in STAGES}
    if not set(HOST_STAGES) <= set(ladder) or not all(m.median for m in ladder.values()):
        return None
    facts = dict(ladder["batch"].settings["facts"])
    rates = {name: m.median for name, m in ladder.items()}
    cold = next((m for m in measurements if m.suite == "ladder" and m.name == "storage (cold)"), None)
    if not facts.pop("fits_memory", True) and cold is not None:
        rates["storage"] = cold.median  # no epoch finds its bytes in memory
    return judge(rates, **facts)


def check(measurements: Sequence[Measurement], baseline: Sequence[Measurement], tolerance: float) -> list[str]:
    """Rows whose ratio to their suite's baseline row fell by more than `tolerance`, as readable lines."""
    before, now = _ratios(baseline), _ratios(measurements)
    return [
        f"{suite}: {name} fell from {before[suite, name]:.2f}x to {now[suite, name]:.2f}x of "
        f"{_base(measurements, suite).name}"
        for suite, name in before
        if (suite, name) in now and name != CONTROL and now[suite, name] < before[suite, name] * (1 - tolerance)
    ]


def write_report(directory: Path, measurements: Sequence[Measurement], baseline: Sequence[Measurement] = ()) -> None:
    """Write report.html and one PNG a figure into `directory`, in place of earlier ones."""
    from shardline.tools.html_report import HtmlReport

    for old in directory.glob("*.png"):
        old.unlink()
    page = HtmlReport("shardline benchmarks", _machine_line(directory))
    suites = {m.suite: [other for other in measurements if other.suite == m.suite] for m in measurements}
    verdict = ladder_verdict(measurements)
    if verdict is not None:
        plots.verdict(page, verdict, suites["ladder"])
    for suite, rows in suites.items():
        if suite == "ladder":
            plots.ladder(page, directory, rows)
            if verdict is not None:
                plots.outlook(page, directory, rows)
                plots.costs(page, verdict, rows)
        elif suite == "prove":
            plots.proof(page, directory, rows)
        else:
            plots.suite(page, directory, rows)
    if baseline:
        plots.against(page, measurements, baseline)
    if (directory / "profile.txt").is_file():
        page.pre("Profile", (directory / "profile.txt").read_text(encoding="utf-8"))
    page.table("All measurements", plots.HEADER, [plots.row(m, suites[m.suite]) for m in measurements])
    page.save(directory / "report.html")


def _ratios(measurements: Sequence[Measurement]) -> dict[tuple[str, str], float]:
    found = {}
    for m in measurements:
        base = _base(measurements, m.suite)
        if comparable(m, base):
            found[m.suite, m.name] = ratio(m, base)[0]
    return found


def _base(measurements: Sequence[Measurement], suite: str) -> Measurement:
    return baseline_of([m for m in measurements if m.suite == suite])


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


def cli() -> None:
    """Entry point."""
    run(main)


if __name__ == "__main__":
    cli()
