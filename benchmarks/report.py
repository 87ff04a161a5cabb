"""Draw a report from results.jsonl: report.html and PNGs, from the stored numbers only.

    python -m shardline.benchmarks.report REPORT [--earlier OTHER] [--check OTHER --tolerance 0.1]

With --check, ratios within each suite are compared with those of another report: exit code 1 names the row that
fell. Ratios, not rates: another machine, or the same one on a busy day, moves all rates together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardline.benchmarks import plots, profiler_summary
from shardline.benchmarks.bottleneck import SIMULATED_SUITE, STAGES_SUITE, VALIDATION_SUITE, bottleneck_of
from shardline.benchmarks.measure import (
    CONTROL,
    RESULTS_FILE,
    Measurement,
    comparable,
    load_machine,
    load_results,
    ratio,
    reference_of,
)
from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import own_directory
from shardline.pipeline.options import check_options, option
from shardline.pipeline.progress import progress
from shardline.pipeline.wording import count
from shardline.tools.html_report import HtmlReport


@dataclass(frozen=True)
class ReportConfig:
    """A report to draw, and others to compare it with."""

    report: str = option("", "report directory of shardline-benchmark", positional=True, path="folder")
    earlier: str = option("", "an earlier report's directory: its rates are shown beside these", path="folder")
    check: str = option(
        "", "a report's directory or results.jsonl: fail where a ratio fell below the one there", path="any"
    )
    tolerance: float = option(0.1, "share by which a ratio may fall before --check fails", low=0)

    def __post_init__(self) -> None:
        check_options(self)
        if not self.report:
            raise UsageError("name one report directory: python -m shardline.benchmarks.report DIR")


def main(config: ReportConfig) -> None:
    """The command: draw, compare, check."""
    directory = Path(config.report)
    measurements = load_results(directory)
    earlier = load_results(Path(config.earlier)) if config.earlier else ()
    with own_directory(directory, "REPORT"):
        write_report(directory, measurements, earlier)
    print(directory / "report.html")
    if config.check:
        fallen = check(measurements, load_results(Path(config.check)), config.tolerance)
        if fallen:
            raise Failure(f"--check={config.check}: {'; '.join(fallen)}")


def check(measurements: Sequence[Measurement], earlier: Sequence[Measurement], tolerance: float) -> list[str]:
    """Rows whose ratio to their suite's reference fell by more than `tolerance`, as readable lines."""
    before, now = _ratios(earlier), _ratios(measurements)
    return [
        f"{suite}: {name} fell from {before[suite, name]:.2f}x to {now[suite, name]:.2f}x of "
        f"{_reference(measurements, suite).name}"
        for suite, name in before
        if (suite, name) in now and name != CONTROL and now[suite, name] < before[suite, name] * (1 - tolerance)
    ]


def write_report(directory: Path, measurements: Sequence[Measurement], earlier: Sequence[Measurement] = ()) -> None:
    """Write report.html and one PNG a figure into `directory`, in place of earlier ones."""
    for name in plots.files(measurements):
        (directory / name).unlink(missing_ok=True)
    page = HtmlReport("shardline benchmarks", _machine_line(directory))
    suites = {m.suite: [other for other in measurements if other.suite == m.suite] for m in measurements}
    bottleneck = bottleneck_of(measurements)
    if bottleneck is not None:
        plots.bottleneck(page, directory, bottleneck, suites[STAGES_SUITE])
    for suite, rows in progress(suites.items(), total=len(suites), desc="report", unit="section", leave=False):
        if suite == STAGES_SUITE:
            plots.stages(page, directory, rows)
            if bottleneck is not None:
                plots.forecast(page, directory, rows)
                plots.costs(page, bottleneck, rows)
        elif suite == SIMULATED_SUITE:
            plots.simulated(page, directory, rows)
        elif suite == VALIDATION_SUITE:
            plots.validation(page, directory, rows)
        else:
            plots.comparison(page, directory, rows)
    if earlier:
        plots.earlier(page, measurements, earlier)
    profile = directory / profiler_summary.FILE
    if profile.is_file():
        page.pre("Profile", profile.read_text(encoding="utf-8"))
    page.table("All measurements", plots.HEADER, [plots.row(m, suites[m.suite]) for m in measurements])
    page.save(directory / "report.html")


def _ratios(measurements: Sequence[Measurement]) -> dict[tuple[str, str], float]:
    found = {}
    for m in measurements:
        reference = _reference(measurements, m.suite)
        if comparable(m, reference):
            found[m.suite, m.name] = ratio(m, reference)[0]
    return found


def _reference(measurements: Sequence[Measurement], suite: str) -> Measurement:
    return reference_of([m for m in measurements if m.suite == suite])


def _machine_line(directory: Path) -> str:
    if not (directory / RESULTS_FILE).is_file():
        return ""
    facts = load_machine(directory)
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return (
        f"{facts.cpu}, {count(facts.cores or 0, 'core')}, {facts.memory_gib} GiB; Python {facts.python}, {versions}; "
        f"commit {facts.commit}" + (", without the compiled module" if facts.compiled is False else "")
    )


def cli() -> None:
    """Run this module as a command."""
    command_line.run(main, ReportConfig, __doc__)


if __name__ == "__main__":
    cli()
