"""Rows of a suite in, the sentence a person reads out."""

from dataclasses import replace

import pytest

from shardline.benchmarks.bottleneck import (
    COLD_STORAGE,
    Facts,
    bottleneck_of,
    cores_for,
    cost_per_million,
    find_advice,
    scaling_forecast,
    turns_of,
)
from shardline.benchmarks.measure import CONTROL, Measurement
from shardline.benchmarks.verdict import HOST_STAGES, judge
from tests.benchmarks.test_verdict import CORES, USUAL, make_turns

FACTS = Facts(cores=2, image_bytes=29_000, stored_pixels=256 * 340, step_on_host=False)
COSTS = USUAL | {"decode": 500}  # µs of one thread
TURNS = (0.9, 1.0, 1.1, 1.0)  # speed of the machine


def rows(costs=COSTS, waiting=(), facts=FACTS, **others):
    """The suite of stages on a machine whose speed drifts from turn to turn: cumulative rates, and others in µs."""
    settings = {"facts": vars(facts)}
    found, cpu, wall = [], 0.0, 0.0
    for stage in HOST_STAGES:
        cpu, wall = cpu + costs[stage], wall + costs[stage] + dict(waiting).get(stage, 0)
        found.append(row(stage, wall / 2, cpu, settings))
    found += [row(name, microseconds, 0, settings) for name, microseconds in others.items()]
    return [*found, replace(found[len(HOST_STAGES) - 1], name=CONTROL)]


def row(name, microseconds, cpu=0.0, settings=None, suite="stages", stretch=True):
    speeds = TURNS if stretch else (1.0,) * len(TURNS)
    rates = tuple(1e6 / microseconds * speed for speed in speeds)
    seconds = tuple(cpu / 1e6 / speed for speed in speeds) if cpu else ()
    return Measurement(suite, name, "images/s", rates, cpu_seconds=seconds, settings=settings or {})


def test_stage_costs_are_differences_within_each_turn():
    stages = {m.name: m for m in rows(waiting={"records": 40})}
    for turn, speed in zip(turns_of(stages, FACTS), TURNS, strict=True):
        assert {name: cost.cpu for name, cost in turn.host.items()} == pytest.approx(
            {name: cost / speed for name, cost in COSTS.items()}
        )
        assert turn.host["records"].waiting == pytest.approx(40 / speed)
        assert turn.busy_cores == pytest.approx(2 * sum(COSTS.values()) / (sum(COSTS.values()) + 40))
        assert turn.control == 1


def test_the_delays_of_the_last_host_stage_are_those_of_the_input():
    measured = {m.name: m for m in rows()}
    assert turns_of(measured, FACTS)[0].delayed_cores is None
    delays = tuple(0.5 / rate for rate in measured["batch"].repeats)
    late = measured | {"batch": replace(measured["batch"], delay_seconds=delays)}
    assert [turn.delayed_cores for turn in turns_of(late, FACTS)] == pytest.approx([0.5] * len(delays))


def test_a_longer_pipeline_that_was_faster_costs_less_than_nothing_and_shifts_nothing_else():
    stages = {m.name: m for m in rows(COSTS | {"parse": -5})}
    costs = turns_of(stages, FACTS)[1].host
    assert costs["parse"].cpu == pytest.approx(-5) and costs["decode"].cpu == pytest.approx(500)


@pytest.mark.parametrize("stage", [stage for stage in HOST_STAGES if stage != "storage"])
def test_every_stage_can_win(stage):
    assert bottleneck_of(rows(USUAL | {stage: 900}, step=10)).word == f"{stage}-bound"


@pytest.mark.parametrize(
    ("others", "word"),
    [
        ({"step": 1_000}, "step-bound"),
        ({"step": 10, "copy": 1_000}, "copy-bound"),
        ({"step": sum(COSTS.values()) / 2}, "balanced"),
        ({"step": 10}, "decode-bound"),
        ({}, "decode-bound"),
    ],
)
def test_what_is_slowest_limits(others, word):
    assert bottleneck_of(rows(**others)).word == word


def test_waiting_reads_are_storage_bound_and_storing_smaller_helps():
    facts = replace(FACTS, stored_size=256, smaller_size=128)
    found = bottleneck_of(rows(waiting={"storage": 3_000}, facts=facts, step=10))
    assert found.word == "storage-bound" and "cores busy" in found.verdict.reasons[0]
    total = sum(COSTS.values()) + 3_000
    assert found.advice[0].factor == pytest.approx(total / (total - 0.75 * (3_000 + COSTS["storage"] + 500)))


def test_the_first_epoch_has_a_verdict_of_its_own():
    cold = row(COLD_STORAGE, 4_000 / 2, COSTS["order"] + COSTS["storage"])
    found = bottleneck_of([*rows(step=10), cold])
    assert found.word == "decode-bound" and found.cold.word == "storage-bound"
    assert str(found).startswith("epoch 1: storage-bound, 435 images/s; later: decode-bound, 3,317 images/s")
    few = bottleneck_of([*rows(step=10, facts=replace(FACTS, records=100)), cold])
    assert "too little to tell" in str(few) and "too little to tell" not in str(found)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([0.0, 0.5], "epoch 1 is not known: the page cache kept 50%"),
        ([0.0, -1.0], "does not tell"),
        ([0.02], "epoch 1: s"),
    ],
)
def test_a_cache_that_was_not_dropped_gives_no_verdict_on_the_first_epoch(kept, said):
    cold = row(COLD_STORAGE, 4_000 / 2, COSTS["order"] + COSTS["storage"], {"page_cache_kept": kept})
    assert said in str(bottleneck_of([*rows(step=10), cold]))


