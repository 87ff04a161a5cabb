"""Colors told without an ICC profile, and by profiles in unusual places: sRGB out, or refused in words.

The truth is computed from each space's definition (chromaticities, curve) in `tools.image_writers`, not by what we use.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shardline.pipeline.color_spaces import of_numbers
from shardline.pipeline.decode import decode
from shardline.pipeline.image_options import ImageOptions
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.images import load_rgb, process
from shardline.tools import image_writers as w
from shardline.tools.image_variants import DISPLAY_P3, profile_of, variants
from shardline.tools.malformed_images import reference_image

AS_IS = ImageOptions(resize="none")
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
SPACES = {  # primaries, power (0: sRGB's curve)
    "Display P3": (((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), 0),
    "Adobe RGB": (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 563 / 256),
    "BT.2020": (((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), 0),
    "linear": (SRGB, 1.0),
    "gamma 1.8": (SRGB, 1.8),
}
TRUTH = reference_image()


def stored_as(space, rgb=TRUTH):
    """Levels that mean these sRGB levels in another space."""
    primaries, power = SPACES[space]
    levels = rgb / 255
    light = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    light = np.clip(light @ (np.linalg.inv(w.rgb_to_xyz(primaries)) @ w.rgb_to_xyz(SRGB)).T, 0, 1)
    curve = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint((light ** (1 / power) if power else curve) * 255).astype(np.uint8)


def srgb_of(space, stored):
    """The sRGB levels that levels of another space mean: what `stored_as` does, the other way."""
    primaries, power = SPACES[space]
    levels = stored / 255
    light = levels**power if power else np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    light = np.clip(light @ (np.linalg.inv(w.rgb_to_xyz(SRGB)) @ w.rgb_to_xyz(primaries)).T, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255


def shown_of(rgb, power):
    """What 8-bit levels of a power curve mean, in sRGB: linear light in 8 bits is coarse."""
    light = (rgb / 255) ** power
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255


def saved(rgb, kind="PNG", **options):
    buffer = io.BytesIO()
    exact = {"JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    Image.fromarray(rgb).save(buffer, kind, **{**exact.get(kind, {}), **options})
    return buffer.getvalue()


def with_chunks(png, **chunks):
    """Chunks before the pixels."""
    made = b""
    for name, body in chunks.items():
        kind = name.encode() + body
        made += struct.pack(">I", len(body)) + kind + struct.pack(">I", zlib.crc32(kind))
    return png[:33] + made + png[33:]


def gama(power):
    return struct.pack(">I", round(100_000 / power))


def chrm(primaries, white=(0.3127, 0.3290)):
    return struct.pack(">8I", *(round(number * 100_000) for pair in (white, *primaries) for number in pair))


def levels_off(data, truth=TRUTH):
    """The mean; every reader shows the same."""
    shown = load_rgb(data, AS_IS)
    assert np.abs(decode(memoryview(data), exact=True).astype(int) - shown).max() <= 1
    return np.abs(shown.astype(float) - truth).mean()


def note(data):
    return process(data, ImageOptions()).note


# ------------------------------------------------------------------------------------------------------ PNG


@pytest.mark.parametrize(
    ("space", "chunks"),
    [
        ("Display P3", {"cICP": bytes([12, 13, 0, 1])}),
        ("Display P3", {"cICP": bytes([12, 2, 0, 1]), "sRGB": b"\0"}),
        ("BT.2020", {"cICP": bytes([9, 13, 0, 1])}),
        ("BT.2020", {"cICP": bytes([9, 1, 0, 1]), "iCCP": b"x\0\0" + zlib.compress(DISPLAY_P3)}),
        ("linear", {"cICP": bytes([1, 8, 0, 1])}),
        ("Adobe RGB", {"gAMA": gama(563 / 256), "cHRM": chrm(SPACES["Adobe RGB"][0])}),
        ("Display P3", {"cHRM": chrm(SPACES["Display P3"][0])}),
        ("linear", {"gAMA": gama(1)}),
        ("gamma 1.8", {"gAMA": gama(1.8)}),
        ("Display P3", {"iCCP": b"x\0\0" + zlib.compress(DISPLAY_P3), "gAMA": gama(1)}),
    ],
)  # fmt: skip
def test_png_tells_its_color_in_four_ways_of_which_the_first_counts(space, chunks):
    stored = stored_as(space)
    data = with_chunks(saved(stored), **chunks)
    truth = shown_of(stored, SPACES[space][1]) if SPACES[space][0] is SRGB else TRUTH
    assert levels_off(data, truth) < 1.2
    assert np.abs(stored.astype(int) - TRUTH).mean() > 4
    assert "converted to sRGB" in note(data)


@pytest.mark.parametrize(
    "chunks",
    [
        {"cICP": bytes([1, 13, 0, 1])},
        {"cICP": bytes([2, 2, 0, 1])},
        {"cICP": bytes([1, 13, 0, 1]), "iCCP": b"x\0\0" + zlib.compress(DISPLAY_P3)},
        {"sRGB": b"\0", "gAMA": gama(1), "cHRM": chrm(SPACES["BT.2020"][0])},
        {"gAMA": struct.pack(">I", 45455)},
        {"gAMA": struct.pack(">I", 45455), "cHRM": chrm(SRGB)},
        {"gAMA": bytes(4)},  # and other damage
        {"gAMA": struct.pack(">I", 1)},
        {"gAMA": struct.pack(">I", 2**32 - 1)},
        {"gAMA": b"\0\0"},
        {"cHRM": bytes(32)},
        {"cHRM": chrm(((0.3, 0.3), (0.3, 0.3), (0.3, 0.3)))},
        {"cHRM": b"\xff" * 32},
        {"cICP": b"\x0c"},
    ],
)
def test_png_that_says_srgb_or_nothing_sensible_is_left_as_it_is(chunks):
    data = with_chunks(saved(TRUTH), **chunks)
    assert levels_off(data) == 0
    assert "converted" not in note(data)


@pytest.mark.parametrize(
    ("cicp", "words"),
    [
        ((9, 16, 0, 1), r"transfer characteristics 16 \(HDR: PQ\); convert it to sRGB"),
        ((9, 18, 0, 1), r"18 \(HDR: HLG\)"),
        ((1, 13, 1, 1), "a video's YCbCr or narrow range"),
        ((1, 13, 0, 0), "narrow range"),
        ((22, 13, 0, 1), "color primaries 22"),
        ((1, 99, 0, 1), r"99 \(unknown\)"),
    ],
)
def test_png_of_a_color_that_is_not_converted_is_refused_by_what_it_is(cicp, words):
    with pytest.raises(BadImage, match=f"^unsupported-png: .*{words}"):
        process(with_chunks(saved(TRUTH), cICP=bytes(cicp)), ImageOptions())


def test_gray_palettes_alpha_and_16_bits_too():
    stored, chunks = stored_as("gamma 1.8"), {"gAMA": gama(1.8)}
    gray = np.ascontiguousarray(stored[..., 1])
    truth = np.repeat(shown_of(gray, 1.8)[..., None], 3, axis=2)
    assert levels_off(with_chunks(saved(gray), **chunks), truth) < 1
    wide = gray.astype(np.uint16) * 257
    assert levels_off(with_chunks(saved(wide), **chunks), truth) < 1
    clear = np.dstack([stored, np.full(stored.shape[:2], 255, np.uint8)])
    assert levels_off(with_chunks(saved(clear), **chunks), shown_of(stored, 1.8)) < 1
    few = Image.fromarray(stored).quantize(64)
    buffer = io.BytesIO()
    few.save(buffer, "PNG")
    shown = shown_of(np.asarray(few.convert("RGB")), 1.8)
    assert levels_off(with_chunks(buffer.getvalue(), **chunks), shown) < 1


def raw_profile(packed=True):
    """A text chunk's body, as an old ImageMagick wrote profiles."""
    lines = [DISPLAY_P3[i : i + 36].hex() for i in range(0, len(DISPLAY_P3), 36)]
    text = "\n".join(["", "icc", f"{len(DISPLAY_P3):8}", *lines]).encode()
    return b"Raw profile type icc\0" + (b"\0" + zlib.compress(text) if packed else text)


