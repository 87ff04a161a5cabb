"""Memory: the parent of a conversion of ten million inputs stays below a gigabyte; a worker stays small.

A worker holds the file, the decoder's output array (height * width * channels * bytes a sample, as stored: 384 MB for
48 million pixels of 16-bit RGBA) and at most 150 MB more. Its peak is the kernel's (VmHWM), plus, while it decodes,
the copy of the file that a large image is decoded from.
"""

import io
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.tools.folders import ROOT, draw

SCRIPT = """
import hashlib, json, sys
import numpy as np
import pyarrow as pa
from shardline.pipeline.example import encode_example
from shardline.pipeline.sources_table import ROW
from shardline.pipeline.tfrecord import frame_record
from shardline.tools.conversion import run
from shardline.tools.conversion.shard_writer import NOTHING, ShardResult, write_receipt
from shardline.tools.conversion.sources import SourcesBuilder
from tests.tools.folders import config

count, output, image, options = int(sys.argv[1]), sys.argv[2], open(sys.argv[3], "rb").read(), json.loads(sys.argv[4])

def scan(source, on_progress=None, **options):
    builder = SourcesBuilder()
    for label in range(1000):
        folder = builder.enter(b"n%08d" % label)
        for i in range(count // 1000):
            builder.add(folder, b"n%08d_%06d.JPEG" % (label, i), label, -1, 110_000, 10**18 + i)
    labels = [f"n{label:08d}" for label in range(1000)]
    return builder.finish("/nowhere", labels, (), np.arange(1000), ())

framed = frame_record(encode_example(image, 0, "x", 12, 16))

def write_shard(task, on_progress=None):  # what a worker would leave behind, without its work
    rows = []
    digest = hashlib.sha256()
    with open(task.output, "wb") as file:
        for position, (number, path, label) in enumerate(task.inputs):
            looks = hashlib.sha256(path).hexdigest()
            rows.append(NOTHING | {
                "input": number, "path": path.decode(), "label": label, "status": "written", "sha256": looks,
                "bytes": 110_000, "format": "jpeg", "source_height": 375, "source_width": 500, "height": 12,
                "width": 16, "offset": position * len(framed), "size": len(framed), "pixel_hash": looks,
                "perceptual_hash": int(looks[:16], 16)})
            file.write(framed)
            digest.update(framed)
    result = ShardResult(task.output, task.digest, len(task), len(task) * len(framed), digest.hexdigest(), len(task))
    write_receipt(result, pa.Table.from_pylist(rows, schema=ROW))
    return result

run.scan = scan
run.write_shard = write_shard
shares = {"train": 0.9, "test": 0.1}
manifest = run.convert(config("/nowhere", output, size=256, splits=shares, **options))
assert manifest.ledger.written == count
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak_mb": int(peak.split()[1]) / 1024}))
"""


def peak_of_parent(count, tmp_path, **options):
    image = draw(tmp_path / "x.jpg", 1, height=12, width=16)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(count), str(tmp_path / "d"), str(image), json.dumps(options)],
        capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])["peak_mb"]


@pytest.mark.slow
def test_the_parent_stays_below_a_gigabyte_at_ten_million_inputs(tmp_path):
    assert peak_of_parent(10_000_000, tmp_path, report=True) < 1000


def test_the_parent_needs_few_bytes_an_input(tmp_path):
    """Ten million inputs allow 80 bytes each; a small run shows a few times that, being mostly pieces of tables."""
    # Short shards, as what becomes of a shard's inputs is in memory at once: a worker's, but for this test.
    few, many = (peak_of_parent(n, tmp_path / str(n), report=False, shard_mb=8) for n in (10_000, 60_000))
    assert (many - few) * 2**20 / 50_000 < 500


WORKER = """
import json, sys
from shardline.pipeline import images, opencv

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

small, large = (open(path, "rb").read() for path in sys.argv[1:3])
def decode(data, header):  # while there is a copy of the file, in memory outside the process
    global decoding
    pixels = genuine(data, header)
    decoding = status("VmHWM") + len(data)
    return pixels

genuine, opencv.decode, decoding = opencv.decode, decode, 0
images.set_up_process()
options = images.ImageOptions(**json.loads(sys.argv[3]))
images.process(small, options)
before = status("VmRSS")  # the file is in it
images.process(large, options)
print(max(decoding, status("VmHWM")) - before)
"""


