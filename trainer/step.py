"""One training step that is right on any number of replicas.

Each replica sums its gradients; the sums are added over replicas; then, on what all replicas now share, they are
unscaled, checked to be finite, clipped and applied. Keras 3 checks and clips each replica's own gradients instead,
which loses overflows and makes N replicas differ from one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

SCALE_START = 2.0**15
SCALE_GROWTH_STEPS = 2000
Batch = dict[str, tf.Tensor]
Forward = Callable[[Batch], tuple[tf.Tensor, tf.Tensor]]  # batch -> float32 logits [b, c], float32 label shares [b, c]
Sums = tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]  # gradients, [loss, weight, correct, samples], losses [b]
TrainStep = Callable[..., dict[str, tf.Tensor]]  # distributed batch, learning rate, stop -> numbers to report
REPORTED = ("loss", "top1", "samples", "norm", "stop", "finite", "scale")  # columns of `StepReports.numbers`
# Distributed batch -> sums of EVAL_SUMS over its records; of each replica of this host, ANSWERS of its rows [b, 2].
EvalStep = Callable[[Batch], tuple[tf.Tensor, tuple[tf.Tensor, ...]]]
EVAL_SUMS = ("loss", "top1", "top5", "n")
ANSWERS = ("predicted", "confidence")  # class number, as a float32 that holds it exactly, and its probability


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
    allreduce_dtype: str = "float32"
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()  # by label; empty: 1 for all


class Optimizer:
    """Slots of the variables that train, and the update that uses them. Lives for one phase."""

    def __init__(
        self,
        variables: Mapping[str, tf.Variable],
        config: StepConfig,
        rates: Mapping[str, float] | None = None,
        ema_weights: Mapping[str, tf.Variable] | None = None,
        frozen: Mapping[str, tf.Variable] | None = None,
    ) -> None:
        """Create inside `strategy.scope()`.

        Args:
          rates: multiply the learning rate, variable by variable.
          ema_weights: moving averages of the variables and the frozen ones, with `config.ema`.
          frozen: variables that trained before and no longer do; their averages still follow them.
        """
        self.config = config
        self.variables = dict(variables)
        self.rates = {path: 1.0 for path in variables} | dict(rates or {})
        self.ema_weights, self.frozen = dict(ema_weights or {}), dict(frozen or {})
        names = ("momentum",) if config.optimizer == "sgd" else ("first", "second")
        self.slots = {
            path: [tf.Variable(tf.zeros(v.shape), trainable=False, name=name) for name in names]
            for path, v in variables.items()
        }
        self.updates = tf.Variable(0.0, trainable=False, name="updates")  # steps applied, for Adam's bias correction

    def state(self) -> dict[str, tf.Variable]:
        """Everything a restart needs, by name."""
        named = {f"{path}/{slot.name.split(':')[0]}": slot for path, slots in self.slots.items() for slot in slots}
        return named | {"updates": self.updates}

    def apply(self, strategy: tf.distribute.Strategy, gradients: Sequence[tf.Tensor], rate: tf.Tensor) -> tf.Tensor:
        """In cross-replica context: update each variable, its slots and its moving average on every device. True."""
        self.updates.assign_add(1.0)
        updates = tf.identity(self.updates)
        for (path, variable), gradient in zip(self.variables.items(), gradients, strict=True):

            def update(
                variable: tf.Variable, gradient: tf.Tensor, mean: tf.Variable, *slots: tf.Variable, path: str = path
            ) -> None:
                self.update(path, variable, slots, gradient, rate, updates)
                if self.config.ema:
                    self._average(variable, mean)

            arguments = (gradient, self.ema_weights.get(path), *self.slots[path])
            strategy.extended.update(variable, update, args=arguments)
        for path, variable in self.frozen.items():
            strategy.extended.update(variable, self._average, args=(self.ema_weights[path],))
        return tf.constant(True)

    def _average(self, variable: tf.Variable, mean: tf.Variable) -> None:
        difference, alpha = mean - variable, 1 - self.config.ema
        tf.raw_ops.ResourceApplyGradientDescent(var=mean.handle, alpha=alpha, delta=difference)

    def update(
        self,
        path: str,
        variable: tf.Variable,
        slots: Sequence[tf.Variable],
        gradient: tf.Tensor,
        rate: tf.Tensor,
        updates: tf.Tensor,
    ) -> None:
        """Apply one gradient on one device, in place. `updates` counts the steps applied, this one included."""
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
            variable.assign(variable * (1 - rate * decay))
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

    def state(self) -> dict[str, tf.Variable]:
        """Everything a restart needs, by name."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def update(self, finite: tf.Tensor) -> None:
        """Follow one step, in cross-replica context."""
        good = self.good_steps + 1.0
        grow = good >= SCALE_GROWTH_STEPS
        risen = tf.where(grow, self.scale * 2.0, self.scale * 1.0)
        self.scale.assign(tf.where(finite, risen, self.scale * 0.5))
        self.good_steps.assign(tf.where(finite & ~grow, good, 0.0))


