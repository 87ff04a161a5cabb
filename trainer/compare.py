"""Compare trained runs: a table, overlaid curves, the flags that differ, and McNemar's test on shared predictions.

    shardline-compare RUN RUN ... [--output DIR]

Each RUN is a run directory, or the output directory of shardline-evaluate. With --output, compare.html, compare.json
and curves.png are written there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import atomic_write
from shardline.pipeline.options import check_options, option
from shardline.trainer import metrics_log
from shardline.trainer.checks import make_directory
from shardline.trainer.state import read_config

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class CompareConfig:
    """Which runs to compare, and on what."""

    runs: tuple[str, ...] = option(
        (), "run directories, or output directories of shardline-evaluate; two or more", positional=True
    )
    split: str = option("test", "split whose predictions are compared")
    output: str = option("", "directory for compare.html, compare.json and curves.png; none are written if empty")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class EvaluatedRun:
    """A run directory's content, with its evaluation where there is one."""

    name: str
    config: dict[str, Any]  # content of config.json
    rows: list[dict[str, Any]]  # of metrics.jsonl
    metrics: dict[str, Any]  # of the evaluation; {} without one
    predictions: pa.Table | None


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    names: tuple[str, ...]
    header: tuple[str, ...]  # of `results`
    results: list[tuple[Any, ...]]  # a row for each run
    differences: list[tuple[str, ...]]  # a row for each flag in which the runs differ: flag, then its values
    tests: list[dict[str, Any]]  # McNemar's, one for each pair


def compare(config: CompareConfig) -> Comparison:
    """Compare runs, and write the pages and files when `config.output` names a directory.

    Raises:
      UsageError: a run or directory that cannot be used.
    """
    if len(config.runs) < 2:
        raise UsageError("name at least two runs: shardline-compare RUN RUN")
    names = unique_names(config.runs)
    runs = [load(name, path, config.split) for name, path in zip(names, config.runs, strict=True)]
    header, rows = results(runs)
    comparison = Comparison(tuple(names), header, rows, flag_differences(runs), mcnemar_tests(runs))
    if config.output:
        write(make_directory(config.output), runs, comparison)
    return comparison


def main(config: CompareConfig) -> None:
    """The command: compare and print the tables."""
    found = compare(config)
    print(as_text(found.header, found.results))
    print(as_text(("flag", *found.names), found.differences) if found.differences else "no flag differs")
    for test in found.tests:
        print(test["line"])
    if config.output:
        print(config.output)


# ------------------------------------------------------------------------------------------- input


def load(name: str, path: str, split: str) -> EvaluatedRun:
    """A run directory with its evaluation of `split`, or an evaluation directory with its run."""
    directory = Path(path)
    if not directory.is_dir():
        raise UsageError(f"{path}: no such directory; name a run directory or an evaluation's output")
    evaluation: Path | None = directory
    if not (directory / "metrics.json").is_file():
        evaluation = find_evaluation(directory, split)
    found = read_metrics(evaluation) if evaluation else {}
    run = directory if evaluation != directory else Path(found["run"])
    if evaluation == directory and not run.is_dir():
        raise UsageError(f"{path} is an evaluation of {run}, which is not there; give the run directory")
    config = read_config(run, "RUN")
    return EvaluatedRun(name, config, metrics_log.read(run), found, read_table(evaluation, found, split))


def find_evaluation(run: Path, split: str) -> Path | None:
    """Where shardline-evaluate writes by default."""
    path = run / f"evaluation-{split}"
    return path if (path / "metrics.json").is_file() else None


def read_metrics(directory: Path) -> dict[str, Any]:
    """metrics.json of an evaluation."""
    path = directory / "metrics.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["run"], found["split"], found["top1"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error!r}); run shardline-evaluate again") from None
    return found


def read_table(evaluation: Path | None, found: dict[str, Any], split: str) -> Any:
    """The predictions of an evaluation of `split`, or None."""
    from shardline.trainer.evaluation.results import read_predictions

    if evaluation is None or found["split"] != split:
        return None
    return read_predictions(evaluation)[0]


