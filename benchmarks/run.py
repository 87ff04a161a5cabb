"""Measure this machine with this dataset: which stage is the bottleneck, and what would help.

    shardline-benchmark --data DIR --output REPORT [--raw_images DIR] [--suite input]

Appends to REPORT/results.jsonl, one line a measurement with every repeat, and draws REPORT/report.html. Ctrl-C keeps
what was measured. The last lines on stdout are the verdict and the report's path.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from shardline.benchmarks.bottleneck import STAGE_TEXT
from shardline.benchmarks.measure import Interrupted, Measurement, Rate, WorkerProcess, append_jsonl, interleave
from shardline.benchmarks.report import ladder_verdict, load_results, write_report
from shardline.pipeline.cli import import_tensorflow, progress, run
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.machine import available_cores

_DATA = flags.DEFINE_string("data", "", "dataset directory, made by shardline-convert or shardline-adopt")
_RAW = flags.DEFINE_string("raw_images", "", "folder of raw images, for the suites convert and peers, and --prove")
_SUITE = flags.DEFINE_enum(
    "suite",
    "input",
    ["short", "input", "convert", "train", "peers", "scaling", "all"],
    "what to measure; short: ladder and threads, with a network an eighth as wide, in some minutes",
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "counted turns; the contenders take turns", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "report directory; results are appended to what it holds")
_PROVE = flags.DEFINE_bool("prove", False, "carry out the verdict's advice on a sample and measure again")
_PROFILE = flags.DEFINE_bool("profile", False, "write a profiler trace of training, or of reading, and a summary of it")
_SPLIT = flags.DEFINE_string("split", "train", "split to read")
_SECONDS = flags.DEFINE_float("seconds", 1.5, "length of one repeat of a stage; at least one step", lower_bound=0.01)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "side of the training images, pixels", lower_bound=32)
_BATCH = flags.DEFINE_integer("global_batch_size", 64, "examples a batch", lower_bound=1)
_STEP_BATCH = flags.DEFINE_integer(
    "step_batch_size", 0, "examples a training step; 0: --global_batch_size, on a CPU at most 8", lower_bound=0
)
_WIDTH = flags.DEFINE_float(
    "width", None, "share of VGG16's filters in the step; default: 1, in --suite=short 0.125",
    lower_bound=0.01, upper_bound=1,
)  # fmt: skip
_PRECISION = flags.DEFINE_enum(
    "precision", "mixed_bfloat16", ["mixed_bfloat16", "mixed_float16", "float32"], "of the step, as shardline-train's"
)
_JIT = flags.DEFINE_bool("jit", True, "compile the step with XLA, as shardline-train does")
_STEP_RATE = flags.DEFINE_float(
    "gpu_step_rate", 0, "images/s of one GPU's training step, for the verdict and for what feeds 1, 2, 4, 8 of them; "
    "0: measure the step on this machine", lower_bound=0,
)  # fmt: skip
_WIRE = flags.DEFINE_float("interconnect_gbps", 100, "Gbit/s between two GPUs, for the forecast", lower_bound=0.001)
_PRICE = flags.DEFINE_float("price_per_hour", 0, "of this machine, for the cost of a million images", lower_bound=0)
_PEER_PYTHON = flags.DEFINE_string(
    "peer_python", sys.executable, "Python that has the packages of the other tools (the extra bench)"
)


@dataclass(frozen=True)
class BenchConfig:
    """What all suites share; the fields carry the names of the flags."""

    output: Path
    data: str
    split: str
    raw_images: str
    repeats: int
    seconds: float
    image_size: int
    global_batch_size: int
    step_batch_size: int
    width: float
    precision: str
    jit: bool
    gpu_step_rate: float
    interconnect_gbps: float
    price_per_hour: float
    prove: bool
    profile: bool
    peer_python: str

    @property
    def results(self) -> Path:
        """Where every measurement goes, a line each."""
        return self.output / "results.jsonl"

    def input_config(self, **changes: Any) -> Any:
        """Of the batches that the host makes."""
        from shardline.pipeline import InputConfig

        values = {"global_batch_size": self.global_batch_size, "image_size": self.image_size} | changes
        return InputConfig(**values)

    def step_model(self, replicas: int = 1) -> Any:
        """What the training step trains; its batch grows with the replicas."""
        from shardline.benchmarks.step_stages import ROWS_ON_CPU, StepModel

        rows = self.step_batch_size or (self.global_batch_size if _gpus() else min(ROWS_ON_CPU, self.global_batch_size))
        config = self.input_config(global_batch_size=rows * replicas, max_bad_records=10**9)
        return StepModel(self.data, self.split, config, self.width, self.precision, self.jit, replicas)


def main() -> None:
    """Measure the chosen suites, store, draw, tell."""
    setting = _setting()
    import_tensorflow()
    trouble: BaseException | None = None
    for suite in SUITES[_SUITE.value]:
        measured: list[Measurement] = []
        try:
            measured = suite(setting)
        except Interrupted as interruption:
            measured, trouble = interruption.measurements, interruption
        except (Failure, KeyboardInterrupt) as error:
            trouble = error
        append_jsonl(setting.results, measured)
        if trouble:
            break
    if setting.results.exists() and setting.results.stat().st_size:
        _tell(setting)
    if trouble:
        raise trouble


def ladder(setting: BenchConfig) -> list[Measurement]:
    """Every stage by itself, with the top rung of the host twice as the control."""
    from shardline.benchmarks import stages as host
    from shardline.benchmarks import step_stages
    from shardline.pipeline import open_dataset

    data = open_dataset(setting.data)
    facts = host.facts(data, setting.split)
    facts["smaller_size"] = host.smaller_size(facts["stored_size"], setting.image_size)
    facts["step_on_host"] = not setting.gpu_step_rate and not _gpus()
    contenders = host.rungs(data, setting.split, setting.input_config(), seconds=setting.seconds)
    cold = host.cold_cache_text(data, setting.split)
    what = STAGE_TEXT | {name: f"{STAGE_TEXT[name.split()[0]]}; {cold}" for name in host.COLD}
    settings = {
        "facts": facts,
        "baseline": "batch",
        "image_size": setting.image_size,
        "global_batch_size": setting.global_batch_size,
        "seconds": setting.seconds,
        "dataset": data.manifest.digest,
    }
    if setting.gpu_step_rate:
        measured = _interleave("ladder", contenders, setting, baseline="batch", what=what, settings=settings)
        profiled = contenders["batch"]
        given = (setting.gpu_step_rate,) * setting.repeats
        measured.append(Measurement("ladder", "step", "images/s", given, "as given by --gpu_step_rate", (), settings))
    else:
        print("compiling the training step", file=sys.stderr)
        model = setting.step_model()
        trainer = step_stages.Trainer(model)
        copy = step_stages.copier(model.input, "/GPU:0" if _gpus() else "/CPU:0")
        if not _gpus():
            what["copy"] = "no accelerator: batches copied within memory"
        what |= {name: f"{STAGE_TEXT[name]}: {model}" for name in ("step", "end_to_end")}
        upper = {"copy": copy, "step": trainer.step, "end_to_end": trainer.end_to_end}
        contenders |= {name: partial(work, setting.seconds) for name, work in upper.items()}
        measured = _interleave("ladder", contenders, setting, baseline="batch", what=what, settings=settings)
        profiled = contenders["end_to_end"]
    if setting.profile:
        _profile(setting, profiled)
    classes = len(data.labels)
    outlook = {
        "gradient_bytes": step_stages.gradient_bytes(classes, setting.image_size, setting.width),
        "step_batch_size": setting.global_batch_size if setting.gpu_step_rate else model.input.global_batch_size,
        "device": "GPU" if setting.gpu_step_rate or _gpus() else "host",
        "interconnect_gbps": setting.interconnect_gbps,
        "price_per_hour": setting.price_per_hour,
    }
    return [dataclasses.replace(m, settings={**m.settings, "outlook": outlook}) for m in measured]


def prove(setting: BenchConfig) -> list[Measurement]:
    """The advice of the ladder just measured, carried out on a sample."""
    from shardline.benchmarks import validate_advice as proving
    from shardline.pipeline import open_dataset

    verdict = ladder_verdict(load_results(setting.output))
    if not setting.prove or verdict is None:
        return []
    if not verdict.advice:
        print(f"--prove: nothing to carry out, {verdict.word} brings no advice", file=sys.stderr)
        return []
    data, config = open_dataset(setting.data), setting.input_config()
    with tempfile.TemporaryDirectory() as work:

        def measure(contenders: Mapping[str, Callable[[], Rate]]) -> list[Measurement]:
            settings = {"baseline": proving.BASE, "image_size": setting.image_size, "sample": proving.SAMPLE}
            what = {proving.BASE: "a sample of the images, converted again with the dataset's own options"}
            what |= {name: f"{name} instead" for name in contenders if name != proving.BASE}
            return _interleave(
                proving.SUITE, contenders, setting, baseline=proving.BASE, what=what, settings=settings
            )  # fmt: skip

        return proving.prove(
            verdict, data, setting.split, setting.raw_images, config, setting.seconds, Path(work), measure
        )  # fmt: skip


def threads(setting: BenchConfig) -> list[Measurement]:
    """The host's batches with 1 up to all cores, as many threads."""
    from shardline.benchmarks import stages as host
    from shardline.benchmarks.validate_advice import on_cores
    from shardline.pipeline import open_dataset

    data = open_dataset(setting.data)
    host.facts(data, setting.split)  # refuses what cannot be read
    contenders, cores = {}, sorted(os.sched_getaffinity(0))
    for count in _counts(len(cores)):
        rungs = host.rungs(data, setting.split, setting.input_config(threads=count), seconds=setting.seconds)
        contenders[f"shardline, {_plural(count, 'core')}"] = on_cores(cores[:count], rungs["batch"])
    first = next(iter(contenders))
    what = {name: "host batches, as many worker processes as cores" for name in contenders}
    return _interleave("scaling", contenders, setting, baseline=first, what=what, settings={"baseline": first})


