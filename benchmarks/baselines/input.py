"""Loaders to compare with: each a function from a folder of images to endless batches.

A loader runs in a process of its own, which may be another Python (`--baseline_python`), where nothing of ours can be
imported but `shardline.benchmarks.processes` and this file: other imports stay inside the functions that need them.

All of them do the same to the same images, unless their docstring, which the report quotes, says otherwise:
random resized crop (area 0.08 to 1, ratio 3/4 to 4/3), bilinear, flip, shuffled, batches of uint8 RGB.
"""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardline.benchmarks.processes import Rate, repeat_for, timed

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
Batches = Iterator[Any]


def prepare(data: str, folder: Path) -> None:
    """Lay out what the loaders read: the first split of a dataset, its pixels as another one, and plain files."""
    # In this process alone: a loader's Python may have none of these.
    import cv2
    import numpy as np

    from shardline.pipeline.dataset import open_dataset
    from shardline.pipeline.example import encode_example
    from shardline.pipeline.manifest import Features, Manifest, Split, shard_name, write_shard_file
    from shardline.pipeline.tfrecord import frame_record

    (folder / "files").mkdir()
    (folder / "raw").mkdir()
    manifest = Manifest.load(data)
    split = next(iter(manifest.splits))
    _link_split(Path(data).resolve(), folder / "jpeg", split)
    framed = []
    numbers = range(manifest.split(split).records)
    for number, (image, label, _) in enumerate(open_dataset(data).records(split, numbers)):
        (folder / "files" / f"{number:06d}.jpg").write_bytes(image)
        pixels = np.asarray(cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB))
        height, width, _ = pixels.shape
        framed.append(frame_record(encode_example(pixels.tobytes(), label, "", height, width)))
    entry = write_shard_file(folder / "raw" / shard_name(manifest.name, split, 0, 1), framed)
    raw = replace(manifest, splits={split: Split(split, (entry,))}, features=Features(), class_counts={})
    replace(raw, image=replace(manifest.image, encoding="raw")).save(folder / "raw")


def _link_split(data: Path, folder: Path, split: str) -> None:
    """A dataset of one split, whose shards are links: loaders read all files they find."""
    from shardline.pipeline.manifest import Manifest, index_path

    folder.mkdir()
    manifest = Manifest.load(data)
    replace(manifest, splits={split: manifest.split(split)}, class_counts={}).save(folder)
    shards = [data / shard.file for shard in manifest.split(split).shards]
    for path in [*shards, *map(index_path, shards), *data.glob("*.txt"), *data.glob("features.json")]:
        (folder / path.name).symlink_to(path)
    if (data / "dataset_info.json").exists():  # TFDS's
        info = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))
        info["splits"] = [entry for entry in info["splits"] if entry["name"] == split]
        (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def shardline(
    folder: Path,
    batch: int,
    size: int,
    threads: int,
    *,
    dataset: str = "jpeg",
    augment_on: str = "host",
    shuffle: bool = True,
    shuffle_block_size: int = 1,
) -> Batches:
    """pipeline.train_batches, shuffled exactly, finished images."""
    from shardline import pipeline

    data = pipeline.open_dataset(folder / dataset)
    config = pipeline.InputConfig(
        global_batch_size=batch,
        image_size=size,
        shuffle=shuffle,
        shuffle_block_size=shuffle_block_size,
        augment_on=augment_on,
        crop_area=CROP_AREA,
        crop_ratio=CROP_RATIO,
        threads=threads,
        workers=threads if threads > 1 else 0,
    )
    return iter(data.train_batches(next(iter(data.manifest.splits)), config))


def bare_loop(folder: Path, batch: int, size: int, threads: int) -> Batches:
    """Files in memory, decoded whole by simplejpeg, cropped, resized and flipped into a batch: no checks, no shards."""
    import cv2
    import numpy as np
    import simplejpeg

    cv2.setNumThreads(0)
    files = [path.read_bytes() for path in sorted((folder / "files").iterdir())]
    shapes = [simplejpeg.decode_jpeg_header(data)[:2] for data in files]
    memory = np.empty(3 * max(height * width for height, width in shapes), np.uint8)
    images = np.empty((batch, size, size, 3), np.uint8)
    while True:
        for row in images:
            data = random.choice(files)
            pixels = simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True, buffer=memory)
            top, left, height, width = _crop_box(*pixels.shape[:2])
            cv2.resize(pixels[top : top + height, left : left + width], (size, size), dst=row)
            if random.random() < 0.5:
                cv2.flip(row, 1, dst=row)
        yield images


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


