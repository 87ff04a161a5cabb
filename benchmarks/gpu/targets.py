"""GPUs to compile for, as XLA describes devices: the numbers its code generation depends on.

H100 and A100: as openxla/xla describes them in xla/backends/gpu/target_config/specs. L4, which is not there: NVIDIA's
data sheet (58 multiprocessors, 300 GB/s, 24 GB, 48 MB of L2, boost 2.04 GHz) and the CUDA C++ Programming Guide's table
of compute capability 8.9.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One device. Sizes in bytes; `optin` is what a block may ask for beyond the usual 48 KiB."""

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    float32_units: int  # of a multiprocessor
    max_threads: int  # of a multiprocessor
    shared_memory: int  # of a multiprocessor
    shared_memory_optin: int
    memory: int
    memory_bandwidth: int  # bytes a second
    l2_cache: int
    clock_ghz: float

    def target_config(self) -> str:
        """The text of XLA's GpuTargetConfigProto."""
        major, minor = self.compute_capability
        return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {self.multiprocessors}
  fpus_per_core: {self.float32_units}
  clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {self.memory}
  memory_bandwidth: {self.memory_bandwidth}
  l2_cache_size: {self.l2_cache}
  shared_memory_per_core: {self.shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {self.shared_memory_optin}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: {self.max_threads}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{self.name}"
"""


GPUS = {
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3", (9, 0), multiprocessors=132, float32_units=128, max_threads=2048,
        shared_memory=233472, shared_memory_optin=232448, memory=84_942_979_072,
        memory_bandwidth=3_352_320_000_000, l2_cache=52_428_800, clock_ghz=1.98,
    ),
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB", (8, 0), multiprocessors=108, float32_units=64, max_threads=2048,
        shared_memory=167936, shared_memory_optin=166912, memory=85_100_068_864,
        memory_bandwidth=2_039_040_000_000, l2_cache=41_943_040, clock_ghz=1.41,
    ),
    "l4": Gpu(
        "NVIDIA L4", (8, 9), multiprocessors=58, float32_units=128, max_threads=1536,
        shared_memory=102400, shared_memory_optin=101376, memory=24_152_899_584,
        memory_bandwidth=300_096_000_000, l2_cache=50_331_648, clock_ghz=2.04,
    ),
}  # fmt: skip
