"""The trainer's forecast of a GPU's memory against what XLA accounted for the compiled programs."""

import dataclasses
from pathlib import Path

import pytest

from shardline.benchmarks.gpu import compile as gpu_compile
from shardline.benchmarks.gpu import programs
from shardline.trainer import memory
from shardline.trainer.model import TRAINABLE

ROWS = gpu_compile.read_rows(Path(__file__).parents[3] / "benchmarks/results/gpu_compile.json")
STEPS = [program for program in programs.usual_programs() if program.kind == "step"]


# Parameters of VGG16 as published, by block; and of its heads of 1,000 classes.
BLOCKS = {"block1": 38_720, "block2": 221_440, "block3": 1_475_328, "block4": 5_899_776, "block5": 7_079_424}
HEADS = {"gap": 513 * 1000, "flatten256": 25_089 * 256 + 257 * 1000, "fc4096": 138_357_544 - 14_714_688}


@pytest.mark.parametrize("gpu", ["h100", "a100"])
@pytest.mark.parametrize("program", STEPS, ids=str)
def test_the_forecast_is_what_the_compiler_accounts(program, gpu):
    config = program.config
    weights = sum(BLOCKS.values()) + HEADS[program.head]
    trained = HEADS[program.head] + sum(count for name, count in BLOCKS.items() if name in TRAINABLE[program.part])
    slots = 4 * trained  # outside the compiled program, as the optimizer is
    forecast = memory.variable_bytes(config, weights, trained) - slots
    forecast += memory.temporary_bytes(config, program.part, program.batch)
    assert forecast == pytest.approx(ROWS[str(program), gpu].memory, rel=0.05)


def test_it_goes_with_the_pixels_the_width_and_the_bytes_of_a_number():
    usual = programs.USUAL.config
    base = memory.temporary_bytes(usual, "all", 128)
    half = dataclasses.replace(usual, image_size=112)
    assert memory.temporary_bytes(half, "all", 128) == pytest.approx(base / 4)
    assert memory.temporary_bytes(usual, "all", 64) == pytest.approx(base / 2)
    adam = dataclasses.replace(usual, optimizer="adamw", ema=0.999)
    assert memory.variable_bytes(adam, 10, 5) - memory.variable_bytes(usual, 10, 5) == 4 * (10 + 5)
