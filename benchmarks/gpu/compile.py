"""Compile the trainer's programs for GPUs that are not here, and check what comes out.

    make gpu-compile                                  # or, with a Python that has jax and its CUDA plugin:
    python -m shardline.benchmarks.gpu.compile --xla_python .venv-xla/bin/python --suite usual

Fails on sorts, loops, floating-point scatters, convolutions that are not cuDNN's, NHWC and of the precision asked for,
operations without a GPU kernel, and on more device memory than the last accepted run needed. It says nothing of speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shardline.benchmarks.gpu import hlo
from shardline.benchmarks.gpu.targets import GPUS
from shardline.benchmarks.gpu.xla_worker import ENVIRONMENT, compiler
from shardline.benchmarks.processes import WorkerProcess, missing_packages
from shardline.pipeline import cli as command_line
from shardline.pipeline.cli import progress
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import atomic_write
from shardline.pipeline.options import check_options, option
from shardline.trainer.xla import DETERMINISTIC, start_tensorflow

if TYPE_CHECKING:
    from shardline.benchmarks.gpu.programs import Lowered, Program

SUITES = ("few", "usual", "all")
MORE_MEMORY = 1.01  # times the baseline's: what another version of XLA may need without a word
# Autotuning and the choice between libraries and generated matrix products need the device.
WITHOUT_DEVICE = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
HEADER = """\
# The trainer's programs, compiled for GPUs that were not there