def pixels(height, width, channels, dtype=np.uint8):
    """Smooth, so that the files are as small as those of photographs."""
    coarse = np.random.default_rng(0).integers(0, 255, (height // 100, width // 100, channels), np.uint8)
    fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return fine if dtype == np.uint8 else fine.astype(dtype) * 257


def by_pillow(array, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def by_opencv(array, kind, *options):
    return cv2.imencode(kind, array, options)[1].tobytes()


TURNED = Image.Exif()
TURNED[0x0112] = 6
FAST = (cv2.IMWRITE_PNG_COMPRESSION, 1)
KINDS = {  # a file of so many rows and columns, bytes a pixel of what its decoder puts out, options of the conversion
    "JPEG": (lambda *size: by_pillow(pixels(*size, 3), "JPEG"), 3, {}),
    "progressive JPEG": (lambda *size: by_pillow(pixels(*size, 3), "JPEG", progressive=True), 3, {}),
    "turned JPEG, not resized": (lambda *size: by_pillow(pixels(*size, 3), "JPEG", exif=TURNED), 3, {"resize": "none"}),
    "PNG": (lambda *size: by_opencv(pixels(*size, 3), ".png", *FAST), 3, {}),
    "turned PNG": (lambda *size: by_pillow(pixels(*size, 3), "PNG", compress_level=1, exif=TURNED), 3, {}),
    "RGBA PNG": (lambda *size: by_opencv(pixels(*size, 4), ".png", *FAST), 4, {}),
    "16-bit PNG": (lambda *size: by_opencv(pixels(*size, 3, np.uint16), ".png", *FAST), 6, {}),
    "16-bit RGBA PNG": (lambda *size: by_opencv(pixels(*size, 4, np.uint16), ".png", *FAST), 8, {}),
    "16-bit RGBA PNG, not resized": (
        lambda *size: by_opencv(pixels(*size, 4, np.uint16), ".png", *FAST), 8, {"resize": "none"}
    ),
    "palette PNG": (lambda *size: by_pillow(pixels(*size, 1)[..., 0], "PNG", compress_level=1), 1, {}),
    "RGBA WebP": (lambda *size: by_pillow(pixels(*size, 4), "WEBP", method=0), 4, {}),
    "16-bit TIFF": (lambda *size: by_opencv(pixels(*size, 3, np.uint16), ".tiff"), 6, {}),
}  # fmt: skip
HUNGRY = {  # the same, and how many bytes a pixel their decoders take besides
    "BMP": (lambda *size: by_opencv(pixels(*size, 3), ".bmp"), 3, 8),
    "GIF": (lambda *size: by_pillow(pixels(*size, 1)[..., 0], "GIF"), 3, 5.3),
    "AVIF": (lambda *size: by_opencv(pixels(*size, 3), ".avif", cv2.IMWRITE_AVIF_SPEED, 10), 3, 14),
    "JPEG 2000": (lambda *size: by_opencv(pixels(*size, 3), ".jp2"), 3, 14),
    "TIFF in one strip": (lambda *size: by_pillow(pixels(*size, 3), "TIFF"), 3, 10),
}


def beyond_the_image(make, bytes_a_pixel, options, height, width, folder):
    """Bytes that a worker takes besides the file and the decoder's output."""
    for name, size in {"small": (200, 300), "large": (height, width)}.items():
        (folder / name).write_bytes(make(*size))
    # Freed memory goes back at once: an earlier image's must not hide what a later one takes.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", WORKER, folder / "small", folder / "large", json.dumps(options)]
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr[-2000:]
    return int(result.stdout) - bytes_a_pixel * height * width


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_takes_150_megabytes_beyond_the_largest_image(kind, tmp_path):
    assert beyond_the_image(*KINDS[kind], 6000, 8000, tmp_path) <= 150e6


@pytest.mark.slow
@pytest.mark.parametrize("kind", HUNGRY)
def test_what_the_hungry_decoders_take_is_known(kind, tmp_path):
    make, bytes_a_pixel, besides = HUNGRY[kind]
    assert beyond_the_image(make, bytes_a_pixel, {}, 6000, 8000, tmp_path) <= besides * 48e6


@pytest.mark.parametrize("kind", ["turned JPEG, not resized", "turned PNG", "16-bit RGBA PNG"])
def test_a_worker_takes_three_bytes_a_pixel_beyond_the_image(kind, tmp_path):
    assert beyond_the_image(*KINDS[kind], 2000, 3000, tmp_path) <= 150e6 / 8
