"""How far work has come, on stderr: a bar on a terminal; elsewhere (Slurm, nohup, Colab) a line now and then."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from shardline.pipeline.text import display
from shardline.pipeline.wording import count, noun_after

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

LINE_SECONDS = 30.0  # a line is due after this,
STEP_PERCENT, STEP_SECONDS = 5, 5.0  # or after this much progress, but not sooner than this
SAY_SECONDS = 4.0  # what has no bar says after this that it goes on
BEAT_SECONDS = 2.0  # a bar that nothing moves is drawn again after this: its clock goes on
COLUMNS, ROWS = 80, 24  # of a terminal that does not tell
now: Callable[[], float] = time.monotonic  # a test's clock goes its own way


def log(text: str) -> None:
    """A line on stderr, or several, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write("\n".join(map(display, text.split("\n"))), file=sys.stderr)


def progress(
    iterable: Iterable[T] | None = None, *, total: int | None, desc: str, unit: str, **settings: Any
) -> tqdm[T]:
    """A tqdm bar with rate and time left, on stderr; lines where stderr is no terminal.

    Args:
      unit: one of what is counted, as `wording.count` takes it: `batch`. With `unit_scale` a unit of measure: `B`.
    """
    bar, lines = _kinds()
    settings |= {"dynamic_ncols": True} if _columns() else {"ncols": COLUMNS, "nrows": ROWS}
    settings.setdefault("bar_format", OPEN_BAR if total is None else BAR)
    kind = bar if sys.stderr.isatty() else lines
    made = kind(iterable, total=total, desc=desc, unit=unit, file=sys.stderr, miniters=1, **settings)
    _keep_alive(made)
    return made


def _columns() -> int:
    """Of the terminal; 0 where it does not tell, as of containers and editors: tqdm would then draw nothing at all."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # no terminal
        return COLUMNS


_watching = threading.Lock()
_open_bars: weakref.WeakSet[tqdm[Any]] = weakref.WeakSet()
_watcher: threading.Thread | None = None  # while there are bars


def _keep_alive(bar: tqdm[Any]) -> None:
    """Have a bar drawn again and again until it is closed: one step of its work may take long."""
    global _watcher
    with _watching:
        _open_bars.add(bar)
        if _watcher is None:
            _watcher = threading.Thread(target=_watch, daemon=True)
            _watcher.start()


def _without_watcher() -> None:
    """In a child made by fork(2), which has none of its parent's threads, and perhaps a lock that stays shut."""
    global _watching, _open_bars, _watcher
    _watching, _open_bars, _watcher = threading.Lock(), weakref.WeakSet(), None


os.register_at_fork(after_in_child=_without_watcher)


def _watch() -> None:
    global _watcher
    while True:
        time.sleep(BEAT_SECONDS)
        _beat()
        with _watching:
            if not _open_bars:
                _watcher = None
                return


def _beat() -> None:
    """Draw all open bars; a function of its own, so that none is held between two beats."""
    with _watching:
        bars = list(_open_bars)
    for bar in bars:
        with bar.get_lock():
            with suppress(OSError, ValueError):  # nobody reads any more
                bar.refresh(nolock=True)  # which a closed one does not do
            if bar.disable:  # closed
                _open_bars.discard(bar)


@contextmanager
def saying(text: str, say: Callable[[str], object] = log, seconds: float = 0.0) -> Iterator[None]:
    """Say now and then that something goes on, and for how long so far, while the block lasts.

    `seconds`: between two times; 0: SAY_SECONDS.
    """
    done, started = threading.Event(), time.monotonic()

    def repeat() -> None:
        while not done.wait(seconds or SAY_SECONDS):
            say(f"{text}, {time.monotonic() - started:.0f} seconds so far")

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@cache
def _kinds() -> tuple[type[tqdm[Any]], type[tqdm[Any]]]:
    """For a terminal and for elsewhere. Made when they are needed: tqdm is not for `--help`."""
    from tqdm import tqdm

    class Bar(tqdm):
        """A bar that looks at the clock with every step, and so needs no thread that does.

        tqdm starts one for each class of bars, and waits for its start with the lock of all bars held. Should that
        thread be the one that collects an old bar as garbage, it wants the lock, and both wait for ever.
        """

        monitor_interval = 0

        @property
        def format_dict(self) -> dict[str, Any]:
            """tqdm's facts, with what formats below use: `things`, the unit after a number, and `pace`."""
            facts: dict[str, Any] = super().format_dict
            rate = facts["rate"] or (facts["n"] - facts["initial"]) / (facts["elapsed"] or math.inf)
            if self.unit_scale:
                return facts | {"things": self.unit, "pace": f"{tqdm.format_sizeof(rate)}{self.unit}/s"}
            things = noun_after(self.n if self.total is None else self.total, self.unit)
            return facts | {"things": f" {things}", "pace": _pace(rate, self.unit)}

    class Lines(Bar):
        """A bar that writes a line at its start, and then when one is due."""

        _last: tuple[float, float] | None = None  # when the last line was written, and how far things were then

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            """Write a line if one is due; called whenever a bar would be drawn again."""
            at, share = now(), 100 * self.n / self.total if self.total else 0.0
            if self._last is None:
                # A search of unknown length, which most wrong inputs end at once, is told of when it lasts.
                if self.total is not None:
                    size = f"{tqdm.format_sizeof(self.total)}{self.unit}"
                    work = size if self.unit_scale else count(self.total, self.unit)
                    self.fp.write(f"{display(self.desc.removesuffix(': '))}: {work}\n")
            else:
                passed = at - self._last[0]
                if passed < LINE_SECONDS and (passed < STEP_SECONDS or share - self._last[1] < STEP_PERCENT):
                    return True
                facts = self.format_dict | {"bar_format": LINE}
                self.fp.write(" ".join(display(tqdm.format_meter(**facts)).split()) + "\n")
            self.fp.flush()
            self._last = at, share
            return True

        def clear(self, nolock: bool = False) -> None:
            """A line that was written stays."""

        def close(self) -> None:
            """Nothing is left to draw over."""
            self.disable = True
            self._decr_instances(self)

    return Bar, Lines


def _pace(rate: float, unit: str) -> str:
    """`2.50 images/s`, `3.20 s/image`."""
    if not rate:
        return f"? {noun_after(0, unit)}/s"
    return f"{rate:.2f} {noun_after(0, unit)}/s" if rate >= 1 else f"{1 / rate:.2f} s/{unit}"


BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt}{things} [{elapsed}<{remaining}, {pace}{postfix}]"
OPEN_BAR = "{desc}: {n_fmt}{things} [{elapsed}, {pace}{postfix}]"
LINE = "{desc}: {n_fmt}/{total_fmt}{things}, {percentage:.0f}%, {elapsed} so far, {remaining} left, {pace}{postfix}"
