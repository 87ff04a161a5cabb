"""Made-up turns in, the verdict out: every stage as the limit, ties, noise, quotas, slow storage and busy neighbors."""

import random
from dataclasses import replace

import pytest

from shardline.benchmarks.verdict import HOST_STAGES, QUOTA, TAKEN, Cores, Cost, Strain, Turn, judge

CORES = Cores(allowed=2, visible=2)
USUAL = {"order": 3, "storage": 5, "records": 15, "parse": 10, "decode": 60, "augment": 50, "batch": 20}


def make_turns(
    cpu=USUAL, waiting=(), *, step=10.0, copy=5.0, step_cpu=0.0, waits=0.6, busy=1.95, controls=(1.0, 1.02, 0.98, 1.01),
    strains=(Strain(),), jitter=0.02, seed=1, threads=2, on_host=False,
):  # fmt: skip
    """Turns in which each cost strays by `jitter` (standard deviation) and all agree with their end-to-end pace."""
    draw = random.Random(seed)
    found = []
    for number in range(len(controls)):
        stray = {stage: draw.gauss(1, jitter) for stage in cpu}
        host = {stage: Cost(cpu[stage] * stray[stage], dict(waiting).get(stage, 0.0)) for stage in cpu}
        whole = sum(cost.cpu + cost.waiting for cost in host.values()) / threads
        pace = whole + step if on_host else max(whole, copy, step)
        found.append(
            Turn(
                host, threads, busy, copy, step, step_cpu, pace, waits, controls[number],
                strains[min(number, len(strains) - 1)],
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize("stage", [stage for stage in HOST_STAGES if stage != "storage"])
def test_every_host_stage_can_be_the_limit(stage):
    found = judge(make_turns(USUAL | {stage: 500}), CORES)
    assert found.word == f"{stage}-bound" and found.confident and found.input_limit == "yes"
    assert max(found.cpu_shares, key=found.cpu_shares.get) == stage
    low, high = found.factor
    total = sum(USUAL.values()) - USUAL[stage] + 500
    others = total - 500 - (USUAL["storage"] if stage == "records" else 0)
    assert low <= total / max(others, 20) <= high  # 20: the step takes 10 µs, the input has two threads


def test_waiting_in_reads_is_storage_and_idle_cores_are_said_first():
    found = judge(make_turns(waiting={"storage": 300, "records": 900}, busy=0.3), CORES)
    assert found.word == "storage-bound" and found.confident
    assert str(found).startswith("storage-bound — the input kept 0.3 of 2 cores busy; ")
    assert found.factor[0] > 5


def test_the_step_limits_where_it_never_waits():
    found = judge(make_turns(step=400, waits=0.02), CORES)
    assert found.word == "step-bound" and found.input_limit == "no" and "decode-bound" not in str(found)
    assert "the input is not the limit: the step waits for it 2% of the time" in str(found)


def test_copying_can_be_the_limit():
    assert judge(make_turns(copy=300), CORES).word == "copy-bound"


@pytest.mark.parametrize(("waits", "limit"), [(0.049, "no"), (0.05, "moderately"), (0.199, "moderately"), (0.2, "yes")])
def test_how_much_the_input_limits_goes_by_the_waiting(waits, limit):
    assert judge(make_turns(waits=waits), CORES).input_limit == limit


def test_input_and_step_within_the_margin_are_balanced():
    half = sum(USUAL.values()) / 2
    found = judge(make_turns(step=half * 1.01, waits=0.1), CORES)
    assert found.word == "balanced" and not found.confident and found.factor is None
    assert judge(make_turns(step=half * 1.3, waits=0.1), CORES).word == "step-bound"
    assert judge(make_turns(step=half * 0.7, waits=0.1), CORES).word == "decode-bound"


def test_a_step_as_fast_as_its_input_is_balanced_also_where_it_hardly_waits():
    """A buffer between two equal paces keeps the step from waiting much: it was called step-bound."""
    half = sum(USUAL.values()) / 2
    found = judge(make_turns(step=half, waits=0.03), CORES)
    assert found.word == "balanced" and not found.confident and "the step 82" in str(found)
    assert judge(make_turns(step=half * 1.15, waits=0.03), CORES).word == "step-bound"
    noisy = make_turns(step=half * 1.1, waits=0.03, controls=(1.0, 1.12, 0.9, 1.0))
    assert judge(noisy, CORES).word == "balanced"  # 10 % is within what the control strays
    assert judge(make_turns(step=half / 2, waits=0.03), CORES).word == "step-bound"  # the run itself tells


def test_equal_stages_are_a_tie():
    found = judge(make_turns(USUAL | {"augment": 60}, jitter=0.05, controls=(1.0,) * 9), CORES)
    assert found.word in ("tie: decode or augment", "tie: augment or decode") and not found.confident


def test_noise_larger_than_the_difference_is_a_tie():
    words = [judge(make_turns(USUAL | {"augment": 57}, jitter=0.3, seed=seed), CORES).word for seed in range(40)]
    wrong = [word for word in words if "decode" not in word]
    assert len(wrong) <= 4  # a tie, or right; 10 % is what SURE allows
    assert sum(word.startswith("tie: ") for word in words) > 20


@pytest.mark.parametrize(
    ("controls", "strains", "why"),
    [
        (
            (0.38, 1.0, 1.29),
            (Strain(),),
            "noise 62%: a second measurement of the same thing gave 0.38 to 1.29 times the first",
        ),
        (
            (1.0, 1.0, 1.0),
            (Strain(0.1), Strain(0.2), Strain(0.6)),
            "the share of the time in which something waited for a CPU grew from 10% to 60%",
        ),
        ((1.0, 1.0, 1.0), (Strain(steal=0.3),), "the hypervisor gave 30% of the CPU time to others"),
    ],
)
def test_a_busy_machine_gets_no_verdict_but_the_shares_of_cpu_time(controls, strains, why):
    found = judge(make_turns(controls=controls, strains=strains), CORES)
    assert found.word == "cannot tell" and not found.confident and found.factor is None and found.stages == ()
    assert f"this machine was busy ({why}); measure again when it is quiet" in str(found)
    assert found.cpu_shares["decode"] == pytest.approx(60 / 163, rel=0.1) and "decode 3" in str(found)


def test_steady_pressure_is_our_own():
    assert judge(make_turns(strains=(Strain(pressure=0.7),)), CORES).word == "decode-bound"


def test_a_quota_that_throttles_is_the_verdict():
    quota = Cores(allowed=1.0, visible=2)
    waiting = dict.fromkeys(USUAL, 40)
    turns = make_turns(waiting=waiting, busy=1.0, strains=(Strain(throttled=0.4),), controls=(0.7, 1.0, 1.3))
    assert judge(turns, quota).word == f"{QUOTA} 1.0 of 2 visible cores"
    stepping = make_turns(step=900, waits=0.0, strains=(Strain(throttled=0.4),))
    assert judge(stepping, quota).word == "step-bound"


def test_waiting_without_reads_is_cpu_time_that_others_took():
    waiting = {stage: 2 * cost for stage, cost in USUAL.items()}
    found = judge(make_turns(waiting=waiting, busy=0.7), CORES)
    assert found.word == TAKEN and str(found).startswith(f"{TAKEN} — the input kept 0.7 of 2 cores busy; ")


@pytest.mark.parametrize(
    ("busy", "delayed", "word"),
    [
        (1.0, 1.0, TAKEN),  # neighbors have half of each core
        (1.0, 0.6, TAKEN),
        (1.0, 0.1, "decode-bound"),  # nobody took the CPUs: the stages waited for something else
        (1.9, 1.5, "decode-bound"),  # more threads than cores: they took turns with each other
    ],
)
def test_the_kernel_knows_whether_others_had_the_cpus(busy, delayed, word):
    waiting = dict(USUAL) if busy < 1.5 else {}
    turns = [replace(turn, delayed_cores=delayed) for turn in make_turns(waiting=waiting, busy=busy)]
    found = judge(turns, CORES)
    assert found.word == word
    taken = "1.0 of 2 cores busy; other processes used 1.0 that it was ready for"
    assert (taken in str(found)) == (delayed == 1.0)
    assert (found.factor is None) == (word == TAKEN)


def test_a_slow_disk_is_not_cpu_taken_away_and_a_neighbor_is_no_slow_disk():
    slow = make_turns(waiting={"storage": 900}, busy=0.3)
    assert judge([replace(turn, delayed_cores=0.1) for turn in slow], CORES).word == "storage-bound"
    crowded = make_turns(waiting={"storage": 300, "decode": 200}, busy=0.6)
    assert judge([replace(turn, delayed_cores=1.2) for turn in crowded], CORES).word == TAKEN


def test_a_stage_that_waits_for_something_of_its_own_is_the_limit():
    turns = [replace(turn, delayed_cores=0.05) for turn in make_turns(waiting={"augment": 300}, busy=0.7)]
    assert judge(turns, CORES).word == "augment-bound"


def test_fewer_threads_than_cores_are_not_cpu_taken_away():
    found = judge(make_turns(threads=1, busy=1.0), CORES)
    assert found.word == "decode-bound" and "1.0 of 2 cores busy" in str(found)


def test_on_shared_cores_costs_add_and_the_largest_limits():
    shared = replace(CORES, step_on_host=True)
    turns = make_turns(step=400, step_cpu=800, waits=None, on_host=True)
    found = judge(turns, shared)
    assert found.word == "step-bound" and found.explained
    assert found.images_per_second == pytest.approx(1e6 / (400 + 163 / 2), rel=0.02)
    # The whole input costs more than the step, but no stage of it does.
    assert judge(make_turns(step=50, step_cpu=100, waits=None, on_host=True), shared).word == "step-bound"
    assert judge(make_turns(step=20, step_cpu=40, waits=0.4, on_host=True), shared).word == "decode-bound"


def test_a_pace_that_the_stages_do_not_explain_is_said_and_lowers_the_confidence():
    turns = [replace(turn, end_to_end=turn.end_to_end * 1.3) for turn in make_turns()]
    found = judge(turns, CORES)
    assert found.word == "decode-bound" and not found.explained and not found.confident
    assert "the stages do not explain the pace" in str(found)
    assert judge([replace(turn, end_to_end=turn.end_to_end * 1.1) for turn in make_turns()], CORES).confident


def test_the_factor_is_widened_by_the_control():
    quiet = judge(make_turns(controls=(1.0,) * 4), CORES).factor
    noisy = judge(make_turns(controls=(1.0, 1.1, 1.0, 1.0)), CORES).factor
    assert noisy[0] == pytest.approx(quiet[0] / 1.1) and noisy[1] == pytest.approx(quiet[1] * 1.1)


def test_stages_alone_have_a_verdict():
    turns = [replace(turn, step=None, copy=None, end_to_end=None, waiting_share=None) for turn in make_turns()]
    found = judge(turns, CORES)
    assert found.word == "decode-bound" and found.input_limit == "not measured"


def test_the_same_turns_give_the_same_verdict():
    turns = make_turns(USUAL | {"augment": 58}, jitter=0.2)
    assert judge(turns, CORES) == judge(turns, CORES)


def test_an_input_that_costs_much_but_is_never_waited_for_is_not_the_limit():
    # With a shuffle of ready batches, or a step that is slower than it was alone.
    assert judge(make_turns(USUAL | {"decode": 500}, waits=0.02), CORES).word == "step-bound"


def test_batching_that_waits_for_itself_is_the_limit():
    assert judge(make_turns(waiting={"batch": 300}, busy=0.7), CORES).word == "batch-bound"


def test_cores_that_were_not_asked_for_were_not_taken():
    assert judge(make_turns(waiting={"parse": 100}, threads=1, busy=0.9), CORES).word == "decode-bound"
