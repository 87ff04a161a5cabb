"""Input pipelines to compare with: each a function from a folder of JPEG files to endless batches.

Run as a program in a process of its own, which may be another Python (`--peer_python`): it prints "ready", then for
each line it reads takes batches for that many seconds and prints {"images", "wall", "cpu"} as one line of JSON.

    python input_peers.py NAME FOLDER BATCH_SIZE IMAGE_SIZE THREADS

All of them do the same to the same images, unless their docstring, which the report quotes, says otherwise:
random-resized-crop (area 0.08 to 1, ratio 3/4 to 4/3), bilinear, flip, shuffled, batches of uint8 RGB.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Batches = Iterator[Any]


def prepare(data: str, folder: Path) -> None:
    """Lay out what the contenders read: the dataset, one of raw pixels, and plain files."""
    from dataclasses import replace

    import cv2
    import numpy as np

    from shardline.pipeline.dataset import open_dataset
    from shardline.pipeline.example import encode_example
    from shardline.pipeline.manifest import Features, Manifest, Split, shard_name, write_shard_file
    from shardline.pipeline.tfrecord import frame_record

    manifest = Manifest.load(data)
    (folder / "jpeg").symlink_to(Path(data).resolve())
    (folder / "files").mkdir()
    (folder / "raw").mkdir()
    split = next(iter(manifest.splits))
    framed = []
    numbers = range(manifest.split(split).records)
    for number, (image, label, _) in enumerate(open_dataset(data).records(split, numbers)):
        (folder / "files" / f"{number:06d}.jpg").write_bytes(image)
        pixels: Any = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
        framed.append(frame_record(encode_example(pixels.tobytes(), label, "", *pixels.shape[:2])))
    entry = write_shard_file(folder / "raw" / shard_name("raw", split, 0, 1), framed)
    raw = replace(manifest, splits={split: Split(split, (entry,))}, features=Features(), class_counts={})
    replace(raw, image=replace(manifest.image, encoding="raw")).save(folder / "raw")


def doc(name: str) -> str:
    """What a contender does, in a line."""
    return (PEERS[name][0].__doc__ or "").strip().rstrip(".")


def shardline(folder: Path, batch: int, size: int, threads: int, **options: Any) -> Batches:
    """This project, on the dataset in FOLDER."""
    from shardline import pipeline

    data = pipeline.open_dataset(folder / options.pop("dataset", "jpeg"))
    options["workers"] = threads if threads > 1 else 0
    config = pipeline.InputConfig(global_batch_size=batch, image_size=size, threads=threads, **options)
    (split,) = data.manifest.splits
    return iter(data.train_batches(split, config))


def tensorflow_decode_only(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """TensorFlow reads, parses and decodes whole images of the same records: nothing else, not even batches."""
    import tensorflow as tf

    def decode(record: tf.Tensor) -> tf.Tensor:
        example = tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature((), tf.string)})
        return tf.io.decode_jpeg(example["image"], channels=3)

    images = _records(folder).map(decode, num_parallel_calls=threads)
    # Images of different size do not batch: hand them on one by one, in groups, as a consumer would count them.
    return iter(images.map(lambda image: tf.shape(image)).batch(batch).prefetch(2))


def model_garden(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """The steps of tensorflow/models' image classification input: fused crop, resize, flip, normalized float32."""
    import tensorflow as tf

    mean, deviation = (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)

    def make(record: tf.Tensor) -> tf.Tensor:
        example = tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature((), tf.string)})
        shape = tf.image.extract_jpeg_shape(example["image"])
        begin, extent, _ = _distorted_box(shape)
        window = tf.concat((begin[:2], extent[:2]), 0)
        image = tf.image.decode_and_crop_jpeg(example["image"], window, channels=3)
        image = tf.image.resize(image, (size, size))
        image = tf.image.random_flip_left_right(image)
        return (image - mean) / deviation

    records = _records(folder).shuffle(1000)
    return iter(records.map(make, num_parallel_calls=threads).batch(batch, drop_remainder=True).prefetch(2))


