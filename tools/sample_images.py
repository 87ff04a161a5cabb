"""Photo-like images of flowers and fruit, painted from a key: the same numbers give the same image. No TensorFlow.

A subject is painted as color (albedo) and relief (height); one light then shades both, so petals, lobes and pores need
no code of their own. Classes come in pairs of one hue, a flower and a fruit, in front of backgrounds of any hue: the
color of the subject hints at the class, which a VGG16 without batch normalization needs in order to start learning,
while the mean color of the image says little. Arrays are float32: float64 would take twice the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

TAU = 2 * math.pi
MAX_PATCH = 200  # pixels: a larger subject is painted at this size and enlarged, which takes half the time


@dataclass(frozen=True)
class Flower:
    """Rings of petals around a heart; lengths in units of the flower's radius."""

    hue: float  # degrees
    petals: tuple[int, int]  # in the outer ring: least, and one more than most
    width: float  # of a petal, half
    blunt: float  # the larger, the squarer the tip
    rings: tuple[float, ...] = (1.0,)  # lengths of the petals, outermost first
    ruffle: float = 0.03  # waviness of the outline
    saturation: float = 0.8
    heart: float = 0.0  # radius
    heart_hue: float = 42.0
    heart_value: float = 0.9


@dataclass(frozen=True)
class Fruit:
    """One ball or a bunch of them; lengths in units of the fruit's radius."""

    hue: float  # degrees
    rows: tuple[int, ...] = (1,)  # balls side by side, rows from top to bottom
    radius: float = 0.92  # of a ball
    stretch: float = 1.0  # length over girth
    point: float = 2.0  # 2: round ends, less: pointed ones
    lobing: float = 0.0  # depth of five lobes
    pores: float = 0.0  # their depth
    gloss: float = 0.4
    bloom: float = 0.0  # pale dust, as on grapes
    sepals: float = 0.0  # length of the green star around the stalk
    saturation: float = 0.85
    value: float = 0.85


# In pairs of one hue, so that the first n classes (n even) can never be told apart by hue alone.
KINDS: dict[str, Flower | Fruit] = {
    "poppy": Flower(0, (4, 7), 0.62, 2.6, ruffle=0.05, saturation=0.9, heart=0.2, heart_hue=280, heart_value=0.15),
    "tomato": Fruit(0, lobing=0.025, gloss=0.7, sepals=0.5, saturation=0.9),
    "sunflower": Flower(49, (18, 25), 0.13, 1.3, rings=(1.0, 0.92), heart=0.4, heart_hue=28, heart_value=0.3),
    "lemon": Fruit(49, stretch=1.45, point=1.5, pores=0.012, gloss=0.35, value=0.92),
    "aster": Flower(275, (20, 29), 0.085, 2.2, rings=(1.0, 0.9), saturation=0.6, heart=0.23),
    "grapes": Fruit(275, (4, 5, 4, 3, 2, 1), 0.22, gloss=0.5, bloom=0.5, saturation=0.62, value=0.62),
    "cornflower": Flower(222, (9, 13), 0.2, 3.0, rings=(1.0, 0.42), ruffle=0.16),
    "blueberry": Fruit(222, (2, 2), 0.5, gloss=0.25, bloom=0.7, saturation=0.62, value=0.6),
    "marigold": Flower(26, (14, 16), 0.26, 3.0, rings=(1.0, 0.85, 0.66, 0.46, 0.28), ruffle=0.08, saturation=0.93),
    "orange": Fruit(26, pores=0.014, gloss=0.3, sepals=0.13, saturation=0.92, value=0.94),
    "cosmos": Flower(331, (8, 9), 0.34, 3.0, saturation=0.6, heart=0.17),
    "raspberry": Fruit(331, (3, 4, 5, 5, 4, 3, 2), 0.185, gloss=0.55, bloom=0.15, saturation=0.76),
}