def replicas(setting: BenchConfig) -> list[Measurement]:
    """The training step on 1 up to all GPUs; without any, on logical CPUs that share the cores."""
    gpus = _gpus()
    contenders: dict[str, WorkerProcess] = {}
    what = {}
    try:
        for count in _counts(gpus or available_cores()):
            name = f"shardline, {_plural(count, 'replica')}"
            model = setting.step_model(count)
            fields = json.dumps(dataclasses.asdict(model))
            devices = ",".join(map(str, range(count))) if gpus else ""
            print(f"starting {name}", file=sys.stderr)
            contenders[name] = WorkerProcess(
                [sys.executable, "-m", "shardline.benchmarks.bench_replicas", fields],
                setting.seconds,
                cwd=Path(__file__).parent.parent,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": devices},
            )
            shared = "" if gpus else "; logical CPUs that share the cores, so the best is 1x"
            what[name] = f"step on batches in memory: {model}{shared}"
        first = next(iter(contenders))
        settings = {"baseline": first}
        return _interleave("scaling of replicas", contenders, setting, baseline=first, what=what, settings=settings)
    except RuntimeError as error:
        raise Failure(f"the suite of replicas: {error}") from None
    finally:
        for contender in contenders.values():
            contender.close()


def converter(setting: BenchConfig) -> list[Measurement]:
    """Converting with 1 up to all cores, as many workers; needs raw images."""
    if not setting.raw_images:
        print("not measured: workers of the converter (name a folder with --raw_images)", file=sys.stderr)
        return []
    return _cases("convert_cases", setting, [f"--raw_images={setting.raw_images}", "--scaling"])


