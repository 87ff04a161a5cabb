"""Other ways to turn a folder of photographs into shards, each as its users would write it, with one process.

    python convert.py NAME SOURCE OUTPUT      # convert SOURCE/CLASS/*.jpg; short side 256, JPEG quality 90

Run by `bench_convert` with the Python that has the packages of NAME, where nothing of ours can be imported;
imports stay inside the functions that need them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SIZE, QUALITY = 256, 90


def images(source: str) -> Iterator[tuple[str, int]]:
    """Path and label of every file, class by class."""
    for label, folder in enumerate(sorted(Path(source).iterdir())):
        for path in sorted(folder.iterdir()):
            yield str(path), label


def read_resized(path: str) -> np.ndarray:
    """cv2.imread and INTER_AREA to the short side."""
    import cv2

    image = cv2.imread(path)
    if image is None:
        raise ValueError(f"{path} is no image")
    return resized(image)


def resized(image: np.ndarray) -> np.ndarray:
    """INTER_AREA to the short side."""
    import cv2

    height, width = image.shape[:2]
    scale = SIZE / min(height, width)
    if scale >= 1:
        return image
    return cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def jpeg(path: str) -> tuple[bytes, int, int]:
    """The resized image as JPEG bytes, and its height and width."""
    import cv2

    image = read_resized(path)
    height, width, _ = image.shape
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes(), height, width


def plain_loop(source: str, output: str) -> None:
    """The plain OpenCV loop: imread, resize, imencode, Example, TFRecordWriter."""
    import cv2
    import tensorflow as tf

    cv2.setNumThreads(0)

    def one(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def number(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    Path(output).mkdir()
    with tf.io.TFRecordWriter(f"{output}/train.tfrecord") as writer:
        for path, label in images(source):
            data, height, width = jpeg(path)
            features = {
                "image": one(data),
                "label": number(label),
                "image/filename": one(path.encode()),
                "image/height": number(height),
                "image/width": number(width),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def tfds_builder(source: str, output: str) -> None:
    """A TFDS builder that yields the resized JPEG bytes."""
    import io

    import cv2
    import tensorflow_datasets as tfds

    cv2.setNumThreads(0)
    names = [folder.name for folder in sorted(Path(source).iterdir())]

    class Photos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(source)  # where TFDS would look for a README

        def _info(self) -> Any:
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=names)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: object) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
            for path, label in images(source):
                yield path, {"image": io.BytesIO(jpeg(path)[0]), "label": label}

    Photos(data_dir=output).download_and_prepare()


def webdataset_writer(source: str, output: str) -> None:
    """webdataset's ShardWriter."""
    import cv2
    import webdataset

    cv2.setNumThreads(0)
    Path(output).mkdir()
    with webdataset.ShardWriter(f"{output}/%05d.tar", verbose=0) as writer:
        for number, (path, label) in enumerate(images(source)):
            writer.write({"__key__": f"{number:08d}", "jpg": jpeg(path)[0], "cls": label})


def mds_writer(source: str, output: str) -> None:
    """MosaicML Streaming's MDSWriter."""
    import cv2
    from streaming import MDSWriter

    cv2.setNumThreads(0)
    with MDSWriter(out=output, columns={"image": "bytes", "label": "int"}) as writer:
        for path, label in images(source):
            writer.write({"image": jpeg(path)[0], "label": label})


def ffcv_writer(source: str, output: str) -> None:
    """FFCV's DatasetWriter over torchvision's ImageFolder, as in its guide, storing JPEGs of the same size."""
    import numpy as np
    from torchvision.datasets import ImageFolder

    write_ffcv(ImageFolder(source, transform=lambda image: resized(np.asarray(image))), output)


def ffcv_writer_opencv(source: str, output: str) -> None:
    """FFCV's DatasetWriter over images that OpenCV has read."""

    class Photos:
        def __init__(self) -> None:
            self.files = list(images(source))

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
            path, label = self.files[number]
            return read_resized(path)[:, :, ::-1].copy(), label

    write_ffcv(Photos(), output)


def write_ffcv(dataset: object, output: str) -> None:
    """RGB pixels and labels into one .beton file, by one worker."""
    import cv2
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    cv2.setNumThreads(0)
    Path(output).mkdir()
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=QUALITY), "label": IntField()}
    DatasetWriter(f"{output}/train.beton", fields, num_workers=1).from_indexed_dataset(dataset)


def img2dataset(source: str, output: str) -> None:
    """img2dataset, from a web server on this machine because it reads no folders."""
    import functools
    import http.server
    import threading
    import urllib.parse

    import cv2
    from img2dataset import download

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    cv2.setNumThreads(0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=source))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Path(output).mkdir()
    address = f"http://127.0.0.1:{server.server_port}/"
    names = [urllib.parse.quote(str(Path(path).relative_to(source))) for path, _ in images(source)]
    Path(f"{output}/urls.txt").write_text("".join(f"{address}{name}\n" for name in names))
    download(
        url_list=f"{output}/urls.txt",
        output_folder=f"{output}/shards",
        output_format="webdataset",
        processes_count=1,
        thread_count=8,
        image_size=SIZE,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        encode_quality=QUALITY,
        number_sample_per_shard=len(names),
        enable_wandb=False,
    )


@dataclass(frozen=True)
class Converter:
    """A function of source and output folder, the packages it needs, and what it does, in a line."""

    convert: Callable[[str, str], None]
    packages: tuple[str, ...]
    text: str
    needs: str = ""  # what pip does not bring
    in_our_python: bool = False  # whether it needs no package but those that this project has


_OPENCV = ", its build needs pkg-config and OpenCV's C++ headers (opencv4)"
CONVERTERS = {
    "plain loop": Converter(
        plain_loop,
        ("tensorflow", "cv2"),
        "cv2.imread, INTER_AREA, imencode, tf.train.Example, TFRecordWriter; no checks; one process, one core",
        in_our_python=True,
    ),
    "TFDS builder": Converter(
        tfds_builder,
        ("tensorflow_datasets", "cv2"),
        "a GeneratorBasedBuilder that yields the same resized JPEGs; one process, one core",
        in_our_python=True,
    ),
    "webdataset": Converter(
        webdataset_writer,
        ("webdataset", "cv2"),
        "the same resized JPEGs through ShardWriter into tar files; one process, one core",
    ),
    "MDSWriter": Converter(
        mds_writer,
        ("streaming", "cv2"),
        "the same resized JPEGs through MosaicML's MDSWriter; one process, one core",
    ),
    "FFCV writer": Converter(
        ffcv_writer,
        ("ffcv", "torchvision", "cv2"),
        "torchvision's ImageFolder, as in its guide, INTER_AREA, DatasetWriter; one worker, one core",
        _OPENCV,
    ),
    "FFCV writer, OpenCV": Converter(
        ffcv_writer_opencv,
        ("ffcv", "cv2"),
        "the same, its images read with cv2.imread; one worker, one core",
        _OPENCV,
    ),
    "img2dataset": Converter(
        img2dataset,
        ("img2dataset", "cv2"),
        "short side 256, quality 90, webdataset tars, fetched from a web server here; one process, one core",
    ),
}


def command(python: str, name: str) -> Callable[[str, str], list[str]]:
    """The command line of a converter, of source and output folder."""
    return lambda source, output: [python, __file__, name, source, output]


if __name__ == "__main__":
    CONVERTERS[sys.argv[1]].convert(*sys.argv[2:])
