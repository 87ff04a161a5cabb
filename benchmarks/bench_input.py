"""BatchBuilder per second of the input pipeline, next to other people's, on the same images and cores.

    python -m shardline.benchmarks.bench_input --data=DIR [--output=results.jsonl] [--peer_python=PYTHON]

DIR is a dataset of JPEGs (the published figures: photographs at short side 256, quality 90). Its first split is copied
as raw pixels and as plain files for those who need them so. Every contender has its own process, pinned to its cores,
and they take turns. Contenders whose packages are not installed are skipped and named on stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from shardline.benchmarks.baselines.input import NOT_MEASURED, PEERS, doc, prepare
from shardline.benchmarks.measure import CONTROL, Measurement, Rate, append_jsonl, interleave, machine, ratio, table
from shardline.pipeline.cli import progress, run
from shardline.pipeline.errors import UsageError
from shardline.pipeline.machine import available_cores

_DATA = flags.DEFINE_string("data", "", "dataset of JPEGs, made by shardline-convert")
_OUTPUT = flags.DEFINE_string("output", "", "file to append the results to, one JSON object a line")
_PEER_PYTHON = flags.DEFINE_string("peer_python", sys.executable, "Python that has the other loaders' packages")
_REPEATS = flags.DEFINE_integer("repeats", 7, "counted turns", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 2.0, "length of one contender's turn", lower_bound=0.1)
_BATCH = flags.DEFINE_integer("batch_size", 64, "images a batch", lower_bound=1)
_SIZE = flags.DEFINE_integer("image_size", 224, "side of the images in the batches, pixels", lower_bound=1)

TWO_CORES = "shardline host, 2 cores"
HOST, DEVICE, STORED = "shardline host", "shardline device", "shardline host, in stored order"
RAW_HOST, RAW_DEVICE = "shardline raw, host", "shardline raw, device"
DECODE, GARDEN = "TensorFlow, decode only", "Model Garden, float32"
TORCH, GRAIN = "PyTorch DataLoader + OpenCV", "Grain + ArrayRecord + OpenCV"

TARGETS = (  # who, against whom, at least
    (HOST, GARDEN, 2.0),
    (HOST, TORCH, 1.0),
    (HOST, GRAIN, 1.2),
    (DEVICE, TORCH, 1.35),
    (DEVICE, DECODE, 1.0),
    (RAW_HOST, DECODE, 3.0),
    (RAW_DEVICE, DECODE, 3.0),
    (HOST, STORED, 0.9),
    (TWO_CORES, HOST, 1.85),
)


@dataclass
class Contender:
    """A process that makes batches for a while whenever it is told to."""

    process: subprocess.Popen[str]
    seconds: float

    def __call__(self) -> Rate:
        """Take one turn."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{self.seconds}\n")
        self.process.stdin.flush()
        result = json.loads(self.process.stdout.readline())
        return Rate(result["images"] / result["wall"], result["cpu"] / result["images"])


def start(name: str, folder: Path, *, batch: int, size: int, seconds: float, peer_python: str) -> Contender | str:
    """A contender's process, ready to go; or the packages it misses."""
    cores = sorted(os.sched_getaffinity(0))[: 2 if name == TWO_CORES else 1]
    peer = HOST if name == TWO_CORES else name
    ours = not PEERS[peer][1]
    path = str(Path(__file__).parent.parent) if ours else ""
    process = subprocess.Popen(
        [sys.executable if ours else peer_python, str(Path(__file__).with_name("input_peers.py")), peer, str(folder),
         str(batch), str(size), str(len(cores))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    assert process.stdout and process.stderr
    answer = process.stdout.readline().split()
    if answer == ["ready"]:
        return Contender(process, seconds)
    process.wait()
    return " ".join(answer[1:]) if answer[:1] == ["missing"] else process.stderr.read().strip().splitlines()[-1]


def measure(
    data: str,
    *,
    repeats: int,
    seconds: float,
    batch: int = 64,
    size: int = 224,
    peer_python: str = sys.executable,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[list[Measurement], dict[str, str]]:
    """All contenders that can run here, and why the others cannot."""
    skipped: dict[str, str] = {}
    contenders: dict[str, Contender] = {}
    names = list(PEERS) if available_cores() < 2 else [*PEERS, TWO_CORES]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(data, folder)
        try:
            for name in names:
                started = start(name, folder, batch=batch, size=size, seconds=seconds, peer_python=peer_python)
                if isinstance(started, Contender):
                    contenders[name] = started
                else:
                    skipped[name] = started
            skipped |= NOT_MEASURED
            measured = interleave(
                "input",
                contenders,
                repeats=repeats,
                baseline=HOST,
                what={name: doc(HOST if name == TWO_CORES else name) for name in contenders},
                settings={"batch_size": batch, "image_size": size, "data": Path(data).name, "absent": skipped},
                progress=progress,
            )
        finally:
            for contender in contenders.values():
                contender.process.kill()
                contender.process.wait()
    return measured, skipped


def verdicts(measured: list[Measurement]) -> list[str]:
    """Each target, with what was reached."""
    by_name = {measurement.name: measurement for measurement in measured}
    lines = []
    for who, against, wanted in TARGETS:
        if who in by_name and against in by_name:
            middle, low, high = ratio(by_name[who], by_name[against])
            word = "met" if middle >= wanted else "MISSED"
            per_core = (by_name[who].per_core or 0) / (by_name[against].per_core or 1)
            lines.append(
                f"{word:6} {who} / {against}: {middle:.2f} ({low:.2f} to {high:.2f}), wanted {wanted:.2f}; "
                f"per second of CPU {per_core:.2f}"
            )
    return lines


def main() -> None:
    """Measure, store, print."""
    if not _DATA.value:
        raise UsageError("--data is missing: name a dataset of JPEGs, made by shardline-convert")
    turns = (_REPEATS.value + 1) * (len(PEERS) + 2)
    with progress(total=turns, desc="input", unit="turn") as bar:

        def show(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        measured, skipped = measure(
            _DATA.value,
            repeats=_REPEATS.value,
            seconds=_SECONDS.value,
            batch=_BATCH.value,
            size=_SIZE.value,
            peer_python=_PEER_PYTHON.value,
            progress=show,
        )
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    facts = machine()
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['versions']}")
    print(table([m for m in measured if m.name != CONTROL] + [m for m in measured if m.name == CONTROL], HOST))
    print(*verdicts(measured), sep="\n")
    if _OUTPUT.value:
        append_jsonl(_OUTPUT.value, measured)


def cli() -> None:
    """Entry point."""
    run(main)


if __name__ == "__main__":
    cli()