def input_peers(setting: BenchConfig) -> list[Measurement]:
    """Reading, side by side with other people's loaders."""
    flags_ = [f"--data={setting.data}", f"--image_size={setting.image_size}", f"--peer_python={setting.peer_python}"]
    return _cases("input_cases", setting, [*flags_, f"--seconds={setting.seconds}"])


def convert(setting: BenchConfig) -> list[Measurement]:
    """Converting: one image at a time, then whole conversions side by side with other people's tools."""
    raw = f"--raw_images={setting.raw_images}"
    _cases("image_cases", setting, [raw])
    return _cases("convert_cases", setting, [raw, f"--peer_python={setting.peer_python}"])


def train(setting: BenchConfig) -> list[Measurement]:
    """The training step: real input against fake, our loop against a bare function, the precisions."""
    return _cases("train_cases", setting, [f"--data={setting.data}", f"--image_size={setting.image_size}"])


def _cases(module: str, setting: BenchConfig, arguments: list[str]) -> list[Measurement]:
    """Run a module of cases in a process of its own; it appends its results and prints its tables itself."""
    command = [sys.executable, "-m", f"benchmarks.{module}", f"--output={setting.results}"]
    command += [f"--repeats={setting.repeats}", *arguments]
    process = subprocess.Popen(command, stdout=sys.stderr, cwd=Path(__file__).parent.parent)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # a terminal has sent it one; a script may not have
        process.wait()  # it stores the turns that are complete
        raise Interrupted([]) from None
    if code:
        raise Failure(f"benchmarks.{module} ended with exit code {code}; its message stands above")
    return []