@pytest.mark.parametrize("kind", ["tEXt", "zTXt"])
def test_png_with_the_profile_in_the_text_of_an_old_imagemagick(kind):
    data = with_chunks(saved(stored_as("Display P3")), **{kind: raw_profile(kind == "zTXt")})
    assert levels_off(data) < 1.2 and "Display P3 converted" in note(data)


# --------------------------------------------------------------------------------------------- AVIF, HEIC: nclx


def with_nclx(avif, primaries, transfer):
    at = avif.index(b"nclx") + 4
    return avif[:at] + struct.pack(">HH", primaries, transfer) + avif[at + 4 :]


@pytest.mark.parametrize(
    ("space", "codes"), [("Display P3", (12, 13)), ("BT.2020", (9, 2)), ("BT.2020", (9, 14)), ("linear", (1, 8))]
)
def test_avif_tells_its_color_by_code_points(space, codes):
    stored = stored_as(space)
    data = with_nclx(saved(stored, "AVIF"), *codes)
    truth = shown_of(np.asarray(Image.open(io.BytesIO(data))), 1.0) if space == "linear" else TRUTH
    assert levels_off(data, truth) < 2
    assert "converted to sRGB" in note(data)


HEIC = next(case.data for case in variants() if case.name == "photo.heic")


@pytest.mark.parametrize(
    ("space", "codes"), [("Display P3", (12, 13)), ("BT.2020", (9, 14)), ("linear", (1, 8)), ("linear", (2, 8))]
)
def test_heic_tells_its_color_by_code_points(space, codes):
    stored = load_rgb(HEIC, AS_IS)
    data = with_nclx(HEIC, *codes)
    assert levels_off(data, srgb_of(space, stored)) < 1 < np.abs(srgb_of(space, stored) - stored).mean()
    assert "converted to sRGB" in note(data)


