"""Recipes are given the epochs that fill equal times, and what they reach becomes a table and measurements."""

import json

import pytest

from shardline.benchmarks import fine_tuning
from shardline.benchmarks.fine_tuning import RECIPES, FineTuningConfig, Outcome, Pace, Recipe
from shardline.benchmarks.measure import load_results
from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer import selftest
from tests.trainer.networks import randomized, values
from tests.trainer.test_weights import write_legacy_h5


def test_epochs_fill_what_starting_leaves_by_shares_of_time():
    recipe = Recipe((("head", 0.25, 0.1), ("all", 0.75, 0.1)))
    # 80 s of steps: 20 s at 90 images/s and 60 s at 30, of 600 images an epoch.
    assert Pace(20.0, (90.0, 30.0)).epochs(recipe, 100.0, 600) == pytest.approx((3.0, 3.0))
    with pytest.raises(UsageError, match="seconds=15: starting takes 20 s here"):
        Pace(20.0, (90.0, 30.0)).epochs(recipe, 15.0, 600)


def test_the_shares_of_every_recipe_are_all_of_the_time():
    assert all(sum(share for _, share, _ in recipe.phases) == pytest.approx(1) for recipe in RECIPES.values())


def test_the_table_tells_mean_and_range():
    runs = [Outcome(80.0, 99.6, (3.0, 10.5)), Outcome(83.0, 101.2, (3.0, 10.5))]
    assert fine_tuning.table({"x": runs}, "test").splitlines()[-1] == (
        "| x | 3 + 10.5 | 81.5% (80.0 to 83.0) | 100 to 101 s |"
    )


def config(folder, **options):
    return FineTuningConfig(
        **{"data": folder / "data", "weights": folder / "w.h5", "output": folder / "report", "seeds": "4,7"} | options
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Drawn records, and weights of a thin network."""
    folder = tmp_path_factory.mktemp("fine_tuning")
    (folder / "data").mkdir()
    selftest.write_dataset(folder / "data", {"train": 640, "test": 20}, side=40)
    write_legacy_h5(folder / "w.h5", values(randomized(1, "gap")))
    return folder


def test_every_recipe_trains_with_every_seed_for_its_epochs(folder, monkeypatch, capsys):
    calls = []

    def train(config, recipe, epochs, seed, workdir):
        calls.append((recipe, seed))
        return Outcome(50.0 + int(seed), 100.0, tuple(epochs))

    monkeypatch.setattr(fine_tuning, "pace", lambda config, recipe, *_: Pace(20.0, (64.0,) * len(recipe.phases)))
    monkeypatch.setattr(fine_tuning, "train", train)
    fine_tuning.main(config(folder, seconds=100))
    assert calls == [(recipe, seed) for seed in ("4", "7") for recipe in RECIPES.values()]
    rows = {row.name: row for row in load_results(folder / "report")}
    assert list(rows) == list(RECIPES) and rows["from scratch"].repeats == (54.0, 57.0)
    assert rows["from scratch"].unit == "% top-1" and rows["from scratch"].settings["epochs"] == [8.0]
    assert "| from scratch | 8 | 55.5% (54.0 to 57.0) | 100 to 100 s |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_recipe_is_trained_and_paced_by_the_real_trainer(folder, tmp_path):
    thin, recipe = config(folder, image_size=32, width=0.03, precision="float32"), RECIPES["head, block5, all"]
    found = fine_tuning.pace(thin, recipe, 640, tmp_path / "run")
    assert len(found.rates) == 3 and min(found.rates) > 0 and found.overhead_seconds > 0
    trained = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert trained["phases"] == "head:1@0.01,block5:1@0.001,all:1@0.001" and trained["block_lr_decay"] == 0.7
    assert trained["weights"] == str(folder / "w.h5") and trained["eval_split"] == "test"
    with pytest.raises(Failure, match=r"weights=.*: no such file"):
        fine_tuning.train(config(folder, weights="nowhere.h5"), recipe, (1, 1, 1), "0", tmp_path / "x")


def test_wrong_use_is_refused():
    with pytest.raises(UsageError, match="weights is missing"):
        FineTuningConfig(data="x", output="y")
    with pytest.raises(UsageError, match="seeds=a: use whole numbers"):
        FineTuningConfig(data="x", output="y", weights="z", seeds="a")
