"""What one GPU does with the trainer, in a few minutes: every figure is printed and kept as soon as it is measured.

    make gpu-report DATA=DIR OUTPUT=OUT

or, on a machine without a network that has the packages named below,

    pip install --no-deps --no-build-isolation --target /tmp/shardline .
    PYTHONPATH=/tmp/shardline python -m shardline.benchmarks.gpu.report --data DIR --output OUT --seconds 480

Writes OUT/gpu_report.json, OUT/messages.txt and, where the profiler works, OUT/trace.xplane.pb.gz; everything else goes
to a temporary folder. The parts run one after another, the most valuable first, in processes of their own: one that
fails or takes too long leaves what it has measured and the reason, and the next one begins. `--only default,real` runs
some of them; `--tiny` tries everything out on a CPU in a minute or two, and says nothing of speed.

DATA is a dataset of shardline-convert with some thousand images. Needs Python 3.11 or newer with tensorflow[and-cuda],
opencv, simplejpeg, absl, msgspec, pyarrow, psutil, matplotlib, xxhash, google-crc32c and tqdm; no other decoders.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from shardline.pipeline import cli as command_line
from shardline.pipeline.errors import Failure, UsageError
from shardline.pipeline.files import atomic_write, own_directory
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.options import check_options, option
from shardline.trainer import metrics_log
from shardline.trainer.checkpoints import list_checkpoints

Facts: TypeAlias = dict[str, Any]  # JSON values by name
RESULTS, MESSAGES, TRACE = "gpu_report.json", "messages.txt", "trace.xplane.pb.gz"
LARGEST_TRACE = 15e6  # bytes
LEAST_SECONDS = 10.0  # with less left, no part begins
FIGURES = (  # of metrics.jsonl
    "images_per_second", "waiting_percent", "mfu", "nominal_mfu", "tflops", "gpu_memory_gib",
    "gpu_utilization_percent", "gpu_watts", "gpu_mhz", "gpu_pcie_mb_per_second",
)  # fmt: skip
LAST_LINES = 12  # of a process that failed
POLL_SECONDS = 0.02
REPEATABLE = "--xla_gpu_exclude_nondeterministic_ops=true"
AUTOTUNE_CACHES = ("--xla_gpu_per_fusion_autotune_cache_dir", "--xla_gpu_experimental_autotuner_cache_dir")
_NOISE = re.compile(r"WARNING: All log messages before|I\d{4} |W\d{4} .* Input of Generator")
_SMI_FIELDS = (
    "name,driver_version,compute_cap,memory.total,power.limit,clocks.max.sm,clocks.sm,temperature.gpu,"
    "pcie.link.gen.current,pcie.link.width.current,persistence_mode,mig.mode.current"
)


@dataclass(frozen=True)
class ReportConfig:
    """What to measure, and where the figures go."""

    data: str = option(
        "", "dataset directory, made by shardline-convert; without one, the parts that need it are left", path="folder"
    )
    output: str = option("", "folder for the figures", path="folder")
    seconds: float = option(480.0, "time for all parts together; what would go beyond it is cut short", above=0)
    only: str = option("", "parts to run, separated by commas; empty: all")
    tiny: bool = option(False, "a thin network and small images, also on a CPU: to try the parts, not to measure")

    def __post_init__(self) -> None:
        check_options(self)
        if not self.output:
            raise UsageError("--output is missing: name the folder for the figures")
        if unknown := set(self.chosen) - set(PARTS):
            raise UsageError(f"--only={self.only}: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")

    @property
    def chosen(self) -> list[str]:
        """The parts to run, in order."""
        wanted = [name.strip() for name in self.only.split(",") if name.strip()]
        return wanted or list(PARTS)


class Report:
    """The figures so far, on stdout and in a file, whole after each of them."""

    def __init__(self, config: ReportConfig, work: Path) -> None:
        self.config, self.work = config, work
        self.output = Path(config.output)
        self.output.mkdir(parents=True, exist_ok=True)
        self.rows: list[Facts] = []
        self.part = ""
        self.deadline = time.monotonic() + config.seconds
        self._started = time.monotonic()
        self._messages = (self.output / MESSAGES).open("w", encoding="utf-8")

    def add(self, facts: Mapping[str, Any]) -> None:
        """Print and keep some figures."""
        row = {"part": self.part, "at_seconds": round(time.monotonic() - self._started, 1), **facts}
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        text = json.dumps({"argv": sys.argv[1:], "rows": self.rows}, indent=1)
        atomic_write(self.output / RESULTS, text + "\n", durable=False)

    def fail(self, what: str, why: str, messages: Path | None = None) -> None:
        """Keep why something has no figures, with the last lines that a process wrote."""
        lines = messages.read_text(errors="replace").splitlines() if messages and messages.exists() else []
        lines = [line for line in lines if not _NOISE.match(line)]
        self.add({"what": what, "error": why, "last_lines": [line[:400] for line in lines[-LAST_LINES:]]})
        self._messages.write(f"=== {self.part}: {what}: {why}\n" + "".join(f"{line}\n" for line in lines[-400:]))
        self._messages.flush()

    def seconds_left(self, limit: float) -> float:
        """What a process may take of its own limit."""
        limit *= 4 if self.config.tiny else 1  # a CPU compiles slowly
        return max(0.0, min(limit, self.deadline - time.monotonic()))

    def close(self) -> None:
        """Close the messages."""
        self._messages.close()


# Processes ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(
    command: Sequence[str], messages: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, ended with all it started when the context is left."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "1", **(environment or {})}
    with messages.open("wb") as file:
        running = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            env=variables,
            start_new_session=True,
        )
        try:
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            assert running.stdout
            running.stdout.close()


def lines_of(running: subprocess.Popen[bytes], seconds: float) -> Iterator[bytes]:
    """The lines that a process writes, until it ends. Raises TimeoutError when its time is up."""
    assert running.stdout
    deadline, waiting = time.monotonic() + seconds, b""
    while True:
        if not select.select([running.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        found = os.read(running.stdout.fileno(), 1 << 16)
        *lines, waiting = (waiting + found).split(b"\n")
        yield from lines
        if not found:
            return


def measure(report: Report, name: str, seconds: float) -> list[Facts]:
    """The figures of a function of `measurements`, in a process of its own; kept one by one as they come."""
    found: list[Facts] = []
    limit = report.seconds_left(seconds)
    messages = report.work / f"{name}.txt"
    with process(child_command(report, name), messages) as running:
        try:
            for line in lines_of(running, limit):
                found.append(json.loads(line))
                report.add(found[-1])
            if code := running.wait():
                report.fail(name, f"ended with exit code {code}", messages)
        except TimeoutError:
            report.fail(name, f"stopped after {limit:.0f} seconds", messages)
    return found


def child_command(report: Report, name: str) -> list[str]:
    """The command that writes the figures of a function of `measurements`."""
    job = {"data": report.config.data, "tiny": report.config.tiny, "work": str(report.work)}
    return [sys.executable, "-m", "shardline.benchmarks.gpu.measurements", name, json.dumps(job)]


def train(
    report: Report,
    what: str,
    flags: Mapping[str, object],
    *,
    seconds: float = 90,
    environment: Mapping[str, str] | None = None,
    workdir: str = "",
    kill: bool = False,
) -> Facts:
    """The figures of one run of shardline-train, by its metrics.jsonl.

    Args:
      kill: as soon as there is a checkpoint.
    """
    folder = report.work / (workdir or re.sub(r"\W+", "-", what))
    values = {"workdir": folder, **base_flags(report.config), **flags}
    command = [
        sys.executable,
        "-m",
        "shardline.trainer.train",
        *(f"--{name}={value}" for name, value in values.items()),
    ]
    messages, limit = report.work / f"{folder.name}.txt", report.seconds_left(seconds)
    (folder / metrics_log.FILE_NAME).unlink(missing_ok=True)  # of the run that this one continues
    started, result, error = time.monotonic(), b"", ""
    lines: list[tuple[float, Facts]] = []
    with process(command, messages, environment) as running:
        while running.poll() is None and not error:
            time.sleep(POLL_SECONDS)
            lines += [(time.monotonic() - started, line) for line in train_lines(folder)[len(lines) :]]
            if time.monotonic() - started > limit:
                error = f"stopped after {limit:.0f} seconds"
            if kill and list_checkpoints(folder):
                break
        if not error and not kill:
            assert running.stdout
            result = running.stdout.read()
            error = f"ended with exit code {running.returncode}" if running.returncode else ""
        elif kill and running.poll() is not None:
            error = error or "ended before it could be killed"
    lines += [(time.monotonic() - started, line) for line in train_lines(folder)[len(lines) :]]
    facts = {"what": what, "seconds": round(time.monotonic() - started, 2), **run_facts(lines)}
    if result.strip():
        facts |= {"weights_sha256": json.loads(result.splitlines()[-1])["weights_sha256"]}
    report.add(facts)
    if error:
        report.fail(what, error, messages)
    return facts


def train_lines(workdir: Path) -> list[Facts]:
    """The whole lines about training in a run's metrics.jsonl."""
    path = workdir / metrics_log.FILE_NAME
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    values = [json.loads(line) for line in text.split("\n")[:-1]]
    return [line for line in values if line["kind"] == "train"]


