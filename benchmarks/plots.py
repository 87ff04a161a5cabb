"""The sections of the report: tables and figures out of measurements. Nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shardline.benchmarks.bottleneck import (
    HOST_STAGES,
    STAGES,
    Verdict,
    cores_for,
    cost_per_million,
    scaling_forecast,
    stage_seconds,
)
from shardline.benchmarks.measure import CONTROL, Measurement, baseline_of, comparable, ratio
from shardline.tools.plot_style import PALETTE, new_figure

DEVICES = (1, 2, 4, 8)
HEADER = ("suite", "name", "unit", "median", "min", "max", "ratio", "per core", "busy cores", "MB/s", "what it did")
_OURS, _OTHERS, _CEILING = PALETTE[0], "#999999", PALETTE[1]
_PHONE = 4.8  # inches: figures this narrow fit a phone at a legible size


def row(m: Measurement, rows: Sequence[Measurement]) -> tuple[Any, ...]:
    """A measurement under HEADER."""
    base = baseline_of(rows)
    return (
        m.suite,
        m.name,
        m.unit,
        _cell(m.median),
        *map(_cell, m.spread),
        ratio(m, base)[0] if comparable(m, base) else "",
        _cell(m.per_core or ""),
        m.busy_cores or "",
        _cell(_megabytes(m)),
        m.what,
    )


def verdict(page: Any, judged: Verdict, rows: Sequence[Measurement]) -> None:
    """The sentence, and whether training kept the pace it foretells."""
    lines = [str(judged), f"Predicted pace of training: {_text(judged.images_per_second)} images/s."]
    measured = next((m for m in rows if m.name == "end_to_end"), None)
    if measured is not None:
        error = judged.images_per_second / measured.median - 1
        lines[1] += f" Measured end to end: {_text(measured.median)} (the prediction is off by {error:+.0%})."
    page.text("Verdict", *lines)


def ladder(page: Any, directory: Path, rows: Sequence[Measurement]) -> None:
    """Where the host's time goes, how fast each stage could go, and how much of the ceilings it reaches."""
    rates = {m.name: m for m in rows if m.median > 0 and m.name != CONTROL}
    seconds = stage_seconds({name: m.median for name, m in rates.items()})
    if sum(seconds.values()) > 0:
        _host_time(page, directory, seconds)
    names = [name for stage in STAGES for name in (stage, f"{stage} (cold)") if name in rates]
    title = "How fast each stage could go"
    if names:
        _rates(page, directory, title, [rates[name] for name in names])
    page.table(
        title,
        ("stage", "images/s", "min", "max", "per core", "CPU use", "MB/s", "of decode", "of storage", "what"),
        [_ladder_row(m, rates) for m in sorted(rows, key=lambda m: names.index(m.name) if m.name in names else 99)],
        note="CPU use: of all cores. Of decode, of storage: the share that a stage reaches of the rate at which whole "
        "images are decoded, and of that at which the bytes are read, both from memory. Cold: after the page cache "
        "was dropped, each record at most once; the others find the bytes in memory.",
    )


def _ladder_row(m: Measurement, rates: Mapping[str, Measurement]) -> tuple[Any, ...]:
    def share(ceiling: str) -> str:
        stage = m.name.split()[0]
        above = stage in STAGES and STAGES.index(stage) >= STAGES.index(ceiling) and stage != "copy"
        return f"{m.median / rates[ceiling].median:.1%}" if above and ceiling in rates else ""

    cores = m.settings.get("facts", {}).get("cores")
    use = f"{m.busy_cores / cores:.0%}" if m.busy_cores and cores else ""
    numbers = map(_cell, (m.median, *m.spread, m.per_core or ""))
    mega = "" if m.name in ("copy", "step") else _cell(_megabytes(m))
    return (m.name, *numbers, use, mega, share("decode"), share("storage"), m.what)