def _distorted_box(shape: tf.Tensor) -> Any:
    import tensorflow as tf

    return tf.image.sample_distorted_bounding_box(
        shape, tf.zeros((1, 0, 4)), 0, min_object_covered=0.1, aspect_ratio_range=CROP_RATIO,
        area_range=CROP_AREA, max_attempts=10, use_image_if_no_bounding_boxes=True,
    )  # fmt: skip


def _records(folder: Path) -> tf.data.Dataset:
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


def _torch(folder: Path, batch: int, image: Callable[[bytes], np.ndarray]) -> Batches:
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
        def __getitem__(self, index: int) -> Any:
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
            data, device="cpu", output_type=types.RGB, random_area=list(CROP_AREA), random_aspect_ratio=list(CROP_RATIO)
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


def _opencv(data: bytes, size: int) -> np.ndarray:
    """What people write: decode, crop, resize, flip."""
    import cv2
    import numpy as np

    cv2.setNumThreads(0)
    image = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    top, left, height, width = _crop_box(*image.shape[:2])
    image = cv2.resize(image[top : top + height, left : left + width], (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(image, 1) if random.random() < 0.5 else image


def _pillow(data: bytes, size: int) -> np.ndarray:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip."""
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, height, width = _crop_box(image.height, image.width)
    image = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image)


def _crop_box(height: int, width: int) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = height * width * random.uniform(*CROP_AREA)
        ratio = math.exp(random.uniform(*map(math.log, CROP_RATIO)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = random.randint(0, height - crop_height), random.randint(0, width - crop_width)
            return top, left, crop_height, crop_width
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


@dataclass(frozen=True)
class Loader:
    """A function of folder, batch size, image size and threads; the packages it needs; and what it does, in a line."""

    make: Callable[[Path, int, int, int], Batches]
    packages: tuple[str, ...] = ()
    text: str = ""

    @property
    def what(self) -> str:
        """`text`, else the first line of the function's docstring."""
        return self.text or (self.make.__doc__ or "").strip().rstrip(".")


LOADERS = {
    "shardline host": Loader(shardline),
    "shardline host, in stored order": Loader(partial(shardline, shuffle=False), (), "the same without a shuffle"),
    "shardline host, blocks of 8": Loader(
        partial(shardline, shuffle_block_size=8), (), "the same, 8 stored records read together"
    ),
    "shardline device": Loader(
        partial(shardline, augment_on="device"), (), "the host's half; the GPU resizes, flips and colors"
    ),
    "shardline raw, host": Loader(partial(shardline, dataset="raw"), (), "from raw pixels: nothing to decode"),
    "shardline raw, device": Loader(
        partial(shardline, dataset="raw", augment_on="device"), (), "from raw pixels, the host's half"
    ),
    "bare loop, whole images": Loader(bare_loop),
    "TensorFlow, decode only": Loader(tensorflow_decode_only),
    "Model Garden, float32": Loader(model_garden),
    "Keras from directory, float32": Loader(keras_directory),
    "TFDS": Loader(tfds_reader),
    "PyTorch DataLoader + OpenCV": Loader(torch_opencv, ("torch", "cv2")),
    "PyTorch DataLoader + Pillow": Loader(torch_pillow, ("torch", "PIL")),
    "webdataset + OpenCV": Loader(webdataset_reader, ("webdataset", "cv2")),
    "Grain + ArrayRecord + OpenCV": Loader(grain_array_record, ("grain", "array_record", "cv2")),
    "MosaicML Streaming + OpenCV": Loader(mosaic_streaming, ("streaming", "torch", "cv2")),
    "DALI on the CPU": Loader(dali, ("nvidia.dali",)),
}
NOT_MEASURED = {"FFCV": "its reader has to be built against OpenCV's C++ headers, which no package index has"}


def loader(name: str, folder: str, batch: int, size: int, threads: int) -> Callable[[float], Rate]:
    """A loader that is ready to make batches; what is returned makes them for some seconds."""
    batches = LOADERS[name].make(Path(folder), batch, size, threads)
    next(batches)

    def turn(seconds: float) -> Rate:
        for _ in range(6):  # what was made ahead, and the batches that were under way
            next(batches)

        def one() -> int:
            next(batches)
            return batch

        return timed(lambda: repeat_for(seconds, one))

    return turn
