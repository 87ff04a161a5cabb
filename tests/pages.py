"""Every page there is, made by the real commands, and looked at in Chromium: `python -m tests.pages --output FOLDER`.

Leaves a PNG of each page at the width of a phone and of a desk, light and dark, for people to look at, and tells what
no page may have: text that is cut, that overflows or that has too little contrast, images that are broken, long tables
that are not folded, pages that are too large, words that no person would write.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import shutil
import sys
import threading
from pathlib import Path

import cv2
import numpy as np

from shardline.benchmarks.measure import load_results
from shardline.benchmarks.report import write_report
from shardline.tools.browse import BrowseConfig, browse
from shardline.trainer.run_dir import read_config, write_config
from tests.browser import Browser
from tests.tools.folders import ROOT
from tests.trainer.tiny import command, draw, save

WIDTHS = 390, 1200
CLASSES = 2, 12, 1000
MOST_BYTES, LEAST_CONTRAST, SLICE = 2_000_000, 4.5, 4000
BENCHMARKS = "epyc-2-cores", "bottleneck", "simulated_gpu"
LONG_NAME = "a class with a rather long name, number"

# ------------------------------------------------------------------------------------------------------ the pages


def make(folder: Path, classes: int) -> dict[str, Path]:
    """The pages of a dataset of so many classes, of a run on it, its evaluation and their comparison, by name."""
    photos(folder / "photos", classes)
    data, runs = folder / "data", folder / "runs"
    command("shardline.tools.convert", "--source", folder / "photos", "--output", data, "--size", 40, "--min_side", 30)
    run = runs / "first run"
    command(
        "shardline.trainer.train", "--data", data, "--workdir", run, "--width", 0.05, "--image_size", 32,
        "--phases", "head:1@1e-2,all:2@2e-2", "--global_batch_size", min(12 * classes, 200), "--precision", "float32",
        "--nojit", "--log_every_steps", 1,
    )  # fmt: skip
    command("shardline.trainer.evaluate", "--run", run, "--data", data, "--split", "test", "--batch_size", 50)
    for number in range(10 if classes == 12 else 1):
        again = runs / f"second run with another learning rate {number}"
        shutil.copytree(run, again)
        content = read_config(again)
        content["train"]["phases"] = f"head:1@{number + 1}e-3,all:2@1e-3"
        write_config(again, content)
    command("shardline.trainer.compare", runs, "--output", folder / "compared")
    return {
        f"conversion-{classes}": data / "report.html",
        f"run-{classes}": run / "report.html",
        f"evaluation-{classes}": run / "evaluation-test" / "report.html",
        f"compared-{classes}": folder / "compared" / "compare.html",
    }


def photos(folder: Path, classes: int) -> None:
    """A few images of each class, with copies, look-alikes across splits, and files that are set aside."""
    random = np.random.default_rng(0)
    few = classes > 100
    for label in range(classes):
        name = f"{LONG_NAME} {label}" if label % 5 == 1 else f"class {label}"
        color = tuple(int(x) for x in random.integers(0, 255, 3))
        for split, number in (("train", 3 if few else 12), ("validation", 1 if few else 4), ("test", 2 if few else 9)):
            for image in range(number):
                save(folder / split / name / f"{image}.jpg", draw(random, color))
        train, test = folder / "train" / name, folder / "test" / name
        if label % 7 == 0:
            shutil.copy(train / "0.jpg", test / "copy of a training image.jpg")
            again = cv2.cvtColor(cv2.imread(str(train / "1.jpg")), cv2.COLOR_BGR2RGB)
            save(test / "saved again.jpg", again, cv2.IMWRITE_JPEG_QUALITY, 60)
            (train / f"cut {label}.jpg").write_bytes((train / "2.jpg").read_bytes()[:300])
            save(train / f"small {label}.png", np.zeros((9, 9, 3), np.uint8))


def benchmarks(folder: Path) -> dict[str, Path]:
    """The pages of the published measurements, drawn anew."""
    pages = {}
    for name in BENCHMARKS:
        shutil.copytree(ROOT / "benchmarks" / "results" / name, folder / name)
        rows = load_results(folder / name)
        write_report(folder / name, rows, rows)
        pages[f"benchmark-{name}"] = folder / name / "report.html"
    return pages


@contextlib.contextmanager
def browsed(folder: Path, classes: int):
    """Addresses of what shardline-browse serves of what `make` made, by name."""
    config = BrowseConfig(
        data=str(folder / "data"), run=str(folder / "runs/first run"), sources=(str(folder / "photos"),)
    )
    with browse(config) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        asked = {
            "": "",
            "-mistakes": "?prediction=wrong&order=most+confident+first",
            "-set-aside": "?status=quarantined",
            "-record": "record/1",
            "-none": "?text=nothing+has+this+name",
        }
        yield {f"browse{name}-{classes}": server.url + query for name, query in asked.items()}
        server.shutdown()


# ------------------------------------------------------------------------------------------------ what they may not

WORDS = re.compile(
    r"\{'|\bnan\b|\bN/A\b|\bNaN\b|Infinity|undefined|\[object|(?<![\d.,])1 (?:image|record|classe|file|epoch|step|core|"
    r"run|input|shard|pair|mistake|row|label|copie|turn|worker|host|GPU)s\b(?!/s)|\d ?%%|\d %"
)
TEXTS = """
(() => {
  const found = [];
  const seen = new Map();
  const clip = element => {  // what scrolling ancestors leave of an element
    if (!element) return [0, 0, innerWidth, 1e9];
    if (!seen.has(element)) {
      let [left, top, right, bottom] = clip(element.parentElement);
      if (!/visible/.test(getComputedStyle(element).overflowX) && !(element instanceof SVGElement)) {
        const box = element.getBoundingClientRect();
        [left, right] = [Math.max(left, box.left), Math.min(right, box.right)];
        [top, bottom] = [Math.max(top, box.top), Math.min(bottom, box.bottom)];
      }
      seen.set(element, [left, top, right, bottom]);
    }
    return seen.get(element);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const element = node.parentElement;
    if (!node.textContent.trim() || element.closest('script, style, defs, option')) continue;
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const drawn = element instanceof SVGElement;
    const box = drawn ? element.getBoundingClientRect() : range.getClientRects()[0];
    const [left, top, right, bottom] = clip(element);
    if (!box || box.width < 2 || box.left < left || box.right > right + 1 || box.top < top || box.bottom > bottom + 1)
      continue;
    const style = getComputedStyle(element);
    found.push([box.left, box.top + scrollY, box.width, box.height, drawn ? style.fill : style.color,
      node.textContent.trim().slice(0, 40)]);
  }
  return found;
})()
"""
FAULTS = """
(() => {
  const all = selector => [...document.querySelectorAll(selector)];
  const found = [];
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) {
    const widest = all('body *').filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(
      '.wide, nav, figure.plot, pre'))[0];
    found.push(`${wide} pixels wide: ${widest ? widest.outerHTML.slice(0, 100) : '?'}`);
  }
  for (const image of document.images) if (!image.naturalWidth) found.push(`broken image: ${image.alt}`);
  for (const image of document.images) if (!image.alt) found.push('an image without words');
  for (const table of all('table')) if (table.tBodies[0].rows.length > 50 && !table.closest('details'))
    found.push(`${table.tBodies[0].rows.length} rows that are not folded`);
  for (const plot of all('.plot')) if (plot.scrollWidth > plot.clientWidth + 1 &&
    !getComputedStyle(plot, '::before').content.includes('scroll')) found.push('a plot is cut and does not say so');
  for (const links of all('nav')) if (innerWidth > 640 && links.scrollWidth > links.clientWidth + 1)
    found.push('links to sections are cut');
  if (all('.plot img').length) found.push('a plot that does not follow the colors of the page');
  return found;
})()
"""
SHOW_ALL = """
(async () => {
  for (const image of document.images) image.loading = 'eager';
  await Promise.all([...document.images].map(image => image.decode().catch(() => 0)));
  scrollTo(0, 0);
})()
"""


def faults(tab: Browser, url: str, width: int, *, dark: bool, picture: Path | None = None) -> list[str]:
    """What is wrong with a page in a window of a width, in light or dark colors; saves what is seen."""
    tab.size(width, 900, dark=dark)
    tab.open(url)
    tab.run(SHOW_ALL)
    found = tab.run(FAULTS)
    seen = whole_page(tab, width)
    if (_luminance(seen[0, 0]) < 0.1) != dark:
        found.append("it does not follow the colors that are preferred")
    for left, top, wide, high, color, text in tab.run(TEXTS):
        ratio = contrast(seen[int(top) : int(top + high) + 1, int(left) : int(left + wide) + 1], color)
        if ratio < LEAST_CONTRAST:
            found.append(f"contrast {ratio:.1f} of {text!r} at {left:.0f}, {top:.0f}")
    found += [f"{match[0]!r} in: {line[:120]}" for line in tab.run("document.body.innerText").splitlines()
              if (match := WORDS.search(line))]  # fmt: skip
    found += [problem for problem in tab.problems() if "status of 422" not in problem]  # an image that is damaged
    tab.events.clear()
    if picture:
        cv2.imwrite(str(picture), seen[..., ::-1])
    return found


def whole_page(tab: Browser, width: int) -> np.ndarray:
    """Uint8 RGB of all of a page, taken in slices: Chromium draws no larger ones."""
    height = tab.run("document.documentElement.scrollHeight")
    slices = [tab.pixels(0, top, width, min(SLICE, height - top)) for top in range(0, height, SLICE)]
    return np.concatenate(slices)


def contrast(pixels: np.ndarray, color: str) -> float:
    """Of text of a CSS color with what is behind it, the most frequent other color in its box; as WCAG 2 has it."""
    ink = np.array([float(x) for x in re.findall(r"[\d.]+", color)[:3]])
    colors, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    if not len(colors):
        return 21.0
    far = np.abs(colors - ink).sum(axis=1) > 24
    often = counts > 0.1 * counts.sum()
    back = colors[np.argmax(counts * (far & often if (far & often).any() else 1))]
    light, shade = sorted((_luminance(ink), _luminance(back)), reverse=True)
    return (light + 0.05) / (shade + 0.05)


def _luminance(rgb: np.ndarray) -> float:
    parts = np.asarray(rgb, float) / 255
    parts = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(parts @ (0.2126, 0.7152, 0.0722))


def look(tab: Browser, pages: dict[str, Path | str], folder: Path | None = None) -> list[str]:
    """What is wrong with pages, each with its name, width and colors."""
    found = []
    for name, page in pages.items():
        if isinstance(page, Path) and page.stat().st_size >= MOST_BYTES:
            found.append(f"{name}: {page.stat().st_size:,} bytes")
        url = page.as_uri() if isinstance(page, Path) else page
        for width, dark in itertools.product(WIDTHS, (False, True)):
            kind = f"{name}-{width}-{'dark' if dark else 'light'}"
            picture = folder / f"{kind}.png" if folder else None
            found += [f"{kind}: {fault}" for fault in faults(tab, url, width, dark=dark, picture=picture)]
    return found


def main() -> None:
    """Make all pages, look at them, and tell what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the pages and pictures of them")
    parser.add_argument("--classes", default=",".join(map(str, CLASSES)), help="how many, one dataset for each number")
    parser.add_argument("--keep", action="store_true", help="look again at the pages that are there")
    settings = parser.parse_args()
    found, seen = [], settings.output / "seen"
    seen.mkdir(parents=True, exist_ok=True)
    made = settings.output / "pages.json"
    with Browser(settings.output / "browser") as tab:
        for classes in map(int, filter(None, settings.classes.split(","))):
            folder = settings.output / str(classes)
            if not settings.keep:
                shutil.rmtree(folder, ignore_errors=True)
                pages = {name: str(path) for name, path in make(folder, classes).items()}
                (folder / made.name).write_text(json.dumps(pages))
            pages = json.loads((folder / made.name).read_text())
            found += look(tab, {name: Path(path).absolute() for name, path in pages.items()}, seen)
            with browsed(folder, classes) as addresses:
                found += look(tab, addresses, seen)
        shutil.rmtree(settings.output / "benchmarks", ignore_errors=True)
        pages = benchmarks(settings.output / "benchmarks")
        found += look(tab, {name: path.absolute() for name, path in pages.items()}, seen)
    print("\n".join(found) or f"nothing is wrong; the pictures are in {seen}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
