"""What a graph outside XLA needs of a GPU: a kernel for every operation, and no look at the host in between.

TensorFlow's wheel holds the registrations of its GPU kernels with or without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import tensorflow as tf
from tensorflow.core.framework.kernel_def_pb2 import KernelDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.framework.op_def_pb2 import OpDef
from tensorflow.python.framework import kernels

ConcreteFunction: TypeAlias = tf.types.experimental.ConcreteFunction
_ON_GPU = ("GPU", "DEFAULT")  # DEFAULT: registered for every device without a kernel of its own


def operations_without_kernel(graph: ConcreteFunction) -> set[str]:
    """Types of operations in a ConcreteFunction, and in what it calls, that no GPU could run.

    The bodies of functions that XLA compiles are left out: they need no kernels.
    """
    definition = graph.graph.as_graph_def()
    library = {function.signature.name: function for function in definition.library.function}
    waiting, missing, seen = [definition.node], set[str](), set[str]()
    while waiting:
        for node in waiting.pop():
            if not _gpu_kernels(node):
                missing.add(node.op)
            called = set() if node.attr["_XlaMustCompile"].b else set(_called(node)) & library.keys()
            waiting += [library[name].node_def for name in called - seen]
            seen |= called
    return missing


def host_arguments(graph: ConcreteFunction) -> dict[str, set[str]]:
    """By type of operation of a ConcreteFunction: the arguments for which its GPU kernel waits for the device.

    Such an argument must lie in the host's memory, but another operation computes it in the device's. What is called
    is left out.
    """
    found: dict[str, set[str]] = {}
    for operation in graph.graph.get_operations():
        names = _arguments(operation.op_def.input_arg, operation.node_def)
        for name, tensor in zip(names, operation.inputs, strict=True):
            if tensor.dtype == tf.resource or not _in_host_memory(operation.node_def, name):
                continue
            outputs = list(_arguments(tensor.op.op_def.output_arg, tensor.op.node_def))
            made_on_host = tensor.op.type in ("Const", "Placeholder") or _in_host_memory(
                tensor.op.node_def, outputs[tensor.value_index]
            )
            if not made_on_host:
                found.setdefault(operation.type, set()).add(name)
    return found


def _gpu_kernels(node: NodeDef) -> list[KernelDef]:
    """Registrations that fit a NodeDef's types."""

    def fits(kernel: KernelDef) -> bool:
        return kernel.device_type in _ON_GPU and all(
            node.attr[constraint.name].type in constraint.allowed_values.list.type
            for constraint in kernel.constraint
            if constraint.allowed_values.list.type and constraint.name in node.attr
        )

    return [kernel for kernel in kernels.get_registered_kernels_for_op(node.op).kernel if fits(kernel)]


def _in_host_memory(node: NodeDef, argument: str) -> bool:
    fitting = _gpu_kernels(node)
    own = [kernel for kernel in fitting if kernel.device_type == "GPU"] or fitting
    return any(argument in kernel.host_memory_arg for kernel in own)


def _called(node: NodeDef) -> Iterator[str]:
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)


def _arguments(definitions: Iterable[OpDef.ArgDef], node: NodeDef) -> Iterator[str]:
    """Name of each input or output of a NodeDef; that of a list of tensors once for each of them."""
    for argument in definitions:
        count = 1
        if argument.number_attr:
            count = node.attr[argument.number_attr].i
        elif argument.type_list_attr:
            count = len(node.attr[argument.type_list_attr].list.type)
        yield from [argument.name] * count