def create_train_step(
    strategy: tf.distribute.Strategy,
    forward: Forward,
    optimizer: Optimizer,
    loss_scale: LossScale,
    config: StepConfig,
) -> TrainStep:
    """The step as one tf.function: (distributed batch, learning rate, stop) -> numbers to report.

    `stop` is summed over the hosts together with the gradients, so that any of them can end the run for all.

    Create a new one for each phase: a traced function keeps training the variables it was traced with.
    """
    variables = list(optimizer.variables.values())
    pure = _in_micro_batches(_sums(forward, variables, config), variables, config.micro_batches)
    # XLA compiles the pure part only: around all-reduce or variable updates it fails under a strategy.
    compute = tf.function(pure, jit_compile=config.jit, autograph=False)

    def replica_step(batch: Batch, scale: tf.Tensor, stop: tf.Tensor) -> tuple[list[tf.Tensor], Batch, tf.Tensor]:
        gradients, sums, losses = compute(batch, scale)
        gradients, report = _reduce(gradients, tf.concat([sums, [stop]], 0), scale, config)
        return gradients, report, losses

    @tf.function(autograph=False)
    def train_step(batch: Batch, rate: tf.Tensor, stop: tf.Tensor | float = 0.0) -> dict[str, tf.Tensor]:
        scale = tf.identity(loss_scale.scale) if config.loss_scaling else tf.constant(1.0)
        gradients, report, losses = strategy.run(replica_step, args=(batch, scale, stop))
        report = {name: strategy.experimental_local_results(value)[0] for name, value in report.items()}
        finite = tf.math.is_finite(report["norm"]) & tf.math.is_finite(report["loss"])
        if config.loss_scaling:
            # The same decision on every replica, because it is made on the reduced gradients. The host makes it, and
            # so waits for the device; elsewhere a step that is not finite ends the run, and may be applied.
            tf.cond(finite, lambda: optimizer.apply(strategy, gradients, rate), lambda: tf.constant(False))
            loss_scale.update(finite)
        else:
            optimizer.apply(strategy, gradients, rate)
        return report | {"finite": finite, "scale": scale, "losses": losses}

    step: TrainStep = train_step
    return step


class StepReports(NamedTuple):
    """What several steps report. Reading it waits for them to finish.

    Attributes:
      numbers: float32 [k, len(REPORTED)].
      losses, records: for each replica of this host [k, b], the samples that its steps trained on.
      waited: float64 [k], seconds that each step waited for its batch; () where the loop has no clock.
    """

    numbers: tf.Tensor
    losses: tuple[tf.Tensor, ...]
    records: tuple[tf.Tensor, ...]
    waited: tuple[tf.Tensor, ...]


TrainLoop = Callable[[tf.Tensor, tf.Tensor], StepReports]  # learning rates [k], stop -> reports of k steps


def create_train_loop(
    strategy: tf.distribute.Strategy,
    step: TrainStep,
    batches: Iterator[Batch],
    clock: Callable[[], tf.Tensor] | None = None,
) -> TrainLoop:
    """The next steps over distributed batches as one tf.function, as many as learning rates: no Python in between.

    `clock` tells the time in seconds. On GPUs there must be none: it would wait until they have done all before.
    """
    local = strategy.experimental_local_results

    # One trace, however many steps.
    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None]), tf.TensorSpec([])])
    def train_loop(rates: tf.Tensor, stop: tf.Tensor) -> StepReports:
        def body(i: tf.Tensor, written: StepReports) -> tuple[tf.Tensor, StepReports]:
            batch, waited = _timed_next(strategy, batches, clock)
            report = step(batch, rates[i], stop)
            numbers = tf.stack([tf.cast(report[name], tf.float32) for name in REPORTED])
            row = StepReports(numbers, local(report["losses"]), local(batch["record"]), waited)
            return i + 1, tf.nest.map_structure(lambda array, value: array.write(i, value), written, row)

        count, replicas = tf.shape(rates)[0], range(len(strategy.extended.worker_devices))
        empty = StepReports(
            tf.TensorArray(tf.float32, count),
            tuple(tf.TensorArray(tf.float32, count) for _ in replicas),
            tuple(tf.TensorArray(tf.int64, count) for _ in replicas),
            (tf.TensorArray(tf.float64, count),) if clock else (),
        )
        _, written = tf.while_loop(lambda i, _: i < count, body, (tf.constant(0), empty), parallel_iterations=1)
        stacked: StepReports = tf.nest.map_structure(lambda array: array.stack(), written)
        return stacked

    loop: TrainLoop = train_loop
    return loop


