"""Settings are refused in one line before any work, and the learning rate is a function of the samples consumed."""

import copy
import json
import math
import pickle
import re
import tomllib
from dataclasses import replace

import pytest

from shardline.pipeline import cli as command_line
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import narrowed, options
from shardline.trainer import schedule
from shardline.trainer.config import RECIPES, Phase, Resize, TrainConfig, differences, parse_phases
from shardline.trainer.schedule import Stretch, spans, stretches
from shardline.trainer.train import TrainCommand


def test_a_grid_of_augmentation_shows_the_defaults_of_training():
    """shardline-inspect --augmented without a run draws an InputConfig."""
    shown, trained = options(InputConfig), options(TrainConfig)
    assert {name: field.default for name, field in shown.items()} == {name: trained[name].default for name in shown}


def test_phases_are_what_epochs_at_rate():
    assert parse_phases("head:5@1e-3, all:0.5@2e-5") == (Phase("head", 5, 1e-3), Phase("all", 0.5, 2e-5))


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"phases": "head"}, "phases=head: 'head' is not PART:EPOCHS@LEARNING_RATE"),
        ({"phases": "neck:5@1e-3"}, "'neck' is not one of head, block5"),
        ({"phases": "all:0@1e-3"}, "phases"),
        ({"phases": "all:5@-1"}, "phases"),
        ({"phases": "all:nan@1"}, "phases"),
        ({"head": "big"}, "head=big: use one of gap, hypercolumn, flatten256, fc4096"),
        ({"image_size": 16}, "image_size=16"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"ema": 1.5}, "ema=1.5"),
        ({"micro_batches": 0}, "micro_batches=0"),
        ({"global_batch_size": 0}, "global_batch_size=0"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"profile_steps": "9"}, "profile_steps=9: needs FIRST:LAST"),
        ({"profile_steps": "9:3"}, "profile_steps=9:3"),
        ({"crop_area": "1"}, "crop_area=1: needs two numbers"),
        ({"crop_area": "0,2"}, "crop_area"),
        ({"class_weights": "balanced", "balanced_sampling": True}, "choose one of them"),
        ({"balanced_sampling": True, "shuffle": False}, "balanced_sampling shuffles each class; leave it out, or no"),
        ({"early_stop_evals": 3}, "best_metric"),
        ({"best_metric": "top1", "eval_split": "none"}, "eval_split"),
        ({"warmup_epochs": -2.0}, "warmup_epochs=-2.0"),
        ({"width": 0.0}, "width=0.0"),
        ({"weights": "imagenet", "width": 0.5}, "width=0.5"),
        ({"weights": "imagenet", "head": "fc4096", "image_size": 160}, "image_size=160: the fc1 and fc2"),
        ({"cache_features": 2, "mixup": 0.2}, "cache_features"),
        ({"block_lr_decay": 1.5}, "block_lr_decay=1.5"),
        ({"eval_every_epochs": 0.0}, "eval_every_epochs=0.0"),
        ({"weight_decay": float("nan")}, "weight_decay=nan"),
        (
            {"synthetic": True, "class_weights": "balanced"},
            "class_weights counts a dataset's classes; leave it out, or synthetic",
        ),
        (
            {"synthetic": True, "best_metric": "top1"},
            "best_metric=top1 judges a held-out split; leave it out, or synth",
        ),
        ({"synthetic": True, "balanced_sampling": True}, "balanced_sampling counts a dataset's"),
        ({"seed": 2**32}, "seed=4294967296: use a whole number from 0 to 4294967295"),
        ({"recipe": "best"}, "recipe=best: use one of plain, scratch, linear_probe, finetune"),
        ({"recipe": "finetune"}, "recipe=finetune is for pretrained weights: name them in weights"),
        ({"recipe": "linear_probe", "weights": "x", "mixup": 0.2}, "or it: cache_features=0"),
    ],
)
def test_wrong_settings_name_flag_value_and_remedy(settings, named):
    with pytest.raises(UsageError) as error:
        TrainConfig(**settings)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_config_survives_its_json():
    made = TrainConfig(phases="head:1@1e-3", ema=0.99, crop_area="0.5,1")
    assert TrainConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    with pytest.raises(UsageError, match="does not know: color"):
        TrainConfig.from_dict({**made.to_dict(), "color": 1})


