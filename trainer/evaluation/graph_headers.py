"""What a JPEG or PNG file says of itself, read by TensorFlow ops alone: size, orientation, and why it is not served.

A graph cannot call Python: this is `pipeline.image_headers` again, for two formats. The tests hold both equal.
"""

from __future__ import annotations

import tensorflow as tf

_TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 0, 0, 4)  # of TIFF's types, by their number: 8, fractions; 0, others
_ORIENTATION = 0x0112

UNKNOWN = "neither JPEG nor PNG: convert it first, and call serve_images"
PROFILE = "its color profile or color space is not sRGB: convert it first, and call serve_images"
BLANK = "damaged: a blank stretch in its compressed data"
XMP = "turned by XMP, which a TensorFlow graph does not read: turn it first, and call serve_images"
HIDDEN = "may be turned by what a TensorFlow graph does not read: turn it first, and call serve_images"

# Profiles of these names have the colors and the curve of sRGB.
_SRGB = ("sRGB IEC61966-2", "sRGB built-in", "GIMP built-in sRGB")


def refusal(encoded: tf.Tensor) -> tf.Tensor:
    """Why a file cannot become the pixels that the converter makes of it; empty where it can."""
    jpeg = tf.io.is_jpeg(encoded)
    known = jpeg | (tf.strings.substr(encoded, 0, 8) == b"\x89PNG\r\n\x1a\n")
    profile = tf.cond(jpeg, lambda: _jpeg_profile(encoded), lambda: _png_profile(encoded))
    names = "|".join(name + "|" + r"\x00".join(name) for name in _SRGB)  # as ASCII, or in UTF-16
    foreign = tf.cond(
        tf.strings.length(profile) > 0,
        lambda: ~_holds(profile, names),
        lambda: tf.cond(jpeg, lambda: _jpeg_is_adobe_rgb(encoded), lambda: False),
    )
    foreign |= tf.cond(jpeg, lambda: False, lambda: _png_is_colored(encoded, tf.strings.length(profile) > 0))
    untold = _first_orientation(encoded) == 0
    by_xmp = untold & _holds(encoded, _TURNED)
    hidden = (untold & _holds(encoded, _HIDDEN)) | _holds(encoded, r"eXIf(II|MM)\C*eXIf(II|MM)")
    blank = tf.cond(jpeg, lambda: _jpeg_blank(encoded), lambda: False)
    told = ((blank, BLANK), (by_xmp, XMP), (hidden, HIDDEN), (foreign, PROFILE))
    reason = tf.constant("")
    for is_so, words in reversed(told):
        reason = tf.where(is_so, words, reason)
    return tf.where(known, reason, UNKNOWN)


# XMP of any prefix, in UTF-8 or UTF-16: see `pipeline.exif.xmp_orientation`.
_TURNED = (
    r"\x00*".join(":Orientation") + r"[\s\x00]*(=[\s\x00]*[\"']|([\s\x00][^<>]{0,400})?>[\s\x00]*(<[\w:\x00]{1,80}>)?)"
    r"[\s\x00]*[2-8]\b"
)
# Text of a PNG that is packed or in hexadecimal; a JPEG's EXIF after an EXIF without orientation.
_HIDDEN = "|".join(
    (
        r"(tEXt|zTXt)Raw profile type (exif|APP1|xmp)\x00",
        r"iTXtXML:com\.adobe\.xmp\x00\x01",
        r"Exif\x00\x00\C*Exif\x00\x00(II|MM)",
    )
)


def _holds(data: tf.Tensor, pattern: str) -> tf.Tensor:
    return tf.strings.regex_full_match(data, rf"(?s)\C*({pattern})\C*")


def image_size(encoded: tf.Tensor) -> tf.Tensor:
    """float64 [2]: height and width as stored, not yet oriented."""

    def in_png() -> tf.Tensor:
        return tf.stack([_number(_bytes(encoded, at, 4), False) for at in (20, 16)])

    def in_jpeg() -> tf.Tensor:
        return tf.cast(tf.io.extract_jpeg_shape(encoded)[:2], tf.int64)

    return tf.cast(tf.cond(tf.io.is_jpeg(encoded), in_jpeg, in_png), tf.float64)


