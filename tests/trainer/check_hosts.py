"""Run by test_processes.py as a process for each host: trains to a step, keeps which records each step saw. JSON."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from shardline.trainer.actions import StepMonitor
from shardline.trainer.callbacks import Callback
from shardline.trainer.config import TrainConfig
from shardline.trainer.train import train

SETTINGS, STOP_AT, RECORDS = json.loads(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])


class StopAt(Callback):
    """Ends the run at a step, or a call later where there are several hosts."""

    def report(self, report):
        return report.step >= STOP_AT


def kept(self, record, genuine=StepMonitor.after_step):
    with RECORDS.open("a") as file:
        file.write(json.dumps([record.step, record.samples()[0].tolist()]) + "\n")
    genuine(self, record)


StepMonitor.after_step = kept
print(json.dumps(train(TrainConfig(**SETTINGS), callbacks=[StopAt()])))
