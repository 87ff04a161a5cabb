"""Compare trained runs: a table, overlaid curves, the flags that differ, and McNemar's test on shared predictions.

    shardline-compare RUN RUN ... [--output DIR]
    shardline-compare FOLDER --output FOLDER       # all runs in it: compare.html is their index

Each RUN is a run directory, the output directory of shardline-evaluate, or a folder of runs. With --output,
compare.html, compare.json and curves.png are written there.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import UsageError
from shardline.pipeline.files import atomic_write, own_directory
from shardline.pipeline.options import check_options, option
from shardline.pipeline.paths import is_remote
from shardline.pipeline.progress import log, progress
from shardline.pipeline.wording import as_flag, count, shorten_list
from shardline.tools.html_report import HtmlReport, Link
from shardline.trainer import metrics_log
from shardline.trainer.checks import make_directory
from shardline.trainer.curves import comparison_curves, final_top1
from shardline.trainer.evaluation import metrics, results
from shardline.trainer.remote_workdir import local_run, runs_of
from shardline.trainer.run_dir import CONFIG_FILE, ChosenWeights, choose_weights, read_config

if TYPE_CHECKING:
    import pyarrow as pa


MOST_PAIRED = 6  # runs of which all pairs are tested


@dataclass(frozen=True)
class CompareConfig:
    """Which runs to compare, and on what."""

    runs: tuple[str, ...] = option(
        (),
        "run directories, output directories of shardline-evaluate, or folders of runs, also s3://… or gs://…",
        positional=True,
        path="dataset",
    )
    split: str = option("test", "split whose predictions are compared")
    output: str = option("", "directory for compare.html, compare.json and curves.png; empty: none", path="folder")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class EvaluatedRun:
    """A run directory's content, with its evaluation where there is one."""

    name: str
    directory: Path
    config: dict[str, Any]  # content of config.json
    log: list[dict[str, Any]]  # lines of metrics.jsonl
    metrics: dict[str, Any]  # metrics.json of the evaluation; {} without one
    predictions: pa.Table | None
    held_out: float | None = None  # top-1 in training, of the weights that stand for the run


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    names: tuple[str, ...]
    results: list[tuple[str | float, ...]]  # a row for each run, under HEADER
    differences: list[tuple[str, ...]]  # a row for each flag in which the runs differ: flag, then its values
    tests: list[dict[str, Any]]  # McNemar's, one for each pair


def compare(config: CompareConfig) -> Comparison:
    """Compare runs, and write the pages and files when `config.output` names a directory.

    Raises:
      UsageError: a run or directory that cannot be used.
    """
    paths = [run for path in config.runs for run in runs_in(path)]
    if not paths or (len(paths) < 2 and list(config.runs) == paths):
        raise UsageError("name at least two runs, or a folder of runs: shardline-compare RUN RUN")
    names = unique_names(paths)
    found = progress(paths, total=len(paths), desc="read", unit="run", leave=False)
    runs = [load(name, path, config.split) for name, path in zip(names, found, strict=True)]
    comparison = Comparison(
        names=tuple(names),
        results=[result_row(run) for run in runs],
        differences=flag_differences(runs),
        tests=mcnemar_tests(runs),
    )
    if config.output:
        with own_directory(make_directory(config.output), "--output"):
            write(Path(config.output), runs, comparison)
    return comparison


def main(config: CompareConfig) -> None:
    """The command: compare and print the tables."""
    found = compare(config)
    command_line.show(as_text(HEADER, list(map(shown, found.results))))
    command_line.show(as_text(("flag", *found.names), found.differences) if found.differences else "no flag differs")
    for test in found.tests:
        command_line.show(test["line"])
    if config.output:
        print(config.output)


# ------------------------------------------------------------------------------------------- input


def runs_in(path: str) -> list[str]:
    """The run or evaluation itself; of a folder of runs, these, by name."""
    if is_remote(path):
        return runs_of(path)
    is_run = any((Path(path) / name).is_file() for name in (CONFIG_FILE, results.METRICS))
    inside = sorted(str(config.parent) for config in Path(path).glob(f"*/{CONFIG_FILE}"))
    return [path] if is_run or not inside else inside