def _host_time(page: Any, directory: Path, seconds: Mapping[str, float]) -> None:
    heavy = max(seconds, key=lambda stage: seconds[stage])
    title = f"{heavy} takes {seconds[heavy] / sum(seconds.values()):.0%} of the host's time"
    figure = new_figure(_PHONE, 2.2)
    axes = figure.subplots()
    stages = [stage for stage in HOST_STAGES if stage in seconds]
    for position, stage in enumerate(stages):
        width = seconds[stage] * 1e6
        axes.barh(position, width, color=PALETTE[HOST_STAGES.index(stage) % len(PALETTE)])
        axes.text(width, position, f" {_text(width)}", va="center")
    axes.set_yticks(range(len(stages)), stages)
    axes.invert_yaxis()
    axes.set(xlabel="µs an image (wall clock, all cores together)", xlim=(0, max(seconds.values()) * 1.15e6))
    _bare(axes)
    alt = ", ".join(f"{stage} {value * 1e6:.0f} µs" for stage, value in seconds.items())
    page.figure(title, figure, alt=alt, png=directory / "host_time.png")


def _rates(page: Any, directory: Path, title: str, rows: Sequence[Measurement]) -> None:
    figure = new_figure(_PHONE, 0.36 * len(rows) + 0.9)
    axes = figure.subplots()
    for position, m in enumerate(rows):
        low, high = m.spread
        color = _OURS if m.name in HOST_STAGES else PALETTE[5] if "cold" in m.name else _CEILING
        axes.plot((max(low, high / 1e6), high), (position, position), color="black", linewidth=1.5, zorder=1)
        axes.scatter(m.median, position, s=50, color=color, zorder=2)
        axes.annotate(_text(m.median), (high, position), (8, 0), textcoords="offset points", va="center")
    # Stages differ by orders of magnitude; the figure above has the zero-based view.
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.xaxis.set_minor_formatter("")
    axes.grid(axis="x", color="#dddddd")
    axes.set_yticks(range(len(rows)), [m.name.replace("_", " ") for m in rows])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(xlabel="images/s, logarithmic (black: smallest to largest repeat)")
    _bare(axes)
    alt = ", ".join(f"{m.name} {_text(m.median)}" for m in rows) + " images/s"
    page.figure(title, figure, alt=alt, png=directory / "ladder.png")


