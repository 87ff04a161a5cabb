"""How soon and how often each command says that it lives: `python -m tests.signs_of_life --output after.json`.

Runs every command on the demo's data, on a terminal and with its output piped away, and prints a table: seconds until
the first output, the longest silence, and what was said before it. Of an older version, whose commands are modules:

    python -m tests.signs_of_life --typed 'env PYTHONPATH=OLD python -m {folder}.{module}' --output before.json
    python -m tests.signs_of_life --output after.json --before before.json

Seconds mean something on an idle machine only. `--only convert,train` runs some, after what they need.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from shardline.pipeline.commands import COMMANDS

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
TRAIN = (
    "--weights none --head gap --dropout 0 --phases all:2@2e-2 --image_size 48 --crop_area 0.7,1 --crop_ratio 0.9,1.11 "
    "--global_batch_size 32 --logical_cpus 2"
)
# Each command with its arguments: PLACE is a folder of its own, so that every one is run twice. In this order.
RUNS = {
    "sample-data": "--output PLACE/photos",
    "convert": "--source photos --output PLACE/data --size 54 --splits train=0.75,validation=0.05,test=0.2",
    "verify": "data",
    "doctor": "",
    "inspect": "data --save PLACE/grid.png",
    "adopt": "PLACE/adopted",
    "train": f"--data data --workdir PLACE/run {TRAIN}",
    "evaluate": "--run run --data data --split test --output PLACE/evaluation",
    "predict": "--run run --input photos/*/*0001.* --output PLACE/predictions.csv --gallery PLACE/predictions.png",
    "export": "--run run --output PLACE/exported",
    "compare": "run evaluation --output PLACE/compared",
    "benchmark": "--data data --suite short --repeats 1 --seconds 0.1 --image_size 48 --output PLACE/report",
    "browse": "data --run evaluation",
}
KEPT = {"sample-data": "photos", "convert": "data", "train": "run", "evaluate": "evaluation"}  # for those after them
SERVES = {"browse": b"http://"}  # what ends the start of a command that then waits: it is stopped


@dataclass(frozen=True)
class Observed:
    """What was seen of one run. Seconds; `before`: the last words before the longest silence."""

    code: int
    first: float
    longest: float
    before: str
    total: float


Found = dict[str, dict[str, Observed]]  # by command and KINDS
KINDS = "terminal", "pipe"


def watch(command: list[str], folder: Path, terminal: bool, until: bytes = b"") -> Observed:
    """Run a command, and note when it says something: on a terminal of 80 columns, or into a pipe."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    first, longest, before, said, last = 0.0, 0.0, "(its start)", b"", start
    stopped = False
    while True:
        data = _read(ours)
        now = time.monotonic()
        if not stopped and now - last > longest:
            longest, before = now - last, _last_words(said) or before
        last, said = now, said + data
        if not first and CONTROL.sub("", data.decode(errors="replace")).strip():
            first = now - start
        if until and until in said and not stopped:
            stopped = True
            process.send_signal(signal.SIGINT)
        if not data:
            break
    os.close(ours)
    code = process.wait()
    if code and not stopped:
        print(said.decode(errors="replace")[-500:], file=sys.stderr)
    return Observed(0 if stopped else code, first, longest, before, time.monotonic() - start)


def _read(file: int) -> bytes:
    """What comes next; nothing when the other end is closed."""
    select.select([file], [], [])
    try:
        return os.read(file, 1 << 16)
    except OSError:  # how Linux tells it of a terminal
        return b""


def _last_words(said: bytes) -> str:
    lines = [line for line in re.split(r"[\r\n]+", CONTROL.sub("", said.decode(errors="replace"))) if line.strip()]
    return lines[-1].strip()[:60] if lines else ""


def typed(template: str, name: str) -> list[str]:
    """The command as it is started."""
    _, folder, module = COMMANDS[name].module.split(".")
    bin_folder = Path(sys.executable).parent
    return shlex.split(template.format(bin=bin_folder, name=name, folder=folder, module=module))


