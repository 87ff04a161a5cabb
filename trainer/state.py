"""TrainState: everything a restart needs; and the one start of all that trains: network, state and step of a phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from shardline.pipeline.errors import UsageError
from shardline.trainer.checkpoints import Checkpoint
from shardline.trainer.model import LAYER_GROUPS, Network, kind_of, layer_group
from shardline.trainer.schedule import PhaseSpan
from shardline.trainer.setup import TrainSetup, initial_network, step_config, train_forward
from shardline.trainer.step import Forward, LossScale, Optimizer, TrainStep, create_train_step


@dataclass
class TrainState:
    """Where a run stands. The one mutable thing in the trainer.

    Attributes:
      ema_weights: moving averages of the weights, by the same paths; empty for none.
      optimizer: slots of what trains in this phase.
      cursor: samples consumed.
      phase: index of the phase that the optimizer belongs to.
      best_metric: what the best is chosen by, `TrainSetup.best_metric`.
      best: the best result so far, larger is better; it was that of the weights after `best_step`.
      evaluation: the latest: its step, split, loss, top1 and top5; empty before the first.
    """

    weights: Mapping[str, tf.Variable]
    ema_weights: Mapping[str, tf.Variable]
    optimizer: Optimizer
    loss_scale: LossScale
    phase: int
    step: int = 0
    cursor: int = 0
    best_metric: str = ""
    best: float | None = None
    best_step: int = 0
    evals_since_best: int = 0
    evaluation: dict[str, Any] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        """The plain numbers."""
        names = ("step", "cursor", "phase", "best_metric", "best", "best_step", "evals_since_best", "evaluation")
        return {name: getattr(self, name) for name in names}

    def arrays(self) -> dict[str, np.ndarray]:
        """Every variable's value by its name in a checkpoint."""
        return {name: variable.numpy() for name, variable in self._variables().items()}

    def _variables(self) -> dict[str, tf.Variable]:
        groups = {
            "model": self.weights,
            "ema": self.ema_weights,
            "slots": self.optimizer.state(),
            "loss_scale": self.loss_scale.state(),
        }
        return {f"{group}/{name}": v for group, variables in groups.items() for name, v in variables.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Inverse of `header` and `arrays`.

        What the checkpoint cannot have begins anew: slots of another phase or optimizer, and a moving average that
        was not kept, which begins at the weights.
        """
        arrays = dict(checkpoint.arrays)
        ours, theirs = ({name for name in names if name.startswith("slots/")} for names in (self._variables(), arrays))
        if checkpoint.header["phase"] != self.phase or ours != theirs:
            arrays = {name: array for name, array in arrays.items() if name not in theirs}
            arrays |= {f"slots/{name}": variable.numpy() for name, variable in self.optimizer.state().items()}
        if not any(name.startswith("ema/") for name in arrays):
            arrays |= {f"ema/{path}": arrays[f"model/{path}"] for path in self.ema_weights}
        for name in self.header():
            if name != "phase":
                setattr(self, name, checkpoint.header[name])
        for name, variable in self._variables().items():
            kind = kind_of(variable)
            if name not in arrays or (arrays[name].dtype, arrays[name].shape) != kind:
                found = f"{arrays[name].dtype} {arrays[name].shape}" if name in arrays else "nothing"
                raise UsageError(
                    f"{checkpoint.path} is a checkpoint of another model: {name} is {found} there and "
                    f"{kind[0]} {kind[1]} here; start in another --workdir, or give the flags it was trained with"
                )
            variable.assign(arrays[name])

    def begin_phase(self, setup: TrainSetup, network: Network, span: PhaseSpan) -> None:
        """Take fresh slots for what trains in a later phase. Its step must be created anew, too."""
        self.optimizer, self.phase = create_optimizer(setup, network, span, self.ema_weights), span.index


def create_train_state(
    setup: TrainSetup, span: PhaseSpan, checkpoint: Checkpoint | None = None
) -> tuple[Network, TrainState, TrainStep]:
    """What training from `span` on needs: the network with its starting weights, the state, and the compiled step.

    Args:
      checkpoint: what `restore` will be given; its weights mean something to the network they were made in alone.
    """
    with setup.cluster.strategy.scope():
        network = initial_network(setup, input_scale=checkpoint.header["input_scale"] if checkpoint else None)
        averaged = network.weights if setup.config.ema else {}
        ema_weights = {path: tf.Variable(variable, trainable=False) for path, variable in averaged.items()}
        optimizer = create_optimizer(setup, network, span, ema_weights)
        state = TrainState(network.weights, ema_weights, optimizer, LossScale(), span.index)
        state.best_metric = setup.best_metric
    return network, state, create_step(setup, network, state)


def create_optimizer(
    setup: TrainSetup, network: Network, span: PhaseSpan, ema_weights: Mapping[str, tf.Variable]
) -> Optimizer:
    """Fresh slots for what trains in a phase; blocks farther from the head learn slower by --block_lr_decay."""
    variables = network.trained(span.phase.part)
    decay = setup.config.block_lr_decay
    rates = {path: decay ** LAYER_GROUPS.index(layer_group(path)) for path in variables}
    earlier = [network.trained(before.phase.part).items() for before in setup.spans[: span.index]]
    # Else they would stay behind for good what the head is trained on.
    frozen = {path: v for part in earlier for path, v in part if path in ema_weights and path not in variables}
    with setup.cluster.strategy.scope():
        return Optimizer(variables, step_config(setup), rates, ema_weights, frozen)


def create_step(setup: TrainSetup, network: Network, state: TrainState, forward: Forward | None = None) -> TrainStep:
    """The training step of the current phase; `forward` replaces the way from images to logits."""
    return create_train_step(
        setup.cluster.strategy,
        forward or train_forward(setup, network),
        state.optimizer,
        state.loss_scale,
        step_config(setup),
    )