def _distorted_box(shape: Any) -> Any:
    import tensorflow as tf

    return tf.image.sample_distorted_bounding_box(
        shape, tf.zeros((1, 0, 4)), 0, min_object_covered=0.1, aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0), max_attempts=10, use_image_if_no_bounding_boxes=True,
    )  # fmt: skip


def _records(folder: Path) -> Any:
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    shards = sorted(str(path) for path in (folder / "jpeg").glob("*.tfrecord-*-of-?????"))
    return tf.data.TFRecordDataset(shards).repeat().with_options(options)


def keras_directory(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """keras.utils.image_dataset_from_directory over JPEG files: images squashed, not cropped; RandomFlip; float32."""
    import keras

    keras.config.disable_interactive_logging()
    dataset = keras.utils.image_dataset_from_directory(
        folder / "files", labels=None, image_size=(size, size), batch_size=batch, shuffle=True
    )
    flip = keras.layers.RandomFlip("horizontal")
    return iter(dataset.repeat().map(lambda images: flip(images, training=True), num_parallel_calls=threads))


def tfds_reader(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """tfds.builder_from_directory(...).as_dataset() on the same shards: whole images decoded, then cropped."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def make(example: dict[str, tf.Tensor]) -> tf.Tensor:
        image = example["image"]
        begin, extent, _ = _distorted_box(tf.shape(image))
        image = tf.image.resize(tf.slice(image, begin, extent), (size, size))
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    builder = tfds.builder_from_directory(folder / "jpeg")
    (split,) = builder.info.splits
    read = tfds.ReadConfig(interleave_cycle_length=threads, num_parallel_calls_for_decode=threads)
    images = builder.as_dataset(split=split, shuffle_files=True, read_config=read).repeat().shuffle(256)
    return iter(images.map(make, num_parallel_calls=threads).batch(batch, drop_remainder=True).prefetch(2))


def torch_opencv(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """PyTorch's DataLoader over JPEG files, decoding and cropping with OpenCV, no worker processes."""
    return _torch(folder, batch, lambda data: _opencv(data, size))


def torch_pillow(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """PyTorch's DataLoader over JPEG files, decoding and cropping with Pillow, as torchvision does; no workers."""
    return _torch(folder, batch, lambda data: _pillow(data, size))


def _torch(folder: Path, batch: int, image: Callable[[bytes], Any]) -> Batches:
    import torch

    files = sorted((folder / "files").iterdir()) * 8  # longer epochs: starting one is not what is measured

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return torch.from_numpy(image(files[index].read_bytes())), 0

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(Images(), batch, shuffle=True, drop_last=True, num_workers=0)
    while True:
        yield from loader


def webdataset_reader(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """WebDataset over a tar file of the same JPEGs, a shuffle buffer of 1,000, with OpenCV; no worker processes."""
    import numpy as np
    import webdataset

    path = folder / "images.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for file in sorted((folder / "files").iterdir()):
            writer.write({"__key__": file.stem, "jpg": file.read_bytes()})
    samples = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False).repeat().shuffle(1000)
    return iter(samples.map(lambda sample: _opencv(sample["jpg"], size)).batched(batch, collation_fn=np.stack))


def mosaic_streaming(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """MosaicML's StreamingDataset over an MDS file of the same JPEGs, shuffled, with OpenCV; no worker processes."""
    import torch
    from streaming import MDSWriter, StreamingDataset

    local = str(folder / "mds")
    with MDSWriter(out=local, columns={"image": "bytes"}) as writer:
        for file in sorted((folder / "files").iterdir()) * 8:  # longer epochs, as above
            writer.write({"image": file.read_bytes()})

    class Images(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return torch.from_numpy(_opencv(super().__getitem__(index)["image"], size))

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(Images(local=local, shuffle=True, batch_size=batch), batch, drop_last=True)
    while True:
        yield from loader


def dali(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """NVIDIA DALI on the CPU over JPEG files: fused decode and crop, resize, flip."""
    from nvidia.dali import fn, pipeline_def, types

    files = [str(path) for path in sorted((folder / "files").iterdir())]

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=None, seed=0)
    def graph() -> Any:
        data, _ = fn.readers.file(files=files, random_shuffle=True)
        image = fn.decoders.image_random_crop(
            data, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        image = fn.resize(image, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=False)
        return fn.flip(image, horizontal=fn.random.coin_flip())

    pipe = graph()
    pipe.build()
    while True:
        (images,) = pipe.run()
        yield images.as_array()


def grain_array_record(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """Grain over an ArrayRecord file of the same JPEGs, with OpenCV."""
    import grain
    from array_record.python.array_record_module import ArrayRecordWriter

    path = folder / "images.array_record"
    if not path.exists():
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for file in sorted((folder / "files").iterdir()):
            writer.write(file.read_bytes())
        writer.close()
    source = grain.sources.ArrayRecordDataSource([str(path)])
    images = grain.MapDataset.source(source).shuffle(seed=0).repeat().map(lambda data: _opencv(data, size))
    return iter(images.batch(batch).to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)))


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


def _pillow(data: bytes, size: int) -> Any:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip."""
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, height, width = _window(image.height, image.width)
    image = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image)


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


def _ours(what: str, **options: Any) -> Callable[[Path, int, int, int], Batches]:
    def made(folder: Path, batch: int, size: int, threads: int) -> Batches:
        return shardline(folder, batch, size, threads, **options)

    made.__doc__ = what
    return made


PEERS: dict[str, tuple[Callable[[Path, int, int, int], Batches], tuple[str, ...]]] = {  # and the packages it needs
    "shardline host": (_ours("pipeline.train_batches, shuffled exactly, finished images"), ()),
    "shardline host, in stored order": (_ours("the same without a shuffle", shuffle=False), ()),
    "shardline host, blocks of 8": (_ours("the same, 8 stored records read together", shuffle_block_size=8), ()),
    "shardline device": (_ours("the host's half; the GPU resizes, flips and colors", augment_on="device"), ()),
    "shardline raw, host": (_ours("from raw pixels: nothing to decode", dataset="raw"), ()),
    "shardline raw, device": (_ours("from raw pixels, the host's half", dataset="raw", augment_on="device"), ()),
    "TensorFlow, decode only": (tensorflow_decode_only, ()),
    "Model Garden, float32": (model_garden, ()),
    "Keras from directory, float32": (keras_directory, ()),
    "TFDS": (tfds_reader, ()),
    "PyTorch DataLoader + OpenCV": (torch_opencv, ("torch", "cv2")),
    "PyTorch DataLoader + Pillow": (torch_pillow, ("torch", "PIL")),
    "webdataset + OpenCV": (webdataset_reader, ("webdataset", "cv2")),
    "Grain + ArrayRecord + OpenCV": (grain_array_record, ("grain", "array_record", "cv2")),
    "MosaicML Streaming + OpenCV": (mosaic_streaming, ("streaming", "torch", "cv2")),
    "DALI on the CPU": (dali, ("nvidia.dali",)),
}


NOT_MEASURED = {"FFCV": "its reader has to be built against OpenCV's C++ headers, which no package index has"}


def _children_cpu_seconds(packages: tuple[str, ...]) -> float:
    if packages:
        return 0.0  # other people's loaders run in one process here, where this project cannot be imported
    from shardline.benchmarks.measure import children_cpu_seconds

    return children_cpu_seconds()


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package it is in
        return False


def main() -> None:
    """Serve one peer on stdin and stdout."""
    name, folder, batch, size, threads = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6])
    peer, packages = PEERS[name]
    missing = [package for package in packages if not _installed(package)]
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
