"""The baseline for accuracy: recipes in plain Keras, `model.compile` and `model.fit` on one device.

    python -m shardline.benchmarks.baselines.keras_fit --data DIR --split test [--phases all:9@0.02]
    python -m shardline.benchmarks.baselines.keras_fit --data DIR --weights PATH --phases head:20@1e-3,all:10@1e-5

Same network and first weights, crops and flips, order of samples and schedule as `shardline-train --head gap`;
loss, optimizer, step and loop are Keras's own. With pretrained weights it is the recipe of Keras's guide to transfer
learning and fine-tuning (keras.io/guides/transfer_learning): Adam at constant rates, a head on the frozen layers first,
then all of them at a hundredth of its rate. Prints one JSON line.
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
from shardline.trainer.config import Phase, parse_phases

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
    weights: str = option("none", "VGG16 weights to start from, as shardline-train reads them", path="any", group="run")
    phases: str = option(
        "all:9@0.02",
        "PART:EPOCHS@LEARNING_RATE of what trains, head or all; without --weights the rate is the peak, after a linear "
        "warmup over a tenth of the steps, of a cosine",
        group="recipe",
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
        if any(phase.part not in ("head", "all") for phase in self.phase_list):
            raise UsageError(f"--phases={self.phases}: this baseline trains head or all")
        if self.mixes:
            raise UsageError("--mixup and --cutmix need soft labels, which this baseline does not use; leave them out")

    @property
    def phase_list(self) -> tuple[Phase, ...]:
        """The parsed `--phases`."""
        return parse_phases(self.phases)


def fit(config: KerasFitConfig) -> dict[str, float]:
    """Train and evaluate: top1, loss, flip_top1, flip_seconds, seed, steps, seconds, images_per_second."""
    import keras  # TensorFlow takes seconds to import

    keras.utils.set_random_seed(config.seed)
    data, inputs = pipeline.open_dataset(config.data), narrowed(config, InputConfig)
    model, total = create_model(config, data), 0
    started = time.perf_counter()
    batches = data.train_batches("train", inputs).map(_triple)
    for phase in config.phase_list:
        steps = max(1, round(phase.epochs * data.num_records("train") / config.global_batch_size))
        compile_model(model, config, phase, steps)
        model.fit(batches, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)
        total += steps
    seconds = time.perf_counter() - started
    tested = data.eval_batches(config.split, inputs).map(_triple)
    loss, accuracy = model.evaluate(tested, verbose=0)
    evaluated = time.perf_counter()
    return {
        "top1": accuracy,
        "loss": loss,
        "flip_top1": with_flips(model, tested),
        "flip_seconds": round(time.perf_counter() - evaluated, 1),
        "seed": config.seed,
        "steps": total,
        "seconds": round(seconds, 1),
        "images_per_second": round(total * config.global_batch_size / seconds, 1),
    }


def create_model(config: KerasFitConfig, data: pipeline.Dataset) -> keras.Model:
    """Our network, up to its logits, with its first weights or the pretrained ones."""
    import keras  # TensorFlow takes seconds to import

    from shardline.trainer.model import PIXEL_SPREAD, NetworkConfig, create_network, initialize
    from shardline.trainer.weights import load_weights

    network_config = NetworkConfig(
        classes=len(data.labels),
        image_size=config.image_size,
        dropout=config.dropout,
        seed=config.seed,
        precision=config.precision,
        width=config.width,
        input_scale=PIXEL_SPREAD if config.weights == "none" else 1.0,
    )
    network = create_network(network_config)
    initialize(network, config.seed)
    if config.weights != "none":
        load_weights(network, config.weights, data.labels)
    return keras.Model(network.serve.input, network.serve.get_layer("probabilities").input)


def compile_model(model: keras.Model, config: KerasFitConfig, phase: Phase, steps: int) -> None:
    """Set what trains, and give Keras's loss, optimizer and schedule."""
    import keras

    for layer in model.layers:
        layer.trainable = phase.part == "all" or not layer.name.startswith("block")
    optimizer: keras.optimizers.Optimizer
    if config.weights == "none":
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps - steps // 10, warmup_target=phase.learning_rate, warmup_steps=steps // 10
        )
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, global_clipnorm=config.clip_norm)
    else:
        optimizer = keras.optimizers.Adam(phase.learning_rate)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        jit_compile=config.jit,
    )


def with_flips(model: keras.Model, batches: tf.data.Dataset) -> float:
    """The share that is right where the probabilities of an image and its horizontal flip are averaged."""
    import tensorflow as tf

    probabilities = tf.function(lambda image: tf.nn.softmax(model(image, training=False)), autograph=False)
    right = total = 0.0
    for image, label, weight in batches:
        found = tf.argmax(probabilities(image) + probabilities(tf.reverse(image, [2])), 1)
        right += float(tf.reduce_sum(weight * tf.cast(found == tf.cast(label, found.dtype), weight.dtype)))
        total += float(tf.reduce_sum(weight))
    return right / total


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
