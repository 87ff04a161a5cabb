"""Compiling for GPUs that are not here: what is compared, and a small run of the real thing where jax is."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from shardline.benchmarks.gpu import compile as gpu_compile
from shardline.benchmarks.gpu import programs
from shardline.pipeline.errors import UsageError
from tests.benchmarks.gpu.test_hlo import GOOD

XLA_PYTHON = Path(__file__).parents[3] / ".venv-xla/bin/python"
VERSIONS = dict.fromkeys(("tensorflow", "jaxlib", "flags"), "1")


def row(folder, temporary=1000, text=GOOD, without_kernel=(), waits=()):
    """The row of a program that compiled to `text`."""
    (folder / "optimized.txt").write_text(text)
    (folder / "memory.json").write_text(json.dumps({"argument": 10, "output": 5, "alias": 1, "temp": temporary}))
    lowered = programs.Lowered(b"", without_kernel, waits)
    return gpu_compile.judge(programs.USUAL, lowered, "h100", folder)


def test_a_row_adds_up_memory_and_names_faults(tmp_path):
    good = row(tmp_path)
    assert (good.memory, good.temporary, good.convolutions, good.faults) == (1014, 1000, 1, [])
    bad = row(tmp_path, text=GOOD + "  %w = s32[] while(%t), body=%b\n", without_kernel=("PyFunc",), waits=("If.cond",))
    assert bad.faults == ["no GPU kernel for PyFunc", "waits for the host: If.cond", "1 × while"]
    (tmp_path / "error.txt").write_text("INTERNAL: no\nmore")
    assert row(tmp_path).faults == ["does not compile: INTERNAL: no"]


def test_more_memory_than_the_baseline_is_named(tmp_path):
    path = tmp_path / "results.json"
    gpu_compile.write_rows(path, {good.key: good for good in [row(tmp_path)]}, VERSIONS)
    baseline = gpu_compile.read_rows(path)
    assert gpu_compile.growth([row(tmp_path, temporary=1005)], baseline) == []
    (line,) = gpu_compile.growth([row(tmp_path, temporary=1100)], baseline)
    assert line.startswith("step all gap bfloat16 128 on h100")
    assert gpu_compile.growth([dataclasses.replace(row(tmp_path, temporary=9999), gpu="l4")], baseline) == []
    assert "| step all gap bfloat16 128 | H100 |" in path.with_suffix(".md").read_text()


def test_every_program_has_a_name_of_its_own():
    assert len({str(p) for p in programs.all_programs()}) == len(programs.all_programs()) == 27 * 10 + 27 * 3 + 1
    assert {str(p) for p in programs.usual_programs()} <= {str(p) for p in programs.all_programs()}


def test_what_cannot_work_is_refused_before_any_work(tmp_path):
    for python in ("/nowhere", sys.executable):
        with pytest.raises(UsageError, match=f"xla_python={python}: no Python with jax and its CUDA plugin"):
            gpu_compile.compile_programs(gpu_compile.CompileConfig(xla_python=python))
    with pytest.raises(UsageError, match="gpus=h100,tpu: tpu is none of h100, a100, l4"):
        gpu_compile.CompileConfig(gpus="h100,tpu")


@pytest.mark.slow
def test_the_step_and_the_evaluation_compile_for_all_gpus(tmp_path):
    if not XLA_PYTHON.exists():
        pytest.skip("no .venv-xla: `make gpu-compile` makes it")
    output = tmp_path / "results.json"
    gpu_compile.main(gpu_compile.CompileConfig(xla_python=str(XLA_PYTHON), suite="few", output=str(output)))
    rows = {(r["program"], r["gpu"]): r for r in json.loads(output.read_text())["rows"]}
    assert len(rows) == 6
    step = rows["step all gap bfloat16 8 augmented", "h100"]
    assert step["convolutions"] == 13 + 13 + 12  # forward; gradients of kernels and of inputs, but for the image
    assert step["integer_scatters"] == 2  # a histogram for each layer of RandAugment
    assert rows["evaluation gap bfloat16 8", "l4"]["convolutions"] == 13
