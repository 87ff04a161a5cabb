"""Images per second of a whole conversion, one worker on one core, next to other people's tools.

    python -m shardline.benchmarks.bench_convert --raw_images=DIR [--output=results.jsonl] [--peer_python=PYTHON]

DIR holds photographs (the published figures: 320 ImageNet photographs, 500 x 375). Each contender is a whole command on
a folder and on a larger one; its rate is the difference in images over the difference in seconds (from the median of
the smaller one's), so start-up and report do not count, and everything in between does. All run at once, but only one
at a time, for a quarter of a second each, the others stopped: a machine's speed changes within seconds, and so it
changes for all. The files are in the page cache after the uncounted first turn. The baseline is the loop everybody
writes; it is measured twice as the control. Tools that are not installed are named.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from absl import flags

from shardline.benchmarks.baselines.convert import PEERS
from shardline.benchmarks.measure import (
    CONTROL,
    Rate,
    Spent,
    append_jsonl,
    interleave,
    ratio,
    run_time_sliced,
    save_on_interrupt,
    table,
)
from shardline.pipeline.cli import run
from shardline.pipeline.errors import Failure, UsageError

_RAW = flags.DEFINE_string("raw_images", "", "folder of photographs, at any depth")
_OUTPUT = flags.DEFINE_string("output", "", "file to append the results to, one JSON object a line")
_PEER_PYTHON = flags.DEFINE_string("peer_python", sys.executable, "Python that has the other tools' packages")
_REPEATS = flags.DEFINE_integer("repeats", 5, "counted turns", lower_bound=1)
_SMALL = flags.DEFINE_integer("small", 320, "images of the smaller folder", lower_bound=1)
_LARGE = flags.DEFINE_integer("large", 3200, "images of the larger folder of the fastest; copies", lower_bound=2)
_SCALING = flags.DEFINE_bool(
    "scaling", False, "only ours, with 1 up to all cores: the suite `scaling of the converter`"
)
_CAMERA = flags.DEFINE_integer("camera_images", 60, "12-megapixel images of the second table; 0: none", lower_bound=0)

OURS, TWO_WORKERS, BASELINE = "shardline", "shardline, 2 workers on 2 cores", "plain loop"
TARGETS = ((OURS, BASELINE, 1.2), (TWO_WORKERS, OURS, 1.85), (OURS, "FFCV writer", 2.0), (OURS, "img2dataset", 3.0))
CAMERA_TARGETS = ((OURS, BASELINE, 2.0),)
WHAT = {
    BASELINE: "cv2.imread, INTER_AREA, imencode, tf.train.Example, TFRecordWriter; no checks; one process, one core",
    "TFDS builder": "a GeneratorBasedBuilder that yields the same resized JPEGs; one process, one core",
    "webdataset": "the same resized JPEGs through ShardWriter into tar files; one process, one core",
    "MDSWriter": "the same resized JPEGs through MosaicML's MDSWriter; one process, one core",
    "FFCV writer": "torchvision's ImageFolder, as in its guide, INTER_AREA, DatasetWriter; one worker, one core",
    "FFCV writer, OpenCV": "the same, its images read with cv2.imread; one worker, one core",
    "img2dataset": "short side 256, quality 90, webdataset tars, fetched from a web server here; one process, one core",
}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "NO_ALBUMENTATIONS_UPDATE": "1"}
NEEDS = {"ffcv": ", its build needs pkg-config and OpenCV's C++ headers (opencv4)"}  # package: what pip does not bring
ROOT = Path(__file__).parent.parent
Command = Callable[[str, str], list[str]]  # of source and output


def main() -> None:
    """Two tables: photographs as they are, and as a camera takes them."""
    if not _RAW.value:
        raise UsageError("--raw_images is missing: a folder of photographs")
    photos = sorted(path for path in Path(_RAW.value).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not photos:
        raise UsageError(f"--raw_images={_RAW.value}: no .jpg or .jpeg files")
    if _LARGE.value <= _SMALL.value:
        raise UsageError(f"--large={_LARGE.value} must be more than --small={_SMALL.value}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sizes = (_SMALL.value, _LARGE.value)
        if _SCALING.value:
            measure("scaling of the converter", photos, sizes, [], (), work, workers=128)
            return
        measure("convert", photos, sizes, list(PEERS), TARGETS, work, workers=2)
        if _CAMERA.value:
            sizes = (_CAMERA.value // 4 or 1, _CAMERA.value)
            camera = enlarge(work / "camera", photos, sizes[1])
            # So few images make one shard, which is one worker's.
            measure("convert 12 megapixels", camera, sizes, [BASELINE], CAMERA_TARGETS, work, workers=1)


def measure(
    suite: str,
    photos: Sequence[Path],
    sizes: tuple[int, int],
    peers: Sequence[str],
    targets: Sequence,
    work: Path,
    workers: int,
) -> None:
    """One table, of ours with 1 up to `workers` workers."""
    cores = sorted(os.sched_getaffinity(0))
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= min(workers, len(cores))]
    contenders = {workers_name(n): (ours(n), cores[:n]) for n in counts}
    what = WHAT | {
        name: "shardline-convert with every check, the ledger, the report; as many workers as cores"
        for name in contenders
    }
    absent = {}
    for name in peers:
        missing = packages_missing(name)
        if missing:
            needs = "".join(NEEDS.get(package, "") for package in missing.split())
            absent[name] = f"{missing} not installed{needs}"
            print(f"not measured: {name} ({absent[name]}; see --peer_python)", file=sys.stderr)
        else:
            contenders[name] = (theirs(name), cores[:1])
    baseline = BASELINE if BASELINE in contenders else OURS
    with save_on_interrupt(_OUTPUT.value):
        measured = interleave(
            suite,
            Conversions(contenders, baseline, photos, sizes, work / suite).rates(),
            repeats=_REPEATS.value,
            baseline=baseline,
            what=what,
            settings={
                "baseline": baseline,
                "small": sizes[0],
                "large": sizes[1],
                "resize": "short side 256, JPEG quality 90",
                "absent": absent,
            },
        )
    print(f"{suite}, images/s")
    print(table(measured, baseline))
    by_name = {m.name: m for m in measured}
    noise = ratio(by_name[CONTROL], by_name[baseline])
    print(f"control: {noise[0]:.3f} ({noise[1]:.3f}–{noise[2]:.3f})")
    for one, other, least in targets:
        if one in by_name and other in by_name:
            times = ratio(by_name[one], by_name[other])[0]
            print(f"{one} / {other}: {times:.2f}, wanted {least:.2f} {'reached' if times >= least else 'MISSED'}")
    if _OUTPUT.value:
        append_jsonl(_OUTPUT.value, measured)


def workers_name(count: int) -> str:
    """Of our row with so many workers."""
    return OURS if count == 1 else f"{OURS}, {count} workers on {count} cores"


def ours(workers: int) -> Command:
    """The command line, with every safety and the report on."""
    flags_ = [f"--workers={workers}", "--resize=short", "--size=256", "--quality=90"]
    return lambda source, output: [
        *(sys.executable, "-m", "shardline-convert", "--source", source, "--output", output),
        *flags_,
    ]


def theirs(name: str) -> Command:
    """Another tool's script."""
    script = str(Path(__file__).with_name("convert_peers.py"))
    return lambda source, output: [python_of(name), script, name, source, output]


