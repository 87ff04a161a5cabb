"""Break conversions and trainings in every way that machines do, and compare: `python -m tests.soak --seconds 600`.

Workers and parents are killed at random instants, a small disk fills up, shards and checkpoints are flipped and cut,
clocks of sources move, second owners start. At the end of each, shards, ledger and weights must be those of a run that
nobody disturbed. Prints a table "tried -> result"; exit code 1 if anything differed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.tools.folders import ROOT, class_folders, shard_hashes

SHARDS = 6
ENDED = (0, 1, 2, 130, 143, -signal.SIGKILL, -signal.SIGTERM)


class Soak:
    """One folder of images, what a conversion and a training of it give, and ways to disturb another one."""

    def __init__(self, folder: Path, source: Path | None, seed: int, train: bool, images: int = 24) -> None:
        self.folder, self.random, self.numbers = folder, random.Random(seed), iter(range(10**6))
        self.counts: Counter[str] = Counter()  # of what was done, in words
        self.source = folder / "source"
        if source:
            shutil.copytree(source, self.source)
        else:
            class_folders(self.source, 2, images)
        self.whole = folder / "whole"
        self.must_end(self.convert(self.whole), 0)
        self.shards, self.ledger = self.hashes(self.whole), self.facts(self.whole)["ledger"]
        self.weights = self.trained(folder / "trained") if train else ""

    # Commands ------------------------------------------------------------------------------------------------------

    def start(self, module: str, *arguments: object) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", f"shardline.{module}", *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def convert(self, output: Path, *flags: str) -> subprocess.Popen[str]:
        fixed = ("--name", "images", "--size", 32, "--shards", SHARDS, "--workers", 2, "--noreport")
        return self.start("tools.convert", "--source", self.source, "--output", output, *fixed, *flags)

    def train(self, workdir: Path) -> subprocess.Popen[str]:
        flags = "--phases=all:3@0.05 --global_batch_size=8 --image_size=32 --width=0.03 --precision=float32 --nojit"
        flags += " --checkpoint_every_steps=1 --peak_tflops=1 --seed=3 --strategy=one_device --workers=0"
        return self.start("trainer.train", "--data", self.whole, "--workdir", workdir, *flags.split())

    def must_end(self, process: subprocess.Popen[str], *codes: int) -> str:
        """Standard output of a process that ends by itself, in one of these ways and without a traceback."""
        out, err = process.communicate(timeout=600)
        assert process.returncode in (codes or ENDED), f"exit code {process.returncode}: {err[-1000:]}"
        assert "Traceback" not in err, err[-2000:]
        return out

    def trained(self, workdir: Path) -> str:
        return json.loads(self.must_end(self.train(workdir), 0).splitlines()[-1])["weights_sha256"]

    # Comparing -----------------------------------------------------------------------------------------------------

    def hashes(self, output: Path) -> dict[str, str]:
        return shard_hashes(output)

    def facts(self, output: Path) -> dict[str, object]:
        return json.loads((output / "manifest.json").read_text())

    def must_be_whole(self, output: Path) -> None:
        """The same bytes and ledger as undisturbed, and nothing left of the disturbance."""
        assert self.hashes(output) == self.shards, "other shards"
        assert self.facts(output)["ledger"] == self.ledger, "another ledger"
        left = [path.name for path in output.rglob("*") if path.name.endswith(".tmp") or path.name == ".convert"]
        assert not left, f"left behind: {left}"

    def new(self) -> Path:
        return self.folder / f"output-{next(self.numbers)}"

    def interrupted(self) -> Path:
        """A conversion whose parent was killed when some shards were finished."""
        output = self.new()
        process = self.convert(output)
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            if len(list((output / ".convert").glob("*.receipt.arrow"))) >= 2:
                break
            time.sleep(0.002)
        process.kill()
        process.communicate()
        self.counts["conversions killed"] += 1
        return output

    # Ways to disturb -----------------------------------------------------------------------------------------------

    def kill_worker(self) -> str:
        output = self.new()
        process = self.convert(output)
        killed = 0
        while process.poll() is None:
            time.sleep(self.random.uniform(0, 0.6))
            try:
                workers = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
                if workers and killed < 3:
                    self.random.choice(workers).kill()
                    killed += 1
            except psutil.NoSuchProcess:
                pass
        self.counts["workers killed"] += killed
        self.must_end(process)
        if process.returncode:
            self.must_end(self.convert(output), 0)
        self.must_be_whole(output)
        return f"{killed} workers killed"

    def kill_parent(self) -> str:
        output, kills = self.new(), 0
        for _ in range(3):
            process = self.convert(output)
            time.sleep(self.random.uniform(0.2, 2.5))
            process.send_signal(self.random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            process.communicate(timeout=60)
            kills += process.returncode != 0
        self.counts["conversions killed"] += kills
        self.must_end(self.convert(output), 0)
        self.must_be_whole(output)
        return f"{kills} kills"

    def damage_unfinished(self) -> str:
        output = self.interrupted()
        files = sorted(path for path in (output / ".convert").glob("train-*") if path.stat().st_size)
        for path in self.random.sample(files, min(3, len(files))):
            self.damage(path)
        codes = self.race(output)
        return f"{min(3, len(files))} files, then two at once: exit codes {codes}"

    def damage_finished(self) -> str:
        output = self.new()
        shutil.copytree(self.whole, output)
        path = self.random.choice(sorted(p for p in output.glob("images-*") if not p.name.endswith(".idx")))
        self.damage(path)
        self.must_end(self.convert(output, "--verify"), 2)
        self.must_end(self.convert(output, "--overwrite"), 0)
        self.must_be_whole(output)
        return "noticed"

    def damage(self, path: Path) -> None:
        self.counts["files flipped or cut"] += 1
        data = bytearray(path.read_bytes())
        at = self.random.randrange(len(data))
        if self.random.random() < 0.5:
            del data[at:]
        else:
            data[at] ^= 1 << self.random.randrange(8)
        path.write_bytes(data)

    def move_clocks(self) -> str:
        output = self.interrupted()
        paths = sorted(path for path in self.source.rglob("*") if path.is_file())
        for path in self.random.sample(paths, len(paths) // 2):
            os.utime(path, (self.random.randrange(2 * 10**9), self.random.randrange(2 * 10**9)))
            self.counts["clocks moved"] += 1
        self.must_end(self.convert(output), 0)
        self.must_be_whole(output)
        self.must_end(self.convert(output), 0)  # finished already: the content is the same
        return f"{len(paths) // 2} files"

    def second_owner(self) -> str:
        codes = self.race(self.new(), *["--overwrite"] * self.random.randrange(2))
        return f"exit codes {codes}"

    def race(self, output: Path, *flags: str) -> list[int]:
        """Two conversions of one folder, the second with these flags, too: their exit codes, when all is whole."""
        first = self.convert(output)
        time.sleep(self.random.uniform(0, 1.5))
        second = self.convert(output, *flags)
        self.counts["second owners"] += 1
        self.must_end(first)
        self.must_end(second)
        codes = sorted([first.returncode, second.returncode])
        assert codes in ([0, 1], [0, 0]), codes  # one was refused, or came when all was done
        self.must_be_whole(output)
        return codes

    def fill_disk(self) -> str:
        disk = self.folder / "disk"
        disk.mkdir(exist_ok=True)
        small = self.random.choice([20, 60, 120])
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={small}k", "none", disk]).returncode:
            return "not tried: needs root and mount"
        self.counts["full disks"] += 1
        try:
            self.must_end(self.convert(disk / "d"), 1)
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            self.must_end(self.convert(disk / "d"), 0)
            self.must_be_whole(disk / "d")
        finally:
            subprocess.run(["umount", disk], check=True)
        return f"{small} kB"

    def kill_trainer(self) -> str:
        workdir, kills, flips = self.new(), 0, 0
        for _ in range(2):
            process = self.train(workdir)
            steps, until = self.random.randrange(3, 12), time.monotonic() + 120
            while process.poll() is None and time.monotonic() < until:
                if list((workdir / "checkpoints").glob(f"step-*{steps:02d}.npz")):
                    break
                time.sleep(0.01)
            process.kill()
            process.communicate()
            kills += 1
            if len(found := sorted((workdir / "checkpoints").glob("step-*.npz"))) > 1:
                self.damage(found[-1])
                flips += 1
        self.counts["trainings killed"] += kills
        assert self.trained(workdir) == self.weights, "other weights"
        return f"{kills} kills, {flips} damaged checkpoints"


SHORT = ("damage_unfinished",)
CONVERSION = (*SHORT, "second_owner", "kill_parent", "kill_worker", "damage_finished", "move_clocks", "fill_disk")
TRAINING = ("kill_trainer",)


def main() -> int:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--source", type=Path, help="folder of class folders; default: drawn images")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time; it is printed")
    parser.add_argument("--notrain", action="store_true", help="conversions alone")
    flags = parser.parse_args()
    seed = flags.seed if flags.seed is not None else random.randrange(2**32)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), flags.source, seed, not flags.notrain)
        return run(soak, CONVERSION + TRAINING * (not flags.notrain), flags.seconds, seed)


def run(soak: Soak, ways: tuple[str, ...], seconds: float, seed: int) -> int:
    """Each way in turn until the time is up, at least once each."""
    print(f"{'tried':20} {'times':>5} {'failed':>6} {'seconds':>8}  last result (seed {seed})")
    rows: dict[str, list[float]] = {way: [0, 0, 0.0] for way in ways}
    last = dict.fromkeys(ways, "")
    began = time.monotonic()
    while time.monotonic() - began < seconds or not all(row[0] for row in rows.values()):
        way = min(rows, key=lambda name: rows[name][2])
        act: Callable[[], str] = getattr(soak, way)
        started = time.monotonic()
        try:
            last[way] = act()
        except (AssertionError, subprocess.SubprocessError, OSError) as error:
            rows[way][1] += 1
            last[way] = f"FAILED: {error}"
            print(f"{way}: {error}", file=sys.stderr)
        rows[way][0] += 1
        rows[way][2] += time.monotonic() - started
    for way, (times, failed, spent) in rows.items():
        print(f"{way:20} {times:5} {failed:6} {spent:8.0f}  {last[way].splitlines()[0]}")
    files = sum(path.is_file() for path in soak.source.rglob("*"))
    print(", ".join([f"in all: {files:,} source files", *(f"{n:,} {what}" for what, n in soak.counts.items())]))
    return min(1, int(sum(failed for _, failed, _ in rows.values())))


if __name__ == "__main__":
    sys.exit(main())