def test_differences_leave_out_what_changes_no_result():
    old = TrainConfig.from_dict(json.loads(json.dumps(TrainConfig(dropout=0.5).to_dict())))
    new = TrainConfig(dropout=0.4, logical_cpus=2, log_every_steps=3)
    assert differences(old, new) == ["--dropout: 0.5 -> 0.4"]


def rates(text, num_records=100, batch=10, kind="cosine", warmup=-1.0):
    result = []
    for span in schedule.spans(parse_phases(text), num_records):
        result.append(
            [
                schedule.learning_rate(
                    span, cursor, num_records=num_records, schedule=kind, warmup_epochs=warmup, batch=batch
                )
                for cursor in range(span.start, span.stop, batch)
            ]
        )
    return result


def test_spans_lay_phases_end_to_end_in_samples():
    spans = schedule.spans(parse_phases("head:0.5@1,all:2.25@1"), 720)
    assert [(span.start, span.stop) for span in spans] == [(0, 360), (360, 1980)]
    assert schedule.steps_between(0, 1980, 32) == 62
    for batch in (7, 32, 720, 5000):  # those of the phases are those of the run
        steps = [schedule.phase_steps(span, batch) for span in spans]
        assert sum(steps) == schedule.steps_between(0, 1980, batch)
        assert steps[0] == len(range(0, 360, batch))


def test_cosine_warms_up_over_a_tenth_peaks_and_falls_to_nearly_nothing():
    (values,) = rates("all:10@0.4")
    assert values[0] == pytest.approx(0.4 / 11 * 1)
    assert values[:10] == sorted(values[:10])
    assert values[10] == pytest.approx(0.4) and max(values) <= 0.4
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[55] == pytest.approx(0.2)  # half-way down
    assert values[-1] < 0.4 * 0.001
    assert values[70] == pytest.approx(0.2 * (1 + math.cos(math.pi * 60 / 90)))


def test_constant_keeps_the_rate_and_each_phase_has_its_own():
    first, second = rates("head:1@0.1,all:2@0.01", kind="constant", warmup=0.0)
    assert set(first) == {0.1} and set(second) == {0.01}


def test_the_rate_at_a_cursor_does_not_depend_on_how_it_was_reached():
    (small,), (large,) = rates("all:4@1", batch=10, warmup=0.0), rates("all:4@1", batch=20, warmup=0.0)
    assert small[::2] == large


def test_a_recipe_sets_what_is_not_given():
    """Also where what is given is the flag's own default."""
    made = TrainConfig(recipe="linear_probe", weights="w.h5", dropout=0.5)
    assert (made.head, made.phases, made.cache_features, made.dropout) == ("hypercolumn", "head:30@0.3", 4, 0.5)
    assert made.recipe_text == "linear_probe with --dropout=0.5"
    assert TrainConfig(recipe="linear_probe", weights="w.h5").recipe_text == "linear_probe"
    assert TrainConfig() == TrainConfig(recipe="plain") and TrainConfig().recipe_text == "plain"
    for same in (replace(made, seed=0), TrainConfig.from_dict(made.to_dict()), copy.deepcopy(made),
                 pickle.loads(pickle.dumps(made)), narrowed(TrainCommand(**made.to_dict()), TrainConfig)):  # fmt: skip
        assert same == made and same.dropout == 0.5
    assert differences(made, replace(made, recipe="plain")) == []  # a name for values, which are compared themselves