class Conversions:
    """A turn converts with every contender at once, in slices of time."""

    def __init__(
        self,
        contenders: Mapping[str, tuple[Command, Sequence[int]]],
        baseline: str,
        photos: Sequence[Path],
        sizes: tuple[int, int],
        work: Path,
    ) -> None:
        """Contenders are commands and the cores they may use; sizes those of the smaller and the larger folder."""
        self.baseline, self.photos, self.work = baseline, photos, work
        self.contenders = {**contenders, CONTROL: contenders[baseline]}
        self.small = sizes[0]
        self.large = dict.fromkeys(self.contenders, sizes[1])
        self.turns = 0
        self.starts: dict[str, list[Spent]] = {name: [] for name in self.contenders}
        self.taken: dict[str, list[Rate]] = {name: [] for name in self.contenders}

    def rates(self) -> dict[str, Callable[[], Rate]]:
        """What `interleave` calls, in any order: the first call of a turn does the work of all."""

        def rate(name: str) -> Rate:
            if not self.taken[name]:
                self._turn()
            return self.taken[name].pop(0)

        return {name: partial(rate, name) for name in self.contenders if name != CONTROL}

    def _turn(self) -> None:
        print(f"{self.work.name}: {f'turn {self.turns}' if self.turns else 'uncounted turn'}", file=sys.stderr)
        for _ in range(3):  # a busy machine may have held up the smaller ones
            spent = self._spent_on_more()
            if all(wall > 0 for wall, _ in spent.values()):
                break
        else:
            slow = ", ".join(name for name, (wall, _) in spent.items() if wall <= 0)
            raise Failure(f"{slow}: more images took no longer; quieten the machine or raise --large")
        more = {name: large - self.small for name, large in self.large.items()}
        rates = {name: Rate(more[name] / wall, max(cpu, 0.0) / more[name]) for name, (wall, cpu) in spent.items()}
        for name, rate in rates.items():
            self.taken[self.baseline if name == CONTROL else name].append(rate)
        if not self.turns:  # from now on, all shall end at about the same time
            fastest = max(rate.rate for rate in rates.values())
            for name, rate in rates.items():
                self.large[name] = self.small + max(1, round(rate.rate / fastest * more[name]))
        self.turns += 1

    def _spent_on_more(self) -> dict[str, Spent]:
        """Seconds for the images that each contender's larger folder has more."""
        started = self._convert(dict.fromkeys(self.contenders, self.small))
        finished = self._convert(self.large)
        spent = {}
        for name, (wall, cpu) in finished.items():
            self.starts[name].append(started[name])
            # Starting takes as long as hundreds of images and varies as much: what all turns say of it is steadier.
            wall -= median(start.wall for start in self.starts[name])
            cpu -= median(start.cpu for start in self.starts[name])
            spent[name] = Spent(wall, cpu)
        return spent

    def _convert(self, sizes: Mapping[str, int]) -> dict[str, Spent]:
        """Seconds that each contender takes for so many images."""
        sources = {size: fill(self.work / f"images{size}", self.photos, size) for size in set(sizes.values())}
        commands = {}
        for number, (name, (command, cores)) in enumerate(self.contenders.items()):
            output = self.work / f"output{number}"
            shutil.rmtree(output, ignore_errors=True)
            commands[name] = (command(str(sources[sizes[name]]), str(output)), cores)
        try:
            return run_time_sliced(commands, 0.25, cwd=ROOT, env={**os.environ, **QUIET})
        except RuntimeError as error:
            raise Failure(str(error)) from None


