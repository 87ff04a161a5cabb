"""The baseline for accuracy: the same recipe in plain Keras, `model.compile` and `model.fit` on one device.

    python -m shardline.benchmarks.baselines.keras_fit --data DIR --split test [--epochs 9 --learning_rate 0.02]

Same network and first weights, crops and flips, order of samples, schedule and clipping as
`shardline-train --head gap --phases all:9@0.02`; loss, optimizer, step and loop are Keras's own. Prints one JSON line.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shardline import pipeline
from shardline.pipeline import cli as command_line
from shardline.pipeline.config import InputConfig
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import narrowed, option

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


@dataclass(frozen=True)
class KerasFitConfig(InputConfig):
    """A recipe. The input's options are those of shardline-train."""

    GROUPS: ClassVar = ("run", "recipe", "augmentation", "input")

    data: str = option("", "dataset directory, made by shardline-convert", group="run", path="folder")
    split: str = option("test", "split to evaluate on at the end", group="run")
    image_size: int = option(64, "side of the square the model sees, in pixels", low=32, group="input")
    augment_on: str = option("host", "where images are augmented", choices=("host",), group="augmentation", flag=False)
    epochs: int = option(9, "passes over the split train", low=1, group="recipe")
    learning_rate: float = option(
        0.02, "peak learning rate, after linear warmup over a tenth of the steps", low=0, group="recipe"
    )
    dropout: float = option(0.5, "share of activations dropped before the last layer", low=0, high=1, group="recipe")
    clip_norm: float = option(1.0, "largest global norm of the gradient", above=0, group="recipe")
    precision: str = option(
        "mixed_bfloat16", "arithmetic of the layers", choices=("mixed_bfloat16", "float32"), group="recipe"
    )
    width: float = option(1.0, "width multiplier of VGG16", above=0, high=1, group="recipe")
    jit: bool = option(True, "compile with XLA, as shardline-train does", group="recipe")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise UsageError("--data is missing: name a dataset directory, made by shardline-convert")
        if self.mixes:
            raise UsageError("--mixup and --cutmix need soft labels, which this baseline does not use; leave them out")


def fit(config: KerasFitConfig) -> dict[str, float]:
    """Train and evaluate: top1, loss, seed, steps, seconds, images_per_second."""
    import keras  # TensorFlow takes seconds to import

    keras.utils.set_random_seed(config.seed)
    data, inputs = pipeline.open_dataset(config.data), narrowed(config, InputConfig)
    steps = round(config.epochs * data.num_records("train") / config.global_batch_size)
    model = compiled_model(config, data, steps)
    started = time.perf_counter()
    batches = data.train_batches("train", inputs).map(_triple)
    model.fit(batches, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)
    seconds = time.perf_counter() - started
    loss, accuracy = model.evaluate(data.eval_batches(config.split, inputs).map(_triple), verbose=0)
    return {
        "top1": accuracy,
        "loss": loss,
        "seed": config.seed,
        "steps": steps,
        "seconds": round(seconds, 1),
        "images_per_second": round(steps * config.global_batch_size / seconds, 1),
    }


def compiled_model(config: KerasFitConfig, data: pipeline.Dataset, steps: int) -> keras.Model:
    """Our network with its first weights; Keras's loss, optimizer and schedule."""
    import keras  # TensorFlow takes seconds to import

    from shardline.trainer.model import PIXEL_SPREAD, NetworkConfig, create_network, initialize

    network_config = NetworkConfig(
        classes=len(data.labels),
        image_size=config.image_size,
        dropout=config.dropout,
        seed=config.seed,
        precision=config.precision,
        width=config.width,
        input_scale=PIXEL_SPREAD,
    )
    network = create_network(network_config)
    initialize(network, config.seed)
    model = keras.Model(network.serve.input, network.serve.get_layer("probabilities").input)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=config.learning_rate, warmup_steps=steps // 10
    )
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, global_clipnorm=config.clip_norm),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        jit_compile=config.jit,
    )
    return model


def _triple(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    return batch["image"], batch["label"], batch["weight"]


def main(config: KerasFitConfig) -> None:
    """The command: train, evaluate, print."""
    command_line.import_tensorflow()
    print(json.dumps(fit(config)))


def cli() -> None:
    """Run this module as a command."""
    command_line.run(main, KerasFitConfig, __doc__)


if __name__ == "__main__":
    cli()
