"""Fuzz every target in turn and print what was tried: `python -m tests.fuzz --seconds 600`.

Coverage-guided with atheris where it is installed, else with the mutations that the tests use. Each target runs in a
process of its own, so that a decoder that crashes or hangs is found, too. What crashes is kept under
tests/corpus/TARGET, where tests/fuzz/test_fuzz.py runs it from then on.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib.util
import mmap
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.target import CORPUS, SOURCE

SLOW_SECONDS = 20  # for one input: a hang
MEMORY_MB = 4000
CURRENT = "crash-current"  # what was tried when a process died: its size, and it
SHOWN = 2000  # characters of a traceback


def main() -> int:
    """The table; 1 if anything crashed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--engine", choices=["atheris", "mutations"], help="default: atheris if installed")
    parser.add_argument("--source", help="folder of images to change, beside our own")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", help="default: all")
    flags = parser.parse_args()
    if flags.source:
        os.environ[SOURCE] = flags.source
    engine = flags.engine or ("atheris" if importlib.util.find_spec("atheris") else "mutations")
    if flags.worker:
        (with_atheris if engine == "atheris" else with_mutations)(flags.worker, flags.seconds, Path(flags.folder))
        return 0
    from tests.fuzz.targets import TARGETS

    chosen = flags.targets or list(TARGETS)
    crashed = 0
    print(f"{'target':18} {'inputs':>10} {'seconds':>8}  result ({engine})")
    for name in chosen:
        began = time.monotonic()
        inputs, crashes, words = run(name, flags.seconds / len(chosen), engine)
        result = f"crashed on {', '.join(crashes)}" if crashes else "no crash, no hang"
        print(f"{name:18} {inputs:10,} {time.monotonic() - began:8.0f}  {result}", flush=True)
        if crashes:
            print(words[-SHOWN:])
        crashed += len(crashes)
    return min(crashed, 1)


def run(name: str, seconds: float, engine: str) -> tuple[int, list[str], str]:
    """Inputs tried, new files in the corpus, and the last words of the process that tried them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.fuzz", "--worker", name, "--folder", folder]
        command += ["--seconds", str(seconds), "--engine", engine]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        words = result.stdout + result.stderr
        count = re.findall(r"stat::number_of_executed_units: *(\d+)", words)
        found = sorted(Path(folder).glob("crash-*"))
        crashes = []
        for path in found:
            data = path.read_bytes()
            if path.name == CURRENT:
                data = data[8 : 8 + int.from_bytes(data[:8], "little")]
            target = CORPUS / name / f"crash-{hashlib.sha256(data).hexdigest()[:16]}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            crashes.append(str(target.relative_to(CORPUS)))
        if result.returncode and not crashes:
            crashes.append(f"(no input kept; exit code {result.returncode})")
    return int(count[-1]) if count else 0, crashes, words


def with_atheris(name: str, seconds: float, folder: Path) -> None:
    """Coverage-guided, until the first crash or the end of the time."""
    import atheris

    with atheris.instrument_imports(include=["shardline"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    seeds = folder / "corpus"
    seeds.mkdir()
    for number, data in enumerate(target.corpus(name)):
        target(data)
        (seeds / str(number)).write_bytes(data)
    settings = [f"-max_total_time={int(seconds)}", f"-timeout={SLOW_SECONDS}", f"-rss_limit_mb={MEMORY_MB}"]
    settings += [f"-artifact_prefix={folder}/crash-", "-print_final_stats=1", "-max_len=65536", "-verbosity=0"]
    atheris.Setup([name, *settings, str(seeds)], target)
    atheris.Fuzz()


def with_mutations(name: str, seconds: float, folder: Path) -> None:
    """Changed copies of the corpus, until the first crash or the end of the time."""
    from tests.fuzz.mutate import mutated
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    corpus = target.corpus(name)
    current = folder / CURRENT
    tried, began = 0, time.monotonic()
    with open(current, "w+b") as file:
        file.truncate(1 << 22)
        with mmap.mmap(file.fileno(), 0) as shown:  # a page that the kernel keeps when this process dies
            while time.monotonic() - began < seconds:
                data = corpus[tried] if tried < len(corpus) else mutated(corpus, tried)
                shown[: 8 + len(data)] = len(data).to_bytes(8, "little") + data
                faulthandler.dump_traceback_later(SLOW_SECONDS, exit=True)
                target(data)
                tried += 1
    faulthandler.cancel_dump_traceback_later()
    current.unlink()
    print(f"stat::number_of_executed_units: {tried}")


if __name__ == "__main__":
    sys.exit(main())