def _timed_next(
    strategy: tf.distribute.Strategy, batches: Iterator[Batch], clock: Callable[[], tf.Tensor] | None
) -> tuple[Batch, tuple[tf.Tensor, ...]]:
    """The next batch, and the seconds it took to come where there is a clock."""
    if clock is None:
        return next(batches), ()
    began = clock()
    with tf.control_dependencies([began]):
        batch = next(batches)
    with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
        ended = clock()

    def after(batch: Batch) -> Batch:
        """Only now: else the replica that has its batch first computes on all cores while the clock is to be read."""
        with tf.control_dependencies([ended]):
            held: Batch = tf.nest.map_structure(tf.identity, batch)
        return held

    return strategy.run(after, args=(batch,)), (ended - began,)


def _sums(forward: Forward, variables: Sequence[tf.Variable], config: StepConfig) -> Callable[[Batch, tf.Tensor], Sums]:
    """Forward and backward over some samples of one replica: sums, not means, so that pieces can be added."""
    class_weights = tf.constant(config.class_weights) if config.class_weights else None

    def sums(batch: Batch, scale: tf.Tensor) -> Sums:
        with tf.GradientTape() as tape:
            logits, shares = forward(batch)
            targets = shares * (1 - config.label_smoothing) + config.label_smoothing / shares.shape[-1]
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            weight = batch["weight"]
            if class_weights is not None:  # of the labels as they are: smoothing adds no class to a sample
                weight = weight * tf.linalg.matvec(shares, class_weights)
            loss = tf.reduce_sum(losses * weight)
            # Divided here by the nominal batch, so that float16 gradients stay in range.
            scaled = loss * (scale / config.global_batch_size)
        gradients = tape.gradient(scaled, variables)
        correct = tf.cast(label_ranks(logits, tf.argmax(shares, -1)) == 0, tf.float32) * batch["weight"]
        return gradients, tf.stack([loss, *map(tf.reduce_sum, (weight, correct, batch["weight"]))]), losses

    return sums


