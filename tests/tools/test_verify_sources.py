"""verify knows more than the converter: stored images beside their files as Pillow reads them; the table by value."""

import re
import shutil

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from shardline.pipeline.errors import UsageError
from shardline.pipeline.example import encode_example, parse_example
from shardline.pipeline.manifest import Manifest, write_shard_file
from shardline.pipeline.sources_table import SOURCES_FILE
from shardline.pipeline.tfrecord import frame_record, unframe_record
from shardline.tools.conversion.run import convert
from shardline.tools.conversion.tfds_metadata import write_tfds_metadata
from shardline.tools.image_variants import DISPLAY_P3, variants
from shardline.tools.verify import VerifyConfig, verify
from tests.tools.folders import Run, config, records

QUARTERS = np.kron([[0, 1], [2, 3]], np.ones((40, 60), int))
COLORS = np.uint8([[200, 40, 30], [30, 180, 60], [40, 60, 220], [220, 210, 90]])
RGB = COLORS[QUARTERS]  # 80 rows of 120 pixels


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of many kinds: turned, with a profile, gray, with alpha, as PNG, WebP and TIFF, of odd sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("a", "b"):
        (folder / name).mkdir()
    image = Image.fromarray(RGB)
    turned = Image.Exif()
    turned[0x112] = 6
    image.save(folder / "a" / "plain.jpg", quality=95)
    image.save(folder / "a" / "turned.jpg", quality=95, exif=turned)
    image.save(folder / "a" / "p3.png", icc_profile=DISPLAY_P3)
    image.convert("L").save(folder / "b" / "gray.tif")
    image.convert("RGBA").save(folder / "b" / "alpha.webp", lossless=True)
    image.resize((301, 97)).save(folder / "b" / "wide.bmp")
    return folder


def checked(data, photos, **options):
    return verify(VerifyConfig(data=data, sources=photos, workers=1, **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resize": "long", "size": 64},
        {"resize": "squash", "size": 48},
        {"resize": "center_crop", "size": 48},
        {"resize": "none"},
        {"resize": "short", "size": 200, "upscale": True},
        {"encoding": "png"},
        {"encoding": "raw"},
    ],
)
def test_sound_conversions_agree_with_other_decoders(photos, tmp_path, options):
    convert(config(photos, tmp_path / "d", image={"size": 40, **options}))
    found = checked(tmp_path / "d", photos)
    assert (found.faults, found.compared, found.not_compared) == ((), 6, ())


def test_what_other_decoders_are_known_to_misread_is_no_fault(tmp_path):
    """Whatever is sound in the corpus: a verification that cries wolf is none."""
    for case in variants():
        if not case.reason and re.search(
            r"alpha-zero|(2|16)-bit\.j|planes|-zero-|12-bit.tif|four-|8-bit-c|n.jxl|exif-b", case.name
        ):
            (tmp_path / "s" / "a").mkdir(parents=True, exist_ok=True)
            (tmp_path / "s" / "a" / case.name).write_bytes(case.data)
    convert(config(tmp_path / "s", tmp_path / "d", image={"resize": "none", "encoding": "png"}))
    found = checked(tmp_path / "d", tmp_path / "s", source_images=1000)
    assert found.faults == () and found.compared > 10


def stored_otherwise(data, path, change):
    """Put another image in place of the one stored for a path, as a converter with a fault would, table and all."""
    manifest = Manifest.load(data)
    examples = records(data, "train")
    framed = []
    for example in examples:
        image = bytes(example.image)
        if example.filename == path:
            pixels = change(cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR))
            image = cv2.imencode(".png", pixels)[1].tobytes()
            example = example._replace(height=pixels.shape[0], width=pixels.shape[1])
        framed.append(
            frame_record(encode_example(image, example.label, example.filename, example.height, example.width))
        )
    (shard,) = manifest.splits["train"].shards
    shard = write_shard_file(data / shard.file, framed)
    for index in data.glob("*.index"):  # of the shards as they were
        index.unlink()
    table = parquet.read_table(data / SOURCES_FILE)
    sizes = [len(record) for record in framed]
    columns = {"size": sizes, "offset": (np.cumsum(sizes) - sizes).tolist()}
    shown = [parse_example(unframe_record(record), manifest.features) for record in framed]
    columns |= {"height": [example.height for example in shown], "width": [example.width for example in shown]}
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.column_names.index(name), field, pa.array(values, field.type))
    parquet.write_table(table, data / SOURCES_FILE)
    object.__setattr__(manifest.splits["train"], "shards", (shard,))
    manifest.save(data)
    write_tfds_metadata(data, manifest, None)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("a/turned.jpg", lambda bgr: cv2.rotate(bgr, cv2.ROTATE_90_COUNTERCLOCKWISE)),  # orientation lost
        ("a/plain.jpg", lambda bgr: bgr[..., ::-1]),  # red and blue exchanged
        ("a/plain.jpg", lambda bgr: cv2.flip(bgr, 1)),
        ("a/plain.jpg", lambda bgr: np.full_like(bgr, 255)),
        ("b/gray.tif", lambda bgr: 255 - bgr),
        ("b/alpha.webp", lambda bgr: cv2.add(bgr, (12, 12, 12, 0))),
        ("b/wide.bmp", lambda bgr: cv2.rectangle(bgr.copy(), (0, 0), (20, 20), (255, 255, 255), -1)),
        ("b/wide.bmp", lambda bgr: cv2.resize(bgr, (60, 40))),
    ],
)  # fmt: skip
def test_what_was_stored_wrong_is_found(photos, tmp_path, path, change):
    convert(config(photos, tmp_path / "d", image={"size": 40, "encoding": "png"}))
    stored_otherwise(tmp_path / "d", path, change)
    assert verify(VerifyConfig(data=tmp_path / "d", workers=1)).faults == ()  # the dataset agrees with itself
    (fault,) = checked(tmp_path / "d", photos).faults
    assert (path in fault and "as Pillow reads it" in fault) or "but Pillow makes" in fault


