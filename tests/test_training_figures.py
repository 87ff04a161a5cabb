"""The tables of docs/guides/training.md are what benchmarks/results/recipes/runs.jsonl gives."""

import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/guides/training.md").read_text()
# Five runs stand there twice: they were made again, with the same result.
RUNS = {
    (json.dumps(run["change"], sort_keys=True), run["seed"], run["fold"]): run
    for run in map(json.loads, (ROOT / "benchmarks/results/recipes/runs.jsonl").read_text().splitlines())
}
SMALLER_FIRST = [[0.3, 32], [0.3, 48], [0.4, 64]]
ADAMW = {"opt": "adamw", "wd": 0.05, "dropout": 0.0, "sizes": SMALLER_FIRST}
SCRATCH = ADAMW | {"lr": 2e-4, "ls": 0.1, "hyper": True}
ROWS = {
    "none: SGD at 0.02": [{}],
    "a head on all blocks, no dropout": [{"hyper": True, "dropout": 0.0}],
    "no dropout": [{"dropout": 0.0}],
    "a rate of 0.06; 0.04; 0.01": [{"lr": 0.06}, {"lr": 0.04}, {"lr": 0.01}],
    "gradients clipped at 5; not at all; at 0.5": [{"clip": 5.0}, {"clip": 0.0}, {"clip": 0.5}],
    "a head on all blocks; batches of 16; crops": [{"hyper": True}, {"batch": 16}, {"crop": [0.7, 1.0]}],
    "AdamW at 5e-4, weight decay 0.05": [{"lr": 5e-4, "opt": "adamw", "wd": 0.05}],
    "EMA of 0.998; weight decay 5e-4; label": [{"ema": 0.998}, {"wd": 5e-4}, {"ls": 0.1}],
    "smaller images first; 48 px; 80 px": [{"sizes": s} for s in (SMALLER_FIRST, [[1.0, 48]], [[1.0, 80]])],
    "mixup 0.2; CutMix; RandAugment of 2 layers; color": [
        {"mixup": 0.2}, {"cutmix": 1.0}, {"ra": 2}, {"bright": 0.2, "contrast": 0.2, "sat": 0.2}
    ],
    "random erasing 0.25; sharpness-aware": [{"erase": 0.25}, {"sam": 0.05, "units": 16.0}],
    "twice the arithmetic; four times": [{"units": 64.0}, {"units": 128.0}],
    "`scratch`: AdamW at 2e-4": [SCRATCH],
    "the same and mixup 0.2; 40% of it at 32 px; crops of 50% and more; EMA": [
        SCRATCH | change
        for change in (
            {"mixup": 0.2}, {"sizes": [[0.4, 32], [0.3, 48], [0.3, 64]]}, {"crop": [0.5, 1.0]}, {"ema": 0.998}
        )
    ],
    "the same with a rate of 3e-4; dropout 0.2; no clipping; weight decay 0.2": [
        SCRATCH | change for change in ({"lr": 3e-4}, {"dropout": 0.2}, {"clip": 0.0}, {"wd": 0.2})
    ],
    "AdamW at 5e-4 with `--head gap`": [ADAMW | {"lr": 5e-4, "clip": 0.0}],
}  # fmt: skip


def found(change, figure, all_trained=False):
    key = json.dumps(change, sort_keys=True)
    return [run[figure] for (name, _, fold), run in RUNS.items() if name == key and (fold is None) == all_trained]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_the_mean_of_its_runs(row):
    runs = [found(change, "held_out_top1") for change in ROWS[row]]
    (count, means) = re.search(rf"^\| {re.escape(row)}[^|]*\| (\d+) \| ([^|]*) \|", PAGE, re.MULTILINE).groups()
    assert {len(each) for each in runs} == {int(count)}
    assert [f"{statistics.mean(each):.1f}" for each in runs] == means.split("; ")


def test_every_row_and_the_test_split_are_held_against_the_runs():
    rows = re.findall(r"^\| (.*?) \| \d+ \| [\d.; ]+ \|$", PAGE, re.MULTILINE)
    assert len(rows) == len(ROWS)
    text = " ".join(PAGE.split())
    by_hand = [found({}, "test_top1", True), found(SCRATCH | {"units": 32.0}, "test_top1", True)]
    by_hand += [found(change, "test_top1", True) for change in ({"units": 64.0}, SCRATCH | {"units": 64.0})]
    plain, scratch, longer, longer_scratch = (" and ".join(f"{top1:.1f}" for top1 in each) for each in by_hand)
    assert f"the defaults {plain}, `scratch` {scratch}; with twice the arithmetic {longer}, `scratch` " in text
    assert f"`scratch` {longer_scratch}. Every run lies in" in text
    assert f"among {len(RUNS)} short runs" in text
