"""The programs that the trainer has XLA compile, traced on a CPU and handed out as HLO, before any optimization.

They are taken from the graphs that training, evaluation and prediction run, so they are what these run on a GPU.
TensorFlow lowers them as for a CPU: it has no device here that it could lower variables for.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import keras
import tensorflow as tf
from tensorflow.python.eager import context

from shardline.benchmarks.gpu.kernels import host_arguments, operations_without_kernel
from shardline.trainer.config import PARTS, PRECISIONS, TrainConfig
from shardline.trainer.evaluation.inference import DistributedModel
from shardline.trainer.feature_cache import create_feature_function
from shardline.trainer.run import prepare
from shardline.trainer.setup import TrainSetup, eval_forward, initial_network
from shardline.trainer.state import create_train_state
from shardline.trainer.step import create_eval_step

ConcreteFunction: TypeAlias = tf.types.experimental.ConcreteFunction
DTYPES = {"mixed_bfloat16": "bf16", "mixed_float16": "f16", "float32": "f32"}  # HLO's names
BATCHES = (32, 128, 256)
HEADS = ("gap", "flatten256", "fc4096")  # hypercolumn is gap's program with four more means
AUGMENTATION: dict[str, Any] = {
    "randaugment_layers": 2,
    "hue": 0.1,
    "random_erasing": 0.25,
    "mixup": 0.2,
    "cutmix": 1.0,
}


@dataclass(frozen=True)
class Program:
    """One program at 224 pixels and 1,000 classes.

    Attributes:
      kind: step, evaluation, inference or features (the filling of --cache_features).
      part: what trains, for a step.
      batch: of one device.
      augmented: whether everything is switched on that augmentation can do, or only crop and flip.
    """

    kind: str = "step"
    part: str = "all"
    head: str = "gap"
    precision: str = "mixed_bfloat16"
    batch: int = 128
    augmented: bool = False
    micro_batches: int = 1

    def __str__(self) -> str:
        words = [self.kind, self.part] if self.kind == "step" else [self.kind]
        words += [self.head, self.precision.removeprefix("mixed_"), str(self.batch)]
        if self.augmented:
            words.append("augmented")
        if self.micro_batches > 1:
            words.append(f"in {self.micro_batches} micro-batches")
        return " ".join(words)

    @property
    def dtype(self) -> str:
        """What convolutions compute in, as HLO names it."""
        return DTYPES[self.precision]

    @property
    def config(self) -> TrainConfig:
        """The run that has this program."""
        return TrainConfig(
            synthetic=True,
            strategy="one_device",
            augment_on="device",
            phases=f"{self.part}:1@1e-3",
            head=self.head,
            precision=self.precision,
            jit=True,
            global_batch_size=self.batch,
            micro_batches=self.micro_batches,
            **(AUGMENTATION if self.augmented else {}),
        )


USUAL = Program()
FEW = (replace(USUAL, batch=8, augmented=True), replace(USUAL, kind="evaluation", batch=8))


def usual_programs() -> list[Program]:
    """The usual step, and what differs from it in one respect."""
    return [
        USUAL,
        *(replace(USUAL, part=part) for part in PARTS if part != USUAL.part),
        *(replace(USUAL, head=head) for head in HEADS if head != USUAL.head),
        *(replace(USUAL, precision=precision) for precision in PRECISIONS if precision != USUAL.precision),
        *(replace(USUAL, batch=batch) for batch in BATCHES if batch != USUAL.batch),
        replace(USUAL, augmented=True),
        replace(USUAL, micro_batches=2),
        *(replace(USUAL, kind=kind) for kind in ("evaluation", "inference", "features")),
    ]


def all_programs() -> list[Program]:
    """Every step of every phase, head, precision and batch, augmented or not; and all that is no step."""
    bases = [
        Program(head=head, precision=precision, batch=batch)
        for head in HEADS
        for precision in PRECISIONS
        for batch in BATCHES
    ]
    steps = [replace(p, part=part, augmented=on) for p in bases for part in PARTS for on in (False, True)]
    others = [replace(p, kind=kind) for p in bases for kind in ("evaluation", "inference", "features")]
    return [*steps, replace(USUAL, micro_batches=2), *others]


SUITES = {"few": lambda: list(FEW), "usual": usual_programs, "all": all_programs}


@dataclass(frozen=True)
class Lowered:
    """A program as TensorFlow hands it out.

    Attributes:
      module: the serialized HloModuleProto that XLA compiles.
      without_kernel: types of operations outside it that no GPU could run.
      waits: arguments outside it that a GPU's host must know before the device goes on, as operation.argument.
    """

    module: bytes
    without_kernel: tuple[str, ...]
    waits: tuple[str, ...]


def lower(program: Program) -> Lowered:
    """Trace a program and take it apart."""
    graph = trace(program)
    (module,) = hlo_modules(graph)
    waits = [f"{name}.{argument}" for name, found in host_arguments(graph).items() for argument in found]
    lowered = Lowered(module, tuple(sorted(operations_without_kernel(graph))), tuple(sorted(waits)))
    del graph
    keras.backend.clear_session()
    gc.collect()  # a network and its slots are up to 1.6 GB
    return lowered


def trace(program: Program) -> ConcreteFunction:
    """The graph that runs the program."""
    setup = prepare(program.config)
    if program.kind == "step":
        return trace_step(setup)
    network = initial_network(setup)
    strategy, jit = setup.cluster.strategy, setup.config.uses_xla
    batch = setup.data.eval_batches("train", setup.input).element_spec
    if program.kind == "evaluation":
        return concrete(create_eval_step(strategy, eval_forward(setup, network), jit), batch)
    if program.kind == "inference":
        return concrete(DistributedModel(network.serve, setup.cluster, "none", jit).function, batch["image"])
    batch = setup.data.train_batches("train", setup.input).element_spec
    return concrete(create_feature_function(setup, network), batch)


def trace_step(setup: TrainSetup) -> ConcreteFunction:
    """The graph of one training step on one replica."""
    _, _, step = create_train_state(setup, setup.spans[0])
    number = tf.TensorSpec([], tf.float32)
    return concrete(step, setup.data.train_batches("train", setup.input).element_spec, number, number)


def concrete(function: Callable[..., object], *specs: object) -> ConcreteFunction:
    """The graph of a tf.function for arguments of these types and shapes."""
    return cast(tf.types.experimental.PolymorphicFunction, function).get_concrete_function(*specs)


def hlo_modules(graph: ConcreteFunction) -> Iterator[bytes]:
    """The parts of a ConcreteFunction that XLA compiles, as serialized HloModuleProtos."""
    captured = {inner.name: outer for outer, inner in graph.graph.captures}
    for call in graph.graph.get_operations():
        if not call.node_def.attr["_XlaMustCompile"].b:
            continue
        arguments = [tf.TensorSpec(x.shape, x.dtype) for x in call.inputs if x.dtype != tf.resource]
        yield context.context().get_compiler_ir(
            device_name="/job:localhost/replica:0/task:0/device:CPU:0",
            platform_name=None,
            function_name=call.node_def.attr["f"].func.name,
            flat_args=arguments,
            captured_inputs=[captured[x.name] for x in call.inputs if x.dtype == tf.resource],
            stage="hlo_serialized",
        )
