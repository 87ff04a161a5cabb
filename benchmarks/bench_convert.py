"""Images per second of whole conversions, one worker on one core, beside other tools.

Each tool converts a small folder and a large one; its rate is the difference in images over the difference in seconds
(from the median of the small one's), so start-up and report do not count, and everything in between does. All run at
once, but only one at a time, for a quarter of a second each, the others stopped: a machine's speed changes within
seconds, and so it changes for all. The files are in the page cache after the warmup turn. The reference is the plain
OpenCV loop. Tools that are not installed are named.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from shardline.benchmarks.baselines import convert as baselines
from shardline.benchmarks.config import BenchConfig
from shardline.benchmarks.images import find_images, twelve_megapixels
from shardline.benchmarks.measure import CONTROL, Measurement, take_turns
from shardline.benchmarks.processes import Rate, Spent, missing_packages, run_time_sliced
from shardline.pipeline.errors import Failure

OURS, REFERENCE = "shardline", "plain loop"
OUR_TEXT = "shardline-convert with every check, the ledger, the report; as many workers as cores"
CAMERA_IMAGES = 60  # that the fastest tool converts in a turn
_SLICE_SECONDS = 0.25
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "NO_ALBUMENTATIONS_UPDATE": "1"}


@dataclass(frozen=True)
class Tool:
    """A command line for a source and an output folder, the cores it may use, and what it does."""

    command: Callable[[str, str], list[str]]
    cores: Sequence[int]
    what: str


def photographs(config: BenchConfig) -> list[Measurement]:
    """Photographs as they are, beside all tools."""
    photos = find_images(config.raw_images)
    return _measure("convert", photos, config, ours(2), list(baselines.CONVERTERS))


def large_images(config: BenchConfig) -> list[Measurement]:
    """Photographs as a camera takes them, beside the plain loop; so few make one shard, which is one worker's."""
    with tempfile.TemporaryDirectory() as folder:
        photos = twelve_megapixels(Path(folder) / "camera", find_images(config.raw_images, 576), 12)
        sizes = (CAMERA_IMAGES // 4, CAMERA_IMAGES)
        return _measure("convert 12 megapixels", photos, config, ours(1), [REFERENCE], sizes)


def scaling(config: BenchConfig) -> list[Measurement]:
    """Ours alone, with 1 up to all cores, as many workers."""
    if not config.raw_images:
        print("not measured: workers of the converter (name a folder with --raw_images)", file=sys.stderr)
        return []
    return _measure("scaling of the converter", find_images(config.raw_images), config, ours(128), [])


def ours(most: int) -> dict[str, Tool]:
    """The command line with 1, 2, 4, … up to `most` workers, with every safety and the report on."""
    cores = sorted(os.sched_getaffinity(0))
    tools = {}
    for count in (2**n for n in range(most.bit_length()) if 2**n <= len(cores)):
        name = OURS if count == 1 else f"{OURS}, {count} workers on {count} cores"
        tools[name] = Tool(partial(_command, count), cores[:count], OUR_TEXT)
    return tools


def _command(workers: int, source: str, output: str) -> list[str]:
    options = [f"--workers={workers}", "--resize=short", "--size=256", "--quality=90"]
    return [sys.executable, "-m", "shardline.tools.convert", f"--source={source}", f"--output={output}", *options]


def _measure(
    suite: str,
    photos: Sequence[Path],
    config: BenchConfig,
    tools: dict[str, Tool],
    others: Sequence[str],
    sizes: tuple[int, int] | None = None,
) -> list[Measurement]:
    """One suite: `tools` of ours and the others that are installed; `sizes` of the small and the large folder."""
    absent = {}
    for name in others:
        converter = baselines.CONVERTERS[name]
        python = sys.executable if converter.in_our_python else config.python
        if missing := missing_packages(python, converter.packages):
            absent[name] = f"{' '.join(missing)} not installed{converter.needs}"
            print(f"not measured: {name} ({absent[name]}; see --baseline_python)", file=sys.stderr)
        else:
            tools[name] = Tool(baselines.command(python, name), sorted(os.sched_getaffinity(0))[:1], converter.text)
    small, large = sizes or (config.convert_images // 10, config.convert_images)
    reference = REFERENCE if REFERENCE in tools else OURS
    with tempfile.TemporaryDirectory() as folder:
        return take_turns(
            suite,
            Conversions(tools, reference, photos, (small, large), Path(folder)).turn,
            repeats=config.repeats,
            reference=reference,
            what={name: tool.what for name, tool in tools.items()},
            settings={"small": small, "large": large, "resize": "short side 256, JPEG quality 90", "absent": absent},
        )


class Conversions:
    """A turn converts with all tools at once, in slices of time."""

    def __init__(
        self, tools: Mapping[str, Tool], reference: str, photos: Sequence[Path], sizes: tuple[int, int], work: Path
    ) -> None:
        self.tools = {**tools, CONTROL: tools[reference]}
        self.photos, self.work = photos, work
        self.small, self.balanced = sizes[0], False
        self.large = dict.fromkeys(self.tools, sizes[1])
        self.starts: dict[str, list[Spent]] = {name: [] for name in self.tools}

    def turn(self, show: Callable[[str], None]) -> dict[str, Rate]:
        """The rate of each tool, and of the control."""
        for _ in range(3):  # a busy machine may have held up the small ones
            spent = self._spent_on_more()
            if all(wall > 0 for wall, _ in spent.values()):
                break
        else:
            slow = ", ".join(name for name, (wall, _) in spent.items() if wall <= 0)
            raise Failure(f"{slow}: more images took no longer; quieten the machine or raise --convert_images")
        more = {name: large - self.small for name, large in self.large.items()}
        rates = {name: Rate(more[name] / wall, max(cpu, 0.0) / more[name]) for name, (wall, cpu) in spent.items()}
        if not self.balanced:  # from now on, all shall end at about the same time
            self.balanced = True
            fastest = max(rate.rate for rate in rates.values())
            for name, rate in rates.items():
                self.large[name] = self.small + max(1, round(rate.rate / fastest * more[name]))
        return rates

    def _spent_on_more(self) -> dict[str, Spent]:
        """Seconds for the images that each tool's large folder has more."""
        started = self._convert(dict.fromkeys(self.tools, self.small))
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
        """Seconds that each tool takes for so many images."""
        sources = {size: fill(self.work / f"images{size}", self.photos, size) for size in set(sizes.values())}
        commands = {}
        for number, (name, tool) in enumerate(self.tools.items()):
            output = self.work / f"output{number}"
            shutil.rmtree(output, ignore_errors=True)
            commands[name] = (tool.command(str(sources[sizes[name]]), str(output)), tool.cores)
        return run_time_sliced(commands, _SLICE_SECONDS, _QUIET)


def fill(folder: Path, photos: Sequence[Path], count: int) -> Path:
    """A class folder of `count` links to the photographs, over and over."""
    if folder.exists():
        return folder
    (folder / "photo").mkdir(parents=True)
    for number in range(count):
        photo = photos[number % len(photos)]
        (folder / "photo" / f"{number:06d}{photo.suffix}").symlink_to(photo.resolve())
    return folder
