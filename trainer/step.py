"""One training step that is right on any number of replicas.

Each replica sums its gradients; the sums are added over replicas; then, on what all replicas now share, they are
unscaled, checked to be finite, clipped and applied. Keras 3 checks and clips each replica's own gradients instead,
which loses overflows and makes N replicas differ from one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

SCALE_START = 2.0**15
SCALE_GROWTH_STEPS = 2000
Batch = dict[str, Any]
Forward = Callable[[Batch], tuple[Any, Any]]  # batch -> float32 logits [b, c], float32 target shares [b, c]


@dataclass(frozen=True)
class StepConfig:
    """What shapes one step besides the model."""

    global_batch_size: int
    optimizer: str = "sgd"
    momentum: float = 0.9
    clip_norm: float = 0.0
    weight_decay: float = 0.0
    ema: float = 0.0
    micro_batches: int = 1
    loss_scaling: bool = False
    jit: bool = False


class Optimizer:
    """Slots of the variables that train, and the update that uses them. Lives for one phase."""

    def __init__(self, variables: Mapping[str, Any], config: StepConfig, rates: Mapping[str, float] | None = None):
        """Create inside `strategy.scope()`. `rates` multiply the learning rate, variable by variable."""
        self.config = config
        self.rates = {path: 1.0 for path in variables} | dict(rates or {})
        self.variables = dict(variables)
        names = ("momentum",) if config.optimizer == "sgd" else ("first", "second")
        self.slots = {
            path: [tf.Variable(tf.zeros(v.shape), trainable=False, name=name) for name in names]
            for path, v in variables.items()
        }
        self.updates = tf.Variable(0.0, trainable=False, name="updates")  # steps applied, for Adam's bias correction

    def state(self) -> dict[str, Any]:
        """Everything a restart needs, by name."""
        named = {f"{path}/{slot.name.split(':')[0]}": slot for path, slots in self.slots.items() for slot in slots}
        return named | {"updates": self.updates}

    def update(self, path: str, variable: Any, slots: Any, gradient: Any, rate: Any, updates: Any) -> None:
        """Apply one gradient on one device, in place."""
        config, rate = self.config, rate * self.rates[path]
        decay = config.weight_decay if not path.endswith("bias") else 0.0
        if decay and config.optimizer != "adamw":
            gradient = gradient + decay * variable
        if config.optimizer == "sgd":
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=variable.handle,
                accum=slots[0].handle,
                lr=rate,
                grad=gradient,
                momentum=config.momentum,
                use_nesterov=True,
            )
            return
        if decay:
            variable.assign_sub(rate * decay * variable)
        beta1, beta2 = config.momentum, 0.999
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=slots[0].handle,
            v=slots[1].handle,
            grad=gradient,
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            beta1_power=beta1**updates,
            beta2_power=beta2**updates,
            epsilon=1e-7,
        )


class LossScale:
    """Dynamic loss scale for float16: halved when gradients overflow, doubled after many good steps."""

    def __init__(self) -> None:
        """Create inside `strategy.scope()`."""
        self.scale = tf.Variable(SCALE_START, trainable=False)
        self.good_steps = tf.Variable(0.0, trainable=False)

    def state(self) -> dict[str, Any]:
        """Everything a restart needs, by name."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def update(self, finite: Any) -> None:
        """Follow one step, in cross-replica context."""
        good = self.good_steps + 1.0
        grow = good >= SCALE_GROWTH_STEPS
        risen = tf.where(grow, self.scale * 2.0, self.scale * 1.0)
        self.scale.assign(tf.where(finite, risen, self.scale * 0.5))
        self.good_steps.assign(tf.where(finite & ~grow, good, 0.0))


