"""Reads modules that XLA has optimized for a GPU: which operations are left, and which libraries do the rest.

No TensorFlow, no jax: text in, facts out.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?\S+ = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\(")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_LAYOUT = re.compile(r"dim_labels=(\S+?)[,\s]")
_FLOATS = ("f64", "f32", "f16", "bf16")
NHWC = "b01f_o01i->b01f"  # images, kernels, images


@dataclass(frozen=True)
class Convolution:
    """One cuDNN call."""

    target: str
    dtype: str  # of the result, as HLO names it, e.g. bf16
    layout: str  # as dim_labels: input_kernel->output


@dataclass(frozen=True)
class Summary:
    """What a module is made of, the bodies of its fusions and loops included.

    Attributes:
      operations: how often each opcode occurs; `float scatter` and `integer scatter` by what they add up.
      custom_calls: how often each library function is called.
      convolutions: the cuDNN calls.
    """

    operations: Counter[str]
    custom_calls: Counter[str]
    convolutions: tuple[Convolution, ...]

    @property
    def sorts(self) -> int:
        """Sorts, by XLA's own kernels or by a library."""
        return self.operations["sort"] + sum(
            count for target, count in self.custom_calls.items() if "sort" in target.lower() or "topk" in target.lower()
        )


def summarize(text: str) -> Summary:
    """The facts of one module."""
    operations: Counter[str] = Counter()
    custom_calls: Counter[str] = Counter()
    convolutions = []
    for line in text.splitlines():
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        dtype, opcode = found[1].lstrip("(").split("[")[0], found[2]
        if opcode == "scatter":
            opcode = "float scatter" if dtype in _FLOATS else "integer scatter"
        operations[opcode] += 1
        if opcode == "custom-call" and (target := _TARGET.search(line)):
            custom_calls[target[1]] += 1
            if target[1].startswith("__cudnn$conv"):
                layout = _LAYOUT.search(line)
                convolutions.append(Convolution(target[1], dtype, layout[1] if layout else ""))
    return Summary(operations, custom_calls, tuple(convolutions))


def faults(summary: Summary, *, dtype: str, loops: bool = False) -> list[str]:
    """What a program of ours must not hold on a GPU, in words; empty when it is as it should be.

    Args:
      dtype: what convolutions compute in, as HLO names it.
      loops: whether the program is meant to loop (micro-batches).
    """
    found = []
    if summary.sorts:
        found.append(f"{summary.sorts} sorts")
    for opcode in ("float scatter", "select-and-scatter", "convolution", *(() if loops else ("while",))):
        if count := summary.operations[opcode]:
            found.append(f"{count} × {opcode}" + (" outside cuDNN" if opcode == "convolution" else ""))
    # In float32, XLA prefers NCHW before Hopper, and turns images around once to get it.
    if odd := sum(convolution.layout != NHWC for convolution in summary.convolutions if dtype != "f32"):
        found.append(f"{odd} convolutions not in NHWC")
    if odd := sum(convolution.dtype != dtype for convolution in summary.convolutions):
        found.append(f"{odd} convolutions not in {dtype}")
    return found
