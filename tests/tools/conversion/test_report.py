"""report.html: notes that differ in their numbers only are one row, with the span of each number."""

import html
import re

import cv2
import numpy as np
from PIL import Image

from shardline.tools.conversion.run import convert
from tests.tools.folders import config, draw


def rows(page):
    """Cells of the table of formats and notes."""
    table = page[page.index("format or note") :]
    found = re.findall(
        r"<tr>\s*<t[dh][^>]*>(.*?)</t[dh]>\s*<t[dh][^>]*>(.*?)</t[dh]>", table[: table.index("</table>")], re.S
    )
    return {html.unescape(name): number for name, number in found}


def test_notes_that_differ_in_digits_are_grouped(tmp_path):
    folder = tmp_path / "s" / "a"
    for number in range(3):
        draw(folder / f"{number}.png", number)
        levels = np.full((40, 60), 1000 * number, np.uint16)
        levels[0, 0] += 300 + number
        cv2.imwrite(str(folder / f"deep{number}.png"), levels)
        frames = [Image.new("L", (8, 8), 40 * i) for i in range(number + 2)]
        frames[0].save(folder / f"{number}.gif", save_all=True, append_images=frames[1:])
    convert(config(tmp_path / "s", tmp_path / "d", report=True))
    found = rows((tmp_path / "d" / "report.html").read_text())
    assert found["first frame of 2 to 4"] == "3"
    assert found["uses 300 to 302 of 65,535 levels"] == "3"
