"""The sections of the report: tables and figures out of measurements. Nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shardline.benchmarks.bottleneck import (
    STAGES,
    Advice,
    Bottleneck,
    cores_for,
    cost_per_million,
    scaling_forecast,
)
from shardline.benchmarks.measure import CONTROL, Measurement, comparable, interval, rate_text, ratio, reference_of
from shardline.benchmarks.verdict import HOST_STAGES, Cost
from shardline.pipeline.wording import count
from shardline.tools.html_report import HtmlReport
from shardline.tools.plot_style import BLUE, GRAY, GRID, ORANGE, SKY, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEVICES = (1, 2, 4, 8)
HEADER = (
    "suite",
    "name",
    "unit",
    "median",
    "min",
    "max",
    "ratio",
    "95% interval",
    "per core",
    "busy cores",
    "MB/s",
    "what it did",
)
_FILES = _HOST_TIME, _STAGES, _FORECAST, _VALIDATION = "host_time.png", "stages.png", "forecast.png", "validation.png"
_OTHERS = "#999999"  # what is not ours
_PHONE = 4.8  # inches: figures this narrow fit a phone at a legible size


def row(m: Measurement, rows: Sequence[Measurement]) -> tuple[str | float, ...]:
    """A measurement under HEADER."""
    reference = reference_of(rows)
    return (
        m.suite,
        m.name,
        m.unit,
        _cell(m.median),
        *map(_cell, m.spread),
        ratio(m, reference)[0] if comparable(m, reference) else "",
        _interval_text(m, reference),
        _cell(m.per_core or ""),
        m.busy_cores or "",
        _cell(_megabytes(m)),
        m.what,
    )


def _interval_text(m: Measurement, reference: Measurement) -> str:
    """Of the ratio; in words where it says that there is no difference to be seen."""
    if m is reference or not comparable(m, reference):
        return ""
    found = interval(m, reference)
    return f"{found}{found.remark}"


def bottleneck(page: HtmlReport, directory: Path, found: Bottleneck, rows: Sequence[Measurement]) -> None:
    """The sentence, whether training kept the predicted pace, and what an image costs in each host stage."""
    pace = f"Predicted training throughput: {rate_text(found.images_per_second)} images/s."
    measured = next((m for m in rows if m.name == "end_to_end"), None)
    if measured is not None:
        error = found.images_per_second / measured.median - 1
        off = f"{abs(error):.0%} too {'high' if error > 0 else 'low'}" if round(error, 2) else "right"
        pace += f" Measured end to end: {rate_text(measured.median)} images/s; the prediction is {off}."
    page.text(
        "Bottleneck", f"{found.headline}.", *(f"{reason[0].upper()}{reason[1:]}." for reason in found.reasons), pace
    )
    _host_costs(page, directory, found.costs)


def stages(page: HtmlReport, directory: Path, rows: Sequence[Measurement]) -> None:
    """The rate of the pipeline cut after each stage, and its share of the two upper bounds."""
    rates = {m.name: m for m in rows if m.median > 0 and m.name != CONTROL}
    names = [name for stage in STAGES for name in (stage, f"{stage} (cold)") if name in rates]
    title = "Throughput of each stage by itself"
    if names:
        _rates(page, directory, title, [rates[name] for name in names])
    page.table(
        title,
        ("stage", "images/s", "min", "max", "per core", "CPU use", "MB/s", "% of decode", "% of storage", "what"),
        [_stage_row(m, rates) for m in sorted(rows, key=lambda m: names.index(m.name) if m.name in names else 99)],
        note="CPU use: share of all cores. % of decode and % of storage: this stage's rate as a percentage of the "
        "rates of decoding whole images and of reading their bytes, which bound it. Cold stages start with an empty "
        "page cache and read each record at most once; the others read from memory.",
    )


def _stage_row(m: Measurement, rates: Mapping[str, Measurement]) -> tuple[str | float, ...]:
    def share(bound: str) -> str:
        stage = m.name.split()[0]
        bounded = stage in STAGES and STAGES.index(stage) >= STAGES.index(bound) and stage != "copy"
        return f"{m.median / rates[bound].median:.1%}" if bounded and bound in rates else ""

    cores = m.settings.get("facts", {}).get("cores")
    use = f"{m.busy_cores / cores:.0%}" if m.busy_cores and cores else ""
    numbers = map(_cell, (m.median, *m.spread, m.per_core or ""))
    mega = "" if m.name in ("copy", "step") else _cell(_megabytes(m))
    return (m.name, *numbers, use, mega, share("decode"), share("storage"), m.what)


def _host_costs(page: HtmlReport, directory: Path, costs: Mapping[str, Cost]) -> None:
    """CPU time and waiting side by side. What noise made negative is drawn as nothing."""
    cpu = {stage: max(cost.cpu, 0.0) for stage, cost in costs.items()}
    waiting = {stage: max(cost.waiting, 0.0) for stage, cost in costs.items()}
    heavy, total = max(cpu, key=lambda stage: cpu[stage]), sum(cpu.values())
    if not total:
        return
    title = f"{heavy.capitalize()} takes {cpu[heavy] / total:.0%} of the input's CPU time"
    figure = new_figure(_PHONE, 2.6)
    axes = figure.add_subplot()
    for position, stage in enumerate(costs):
        axes.barh(position, cpu[stage], color=BLUE)
        axes.barh(position, waiting[stage], left=cpu[stage], color=SKY)
        _write_beside(axes, cpu[stage] + waiting[stage], position, rate_text(cpu[stage] + waiting[stage]))
    axes.set_yticks(range(len(costs)), list(costs))
    axes.invert_yaxis()
    widest = max(cpu[stage] + waiting[stage] for stage in costs)
    axes.set(xlabel="µs an image of one thread (light: waiting)", xlim=(0, widest * 1.15))
    alt = ", ".join(
        f"{stage} {cpu[stage]:.0f} µs of CPU time and {waiting[stage]:.0f} µs of waiting" for stage in costs
    )
    page.figure(title, figure, alt=alt, png=directory / _HOST_TIME)


def _rates(page: HtmlReport, directory: Path, title: str, rows: Sequence[Measurement]) -> None:
    figure = new_figure(_PHONE, 0.36 * len(rows) + 0.9)
    axes = figure.add_subplot()
    for position, m in enumerate(rows):
        low, high = m.spread
        color = BLUE if m.name in HOST_STAGES else SKY if "cold" in m.name else ORANGE
        axes.plot((max(low, high / 1e6), high), (position, position), color="black", linewidth=1.5, zorder=1)
        axes.scatter(m.median, position, s=50, color=color, zorder=2)
        _write_beside(axes, high, position, rate_text(m.median), 8)
    # Stages differ by orders of magnitude; the figure above has the zero-based view.
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: _power_text(value))
    axes.xaxis.set_minor_formatter("")
    axes.grid(axis="x", color=GRID)
    axes.set_yticks(range(len(rows)), [m.name.replace("_", " ") for m in rows])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(xlabel="images/s, logarithmic (thin line: smallest to largest repeat)")
    alt = ", ".join(f"{m.name} {rate_text(m.median)}" for m in rows) + " images/s"
    page.figure(title, figure, alt=alt, png=directory / _STAGES)


def _write_beside(axes: Axes, x: float, y: float, text: str, points: int = 4) -> None:
    """Right of a mark; a blank would be lost in an SVG."""
    axes.annotate(text, (x, y), (points, 0), textcoords="offset points", va="center")


def _power_text(value: float) -> str:
    """1k for 1000: room for every power of ten."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def forecast(page: HtmlReport, directory: Path, rows: Sequence[Measurement]) -> None:
    """What 1, 2, 4, 8 devices would reach, and how many cores their input needs."""
    by_name = {m.name: m for m in rows}
    facts = by_name["batch"].settings.get("forecast")
    if facts is None or "step" not in by_name:
        return
    cores, host = by_name["batch"].settings["facts"]["cores"], by_name["batch"].median
    device, step = facts["device"], by_name["step"].median / facts.get("devices", 1)  # of one
    efficiency = scaling_forecast(
        DEVICES,
        step_seconds=facts["step_batch_size"] / step,
        gradient_bytes=facts["gradient_bytes"],
        bytes_per_second=facts["interconnect_gbps"] * 1e9 / 8,
    )
    reached = {n: n * step * efficiency[n] for n in DEVICES}
    columns = {
        f"{device}s": list(DEVICES),
        "efficiency": [f"{efficiency[n]:.0%}" for n in DEVICES],
        "images/s": [_cell(reached[n]) for n in DEVICES],
    }
    note = (
        f"A forecast. Step: {by_name['step'].what}. Each {device} keeps its batch of {facts['step_batch_size']}; "
        f"a ring all-reduce moves {facts['gradient_bytes'] / 1e6:,.1f} MB of gradients over "
        f"{facts['interconnect_gbps']:g} Gbit/s after every step, without overlap: the pessimistic end. "
    )
    if device == "host":  # it trains on the cores that read
        title = f"{DEVICES[-1]} hosts like this one would train at {rate_text(reached[DEVICES[-1]])} images/s"
        host = math.inf
        note += "--gpu_step_rate adds the cores that the input of GPUs needs."
    else:
        title = f"The input reaches {host / step:.0%} of what one {device} needs for {rate_text(step)} images/s"
        needed = cores_for(DEVICES, gpu_images_per_second=step, images_per_second_per_core=host / cores)
        columns["cores needed"] = [needed[n] for n in DEVICES]
        columns[f"hosts of {count(cores, 'core')}"] = [math.ceil(needed[n] / cores) for n in DEVICES]
        note += "Cores: at the measured rate a core."
    _forecast_figure(page, directory, title, reached, step, host, device)
    page.table(title, tuple(columns), list(zip(*columns.values(), strict=True)), note=note)


