"""Photo-like images of flowers and fruit, painted from a key: the same numbers give the same image. No TensorFlow.

A subject is painted as color (albedo) and relief (height); one light then shades both, so lobes, petals and pores
need no code of their own. Classes come in pairs of one hue, a flower and a fruit, in front of backgrounds of any
hue: the color of the subject hints at the class, which a VGG16 without batch normalization needs in order to start
learning, while the mean color of the image says little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[Any]  # float32 throughout: float64 would take twice the time

TAU = 2 * math.pi
MAX_PATCH = 200  # pixels: a larger subject is painted at this size and enlarged, which takes half the time


@dataclass(frozen=True)
class Relief:
    """A thing to be lit: RGB albedo in 0..1, height in units of its own radius, coverage in 0..1."""

    albedo: Array  # [n, n, 3]
    height: Array  # [n, n]
    alpha: Array  # [n, n]
    gloss: float = 0.0


@dataclass(frozen=True)
class Light:
    """Where the light comes from, as a unit vector towards it (x right, y down, z to the viewer)."""

    x: float
    y: float
    z: float


@dataclass(frozen=True)
class Kind:
    """A class of images: its hue in degrees and how its subject is painted."""

    hue: float
    paint: Callable[[Generator, int, float], Relief]


# --- small tools ------------------------------------------------------------------------------------------------


def _rgb(hue: float, saturation: float, value: float) -> Array:
    """Hue in degrees, the rest in 0..1 -> RGB in 0..1."""
    pixel = np.array([[[hue % 360, np.clip(saturation, 0, 1), np.clip(value, 0, 1)]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0]


def _noise(rng: Generator, height: int, width: int, cell: float, cell_y: float = 0.0) -> Array:
    """Smooth noise around 0, about -1..1, with features of about `cell` pixels (and `cell_y` downwards)."""
    rows = max(2, round(height / (cell_y or cell)) + 2)
    columns = max(2, round(width / cell) + 2)
    coarse = rng.normal(0, 0.5, (rows, columns)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _blur(image: Array, sigma: float) -> Array:
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0.2 else image


def _grid(size: int) -> tuple[Array, Array, float]:
    """x and y in -1.15..1.15 over a square patch, and the width of one pixel."""
    line = np.linspace(-1.15, 1.15, size, dtype=np.float32)
    return *np.meshgrid(line, line), 2.3 / size


def _turned(x: Any, y: Any, turn: float) -> tuple[Any, Any]:
    """The coordinates along and across a direction."""
    return x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)


def _cover(distance: Array, pixel: float) -> Array:
    """Coverage of the inside (distance > 0) with an edge one pixel soft."""
    return np.clip(distance / pixel + 0.5, 0, 1)


def _over(below: Array, above: Array, alpha: Array) -> Array:
    """`above` laid over `below`."""
    return below + (above - below) * (alpha if below.ndim == 2 else alpha[..., None])


def _shade(relief: Relief, light: Light) -> Array:
    """Light a relief: half ambient and half directed light, and a highlight where it is glossy."""
    steep, height = relief.height.shape[0] / 2.3, relief.height.astype(np.float32)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=steep / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=steep / 8)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    facing = np.maximum((light.z - slope_x * light.x - slope_y * light.y) / length, 0)
    lit = relief.albedo * (0.38 + 0.85 * facing)[..., None]
    if relief.gloss:
        # Blinn: the half vector between the light and a viewer straight above.
        half = np.array([light.x, light.y, light.z + 1], np.float32)
        half /= np.linalg.norm(half)
        mirror = np.maximum((half[2] - slope_x * half[0] - slope_y * half[1]) / length, 0)
        lit += (relief.gloss * mirror**40)[..., None]
    return lit


# --- parts of flowers and fruit -----------------------------------------------------------------------------------


def _petals(
    rng: Generator,
    relief: Relief,
    *,
    count: int,
    inner: Array,
    outer: Array,
    length: float,
    width: float,
    blunt: float,
    ruffle: float = 0.03,
) -> Relief:
    """Lay rings of petals over a relief: every petal in two half rings, so that neighbors overlap."""
    x, y, pixel = _grid(relief.alpha.shape[0])
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    phase, rough = rng.uniform(0, TAU), _noise(rng, x.shape[0], x.shape[1], 10)
    albedo, height, alpha = relief.albedo, relief.height, relief.alpha
    for half in range(2):
        petals = (count + 1 - half) // 2
        turn = (angle - phase - half * TAU / count) * petals / TAU
        number = np.floor(turn).astype(np.int32) % petals
        off_axis = (turn - np.floor(turn) - 0.5) * TAU / petals
        off_axis += rng.normal(0, 0.12 / petals, petals).astype(np.float32)[number]
        reach = length * rng.normal(1, 0.06, petals).astype(np.float32)[number]
        along, across = radius * np.cos(off_axis), radius * np.sin(off_axis)
        share = np.clip(along / reach, 0, 1)
        # The outline: widest beyond the middle; the larger `blunt`, the squarer the tip.
        outline = width * np.maximum(np.sin(math.pi * share * np.sqrt(share)), 0) ** (1 / blunt)
        outline *= 1 + ruffle * np.sin(share * 23 + number * 1.7) + ruffle * rough
        inside = np.where((along > 0) & (along < reach), outline - np.abs(across), -1)
        cover = _cover(inside, pixel)
        sideways = np.clip(across / np.maximum(outline, 1e-3), -1, 1)
        veins = 0.05 * np.cos(sideways * 14) * (1 - share) + 0.04 * rough
        tint = rng.normal(1, 0.06, petals).astype(np.float32)[number] + veins
        color = (inner + (outer - inner) * share[..., None]) * tint[..., None]
        # A petal casts a soft shadow on the ring below it, and its sides bend away.
        albedo = albedo * (1 - 0.45 * _blur(cover, 2 + 0.02 / pixel))[..., None]
        albedo = _over(albedo, color, cover)
        bend = 0.5 * width * (1 - sideways**2) + 0.16 * np.sin(share * 2.6)
        height = _over(height, bend, cover)
        alpha = np.maximum(alpha, cover)
    return Relief(albedo, height, alpha)


def _bare(size: int) -> Relief:
    plane = np.zeros((size, size), np.float32)
    return Relief(np.zeros((size, size, 3), np.float32), plane, plane)


def _heart(rng: Generator, flower: Relief, radius: float, color: Array, rim: Array, seeds: int) -> Relief:
    """The domed middle of a flower, of seeds in the sunflower's spiral."""
    size = flower.alpha.shape[0]
    x, y, pixel = _grid(size)
    distance = np.hypot(x, y)
    edge = radius * (1 + 0.05 * _noise(rng, size, size, 8))
    cover = _cover(edge - distance, pixel)
    share = np.clip(distance / radius, 0, 1)
    number = np.arange(seeds)
    spiral = radius * np.sqrt((number + 0.5) / seeds)
    at_x, at_y = spiral * np.cos(number * 2.399963), spiral * np.sin(number * 2.399963)
    bumps = np.zeros((size, size), np.float32)
    for seed_x, seed_y in zip(at_x, at_y, strict=True):
        column, row = round((seed_x / 2.3 + 0.5) * size), round((seed_y / 2.3 + 0.5) * size)
        cv2.circle(bumps, (column, row), max(1, round(0.45 * radius / np.sqrt(seeds) / pixel)), 1.0, -1)
    bumps = _blur(bumps, 0.8)
    shine = (color + (rim - color) * (share**2)[..., None]) * (0.7 + 0.5 * bumps)[..., None]
    dome = 0.35 * np.sqrt(np.maximum(radius**2 - distance**2, 0)) + 0.02 * bumps
    albedo = flower.albedo * (1 - 0.5 * _blur(cover, 2 + 0.03 / pixel))[..., None]
    return Relief(_over(albedo, shine, cover), _over(flower.height, dome, cover), np.maximum(flower.alpha, cover))


