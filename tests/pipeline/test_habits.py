"""What is answered to a flag of another tool, or a mistyped one."""

import pytest

from shardline.pipeline.command_help import FLAGS_OF_EVERY_COMMAND, help_text
from shardline.pipeline.commands import COMMANDS
from shardline.pipeline.habits import EXAMPLES, HABITS, meant, unknown
from shardline.pipeline.options import options


def flags_of(name):
    own = [field.name for field in options(COMMANDS[name].config_class()).values() if field.option.flag]
    return [*own, *FLAGS_OF_EVERY_COMMAND]


@pytest.mark.parametrize(
    ("command", "typed", "ours"),
    [
        ("train", "batch_size", "--global_batch_size"),
        ("train", "batch-size", "--global_batch_size"),
        ("train", "epochs", "--phases=PART:EPOCHS@LEARNING_RATE, e.g. --phases=all:9@0.02"),
        ("train", "lr", "--phases=PART:EPOCHS@LEARNING_RATE, e.g. --phases=all:9@0.02"),
        ("train", "learning_rate", "--phases=PART:EPOCHS@LEARNING_RATE, e.g. --phases=all:9@0.02"),
        ("train", "wd", "--weight_decay"),
        ("train", "weight-decay", "--weight_decay"),
        ("train", "output_dir", "--workdir"),
        ("train", "dataset", "--data"),
        ("train", "resume", "--workdir: the same command continues the run there"),
        ("train", "gpus", "--strategy=auto, which uses every GPU that CUDA_VISIBLE_DEVICES shows"),
        ("train", "global_bach_size", "--global_batch_size"),
        ("convert", "data", "--source"),
        ("convert", "image_size", "--size"),
        ("evaluate", "global_batch_size", "--batch_size"),
        ("evaluate", "workdir", "--run"),
        ("predict", "topk", "--top"),
        ("benchmark", "num_workers", "--workers"),
        ("verify", "dataset_dir", "--data"),
        ("train", "qqq", ""),
    ],
)
def test_a_habit_gets_the_name_of_ours(command, typed, ours):
    assert meant(typed, flags_of(command)) == ours
    assert unknown(typed, flags_of(command)) == (f"no such flag; use {ours}" if ours else "no such flag")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_suggestion_is_a_flag_that_help_hides(command):
    shown = help_text(COMMANDS[command].config_class(), "", full=True)
    hidden = ("flagfile", "undefok", "log_dir", "logtostderr", "stderrthreshold", "showprefixforinfo", "pdb", "verbose")
    for typed in (*HABITS, *hidden, "onlyparse", "run_with_pdb", "v"):
        name = meant(typed, flags_of(command)).split("=")[0].split(":")[0].split(",")[0]
        assert not name or f"  {name}" in shown or f"  --[no]{name[2:]}" in shown, (typed, name)


def test_every_habit_means_a_flag_that_some_command_has():
    known = {flag for command in COMMANDS for flag in flags_of(command)}
    assert {ours for names in HABITS.values() for ours in names} <= known
    assert set(EXAMPLES) <= known | set(HABITS)
