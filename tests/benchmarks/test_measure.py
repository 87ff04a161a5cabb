"""Canned rates in, the table's numbers out; contenders really take turns."""

import os
import sys
import time

import pytest

from shardline.benchmarks.measure import (
    CONTROL,
    Interrupted,
    Measurement,
    Rate,
    WorkerProcess,
    append_jsonl,
    interleave,
    load_jsonl,
    machine,
    ratio,
    run_time_sliced,
    save_on_interrupt,
    table,
    timed,
)


def test_contenders_take_turns_and_the_warm_up_is_not_counted():
    order = []

    def contender(name, rates):
        rates = iter(rates)
        return lambda: order.append(name) or next(rates)

    measured = interleave(
        "toy",
        {"a": contender("a", [999, 999, 10, 11, 20, 21]), "b": contender("b", [999, 30, 40])},
        repeats=2,
        baseline="a",
    )
    assert order == ["a", "b", "a", "a", "b", "a", "a", "b", "a"]
    assert [m.name for m in measured] == ["a", "b", CONTROL]
    assert measured[1].repeats == (30, 40)
    assert len(measured[2].repeats) == 2


def test_ctrl_c_keeps_the_complete_turns():
    calls = iter([1.0] * 5)

    def rate():
        try:
            return next(calls)
        except StopIteration:
            raise KeyboardInterrupt from None

    with pytest.raises(Interrupted) as caught:
        interleave("toy", {"a": rate, "b": rate}, repeats=9)
    assert [m.repeats for m in caught.value.measurements] == [(1.0,), (1.0,)]


def test_ratios_are_taken_turn_by_turn():
    # The machine halves its speed in the second turn: rates move, the ratio does not.
    slow, fast = (Measurement("s", name, "x/s", repeats) for name, repeats in (("slow", (10, 5)), ("fast", (20, 10))))
    assert ratio(fast, slow) == (2, 2, 2)
    assert "2.00 (2.00–2.00)" in table([slow, fast], "slow")


def test_measurements_survive_the_file_with_every_repeat(tmp_path):
    measurements = [Measurement("s", "a", "images/s", (1.5, 2.5, 9.0), "did it", (0.5,), {"size": 224})]
    append_jsonl(tmp_path / "results.jsonl", measurements)
    append_jsonl(tmp_path / "results.jsonl", measurements)
    assert load_jsonl(tmp_path / "results.jsonl") == measurements * 2
    assert machine()["cpu"] and machine()["cores"] >= 1


def test_a_busy_core_counts_as_one():
    def spin():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        return 10

    (measured,) = interleave("toy", {"spin": lambda: timed(spin)}, repeats=3)
    assert measured.per_core == pytest.approx(200, rel=0.1)
    assert 0 < measured.busy_cores <= 1.1


def test_a_contender_in_another_process_answers_or_leaves_its_last_words():
    code = (
        "from shardline.benchmarks.measure import Rate, serve\n"
        "print('talk'); serve(lambda seconds: Rate(12.5 * seconds, 0.25))"
    )
    served = WorkerProcess([sys.executable, "-c", code], 2.0)
    assert served() == served() == Rate(25.0, 0.25)
    served.close()
    with pytest.raises(RuntimeError, match="no such peer"):
        WorkerProcess([sys.executable, "-c", "raise SystemExit('no such peer')"], 1.0)


def test_what_did_nothing_divides_nothing():
    nothing, something = (Measurement("s", name, "x/s", (rate,)) for name, rate in (("nothing", 0), ("something", 5)))
    assert timed(lambda: 0) == (0, 0)
    assert ratio(nothing, something)[0] == 0 and ratio(something, nothing)[0] == float("inf")
    assert "inf" in table([nothing, something], "nothing")


def test_ctrl_c_writes_the_complete_turns(tmp_path):
    rates = iter([1.0] * 3)

    def rate():
        for value in rates:
            return value
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), save_on_interrupt(tmp_path / "results.jsonl"):
        interleave("toy", {"a": rate}, repeats=9)
    assert [m.repeats for m in load_jsonl(tmp_path / "results.jsonl")] == [(1.0, 1.0)]


BUSY = """
import sys, time
with open(sys.argv[1], "w") as file:
    while time.process_time() < 0.5:
        print(time.monotonic(), file=file)
        time.sleep(0.002)
        sum(range(100_000))
"""


def test_commands_in_slices_never_run_at_the_same_time(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    commands = {name: ([sys.executable, "-c", BUSY, str(tmp_path / name)], cores) for name in ("a", "b")}
    spent = run_time_sliced(commands, 0.1)
    assert all(0.4 < cpu <= wall + 0.1 for wall, cpu in spent.values())
    ticks = sorted((float(tick), name) for name in commands for tick in (tmp_path / name).read_text().split())
    turns = [name for (_, name), (_, before) in zip(ticks[1:], ticks, strict=False) if name != before]
    assert 4 <= len(turns) <= 2 * max(wall for wall, _ in spent.values()) / 0.1 + 2


def test_a_command_that_fails_in_slices_says_why_and_takes_the_others_along(tmp_path):
    own = tmp_path / "pid"
    forever = f"import os, time; open({str(own)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    broken = "import time; time.sleep(1); raise SystemExit('no disk')"
    cores = sorted(os.sched_getaffinity(0))
    commands = {name: ([sys.executable, "-c", code], cores) for name, code in [("1", forever), ("2", broken)]}
    with pytest.raises(RuntimeError, match="no disk"):
        run_time_sliced(commands, 0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(int(own.read_text()), 0)