def _forecast_figure(
    page: HtmlReport, directory: Path, title: str, rates: Mapping[int, float], step: float, host: float, device: str
) -> None:
    figure = new_figure(_PHONE, 3)
    axes = figure.add_subplot()
    counts = list(rates)
    axes.plot(counts, [n * step for n in counts], color=_OTHERS, linestyle="--")
    axes.annotate("linear ", (counts[-1], counts[-1] * step), ha="right", va="bottom", color=GRAY)
    axes.plot(counts, list(rates.values()), color=BLUE, marker="o")
    for n, rate in rates.items():
        axes.annotate(rate_text(rate), (n, rate), (5, -4), textcoords="offset points", va="top")
    top = counts[-1] * step * 1.15
    if host < top:
        axes.axhline(host, color=ORANGE)
        axes.annotate(f"input: {rate_text(host)}", (9, host), (0, 3), textcoords="offset points", ha="right")
    axes.yaxis.set_major_formatter("{x:,.0f}" if top >= 10 else "{x:g}")
    axes.set(xlabel=f"{device}s (forecast)", ylabel="images/s", xticks=counts, ylim=(0, top), xlim=(0.5, 9))
    alt = ", ".join(f"{n} {device}s {rate_text(rate)}" for n, rate in rates.items()) + " images/s"
    page.figure(title, figure, alt=f"{alt}; input {rate_text(host)}", png=directory / _FORECAST)


