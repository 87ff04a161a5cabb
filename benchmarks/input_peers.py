"""Input pipelines to compare with: each a function from a folder of JPEG files to endless batches.

Run as a program in a process of its own, which may be another Python (`--peer_python`): it prints "ready", then for
each line it reads takes batches for that many seconds and prints {"images", "wall", "cpu"} as one line of JSON.

    python input_peers.py NAME FOLDER BATCH_SIZE IMAGE_SIZE THREADS

All of them do the same to the same pictures: random-resized-crop (area 0.08 to 1, ratio 3/4 to 4/3), bilinear, flip,
batches of uint8 RGB (Model Garden's of normalised float32), shuffled unless the name says otherwise.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Batches = Iterator[Any]


def shardline(folder: Path, batch: int, size: int, threads: int, **options: Any) -> Batches:
    """This project, on the dataset in FOLDER."""
    import pipeline

    data = pipeline.open_dataset(folder / options.pop("dataset", "jpeg"))
    options["workers"] = threads if threads > 1 else 0
    config = pipeline.InputConfig(global_batch_size=batch, image_size=size, threads=threads, **options)
    (split,) = data.manifest.splits
    return iter(data.train_batches(split, config))


def tensorflow_decode_only(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """TensorFlow reads, parses and decodes whole pictures of the same records: nothing else, not even batches."""
    import tensorflow as tf

    def decode(record: tf.Tensor) -> tf.Tensor:
        example = tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature((), tf.string)})
        return tf.io.decode_jpeg(example["image"], channels=3)

    pictures = _records(folder).map(decode, num_parallel_calls=threads)
    # Pictures of different size do not batch: hand them on one by one, in groups, as a consumer would count them.
    return iter(pictures.map(lambda picture: tf.shape(picture)).batch(batch).prefetch(2))


def model_garden(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """The steps of tensorflow/models' image classification input: fused crop, resize, flip, normalised float32."""
    import tensorflow as tf

    mean, deviation = (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)

    def make(record: tf.Tensor) -> tf.Tensor:
        example = tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature((), tf.string)})
        shape = tf.image.extract_jpeg_shape(example["image"])
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            shape, tf.zeros((1, 0, 4)), 0, min_object_covered=0.1, aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0), max_attempts=10, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        window = tf.concat((begin[:2], extent[:2]), 0)
        image = tf.image.decode_and_crop_jpeg(example["image"], window, channels=3)
        image = tf.image.resize(image, (size, size))
        image = tf.image.random_flip_left_right(image)
        return (image - mean) / deviation

    records = _records(folder).shuffle(1000)
    return iter(records.map(make, num_parallel_calls=threads).batch(batch, drop_remainder=True).prefetch(2))


def _records(folder: Path) -> Any:
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    shards = sorted(str(path) for path in (folder / "jpeg").glob("*.tfrecord-*-of-?????"))
    return tf.data.TFRecordDataset(shards).repeat().with_options(options)


def torch_dataloader(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """PyTorch's DataLoader over JPEG files, decoding and cropping with OpenCV, no worker processes."""
    import torch

    files = sorted((folder / "files").iterdir()) * 8  # longer epochs: starting one is not what is measured

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return torch.from_numpy(_opencv(files[index].read_bytes(), size)), 0

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(Pictures(), batch, shuffle=True, drop_last=True, num_workers=0)
    while True:
        yield from loader


def grain_array_record(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """Grain over an ArrayRecord file of the same JPEGs, with OpenCV."""
    import grain
    from array_record.python.array_record_module import ArrayRecordWriter

    path = folder / "pictures.array_record"
    if not path.exists():
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for file in sorted((folder / "files").iterdir()):
            writer.write(file.read_bytes())
        writer.close()
    source = grain.sources.ArrayRecordDataSource([str(path)])
    pictures = grain.MapDataset.source(source).shuffle(seed=0).repeat().map(lambda data: _opencv(data, size))
    return iter(pictures.batch(batch).to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)))


def _opencv(data: bytes, size: int) -> Any:
    """What people write: decode, crop, resize, flip."""
    import cv2
    import numpy as np

    cv2.setNumThreads(0)
    image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    top, left, height, width = _window(*image.shape[:2])
    image = cv2.resize(image[top : top + height, left : left + width], (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(image, 1) if random.random() < 0.5 else image


def _window(height: int, width: int) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = random.randint(0, height - crop_height), random.randint(0, width - crop_width)
            return top, left, crop_height, crop_width
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _ours(**options: Any) -> Callable[[Path, int, int, int], Batches]:
    return lambda folder, batch, size, threads: shardline(folder, batch, size, threads, **options)


PEERS: dict[str, tuple[Callable[[Path, int, int, int], Batches], tuple[str, ...]]] = {  # and the packages it needs
    "shardline host": (_ours(), ()),
    "shardline host, in stored order": (_ours(shuffle=False), ()),
    "shardline host, blocks of 8": (_ours(read_block=8), ()),
    "shardline device": (_ours(augment_on="device"), ()),
    "shardline raw, host": (_ours(dataset="raw"), ()),
    "shardline raw, device": (_ours(dataset="raw", augment_on="device"), ()),
    "TensorFlow, decode only": (tensorflow_decode_only, ()),
    "Model Garden, float32": (model_garden, ()),
    "PyTorch DataLoader + OpenCV": (torch_dataloader, ("torch", "cv2")),
    "Grain + ArrayRecord + OpenCV": (grain_array_record, ("grain", "array_record", "cv2")),
}


def _children_cpu_seconds(packages: tuple[str, ...]) -> float:
    if packages:
        return 0.0  # other people's loaders run in one process here, where this project cannot be imported
    from benchmarks.measure import children_cpu_seconds

    return children_cpu_seconds()


def main() -> None:
    """Serve one peer on stdin and stdout."""
    name, folder, batch, size, threads = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6])
    peer, packages = PEERS[name]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        print("missing", *missing, flush=True)
        return
    batches = peer(folder, batch, size, threads)
    next(batches)
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(6):  # what was made ahead, and the batches that were under way
            next(batches)
        images, before, wall, cpu = 0, _children_cpu_seconds(packages), time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < float(line):
            next(batches)
            images += batch
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        cpu += _children_cpu_seconds(packages) - before
        print(json.dumps({"images": images, "wall": wall, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main()
