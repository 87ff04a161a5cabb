"""Compiles HLO modules for GPUs that are not here, in a Python of its own: jax and TensorFlow disagree on versions.

requirements-xla.txt lists what it needs. It can say neither how fast a program is nor what autotuning would choose:
both need the device. The XLA in jaxlib is newer than TensorFlow's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from shardline.benchmarks.processes import Rate, timed

ENVIRONMENT = {"JAX_PLATFORMS": "cuda,cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
MEMORY = ("argument", "output", "alias", "temp")  # kinds of device memory that XLA accounts for


def compiler() -> Callable[[str, str, str], Rate]:
    """A function, for `processes.WorkerProcess`, of a file, a GPU and a folder.

    The file holds a serialized HloModuleProto, the GPU is the text of a GpuTargetConfigProto. Into the folder go
    `optimized.txt`, the compiled module, and `memory.json`, bytes by kind; or `error.txt`, why it does not compile.
    """
    import jaxlib.xla_client as xc  # none of these are in the product's own Python
    from jax._src.interpreters import mlir
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies
    from jaxlib import _hlo, _jax

    def compile_module(module: str, target: str, folder: str) -> Rate:
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="one GPU", target_config=target, topology="1x1x1"
        )
        device = topology.devices[0]
        # StableHLO, the only way in, has no copy; a reshape to the same shape means the same.
        text = _hlo.XlaComputation(Path(module).read_bytes()).as_hlo_text(True).replace(" copy(", " reshape(")
        proto = _hlo.hlo_module_from_text(text).as_serialized_hlo_module_proto()

        def work() -> float:
            with mlir.make_ir_context():
                stablehlo = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(proto))
                executable = device.client.compile(stablehlo, xc.DeviceList((device,)), xc.CompileOptions())
            Path(folder, "optimized.txt").write_text(executable.hlo_modules()[0].to_string())
            stats = executable.get_compiled_memory_stats()
            memory = {kind: getattr(stats, f"{kind}_size_in_bytes") for kind in MEMORY}
            Path(folder, "memory.json").write_text(json.dumps(memory))
            return 1

        try:
            return timed(work)
        except Exception as error:  # whatever XLA has against the module is the result
            Path(folder, "error.txt").write_text(str(error))
            return Rate(0.0)

    return compile_module