def simulated(page: HtmlReport, directory: Path, rows: Sequence[Measurement]) -> None:
    """What replicas reach whose step sleeps as long as a GPU would work, beside as many times one GPU's rate."""
    rate = rows[0].settings["step_rate"]
    reached = {int(m.name.split()[1]): m for m in rows if m.name != CONTROL and "real" not in m.name}
    most = max(reached)
    share = reached[most].median / (most * rate)
    title = f"Of GPUs that sleep instead of computing, {most} reach {share:.0%} of {most} times one GPU's rate"
    figure = new_figure(_PHONE, 3)
    axes = figure.add_subplot()
    axes.plot(list(reached), [n * rate for n in reached], color=_OTHERS, linestyle="--")
    axes.annotate("linear ", (most, most * rate), ha="right", va="bottom", color=GRAY)
    axes.plot(list(reached), [m.median for m in reached.values()], color=BLUE, marker="o")
    for n, m in reached.items():
        axes.plot((n, n), m.spread, color="black", linewidth=1.5)
        axes.annotate(rate_text(m.median), (n, m.median), (5, -4), textcoords="offset points", va="top")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="replicas that sleep", ylabel="images/s", xticks=list(reached), xlim=(0.5, most + 1.5))
    axes.set_ylim(bottom=0)
    alt = ", ".join(f"{n} replicas {rate_text(m.median)}" for n, m in reached.items()) + " images/s"
    page.figure(title, figure, alt=alt, png=directory / "simulated_gpu.png")
    page.table(
        title, ("what", "images/s", "min", "max", "busy cores", "reached"),
        [(m.name, _cell(m.median), *map(_cell, m.spread), m.busy_cores or "", m.what) for m in rows],
        note=f"No GPU was used: a step sleeps as long as one of {rate_text(rate)} images/s would work. Workers that "
        "make batches sleep, too, in all rows but that of real input.",
    )  # fmt: skip


