"""Measure this machine with this dataset: which stage is the bottleneck, and what would help.

    python -m benchmarks.run --data DIR --output REPORT [--raw_images DIR] [--suite input]

Appends to REPORT/results.jsonl, one line a measurement with every repeat, and draws REPORT/report.html. Ctrl-C keeps
what was measured. The last lines on stdout are the verdict and the report's path.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.measure import Interrupted, Measurement, Rate, append_jsonl, interleave
from benchmarks.report import STAGE_TEXT, ladder_verdict, load_results, write_report
from pipeline.cli import Failure, UsageError, import_tensorflow, progress, run

_DATA = flags.DEFINE_string("data", "", "dataset directory, made by tools.convert or tools.adopt")
_RAW = flags.DEFINE_string("raw_images", "", "folder of raw images, for the suites convert and peers")
_SUITE = flags.DEFINE_enum(
    "suite",
    "input",
    ["short", "input", "convert", "train", "peers", "scaling", "all"],
    "what to measure; short: a ladder of a minute or two",
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "counted turns; the contenders take turns", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "report directory; results are appended to what it holds")
_SPLIT = flags.DEFINE_string("split", "train", "split to read")
_SECONDS = flags.DEFINE_float("seconds", 1.5, "length of one repeat of a host stage", lower_bound=0.01)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "side of the training pictures, pixels", lower_bound=32)
_BATCH = flags.DEFINE_integer("global_batch_size", 64, "examples a batch", lower_bound=1)
_STEP_RATE = flags.DEFINE_float(
    "gpu_images_per_second", 0, "step rate of one GPU, for the verdict and the count of cores that feed 1, 2, 4, 8 of "
    "them; 0: measure the step on this machine", lower_bound=0,
)  # fmt: skip

_PEER_PYTHON = flags.DEFINE_string(
    "peer_python", sys.executable, "Python that has the packages of the other tools (the extra bench)"
)


@dataclass(frozen=True)
class Setting:
    """What all suites share."""

    output: Path
    data: str
    split: str
    raw_images: str
    repeats: int
    seconds: float
    image_size: int
    global_batch_size: int
    gpu_images_per_second: float
    peer_python: str

    @property
    def results(self) -> Path:
        """Where every measurement goes, a line each."""
        return self.output / "results.jsonl"


def main() -> None:
    """Measure the chosen suites, store, draw, tell."""
    setting = _setting()
    import_tensorflow()
    stopped = False
    for suite in SUITES[_SUITE.value]:
        try:
            measured = suite(setting)
        except Interrupted as interruption:
            measured, stopped = interruption.measurements, True
        append_jsonl(setting.results, measured)
        if stopped:
            break
    _tell(setting)
    if stopped:
        raise KeyboardInterrupt


def ladder(setting: Setting) -> list[Measurement]:
    """Every stage of the host by itself, with the top rung twice as the control."""
    from benchmarks import ladder as host
    from pipeline import InputConfig, open_dataset

    data = open_dataset(setting.data)
    config = InputConfig(global_batch_size=setting.global_batch_size, image_size=setting.image_size)
    facts = host.facts(data, setting.split)
    facts["smaller_size"] = host.smaller_size(facts["stored_size"], setting.image_size)
    facts["step_on_host"] = not setting.gpu_images_per_second and not _gpus()
    contenders = host.rungs(data, setting.split, config, seconds=setting.seconds)
    measured = _interleave(
        "ladder", contenders, setting, baseline="batch", what=STAGE_TEXT, settings={"facts": facts, "baseline": "batch"}
    )
    if setting.gpu_images_per_second:
        rates = (setting.gpu_images_per_second,) * setting.repeats
        measured.append(Measurement("ladder", "step", "images/s", rates, "as given", (), {"facts": facts}))
    return measured


def scaling(setting: Setting) -> list[Measurement]:
    """The host's batches with 1 up to all cores."""
    from benchmarks import ladder as host
    from pipeline import InputConfig, open_dataset

    data = open_dataset(setting.data)
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= len(os.sched_getaffinity(0))]
    contenders = {}
    for count in counts:
        config = InputConfig(global_batch_size=setting.global_batch_size, image_size=setting.image_size, threads=count)
        contenders[f"shardline, {count} core{'s' if count > 1 else ''}"] = _on_cores(
            count, host.rungs(data, setting.split, config, seconds=setting.seconds)["batch"]
        )
    first = next(iter(contenders))
    return _interleave("scaling", contenders, setting, baseline=first, settings={"baseline": first})


