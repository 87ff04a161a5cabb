"""Canned rates in, the sentence a person reads out."""

from dataclasses import replace

import pytest

from shardline.benchmarks.bottleneck import (
    Facts,
    cores_for,
    cost_per_million,
    find_bottleneck,
    scaling_forecast,
    stage_seconds,
)

DECODE_HEAVY = {
    "storage": 40_000,
    "records": 30_000,
    "parse": 20_000,
    "decode": 3_000,
    "augment": 2_500,
    "batch": 2_400,
}
FACTS = Facts(cores=2, image_bytes=29_000, stored_pixels=256 * 340, step_on_host=False)


def test_stage_costs_add_up_to_the_whole_pipeline():
    seconds = stage_seconds(DECODE_HEAVY)
    assert sum(seconds.values()) == pytest.approx(1 / 2_400)
    assert seconds["decode"] == pytest.approx(1 / 3_000 - 1 / 20_000)


def test_noise_never_makes_a_negative_cost():
    assert stage_seconds({**DECODE_HEAVY, "augment": 3_300})["augment"] == 0
    assert sum(stage_seconds({**DECODE_HEAVY, "augment": 3_300}).values()) == pytest.approx(1 / 2_400)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"step": 10_000}, "decode-bound"),
        ({"step": 1_000}, "step-bound"),
        ({"step": 10_000, "storage": 900}, "storage-bound"),
        ({"step": 10_000, "copy": 800}, "copy-bound"),
        ({"step": 2_450}, "balanced"),
        ({"step": 10_000, "decode": 15_000}, "augment-bound"),
    ],
)
def test_the_word_names_the_slowest_stage(change, word):
    assert find_bottleneck({**DECODE_HEAVY, **change}, FACTS).word == word


def test_decode_bound_advice_is_the_arithmetic_of_the_stages():
    facts = replace(FACTS, stored_size=256, smaller_size=128)
    found = find_bottleneck({**DECODE_HEAVY, "step": 10_000}, facts)
    cores, size, raw = found.advice
    assert cores.change == "7 more cores" and cores.factor == pytest.approx(10_000 / 2_400)
    decode = 1 / 3_000 - 1 / 20_000
    assert size.factor == pytest.approx((1 / 2_400) / (1 / 2_400 - decode * 0.75))
    growth = 3 * 256 * 340 / 29_000
    assert raw.price == f"{growth:.1f}x the bytes"
    assert raw.factor == pytest.approx((1 / 2_400) / (1 / 2_400 - decode + (growth - 1) / 40_000))
    assert str(found).startswith("decode-bound: 7 more cores (predicted 4.2x), or --size 128 (predicted ")


def test_no_advice_exceeds_what_the_next_stage_allows():
    found = find_bottleneck({**DECODE_HEAVY, "step": 3_000}, FACTS)
    assert found.advice and all(advice.factor <= 3_000 / 2_400 + 1e-9 for advice in found.advice)


def test_what_a_validation_measures_is_not_limited_by_the_next_stage():
    (cores, raw) = find_bottleneck({**DECODE_HEAVY, "storage": 400_000, "step": 3_000}, FACTS).advice
    assert cores.factor == pytest.approx(3_000 / 2_400) and cores.input_factor == (2 + 1) / 2
    assert raw.factor == pytest.approx(3_000 / 2_400) and raw.input_factor > 2


def test_storage_bound_advice_goes_with_the_area():
    rates = {**DECODE_HEAVY, "storage": 900, "step": 10_000}
    (advice,) = find_bottleneck(rates, replace(FACTS, stored_size=256, smaller_size=224)).advice
    assert advice.change == "--size 224" and advice.factor == pytest.approx((256 / 224) ** 2)
    assert find_bottleneck(rates, FACTS).advice == ()


def test_advice_that_does_not_help_is_not_given():
    # Storage so slow that nine times the bytes cost more than decoding does.
    slow = {"storage": 4_000, "records": 3_900, "parse": 3_800, "decode": 1_500, "augment": 1_400, "batch": 1_400}
    changes = [advice.change for advice in find_bottleneck({**slow, "step": 9_000}, FACTS).advice]
    assert changes and "--encoding raw" not in changes


def test_a_step_on_the_same_cores_adds_its_cost():
    found = find_bottleneck({**DECODE_HEAVY, "step": 2.5}, replace(FACTS, step_on_host=True))
    assert found.word == "step-bound"
    assert found.images_per_second == pytest.approx(1 / (1 / 2_400 + 1 / 2.5))


def test_stages_without_a_step_still_have_a_bottleneck():
    assert find_bottleneck(DECODE_HEAVY, FACTS).word == "decode-bound"


def test_cores_for_gpus_and_costs():
    assert cores_for((1, 8), gpu_images_per_second=3_000, images_per_second_per_core=2_000) == {1: 2, 8: 12}
    assert cost_per_million(1_000, 3.6) == pytest.approx(1.0)


def test_forecast_is_ring_all_reduce():
    forecast = scaling_forecast((1, 2, 8), step_seconds=0.1, gradient_bytes=5e8, bytes_per_second=1e10)
    assert forecast[1] == 1
    assert forecast[2] == pytest.approx(0.1 / 0.15)
    assert forecast[8] == pytest.approx(0.1 / (0.1 + 2 * 7 / 8 * 0.05))