def test_progressive_resizing_is_in_pixels_or_shares_of_the_image_size():
    made = TrainConfig(image_size=64, progressive_resizing="32:0.3,48:0.6,64")
    assert made.resizes == (Resize(32, 0.3), Resize(48, 0.6))
    assert TrainConfig(image_size=64, progressive_resizing="0.5:0.3,0.75:0.6").resizes == made.resizes
    assert TrainConfig(image_size=224, progressive_resizing="0.5:0.3,0.75:0.6").resizes == (
        Resize(112, 0.3), Resize(168, 0.6),
    )  # fmt: skip
    assert TrainConfig(image_size=40, progressive_resizing="0.5:0.3").resizes == (Resize(32, 0.3),)
    assert TrainConfig(image_size=40, progressive_resizing="0.5:0.3,0.75:0.6").resizes == (Resize(32, 0.6),)
    assert TrainConfig().resizes == ()


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("32", "'32' is not SIZE:UNTIL"),
        ("32:a", "'32:a' is not SIZE:UNTIL"),
        ("16:0.3", "16 is no number of pixels from 32 to image_size=64"),
        ("80:0.3", "80 is no number of pixels from 32 to image_size=64"),
        ("33.5:0.3", "33.5 is no number of pixels"),
        ("32:0.6,48:0.3", "0.3 is no share of the run above 0.6 and below 1"),
        ("32:1", "1 is no share of the run above 0 and below 1"),
        ("32:0", "0 is no share"),
    ],
)
def test_wrong_progressive_resizing_is_refused(text, wrong):
    with pytest.raises(UsageError, match=re.escape(wrong)):
        TrainConfig(image_size=64, progressive_resizing=text)


def test_a_head_of_one_image_size_is_not_resized():
    with pytest.raises(UsageError, match="head=flatten256 fits one image size only; use head=gap or hypercolumn"):
        TrainConfig(head="flatten256", progressive_resizing="0.5:0.5")


def test_a_phase_is_cut_where_images_grow_wherever_it_is_begun():
    first, second = spans(parse_phases("head:1@1,all:3@1"), 100)
    resizes = (Resize(32, 0.5), Resize(48, 0.75))
    assert list(stretches(first, 0, resizes, 64, 400)) == [Stretch(32, 100)]
    assert list(stretches(second, 104, resizes, 64, 400)) == [Stretch(32, 200), Stretch(48, 300), Stretch(64, 400)]
    assert list(stretches(second, 200, resizes, 64, 400)) == [Stretch(48, 300), Stretch(64, 400)]
    assert list(stretches(second, 304, resizes, 64, 400)) == [Stretch(64, 400)]
    assert list(stretches(second, 400, resizes, 64, 400)) == []
    assert list(stretches(second, 104, (), 64, 400)) == [Stretch(64, 400)]


def test_flags_override_a_file_and_both_override_the_recipe(tmp_path):
    (tmp_path / "x.json").write_text('{"recipe": "finetune", "weights": "w.h5", "cache_features": 9, "dropout": 0.2}')
    made = command_line.parse(TrainCommand, ["train", f"--config={tmp_path / 'x.json'}", "--dropout=0.5"])
    assert (made.head, made.optimizer, made.cache_features, made.dropout) == ("hypercolumn", "adamw", 9, 0.5)


def test_the_printed_settings_are_those_of_the_recipe(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "--recipe=finetune", "--dropout=0.1", "--print_config"])
    with pytest.raises(SystemExit):
        command_line.run(None, TrainCommand, "")
    printed = tomllib.loads(capsys.readouterr().out)
    assert printed["dropout"] == 0.1 and printed["recipe"] == "finetune"
    assert {name: printed[name] for name in RECIPES["finetune"] if name != "dropout"} == {
        name: value for name, value in RECIPES["finetune"].items() if name != "dropout"
    }


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "plain"])
def test_every_recipe_is_a_config_and_told_in_help(recipe):
    TrainConfig(recipe=recipe, weights="none" if recipe == "scratch" else "w.h5")
    told = " ".join(command_line.help_text(TrainCommand, "", full=False).split())
    assert f"{recipe}, --head=hypercolumn" in told