def paint(kind: Flower | Fruit, rng: Generator) -> NDArray[np.uint8]:
    """One image of a kind: RGB uint8, 160 to 480 pixels on its longer side."""
    long_side = int(160 * 3 ** rng.uniform(0, 1))
    short_side = max(144, int(long_side * rng.choice([1.0, 0.8, 0.75, 0.667])))
    height, width = (short_side, long_side) if rng.random() < 0.5 else (long_side, short_side)
    turn, low = rng.uniform(math.pi, TAU), rng.uniform(0.45, 0.75)
    light = np.array([math.sqrt(1 - low**2) * math.cos(turn), math.sqrt(1 - low**2) * math.sin(turn), low])

    scene = _Scene(_background(rng, height, width), light, rng)
    for _ in range(int(rng.integers(0, 6))):  # clutter: leaves of any color, sharp or not
        leaf = Fruit(rng.uniform(0, 360), stretch=2.4, point=1.4, gloss=0.1, value=rng.uniform(0.3, 0.6))
        relief = _fruit(leaf, rng, 96)
        relief = replace(relief, height=0.2 * relief.height)
        middle = rng.uniform(0, width), rng.uniform(0, height)
        scene.place(relief, middle, short_side * rng.uniform(0.2, 0.6), blur=rng.uniform(0, 2))
    subjects = int(rng.choice([1, 1, 1, 2, 3]))
    for number in range(subjects):
        size = short_side * rng.uniform(0.7, 1.0) * (1.0 if subjects == 1 else 0.75)
        varied = replace(kind, hue=kind.hue + rng.normal(0, 4))
        patch = min(int(size), MAX_PATCH)
        relief = _flower(varied, rng, patch) if isinstance(varied, Flower) else _fruit(varied, rng, patch)
        # One subject near the middle, several around it.
        reach = 0.08 if subjects == 1 else 0.2
        turn = TAU * number / subjects + rng.uniform(-0.5, 0.5)
        middle = (
            width * (0.5 + reach * math.cos(turn) + rng.normal(0, 0.03)),
            height * (0.5 + reach * math.sin(turn) + rng.normal(0, 0.03)),
        )
        scene.place(relief, middle, size, blur=0.4)
    return _develop(rng, scene.canvas)


# --- subjects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Relief:
    """A thing to be lit: RGB albedo in 0..1, height in units of its own radius, coverage in 0..1."""

    albedo: np.ndarray  # [n, n, 3]
    height: np.ndarray  # [n, n]
    alpha: np.ndarray  # [n, n]
    gloss: float = 0.0

    def under(self, color: np.ndarray, height: np.ndarray, cover: np.ndarray) -> _Relief:
        """With something laid on it that casts a soft shadow."""
        shaded = self.albedo * (1 - 0.45 * _blur(cover, 2 + 0.01 * len(cover)))[..., None]
        return replace(
            self,
            albedo=shaded + (color - shaded) * cover[..., None],
            height=self.height + (height - self.height) * cover,
            alpha=np.maximum(self.alpha, cover),
        )


def _bare(size: int) -> _Relief:
    plane = np.zeros((size, size), np.float32)
    return _Relief(np.zeros((size, size, 3), np.float32), plane, plane)


def _flower(kind: Flower, rng: Generator, size: int) -> _Relief:
    inner, outer = _rgb(kind.hue, 0.9, 0.6), _rgb(kind.hue, kind.saturation, rng.uniform(0.8, 1.0))
    petals = int(rng.integers(*kind.petals))
    flower = _bare(size)
    for length in kind.rings:
        flower = _ring(kind, rng, flower, max(5, round(petals * length)), length, (inner, outer))
    if not kind.heart:
        return flower
    x, y = _grid(size)
    radius = kind.heart * rng.uniform(0.85, 1.15)
    distance = np.hypot(x, y)
    seeds = _noise(rng, x.shape, max(2, 0.03 * size))
    color = _rgb(kind.heart_hue, 0.8, kind.heart_value) * (1 + 0.4 * seeds)[..., None]
    dome = 0.35 * np.sqrt(np.maximum(radius**2 - distance**2, 0)) + 0.02 * seeds
    return flower.under(color, dome, _cover(radius * (1 + 0.05 * seeds) - distance))


def _ring(
    kind: Flower, rng: Generator, below: _Relief, count: int, length: float, colors: tuple[np.ndarray, np.ndarray]
) -> _Relief:
    """A ring of petals over a relief, in two half rings, so that neighbors overlap; colors: inside and outside."""
    inner, outer = colors
    x, y = _grid(len(below.alpha))
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    phase, rough = rng.uniform(0, TAU), _noise(rng, x.shape, 10)
    for half in range(2):
        petals = (count + 1 - half) // 2
        turn = (angle - phase - half * TAU / count) * petals / TAU
        number = np.floor(turn).astype(np.int32) % petals
        off_axis = (turn - np.floor(turn) - 0.5) * TAU / petals
        off_axis += rng.normal(0, 0.12 / petals, petals).astype(np.float32)[number]
        reach = length * rng.normal(1, 0.06, petals).astype(np.float32)[number]
        along, across = radius * np.cos(off_axis), radius * np.sin(off_axis)
        share = np.clip(along / reach, 0, 1)
        outline = kind.width * length * np.maximum(np.sin(math.pi * share * np.sqrt(share)), 0) ** (1 / kind.blunt)
        outline *= 1 + kind.ruffle * (np.sin(share * 23 + number * 1.7) + rough)
        cover = _cover(np.where((along > 0) & (along < reach), outline - np.abs(across), -1))
        sideways = np.clip(across / np.maximum(outline, 1e-3), -1, 1)
        tint = rng.normal(1, 0.06, petals).astype(np.float32)[number] + 0.05 * np.cos(sideways * 14) * (1 - share)
        color = (inner + (outer - inner) * share[..., None]) * tint[..., None]
        bend = 0.5 * kind.width * (1 - sideways**2) + 0.16 * np.sin(share * 2.6)
        below = below.under(color, bend, cover)
    return below


