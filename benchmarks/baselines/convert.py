"""Other ways to turn a folder of photographs into shards, each as its users would write it, with one process.

    python convert_peers.py NAME SOURCE OUTPUT      # convert SOURCE/CLASS/*.jpg; short side 256, JPEG quality 90

Run by `benchmarks.bench_convert`, with the Python that has the packages of NAME.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

SIZE, QUALITY = 256, 90


def images(source: str) -> Iterator[tuple[str, int]]:
    """Path and label of every file, class by class."""
    for label, folder in enumerate(sorted(Path(source).iterdir())):
        for path in sorted(folder.iterdir()):
            yield str(path), label


def read_resized(path: str):
    """cv2.imread and INTER_AREA to the short side."""
    import cv2

    image = cv2.imread(path)
    if image is None:
        raise ValueError(f"{path} is no image")
    return resized(image)


def resized(image):
    """INTER_AREA to the short side."""
    import cv2

    height, width = image.shape[:2]
    scale = SIZE / min(height, width)
    if scale < 1:
        image = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return image


def jpeg(path: str):
    """The resized image as JPEG bytes, and its height and width."""
    import cv2

    image = read_resized(path)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes(), *image.shape[:2]


def plain_loop(source: str, output: str) -> None:
    """The loop everybody writes: imread, resize, imencode, Example, TFRecordWriter."""
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

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=names)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
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
        def __init__(self):
            self.files = list(images(source))

        def __len__(self):
            return len(self.files)

        def __getitem__(self, number):
            path, label = self.files[number]
            return read_resized(path)[:, :, ::-1].copy(), label

    write_ffcv(Photos(), output)


def write_ffcv(dataset, output: str) -> None:
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
        def log_message(self, *arguments):
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


PEERS: dict[str, tuple[Callable[[str, str], None], tuple[str, ...]]] = {  # name: (what, packages it needs)
    "plain loop": (plain_loop, ("tensorflow", "cv2")),
    "TFDS builder": (tfds_builder, ("tensorflow_datasets", "cv2")),
    "webdataset": (webdataset_writer, ("webdataset", "cv2")),
    "MDSWriter": (mds_writer, ("streaming", "cv2")),
    "FFCV writer": (ffcv_writer, ("ffcv", "torchvision", "cv2")),
    "FFCV writer, OpenCV": (ffcv_writer_opencv, ("ffcv", "cv2")),
    "img2dataset": (img2dataset, ("img2dataset", "cv2")),
}


def main() -> None:
    """Convert, or with one argument say which packages are missing."""
    work, packages = PEERS[sys.argv[1]]
    if len(sys.argv) == 2:
        print(" ".join(package for package in packages if importlib.util.find_spec(package) is None))
    else:
        work(sys.argv[2], sys.argv[3])


if __name__ == "__main__":
    main()