def test_a_profile_that_was_not_applied_is_found(photos, tmp_path):
    convert(config(photos, tmp_path / "d", image={"size": 80, "encoding": "png"}))
    stored_otherwise(tmp_path / "d", "a/p3.png", lambda bgr: np.ascontiguousarray(RGB[..., ::-1]))
    (fault,) = checked(tmp_path / "d", photos).faults
    assert "a/p3.png as Pillow reads it" in fault


def test_an_orientation_that_other_decoders_pass_over_is_not_compared(tmp_path):
    packet = b"http://ns.adobe.com/xap/1.0/\0<x xmlns:a='http://ns.adobe.com/tiff/1.0/' a:Orientation='6'/>"
    plain = tmp_path / "plain.jpg"
    Image.fromarray(RGB).save(plain, quality=95)
    data = plain.read_bytes()
    (tmp_path / "s" / "a").mkdir(parents=True)
    turned = data[:2] + b"\xff\xe1" + (len(packet) + 2).to_bytes(2, "big") + packet + data[2:]
    (tmp_path / "s" / "a" / "turned.jpg").write_bytes(turned)
    convert(config(tmp_path / "s", tmp_path / "d"))
    found = checked(tmp_path / "d", tmp_path / "s")
    assert (found.faults, found.compared) == ((), 0)
    assert "a/turned.jpg: its orientation is told in a way that other decoders pass over" in found.not_compared[0]


@pytest.mark.parametrize(
    "name",
    [
        "offset-with-colors-of-its-own-and-no-background.gif",
        "offset-with-colors-of-its-own-and-screen-background.gif",
        "dark-linear-gray-16-bit.tif", "gray-that-is-not-told.tif",
    ],
)  # fmt: skip
def test_what_other_decoders_are_known_to_misread_is_not_held_against_a_sound_file(tmp_path, name):
    (tmp_path / "s" / "a").mkdir(parents=True)
    case = next(case for case in variants() if case.name == name)
    (tmp_path / "s" / "a" / name).write_bytes(case.data)
    convert(config(tmp_path / "s", tmp_path / "d"))
    found = checked(tmp_path / "d", tmp_path / "s")
    assert (found.faults, found.compared, len(found.not_compared)) == ((), 0, 1)


def test_sources_that_changed_or_are_gone(photos, tmp_path):
    source = tmp_path / "s"
    shutil.copytree(photos, source)
    convert(config(source, tmp_path / "d"))
    (source / "a" / "plain.jpg").write_bytes((source / "a" / "turned.jpg").read_bytes())
    (source / "b" / "wide.bmp").unlink()
    result = Run("shardline.tools.verify", tmp_path / "d", f"--sources={source}", "--workers=1")
    assert result.code == 1 and "its source a/plain.jpg has changed since it was converted" in result.stdout
    assert "note: not compared with its source: b/wide.bmp: not in the sources given" in result.stderr
    with pytest.raises(UsageError, match="no such folder; give the folder that was converted"):
        checked(tmp_path / "d", tmp_path / "none")


def test_a_part_of_the_images_is_compared(photos, tmp_path):
    convert(config(photos, tmp_path / "d"))
    assert checked(tmp_path / "d", photos, source_images=2).compared == 2
    result = Run("shardline.tools.verify", tmp_path / "d", f"--sources={photos}", "--workers=1")
    assert (result.code, "6 images compared with the source, no faults" in result.stdout) == (0, True)


# ------------------------------------------------------------------------------------------- the table by value


def edit(data, column, change):
    table = parquet.read_table(data / SOURCES_FILE)
    values = table[column].to_pylist()
    field = table.schema.field(column)
    table = table.set_column(table.column_names.index(column), field, pa.array(change(values), field.type))
    parquet.write_table(table, data / SOURCES_FILE)


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("label", lambda values: values[::-1], "sources.parquet has label"),
        ("label_name", lambda values: ["a"] * len(values), "label 1 is called 'a', which it is not in the manifest"),
        ("path", lambda values: values[::-1], "for it"),
        ("height", lambda values: [value + 1 for value in values], " pixels for it"),
        ("width", lambda values: [value + 1 for value in values], " pixels for it"),
        ("offset", lambda values: [value + 1 for value in values], "do not lie where sources.parquet says"),
        ("split", lambda values: ["test"] * len(values), "the rows of split 'test' are not its 0 records in order"),
        ("record", lambda values: values[::-1], "the rows of split 'train' are not its 6 records in order"),
        ("status", lambda values: ["filtered", *values[1:]], "its rows are not the manifest's ledger"),
    ],
)
def test_a_table_that_says_something_else_is_noticed(photos, tmp_path, column, change, message):
    convert(config(photos, tmp_path / "d"))
    edit(tmp_path / "d", column, change)
    assert any(message in fault for fault in verify(VerifyConfig(data=tmp_path / "d", workers=1)).faults)