def _profile(setting: BenchConfig, work: Callable[[], Any]) -> None:
    """Trace one repeat of `work`; the summary goes beside the report, which shows it."""
    from shardline.benchmarks import profiler_summary

    path = setting.output / "profile.txt"
    path.write_text(profiler_summary.profile(work, setting.output / "profile"), encoding="utf-8")
    print(f"profile: {path}", file=sys.stderr)


def _counts(most: int) -> list[int]:
    """1, 2, 4, … and `most`."""
    return sorted({2**n for n in range(most.bit_length())} | {most})


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count > 1 else ''}"


def _interleave(suite: str, contenders: Mapping[str, Any], setting: BenchConfig, **options: Any) -> list[Measurement]:
    turns = (setting.repeats + 1) * (len(contenders) + ("baseline" in options))
    with progress(total=turns, desc=suite, unit="run") as bar:

        def show(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        return interleave(suite, contenders, repeats=setting.repeats, progress=show, **options)


def _setting() -> BenchConfig:
    if not _OUTPUT.value:
        raise UsageError("--output is missing: name the directory for results.jsonl and report.html")
    if not _DATA.value and _SUITE.value != "convert":
        raise UsageError("--data is missing: name a dataset directory, made by shardline-convert or shardline-adopt")
    if not _RAW.value and _SUITE.value in ("convert", "peers", "all"):
        raise UsageError(f"--suite={_SUITE.value} converts images: name a folder of them with --raw_images")
    if _RAW.value and not Path(_RAW.value).is_dir():
        raise UsageError(f"--raw_images={_RAW.value}: no such folder")
    output = Path(_OUTPUT.value).absolute()
    output.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(BenchConfig)}
    given["width"] = _WIDTH.value or (0.125 if _SUITE.value == "short" and not _STEP_RATE.value else 1.0)
    given |= {"output": output, "data": os.path.abspath(_DATA.value)}
    return BenchConfig(**given | {"raw_images": _RAW.value and os.path.abspath(_RAW.value)})


def _gpus() -> int:
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def _tell(setting: BenchConfig) -> None:
    """Draw the report and print the verdict."""
    measurements = load_results(setting.output)
    write_report(setting.output, measurements)
    verdict = ladder_verdict(measurements)
    if verdict is not None:
        print(verdict)
    print(setting.output / "report.html")


SUITES: dict[str, Sequence[Callable[[BenchConfig], list[Measurement]]]] = {
    "short": (ladder, prove, threads),
    "input": (ladder, prove, input_peers),
    "convert": (convert,),
    "peers": (input_peers, convert),
    "scaling": (threads, replicas, converter),
    "train": (train,),
    "all": (ladder, prove, threads, replicas, input_peers, train, convert, converter),
}


def cli() -> None:
    """Entry point."""
    run(main)


if __name__ == "__main__":
    cli()
