"""shardline.tools.doctor: the table of what becomes of each kind of file, pinned; and that it notices what is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shardline.pipeline import executors, images, nvidia
from shardline.pipeline.errors import Failure
from shardline.tools import doctor, image_variants, malformed_images
from tests.pipeline.deadly import make_deadly

images.set_up_process()

MALFORMED = {case.name: case for case in malformed_images.cases()}
VARIANTS = {case.name: case for case in image_variants.variants()}
CASES = MALFORMED | VARIANTS

# What a user may rely on. A change here is a change of the product: say so in the release notes.
WRITTEN = """
baseline.jpg progressive.jpg restart-markers.jpg with-exif.jpg wrong-extension.jpg no-extension
junk-after-the-end.jpg plain.png lossless.webp lossy.webp lossy.avif plain.bmp plain.gif lossless.jp2 codestream.j2k
plain.ppm none.tif LZW.tif Deflate.tif PackBits.tif JPEG.tif two-pages.tif orientation-2.jpg orientation-3.jpg
orientation-4.jpg orientation-5.jpg orientation-6.jpg orientation-7.jpg orientation-8.jpg orientation-9.jpg
orientation-6.png orientation-6.webp orientation-6.tif orientation-6.avif gray.jpg cmyk-adobe-inverted.jpg
cmyk-untold.jpg ycck.jpg palette.png palette-with-transparency.png alpha.png gray-alpha.png 1-bit.png 16-bit.png
16-bit-alpha.png 16-bit-gray.png alpha.webp alpha.avif alpha.tif alpha.jp2 transparent.gif cmyk.tif palette.tif
fax.tif 16-bit-gray.tif palette.bmp gray.bmp 16-bit.ppm animated.gif animated.webp animated.png animated.avif
frame-beyond-the-screen.gif animation-without-frames.png
"""
QUARANTINED = {
    "empty": "empty.jpg",
    "not-an-image": "only-zeros.jpg random-bytes.jpg web-page.jpg lfs-pointer.jpg text.png",
    "truncated": """cut-in-half-baseline.jpg cut-in-half-progressive.jpg cut-in-half-restart-markers.jpg
        cut-in-half-with-exif.jpg cut-in-half-plain.png cut-in-half-lossless.webp cut-in-half-lossy.webp
        cut-in-half-lossy.avif cut-in-half-plain.bmp cut-in-half-plain.gif cut-in-half-lossless.jp2
        cut-in-half-codestream.j2k cut-in-half-plain.ppm cut-in-half-none.tif cut-in-half-LZW.tif
        cut-in-half-Deflate.tif cut-in-half-PackBits.tif cut-in-half-JPEG.tif cut-in-half-two-pages.tif
        cut-in-the-header.jpg last-two-bytes-missing.jpg empty.jxl more-rows-than-there-are.bmp""",
    "corrupt-scan": "40-zeroed-bytes.jpg 200-bytes-lost.jpg",
    "corrupt-data": """one-bit-flipped.png damaged-chunk-name.png damaged-text.png empty.heic
        small-says-the-canvas.webp""",
    "corrupt-header": "small-says-the-box.avif small-says-the-page.tif endless-digits.pgm",
    "too-many-pixels": "16000x16000.png 60000x60000.gif frame-of-60000x60000.gif",
    "side-too-long": "strip.png",
    "unsupported-raw": "photo.cr3",
    "unsupported-video": "movie.mp4",
    "unsupported-psd": "layers.psd",
    "unsupported-svg": "drawing.svg",
    "unsupported-pdf": "document.pdf",
    "unsupported-ico": "icon.ico",
    "unsupported-jpeg": "12-bit.jpg lossless.jpg",
}


def test_the_table_is_the_promised_one() -> None:
    rows = {name: doctor.examine(case) for name, case in MALFORMED.items()}
    assert {name: row.error for name, row in rows.items() if row.error} == {}
    expected = dict.fromkeys(WRITTEN.split(), "written")
    for reason, names in QUARANTINED.items():
        expected |= dict.fromkeys(names.split(), f"quarantined: {reason}")
    assert {name: row.outcome for name, row in rows.items()} == expected


def test_every_variant_is_written_or_refused_by_name_beside_the_verdict_of_others() -> None:
    for row in (doctor.examine(case) for case in list(VARIANTS.values())[::7]):
        assert not row.error
        assert row.outcome == "written" or row.outcome.startswith("quarantined: unsupported-")
        assert "Pillow" in row.oracles or not VARIANTS[row.name].rgb
        assert (row.difference is None) == (row.outcome != "written")
    row = doctor.examine(CASES["gray-12-bit.tif"])
    assert row.difference is not None and row.difference < 0.1
    assert "Pillow 112.8" in row.oracles  # it errs, and everybody can see


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("plain.png", {"rgb": malformed_images.reference_image()[:, :, ::-1]}, "differs by"),
        ("plain.png", {"rgb": malformed_images.reference_image()[:, ::-1]}, "differs by"),
        ("plain.png", {"rgb": np.zeros((5, 5, 3), np.uint8)}, "120x160, differs by 255.0"),
        ("plain.png", {"reason": "truncated"}, "expected quarantine for truncated"),
        ("plain.png", {"note": "first frame"}, "expected the note"),
        ("empty.jpg", {"reason": ""}, "expected an image"),
        ("empty.jpg", {"reason": "truncated"}, "expected truncated"),
    ],
)
def test_a_wrong_outcome_is_named(name: str, change: dict, complaint: str) -> None:
    assert complaint in doctor.examine(replace(CASES[name], **change)).error


def test_a_wrong_row_fails_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken = replace(CASES["empty.jpg"], reason="truncated")
    monkeypatch.setattr(malformed_images, "cases", lambda: [CASES["plain.png"], broken])
    monkeypatch.setattr(image_variants, "variants", list)
    with pytest.raises(Failure, match=r"1 of 2 .*empty\.jpg"):
        doctor.main(doctor.DoctorConfig())
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("ok     plain.png") and lines[4].startswith("WRONG  empty.jpg")


def test_the_command_keeps_the_corpus_and_refuses_a_full_folder(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "shardline.tools.doctor", *arguments],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    done = run(f"--corpus={tmp_path / 'corpus'}")
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("examine: ") for line in done.stderr.splitlines())  # no codec talks past us
    assert f"all {len(CASES)} kinds of file" in done.stdout and "opencv 5" in done.stdout
    assert {path.name for path in (tmp_path / "corpus").iterdir()} == {
        *CASES, "a-directory.jpg", "dangling-link.jpg", "looping-link.jpg", "unreadable.jpg"
    }  # fmt: skip
    assert (tmp_path / "corpus" / "alpha.png").read_bytes() == CASES["alpha.png"].data
    again = run(f"--corpus={tmp_path / 'corpus'}")
    assert again.returncode == 2 and "--corpus" in again.stderr and again.stderr.count("\n") == 1


def test_a_card_that_tensorflow_does_not_see_is_found(monkeypatch, capsys) -> None:
    card = nvidia.Card("NVIDIA H100 80GB HBM3", "550.54", "9.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(doctor, "doctor", lambda config: [])
    monkeypatch.setattr(nvidia, "cards", lambda: (card,))
    with pytest.raises(Failure, match=r"1 NVIDIA GPU .*sees none: CUDA's libraries are missing"):
        doctor.main(doctor.DoctorConfig())
    said = capsys.readouterr().out
    assert "1 × NVIDIA H100 80GB HBM3, compute capability 9.0, driver 550.54; TensorFlow 2." in said
    assert "warning: NVIDIA H100" in said and "install driver 555 or newer" in said
    monkeypatch.setattr(nvidia, "cards", lambda: ())
    doctor.main(doctor.DoctorConfig())
    assert "no NVIDIA GPU" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["crash", pytest.param("hang", marks=pytest.mark.slow)])
def test_a_decoder_that_crashes_or_hangs_costs_one_row(tmp_path, monkeypatch, way) -> None:
    monkeypatch.setitem(executors.run.__kwdefaults__, "image_timeout", 60.0 if way == "crash" else 1.0)
    cases = [MALFORMED[name] for name in ("baseline.jpg", "progressive.jpg", "plain.png", "empty.jpg")]
    make_deadly(monkeypatch, tmp_path / "site", cases[1].data, way)
    rows = doctor.examine_all(cases)
    assert [row.name for row in rows] == [case.name for case in cases]
    reason = {"crash": "crashes-decoder", "hang": "decoder-timeout"}[way]
    assert [row.outcome for row in rows] == ["written", f"quarantined: {reason}", "written", "quarantined: empty"]
    assert [row.error for row in rows] == ["", "expected an image", "", ""]
