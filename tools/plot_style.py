"""How every plot looks: colors, figures, and their rendering to SVG for pages and to PNG for files. No TensorFlow.

Matplotlib is imported with the first figure.
"""

from __future__ import annotations

import io
import os
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardline.pipeline.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe-Ito: distinguishable with every common kind of color blindness. One thing keeps one color on every page.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
BLUE, ORANGE, GREEN, RED, PINK, SKY, *_ = PALETTE
GRAY = "#57606a"  # what is there for orientation: reference lines, notes
GRID = "#d0d7de"
BLACK = "#010101"  # on a light mark, whatever the ink of the page is
SPLIT_COLORS = {"train": BLUE, "validation": ORANGE, "test": GREEN}
MOST_SVG = 150_000  # characters of a plot whose marks are all drawn one by one


def new_figure(width: float = 8, height: float = 4) -> Figure:
    """A figure in inches outside pyplot's global list: no display is needed and nothing has to be closed."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def set_title(figure: Figure, message: str) -> None:
    """Say above the figure what it shows, in as many lines as that takes."""
    figure.suptitle(textwrap.fill(message, max(24, int(12 * figure.get_figwidth()))), fontsize=11)


@dataclass(frozen=True)
class Plot:
    """A drawn figure: an SVG element in the ink of whatever page it stands in, and a PNG on white for files."""

    svg: str
    png: bytes


def render(figure: Figure) -> Plot:
    """Draw a figure both ways and close it."""
    return Plot(figure_svg(figure), figure_png(figure))


def ink_on(red: float, green: float, blue: float) -> str:
    """White or black, whichever has more contrast with a color (its parts 0 to 1); 4.5:1 or more."""
    parts = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in (red, green, blue))  # WCAG 2
    luminance = sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))
    return "white" if luminance < 0.179 else BLACK


def _open_frames(figure: Figure) -> None:
    """Charts lose the frame's upper and right side, images keep theirs."""
    for axes in figure.axes:
        if not axes.images:
            axes.spines[["top", "right"]].set_visible(False)


def figure_svg(figure: Figure) -> str:
    """A figure as an SVG element that takes the ink of the page it stands in; the figure stays open.

    Equal figures give equal text. Marks of a color keep it, what is black is drawn in the color of text, what is GRAY
    in that of notes. Where marks are so many that the text would be long, they become an image within it.
    """
    _open_frames(figure)
    text = _saved_svg(figure)
    if len(text) > MOST_SVG:
        for axes in figure.axes:
            for marks in (*axes.lines, *axes.collections):
                marks.set_rasterized(True)
        text = _saved_svg(figure)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>| xmlns(:xlink)?=\"[^\"]*\"", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to them, and each figure has the same ones
    return text.replace("#000000", "currentColor").replace(GRID, "var(--line)").replace(GRAY, "var(--soft)")


def _saved_svg(figure: Figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "shardline"}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, dpi=144, metadata=metadata)
    return buffer.getvalue()


def figure_png(figure: Figure) -> bytes:
    """Render a figure to PNG bytes and close it."""
    _open_frames(figure)
    buffer = io.BytesIO()
    # No software version inside: equal figures give equal bytes.
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    figure.clear()
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, whole or not at all, into a folder that is made if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, figure_png(figure), durable=False)


def percent() -> PercentFormatter:
    """Ticks of shares as percentages, with as many decimals as they need."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1)


def whole_numbers() -> MaxNLocator:
    """Ticks at whole numbers: of an axis that counts."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True)