def test_heic_that_says_srgb_is_left_as_it_is_and_hdr_refused():
    for codes in ((1, 13), (2, 2), (1, 1), (1, 6)):
        assert np.array_equal(load_rgb(with_nclx(HEIC, *codes), AS_IS), load_rgb(HEIC, AS_IS))
    for codes, words in (((9, 16), "HDR: PQ"), ((9, 18), "HDR: HLG")):
        with pytest.raises(BadImage, match=f"^unsupported-heic: .*{words}"):
            process(with_nclx(HEIC, *codes), ImageOptions())


def test_avif_that_says_srgb_or_has_a_profile_as_well():
    plain = saved(TRUTH, "AVIF")
    for codes in ((1, 13), (2, 2), (1, 1), (1, 6)):
        assert np.array_equal(load_rgb(with_nclx(plain, *codes), AS_IS), load_rgb(plain, AS_IS))
    both = saved(stored_as("Display P3"), "AVIF", icc_profile=DISPLAY_P3)
    assert levels_off(both) < 2
    if b"nclx" in both:
        assert levels_off(with_nclx(both, 9, 16)) < 2  # the profile counts


def test_hdr_avif_is_refused_by_what_it_is():
    with pytest.raises(BadImage, match=r"^unsupported-avif: avif with transfer characteristics 16 \(HDR: PQ\)"):
        process(with_nclx(saved(TRUTH, "AVIF"), 9, 16), ImageOptions())


# ------------------------------------------------------------------------------------------------ EXIF: Adobe RGB


