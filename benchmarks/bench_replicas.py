"""A process that trains on N replicas whenever it is told to; N logical CPUs, or the first N GPUs.

    python -m shardline.benchmarks.bench_replicas JSON      # the fields of trainer_rungs.StepModel

One process a count: TensorFlow splits its devices once. Driven by `measure.WorkerProcess`.
"""

from __future__ import annotations

import json
import sys

from shardline.benchmarks.measure import serve
from shardline.benchmarks.step_stages import StepModel, Trainer
from shardline.pipeline.config import InputConfig


def main() -> None:
    """Build, say so, serve."""
    fields = json.loads(sys.argv[1])
    serve(Trainer(StepModel(**fields | {"input": InputConfig(**fields["input"])})).step)


if __name__ == "__main__":
    main()