def load(name: str, path: str, split: str) -> EvaluatedRun:
    """A run directory with its evaluation of `split`, or an evaluation directory with its run."""
    directory = local_run(path)
    if not directory.is_dir():
        raise UsageError(f"{path}: no such directory; name a run directory or an evaluation's output")
    if (directory / results.METRICS).is_file():
        values = results.read_metrics(directory)
        # A run directory that was copied or renamed took its evaluations along.
        above = directory.absolute().parent
        run = above if (above / CONFIG_FILE).is_file() else local_run(values["run"])
        if not run.is_dir():
            raise UsageError(f"{path} is an evaluation of {run}, which is not there; give the run directory")
        evaluation: Path | None = directory
    else:
        run, evaluation = directory, results.default_directory(directory, split)
        if not (evaluation / results.METRICS).is_file():
            evaluation = None
        values = results.read_metrics(evaluation) if evaluation else {}
    if evaluation and values["split"] != split:
        raise UsageError(
            f"--split={split}: {evaluation} is an evaluation of {values['split']}; give --split={values['split']}, or "
            f"evaluate {split}"
        )
    config, chosen = read_config(run, "RUN"), _chosen(run)
    if evaluation and chosen:
        _note_other_weights(name, chosen, values)
    predictions = results.read_predictions(evaluation)[0] if evaluation else None
    lines = metrics_log.read(run)
    held_out = chosen.evaluation.get("top1") if chosen else final_top1(lines)
    return EvaluatedRun(name, run, config, lines, values, predictions, held_out)


def _chosen(run: Path) -> ChosenWeights | None:
    """The weights that stand for a run; None where they were deleted, and its numbers kept."""
    try:
        return choose_weights(run)
    except UsageError:
        return None


def _note_other_weights(name: str, chosen: ChosenWeights, values: dict[str, Any]) -> None:
    """Say when an evaluation is not of the weights that stand for the run, of which its other numbers are."""
    if not values.get("weights"):
        return
    then, now = values["weights"], chosen.facts()
    if now["sha256"] == then["sha256"]:
        return
    if given := values.get("checkpoint"):
        log(
            f"note: {name} was evaluated with --checkpoint={given}, of step {then['step']}; its held-out top-1 is of "
            f"the run's weights, of step {now['step']}"
        )
    else:
        log(
            f"note: {name} was evaluated with the weights of step {then['step']}, those of the run are now of step "
            f"{now['step']}; evaluate it again"
        )


