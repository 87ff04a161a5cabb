"""Trackers that a run reports to where `--track` names them: TensorBoard, MLflow, Weights & Biases. No TensorFlow.

Each is a callback of the run. What one raises, as of a full disk or a server that is gone, is said in a line and ends
that tracker, never the run. A run that continues after a kill continues in the trackers: RUN/tracking.json keeps its
name there, and its place, by which a copy of the directory is told from it: a copy begins a new run in the trackers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import socket
import sys
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from shardline.pipeline import stored
from shardline.pipeline.cli import log
from shardline.pipeline.errors import UsageError
from shardline.pipeline.run_input import CONFIG_FILE, RUN_FORMAT
from shardline.pipeline.tfrecord import frame_record
from shardline.pipeline.wording import as_flag
from shardline.trainer.callbacks import Callback, Report, Start
from shardline.trainer.config import RUNTIME_FIELDS, TrainConfig
from shardline.trainer.run_dir import BATCHES, MISTAKES, PLOTS, REPORT, TRACKING_FILE

if TYPE_CHECKING:
    from shardline.trainer.loop import StopRequest

PROJECT = "shardline"  # the experiment or project, unless the tracker's own environment variable names one


def check_trackers(config: TrainConfig) -> None:
    """Refuse, before TensorFlow loads, a tracker that is not installed."""
    for name in config.trackers:
        if not importlib.util.find_spec(name):
            raise UsageError(f"--track={name} needs {TRACKERS[name].product}: pip install 'shardline[{name}]'")


def create_trackers(config: TrainConfig, stop: StopRequest) -> list[Callback]:
    """Those that `--track` names, in its order; for the chief alone."""
    return [TRACKERS[name](config, stop) for name in config.trackers]


class Tracker(Callback):
    """What is common to all: images from RUN/plots, numbers of each report, and that a failure ends itself alone."""

    name: str
    product: str

    def __init__(self, config: TrainConfig, stop: StopRequest) -> None:
        """`stop` tells at the end why the run ended."""
        self.config, self.workdir, self._stop = config, Path(config.workdir).absolute(), stop
        self._begun = self._failed = False
        self._outer = sys.exception()  # what the caller of `train` is handling

    @abstractmethod
    def open(self, start: Start) -> str:
        """Begin or continue the run there; where it can be looked at."""

    @abstractmethod
    def send(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """The numbers of a report: `train`, or the name of the held-out split."""

    @abstractmethod
    def send_image(self, step: int, name: str, path: Path) -> None:
        """An image of RUN/plots."""

    @abstractmethod
    def close(self, outcome: str) -> None:
        """`finished`, `stopped` by a signal or a callback, or `failed`."""

    def begin(self, start: Start) -> None:
        """Begin or continue, and show the batches as the model sees them."""
        self._try(partial(self._begin, start))

    def report(self, report: Report) -> None:
        """Numbers; after an evaluation the mistakes as well."""
        if self._begun and report.metrics:
            self._try(partial(self._report, report))

    def end(self) -> None:
        """Close."""
        if self._begun:
            self._try(lambda: self.close(self._outcome()))

    def _begin(self, start: Start) -> None:
        where = self.open(start)
        self._begun = True
        log(f"{self.product}: {where}")
        self._image(start.step, "batches as seen", BATCHES)

    def _report(self, report: Report) -> None:
        kind = str(report.metrics["split"]) if report.kind == "eval" else "train"
        self.send(report.step, kind, {"epoch": report.epoch, **report.numbers})
        if report.kind == "eval":
            self._image(report.step, "mistakes", MISTAKES)

    def _image(self, step: int, name: str, file: str) -> None:
        path = self.workdir / PLOTS / file
        if path.is_file():  # synthetic batches have none
            self.send_image(step, name, path)

    def _outcome(self) -> str:
        if self._stop.failure or sys.exception() is not self._outer:
            return "failed"
        return "stopped" if self._stop.wanted else "finished"

    def _try(self, call: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # whatever a tracker or its network raises
            self._failed = True
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            log(f"warning: --track={self.name} failed ({text}); training goes on without it")


def settings(config: TrainConfig) -> dict[str, str | float | bool]:
    """What the run computes, as plain values for people; where it lies and how it is watched is left out."""
    used = {name: value for name, value in config.to_dict().items() if name not in RUNTIME_FIELDS}
    return {
        name: "auto" if value is None else value if isinstance(value, str | int | float) else as_flag(value)
        for name, value in used.items()
    }  # fmt: skip


# ------------------------------------------------------------------------------------- what continues


@dataclass(frozen=True)
class Names:
    """What a run is called in the trackers, the content of RUN/tracking.json; "" where it never was there."""

    mlflow_store: str = ""  # tracking URI
    mlflow_run: str = ""
    wandb_run: str = ""
    workdir: str = ""  # where the run lies; "" in a file of before this was kept

    @property
    def runs(self) -> set[str]:
        """The run in each tracker that has one."""
        return {self.mlflow_run, self.wandb_run} - {""}


def own_names(workdir: Path) -> Names:
    """Those of the run so far; in a copy of a run directory that is still there no runs, and a line that says so.

    Raises:
      UsageError: the file is damaged.
    """
    names = read_names(workdir)
    if names.workdir == str(workdir) or not names.runs:
        return names
    original = Path(names.workdir)
    elsewhere = names.workdir and original.exists() and not original.samefile(workdir)
    if elsewhere and read_names(original).runs & names.runs:
        log(f"note: --workdir={workdir} is a copy of {original}: it begins a new run in the trackers")
        names = Names(mlflow_store=names.mlflow_store)
    write_names(workdir, names)  # with its place
    return names


def read_names(workdir: Path) -> Names:
    """What the file in a run directory says. Raises UsageError for a damaged one."""
    path = workdir / TRACKING_FILE
    try:
        return stored.load(path, Names, format=RUN_FORMAT, remedy="delete it to begin new runs in the trackers")
    except FileNotFoundError:
        return Names()


def write_names(workdir: Path, names: Names) -> None:
    """Keep them for the calls that continue this run."""
    stored.save(workdir / TRACKING_FILE, asdict(replace(names, workdir=str(workdir))), format=RUN_FORMAT)


# ---------------------------------------------------------------------------------------- TensorBoard


class TensorBoard(Tracker):
    """Event files of its own kind in RUN/tensorboard: settings, and a folder of scalars and images for each split."""

    name, product = "tensorboard", "TensorBoard"

    def open(self, start: Start) -> str:
        """The settings of the run, for the tab HPARAMS."""
        from tensorboard.plugins.hparams import summary_v2 as hparams

        self._start, self._files = start, dict[str, BinaryIO]()
        values, split = settings(self.config), self.config.eval_split
        kinds = [] if split == "none" else [("validation" if split == "auto" else split, n) for n in ("loss", "top1")]
        found = [hparams.Metric(name, group=kind) for kind, name in kinds]
        self._write("", 0, hparams.hparams_config_pb([hparams.HParam(name) for name in values], found))
        self._write("", 0, hparams.hparams_pb(values, trial_id=self.workdir.name))
        return f"tensorboard --logdir {self.config.workdir}"

    def send(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """Scalars of the same names in each folder, so that their curves share a chart."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._write(kind, step, Summary(value=values))

    def send_image(self, step: int, name: str, path: Path) -> None:
        """As the file is."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as opened:
            width, height = opened.size
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes())
        self._write("train", step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def close(self, outcome: str) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _write(self, kind: str, step: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        events = [Event(step=step, summary=summary)]
        if kind not in self._files:
            folder = self.workdir / "tensorboard" / kind
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads files in the order of their names: also of a clock that was set back since.
            stamps = [re.match(r"events\.out\.tfevents\.(\d+\.\d+)\.", path.name) for path in folder.iterdir()]
            stamp = max(time.time(), *(float(found[1]) + 1e-3 for found in stamps if found), 0.0)
            name = f"events.out.tfevents.{stamp:.6f}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
            self._files[kind] = (folder / name).open("xb")
            # The steps after this one are made again: TensorBoard forgets what an earlier file told of them.
            restart = Event(step=self._start.step + 1, session_log=SessionLog(status=SessionLog.START))
            events = [Event(file_version="brain.Event:2"), *([restart] if self._start.step else []), *events]
        try:
            for event in events:
                event.wall_time = time.time()
                self._files[kind].write(frame_record(event.SerializeToString()))
            self._files[kind].flush()
        except OSError:
            with contextlib.suppress(OSError):  # else Python 3.13 says the same again when the file is forgotten
                self._files[kind].close()
            raise


# --------------------------------------------------------------------------------------------- MLflow


class MLflow(Tracker):
    """A run with parameters, metrics and report.html in MLFLOW_TRACKING_URI, else in ./mlruns."""

    name, product = "mlflow", "MLflow"

    def open(self, start: Start) -> str:
        """The run of before, where there was one."""
        defaults = {
            "MLFLOW_ALLOW_FILE_STORE": "true",  # MLflow 3 keeps its file store for those who say so
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds: training waits for a server that does not answer
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        }
        for name, value in defaults.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        names = own_names(self.workdir)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or names.mlflow_store or Path("mlruns").absolute().as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        self._run = names.mlflow_run if names.mlflow_store == uri and start.step else ""
        if self._run:
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._new_run()
            write_names(self.workdir, replace(names, mlflow_store=uri, mlflow_run=self._run))
        return f"run {self._run} in {uri}"

    def _new_run(self) -> str:
        experiment_name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(experiment_name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(experiment_name)
        tags = {"data": self.config.data, "workdir": str(self.workdir)}
        run: str = self._client.create_run(number, run_name=self.workdir.name, tags=tags).info.run_id
        for name, value in settings(self.config).items():
            self._client.log_param(run, name, value)
        return run

    def send(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """All in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(f"{kind}/{name}", n, now, step) for name, n in numbers.items()])

    def send_image(self, step: int, name: str, path: Path) -> None:
        """The newest, as an artifact."""
        self._client.log_artifact(self._run, str(path), "plots")

    def close(self, outcome: str) -> None:
        """With the page of the run and its settings."""
        for name in (REPORT, CONFIG_FILE):
            if (self.workdir / name).is_file():
                self._client.log_artifact(self._run, str(self.workdir / name))
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[outcome]
        self._client.set_terminated(self._run, status)