def costs(page: HtmlReport, found: Bottleneck, rows: Sequence[Measurement]) -> None:
    """What a million images cost at the predicted pace, unchanged and as advised."""
    price = next((m.settings["forecast"]["price_per_hour"] for m in rows if "forecast" in m.settings), 0)
    if not price:
        return
    changes = (Advice("unchanged", 1.0), *(advice for advice in found.advice if advice.change.startswith("--")))
    rates = {advice.change: found.images_per_second * advice.factor for advice in changes}
    page.table(
        "Cost of a million images",
        ("change", "images/s", "price of a million"),
        [(change, _cell(rate), cost_per_million(rate, price)) for change, rate in rates.items()],
        note=f"One pass over a million images at the predicted pace, on a machine that costs {price:g} an hour.",
    )


def validation(page: HtmlReport, directory: Path, rows: Sequence[Measurement]) -> None:
    """What was predicted beside what the advice brought when it was carried out."""
    reference = reference_of(rows)
    trials = [
        (m.name, m.settings["predicted"], *ratio(m, reference))
        for m in rows
        if m.settings.get("predicted") and comparable(m, reference)
    ]
    if not trials:
        return
    errors = [predicted / middle - 1 if middle else math.inf for _, predicted, middle, _, _ in trials]
    title = f"Predictions against measurements: the largest error is {max(errors, key=abs):+.0%}"
    _validation_figure(page, directory, title, trials)
    page.table(
        title,
        ("change", "predicted", "measured", "min", "max", "error of the prediction"),
        [
            (name, f"{predicted:.2f}x", f"{middle:.2f}x", low, high, f"{error:+.0%}" if middle else "")
            for (name, predicted, middle, low, high), error in zip(trials, errors, strict=True)
        ],
        note="Each change was carried out on a sample of the images, and the host's batches were measured in turns "
        "with those of the unchanged sample.",
    )


def _validation_figure(
    page: HtmlReport, directory: Path, title: str, trials: Sequence[tuple[str, float, float, float, float]]
) -> None:
    figure = new_figure(_PHONE, 0.6 * len(trials) + 0.9)
    axes = figure.add_subplot()
    for position, (_, predicted, middle, low, high) in enumerate(trials):
        axes.barh(position - 0.2, predicted, 0.36, color=ORANGE)
        axes.barh(position + 0.2, middle, 0.36, color=BLUE)
        axes.plot((low, high), (position + 0.2, position + 0.2), color="black", linewidth=1.5)
        _write_beside(axes, predicted, position - 0.2, f"predicted {predicted:.2f}x")
        _write_beside(axes, high, position + 0.2, f"measured {middle:.2f}x")
    axes.set_yticks(range(len(trials)), [name.replace(" (", "\n(") for name, *_ in trials])
    axes.invert_yaxis()
    widest = max(max(predicted, high) for _, predicted, _, _, high in trials)
    axes.set(xlabel="host batches, relative to the unchanged sample", xlim=(0, widest * 1.5))
    alt = ", ".join(f"{name}: predicted {p:.2f}x, measured {m:.2f}x" for name, p, m, *_ in trials)
    page.figure(title, figure, alt=alt, png=directory / _VALIDATION)