def test_the_step_waits_only_for_what_it_does_not_overlap():
    trained = row("end_to_end", 410, settings={})
    stages = {m.name: m for m in [*rows(step=400), replace(trained, waiting=(0.9,) * 4)]}
    assert turns_of(stages, FACTS)[0].waiting_share == pytest.approx(1 - 400 / 410)
    stages["end_to_end"] = replace(trained, waiting=(0.01,) * 4)
    assert turns_of(stages, FACTS)[0].waiting_share == 0.01


def test_decode_bound_advice_is_the_arithmetic_of_the_stages():
    facts = replace(FACTS, stored_size=256, smaller_size=128)
    raw, size = bottleneck_of(rows(facts=facts, step=10)).advice
    total = sum(COSTS.values())
    assert size.factor == pytest.approx(total / (total - 0.75 * (500 + COSTS["storage"])))
    growth = 3 * 256 * 340 / 29_000
    assert raw.price == f"{growth:.1f}x the bytes"
    assert raw.factor == pytest.approx(total / (total - 500 + (growth - 1) * COSTS["storage"]))
    limited = bottleneck_of(rows(facts=facts, step=200)).advice
    assert [item.factor for item in limited] == pytest.approx([total / 2 / 200] * 2)
    assert [item.input_factor for item in limited] == pytest.approx([size.factor, raw.factor])


def test_a_doubtful_verdict_gets_no_advice():
    busy = make_turns(COSTS, controls=(0.4, 1.0, 1.2))
    assert find_advice(judge(busy, CORES), busy, FACTS) == ()
    quiet = make_turns(COSTS)
    assert find_advice(judge(quiet, CORES), quiet, FACTS) != ()


def validated(times, control=1.0):
    settings = {"reference": "unchanged"}
    rates = {"unchanged": 1.0, "--encoding raw": times, CONTROL: control}
    return [row(name, 100 / rate, settings=settings, suite="validation") for name, rate in rates.items()]


def test_advice_that_was_tried_says_what_it_brought():
    (untried,) = bottleneck_of(rows(step=10)).advice
    assert "not tried)" in str(untried) and untried.measured is None
    (kept,) = bottleneck_of([*rows(step=10), *validated(2.0)]).advice
    assert kept.measured == pytest.approx(2.0) and "measured 2.0x for the input alone" in str(kept)
    found = bottleneck_of([*rows(step=10), *validated(1.04, control=1.05)])
    assert found.advice[0].beaten and "measured 1.0x: withdrawn)" in str(found)


def tried(control=1.0, **flags):
    settings = {"reference": "unchanged"}
    rates = {"unchanged": 1.0, **{f"--{name} 8": rate for name, rate in flags.items()}, CONTROL: control}
    return [row(name, 100 / rate, settings=settings, suite="what-ifs") for name, rate in rates.items()]


def test_of_the_what_ifs_only_those_that_beat_the_control_are_printed_the_best_first():
    found = bottleneck_of([*rows(step=10), *tried(control=1.15, workers=1.1, cache=3.0, shuffle_block_size=0.9)])
    raw, cache = found.advice
    assert str(cache) == "--cache 8 (measured 3.0x for the input alone; keeps the decoded images in memory)"
    assert cache.factor == pytest.approx(3.0) and raw.change == "--encoding raw"
    assert "workers" not in str(found) and "shuffle" not in str(found)
    limited = bottleneck_of([*rows(step=200), *tried(cache=3.0)])
    assert limited.advice[0].factor == pytest.approx(sum(COSTS.values()) / 2 / 200)  # then the step limits
    assert bottleneck_of([*rows(step=2_000), *tried(cache=3.0)]).advice == ()
    assert (
        bottleneck_of([*rows(COSTS | {"augment": 500}, step=10), *tried(workers=1.5)]).advice[0].change == "--workers 8"
    )


def test_a_refuted_change_is_named_last():
    found = bottleneck_of([*rows(step=10), *validated(0.9), *tried(workers=1.2)])
    assert [item.beaten for item in found.advice] == [False, True] and "withdrawn" in str(found)


def test_images_that_were_not_resized_get_their_size_by_the_short_side():
    facts = replace(FACTS, stored_size=1024, smaller_sizes=[512, 256], resize="none")
    changes = [item.change for item in bottleneck_of(rows(facts=facts, step=10)).advice]
    assert changes == ["--resize short --size 256", "--encoding raw", "--resize short --size 512"]


def test_nothing_is_said_of_more_cores_than_there_are():
    assert "what more cores would bring was not measured" in str(bottleneck_of(rows(step=10)))
    curve = [row(f"shardline, {name}", cost, suite="scaling") for name, cost in (("1 core", 190), ("2 cores", 100))]
    assert "with 1 core 1.0x, 2 cores 1.9x; more cores were not measured" in str(
        bottleneck_of([*rows(step=10), *curve])
    )
    assert "cores" not in str(bottleneck_of([*rows(step=2_000), *curve]))


def test_cores_for_gpus_and_costs():
    assert cores_for((1, 8), gpu_images_per_second=3_000, images_per_second_per_core=2_000) == {1: 2, 8: 12}
    assert cost_per_million(1_000, 3.6) == pytest.approx(1.0)


def test_forecast_is_ring_all_reduce():
    forecast = scaling_forecast((1, 2, 8), step_seconds=0.1, gradient_bytes=5e8, bytes_per_second=1e10)
    assert forecast[1] == 1
    assert forecast[2] == pytest.approx(0.1 / 0.15)
    assert forecast[8] == pytest.approx(0.1 / (0.1 + 2 * 7 / 8 * 0.05))