# ---------------------------------------------------------------------------------- Weights & Biases


class WeightsAndBiases(Tracker):
    """A run in RUN/wandb, or online where the machine is logged in; WANDB_MODE and WANDB_PROJECT as W&B has them."""

    name, product = "wandb", "Weights & Biases"

    def open(self, start: Start) -> str:
        """The run of before, where there was one, by its id."""
        for name, value in {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}.items():
            os.environ.setdefault(name, value)
        import wandb

        names = own_names(self.workdir)
        own = names.wandb_run if start.step else ""
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=own or uuid.uuid4().hex[:8],
            name=self.workdir.name,
            resume="allow",
            dir=str(self.workdir),
            mode=mode,
            settings=wandb.Settings(console="off"),
        )
        self._run.config.update(settings(self.config), allow_val_change=True)
        if not own:
            write_names(self.workdir, replace(names, wandb_run=self._run.id))
        folder = Path(self._run.dir).parent
        return self._run.url or f"run {self._run.id}, offline; wandb sync {folder} uploads it"

    def send(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """W&B leaves out what it has of this step already, as after a kill: the same steps give the same numbers."""
        self._run.log({f"{kind}/{name}": number for name, number in numbers.items()}, step=step)

    def send_image(self, step: int, name: str, path: Path) -> None:
        """With the numbers of its step."""
        import wandb

        self._run.log({name: wandb.Image(str(path))}, step=step)

    def close(self, outcome: str) -> None:
        """Wait until all is written."""
        self._run.finish(exit_code=int(outcome == "failed"))


def _logged_in() -> bool:
    """Whether W&B has a key and its server answers."""
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except wandb.errors.Error:
        return False


TRACKERS: dict[str, type[TensorBoard | MLflow | WeightsAndBiases]] = {
    kind.name: kind for kind in (TensorBoard, MLflow, WeightsAndBiases)
}
