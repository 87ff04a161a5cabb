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
from typing import Any

import numpy as np
from absl import flags

from shardline.pipeline import cli as command
from shardline.pipeline.errors import UsageError

FLAGS = flags.FLAGS


@dataclass(frozen=True)
class Contender:
    """One run, with its evaluation where there is one."""

    name: str
    config: dict[str, Any]  # content of config.json
    rows: list[dict[str, Any]]  # of metrics.jsonl
    metrics: dict[str, Any]  # of the evaluation; {} without one
    predictions: Any  # pyarrow table, or None


def main(arguments: list[str]) -> None:
    """Runs to one comparison."""
    if len(arguments) < 2:
        raise UsageError("name at least two runs: shardline-compare RUN RUN")
    names = unique_names(arguments)
    runs = [load(name, path, FLAGS.split) for name, path in zip(names, arguments, strict=True)]
    header, rows = results(runs)
    differences = flag_differences(runs)
    tests = mcnemar_tests(runs)
    print(as_text(header, rows))
    print(as_text(("flag", *names), differences) if differences else "no flag differs")
    for test in tests:
        print(test["line"])
    if FLAGS.output:
        from shardline.trainer.checks import make_directory

        output = make_directory(FLAGS.output)
        write(output, runs, header, rows, differences, tests)
        print(output)


# ------------------------------------------------------------------------------------------- input


def load(name: str, path: str, split: str) -> Contender:
    """A run directory with its evaluation of `split`, or an evaluation directory with its run."""
    from shardline.trainer import metrics_log
    from shardline.trainer.state import read_config

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
    return Contender(name, config, metrics_log.read(run), found, read_table(evaluation, found, split))


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


def results(runs: Sequence[Contender]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
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


def flag_differences(runs: Sequence[Contender]) -> list[tuple[str, ...]]:
    """A row for every setting in which the runs differ: the flag, then its value in each run."""
    # Where a run lies is no difference between runs; what it read is told by the digest.
    names = dict.fromkeys(name for run in runs for name in run.config["train"] if name not in ("workdir", "data"))
    table = [(f"--{name}", *(_text(run.config["train"].get(name, "(unknown)")) for run in runs)) for name in names]
    digests = [str(run.config["dataset"].get("dataset", ""))[:12] for run in runs]
    return [row for row in [("dataset digest", *digests), *table] if len(set(row[1:])) > 1]


def mcnemar_tests(runs: Sequence[Contender]) -> list[dict[str, Any]]:
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


def write(
    output: Path,
    runs: Sequence[Contender],
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    differences: Sequence[Sequence[str]],
    tests: Sequence[dict[str, Any]],
) -> None:
    """compare.html, curves.png, and, last, compare.json."""
    from shardline.tools.html_report import HtmlReport
    from shardline.trainer.evaluation import plots

    page = HtmlReport(f"{len(runs)} runs compared", subtitle=", ".join(run.name for run in runs))
    page.table("Results", header, rows)
    curves = plots.run_curves({run.name: run.rows for run in runs})
    page.figure("Curves", curves, "loss and top-1 over epochs of every run", png=output / "curves.png")
    page.text("McNemar's test", *(test["line"] for test in tests))
    if differences:
        page.table("Flags that differ", ("flag", *(run.name for run in runs)), differences)
    else:
        page.text("Flags that differ", "None.")
    page.save(output / "compare.html")
    content = {
        "results": [dict(zip(header, row, strict=True)) for row in rows],
        "flags": {row[0]: list(row[1:]) for row in differences},
        "mcnemar": list(tests),
    }
    (output / "compare.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def define_flags() -> None:
    """Only when this is the program: several commands may then be imported side by side."""
    flags.DEFINE_string("split", "test", "split whose predictions are compared")
    flags.DEFINE_string("output", "", "directory for compare.html, compare.json and curves.png")


def cli() -> None:
    """Entry point of shardline-compare."""
    define_flags()
    command.run(main)


if __name__ == "__main__":
    cli()
