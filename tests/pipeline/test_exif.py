"""One parser of orientations: what it reads in any container, what it forgives, and that it reads no more."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from shardline.pipeline import exif
from shardline.pipeline.image_headers import read_header
from shardline.tools.image_variants import jpeg_segment, sloppy_exif_blocks

ALL = range(1, 9)


def saved(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 40), "teal").save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", ALL)
@pytest.mark.parametrize("fault", sloppy_exif_blocks())
def test_sloppy_blocks_give_their_orientation(fault: str, orientation: int) -> None:
    assert exif.orientation(sloppy_exif_blocks(orientation)[fault]) == orientation


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", ALL)
def test_big_tiff_directories_are_read(order: str, orientation: int) -> None:
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HHHQ", 43, 8, 0, 16)
    entry = struct.pack(order + "HHQH6x", 0x112, 3, 1, orientation)
    assert exif.orientation(head + struct.pack(order + "Q", 1) + entry) == orientation


def test_no_tag_is_0_and_a_value_out_of_range_is_1() -> None:
    assert exif.orientation(b"") == exif.orientation(b"II*\0") == exif.orientation(b"nonsense") == 0
    empty = b"II*\0" + struct.pack("<IH", 8, 0) + bytes(4)
    assert exif.orientation(empty) == 0
    for value in (0, 9, 99):
        assert exif.orientation(sloppy_exif_blocks(value)["plain"]) == 1


def test_the_first_of_two_orientations_counts_as_in_opencv_and_pillow() -> None:
    six, three, nine = (struct.pack("<HHIHH", 0x112, 3, 1, value, 0) for value in (6, 3, 9))
    for entries, wanted in ((six + three, 6), (three + six, 3), (nine + six, 6)):
        block = b"II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
        assert exif.orientation(block) == wanted
        jpeg = saved("JPEG")
        theirs = Image.open(io.BytesIO(jpeg[:2] + jpeg_segment(0xE1, b"Exif\0\0" + block) + jpeg[2:])).getexif()
        assert theirs[0x112] in (wanted, 9)


def test_a_directory_that_leads_to_itself_ends() -> None:
    block = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    assert exif.orientation(block) == 0


@given(st.binary(max_size=200), st.sampled_from([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]))
def test_any_bytes_give_a_number(rest: bytes, head: bytes) -> None:
    assert 0 <= exif.orientation(head + rest) <= 8


@pytest.mark.parametrize("orientation", ALL)
def test_xmp_tells_where_exif_does_not(orientation: int) -> None:
    packet = b'<x:xmpmeta xmlns:tiff="x"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation
    assert exif.xmp_orientation(packet) == orientation
    namespace = b'xmlns:ns0="http://ns.adobe.com/tiff/1.0/"'  # as Python's ElementTree writes it
    for form in (
        b"<tiff:Orientation>%d</tiff:Orientation>",
        b"<tiff:Orientation rdf:datatype='x'> %d </tiff:Orientation>",
        b"<tiff:Orientation><rdf:value>%d</rdf:value></tiff:Orientation>",
        b"<rdf:RDF " + namespace + b"><rdf:Description other:Orientation='5' ns0:Orientation='%d'/></rdf:RDF>",
    ):
        text = form % orientation
        assert exif.xmp_orientation(text) == orientation
        for coding in ("utf-8-sig", "utf-16", "utf-16-be", "utf-32"):
            assert exif.xmp_orientation(text.decode().encode(coding)) == orientation
    for other in (b"<x:Orientation>%d<", b"<tiff:OrientationX>%d<", b"tiff:Orientation='1%d'"):
        assert exif.xmp_orientation(other % orientation) == 0
    assert read_header(saved("JPEG", xmp=packet)).orientation == orientation
    both = Image.Exif()
    both[0x112] = 3
    assert read_header(saved("JPEG", xmp=packet, exif=both)).orientation == 3


@pytest.mark.parametrize("orientation", ALL)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pillow_writes_what_is_read(kind: str, orientation: int) -> None:
    tag = Image.Exif()
    tag[0x112] = orientation
    data = saved(kind, exif=tag)
    assert read_header(data).orientation == orientation


def test_the_first_exif_that_tells_counts() -> None:
    blocks = [sloppy_exif_blocks(6)["plain"], sloppy_exif_blocks(3)["plain"]]
    untold = b"II*\0" + struct.pack("<IH", 8, 0) + bytes(4)
    segments = [jpeg_segment(0xE1, b"Exif\0\0" + block) for block in (untold, *blocks)]
    jpeg = saved("JPEG")
    assert read_header(jpeg[:2] + b"".join(segments) + jpeg[2:]).orientation == 6


def test_the_extension_of_a_packet_is_not_taken_for_it() -> None:
    packet, jpeg = b'<x tiff:Orientation="%d"/>', saved("JPEG")
    extension = jpeg_segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + packet % 8)
    main = jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet % 6)
    for segments, wanted in ((extension, 1), (extension + main, 6)):
        data = jpeg[:2] + segments + jpeg[2:]
        assert read_header(data).orientation == wanted
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert turned.size == ((40, 64) if wanted == 6 else (64, 40))