def _short(value: float) -> str:
    """1k for 1000: room for every power of ten."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def outlook(page: Any, directory: Path, rows: Sequence[Measurement]) -> None:
    """What 1, 2, 4, 8 devices would reach, and what feeds them."""
    by_name = {m.name: m for m in rows}
    stated = by_name["batch"].settings.get("outlook")
    if stated is None or "step" not in by_name:
        return
    facts, step, host = by_name["batch"].settings["facts"], by_name["step"].median, by_name["batch"].median
    device = stated["device"]
    efficiency = scaling_forecast(
        DEVICES,
        step_seconds=stated["step_batch_size"] / step,
        gradient_bytes=stated["gradient_bytes"],
        wire_bytes_per_second=stated["interconnect_gbps"] * 1e9 / 8,
    )
    reached = {n: n * step * efficiency[n] for n in DEVICES}
    forecast = (
        f"A forecast. Step: {by_name['step'].what}. Each {device} keeps its batch of {stated['step_batch_size']}; "
        f"a ring all-reduce moves {stated['gradient_bytes'] / 1e6:,.1f} MB of gradients over "
        f"{stated['interconnect_gbps']:g} Gbit/s after every step, without overlap: the pessimistic end."
    )
    if device == "host":  # trains on its own cores, which feed it
        title = f"{DEVICES[-1]} hosts like this one would reach {_text(reached[DEVICES[-1]])} images/s"
        _forecast(page, directory, title, reached, step, math.inf, device)
        page.table(
            title,
            ("hosts", "efficiency", "images/s"),
            [(n, f"{efficiency[n]:.0%}", _cell(reached[n])) for n in DEVICES],
            note=f"{forecast} --gpu_step_rate tells what would feed GPUs.",
        )
        return
    cores = cores_for(DEVICES, gpu_images_per_second=step, images_per_second_per_core=host / facts["cores"])
    title = f"This host feeds {_text(host / step)} {device}s of {_text(step)} images/s"
    _forecast(page, directory, title, reached, step, host, device)
    machines = {n: math.ceil(cores[n] / facts["cores"]) for n in DEVICES}
    page.table(
        title,
        (f"{device}s", "efficiency", "images/s", "cores that feed them", f"hosts of {facts['cores']} cores"),
        [(n, f"{efficiency[n]:.0%}", _cell(reached[n]), cores[n], machines[n]) for n in DEVICES],
        note=f"{forecast} Cores: at the measured rate a core.",
    )


def costs(page: Any, judged: Verdict, rows: Sequence[Measurement]) -> None:
    """What a million images cost at the predicted pace, as it is and as advised."""
    price = next((m.settings["outlook"]["price_per_hour"] for m in rows if "outlook" in m.settings), 0)
    if price:
        advised = {f"with {advice.change}": advice.factor for advice in judged.advice if advice.change.startswith("--")}
        page.table(
            "Cost of a million images",
            ("how", "images/s", "price of a million"),
            [
                (
                    how,
                    _cell(judged.images_per_second * factor),
                    cost_per_million(judged.images_per_second * factor, price),
                )
                for how, factor in ({"as it is": 1.0} | advised).items()
            ],
            note=f"One pass over a million images at {price:g} an hour for this machine, at the predicted pace.",
        )


def _forecast(
    page: Any, directory: Path, title: str, rates: Mapping[int, float], step: float, host: float, device: str
) -> None:
    figure = new_figure(_PHONE, 3)
    axes = figure.subplots()
    counts = list(rates)
    axes.plot(counts, [n * step for n in counts], color=_OTHERS, linestyle="--")
    axes.annotate("linear ", (counts[-1], counts[-1] * step), ha="right", va="bottom", color="#666666")
    axes.plot(counts, list(rates.values()), color=_OURS, marker="o")
    for n, rate in rates.items():
        axes.annotate(_text(rate), (n, rate), (5, -4), textcoords="offset points", va="top", color=_OURS)
    top = counts[-1] * step * 1.15
    if host < top:
        axes.axhline(host, color=_CEILING)
        axes.annotate(f"this host feeds {_text(host)}", (9, host), (0, 3), textcoords="offset points", ha="right")
    axes.yaxis.set_major_formatter("{x:,.0f}" if top >= 10 else "{x:g}")
    axes.set(xlabel=f"{device}s (forecast)", ylabel="images/s", xticks=counts, ylim=(0, top), xlim=(0.5, 9))
    _bare(axes)
    alt = ", ".join(f"{n} {device}s {_text(rate)}" for n, rate in rates.items()) + f" images/s; host {_text(host)}"
    page.figure(title, figure, alt=alt, png=directory / "forecast.png")


def proof(page: Any, directory: Path, rows: Sequence[Measurement]) -> None:
    """What the verdict foretold beside what its advice brought when carried out."""
    base = baseline_of(rows)
    found = []
    for m in rows:
        predicted = m.settings.get("predicted")
        if predicted and comparable(m, base):
            found.append((m.name, predicted, *ratio(m, base)))
    unproved = "".join(f" Not carried out: {what}, {why}." for what, why in base.settings.get("unproved", {}).items())
    if not found:
        return
    worst = max(found, key=lambda item: abs(item[1] / item[2] - 1) if item[2] else math.inf)
    error = worst[1] / worst[2] - 1 if worst[2] else math.inf
    title = f"Predictions against measurements: the worst is off by {error:+.0%}"
    figure = new_figure(_PHONE, 0.6 * len(found) + 0.9)
    axes = figure.subplots()
    for position, (_, predicted, middle, low, high) in enumerate(found):
        axes.barh(position - 0.2, predicted, 0.36, color=_CEILING)
        axes.barh(position + 0.2, middle, 0.36, color=_OURS)
        axes.plot((low, high), (position + 0.2, position + 0.2), color="black", linewidth=1.5)
        axes.text(predicted, position - 0.2, f" predicted {predicted:.2f}x", va="center")
        axes.text(high, position + 0.2, f" measured {middle:.2f}x", va="center")
    axes.set_yticks(range(len(found)), [name.replace(" (", "\n(") for name, *_ in found])
    axes.invert_yaxis()
    axes.set(xlabel="host batches, times the sample as it is", xlim=(0, max(max(f[1], f[4]) for f in found) * 1.5))
    _bare(axes)
    alt = ", ".join(f"{name}: predicted {p:.2f}x, measured {m:.2f}x" for name, p, m, *_ in found)
    page.figure(title, figure, alt=alt, png=directory / "proof.png")
    page.table(
        title,
        ("change", "predicted", "measured", "min", "max", "error of the prediction"),
        [(n, f"{p:.2f}x", f"{m:.2f}x", low, high, f"{p / m - 1:+.0%}" if m else "") for n, p, m, low, high in found],
        note="Each change was carried out on a sample of the images and the host's batches were measured in turns "
        f"with those of the same sample as it is.{unproved}",
    )


def suite(page: Any, directory: Path, rows: Sequence[Measurement]) -> None:
    """Bars of everybody in a suite, ours in color."""
    base = baseline_of(rows)
    name = rows[0].suite
    for unit in dict.fromkeys(m.unit for m in rows):
        chosen = [m for m in rows if m.unit == unit and m.name != CONTROL]
        if not chosen:
            continue
        figure = new_figure(_PHONE + 1, 0.4 * len(chosen) + 0.9)
        axes = figure.subplots()
        for position, m in enumerate(chosen):
            low, high = m.spread
            axes.barh(position, m.median, color=_OURS if _is_ours(m) else _OTHERS)
            axes.plot((low, high), (position, position), color="black", linewidth=1.5)
            text = f" {_text(m.median)}"
            if comparable(m, base):
                text += f" ({ratio(m, base)[0]:.2f}x)"
            axes.text(high, position, text, va="center")
        axes.set_yticks(range(len(chosen)), [m.name for m in chosen])
        axes.invert_yaxis()
        axes.set(
            xlim=(0, max(m.spread[1] for m in chosen) * 1.35 or 1), xlabel=f"{unit} (black: smallest to largest repeat)"
        )
        _bare(axes)
        control = next((m for m in rows if m.name == CONTROL and m.unit == unit), None)
        note = f"Ratios are to {base.name}."
        if control is not None and comparable(control, base):
            note += f" The same thing measured twice differed by {abs(ratio(control, base)[0] - 1):.1%}."
        for absent, why in base.settings.get("absent", {}).items():
            note += f" Not measured: {absent} ({why})."
        alt = ", ".join(f"{m.name} {_text(m.median)} {unit}" for m in chosen)
        file = "".join(c if c.isalnum() else "_" for c in f"{name} {unit.replace('/', ' per ')}")
        page.figure(_title(name, chosen, base), figure, alt=alt, note=note, png=directory / f"{file}.png")


def _title(name: str, rows: Sequence[Measurement], base: Measurement) -> str:
    """The message: how ours, which stands first, does against the fastest other, or the best against its start."""
    ours = [m for m in rows if _is_ours(m)]
    others = [m for m in rows if not _is_ours(m)]
    if not ours or not any(m.median for m in rows):
        return name
    if not others:
        best = max(ours, key=lambda m: m.median)
        if not comparable(best, base):
            return name
        times = f"{ratio(best, base)[0]:.2f}x {base.name}"
        return f"{name}: {best.name} {times}" if best is not base else f"{name}: nothing beats {base.name}"
    fastest = max(others, key=lambda m: m.median)
    if not fastest.median:
        return name
    # Its other rows have more cores, or another task.
    return f"{name}: {ours[0].name} {ours[0].median / fastest.median:.2f}x {fastest.name}, the fastest other"


def against(page: Any, measurements: Sequence[Measurement], baseline: Sequence[Measurement]) -> None:
    """These rates beside those of an earlier report."""
    before = {(m.suite, m.name): m for m in baseline}
    rows = []
    for m in measurements:
        old = before.get((m.suite, m.name))
        if old is not None:
            rows.append(
                (
                    m.suite,
                    m.name,
                    m.unit,
                    _cell(old.median),
                    _cell(m.median),
                    m.median / old.median if old.median else "",
                )
            )
    note = "Taken at different times: only differences well beyond the control's mean anything."
    page.table("Against the baseline", ("suite", "name", "unit", "before", "now", "now / before"), rows, note=note)


def _is_ours(m: Measurement) -> bool:
    return m.name.startswith("shardline")


def _megabytes(m: Measurement) -> float | str:
    stored = m.settings.get("facts", {}).get("image_bytes")
    return m.median * stored / 1e6 if stored and m.unit == "images/s" else ""


def _cell(value: float | str) -> float | str:
    """Large numbers without decimals: the table would write them with an exponent."""
    return value if isinstance(value, str) or not math.isfinite(value) or value < 1000 else round(value)


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _bare(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
