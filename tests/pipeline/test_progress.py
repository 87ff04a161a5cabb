"""Signs of life without a terminal: a line at the start, then one every so often and so far; by a clock of our own."""

import fcntl
import gc
import io
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import threading
import time

import pytest

from shardline.pipeline import progress as module
from shardline.pipeline.progress import LINE_SECONDS, STEP_SECONDS, _pace, log, progress, saying


class Clock:
    """Time that passes only when told to."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "now", clock)
    return clock


@pytest.fixture
def lines(capsys):
    """The lines on stderr since the last call."""
    return lambda: capsys.readouterr().err.splitlines()


def work(clock, total, seconds_each, known=True):
    with progress(total=total if known else None, desc="draw", unit="image", mininterval=0) as bar:
        for _ in range(total):
            clock.seconds += seconds_each
            bar.update()


def test_quick_work_is_announced_once(clock, lines):
    work(clock, 1200, 0.001)
    assert lines() == ["draw: 1,200 images"]


@pytest.mark.parametrize("total, said", [(1, "1 batch"), (2, "2 batches")])
def test_one_thing_is_not_several(total, said, lines):
    with progress(total=total, desc="evaluate", unit="batch"):
        pass
    assert lines() == [f"evaluate: {said}"]


def test_long_work_is_told_of_every_five_percent(clock, lines):
    work(clock, 100, STEP_SECONDS)
    told = lines()
    assert told[0] == "draw: 100 images" and len(told) == 1 + 20
    assert told[1].startswith("draw: 5/100 images, 5%, ") and "left" in told[1]


def test_very_long_work_is_told_of_every_half_minute(clock, lines):
    work(clock, 100, LINE_SECONDS)
    assert len(lines()) == 1 + 100


@pytest.mark.parametrize(
    ("unit", "settings", "said"),
    [
        ("box", {}, r"pack: 1/3 boxes, 33%, 01:0\d so far, 02:\d\d left, 6\d\.\d\d s/box"),
        ("B", {"unit_scale": True}, r"pack: 1\.00/3\.00B, 33%, .* left, 0\.0\dB/s"),
    ],
)
def test_a_unit_is_one_thing_or_several_as_the_number_says(clock, lines, unit, settings, said):
    with progress(total=3, desc="pack", unit=unit, mininterval=0, smoothing=0, **settings) as bar:
        bar.start_t -= 60
        clock.seconds += LINE_SECONDS
        bar.update()
    assert re.fullmatch(said, lines()[-1])


@pytest.mark.parametrize(
    ("rate", "said"), [(0.0, "? images/s"), (0.25, "4.00 s/image"), (1.0, "1.00 images/s"), (2.5, "2.50 images/s")]
)
def test_a_slow_pace_is_told_by_the_thing(rate, said):
    assert _pace(rate, "image") == said


def test_quick_progress_waits_for_its_turn(clock, lines):
    work(clock, 100, STEP_SECONDS / 10)
    assert len(lines()) == 1 + 10


def test_work_of_unknown_length_is_told_of_when_it_lasts(clock, lines):
    work(clock, 6, LINE_SECONDS / 2, known=False)
    told = lines()
    assert len(told) == 3 and told[0].startswith("draw: 2/? images")
    work(clock, 6, 0.001, known=False)
    assert lines() == []


def test_an_iterable_is_passed_on_and_lines_of_log_stand_between(clock, lines):
    seen = []
    for number in progress(range(3), total=3, desc="a\x1b", unit="step"):
        log(f"note {number}")
        seen.append(number)
    assert seen == [0, 1, 2] and lines() == ["a\\x1b: 3 steps", "note 0", "note 1", "note 2"]


@pytest.mark.parametrize(("columns", "longest"), [(0, 80), (60, 60), (120, 120)])
def test_a_terminal_that_does_not_tell_its_width_shows_a_bar_of_80_columns(monkeypatch, columns, longest):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    with os.fdopen(theirs, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        for _ in progress(range(2), total=2, desc="work", unit="file", mininterval=0):
            pass
        shown = ""
        while "2/2" not in shown:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 1 << 16).decode()
    os.close(ours)
    drawn = re.split("[\r\n]+", shown.strip())
    assert "work: 100%" in drawn[-1] and longest - 2 <= max(map(len, drawn)) <= longest


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_share_one_thread_that_ends_with_them(monkeypatch, terminal):
    """tqdm's own can wait for ever for a thread that waits for it, and there was one for each kind of bar."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", screen)
    assert watchers_left(0)
    for _ in range(3):
        with progress(range(3), total=3, desc="work", unit="file") as bar, progress(total=1, desc="x", unit="y"):
            assert list(bar) == [0, 1, 2]
            assert len(watchers()) == 1
    assert watchers_left(0) and "work" in screen.getvalue()
    assert not [thread for thread in threading.enumerate() if "TMonitor" in type(thread).__name__]


def watchers():
    return [thread for thread in threading.enumerate() if "_watch" in thread.name]


def watchers_left(number):
    """Whether so many are left, soon."""
    end = time.monotonic() + 60
    while len(watchers()) != number and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    return len(watchers()) == number


def test_a_bar_of_a_forked_child_lives_too(monkeypatch):
    """Threads do not survive fork(2), and its parent may hold the lock of the bars just then."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress(total=1, desc="x", unit="y"), module._watching:
        child = os.fork()
        if not child:
            signal.alarm(60)
            try:
                with progress(total=1, desc="x", unit="y"):
                    os._exit(len(watchers()))
            finally:
                os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_bars_that_are_garbage_hold_nobody_up(monkeypatch):
    """A bar that is collected is closed, which wants the lock of all bars, in whatever thread collects it."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.0001)
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    def forget():
        for _ in range(200):
            bar = progress(total=1, desc="x", unit="y")
            bar.itself = [bar]  # for the collector alone
            gc.collect(0)

    threads = [threading.Thread(target=forget, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and watchers_left(0)


def test_what_has_no_bar_is_said_again_and_again(monkeypatch, lines):
    monkeypatch.setattr(module, "SAY_SECONDS", 0.01)
    with saying("waiting"):
        threading.Event().wait(0.2)
    assert lines().count("waiting, 0 seconds so far") > 1


def test_a_bar_that_nothing_moves_still_tells_that_it_lives(clock, monkeypatch):
    """Into a stream of our own: what a thread writes while `capsys` empties its own is lost."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(total=2, desc="compile", unit="program"):
        for number in range(1, 4):
            clock.seconds += LINE_SECONDS
            end = time.monotonic() + 60
            while len(stream.getvalue().splitlines()) < 1 + number and time.monotonic() < end:
                time.sleep(0.01)
            told = stream.getvalue().splitlines()
            assert len(told) == 1 + number and told[-1].startswith("compile: 0/2 programs"), told
    clock.seconds += 10 * LINE_SECONDS
    time.sleep(0.1)
    assert stream.getvalue().splitlines() == told  # it was closed