def directory(order, *entries):
    """Tag, type, count and value of each."""
    packed = b"".join(struct.pack(order + "HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return struct.pack(order + "H", len(entries)) + packed + bytes(4)


def exif_directory(space, index, order, start):
    """EXIF's directory at offset `start`, with a color space, and the one of an interoperability index after it."""
    inner = [(0xA001, 3, 1, struct.pack(order + "HH", space, 0))]
    if index:
        inner.append((0xA005, 4, 1, struct.pack(order + "I", start + 2 + 12 * 2 + 4)))
    return directory(order, *inner) + (directory(order, (1, 2, 4, index.ljust(4, b"\0"))) if index else b"")


def exif_of(space, index=b"", order="<"):
    """An EXIF block with a color space and, in the directory that it leads to, an interoperability index."""
    start = 8 + 2 + 12 * 2 + 4
    block = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    block += directory(
        order, (0x112, 3, 1, struct.pack(order + "HH", 1, 0)), (0x8769, 4, 1, struct.pack(order + "I", start))
    )
    return block + exif_directory(space, index, order, start)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("told", [(2, b""), (0xFFFF, b"R03"), (2, b"R03")])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_adobe_rgb_is_told_by_exif_as_cameras_do(kind, told, order):
    stored = stored_as("Adobe RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(stored, kind, exif=b"Exif\0\0" + exif_of(*told, order), **options)
    assert levels_off(data) < 2 < np.abs(stored.astype(int) - TRUTH).mean()
    done = process(data, AS_IS)
    assert "color profile Adobe RGB converted to sRGB" in done.note and b"R03" not in done.data


@pytest.mark.parametrize("told", [(1, b""), (1, b"R98"), (0xFFFF, b""), (0xFFFF, b"R98"), (3, b"")])
def test_exif_that_says_srgb_or_nothing_is_left_as_it_is(told):
    data = saved(TRUTH, "JPEG", exif=b"Exif\0\0" + exif_of(*told))
    assert "passed through" in note(data) and "converted" not in note(data)


def test_a_profile_counts_more_than_exif_and_damage_is_no_color():
    exif = b"Exif\0\0" + exif_of(2)
    assert "P3 converted" in note(saved(stored_as("Display P3"), "JPEG", exif=exif, icc_profile=DISPLAY_P3))
    for cut in range(12, len(exif) - 1):
        process(saved(TRUTH, "JPEG", exif=exif[:cut]), ImageOptions())


# ---------------------------------------------------------------------------------------------------- GIF, BMP


def test_gif_has_its_profile_in_an_application_block():
    image = Image.fromarray(stored_as("Display P3")).quantize(200)
    buffer = io.BytesIO()
    image.save(buffer, "GIF")
    plain = buffer.getvalue()
    blocks = b"".join(
        bytes([len(part)]) + part for part in (DISPLAY_P3[i : i + 255] for i in range(0, len(DISPLAY_P3), 255))
    )
    colors = 13 + 3 * 2 ** ((plain[10] & 7) + 1)
    data = plain[:colors] + b"\x21\xff\x0bICCRGBG1012" + blocks + b"\0" + plain[colors:]
    image.info["icc_profile"] = DISPLAY_P3
    truth = load_rgb(saved(np.asarray(image.convert("RGB")), icc_profile=DISPLAY_P3), AS_IS)
    assert levels_off(data, truth) < 0.6 and levels_off(plain, truth) > 4
    assert "Display P3 converted" in note(data)


def bmp5(rgb, kind, profile=b"", endpoints=(), powers=()):
    data = bytearray(w.bmp(rgb[..., ::-1].tobytes(), rgb.shape[:2], 24, header=124))
    data[70:74] = kind
    if endpoints:
        xyz = [(x, y, 1 - x - y) for x, y in endpoints]
        data[74:110] = struct.pack("<9i", *(round(number * 2**30) for triple in xyz for number in triple))
        data[110:122] = struct.pack("<3I", *(round(power * 65536) for power in powers))
    data[126:134] = struct.pack("<II", len(data) - 14, len(profile))
    return bytes(data) + profile


@pytest.mark.parametrize(
    ("space", "how"),
    [
        ("Display P3", {"kind": b"DEBM", "profile": DISPLAY_P3}),
        ("Adobe RGB", {"kind": bytes(4), "endpoints": SPACES["Adobe RGB"][0], "powers": [2.2] * 3}),
        ("Adobe RGB", {"kind": bytes(4), "endpoints": SPACES["Adobe RGB"][0], "powers": [1 / 2.2] * 3}),
        ("gamma 1.8", {"kind": bytes(4), "endpoints": SRGB, "powers": [1.8] * 3}),
    ],
)
def test_bmp_5_has_a_profile_or_colors_of_its_own(space, how):
    stored = stored_as(space)
    assert levels_off(bmp5(stored, **how)) < 2 < np.abs(stored.astype(int) - TRUTH).mean()


@pytest.mark.parametrize(
    "how",
    [
        {"kind": b"BGRs"},
        {"kind": b" niW"},
        {"kind": bytes(4)},  # nothing given
        {"kind": bytes(4), "endpoints": SRGB, "powers": [2.2] * 3},
        {"kind": bytes(4), "endpoints": SRGB, "powers": [0] * 3},
        {"kind": b"DEBM", "profile": profile_of("sRGB")},
        {"kind": b"DEBM"},
    ],
)
def test_bmp_5_that_says_srgb_or_nothing_is_left_as_it_is(how):
    assert levels_off(bmp5(TRUTH, **how)) == 0


def test_a_bmp_whose_profile_is_elsewhere_is_refused_by_what_it_is():
    with pytest.raises(BadImage, match=r"^unsupported-bmp: BMP whose color profile is in another file"):
        process(bmp5(TRUTH, b"KNIL", b"C:\\profiles\\mine.icm\0"), ImageOptions())


def test_numbers_that_are_no_colors_give_no_profile():
    assert of_numbers((), (), 2.2) is of_numbers((), (), 9e9) is None
    white, srgb = (0.3127, 0.3290), (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
    for colors, light in (((0.0,) * 6, white), ((0.3,) * 6, white), (srgb, (0.0, 0.0)), (srgb, (0.8, 0.2))):
        data = with_chunks(saved(TRUTH), gAMA=gama(1.8), cHRM=chrm(np.reshape(colors, (3, 2)), light))
        assert levels_off(data) == 0 and "color profile ignored" in note(data)


# ------------------------------------------------------------------------------------------------------- TIFF


def fractions(tiff, tag, numbers):
    """The values of a tag, written as bytes, turned into rational numbers: half as many."""
    raw = b"".join(struct.pack("<II", round(number * 100_000), 100_000) for number in numbers)
    at = tiff.index(struct.pack("<HHI", tag, 1, len(raw)))
    return tiff[: at + 2] + struct.pack("<HI", 5, len(numbers)) + tiff[at + 8 :]


def tiff_of(rgb, primaries=(), white=(), curve=()):
    pairs = {319: [number for pair in primaries for number in pair], 318: list(white)}
    raw = {
        tag: b"".join(struct.pack("<II", round(number * 100_000), 100_000) for number in numbers)
        for tag, numbers in pairs.items()
        if numbers
    }
    tags = [(tag, 1, list(data)) for tag, data in raw.items()] + ([(301, 3, list(curve))] if len(curve) else [])
    made = w.tiff(rgb, w.RGB, tags=tags)
    for tag in raw:
        made = fractions(made, tag, pairs[tag])
    return made


@pytest.mark.parametrize(
    ("space", "how"),
    [
        ("Display P3", {"primaries": SPACES["Display P3"][0], "white": (0.3127, 0.3290)}),
        ("BT.2020", {"primaries": SPACES["BT.2020"][0]}),
        (
            "Adobe RGB",
            {
                "primaries": SPACES["Adobe RGB"][0],
                "curve": np.rint(65535 * (np.arange(256) / 255) ** (563 / 256)).astype(int).tolist(),
            },
        ),
    ],
)
def test_tiff_has_tags_for_its_colors(space, how):
    stored = stored_as(space)
    assert levels_off(tiff_of(stored, **how)) < 1.2 < np.abs(stored.astype(int) - TRUTH).mean()


@pytest.mark.parametrize(
    "how",
    [
        {"primaries": SRGB, "white": (0.3127, 0.3290)},
        {"primaries": SRGB, "curve": np.rint(65535 * (np.arange(256) / 255) ** 2.2).astype(int).tolist()},
        {"white": (0.3127, 0.3290)},
        {"primaries": SRGB[:2]},
        {"primaries": ((0, 0), (0, 0), (0, 0))},
    ],
)
def test_tiff_that_says_srgb_or_nothing_sensible_is_left_as_it_is(how):
    assert levels_off(tiff_of(TRUTH, **how)) == 0


def tiff_with_exif(rgb, space, index, order):
    start = len(w.tiff(rgb, w.RGB, order=order, tags=[(0x8769, 4, [0])]))
    return w.tiff(rgb, w.RGB, order=order, tags=[(0x8769, 4, [start])]) + exif_directory(space, index, order, start)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_whose_exif_says_adobe_rgb_as_cameras_do(order):
    stored = stored_as("Adobe RGB")
    for told in ((2, b""), (0xFFFF, b"R03")):
        data = tiff_with_exif(stored, *told, order)
        assert levels_off(data) < 1.2 < np.abs(stored.astype(int) - TRUTH).mean()
        assert "color profile Adobe RGB converted to sRGB" in note(data)
    for told in ((1, b"R98"), (0xFFFF, b"R98"), (0xFFFF, b"")):
        assert levels_off(tiff_with_exif(TRUTH, *told, order)) == 0