def unique_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [Path(path).absolute().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UsageError(f"{paths[0]} is named twice; name different runs")


# ------------------------------------------------------------------------------------------ results

HEADER = (
    "run", "dataset", "epochs", "steps", "images/s", "held-out top-1", "top-1", "95% interval", "top-5", "macro-F1",
    "ECE", "n",
)  # fmt: skip
SHARES = {"held-out top-1", "top-1", "top-5", "ECE"}


def result_row(run: EvaluatedRun) -> tuple[str | float, ...]:
    """How well a run does and how long it took, under HEADER; what is not known is empty."""
    steady = metrics_log.steady(run.log, run.config["train"].get("log_every_steps", 1))
    rates = [line["images_per_second"] for line in steady]
    held_out, found = run.held_out, run.metrics
    return (
        run.name,
        str(run.config["dataset"].get("name", "")),
        round(run.log[-1]["epoch"], 3) if run.log else 0,
        run.log[-1]["step"] if run.log else 0,
        round(float(np.median(rates)), 1) if rates else "",
        "" if held_out is None else round(held_out, 4),
        round(found["top1"], 4) if found else "",
        "{:.1%} to {:.1%}".format(*found["interval95"]["top1"]) if found else "not evaluated",
        *("" if found.get(key) is None else round(found[key], 4) for key in ("top5", "macro_f1", "ece")),
        found["n"] if found else "",
    )


def shown(row: tuple[str | float, ...]) -> tuple[str | float, ...]:
    """A row of results for people: shares as percentages."""
    return tuple(
        f"{value:.1%}" if name in SHARES and isinstance(value, float) else value
        for name, value in zip(HEADER, row, strict=True)
    )


def flag_differences(runs: Sequence[EvaluatedRun]) -> list[tuple[str, ...]]:
    """A row for every setting in which the runs differ: the flag, then its value in each run."""
    # Where a run lies is no difference between runs; what it read is told by the digest.
    names = dict.fromkeys(name for run in runs for name in run.config["train"] if name not in ("workdir", "data"))
    table = [(f"--{name}", *(as_flag(run.config["train"].get(name, "(unknown)")) for run in runs)) for name in names]
    digests = [str(run.config["dataset"].get("dataset", ""))[:12] for run in runs]
    evaluated = [
        (f"evaluation: {what}", *(str(run.metrics.get(key, ""))[:12] for run in runs))
        for key, what in (("digest", "dataset digest"), ("tta", "--tta"))
    ]
    differing = [row for row in [("dataset digest", *digests), *table] if len(set(row[1:])) > 1]
    return differing + [row for row in evaluated if len({*row[1:]} - {""}) > 1]  # "": not evaluated


def pairs_to_test(runs: Sequence[EvaluatedRun]) -> list[tuple[EvaluatedRun, EvaluatedRun]]:
    """All pairs of a few runs; of many, each evaluated one with the best of them."""
    if len(runs) <= MOST_PAIRED:
        return list(itertools.combinations(runs, 2))
    evaluated = sorted((run for run in runs if run.predictions is not None), key=lambda run: -run.metrics["top1"])
    return [(evaluated[0], other) for other in evaluated[1:]]


def mcnemar_tests(runs: Sequence[EvaluatedRun]) -> list[dict[str, Any]]:
    """`mcnemar_test` of the pairs to test, with its conclusion where there is one.

    Of many pairs of equally good runs, some differ by chance at 5%: a run is called better where all pairs that the
    tested ones were taken from together hardly would give such a difference (`p_adjusted`).
    """
    pairs = pairs_to_test(runs)
    tests = [mcnemar_test(first, second) for first, second in pairs]
    family = math.comb(sum(run.predictions is not None for run in runs), 2)
    adjusted = iter(metrics.holm([test["p"] for test in tests if "p" in test], family))
    for (first, second), test in zip(pairs, tests, strict=True):
        if "p" not in test:
            continue
        test["p_adjusted"] = p = next(adjusted)
        better = first if test["first_only"] > test["second_only"] else second
        conclusion = f"{better.name} is better" if p < 0.05 else "no evidence of a difference"
        among = f", as one of {family:,} pairs {p:.2g} (Holm)" if family > 1 else ""
        test["line"] += f"{among}: {conclusion}"
    return tests


def mcnemar_test(first: EvaluatedRun, second: EvaluatedRun) -> dict[str, Any]:
    """McNemar's test of two runs on the images that both were evaluated on; `line` says it in words."""
    pair = f"{first.name} and {second.name}"
    missing = ", ".join(run.name for run in (first, second) if run.predictions is None)
    if first.predictions is None or second.predictions is None:
        return {"pair": pair, "line": f"{pair}: no predictions of {missing} on this split; evaluate first"}
    same_data = first.metrics.get("digest") == second.metrics.get("digest")
    ours, theirs = (_correct(predictions, same_data) for predictions in (first.predictions, second.predictions))
    shared = [key for key in ours if key in theirs]
    if not shared:
        return {"pair": pair, "line": f"{pair}: evaluated on different images, nothing to test"}
    first_only, second_only, p = metrics.mcnemar(
        np.array([ours[key] for key in shared]), np.array([theirs[key] for key in shared])
    )
    matched = "" if same_data else ", matched by file and class, for their datasets differ"
    line = (
        f"{pair} on {count(len(shared), 'shared image')}{matched}: {first_only:,} correct only with {first.name}, "
        f"{second_only:,} only with {second.name}, McNemar p = {p:.2g}"
    )
    return {
        "pair": pair, "shared": len(shared), "first_only": first_only, "second_only": second_only, "p": p, "line": line
    }  # fmt: skip


def _correct(predictions: pa.Table, same_data: bool) -> dict[Any, bool]:
    """Whether each image is right, by what makes it the same in two evaluations.

    That is its record in the same dataset; in different ones its file and label, where they name one image alone. (Of
    adopted shards that name no files, nothing does.)
    """
    names = ("id",) if same_data else ("path", "label")
    keys = list(zip(*(predictions[name].to_pylist() for name in names), strict=True))
    often = Counter(keys)
    found = zip(keys, predictions["correct"].to_pylist(), strict=True)
    return {key: correct for key, correct in found if often[key] == 1 and key[0] != ""}


# ------------------------------------------------------------------------------------------- output


def page_of(run: EvaluatedRun, output: Path) -> Link | str:
    """The run's name, which leads to its page where it has one."""
    page = run.directory / results.REPORT
    return Link(run.name, os.path.relpath(page.absolute(), output.absolute())) if page.is_file() else run.name


def as_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table for the terminal."""
    cells = [list(map(str, header)), *([str(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def write(output: Path, runs: Sequence[EvaluatedRun], found: Comparison) -> None:
    """compare.html, curves.png, and, last, compare.json."""
    page = HtmlReport(f"{count(len(runs), 'run')} compared", subtitle=shorten_list(found.names, 12))
    rows = [(page_of(run, output), *shown(row)[1:]) for run, row in zip(runs, found.results, strict=True)]
    page.table("Results", HEADER, rows)
    log(f"curves: {count(len(runs), 'run')}")
    curves = comparison_curves({run.name: run.log for run in runs})
    page.figure("Curves", curves, "loss and top-1 over epochs of every run", png=output / "curves.png")
    if found.tests:
        page.text("McNemar's test", *(test["line"] for test in found.tests))
    if found.differences:
        page.table("Flags that differ", ("flag", *found.names), found.differences)
    else:
        page.text("Flags that differ", "None.")
    page.save(output / "compare.html")
    content = {
        "results": [dict(zip(HEADER, row, strict=True)) for row in found.results],
        "flags": {row[0]: list(row[1:]) for row in found.differences},
        "mcnemar": found.tests,
    }
    atomic_write(output / "compare.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def cli() -> None:
    """Run the console script `shardline-compare`."""
    command_line.run(main, CompareConfig, __doc__)


if __name__ == "__main__":
    cli()
