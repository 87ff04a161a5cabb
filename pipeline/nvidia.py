"""NVIDIA cards of this machine, as their driver tells: their names, what they can do, whether TensorFlow can use them.

No TensorFlow. Its wheels hold machine code of all kernels for compute capability 6.0 to 8.9. For 9.0 they hold that of
the kernels written in CUDA; those of element-wise operations (Cast, AddV2, Mul, Equal, …), which MLIR has made, are PTX
8.5 there: the driver compiles it when it is first used, and so must know CUDA 12.5 (tests/pipeline/test_nvidia.py).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from shardline.pipeline.errors import UsageError
from shardline.pipeline.wording import count

_QUERY = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
_QUERY_SECONDS = 30.0  # without its daemon, the driver starts anew for each question
_DEVICE_FILES = "nvidia[0-9]*"
# Runs what is built for any CUDA 12: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
LEAST_DRIVER = 525
LEAST_DRIVER_FOR_PTX = 555  # knows the PTX of CUDA 12.5
NEWEST_CAPABILITY = (9, 0)  # that the XLA in TensorFlow 2.21 generates code for


@dataclass(frozen=True)
class Nominal:
    """What NVIDIA's data sheets promise of a kind of card.

    Attributes:
      half_tflops: dense, in bfloat16 or float16 with float32 sums.
      single_tflops: dense, in TF32, which TensorFlow takes for float32; in float32 where there is none.
      gbps: to another card of the same box, one way: NVLink where it has it, else PCIe; Gbit/s.
    """

    half_tflops: float
    single_tflops: float
    gbps: float


# By words of the driver's name: the first that are all in it count.
NOMINAL = {
    ("H100", "PCIe"): Nominal(756, 378, 512),
    ("H100", "NVL"): Nominal(835, 417, 2400),
    ("H200", "NVL"): Nominal(835, 417, 3600),
    ("H100",): Nominal(989, 494, 3600),
    ("H200",): Nominal(989, 494, 3600),
    ("GH200",): Nominal(989, 494, 3600),
    ("A100", "PCI"): Nominal(312, 156, 256),
    ("A100",): Nominal(312, 156, 2400),
    ("A10G",): Nominal(70, 35, 256),
    ("A10",): Nominal(125, 62.5, 256),
    ("A30",): Nominal(165, 82, 256),
    ("A40",): Nominal(150, 75, 256),
    ("L40S",): Nominal(362, 183, 256),
    ("L40",): Nominal(181, 90.5, 256),
    ("L4",): Nominal(121, 60, 256),
    ("V100", "PCI"): Nominal(112, 14, 128),
    ("V100",): Nominal(125, 15.7, 1200),
    ("T4",): Nominal(65, 8.1, 128),
}


@dataclass(frozen=True)
class Card:
    """One card. What the driver does not tell is empty."""

    name: str = ""
    driver: str = ""
    compute_capability: str = ""

    @property
    def capability(self) -> tuple[int, int]:
        """As numbers; (0, 0) where it is not known."""
        major, _, minor = self.compute_capability.partition(".")
        return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)

    @property
    def driver_major(self) -> int:
        """First number of the driver's version; 0 where it is not known."""
        major = self.driver.partition(".")[0]
        return int(major) if major.isdigit() else 0

    @property
    def nominal(self) -> Nominal | None:
        """What its data sheet promises; None for a kind that is not in our table."""
        words = self.name.replace("-", " ").split()
        fits = (nominal for kind, nominal in NOMINAL.items() if all(_has(words, word) for word in kind))
        return next(fits, None)

    def __str__(self) -> str:
        capability = f", compute capability {self.compute_capability}" if self.compute_capability else ""
        driver = f", driver {self.driver}" if self.driver else ""
        return (self.name or "unknown") + capability + driver


def _has(words: Sequence[str], wanted: str) -> bool:
    """Whether a name has a word, e.g. PCIE for PCI; L4 is not L40."""
    return any(word == wanted or (wanted.startswith("PCI") and word.upper().startswith("PCI")) for word in words)


@cache
def cards(device_folder: str = "/dev") -> tuple[Card, ...]:
    """The cards of this machine; those whose driver does not answer without their facts. Asked once a process."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True).stdout
        return tuple(Card(*(cell.strip() for cell in line.split(","))) for line in answer.splitlines() if line.strip())
    return tuple(Card() for _ in Path(device_folder).glob(_DEVICE_FILES))


def hidden(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the user has hidden all cards from CUDA."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in ("", "-1", "NoDevFiles")


def refuse_unused(found: Sequence[Card], build: Mapping[str, object], gpus: int) -> None:
    """Refuse to work on the CPU where there are cards: a run of days would be one of months.

    Args:
      build: `tf.sysconfig.get_build_info()`.
      gpus: how many TensorFlow sees.

    Raises:
      UsageError: it sees none, and nobody has hidden them.
    """
    if gpus or not found or hidden():
        return
    if not build.get("is_cuda_build"):
        why = "this TensorFlow is built without CUDA; install one for it (for aarch64 there is none on PyPI)"
    elif 0 < found[0].driver_major < LEAST_DRIVER:
        why = f"driver {found[0].driver} is older than {LEAST_DRIVER}; install a newer one"
    else:
        why = (
            "CUDA's libraries are missing or do not fit; pip install 'shardline[gpu]', or start with "
            "TF_CPP_MIN_LOG_LEVEL=0 to see which"
        )
    raise UsageError(
        f"this machine has {count(len(found), 'NVIDIA GPU')} ({found[0]}), and TensorFlow sees none: {why}. To use "
        "the CPU nevertheless: --device=cpu for training, CUDA_VISIBLE_DEVICES=-1 for all else"
    )


def description(found: Sequence[Card], build: Mapping[str, object]) -> str:
    """The cards and what this TensorFlow was built for, in one line; "" without cards."""
    if not found:
        return ""
    kinds = ", ".join(f"{found.count(card)} × {card}" for card in dict.fromkeys(found))
    cuda = (
        f"CUDA {build['cuda_version']}, cuDNN {build.get('cudnn_version')}" if build.get("is_cuda_build") else "no GPU"
    )
    return f"{kinds}; TensorFlow {metadata.version('tensorflow')} for {cuda}"


def warnings(found: Sequence[Card]) -> list[str]:
    """What will not work, or not well, on these cards with this TensorFlow; a line each, with the remedy."""
    lines = []
    for card in dict.fromkeys(found):
        if card.capability > NEWEST_CAPABILITY:
            newest = ".".join(map(str, NEWEST_CAPABILITY))
            lines.append(
                f"{card}: the XLA of TensorFlow 2.21 makes code up to compute capability {newest} and refuses newer "
                "GPUs (tensorflow#111958): take an H100, H200, A100 or L4, or NVIDIA's own container of TensorFlow"
            )
        elif card.capability == NEWEST_CAPABILITY and 0 < card.driver_major < LEAST_DRIVER_FOR_PTX:
            lines.append(
                f"{card}: TensorFlow's element-wise kernels (Cast, AddV2, Mul, …) are PTX of CUDA 12.5 for this GPU, "
                f"which this driver cannot compile: install driver {LEAST_DRIVER_FOR_PTX} or newer"
            )
    return lines