def _in_micro_batches(
    sums: Callable[[Batch, tf.Tensor], Sums], variables: Sequence[tf.Variable], count: int
) -> Callable[[Batch, tf.Tensor], Sums]:
    """The same sums, computed in `count` pieces one after another."""
    if count == 1:
        return sums

    def in_pieces(batch: Batch, scale: tf.Tensor) -> Sums:
        pieces = {k: tf.reshape(v, [count, v.shape[0] // count, *v.shape[1:]]) for k, v in batch.items()}

        # A loop and not `count` copies, which would be free to run, and hold their activations, all at once.
        def body(i: tf.Tensor, total: list[tf.Tensor], numbers: tf.Tensor, losses: tf.Tensor) -> tuple[tf.Tensor, ...]:
            more, more_numbers, some = sums({k: v[i] for k, v in pieces.items()}, scale)
            losses = tf.tensor_scatter_nd_update(losses, [[i]], some[None])
            return i + 1, [a + b for a, b in zip(total, more, strict=True)], numbers + more_numbers, losses

        zeros = [tf.zeros(variable.shape) for variable in variables]
        start = (tf.constant(0), zeros, tf.zeros([4]), tf.zeros(pieces["weight"].shape))
        _, gradients, numbers, losses = tf.while_loop(lambda i, *_: i < count, body, start, parallel_iterations=1)
        return gradients, numbers, tf.reshape(losses, [-1])

    return in_pieces


def _reduce(
    gradients: Sequence[tf.Tensor], sums: tf.Tensor, scale: tf.Tensor, config: StepConfig
) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
    """In replica context: add up over replicas, unscale and clip. Every replica gets the same numbers."""
    *gradients, sums = _all_reduce([*gradients, sums], config.allreduce_dtype)
    loss, weight, correct, samples, stop = tf.unstack(sums)
    unscale = tf.math.divide_no_nan(config.global_batch_size / scale, weight)
    norm = tf.linalg.global_norm(gradients) * unscale  # not finite as soon as one number is not
    if config.clip_norm:
        unscale *= tf.minimum(1.0, config.clip_norm / norm)
    report = {
        "loss": tf.math.divide_no_nan(loss, weight),
        "top1": tf.math.divide_no_nan(correct, samples),
        "samples": samples,
        "norm": norm,
        "stop": stop,
    }
    return [gradient * unscale for gradient in gradients], report


def _all_reduce(tensors: Sequence[tf.Tensor], dtype: str) -> list[tf.Tensor]:
    """Add up over replicas, in replica context. All but the last of the tensors travel as `dtype`."""
    if tf.distribute.get_replica_context().num_replicas_in_sync == 1:
        return list(tensors)
    if dtype == "float32":
        return _add_up(tensors)
    *wide, exact = tensors
    narrow = _add_up([tf.cast(tensor, dtype) for tensor in wide])
    widened = [tf.cast(total, tensor.dtype) for total, tensor in zip(narrow, wide, strict=True)]
    return [*widened, *_add_up([exact])]


def _add_up(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sums over replicas of tensors of one type, which travel as one: there are dozens, most of them small."""
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)
    total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, flat)
    parts = tf.split(total, [math.prod(tensor.shape) for tensor in tensors])
    return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def allreduce_adds(strategy: tf.distribute.Strategy, dtype: str) -> bool:
    """Whether the devices add numbers of `dtype` right: no promise of TensorFlow says which of them NCCL knows."""
    count = strategy.num_replicas_in_sync
    numbers = np.arange(-3, 4, dtype=np.float32)  # small enough to be exact

    @tf.function(autograph=False)
    def add() -> tf.Tensor:
        return strategy.run(lambda: _all_reduce([tf.constant(numbers), tf.constant(numbers)], dtype)[0])

    return all(np.array_equal(part, numbers * count) for part in strategy.experimental_local_results(add()))


def allreduce_bytes(strategy: tf.distribute.Strategy, variables: Mapping[str, tf.Variable], dtype: str) -> int:
    """Bytes of gradients that each replica hands to the all-reduce in a step; 0 where it is alone."""
    if strategy.num_replicas_in_sync == 1:
        return 0
    numbers: int = sum(math.prod(variable.shape) for variable in variables.values())
    return numbers * int(tf.as_dtype(dtype).size)


def label_ranks(scores: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Rank of each row's own label by scores [b, c], 0 = largest: `evaluation.metrics.label_ranks` in a graph.

    Among equal scores the lower class comes first, as in np.argmax; a NaN comes last and is never right.
    """
    own = tf.gather(scores, labels, batch_dims=1)[:, None]
    not_lower_class = tf.range(scores.shape[-1], dtype=labels.dtype) >= labels[:, None]
    later = (scores < own) | ((scores == own) & not_lower_class)
    return tf.reduce_sum(tf.cast(~later, tf.int32), -1)


def create_eval_step(strategy: tf.distribute.Strategy, forward: Forward, jit: bool) -> EvalStep:
    """A tf.function that sums EVAL_SUMS of one distributed batch over all replicas, and answers each row."""

    def score(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        logits, targets = forward(batch)
        weight = batch["weight"]
        rank = label_ranks(logits, tf.argmax(targets, -1))
        losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
        scores = (losses, tf.cast(rank < 1, tf.float32), tf.cast(rank < 5, tf.float32), tf.ones_like(weight))
        sums = tf.stack([tf.reduce_sum(score * weight) for score in scores])
        predicted = tf.cast(tf.argmax(logits, -1), tf.float32)
        return sums, tf.stack([predicted, tf.reduce_max(tf.nn.softmax(logits), -1)], -1)

    score = tf.function(score, jit_compile=jit, autograph=False)

    def replica_score(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        sums, answers = score(batch)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums), answers

    @tf.function(autograph=False)
    def eval_step(batch: Batch) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        sums, answers = strategy.run(replica_score, (batch,))
        return strategy.experimental_local_results(sums)[0], strategy.experimental_local_results(answers)

    step: EvalStep = eval_step
    return step


def swap(strategy: tf.distribute.Strategy, first: Mapping[str, tf.Variable], second: Mapping[str, tf.Variable]) -> None:
    """Exchange the values of two sets of variables of the same names; calling it again undoes it exactly."""

    def exchange(a: tf.Variable, b: tf.Variable) -> None:
        value = tf.identity(a)
        a.assign(b)
        b.assign(value)

    for path in first:
        strategy.extended.update(first[path], exchange, args=(second[path],))
