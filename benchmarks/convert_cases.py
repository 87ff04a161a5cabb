"""Images per second of a whole conversion, one worker on one core, next to other people's tools.

    python -m benchmarks.convert_cases --raw_images=DIR [--output=results.jsonl] [--peer_python=PYTHON]

DIR holds photographs (the published figures: 320 ImageNet photographs, 500 x 375). Each contender is a whole command
on a folder and on a larger one; its rate is the difference in images over the difference in seconds (from the median of
the smaller one's), so start-up and report do not count, and everything in between does. The files are in the page cache
after the uncounted first turn. The baseline is the loop everybody writes; it is measured twice as the control. Tools
that are not installed are named.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from absl import flags

from benchmarks.convert_peers import PEERS
from benchmarks.measure import CONTROL, Rate, append_jsonl, interleave, keeping, ratio, table
from pipeline.cli import Failure, UsageError, run

_RAW = flags.DEFINE_string("raw_images", "", "folder of photographs, at any depth")
_OUTPUT = flags.DEFINE_string("output", "", "file to append the results to, one JSON object a line")
_PEER_PYTHON = flags.DEFINE_string("peer_python", sys.executable, "Python that has the other tools' packages")
_REPEATS = flags.DEFINE_integer("repeats", 5, "counted turns", lower_bound=1)
_SMALL = flags.DEFINE_integer("small", 320, "images of the smaller folder", lower_bound=1)
_LARGE = flags.DEFINE_integer("large", 3200, "images of the larger folder; copies of the photographs", lower_bound=2)
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
    "FFCV writer, OpenCV": "the same, its pictures read with cv2.imread; one worker, one core",
    "img2dataset": "short side 256, quality 90, webdataset tars, fetched from a web server here; one process, one core",
}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "NO_ALBUMENTATIONS_UPDATE": "1"}
FFCV_BUILD = ", its build needs pkg-config and OpenCV's C++ headers (opencv4)"
NEEDS = {"FFCV writer": FFCV_BUILD, "FFCV writer, OpenCV": FFCV_BUILD}
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
        sources = [fill(work / f"photos{size}", photos, size) for size in sizes]
        if _SCALING.value:
            measure("scaling of the converter", sources, sizes, [], (), work, workers=128)
            return
        measure("convert", sources, sizes, list(PEERS), TARGETS, work, workers=2)
        if _CAMERA.value:
            sizes = (_CAMERA.value // 4 or 1, _CAMERA.value)
            camera = enlarge(work / "camera", photos, sizes[1])
            sources = [fill(work / f"camera{size}", camera, size) for size in sizes]
            # So few pictures make one shard, which is one worker's.
            measure("convert 12 megapixels", sources, sizes, [BASELINE], CAMERA_TARGETS, work, workers=1)


def measure(
    suite: str,
    sources: Sequence[Path],
    sizes: Sequence[int],
    peers: Sequence[str],
    targets: Sequence,
    work: Path,
    workers: int,
) -> None:
    """One table, of ours with 1 up to `workers` workers."""
    cores = sorted(os.sched_getaffinity(0))
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= min(workers, len(cores))]
    contenders = {workers_name(n): contender(ours(n), cores[:n], sources, sizes, work) for n in counts}
    what = WHAT | {
        name: "tools.convert with every check, the ledger, the report; as many workers as cores" for name in contenders
    }
    absent = {}
    for name in peers:
        missing = packages_missing(name)
        if missing:
            absent[name] = f"{missing} not installed{NEEDS.get(name, '')}"
            print(f"not measured: {name} ({absent[name]}; see --peer_python)", file=sys.stderr)
        else:
            contenders[name] = contender(theirs(name), cores[:1], sources, sizes, work)
    baseline = BASELINE if BASELINE in contenders else OURS
    with keeping(_OUTPUT.value):
        measured = interleave(
            suite,
            contenders,
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
            progress=lambda name: print(f"{suite}: {name}", file=sys.stderr),
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
        *(sys.executable, "-m", "tools.convert", "--source", source, "--output", output),
        *flags_,
    ]


def theirs(name: str) -> Command:
    """Another tool's script."""
    script = str(Path(__file__).with_name("convert_peers.py"))
    return lambda source, output: [python_of(name), script, name, source, output]


def contender(
    command: Callable[[str, str], list[str]],
    cores: list[int],
    sources: Sequence[Path],
    sizes: Sequence[int],
    work: Path,
) -> Callable[[], Rate]:
    """Runs a command on both folders; the rate is that of the images the larger one has more."""

    def convert(source: Path) -> tuple[float, float]:
        """Seconds on the wall, and of CPU."""
        output = work / "output"
        shutil.rmtree(output, ignore_errors=True)
        before, started = os.times(), time.perf_counter()
        result = subprocess.run(
            command(str(source), str(output)),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **QUIET},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        wall, after = time.perf_counter() - started, os.times()
        if result.returncode:
            raise Failure(f"{' '.join(command('SOURCE', 'OUTPUT'))}: {result.stderr.strip()[-300:]}")
        return wall, after.children_user + after.children_system - before.children_user - before.children_system

    starts: list[tuple[float, float]] = []

    def rate() -> Rate:
        more = sizes[1] - sizes[0]
        for _ in range(3):  # a busy machine may hold one up
            starts.append(convert(sources[0]))
            wall, cpu = convert(sources[1])
            # Starting takes as long as hundreds of images and varies as much: what all turns say of it is steadier.
            wall, cpu = wall - median(start[0] for start in starts), cpu - median(start[1] for start in starts)
            if wall > 0:
                return Rate(more / wall, max(cpu, 0.0) / more)
        raise Failure(
            f"{' '.join(command('SOURCE', 'OUTPUT'))}: {sizes[1]} images took no longer than {sizes[0]}; quieten the "
            "machine or raise --large"
        )

    return rate


def python_of(name: str) -> str:
    """The baseline needs what we need; the others have a Python of their own."""
    return sys.executable if name in (BASELINE, "TFDS builder") else _PEER_PYTHON.value


def packages_missing(name: str) -> str:
    """Names of the packages that a peer lacks."""
    command = [python_of(name), str(Path(__file__).with_name("convert_peers.py")), name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def fill(folder: Path, photos: Sequence[Path], count: int) -> Path:
    """A class folder of `count` links to the photographs, over and over."""
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
