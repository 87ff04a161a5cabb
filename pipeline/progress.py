"""How far work has come, on stderr: a bar on a terminal; elsewhere (Slurm, nohup, Colab) a line now and then."""

from __future__ import annotations

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
from shardline.pipeline.wording import count

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
    """A tqdm bar with rate and time left, on stderr; lines where stderr is no terminal."""
    bar, lines = _kinds()
    settings |= {"dynamic_ncols": True} if _columns() else {"ncols": COLUMNS, "nrows": ROWS}
    kind = bar if sys.stderr.isatty() else lines
    made = kind(iterable, total=total, desc=desc, unit=f" {unit.strip()}", file=sys.stderr, miniters=1, **settings)
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
    for bar in list(_open_bars):
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

    class Lines(Bar):
        """A bar that writes a line at its start, and then when one is due."""

        _last: tuple[float, float] | None = None  # when the last line was written, and how far things were then

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            """Write a line if one is due; called whenever a bar would be drawn again."""
            at, share = now(), 100 * self.n / self.total if self.total else 0.0
            if self._last is None:
                # A search of unknown length, which most wrong inputs end at once, is told of when it lasts.
                if self.total is not None:
                    work = count(self.total, _one(self.unit), self.unit.strip())
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


def _one(unit: str) -> str:
    """`batch` of ` batches`, `image` of ` images`."""
    noun = unit.strip()
    return noun.removesuffix("es") if noun.endswith(("ches", "shes", "sses", "xes")) else noun.removesuffix("s")


LINE = "{desc}: {n_fmt}/{total_fmt}{unit}, {percentage:.0f}%, {elapsed} so far, {remaining} left, {rate_fmt}{postfix}"