def unique_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [Path(path).absolute().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UsageError(f"{paths[0]} is named twice; name different runs")


# ------------------------------------------------------------------------------------------ results


def results(runs: Sequence[EvaluatedRun]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """One row a run: how well it does, how long it took."""
    from shardline.trainer.evaluation.plots import final_top1

    header = ("run", "dataset", "epochs", "steps", "images/s", "held-out top-1", "top-1", "95 %", "top-5", "macro-F1",
              "ECE", "n")  # fmt: skip
    rows = []
    for run in runs:
        train = [row for row in run.rows if row["kind"] == "train"]
        found = run.metrics
        interval = "{:.3f}–{:.3f}".format(*found["interval95"]["top1"]) if found else "not evaluated"
        held_out = final_top1(run.rows)
        rows.append(
            (
                run.name,
                str(run.config["dataset"].get("name", "")),
                round(run.rows[-1]["epoch"], 3) if run.rows else 0,
                run.rows[-1]["step"] if run.rows else 0,
                round(float(np.median([row["images_per_second"] for row in train])), 1) if train else "",
                "" if held_out is None else round(held_out, 4),
                *((round(found["top1"], 4), interval) if found else ("", interval)),
                *((round(found[key], 4) for key in ("top5", "macro_f1", "ece")) if found else ("", "", "")),
                found["n"] if found else "",
            )
        )
    return header, rows


def flag_differences(runs: Sequence[EvaluatedRun]) -> list[tuple[str, ...]]:
    """A row for every setting in which the runs differ: the flag, then its value in each run."""
    # Where a run lies is no difference between runs; what it read is told by the digest.
    names = dict.fromkeys(name for run in runs for name in run.config["train"] if name not in ("workdir", "data"))
    table = [(f"--{name}", *(_text(run.config["train"].get(name, "(unknown)")) for run in runs)) for name in names]
    digests = [str(run.config["dataset"].get("dataset", ""))[:12] for run in runs]
    return [row for row in [("dataset digest", *digests), *table] if len(set(row[1:])) > 1]


def mcnemar_tests(runs: Sequence[EvaluatedRun]) -> list[dict[str, Any]]:
    """Each pair of runs on the images that both were evaluated on."""
    from shardline.trainer.evaluation import metrics

    tests: list[dict[str, Any]] = []
    for first, second in itertools.combinations(runs, 2):
        pair = f"{first.name} and {second.name}"
        if first.predictions is None or second.predictions is None:
            missing = ", ".join(run.name for run in (first, second) if run.predictions is None)
            tests.append({"pair": pair, "line": f"{pair}: no predictions of {missing} on this split; evaluate first"})
            continue
        hits = [dict(zip(_keys(run.predictions), run.predictions["correct"].to_pylist(), strict=True))
                for run in (first, second)]  # fmt: skip
        shared = [key for key in hits[0] if key in hits[1]]
        if not shared:
            tests.append({"pair": pair, "line": f"{pair}: evaluated on different images, nothing to test"})
            continue
        ours, theirs = (np.array([hit[key] for key in shared], bool) for hit in hits)
        first_only, second_only, p = metrics.mcnemar(ours, theirs)
        verdict = "no evidence of a difference" if p >= 0.05 else (
            f"{(first if first_only > second_only else second).name} is better"
        )  # fmt: skip
        tests.append(
            {
                "pair": pair, "shared": len(shared), "first_only": first_only, "second_only": second_only, "p": p,
                "line": f"{pair} on {len(shared)} shared images: only the first right {first_only}, only the second "
                f"{second_only}, McNemar p = {p:.2g}: {verdict}",
            }
        )  # fmt: skip
    return tests


def _keys(table: Any) -> list[tuple[str, str]]:
    """What makes an image the same in two evaluations: its file and its label."""
    return list(zip(table["path"].to_pylist(), table["label"].to_pylist(), strict=True))


# ------------------------------------------------------------------------------------------- output


def as_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table for the terminal."""
    cells = [list(map(str, header)), *([str(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def write(output: Path, runs: Sequence[EvaluatedRun], found: Comparison) -> None:
    """compare.html, curves.png, and, last, compare.json."""
    from shardline.tools.html_report import HtmlReport  # Matplotlib
    from shardline.trainer.evaluation import plots

    page = HtmlReport(f"{len(runs)} runs compared", subtitle=", ".join(found.names))
    page.table("Results", found.header, found.results)
    curves = plots.run_curves({run.name: run.rows for run in runs})
    page.figure("Curves", curves, "loss and top-1 over epochs of every run", png=output / "curves.png")
    page.text("McNemar's test", *(test["line"] for test in found.tests))
    if found.differences:
        page.table("Flags that differ", ("flag", *found.names), found.differences)
    else:
        page.text("Flags that differ", "None.")
    page.save(output / "compare.html")
    content = {
        "results": [dict(zip(found.header, row, strict=True)) for row in found.results],
        "flags": {row[0]: list(row[1:]) for row in found.differences},
        "mcnemar": found.tests,
    }
    atomic_write(output / "compare.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def cli() -> None:
    """Run the console script `shardline-compare`."""
    command_line.run(main, CompareConfig, __doc__)


if __name__ == "__main__":
    cli()