def _balls(
    rng: Generator, size: int, centers: list[tuple[float, float, float]], color: Array, *, bloom: float, gloss: float
) -> Relief:
    """Round fruits at (x, y, radius), later ones in front; `bloom` is the pale dust on grapes and plums."""
    x, y, pixel = _grid(size)
    albedo, height, alpha = (np.zeros((size, size, 3), np.float32),) + (np.zeros((size, size), np.float32),) * 2
    dust = bloom * np.maximum(_noise(rng, size, size, size / 9) + 0.2, 0)[..., None]
    for at_x, at_y, radius in centers:
        square = (x - at_x) ** 2 + (y - at_y) ** 2
        cover = _cover(radius - np.sqrt(square), pixel)
        dome = np.sqrt(np.maximum(radius**2 - square, 0))
        tint = color * np.float32(rng.normal(1, 0.09))
        shadow = 1 - 0.5 * _cover(1.25 * radius - np.sqrt(square), 0.3 * radius)
        albedo = _over(albedo * shadow[..., None], tint + dust * (1 - tint) * 0.6, cover)
        height = _over(height, dome, cover)
        alpha = np.maximum(alpha, cover)
    return Relief(albedo, height, alpha, gloss)


def _ball(rng: Generator, size: int, color: Array, *, lobes: int, lobing: float, pores: float, gloss: float) -> Relief:
    """One big fruit seen from above its stalk: lobes around the stalk, pores in the skin."""
    x, y, pixel = _grid(size)
    distance, angle = np.hypot(x, y), np.arctan2(y, x) + rng.uniform(0, TAU)
    wave = np.cos(lobes * angle) + 0.4 * np.cos(angle)
    edge = 0.95 * (1 + 0.5 * lobing * wave)
    share = distance / edge
    dome = 0.85 * np.sqrt(np.maximum(1 - share**2, 0)) + lobing * wave * np.clip(1 - share, 0, 1)
    dimple = 0.25 * np.exp(-((distance / 0.16) ** 2))
    skin = pores * cv2.resize(
        rng.normal(0, 1, (size // 2 + 1, size // 2 + 1)).astype(np.float32), (size, size)
    ) + 0.01 * _noise(rng, size, size, size / 6)
    patches = 1 + 0.10 * _noise(rng, size, size, size / 4)
    albedo = color * patches[..., None]
    return Relief(albedo.astype(np.float32), dome - dimple + skin, _cover(edge - distance, pixel), gloss)


def _stalk_star(rng: Generator, fruit: Relief, length: float, points: int) -> Relief:
    """The green star of sepals on top of a fruit."""
    dark, pale = _rgb(rng.uniform(85, 110), 0.75, 0.28), _rgb(rng.uniform(80, 105), 0.6, 0.5)
    star = _petals(rng, _bare(fruit.alpha.shape[0]), count=points, inner=pale, outer=dark, length=length,
                   width=0.07, blunt=1.0)  # fmt: skip
    albedo = fruit.albedo * (1 - 0.4 * _blur(star.alpha, 3))[..., None]
    return Relief(
        _over(albedo, star.albedo, star.alpha),
        _over(fruit.height, fruit.height + 0.3 * star.height, star.alpha),
        np.maximum(fruit.alpha, star.alpha),
        fruit.gloss,
    )


def _leaf(rng: Generator, size: int, hue: float) -> Relief:
    """A leaf with a midrib and side veins, pointing anywhere."""
    x, y, pixel = _grid(size)
    along, across = _turned(x, y, rng.uniform(0, TAU))
    across = across + rng.uniform(-0.3, 0.3) * (along**2 - 0.5)
    share = np.clip(along / 2.1 + 0.5, 0, 1)
    bulge = np.maximum(np.sin(math.pi * share ** rng.uniform(0.7, 1.1)), 0)
    outline = rng.uniform(0.28, 0.5) * bulge**0.8
    sideways = np.clip(np.abs(across) / np.maximum(outline, 1e-3), 0, 1)
    veins = np.exp(-((across / 0.025) ** 2)) + 0.35 * np.maximum(np.cos(22 * (share - 0.28 * sideways)), 0) ** 6
    base = _rgb(hue, rng.uniform(0.45, 0.75), rng.uniform(0.3, 0.6))
    albedo = base * (1 + 0.25 * veins + 0.15 * _noise(rng, size, size, 12))[..., None]
    return Relief(
        albedo.astype(np.float32),
        0.25 * sideways * outline - 0.02 * veins,
        _cover(outline - np.abs(across), pixel),
        0.12,
    )


# --- the twelve subjects: (rng, size of the square patch, hue) -> relief ------------------------------------------


def _poppy(rng: Generator, size: int, hue: float) -> Relief:
    inner, outer = _rgb(hue, 0.95, 0.35), _rgb(hue, rng.uniform(0.82, 0.95), rng.uniform(0.8, 0.98))
    flower = _petals(rng, _bare(size), count=int(rng.integers(4, 7)), inner=inner, outer=outer, length=1.0,
                     width=0.62, blunt=2.6, ruffle=0.05)  # fmt: skip
    return _heart(rng, flower, 0.2, _rgb(60, 0.35, 0.3), _rgb(280, 0.3, 0.1), 40)


def _tomato(rng: Generator, size: int, hue: float) -> Relief:
    skin = _rgb(hue + rng.uniform(0, 8), rng.uniform(0.85, 0.95), rng.uniform(0.75, 0.92))
    fruit = _ball(rng, size, skin, lobes=int(rng.integers(4, 7)), lobing=rng.uniform(0.02, 0.07), pores=0, gloss=0.7)
    return _stalk_star(rng, fruit, rng.uniform(0.45, 0.6), int(rng.integers(5, 7)))


def _sunflower(rng: Generator, size: int, hue: float) -> Relief:
    inner, outer = _rgb(hue - 10, 0.95, 0.8), _rgb(hue, rng.uniform(0.8, 0.95), rng.uniform(0.9, 1.0))
    flower = _bare(size)
    for length in (1.0, 0.92):
        flower = _petals(rng, flower, count=int(rng.integers(18, 25)), inner=inner, outer=outer, length=length,
                         width=0.13, blunt=1.3)  # fmt: skip
    return _heart(rng, flower, rng.uniform(0.34, 0.44), _rgb(35, 0.6, 0.28), _rgb(25, 0.8, 0.3), 150)


def _lemon(rng: Generator, size: int, hue: float) -> Relief:
    x, y, pixel = _grid(size)
    along, across = _turned(x, y, rng.uniform(0, TAU))
    girth = rng.uniform(0.6, 0.72)
    outline = girth * np.sqrt(np.maximum(1 - (along / 0.9) ** 2, 0))
    outline = np.maximum(outline, 0.16 * np.sqrt(np.maximum(1 - ((np.abs(along) - 0.86) / 0.2) ** 2, 0)))
    outline = _blur(outline, 0.04 / pixel)
    dome = np.sqrt(np.maximum(outline**2 - across**2, 0))
    pores = cv2.resize(rng.normal(0, 0.012, (size // 2 + 1, size // 2 + 1)).astype(np.float32), (size, size))
    skin = _rgb(hue + rng.uniform(0, 6), rng.uniform(0.78, 0.9), rng.uniform(0.85, 0.98))
    albedo = skin * (1 + 0.08 * _noise(rng, size, size, size / 4))[..., None]
    return Relief(albedo.astype(np.float32), dome + pores, _cover(outline - np.abs(across), pixel), 0.35)


def _aster(rng: Generator, size: int, hue: float) -> Relief:
    inner, outer = _rgb(hue, 0.7, 0.55), _rgb(hue + rng.uniform(-6, 6), rng.uniform(0.5, 0.7), rng.uniform(0.75, 0.95))
    flower = _bare(size)
    for length in (1.0, 0.9):
        flower = _petals(rng, flower, count=int(rng.integers(20, 29)), inner=inner, outer=outer, length=length,
                         width=0.085, blunt=2.2)  # fmt: skip
    return _heart(rng, flower, rng.uniform(0.2, 0.27), _rgb(45, 0.9, 0.95), _rgb(38, 0.95, 0.8), 60)


def _grapes(rng: Generator, size: int, hue: float) -> Relief:
    radius = rng.uniform(0.2, 0.25)
    turn = rng.uniform(-0.5, 0.5)
    centers = []
    for row, width in enumerate([*rng.permutation([4, 5]).tolist(), 4, 3, 2, 1]):
        for column in range(width):
            x = (column - (width - 1) / 2) * radius * 1.6 + rng.normal(0, 0.03)
            y = (row - 2.4) * radius * 1.45 + rng.normal(0, 0.03)
            centers.append((*_turned(x, y, turn), radius * rng.normal(1, 0.06)))
    color = _rgb(hue + rng.uniform(-6, 6), rng.uniform(0.55, 0.7), rng.uniform(0.5, 0.75))
    order = rng.permutation(len(centers))
    return _balls(rng, size, [centers[number] for number in order], color, bloom=0.5, gloss=0.5)


def _marigold(rng: Generator, size: int, hue: float) -> Relief:
    inner, outer = _rgb(hue - 8, 0.98, 0.7), _rgb(hue + 4, rng.uniform(0.88, 0.98), rng.uniform(0.9, 1.0))
    flower = _bare(size)
    for length in (1.0, 0.85, 0.66, 0.46, 0.28):
        flower = _petals(rng, flower, count=max(5, int(15 * length)), inner=inner, outer=outer, length=length,
                         width=0.26 * (0.4 + length / 1.6), blunt=3.0, ruffle=0.08)  # fmt: skip
    return flower


def _orange(rng: Generator, size: int, hue: float) -> Relief:
    skin = _rgb(hue + rng.uniform(0, 5), rng.uniform(0.88, 0.97), rng.uniform(0.88, 1.0))
    fruit = _ball(rng, size, skin, lobes=2, lobing=rng.uniform(0, 0.02), pores=0.014, gloss=0.3)
    return _stalk_star(rng, fruit, 0.13, 5)


def _cosmos(rng: Generator, size: int, hue: float) -> Relief:
    inner, outer = _rgb(hue, 0.8, 0.6), _rgb(hue + rng.uniform(-6, 6), rng.uniform(0.5, 0.68), rng.uniform(0.85, 1.0))
    flower = _petals(rng, _bare(size), count=8, inner=inner, outer=outer, length=1.0, width=0.34, blunt=3.0)
    return _heart(rng, flower, rng.uniform(0.15, 0.2), _rgb(48, 0.9, 0.95), _rgb(40, 0.95, 0.75), 30)


def _raspberry(rng: Generator, size: int, hue: float) -> Relief:
    drupe = rng.uniform(0.17, 0.2)
    centers = []
    for row, count in enumerate((3, 4, 5, 5, 4, 3, 2)):
        for column in range(count):
            x = (column - (count - 1) / 2) * drupe * 1.65 + rng.normal(0, 0.02)
            centers.append((x, (row - 2.8) * drupe * 1.45, drupe * rng.normal(1, 0.06)))
    color = _rgb(hue + rng.uniform(-4, 8), rng.uniform(0.7, 0.82), rng.uniform(0.78, 0.92))
    fruit = _balls(rng, size, centers, color, bloom=0.15, gloss=0.55)
    return fruit


def _cornflower(rng: Generator, size: int, hue: float) -> Relief:
    inner, outer = (
        _rgb(hue + 25, 0.8, 0.5),
        _rgb(hue + rng.uniform(-6, 6), rng.uniform(0.7, 0.85), rng.uniform(0.8, 1.0)),
    )
    flower = _petals(rng, _bare(size), count=int(rng.integers(9, 13)), inner=inner, outer=outer, length=1.0,
                     width=0.2, blunt=3.0, ruffle=0.16)  # fmt: skip
    return _petals(rng, flower, count=11, inner=_rgb(300, 0.6, 0.35), outer=_rgb(hue + 40, 0.6, 0.7), length=0.42,
                   width=0.06, blunt=1.2)  # fmt: skip


def _blueberry(rng: Generator, size: int, hue: float) -> Relief:
    spread = rng.uniform(0, TAU)
    count = int(rng.integers(3, 5))
    radius = rng.uniform(0.46, 0.52)
    centers = [
        (0.5 * math.cos(spread + TAU * k / count), 0.5 * math.sin(spread + TAU * k / count), radius)
        for k in range(count)
    ]
    color = _rgb(hue + rng.uniform(-5, 8), rng.uniform(0.55, 0.7), rng.uniform(0.5, 0.7))
    return _balls(rng, size, centers, color, bloom=0.7, gloss=0.25)


# In pairs of one hue, so that the first n classes (n even) can never be told apart by hue alone.
KINDS: dict[str, Kind] = {
    "poppy": Kind(0, _poppy),
    "tomato": Kind(0, _tomato),
    "sunflower": Kind(49, _sunflower),
    "lemon": Kind(49, _lemon),
    "aster": Kind(275, _aster),
    "grapes": Kind(275, _grapes),
    "cornflower": Kind(222, _cornflower),
    "blueberry": Kind(222, _blueberry),
    "marigold": Kind(26, _marigold),
    "orange": Kind(26, _orange),
    "cosmos": Kind(331, _cosmos),
    "raspberry": Kind(331, _raspberry),
}


# --- the scene ----------------------------------------------------------------------------------------------------


def _outdoors(rng: Generator, height: int, width: int) -> Array:
    """A garden or a meadow far out of focus, with points of light."""
    short = min(height, width)
    top = _rgb(rng.uniform(0, 360), rng.uniform(0.1, 0.6), rng.uniform(0.3, 0.95))
    bottom = _rgb(rng.uniform(0, 360), 0.5, rng.uniform(0.15, 0.8))
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None] + 0.3 * _noise(rng, height, width, short / 2)
    image = np.ascontiguousarray(top + (bottom - top) * np.clip(ramp, 0, 1)[..., None])
    grassy = rng.random() < 0.5
    plants = rng.uniform(60, 150) if rng.random() < 0.7 else rng.uniform(0, 360)
    for _ in range(int(rng.integers(10, 26))):
        color = _rgb(plants + rng.normal(0, 18), rng.uniform(0.3, 0.8), rng.uniform(0.15, 0.8)).tolist()
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if grassy:
            sway = rng.normal(0, 0.3) * short
            blade = [(x + sway * t * t, height * 1.05 - t * (height - y) * 1.2) for t in (0, 0.4, 0.7, 1)]
            cv2.polylines(image, [np.array(blade, np.int32)], False, color, int(rng.integers(2, 8)), cv2.LINE_AA)
        else:
            axes = int(short * rng.uniform(0.04, 0.25)), int(short * rng.uniform(0.03, 0.1))
            cv2.ellipse(image, (int(x), int(y)), axes, rng.uniform(0, 180), 0, 360, color, -1, cv2.LINE_AA)
    image = _blur(image, short * rng.uniform(0.008, 0.04))
    lights = rng.uniform(0, 360)
    for _ in range(int(rng.integers(0, 14))):
        discs = image.copy()
        middle = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        color = _rgb(lights + rng.normal(0, 30), 0.25, 1).tolist()
        cv2.circle(discs, middle, int(short * rng.uniform(0.02, 0.08)), color, -1, cv2.LINE_AA)
        cv2.addWeighted(discs, 0.3, image, 0.7, 0, dst=image)
    return _blur(image, 1.2)


def _table(rng: Generator, height: int, width: int) -> Array:
    """Planks, bare or painted."""
    if rng.random() < 0.5:
        return np.ascontiguousarray(_table_upright(rng, width, height).swapaxes(0, 1))
    return _table_upright(rng, height, width)


def _table_upright(rng: Generator, height: int, width: int) -> Array:
    short = min(height, width)
    grain = _noise(rng, height, width, 5, short / 1.5) + 0.5 * _noise(rng, height, width, 2.5, short / 3)
    hue = rng.uniform(10, 45) if rng.random() < 0.6 else rng.uniform(0, 360)
    wood = _rgb(hue, rng.uniform(0.15, 0.6), rng.uniform(0.3, 0.95))
    plank = int(short * rng.uniform(0.3, 0.7))
    gap = np.clip(np.arange(width) % plank / 2, 0.35, 1).astype(np.float32)
    return wood * ((1 + 0.13 * grain) * gap)[..., None]


def _cloth(rng: Generator, height: int, width: int) -> Array:
    """Striped or checked cloth with folds."""
    short = min(height, width)
    period = short * rng.uniform(0.08, 0.22)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (axis / period + 0.2 * _noise(rng, height, width, short / 2) for axis in (x, y))
    u, v = _turned(x, y, rng.uniform(0, TAU))
    stripes = _cover(np.sin(TAU * u), 0.15)
    if rng.random() < 0.6:
        stripes = stripes + _cover(np.sin(TAU * v), 0.15)
    ground = _rgb(rng.uniform(0, 360), rng.uniform(0.05, 0.3), rng.uniform(0.75, 0.95))
    dye = _rgb(rng.uniform(0, 360), rng.uniform(0.3, 0.75), rng.uniform(0.35, 0.8))
    folds = 0.12 * _noise(rng, height, width, short / 3)
    weave = 0.03 * rng.standard_normal((height, width), dtype=np.float32)
    return (ground + (dye - ground) * (0.5 * stripes)[..., None]) * (1 + folds + weave)[..., None]


def _stone(rng: Generator, height: int, width: int) -> Array:
    """Rough plaster or stone, lit from above."""
    short = min(height, width)
    relief = _noise(rng, height, width, short / 12) + _noise(rng, height, width, short / 40)
    slope = cv2.Sobel(relief, cv2.CV_32F, 0, 1)
    color = _rgb(rng.uniform(0, 360), rng.uniform(0.05, 0.4), rng.uniform(0.3, 0.95))
    return color * np.clip(0.85 + 0.12 * relief - short * 3e-4 * slope, 0.3, 1.2)[..., None]


def _background(rng: Generator, height: int, width: int) -> tuple[Array, float]:
    """What lies behind the subject, and how deep the shadow on it is: none when it is far away."""
    if rng.random() < 0.4:
        return _outdoors(rng, height, width), 0.0
    surface = (_table, _cloth, _stone)[rng.integers(3)]
    return _blur(surface(rng, height, width), rng.uniform(0, 1.5)), rng.uniform(0.35, 0.7)


def _place(
    canvas: Array,
    relief: Relief,
    light: Light,
    rng: Generator,
    *,
    center: tuple[float, float],
    size: float,
    shadow: float,
    blur: float,
) -> None:
    """Lay a lit relief on the canvas, `size` pixels wide and a little tilted, with its shadow beside it."""
    own_size = relief.alpha.shape[0]
    layer = np.dstack([_shade(relief, light) * relief.alpha[..., None], relief.alpha])
    # Only the window around the place is touched; it leaves room for the shadow.
    left, top = max(0, int(center[0] - 0.68 * size)), max(0, int(center[1] - 0.68 * size))
    window = canvas[top : max(0, int(center[1] + 0.68 * size)), left : max(0, int(center[0] + 0.68 * size))]
    if not window.size:
        return
    # Tilt: squash along a random direction, then move to the place.
    turn, squash = rng.uniform(0, TAU), rng.uniform(0.72, 1.0)
    rotate = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    linear = rotate.T @ np.diag([squash, 1.0]) @ rotate * (size / own_size)
    move = np.array(center) - (left, top) - linear @ np.array([own_size / 2, own_size / 2])
    matrix = np.hstack([linear, move[:, None]])
    canvas_size = window.shape[1::-1]
    if shadow:
        aside = matrix - [[0, 0, 0.09 * size * light.x], [0, 0, 0.09 * size * light.y]]
        dark = _blur(cv2.warpAffine(relief.alpha, aside, canvas_size), 0.035 * size)
        window *= 1 - shadow * dark[..., None]
    layer = _blur(cv2.warpAffine(layer, matrix, canvas_size), blur)
    window *= 1 - layer[..., 3:]
    window += layer[..., :3]


def _develop(rng: Generator, image: Array) -> NDArray[np.uint8]:
    """What a camera does to light: uneven exposure, white balance, vignette, focus, tone curve, noise."""
    height, width = image.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    turn = rng.uniform(0, TAU)
    gain = 1 + rng.uniform(0, 0.3) * (x * math.cos(turn) + y * math.sin(turn)) - rng.uniform(0, 0.25) * (x**2 + y**2)
    if rng.random() < 0.25:  # dappled shade
        gain = gain * (1 - 0.45 * _cover(_noise(rng, height, width, min(height, width) / 5), 0.6))
    balance = np.array([1 + rng.normal(0, 0.06), 1.0, 1 + rng.normal(0, 0.06)], np.float32)
    image = image * gain[..., None] * balance * np.float32(rng.uniform(0.85, 1.3))
    image = _blur(image, float(rng.choice([0.0, 0.5, 0.8, 1.2, 1.8])))
    image = np.clip(image, 0, 1.6)
    image = image / (1 + 0.25 * np.maximum(image - 0.75, 0) * 2)  # highlights roll off
    grain = rng.uniform(0.004, 0.035)
    image = image + grain * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def paint(kind: Kind, rng: Generator) -> NDArray[np.uint8]:
    """One image of a kind: RGB uint8, 160 to 480 pixels on its longer side."""
    long_side = int(160 * 3 ** rng.uniform(0, 1))
    short_side = max(144, int(long_side * rng.choice([1.0, 0.8, 0.75, 0.667])))
    height, width = (short_side, long_side) if rng.random() < 0.35 else (long_side, short_side)
    if rng.random() < 0.5:
        height, width = width, height
    turn, low = rng.uniform(math.pi, TAU), rng.uniform(0.45, 0.75)
    flat = math.sqrt(1 - low**2)
    light = Light(flat * math.cos(turn), flat * math.sin(turn), low)

    canvas, shadow = _background(rng, height, width)
    greens = rng.uniform(70, 140)
    for _ in range(int(rng.integers(0, 6))):  # clutter: leaves of any color, sharp or not
        hue = greens if rng.random() < 0.6 else rng.uniform(0, 360)
        size = short_side * rng.uniform(0.2, 0.6)
        leaf = _leaf(rng, min(int(size), 96), hue)
        middle = rng.uniform(0, width), rng.uniform(0, height)
        _place(canvas, leaf, light, rng, center=middle, size=size, shadow=shadow, blur=rng.uniform(0, 2))

    subjects = int(rng.choice([1, 1, 1, 2, 3]))
    for number in range(subjects):
        size = short_side * rng.uniform(0.7, 1.0) * (1.0 if subjects == 1 else 0.75)
        subject = kind.paint(rng, min(int(size), MAX_PATCH), kind.hue + rng.normal(0, 4))
        # One subject near the middle, several around it.
        reach = 0.08 if subjects == 1 else 0.2
        turn = TAU * number / subjects + rng.uniform(-0.5, 0.5)
        middle = (
            width * (0.5 + reach * math.cos(turn) + rng.normal(0, 0.03)),
            height * (0.5 + reach * math.sin(turn) + rng.normal(0, 0.03)),
        )
        _place(canvas, subject, light, rng, center=middle, size=size, shadow=max(shadow, 0.2), blur=0.4)
    return _develop(rng, canvas)