def arguments(name: str, place: str, folder: Path) -> list[str]:
    """What is typed after a command: patterns are left to it."""
    if name == "adopt":  # a copy of the shards, without what a conversion wrote about them
        adopted = folder / place / "adopted"
        adopted.mkdir()
        for shard in (folder / "data").glob("*.tfrecord-*[0-9]"):
            os.link(shard, adopted / shard.name)
    return shlex.split(RUNS[name].replace("PLACE", place))


def needed(names: list[str]) -> set[str]:
    """These commands and all whose results they read."""
    found = {*names, "convert"}
    for name in reversed(RUNS):
        if name in found:
            words = re.split("[ /]", RUNS[name])
            found |= {maker for maker, kept in KEPT.items() if kept in words and maker != name}
    return found


def observe(template: str, names: list[str], kinds: list[str], folder: Path, demo: Path | None, output: Path) -> Found:
    """Each command on a terminal, into a pipe, or both; `output` has what was seen so far."""
    found: Found = {}
    for name in (name for name in RUNS if name in needed(names)):
        if demo and name in KEPT and name not in names:
            (folder / KEPT[name]).symlink_to(demo.absolute() / KEPT[name])
            continue
        found[name] = {}
        for kind in kinds:
            place = f"{name}-{kind}"
            (folder / place).mkdir()
            command = [*typed(template, name), *arguments(name, place, folder)]
            print(f"{kind}: {shlex.join(command)}", file=sys.stderr, flush=True)
            found[name][kind] = watch(command, folder, kind == "terminal", SERVES.get(name, b""))
            write(output, {name: found[name] for name in found if name in names})
        if name in KEPT:
            (folder / KEPT[name]).symlink_to(folder / f"{name}-{kinds[0]}" / KEPT[name])
    return {name: found[name] for name in found if name in names}


def write(output: Path, found: Found) -> None:
    """Keep what was seen of some commands, beside what the file holds of others."""
    plain = {name: {kind: asdict(seen) for kind, seen in kinds.items()} for name, kinds in found.items()}
    earlier = json.loads(output.read_text()) if output.exists() else {}
    merged = earlier | {name: earlier.get(name, {}) | kinds for name, kinds in plain.items()}
    output.write_text(json.dumps(merged, indent=1) + "\n")


def read(path: Path) -> Found:
    """What `write` kept."""
    return {
        name: {kind: Observed(**seen) for kind, seen in kinds.items()}
        for name, kinds in json.loads(path.read_text()).items()
    }


def table(found: Found) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| command | first sign, terminal | longest silence | after | first sign, pipe | longest silence | after |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, kinds in found.items():
        cells = []
        for seen in map(kinds.get, KINDS):
            if seen is None:
                cells += ["–"] * 3
                continue
            words = seen.before.replace("|", "\\|")
            failed = f" (exit {seen.code})" if seen.code else ""
            cells += [f"{seen.first:.1f} s", f"{seen.longest:.1f} s of {seen.total:.0f}{failed}", f"`{words}`"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Observe, print the table, and save what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--typed", default="{bin}/shardline-{name}", help="how a command is started; {bin}, {name}, "
                        "{folder} and {module} are filled in")  # fmt: skip
    parser.add_argument("--only", default=",".join(RUNS), help="commands to run, by name")
    parser.add_argument("--kinds", default=",".join(KINDS), help="where output goes; a later call adds the other")
    parser.add_argument("--demo", type=Path, help="what `make demo` left, for commands that --only leaves out")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for what was seen, command by command")
    parser.add_argument("--before", type=Path, help="such a file of an older version, for a table of both")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names, kinds = settings.only.split(","), settings.kinds.split(",")
        observe(settings.typed, names, kinds, Path(folder), settings.demo, settings.output)
    if settings.before:
        print("\n".join(["Before:", "", *table(read(settings.before)), "", "After:", ""]))
    print("\n".join(table(read(settings.output))))


if __name__ == "__main__":
    main()