def input_peers(setting: Setting) -> list[Measurement]:
    """Reading, side by side with other people's loaders."""
    flags_ = [f"--data={setting.data}", f"--image_size={setting.image_size}", f"--peer_python={setting.peer_python}"]
    return _cases("input_cases", setting, [*flags_, f"--seconds={setting.seconds}"])


def convert(setting: Setting) -> list[Measurement]:
    """Converting: one image at a time, then whole conversions side by side with other people's tools."""
    raw = f"--raw_images={setting.raw_images}"
    _cases("image_cases", setting, [raw])
    return _cases("convert_cases", setting, [raw, f"--peer_python={setting.peer_python}"])


def train(setting: Setting) -> list[Measurement]:
    """The training step: real input against fake, our loop against a bare function, the precisions."""
    return _cases("train_cases", setting, [f"--data={setting.data}", f"--image_size={setting.image_size}"])


def _cases(module: str, setting: Setting, arguments: list[str]) -> list[Measurement]:
    """Run a module of cases in a process of its own; it appends its results and prints its tables itself."""
    command = [sys.executable, "-m", f"benchmarks.{module}", f"--output={setting.results}"]
    command += [f"--repeats={setting.repeats}", *arguments]
    try:
        code = subprocess.run(command, stdout=sys.stderr, cwd=Path(__file__).parent.parent).returncode
    except KeyboardInterrupt:
        raise Interrupted([]) from None
    if code:
        raise Failure(f"benchmarks.{module} ended with exit code {code}; its message stands above")
    return []


def _on_cores(count: int, work: Callable[[], Rate]) -> Callable[[], Rate]:
    """Pin every thread that `work` starts to `count` cores."""

    def pinned() -> Rate:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(allowed)[:count])
        try:
            return work()
        finally:
            os.sched_setaffinity(0, allowed)

    return pinned


def _interleave(suite: str, contenders: dict[str, Any], setting: Setting, **options: Any) -> list[Measurement]:
    turns = (setting.repeats + 1) * (len(contenders) + ("baseline" in options))
    with progress(total=turns, desc=suite, unit="run") as bar:

        def show(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        return interleave(suite, contenders, repeats=setting.repeats, progress=show, **options)


def _setting() -> Setting:
    if not _OUTPUT.value:
        raise UsageError("--output is missing: name the directory for results.jsonl and report.html")
    if not _DATA.value and _SUITE.value != "convert":
        raise UsageError("--data is missing: name a dataset directory, made by tools.convert or tools.adopt")
    if not _RAW.value and _SUITE.value in ("convert", "peers", "all"):
        raise UsageError(f"--suite={_SUITE.value} converts images: name a folder of them with --raw_images")
    if _RAW.value and not Path(_RAW.value).is_dir():
        raise UsageError(f"--raw_images={_RAW.value}: no such folder")
    output = Path(_OUTPUT.value).absolute()
    output.mkdir(parents=True, exist_ok=True)
    return Setting(
        output,
        os.path.abspath(_DATA.value),
        _SPLIT.value,
        os.path.abspath(_RAW.value),
        _REPEATS.value,
        _SECONDS.value,
        _IMAGE_SIZE.value,
        _BATCH.value,
        _STEP_RATE.value,
        _PEER_PYTHON.value,
    )


def _gpus() -> int:
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def _tell(setting: Setting) -> None:
    """Draw the report and print the verdict."""
    measurements = load_results(setting.output)
    write_report(setting.output, measurements)
    verdict = ladder_verdict(measurements)
    if verdict is not None:
        print(verdict)
    print(setting.output / "report.html")


SUITES: dict[str, Sequence[Callable[[Setting], list[Measurement]]]] = {
    "short": (ladder, scaling),
    "input": (ladder, input_peers),
    "convert": (convert,),
    "peers": (input_peers, convert),
    "scaling": (scaling,),
    "train": (train,),
    "all": (ladder, scaling, input_peers, train, convert),
}


def cli() -> None:
    """Entry point."""
    run(main)


if __name__ == "__main__":
    cli()