def _fruit(kind: Fruit, rng: Generator, size: int) -> _Relief:
    color = _rgb(kind.hue, kind.saturation * rng.uniform(0.92, 1.05), kind.value * rng.uniform(0.9, 1.05))
    dust = kind.bloom * np.maximum(_noise(rng, (size, size), size / 9) + 0.2, 0)[..., None]
    fruit = replace(_bare(size), gloss=kind.gloss)
    scatter = 0.03 if len(kind.rows) > 1 else 0.0
    middle = (len(kind.rows) - 1) / 2
    centers = [
        ((column - (count - 1) / 2) * 1.6 * kind.radius, (row - middle) * 1.45 * kind.radius)
        for row, count in enumerate(kind.rows)
        for column in range(count)
    ]
    for at_x, at_y in rng.permutation(centers):
        ball = rng.normal(1, 2 * scatter) * kind.radius
        at_x, at_y = at_x + rng.normal(0, scatter), at_y + rng.normal(0, scatter)
        fruit = _ball(kind, rng, fruit, (at_x, at_y), ball, color + dust * (1 - color) * 0.6)
    if kind.sepals:
        star = Flower(95, (5, 7), 0.14, 1.0)
        count, dark, pale = int(rng.integers(5, 7)), _rgb(95, 0.75, 0.28), _rgb(95, 0.6, 0.5)
        fruit = _ring(star, rng, fruit, count, kind.sepals, (pale, dark))
    return fruit


def _ball(
    kind: Fruit, rng: Generator, below: _Relief, center: tuple[float, float], radius: float, color: np.ndarray
) -> _Relief:
    x, y = _grid(len(below.alpha))
    turn = rng.uniform(0, TAU)
    along, across = _turned(x - center[0], y - center[1], turn)
    edge = radius * (1 + kind.lobing * np.cos(5 * np.arctan2(across, along)))
    share = np.sqrt(np.abs(along / edge) ** kind.point + (kind.stretch * across / edge) ** 2)
    grain = _noise(rng, x.shape, 2) if kind.pores else np.float32(0)
    dome = radius / kind.stretch * np.sqrt(np.maximum(1 - share**2, 0)) + kind.pores * grain
    patches = rng.normal(1, 0.07) + 0.08 * _noise(rng, x.shape, len(x) / 4)
    return below.under(color * patches[..., None].astype(np.float32), dome, _cover((1 - share) * radius / kind.stretch))


# --- the scene --------------------------------------------------------------------------------------------------------


def _background(rng: Generator, height: int, width: int) -> np.ndarray:
    """Foliage far out of focus, or a surface: striped cloth, wood or stone."""
    short = min(height, width)
    first = _rgb(rng.uniform(0, 360), rng.uniform(0.05, 0.6), rng.uniform(0.3, 0.95))
    second = _rgb(rng.uniform(0, 360), rng.uniform(0.2, 0.7), rng.uniform(0.15, 0.8))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / short
    along, _ = _turned(x, y, rng.uniform(0, TAU))
    if rng.random() < 0.6:
        waves = along + 0.05 * _noise(rng, x.shape, short / 3)
        stripes = np.clip(3 * np.sin(TAU * waves / rng.uniform(0.05, 0.4)), -1, 1) * rng.uniform(0, 0.5)
        grain = 0.08 * _noise(rng, x.shape, 3) + 0.12 * _noise(rng, x.shape, short / rng.uniform(3, 40))
        striped: np.ndarray = (first + (second - first) * (0.5 + stripes)[..., None]) * (1 + grain)[..., None]
        return striped
    blend = np.clip(along + 0.3 * _noise(rng, x.shape, short / 2), 0, 1)
    image = np.ascontiguousarray(first + (second - first) * blend[..., None])
    hue = rng.uniform(0, 360)
    for _ in range(int(rng.integers(10, 30))):
        color = _rgb(hue + rng.normal(0, 25), rng.uniform(0.3, 0.8), rng.uniform(0.15, 0.9)).tolist()
        axes = int(short * rng.uniform(0.03, 0.25)), int(short * rng.uniform(0.03, 0.1))
        middle = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        cv2.ellipse(image, middle, axes, rng.uniform(0, 180), 0, 360, color, -1, cv2.LINE_AA)
    return _blur(image, short * rng.uniform(0.008, 0.04))