Made by `make gpu-compile`: 224 pixels, 1,000 classes, one device, flags as the trainer sets them: `{flags}`.
TensorFlow {tensorflow} lowered the programs, the XLA of jaxlib {jaxlib} compiled them. Memory is XLA's own account of
arguments, results and temporaries; it counts neither the optimizer's slots nor what cuDNN and NCCL take beside it.
Nothing here was run: there are no times.
"""


@dataclass(frozen=True)
class CompileConfig:
    """What to compile, for what, and where the results are."""

    xla_python: str = option(
        ".venv-xla/bin/python", "Python that has jax and its CUDA plugin; `make gpu-compile` makes it", path="file"
    )
    suite: str = option(
        "usual", "few: two small programs; usual: the usual step and what differs from it in one respect; all: hours",
        choices=SUITES,
    )  # fmt: skip
    gpus: str = option(",".join(GPUS), "GPUs to compile for, out of " + ", ".join(GPUS))
    output: str = option(
        "benchmarks/results/gpu_compile.json",
        "results, also the baseline of memory; a table of the same name beside it",
        path="file",
    )
    accept: bool = option(False, "take this run's memory as the new baseline, even where it is more")

    def __post_init__(self) -> None:
        check_options(self)
        if unknown := set(self.gpus.split(",")) - set(GPUS):
            raise UsageError(f"--gpus={self.gpus}: {', '.join(sorted(unknown))} is none of {', '.join(GPUS)}")


@dataclass(frozen=True)
class Row:
    """What became of one program on one GPU.

    Attributes:
      memory: bytes of the device for arguments, results and temporary values.
      temporary: bytes of it for temporary values.
      convolutions: calls of cuDNN.
      custom_calls: calls of any library, by XLA's name for the function.
      waits: arguments outside XLA that the host must know before the device goes on, as operation.argument.
      faults: what is wrong, in words.
    """

    program: str
    gpu: str
    memory: int = 0
    temporary: int = 0
    convolutions: int = 0
    fusions: int = 0
    integer_scatters: int = 0
    custom_calls: dict[str, int] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        """What a row of another run is compared by."""
        return self.program, self.gpu


def compile_programs(config: CompileConfig) -> list[Row]:
    """Compile every program of the suite for every GPU."""
    from shardline.benchmarks.gpu import programs  # TensorFlow

    if not os.access(config.xla_python, os.X_OK) or missing_packages(config.xla_python, ("jax", "jax_cuda12_plugin")):
        raise UsageError(
            f"--xla_python={config.xla_python}: no Python with jax and its CUDA plugin; `make gpu-compile` makes it"
        )
    flags = {"XLA_FLAGS": f"{DETERMINISTIC} {WITHOUT_DEVICE}"}
    chosen, rows = programs.SUITES[config.suite](), []
    with WorkerProcess(compiler, python=config.xla_python, environment=ENVIRONMENT | flags) as compile_module:
        for program in progress(chosen, total=len(chosen), desc="gpu-compile", unit="program"):
            with tempfile.TemporaryDirectory() as folder:
                lowered = programs.lower(program)
                module = Path(folder, "module.pb")
                module.write_bytes(lowered.module)
                for gpu in config.gpus.split(","):
                    results = Path(folder, gpu)
                    results.mkdir()
                    compile_module(str(module), GPUS[gpu].target_config(), str(results))
                    rows.append(judge(program, lowered, gpu, results))
    return rows


def judge(program: Program, lowered: Lowered, gpu: str, results: Path) -> Row:
    """What became of a program, from the files that `xla_worker` leaves."""
    if (error := results / "error.txt").exists():
        return Row(str(program), gpu, faults=[f"does not compile: {error.read_text().splitlines()[0]}"])
    faults = [f"no GPU kernel for {name}" for name in lowered.without_kernel]
    if program.precision != "mixed_float16":  # whose steps are skipped when they overflow, as the host decides
        faults += [f"waits for the host: {name}" for name in lowered.waits]
    summary = hlo.summarize((results / "optimized.txt").read_text())
    memory = json.loads((results / "memory.json").read_text())
    return Row(
        program=str(program),
        gpu=gpu,
        memory=memory["argument"] + memory["output"] + memory["temp"] - memory["alias"],
        temporary=memory["temp"],
        convolutions=len(summary.convolutions),
        fusions=summary.operations["fusion"],
        integer_scatters=summary.operations["integer scatter"],
        custom_calls=dict(sorted(summary.custom_calls.items())),
        waits=list(lowered.waits),
        faults=faults + hlo.faults(summary, dtype=program.dtype, loops=program.micro_batches > 1),
    )


# The baseline ---------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[tuple[str, str], Row]:
    """The rows of the last accepted run; none where there was none."""
    if not path.exists():
        return {}
    rows = [Row(**values) for values in json.loads(path.read_text())["rows"]]
    return {row.key: row for row in rows}


def growth(rows: list[Row], baseline: dict[tuple[str, str], Row]) -> list[str]:
    """A line for each program that needs more memory than it did."""
    pairs = [(row, baseline[row.key]) for row in rows if row.key in baseline]
    return [
        f"{row.program} on {row.gpu}: {row.memory / 1e9:.3f} GB where the baseline has {before.memory / 1e9:.3f}"
        for row, before in pairs
        if row.memory > before.memory * MORE_MEMORY
    ]


def write_rows(path: Path, rows: dict[tuple[str, str], Row], versions: dict[str, str]) -> None:
    """The results, and a table of them for people."""
    ordered = [rows[key] for key in sorted(rows)]
    atomic_write(path, json.dumps({**versions, "rows": [asdict(row) for row in ordered]}, indent=1) + "\n")
    atomic_write(path.with_suffix(".md"), HEADER.format(**versions) + "\n" + table(ordered), durable=False)


def table(rows: list[Row]) -> str:
    """Markdown: a line for each program and GPU."""
    lines = [
        "| program | GPU | GB | of it temporary | cuDNN | fusions | integer scatters | waits for the host | wrong |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        cells = [
            row.program,
            row.gpu.upper(),
            f"{row.memory / 1e9:.2f}",
            f"{row.temporary / 1e9:.2f}",
            *map(str, (row.convolutions, row.fusions, row.integer_scatters)),
            ", ".join(row.waits) or "-",
            "; ".join(row.faults) or "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(config: CompileConfig) -> None:
    """Compile, print the table, keep it, and fail on what is wrong."""
    start_tensorflow()
    path = Path(config.output)
    baseline = read_rows(path)
    rows = compile_programs(config)
    print(table(rows), end="")
    wrong = [f"{row.program} on {row.gpu}: {'; '.join(row.faults)}" for row in rows if row.faults]
    if not config.accept:
        wrong += growth(rows, baseline)
    if wrong:
        raise Failure("; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""))
    write_rows(path, baseline | {row.key: row for row in rows}, versions(config.xla_python))


def versions(xla_python: str) -> dict[str, str]:
    """What compiled, and how."""
    import tensorflow as tf

    code = "import importlib.metadata as m; print(m.version('jaxlib'))"
    jaxlib = subprocess.run([xla_python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return {"tensorflow": tf.__version__, "jaxlib": jaxlib, "flags": DETERMINISTIC}


def cli() -> None:
    """Run `python -m shardline.benchmarks.gpu.compile`."""
    command_line.run(main, CompileConfig, __doc__)


if __name__ == "__main__":
    cli()