def comparison(page: HtmlReport, directory: Path, rows: Sequence[Measurement]) -> None:
    """One bar for each row of a suite, ours in color."""
    reference = reference_of(rows)
    suite, unit = rows[0].suite, rows[0].unit
    chosen = [m for m in rows if m.name != CONTROL]
    figure = new_figure(_PHONE, 0.4 * len(chosen) + 0.9)
    axes = figure.add_subplot()
    for position, m in enumerate(chosen):
        low, high = m.spread
        axes.barh(position, m.median, color=BLUE if _is_ours(m) else _OTHERS)
        axes.plot((low, high), (position, position), color="black", linewidth=1.5)
        times = f" ({ratio(m, reference)[0]:.2f}x)" if comparable(m, reference) else ""
        _write_beside(axes, high, position, f"{rate_text(m.median)}{times}")
    axes.set_yticks(range(len(chosen)), [m.name for m in chosen])
    axes.invert_yaxis()
    widest = max(m.spread[1] for m in chosen)
    axes.set(xlim=(0, widest * 1.35 or 1), xlabel=f"{unit} (thin line: smallest to largest repeat)")
    note = f"Ratios are to {reference.name}."
    if (noise := _noise(rows, reference)) is not None:
        note += f" The same thing measured twice differed by {noise:.1%}."
    for absent, why in reference.settings.get("absent", {}).items():
        note += f" Not measured: {absent} ({why})."
    alt = ", ".join(f"{m.name} {rate_text(m.median)} {unit}" for m in chosen)
    page.figure(
        _title(suite, rows, reference), figure, alt=alt, note=note, png=directory / comparison_file(suite, unit)
    )


def comparison_file(suite: str, unit: str) -> str:
    """Name of the PNG that shows a suite."""
    words = f"{suite} {unit.replace('/', ' per ')}"
    return "".join(c if c.isalnum() else "_" for c in words) + ".png"


def files(measurements: Sequence[Measurement]) -> set[str]:
    """Names of all PNGs that a report of these measurements can have."""
    return {*_FILES, *(comparison_file(m.suite, m.unit) for m in measurements)}


def _noise(rows: Sequence[Measurement], reference: Measurement) -> float | None:
    """How far the reference, measured twice, differs from itself; None where it was measured once."""
    control = next((m for m in rows if m.name == CONTROL), None)
    return abs(ratio(control, reference)[0] - 1) if control and comparable(control, reference) else None


def _title(suite: str, rows: Sequence[Measurement], reference: Measurement) -> str:
    """The message: how ours, which stands first, compares with the fastest other, or the best with the reference."""
    title, noise = suite[:1].upper() + suite[1:], _noise(rows, reference) or 0.0
    rows = [m for m in rows if m.name != CONTROL]
    ours, others = [m for m in rows if _is_ours(m)], [m for m in rows if not _is_ours(m)]
    if not ours or not any(m.median for m in rows):
        return title
    # Our other rows have more cores, or another task.
    one = ours[0] if others else max(ours, key=lambda m: m.median)
    other = max(others, key=lambda m: m.median) if others else reference
    if not comparable(one, other):
        return title
    if one is other:
        return f"{title}: nothing is faster than {reference.name}"
    times, which = ratio(one, other)[0], ", the fastest other" if others else ""
    if abs(times - 1) <= noise:
        return f"{title}: {one.name} and {other.name}{which}, differ by no more than the noise of {noise:.1%}"
    return f"{title}: {one.name} at {times:.2f} times the rate of {other.name}{which}"


def earlier(page: HtmlReport, measurements: Sequence[Measurement], before: Sequence[Measurement]) -> None:
    """These rates beside those of an earlier report."""
    old = {(m.suite, m.name): m.median for m in before}
    rows = [
        (m.suite, m.name, m.unit, _cell(rate), _cell(m.median), m.median / rate if rate else "")
        for m in measurements
        if (rate := old.get((m.suite, m.name))) is not None
    ]
    note = "Measured at different times: only differences far beyond the noise of both reports mean anything."
    page.table(
        "Compared with the earlier report", ("suite", "name", "unit", "before", "now", "now / before"), rows, note
    )


def _is_ours(m: Measurement) -> bool:
    return m.name.startswith("shardline")


def _megabytes(m: Measurement) -> float | str:
    stored = m.settings.get("facts", {}).get("image_bytes")
    return m.median * stored / 1e6 if stored and m.unit == "images/s" else ""


def _cell(value: float | str) -> float | str:
    """Large numbers without decimals: the table would write them with an exponent."""
    return value if isinstance(value, str) or not math.isfinite(value) or value < 1000 else round(value)