def run_facts(lines: Sequence[tuple[float, Facts]]) -> Facts:
    """What (seconds since the start, line) of a run tell: the first is the step that compiles; medians of the others.

    The second line may still hold what happens once; it counts where there is no other.
    """
    if not lines:
        return {}
    (first_seconds, first), *others = lines
    facts: Facts = {"seconds_to_first_step": round(first_seconds, 2), "first_step": first["step"]}
    rows = [line for _, line in others[1:] or others]
    for name in FIGURES:
        found = [row[name] for row in rows if name in row]
        if found:
            facts[name] = round(statistics.median(found), 4)
    if rows:
        facts["slowest_images_per_second"] = min(row["images_per_second"] for row in rows)
        facts["last_step"], facts["loss"] = rows[-1]["step"], rows[-1]["loss"]
    return facts


def base_flags(config: ReportConfig) -> dict[str, object]:
    """What all runs of the report share; steps of synthetic batches unless a part says otherwise."""
    batch, steps = (8, 40) if config.tiny else (128, 200)
    flags: dict[str, object] = {
        "synthetic": True,
        "eval_split": "none",
        "global_batch_size": batch,
        "phases": phases(steps, batch),
        "eval_every_epochs": 1e6,
        "log_every_steps": 10 if config.tiny else 25,
    }
    tiny = {"width": 0.05, "image_size": 32, "peak_tflops": 1.0, "augment_on": "device"}
    return flags | ({**tiny, "precision": "mixed_bfloat16", "jit": True} if config.tiny else {})


