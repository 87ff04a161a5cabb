"""Forecast of a GPU's memory, from what XLA's compiler accounts for the step when it compiles it for a GPU.

The numbers are fitted to benchmarks/results/gpu_compile.md, which `make gpu-compile` makes and a test holds them
against. They leave out what cuDNN, NCCL and the driver take.
"""

from __future__ import annotations

from shardline.trainer.config import TrainConfig
from shardline.trainer.model import Network, num_parameters
from shardline.trainer.schedule import PhaseSpan
from shardline.trainer.setup import TrainSetup

# Bytes of temporary values an image, at 224 pixels, full width and 16 bits, by what trains: activations that the
# backward pass needs. What is frozen keeps only its largest two.
_BYTES_AN_IMAGE = {"all": 45.5e6, "block3": 14.9e6, "block4": 12.85e6, "block5": 12.85e6, "head": 12.85e6}
_PIXELS = 224**2


def step_bytes(setup: TrainSetup, network: Network, span: PhaseSpan) -> float:
    """Forecast for one device of all that a step of a phase keeps there: variables, gradients, temporary values."""
    config, part = setup.config, span.phase.part
    return variable_bytes(config, num_parameters(network.weights), num_parameters(network.trained(part))) + (
        temporary_bytes(config, part, config.global_batch_size // setup.cluster.replicas)
    )


def variable_bytes(config: TrainConfig, weights: int, trained: int) -> float:
    """Weights, their moving average, and slots and gradients of those that train, as float32."""
    slots = 1 if config.optimizer == "sgd" else 2
    return 4.0 * (weights * (1 + bool(config.ema)) + trained * (1 + slots))


def temporary_bytes(config: TrainConfig, part: str, images: int) -> float:
    """What is kept while `images` of one device are computed, their uint8 pixels included."""
    scale = config.image_size**2 / _PIXELS * config.width * (2 if config.precision == "float32" else 1)
    pixels = 3 * (config.image_size * 9 / 8) ** 2  # as augmentation on the device is sent them
    return images * (pixels + _BYTES_AN_IMAGE[part] * scale / config.micro_batches)