def few_bits_without_alpha(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a PNG has samples of 1, 2 or 4 bits and no transparency."""
    return (_bytes(encoded, 24, 1)[0] < 8) & (_find_chunk(encoded, "tRNS")[1] == 0)


def exif_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """int64 1 to 8: the EXIF orientation of a JPEG or PNG file, 1 when it has none or a malformed one."""
    return tf.maximum(_first_orientation(encoded), 1)


@tf.function(autograph=False, input_signature=[tf.TensorSpec([], tf.string)])  # in a graph once, however often called
def _first_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """The same, 0 when it has none."""
    block = tf.cond(tf.io.is_jpeg(encoded), lambda: _jpeg_exif(encoded), lambda: _chunk(encoded, "eXIf"))
    return _tiff_orientation(block)


# -------------------------------------------------------------------------------- segments and chunks


def _jpeg_exif(encoded: tf.Tensor) -> tf.Tensor:
    return _segment(encoded, 0xE1, b"Exif\0\0")


def _jpeg_profile(encoded: tf.Tensor) -> tf.Tensor:
    return _segment(encoded, 0xE2, b"ICC_PROFILE\0")


def _png_profile(encoded: tf.Tensor) -> tf.Tensor:
    packed = _chunk(encoded, "iCCP")
    name = tf.strings.length(tf.strings.regex_replace(packed, r"(?s)\x00\C*", ""))  # two bytes follow it
    return tf.cond(
        tf.strings.length(packed) > 0,
        lambda: tf.io.decode_compressed(tf.strings.substr(packed, name + 2, tf.strings.length(packed)), "ZLIB"),
        lambda: tf.constant(b""),
    )


# Tags of an EXIF block, in both byte orders: see `pipeline.exif.is_adobe_rgb`.
_ADOBE_RGB = (
    b"\x01\xa0\x03\x00\x01\x00\x00\x00\x02\x00",
    b"\xa0\x01\x00\x03\x00\x00\x00\x01\x00\x02",
    b"\x01\x00\x02\x00\x04\x00\x00\x00R03",
    b"\x00\x01\x00\x02\x00\x00\x00\x04R03",
)


def _jpeg_is_adobe_rgb(encoded: tf.Tensor) -> tf.Tensor:
    block = tf.concat([tf.io.decode_raw(_jpeg_exif(encoded), tf.uint8), tf.zeros(16, tf.uint8)], 0)
    found = tf.constant(False)
    for tag in _ADOBE_RGB:
        starts = tf.size(block) - len(tag) + 1
        found |= tf.reduce_any(tf.reduce_all([block[i : starts + i] == byte for i, byte in enumerate(tag)], 0))
    return found


def _png_is_colored(encoded: tf.Tensor, has_profile: tf.Tensor) -> tf.Tensor:
    """Whether chunks tell of a color that is not sRGB: see `pipeline.png`, which converts what can be converted."""
    srgb = b"".join(number.to_bytes(4, "big") for number in (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    coded, points, gamma = (_chunk(encoded, kind) for kind in ("cICP", "cHRM", "gAMA"))
    level = _number(_bytes(gamma, 0, 4), False)
    told = (tf.strings.length(gamma) > 0) & (level > 0) & ((level < 43_479) | (level > 47_619))
    told |= (tf.strings.length(points) > 0) & (points != srgb)
    told &= _find_chunk(encoded, "sRGB")[1] == 0
    told = (told | _holds(encoded, r"(tEXt|zTXt)Raw profile type ic[cm]\x00")) & ~has_profile
    return tf.where(tf.strings.length(coded) > 0, coded != b"\x01\x0d\x00\x01", told)


def _segment(encoded: tf.Tensor, code: int, begin: bytes) -> tf.Tensor:
    """What follows `begin` in the first segment of a JPEG with this marker; empty for none."""

    def head(at: tf.Tensor) -> tf.Tensor:
        return _bytes(encoded, at, 4 + len(begin))

    def wanted(at: tf.Tensor) -> tf.Tensor:
        return (head(at)[1] == code) & tf.reduce_all(head(at)[4:] == list(begin))

    def more(at: tf.Tensor) -> tf.Tensor:
        # 0xFFDA: the image itself.
        return (at + 4 <= _length(encoded)) & (head(at)[0] == 0xFF) & (head(at)[1] != 0xDA) & ~wanted(at)

    def step(at: tf.Tensor) -> tuple[tf.Tensor]:
        kind, size = head(at)[1], _number(head(at)[2:4], False)
        is_bare = (kind == 1) | ((kind >= 0xD0) & (kind <= 0xD8))
        return (at + tf.where(kind == 0xFF, _int64(1), tf.where(is_bare, _int64(2), 2 + size)),)  # 0xFF: a fill byte

    (at,) = tf.while_loop(more, step, (_int64(2),))
    size = tf.maximum(_number(head(at)[2:4], False) - 2 - len(begin), 0)
    return tf.cond(wanted(at), lambda: tf.strings.substr(encoded, at + 4 + len(begin), size), lambda: tf.constant(b""))


def _jpeg_blank(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a run of zeros in a JPEG's scan cannot be image: see `pipeline.jpeg.check_scan`."""

    def more(at: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return (at + 4 <= _length(encoded)) & (_bytes(encoded, at, 2)[1] != 0xDA)

    def step(
        at: tf.Tensor, tables_end: tf.Tensor, components: tf.Tensor, coded: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """One table of a segment of Huffman tables, or one segment."""
        head = _bytes(encoded, at, 18)
        symbols, in_table = tf.reduce_sum(head[1:17]), at < tables_end
        ac_begins_with_data = in_table & (head[0] >= 16) & (symbols > 0) & (head[17] > 0)
        kind, size = head[1], _number(head[2:4], False)
        is_bare = (kind == 1) | ((kind >= 0xD0) & (kind <= 0xD8))
        after = at + tf.where(kind == 0xFF, _int64(1), tf.where(is_bare, _int64(2), 2 + size))
        is_tables = ~in_table & (kind == 0xC4)
        sequential = ~in_table & ((kind == 0xC0) | (kind == 0xC1))
        following = tf.where(in_table, at + 17 + symbols, tf.where(is_tables, at + 4, after))
        return (
            following,
            tf.where(is_tables, after, tables_end),
            tf.where(sequential, head[9], components),
            coded | ac_begins_with_data,
        )

    start = (_int64(2), _int64(0), _int64(0), tf.constant(False))
    at, _, components, coded = tf.while_loop(more, step, start)
    interleaved = (components > 0) & (_bytes(encoded, at, 5)[4] == components)
    return tf.cond(coded & interleaved, lambda: _zeros_before_marker(encoded, at), lambda: False)


def _zeros_before_marker(encoded: tf.Tensor, scan: tf.Tensor) -> tf.Tensor:
    """Whether 24 zeros in a row begin before the first marker of a scan that is not a restart."""
    start = scan + 2 + _number(_bytes(encoded, scan + 2, 2), False)
    data = tf.cast(
        tf.io.decode_raw(tf.strings.substr(encoded, tf.minimum(start, _length(encoded)), -1), tf.uint8), tf.int32
    )
    second = data[1:]
    marks = (data[:-1] == 255) & (second != 0) & (second != 255) & ((second < 0xD0) | (second > 0xD7))
    marker = tf.reduce_min(tf.concat([tf.where(marks)[:, 0], [tf.size(data, tf.int64)]], 0))
    others = tf.concat([[0], tf.cumsum(tf.cast(data != 0, tf.int32))], 0)  # bytes before each that are not zero
    runs = tf.where(others[24:] == others[:-24])[:, 0]
    return tf.reduce_any(runs < marker)


def _chunk(encoded: tf.Tensor, kind: str) -> tf.Tensor:
    """What is in the first chunk of a PNG of this kind; empty for none."""
    at, size = _find_chunk(encoded, kind)
    return tf.cond(size > 0, lambda: tf.strings.substr(encoded, at + 8, size), lambda: tf.constant(b""))


def _find_chunk(encoded: tf.Tensor, kind: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the first chunk of this kind begins in a PNG file, and how many bytes are in it; 0 when there is none."""

    def size(at: tf.Tensor) -> tf.Tensor:
        return _number(_bytes(encoded, at, 4), False)

    def inside(at: tf.Tensor) -> tf.Tensor:
        return at + 12 <= _length(encoded)

    def wanted(at: tf.Tensor) -> tf.Tensor:
        return tf.reduce_all(_bytes(encoded, at + 4, 4) == list(kind.encode()))

    (at,) = tf.while_loop(lambda at: inside(at) & ~wanted(at), lambda at: (at + 12 + size(at),), (_int64(8),))
    return at, tf.where(inside(at), size(at), 0)


def _tiff_orientation(block: tf.Tensor) -> tf.Tensor:
    """Tag 0x0112 of the first directory of a TIFF block: 1 to 8, 1 for another value, 0 for none."""
    data = tf.cast(tf.io.decode_raw(block, tf.uint8), tf.int64)
    size = tf.size(data, tf.int64)
    little = tf.strings.substr(block, 0, 2) == "II"
    known = (little | (tf.strings.substr(block, 0, 2) == "MM")) & (size >= 8)
    start = tf.cond(known, lambda: _number(data[4:8], little) + 2, lambda: size)  # of the directory's first entry
    count = tf.cond(start <= size, lambda: _number(data[start - 2 : start], little), lambda: _int64(0))
    count = tf.maximum(tf.minimum(count, (size - start) // 12), 0)
    entries = tf.reshape(data[start : start + 12 * count], (count, 12))
    tag, kind, values = (_number(entries[:, a:b], little) for a, b in ((0, 2), (2, 4), (4, 8)))
    width = tf.gather(tf.constant(_TYPE_BYTES, tf.int64), tf.where(kind < len(_TYPE_BYTES), kind, 0))
    # Values of up to 4 bytes lie in the entry itself, others elsewhere in the block.
    inside = start + 12 * tf.range(count) + 8
    where = tf.where(width * values <= 4, inside, _number(entries[:, 8:], little))
    readable = (tag == _ORIENTATION) & (width > 0) & (values > 0) & (where + width <= size)
    spot = tf.boolean_mask(tf.stack([where, width], 1), readable)
    above = tf.map_fn(lambda one: _number(data[one[0] : one[0] + tf.minimum(one[1], 4)], little), spot)
    below = tf.map_fn(lambda one: _number(data[one[0] + 4 : one[0] + one[1]], little), spot)  # 0 where there is none
    found = tf.where(above % tf.maximum(below, 1) == 0, above // tf.maximum(below, 1), 0)
    valid = tf.boolean_mask(found, (found >= 1) & (found <= 8))
    none = tf.cond(tf.reduce_any(tag == _ORIENTATION), lambda: _int64([1]), lambda: _int64([0]))
    return tf.concat([valid, none], 0)[0]


def _length(encoded: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.strings.length(encoded), tf.int64)


def _bytes(encoded: tf.Tensor, at: tf.Tensor | int, count: int) -> tf.Tensor:
    """int64 [count]: bytes from a place on; zeros after the end."""
    part = tf.strings.substr(encoded, tf.minimum(tf.cast(at, tf.int64), _length(encoded)), count)
    return tf.cast(tf.io.decode_raw(part, tf.uint8, fixed_length=count), tf.int64)


def _int64(value: int | list[int]) -> tf.Tensor:
    return tf.constant(value, tf.int64)


def _number(digits: tf.Tensor, little: tf.Tensor | bool) -> tf.Tensor:
    """int64 [...]: unsigned numbers of bytes [..., n]."""
    places = tf.range(tf.shape(digits, tf.int64)[-1])
    places = tf.where(little, places, tf.reverse(places, [0]))
    return tf.reduce_sum(digits * tf.bitwise.left_shift(tf.ones_like(places), 8 * places), -1)