def python_of(name: str) -> str:
    """The baseline needs what we need; the others have a Python of their own."""
    return sys.executable if name in (BASELINE, "TFDS builder") else _PEER_PYTHON.value


def packages_missing(name: str) -> str:
    """Names of the packages that a peer lacks."""
    command = [python_of(name), str(Path(__file__).with_name("convert_peers.py")), name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def fill(folder: Path, photos: Sequence[Path], count: int) -> Path:
    """A class folder of `count` links to the photographs, over and over."""
    if folder.exists():
        return folder
    (folder / "photo").mkdir(parents=True)
    for number in range(count):
        photo = photos[number % len(photos)]
        (folder / "photo" / f"{number:06d}{photo.suffix}").symlink_to(photo.resolve())
    return folder


def enlarge(folder: Path, photos: Sequence[Path], count: int) -> list[Path]:
    """Photographs blown up to 12 megapixels with grain, so that decoding them costs what a camera's files cost."""
    import cv2
    import numpy as np

    folder.mkdir()
    grain = np.random.default_rng(0).normal(0, 4, (3000, 4000, 3)).astype(np.int8)
    made = []
    for number in range(min(count, 12)):
        photo = cv2.imread(str(photos[number % len(photos)]))
        assert photo is not None
        large = cv2.resize(photo, (4000, 3000), interpolation=cv2.INTER_CUBIC)
        made.append(folder / f"{number:03d}.jpg")
        noisy = np.clip(large.astype(np.int16) + np.roll(grain, 97 * number, axis=1), 0, 255).astype(np.uint8)
        cv2.imwrite(str(made[-1]), noisy, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return made


def cli() -> None:
    """Command line."""
    run(main)


if __name__ == "__main__":
    cli()
