"""report.html: notes that differ in their numbers only are one row, with the span of each number; odd images fit."""

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


def test_notes_that_differ_in_digits_are_grouped(tmp_path, capsys):
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
    said = "note: 3 images have little contrast, e.g. one uses 30"
    assert said in capsys.readouterr().err  # on the terminal, too, with what helps
    convert(config(tmp_path / "s", tmp_path / "scaled", image={"depth_range": "image"}))
    assert "little contrast" not in capsys.readouterr().err


def test_strips_of_one_pixel_have_a_place_on_the_contact_sheet(tmp_path):
    for height, width in ((1, 300), (300, 1), (40, 70_000)):
        draw(tmp_path / "s" / "a" / f"{height}x{width}.png", width, height, width)
    convert(config(tmp_path / "s", tmp_path / "d", report=True, image={"encoding": "png", "size": 256}))
    sheet = cv2.imread(str(tmp_path / "d" / "plots" / "contact_sheet.png"))
    assert (sheet < 200).any()