def phases(steps: int, batch: int, records: int = 1280) -> str:
    """One phase of so many steps; 1280: records of synthetic data."""
    return f"all:{steps * batch / records:.6g}@1e-3"


# Parts ----------------------------------------------------------------------------------------------------------------


def facts(report: Report) -> None:
    """Driver, versions, devices, the first kernels. Without a GPU, there is nothing to report."""
    smi = shutil.which("nvidia-smi")
    if smi:
        command = [smi, f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            asked = subprocess.run(command, capture_output=True, text=True, timeout=20)
            report.add({"nvidia_smi": (asked.stdout or asked.stderr).strip().splitlines(), "fields": _SMI_FIELDS})
    found = measure(report, "facts", 150)
    devices = [row for row in found if "gpus" in row]
    if devices and not devices[0]["gpus"] and not report.config.tiny:
        report.fail("facts", "TensorFlow sees no GPU", report.work / "facts.txt")
        raise Failure(f"TensorFlow sees no GPU; {report.output / MESSAGES} has what it says of that")


def default(report: Report) -> None:
    """The trainer as a person starts it, at 128 a GPU."""
    train(report, "default flags", {})


def nondeterministic(report: Report) -> None:
    """What determinism costs."""
    train(report, "--nodeterministic", {"deterministic": False})


def same_bits(report: Report) -> None:
    """Whether two runs, and one that is killed and continued, end with the same weights; on DATA if there is any."""
    config, records = report.config, 1280
    steps, batch = (40, 8) if config.tiny else (60, 64)
    flags: dict[str, object] = {"global_batch_size": batch, "checkpoint_every_steps": 10}
    if config.data:
        records = Manifest.load(config.data).split("train").records
        flags |= {"data": config.data, "synthetic": False, "randaugment_layers": 2}
    flags["phases"] = phases(steps, batch, records)
    whole = [train(report, f"run {number} of two equal ones", flags).get("weights_sha256") for number in (1, 2)]
    train(report, "a run that is killed", flags, workdir="killed", kill=True)
    continued = train(report, "the killed run, continued", flags, workdir="killed").get("weights_sha256")
    report.add({
        "two_runs_are_equal": whole[0] is not None and whole[0] == whole[1],
        "killed_and_continued_is_equal": continued is not None and continued == whole[0],
    })  # fmt: skip


def flags(report: Report) -> None:
    """The other way of XLA to the same bits: kernels are timed, and the choices stored. Twice.

    On an H200 with TensorFlow 2.21 it had not finished a step after 90 seconds.
    """
    caches = {flag: report.work / flag.strip("-") for flag in AUTOTUNE_CACHES}
    programs = report.work / "programs"
    for folder in (*caches.values(), programs):
        folder.mkdir()
    environment = {
        "XLA_FLAGS": " ".join([REPEATABLE, *(f"{flag}={folder}" for flag, folder in caches.items())]),
        "TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={programs}",
    }
    for start in ("first", "second"):
        what = f"{REPEATABLE}, stored choices, {start} start"
        found = train(report, what, {"deterministic": False}, environment=environment)
        folders = (*caches.values(), programs)
        stored = {folder.name: sum(1 for path in folder.rglob("*") if path.is_file()) for folder in folders}
        report.add({"what": f"files stored by the {start} start", **stored})
        if "images_per_second" not in found:
            return


def trace(report: Report) -> None:
    """Keep the profiler's trace, if it is small enough to be carried home."""
    found = sorted(report.work.rglob("*.xplane.pb"))
    if found:
        packed = gzip.compress(found[0].read_bytes(), 6)
        if len(packed) < LARGEST_TRACE:
            (report.output / TRACE).write_bytes(packed)


def real(report: Report) -> None:
    """Training on DATA: images/s, waiting, and a profile of some steps."""
    measure(report, "real", 120)
    trace(report)


def verdict(report: Report) -> None:
    """What shardline-benchmark says of this machine."""
    folder, messages = report.work / "benchmark", report.work / "benchmark.txt"
    values = {"data": report.config.data, "output": folder, "suite": "short", "repeats": 1, "seconds": 1}
    values |= (
        {"image_size": 32, "global_batch_size": 8} if report.config.tiny else {"global_batch_size": 128, "width": 1}
    )
    command = [
        sys.executable,
        "-m",
        "shardline.benchmarks.run",
        *(f"--{name}={value}" for name, value in values.items()),
    ]
    limit = report.seconds_left(120)
    with process(command, messages) as running:
        try:
            text = [line.decode(errors="replace") for line in lines_of(running, limit)]
        except TimeoutError:
            return report.fail("benchmark", f"stopped after {limit:.0f} seconds", messages)
        if code := running.wait():
            return report.fail("benchmark", f"ended with exit code {code}", messages)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    report.add({"verdict": [line for line in text if line.strip()][:-1]})
    report.add({"rates": {f"{row['suite']}: {row['name']}": round(row["median"], 1) for row in rows}})
    return None


def measured(name: str, seconds: float) -> Callable[[Report], None]:
    """A part that is one function of `measurements`."""

    def part(report: Report) -> None:
        measure(report, name, seconds)

    return part


# The most valuable first: what comes last may be cut off.
PARTS: dict[str, Callable[[Report], None]] = {
    "facts": facts,
    "default": default,
    "nondeterministic": nondeterministic,
    "real": real,
    "batches": measured("batches", 100),
    "same_bits": same_bits,
    "fc4096": measured("fc4096", 60),
    "evaluation": measured("evaluation", 70),
    "pooling": measured("pooling", 90),
    "augmentation": measured("augmentation", 60),
    "flags": flags,
    "verdict": verdict,
    "real_others": measured("real_others", 60),
}
NEED_DATA = {"real", "evaluation", "augmentation", "verdict", "real_others"}


def gpu_report(config: ReportConfig) -> list[Facts]:
    """Run the chosen parts; all figures, as they are in the file.

    Raises:
      Failure: TensorFlow sees no GPU, or not one part had a figure.
    """
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as folder:
        report = Report(config, Path(folder))
        try:
            for name in config.chosen:
                report.part = name
                if name in NEED_DATA and not config.data:
                    report.fail(name, "left out: no --data")
                elif report.seconds_left(LEAST_SECONDS) < LEAST_SECONDS:
                    report.fail(name, "left out: no time is left")
                else:
                    run_part(report, PARTS[name])
        finally:
            report.close()
    if all("error" in row for row in report.rows):
        raise Failure(f"nothing could be measured; {report.output / MESSAGES} says why")
    return report.rows


def run_part(report: Report, part: Callable[[Report], None]) -> None:
    """Run a part; whatever it breaks on is kept, for there may be no second chance."""
    try:
        part(report)
    except Failure:
        raise
    except Exception as error:
        report.fail(report.part, f"{type(error).__name__}: {error}")


def main(config: ReportConfig) -> None:
    """The command: measure, in a folder that is ours alone."""
    Path(config.output).mkdir(parents=True, exist_ok=True)
    with own_directory(config.output, "--output"):
        gpu_report(config)


def cli() -> None:
    """Run `python -m shardline.benchmarks.gpu.report`."""
    command_line.run(main, ReportConfig, __doc__)


if __name__ == "__main__":
    cli()
