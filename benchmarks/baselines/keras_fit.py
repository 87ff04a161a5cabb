"""The baseline for accuracy: the same recipe in plain Keras, `model.compile` and `model.fit` on one device.

    python -m shardline.benchmarks.baselines.keras_fit --data DIR --split test [--epochs 9 --learning_rate 0.02]

Same network and first weights, crops and flips, order of samples, schedule and clipping as
`shardline-train --head gap --phases all:9@0.02`; loss, optimizer, step and loop are Keras's own. Prints one JSON line.
"""

from __future__ import annotations

import json
import time

from absl import flags

from shardline.pipeline.cli import import_tensorflow, run
from shardline.pipeline.errors import UsageError

_DATA = flags.DEFINE_string("data", "", "dataset directory, made by shardline-convert")
_SPLIT = flags.DEFINE_string("split", "test", "split to score on at the end")
_EPOCHS = flags.DEFINE_integer("epochs", 9, "passes over the split train", lower_bound=1)
_RATE = flags.DEFINE_float("learning_rate", 0.02, "peak of the cosine, after a tenth of warm-up", lower_bound=0)
_SIZE = flags.DEFINE_integer("image_size", 64, "pixels", lower_bound=32)
_BATCH = flags.DEFINE_integer("global_batch_size", 32, "examples a step", lower_bound=1)
_AREA = flags.DEFINE_string("crop_area", "0.35,1", "as shardline-train's")
_RATIO = flags.DEFINE_string("crop_ratio", "0.75,1.333", "as shardline-train's")
_DROPOUT = flags.DEFINE_float("dropout", 0.5, "before the last layer", lower_bound=0, upper_bound=1)
_CLIP = flags.DEFINE_float("clip_norm", 1.0, "largest global norm of the gradient", lower_bound=0.001)
_PRECISION = flags.DEFINE_enum("precision", "mixed_bfloat16", ["mixed_bfloat16", "float32"], "of the layers")
_SEED = flags.DEFINE_integer("seed", 0, "of the weights, the order and the augmentation")
_WIDTH = flags.DEFINE_float("width", 1.0, "share of VGG16's filters", lower_bound=0.01, upper_bound=1)
_JIT = flags.DEFINE_boolean("jit", True, "compile with XLA, as shardline-train does")


def main() -> None:
    """Train, score, print."""
    if not _DATA.value:
        raise UsageError("--data is missing: name a dataset directory, made by shardline-convert")
    import_tensorflow()
    import keras

    from shardline import pipeline
    from shardline.trainer import model as vgg16
    from shardline.trainer.config import TrainConfig

    keras.utils.set_random_seed(_SEED.value)
    data = pipeline.open_dataset(_DATA.value)
    config = TrainConfig(
        global_batch_size=_BATCH.value,
        image_size=_SIZE.value,
        seed=_SEED.value,
        crop_area=_AREA.value,
        crop_ratio=_RATIO.value,
    ).input_config()
    steps = round(_EPOCHS.value * data.num_records("train") / _BATCH.value)
    network = vgg16.build(
        classes=len(data.labels),
        head="gap",
        image_size=_SIZE.value,
        dropout=_DROPOUT.value,
        seed=_SEED.value,
        precision=_PRECISION.value,
        width=_WIDTH.value,
        input_scale=vgg16.PIXEL_SPREAD,
    )
    vgg16.initialize(network, _SEED.value)
    model = keras.Model(network.serve.input, network.serve.get_layer("predictions").output)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=_RATE.value, warmup_steps=steps // 10
    )
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, global_clipnorm=_CLIP.value),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        jit_compile=_JIT.value,
    )
    started = time.perf_counter()
    batches = data.train_batches("train", config).map(_triple)
    model.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)
    seconds = time.perf_counter() - started
    loss, accuracy = model.evaluate(data.eval_batches(_SPLIT.value, config).map(_triple), verbose=0)
    result = {
        "top1": accuracy,
        "loss": loss,
        "seed": _SEED.value,
        "steps": steps,
        "seconds": round(seconds, 1),
        "images_per_second": round(steps * _BATCH.value / seconds, 1),
    }
    print(json.dumps(result))


def _triple(batch):
    return batch["image"], batch["label"], batch["weight"]


def cli() -> None:
    """Entry point."""
    run(main)


if __name__ == "__main__":
    cli()