@dataclass(frozen=True, eq=False)
class _Scene:
    """A background on which lit subjects are laid."""

    canvas: np.ndarray  # [height, width, 3], RGB in 0..1
    light: np.ndarray  # unit vector towards it: x right, y down, z to the viewer
    rng: Generator

    def place(self, relief: _Relief, center: tuple[float, float], size: float, blur: float) -> None:
        """Light a relief and lay it down, `size` pixels wide and a little tilted, with its shadow beside it."""
        layer = np.dstack([_shade(relief, self.light) * relief.alpha[..., None], relief.alpha])
        # Tilt: squash along a random direction, then move to the place.
        turn, squash, depth = self.rng.uniform(0, TAU), self.rng.uniform(0.72, 1.0), self.rng.uniform(0.2, 0.7)
        rotate = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        linear = rotate.T @ np.diag([squash, 1.0]) @ rotate * (size / len(layer))
        # Only the window around the place is touched; it leaves room for the shadow.
        left, top = (max(0, int(at - 0.68 * size)) for at in center)
        window = self.canvas[top : max(0, int(center[1] + 0.68 * size)), left : max(0, int(center[0] + 0.68 * size))]
        if not window.size:
            return
        move = np.array(center) - (left, top) - linear @ np.full(2, len(layer) / 2)
        aside = move - 0.09 * size * self.light[:2]
        extent = window.shape[1::-1]
        shadow = cv2.warpAffine(relief.alpha, np.column_stack([linear, aside]), extent)
        layer = _blur(cv2.warpAffine(layer, np.column_stack([linear, move]), extent), blur)
        window *= (1 - depth * _blur(shadow, 0.035 * size))[..., None]
        window *= 1 - layer[..., 3:]
        window += layer[..., :3]


def _shade(relief: _Relief, light: np.ndarray) -> np.ndarray:
    """Light a relief: half ambient and half directed light, and a highlight where it is glossy."""
    steep, height = len(relief.height) / 2.3, relief.height.astype(np.float32)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=steep / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=steep / 8)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)

    def facing(towards: np.ndarray) -> np.ndarray:
        light: np.ndarray = np.maximum((towards[2] - slope_x * towards[0] - slope_y * towards[1]) / length, 0)
        return light

    half = light + np.array([0, 0, 1])  # Blinn: between the light and a viewer straight above
    highlight = relief.gloss * facing(half / np.linalg.norm(half)) ** 40
    return (relief.albedo * (0.38 + 0.85 * facing(light))[..., None] + highlight[..., None]).astype(np.float32)


def _develop(rng: Generator, image: np.ndarray) -> NDArray[np.uint8]:
    """What a camera does to light: uneven exposure, white balance, focus, highlights, noise."""
    y, x = np.mgrid[-1 : 1 : image.shape[0] * 1j, -1 : 1 : image.shape[1] * 1j].astype(np.float32)
    along, _ = _turned(x, y, rng.uniform(0, TAU))
    gain = 1 + rng.uniform(0, 0.3) * along - rng.uniform(0, 0.25) * (x**2 + y**2)
    balance = np.array([rng.normal(1, 0.06), 1.0, rng.normal(1, 0.06)]) * rng.uniform(0.85, 1.3)
    image = _blur(image * gain[..., None] * balance.astype(np.float32), float(rng.choice([0.0, 0.5, 0.8, 1.2, 1.8])))
    image = image / (1 + 0.5 * np.maximum(image - 0.75, 0))  # highlights roll off
    image = image + rng.uniform(0.004, 0.035) * rng.standard_normal(image.shape, dtype=np.float32)
    levels: np.ndarray = np.clip(image, 0, 1) * 255 + 0.5
    return levels.astype(np.uint8)


# --- small tools ------------------------------------------------------------------------------------------------------


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Hue in degrees, the rest in 0..1 -> RGB in 0..1."""
    pixel = np.array([[[hue % 360, np.clip(saturation, 0, 1), np.clip(value, 0, 1)]]], np.float32)
    rgb: np.ndarray = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0]
    return rgb


def _noise(rng: Generator, shape: tuple[int, ...], cell: float) -> np.ndarray:
    """Smooth noise around 0, about -1..1, with features of about `cell` pixels."""
    coarse = rng.normal(0, 0.5, [max(2, round(side / cell) + 2) for side in shape])
    return cv2.resize(coarse.astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0.2 else image


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y in -1.15..1.15 over a square patch."""
    line = np.linspace(-1.15, 1.15, size, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    return x, y


def _turned(x: np.ndarray, y: np.ndarray, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates along and across a direction."""
    return x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)


def _cover(distance: np.ndarray) -> np.ndarray:
    """Coverage of the inside (distance > 0) of a patch, with an edge one pixel soft."""
    return np.clip(distance * len(distance) / 2.3 + 0.5, 0, 1)