def make_train_step(
    strategy: Any,
    forward: Forward,
    optimizer: Optimizer,
    loss_scale: LossScale,
    ema_weights: Mapping[str, Any],
    config: StepConfig,
    class_weights: Any = None,
) -> Callable[..., dict[str, Any]]:
    """The step as one tf.function: (distributed batch, learning rate, stop) -> numbers to report.

    `stop` is summed over the hosts beside the gradients, so that any of them can end the run for all.

    Make a new one for each phase: a traced function keeps training the variables it was traced with.
    """
    paths, variables = list(optimizer.variables), list(optimizer.variables.values())

    def forward_backward(batch: Batch, scale: Any) -> tuple[list[Any], Any, Any]:
        """Sums over this replica's examples: scaled gradients, and [loss, weight, correct, examples]."""

        def piece(batch: Batch) -> tuple[list[Any], Any, Any]:
            with tf.GradientTape() as tape:
                logits, targets = forward(batch)
                losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
                weight = batch["weight"]
                if class_weights is not None:
                    weight = weight * tf.linalg.matvec(targets, class_weights)
                loss = tf.reduce_sum(losses * weight)
                # Divided here by the nominal batch, so that float16 gradients stay in range.
                scaled = loss * (scale / config.global_batch_size)
            gradients = tape.gradient(scaled, variables)
            correct = tf.cast(tf.argmax(logits, -1) == tf.argmax(targets, -1), tf.float32) * batch["weight"]
            sums = tf.stack([loss, *map(tf.reduce_sum, (weight, correct, batch["weight"]))])
            return gradients, sums, losses

        count = config.micro_batches
        if count == 1:
            return piece(batch)
        pieces = {k: tf.reshape(v, [count, v.shape[0] // count, *v.shape[1:]]) for k, v in batch.items()}

        # A loop and not `count` copies, which would be free to run, and hold their activations, all at once.
        def body(i: Any, total: list[Any], sums: Any, losses: Any) -> Any:
            more, more_sums, some = piece({k: v[i] for k, v in pieces.items()})
            losses = tf.tensor_scatter_nd_update(losses, [[i]], some[None])
            return i + 1, [a + b for a, b in zip(total, more, strict=True)], sums + more_sums, losses

        zeros = [tf.zeros(v.shape) for v in variables]
        start = (tf.constant(0), zeros, tf.zeros([4]), tf.zeros(pieces["weight"].shape))
        _, gradients, sums, losses = tf.while_loop(lambda i, *_: i < count, body, start, parallel_iterations=1)
        return gradients, sums, tf.reshape(losses, [-1])

    # XLA compiles the pure part only: around all-reduce or variable updates it fails under a strategy.
    forward_backward = tf.function(forward_backward, jit_compile=config.jit, autograph=False)

    def replica_step(batch: Batch, scale: Any, stop: Any) -> tuple[list[Any], dict[str, Any], Any]:
        gradients, sums, losses = forward_backward(batch, scale)
        context = tf.distribute.get_replica_context()
        sums = tf.concat([sums, [stop]], 0)
        *gradients, sums = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, sums])
        loss, weight, correct, examples, stop = tf.unstack(sums)
        unscale = tf.math.divide_no_nan(config.global_batch_size / scale, weight)
        norm = tf.linalg.global_norm(gradients) * unscale  # not finite as soon as one number is not
        if config.clip_norm:
            unscale *= tf.minimum(1.0, config.clip_norm / norm)
        gradients = [gradient * unscale for gradient in gradients]
        report = {
            "loss": tf.math.divide_no_nan(loss, weight),
            "top1": tf.math.divide_no_nan(correct, examples),
            "examples": examples,
            "norm": norm,
            "stop": stop,
        }
        return gradients, report, losses

    def apply(gradients: list[Any], rate: Any) -> Any:
        optimizer.updates.assign_add(1.0)
        updates = tf.identity(optimizer.updates)
        for path, variable, gradient in zip(paths, variables, gradients, strict=True):

            def update(variable: Any, gradient: Any, mean: Any, *slots: Any, path: str = path) -> None:
                optimizer.update(path, variable, slots, gradient, rate, updates)
                if config.ema:
                    difference = mean - variable
                    tf.raw_ops.ResourceApplyGradientDescent(var=mean.handle, alpha=1 - config.ema, delta=difference)

            strategy.extended.update(variable, update, args=(gradient, ema_weights.get(path), *optimizer.slots[path]))
        return tf.constant(True)

    @tf.function(autograph=False)
    def train_step(batch: Any, rate: Any, stop: Any = 0.0) -> dict[str, Any]:
        scale = tf.identity(loss_scale.scale) if config.loss_scaling else tf.constant(1.0)
        gradients, report, losses = strategy.run(replica_step, args=(batch, scale, stop))
        report = {name: strategy.experimental_local_results(value)[0] for name, value in report.items()}
        finite = tf.math.is_finite(report["norm"]) & tf.math.is_finite(report["loss"])
        # The same decision on every replica, because it is made on the reduced gradients.
        tf.cond(finite, lambda: apply(gradients, rate), lambda: tf.constant(False))
        if config.loss_scaling:
            loss_scale.update(finite)
        return report | {"finite": finite, "scale": scale, "losses": losses}

    return train_step


def make_eval_step(strategy: Any, forward: Forward, jit: bool) -> Callable[[Any], dict[str, Any]]:
    """A tf.function that sums loss, top-1, top-5 and weight of one distributed batch over all replicas."""

    def score(batch: Batch) -> Any:
        logits, targets = forward(batch)
        weight = batch["weight"]
        label = tf.argmax(targets, -1)
        truth = tf.gather(logits, label, batch_dims=1)[:, None]
        # Ties count against us, so a constant or NaN output scores 0.
        rank = tf.reduce_sum(tf.cast(~(logits < truth), tf.float32), -1)
        losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
        scores = (losses, tf.cast(rank <= 1, tf.float32), tf.cast(rank <= 5, tf.float32), tf.ones_like(weight))
        return tf.stack([tf.reduce_sum(score * weight) for score in scores])

    score = tf.function(score, jit_compile=jit, autograph=False)

    def replica_score(batch: Batch) -> Any:
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, score(batch))

    @tf.function(autograph=False)
    def eval_step(batch: Any) -> dict[str, Any]:
        loss, top1, top5, n = tf.unstack(strategy.experimental_local_results(strategy.run(replica_score, (batch,)))[0])
        return {"loss": loss, "top1": top1, "top5": top5, "n": n}

    return eval_step


def swap(strategy: Any, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Exchange the values of two sets of variables of the same names; calling it again undoes it exactly."""

    def exchange(a: Any, b: Any) -> None:
        value = tf.identity(a)
        a.assign(b)
        b.assign(value)

    for path in first:
        strategy.extended.update(first[path], exchange, args=(second[path],))
