"""Signs of life without a terminal: a line at the start, then one every so often and so far; by a clock of our own."""

import io
import sys
import threading

import pytest

from shardline.pipeline import progress as module
from shardline.pipeline.progress import LINE_SECONDS, STEP_SECONDS, log, progress


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
    assert lines() == ["draw: 1,200 image"]


def test_long_work_is_told_of_every_five_percent(clock, lines):
    work(clock, 100, STEP_SECONDS)
    told = lines()
    assert told[0] == "draw: 100 image" and len(told) == 1 + 20
    assert told[1].startswith("draw: 5/100 image, 5%, ") and "left" in told[1]


def test_very_long_work_is_told_of_every_half_minute(clock, lines):
    work(clock, 100, LINE_SECONDS)
    assert len(lines()) == 1 + 100


def test_quick_progress_waits_for_its_turn(clock, lines):
    work(clock, 100, STEP_SECONDS / 10)
    assert len(lines()) == 1 + 10


def test_work_of_unknown_length_is_told_of_when_it_lasts(clock, lines):
    work(clock, 6, LINE_SECONDS / 2, known=False)
    told = lines()
    assert len(told) == 3 and told[0].startswith("draw: 2/? image")
    work(clock, 6, 0.001, known=False)
    assert lines() == []


def test_an_iterable_is_passed_on_and_lines_of_log_stand_between(clock, lines):
    seen = []
    for number in progress(range(3), total=3, desc="a\x1b", unit="step"):
        log(f"note {number}")
        seen.append(number)
    assert seen == [0, 1, 2] and lines() == ["a\\x1b: 3 step", "note 0", "note 1", "note 2"]


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_start_no_threads(monkeypatch, terminal):
    """tqdm's monitor can wait for ever for a thread that waits for it, and there was one for each bar."""
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", screen)
    before = threading.active_count()
    for _ in range(3):
        with progress(range(3), total=3, desc="work", unit="file") as bar:
            assert list(bar) == [0, 1, 2]
    assert threading.active_count() == before and "work" in screen.getvalue()
