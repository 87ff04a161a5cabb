"""How stored images are encoded: one object for each way, found by name in `ENCODINGS`. No OpenCV until it is used.

To add one, write a class here and list its object at the end: the converter's flag, the reader, `shardline-verify`
and TFDS's metadata ask the object, and nothing else knows the names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from shardline.pipeline.sniff import sniff

if TYPE_CHECKING:
    from shardline.pipeline.decode import CropBox
    from shardline.pipeline.example import Example
    from shardline.pipeline.image_options import ImageOptions

TFDS_FEATURES = "tensorflow_datasets.core.features"  # where TFDS has the classes that its features.json names


@cache
def _decoder() -> Callable[..., np.ndarray]:
    from shardline.pipeline.decode import decode  # OpenCV: not for --help

    return decode


class Encoding:
    """Any format that a decoder recognizes by itself, mixed: what adopted records may hold. Others derive from it.

    Attributes:
      name: in the manifest and on the command line.
      writable: whether the converter can store images so.
      self_describing: whether the bytes tell height and width; otherwise the record must.
      subsampled: whether `encode` takes the planes Y, Cb and Cr, the last two at half the size, and not BGR pixels.
      lossy: whether images that are not enlarged stay smaller than their files.
      growth: size of a stored image over that of the file it was made of, roughly, when it keeps its size in pixels.
    """

    name = "any"
    writable = False
    self_describing = True
    subsampled = False
    lossy = False
    growth = 1

    def encode(self, planes: Sequence[np.ndarray], options: ImageOptions) -> bytes:
        """The stored bytes of an image.

        Args:
          planes: one array uint8 [height, width, 3] in BGR order, or three of uint8 [height, width] if `subsampled`.
          options: the converter's.
        """
        raise NotImplementedError(f"images are not written as {self.name}")

    def decode(
        self, example: Example, *, exact: bool = False, window: CropBox | None = None, checked: bool = False
    ) -> np.ndarray:
        """The image as uint8 [height, width, 3], RGB; valid until this thread decodes another.

        Args:
          example: as read.
          exact: decode JPEGs with the reference transform, for evaluation, and not a twentieth faster.
          window: which part to return, given height and width; all by default.
          checked: the image is known to be sound, so what lies below the window need not be decoded.

        Raises:
          ValueError: the bytes are no image, or a damaged one.
        """
        return _decoder()(example.image, exact=exact, window=window, checked=checked)

    def fault(self, example: Example) -> str:
        """What shows, without decoding, that this is not the encoding of a stored image; "" for nothing."""
        return ""

    def expected_bytes(self, source_bytes: int, options: ImageOptions) -> int:
        """Roughly, the size of a stored image that is made of a file of `source_bytes`."""
        if options.resize == "none":
            return self.growth * source_bytes
        pixels = options.size**2 * (1.0 if options.resize in ("squash", "center_crop") else 1.35)
        stored = int(pixels * self.bytes_per_pixel(options.quality))
        return min(stored, source_bytes) if self.lossy and not options.upscale else stored

    def bytes_per_pixel(self, quality: int) -> float:
        """Of a stored image, roughly, at a quality from 1 to 100."""
        return 3.0

    def tfds_feature(self, common_size: tuple[int, int] | None) -> dict[str, Any]:
        """TFDS's description of the feature `image`, as features.json has it.

        Args:
          common_size: height and width when all stored images have the same.
        """
        image = {"dtype": "uint8", "encodingFormat": self.name, "shape": {"dimensions": ["-1", "-1", "3"]}}
        return {"image": image, "pythonClassName": f"{TFDS_FEATURES}.image_feature.Image"}


class _FileFormat(Encoding):
    """An image file format: its first bytes tell it."""

    writable = True

    def fault(self, example: Example) -> str:
        """The first bytes of another format."""
        found = sniff(bytes(example.image[:1024]))
        return "" if found == self.name else f"a {found or 'non-'} image in a dataset of {self.name}"


class Jpeg(_FileFormat):
    """JPEG with 4:2:0 chroma, by libjpeg-turbo."""

    name = "jpeg"
    subsampled = True
    lossy = True

    def encode(self, planes: Sequence[np.ndarray], options: ImageOptions) -> bytes:
        """From planes in 4:2:0."""
        import cv2  # not for --help
        import simplejpeg

        luma, blue, red = planes
        height, width = luma.shape
        if (height | width) & 1:
            # libjpeg-turbo reads an odd plane up to its even size: give it the edge again, not the neighboring memory.
            luma = cv2.copyMakeBorder(luma, 0, height & 1, 0, width & 1, cv2.BORDER_REPLICATE)[:height, :width]
        data: bytes = simplejpeg.encode_jpeg_yuv_planes(luma, blue, red, quality=options.quality)
        return data

    def bytes_per_pixel(self, quality: int) -> float:
        """Between 0.15 and 0.4; a photograph at quality 90 takes 0.31."""
        return 0.15 + 0.25 * (quality / 100) ** 4


class Png(_FileFormat):
    """PNG: without loss."""

    name = "png"
    growth = 6

    def encode(self, planes: Sequence[np.ndarray], options: ImageOptions) -> bytes:
        """With OpenCV's default compression, which is fast."""
        import cv2  # not for --help

        return cv2.imencode(".png", planes[0])[1].tobytes()

    def bytes_per_pixel(self, quality: int) -> float:
        """At any quality: there is none."""
        return 1.8


class Raw(Encoding):
    """height * width * 3 bytes, RGB: nothing to decode."""

    name = "raw"
    writable = True
    self_describing = False
    growth = 10

    def encode(self, planes: Sequence[np.ndarray], options: ImageOptions) -> bytes:
        """In the order RGB."""
        import cv2  # not for --help

        return cv2.cvtColor(planes[0], cv2.COLOR_BGR2RGB).tobytes()

    def decode(
        self, example: Example, *, exact: bool = False, window: CropBox | None = None, checked: bool = False
    ) -> np.ndarray:
        """A view of the stored bytes."""
        from shardline.pipeline.decode import cut  # OpenCV: not for --help

        if fault := self.fault(example):
            raise ValueError(fault)
        return cut(np.frombuffer(example.image, np.uint8).reshape(example.height, example.width, 3), window)

    def fault(self, example: Example) -> str:
        """A wrong number of bytes."""
        expected = example.height * example.width * 3
        if expected == len(example.image) > 0:
            return ""
        return f"{len(example.image):,} raw bytes are not {example.height}x{example.width} pixels"

    def tfds_feature(self, common_size: tuple[int, int] | None) -> dict[str, Any]:
        """TFDS can shape the pixels if all images are alike; otherwise it hands out bytes, with height and width."""
        if common_size is None:
            return {"pythonClassName": f"{TFDS_FEATURES}.text_feature.Text", "text": {}}
        tensor = {"dtype": "uint8", "encoding": "bytes", "shape": {"dimensions": [*map(str, common_size), "3"]}}
        return {"pythonClassName": f"{TFDS_FEATURES}.tensor_feature.Tensor", "tensor": tensor}


ENCODINGS: dict[str, Encoding] = {encoding.name: encoding for encoding in (Jpeg(), Png(), Raw(), Encoding())}
WRITABLE = tuple(name for name, encoding in ENCODINGS.items() if encoding.writable)


def recognize(example: Example) -> str:
    """Name of the encoding that a stored image has; `any` if it is none of our own."""
    return next(name for name, encoding in ENCODINGS.items() if not encoding.fault(example))
