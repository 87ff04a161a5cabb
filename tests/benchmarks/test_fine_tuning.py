"""Recipes are given the epochs that fill equal times, and what they reach becomes a table and measurements."""

import json
from dataclasses import replace

import pytest

from shardline.benchmarks import fine_tuning
from shardline.benchmarks.fine_tuning import (
    FROM_SCRATCH,
    GUIDE,
    PLAIN,
    PRETRAINED,
    Entry,
    FineTuningConfig,
    Outcome,
    Pace,
)
from shardline.benchmarks.measure import load_results
from shardline.pipeline.errors import Failure, UsageError
from shardline.trainer import selftest
from shardline.trainer.config import Phase, TrainConfig
from tests.trainer.networks import randomized, values
from tests.trainer.test_weights import write_legacy_h5


def test_epochs_fill_what_starting_leaves():
    (everything,) = Entry("finetune").phases
    # 80 s are left, for 40 epochs of 2 s.
    assert Pace(20.0, 2.0).phases(Entry("finetune"), 100.0) == (replace(everything, epochs=40.0),)
    # Keras stores no features, so its head phase takes as long as its epochs: 27 and 13, whole ones.
    assert Pace(20.0, 2.0).phases(GUIDE, 100.0) == (Phase("head", 27, 1e-3), Phase("all", 13, 1e-5))
    assert PLAIN.stretched(0.35)[0].epochs == 3  # whole ones
    assert [phase.epochs for phase in GUIDE.stretched(0.35)] == [7, 4]
    with pytest.raises(UsageError, match="seconds=15: starting takes 20 s here"):
        Pace(20.0, 2.0).phases(Entry("finetune"), 15.0)


def test_a_head_alone_is_not_stretched():
    entry = Entry("linear_probe")
    assert Pace(0.0, 0.0).phases(entry, 1000.0) == entry.phases


def test_the_table_tells_mean_and_range():
    phases = (Phase("head", 3, 0.1), Phase("all", 10.5, 0.1))
    runs = [Outcome(80.0, 81.0, 99.6, phases), Outcome(83.0, 82.0, 101.2, phases)]
    heading, line, row = fine_tuning.table({"x": runs}, "test").splitlines()
    assert row == "| x | 3 + 10.5 | 81.5% (80.0 to 83.0) | 81.5% (81.0 to 82.0) | 100 to 101 s |"
    assert heading.count("|") == line.count("|") == row.count("|")


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

    def train(config, entry, phases, seed, workdir):
        calls.append((entry.recipe, seed))
        return Outcome(50.0 + int(seed), 60.0 + int(seed), 100.0, tuple(phases))

    monkeypatch.setattr(fine_tuning, "pace", lambda *_: Pace(20.0, 10.0))
    monkeypatch.setattr(fine_tuning, "train", train)
    fine_tuning.main(config(folder, seconds=100))
    recipes = (GUIDE.recipe, "linear_probe", "finetune")
    assert calls == [(recipe, seed) for seed in ("4", "7") for recipe in recipes]
    rows = {row.name: row for row in load_results(folder / "report")}
    assert list(rows) == list(PRETRAINED) and rows["all layers"].repeats == (54.0, 57.0)
    assert rows["all layers"].unit == "% top-1" and rows["all layers"].settings["flip_top1"] == [64.0, 67.0]
    assert rows["all layers"].what == "--recipe=finetune --phases=all:8@0.0002"
    assert rows["Keras fit"].what == "keras_fit --phases=head:5@0.001,all:3@1e-05"
    assert "| all layers | 8 | 55.5% (54.0 to 57.0) | 65.5% (64.0 to 67.0) | 100 to 100 s |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_recipe_is_trained_and_paced_by_the_real_trainer(folder, tmp_path, monkeypatch):
    thin, entry = config(folder, image_size=32, width=0.03, precision="float32"), PRETRAINED["all layers"]
    monkeypatch.setattr(fine_tuning, "PACE_EPOCHS", (1, 3))
    found = fine_tuning.pace(thin, entry, tmp_path / "run")
    assert found.epoch_seconds > 0 and found.overhead_seconds > 0
    trained = TrainConfig.from_dict(json.loads((tmp_path / "run" / "1" / "config.json").read_text())["train"])
    assert trained.phase_list == tuple(replace(phase, epochs=1.0) for phase in entry.phases)
    assert trained.recipe_text == f"finetune with --phases={trained.phases}"
    assert trained.weights == str(folder / "w.h5") and trained.eval_split == "test"
    with pytest.raises(Failure, match=r"weights=.*: no such file"):
        fine_tuning.train(config(folder, weights="nowhere.h5"), entry, entry.phases, "0", tmp_path / "x")


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_what_begins_from_scratch_is_trained_by_its_command(name, folder, tmp_path):
    thin, entry = config(folder, weights="none", image_size=32, width=0.03, precision="float32"), FROM_SCRATCH[name]
    assert thin.entries is FROM_SCRATCH
    found = fine_tuning.train(thin, entry, entry.stretched(1 / entry.epochs(entry.phases)), "3", tmp_path / "run")
    assert (
        0 <= found.top1 <= 100
        and 0 <= found.flip_top1 <= 100
        and found.seconds > 0
        and found.phases[0].epochs == pytest.approx(1)
    )


def test_wrong_use_is_refused():
    with pytest.raises(UsageError, match="weights is missing"):
        FineTuningConfig(data="x", output="y")
    with pytest.raises(UsageError, match="seeds=a: use whole numbers"):
        FineTuningConfig(data="x", output="y", weights="z", seeds="a")
