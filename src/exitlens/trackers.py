"""Callbacks of ``fit`` for MLflow, Weights & Biases and TensorBoard (docs/guides/trackers.md)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from exitlens.delivery.bundle import save
from exitlens.delivery.pictures import draw_contact_sheet
from exitlens.errors import InputError, import_extra
from exitlens.io import write_text
from exitlens.model.heads import require_maps
from exitlens.types import Policy
from exitlens.types.tasks import USUAL_SCORES
from exitlens.workflow.explanation import explain_batch
from exitlens.workflow.training.callbacks import Row, Status, TrainingCallback, TrainingEnd, TrainingStart

__all__ = ["MLflowTracker", "TensorBoardTracker", "TrainingCallback", "TrainingEnd", "TrainingStart", "WandbTracker"]
MAPS = "attention"  # name of the picture of all exits' maps


def list_parameters(start: TrainingStart) -> dict[str, Any]:
    """Return what decides the weights by the names that ``settings.json`` has: ``settings.epochs``, ``loss.weight``, ..."""
    info = start.net.info
    network = {"source": info.source, "at": ",".join(info.at), "head": info.head, "final": info.final, "task": info.task}
    parts = {"settings": asdict(start.settings), "loss": asdict(start.loss), "network": network}
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


class _Tracker(TrainingCallback):
    """Opens a run, logs the epochs that it lacks and those that follow, and ends it; derived classes say how."""

    package, extra, file = "", "", ""  # what it needs, and what names the run in ``out_dir``, to go on with it
    run_id = ""
    _is_ours = True  # else it is the user's run, which stays open

    def __init__(self, *, examples: Tensor | None = None, bundle: bool = True, **options: Any) -> None:
        self._package = import_extra(self.package, self.extra, type(self).__name__)
        self.examples, self.bundle, self.options = examples, bundle, options

    def on_start(self, start: TrainingStart) -> None:
        """Open the run, and log the parameters and the epochs that it lacks."""
        net, note = start.net, start.out_dir / self.file if start.out_dir and self.file else None
        if self.examples is not None:
            if net.input_spec.modality.name != "image":
                raise InputError(
                    f"examples: maps are drawn over images, this network takes {net.input_spec.modality.plural}. "
                    "Fix: leave it out."
                )
            require_maps(net.heads, "a tracker with examples=")
            net.check_input(self.examples.to(net.device), "examples")
        last = self._open(start, note.read_text().strip() if start.history and note and note.is_file() else "")
        if note:
            write_text(note, f"{self.run_id}\n")
        for row in start.history:
            if row["epoch"] > last:
                self.on_epoch(row)

    def on_end(self, end: TrainingEnd) -> None:
        """Log maps and bundle of a training that finished, and end the run if it was started here."""
        status: Status = "failed"  # if an error comes in between
        try:
            if end.status == "finished":
                maps = None
                if self.examples is not None:  # a row for each image: the image, and every exit's attention over it
                    policy = Policy.never(end.net.num_exits, score=USUAL_SCORES[end.net.info.task])
                    maps = draw_contact_sheet({"": explain_batch(end.net, self.examples.to(end.net.device), policy)})
                with TemporaryDirectory() as folder:
                    bundle = save(end.net, None, Path(folder, "bundle")) if self.bundle else None
                    self._finish(int(end.metrics["epoch"]), maps, bundle)
            status = end.status
        finally:
            if self._is_ours:
                self._close(status)

    @abstractmethod
    def _open(self, start: TrainingStart, known: str) -> float:
        """Open the run, the known one if there is one, and log the parameters; return the last epoch that it has."""

    @abstractmethod
    def _finish(self, epoch: int, maps: Image.Image | None, bundle: Path | None) -> None:
        """Log the epoch whose weights are kept, the picture of the maps, and the bundle."""

    @abstractmethod
    def _close(self, status: Status) -> None:
        """End the run."""


class MLflowTracker(_Tracker):
    """Logs to MLflow (extra ``mlflow``): parameters, the metrics of every epoch, and at the end the bundle.

    It logs to the active run, which stays open, or starts a run and ends it. A training that is resumed goes on with the
    run that ``out_dir/mlflow_run.txt`` names; where that is unknown, a new one gets the earlier epochs, too.

    Args:
        examples: images ``(B,C,H,W)`` as the network takes them, whose maps are drawn at the end.
        bundle: log the bundle as well, as artifacts ``bundle``, which :func:`exitlens.load` reads once downloaded.
        options: arguments of ``mlflow.start_run`` for a new run, such as ``run_name``.

    Attributes:
        run_id: the run, from the start of training on.
    """

    package, extra, file = "mlflow", "mlflow", "mlflow_run.txt"

    def on_epoch(self, row: Row) -> None:
        """Log the metrics of an epoch."""
        self._package.log_metrics(dict(row), step=int(row["epoch"]), run_id=self.run_id)

    def _open(self, start: TrainingStart, known: str) -> float:
        mlflow = self._package
        active = mlflow.active_run()
        self._is_ours = active is None
        try:
            run = active or mlflow.start_run(**{"run_id": known} if known else self.options)
        except mlflow.MlflowException as error:
            if not known or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = mlflow.start_run(**self.options)
        self.run_id = run.info.run_id
        logged = mlflow.get_run(self.run_id).data
        given = logged.params if start.history else {}  # which MLflow never changes
        mlflow.log_params({name: value for name, value in list_parameters(start).items() if name not in given})
        return float(logged.metrics.get("epoch", 0))

    def _finish(self, epoch: int, maps: Image.Image | None, bundle: Path | None) -> None:
        self._package.log_metric("kept_epoch", epoch, run_id=self.run_id)
        if maps:
            self._package.MlflowClient().log_image(self.run_id, maps, f"{MAPS}.png")
        if bundle:
            self._package.log_artifacts(str(bundle), bundle.name, run_id=self.run_id)

    def _close(self, status: Status) -> None:
        self._package.end_run({"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}[status])


class WandbTracker(_Tracker):
    """Logs to Weights & Biases (extra ``wandb``): parameters, the metrics of every epoch, and at the end the bundle.

    It logs to the active run, which stays open, or starts a run and finishes it. A training that is resumed goes on with
    the run that ``out_dir/wandb_run.txt`` names. Offline, each call writes a directory that has all epochs so far.

    Args:
        examples: images ``(B,C,H,W)`` as the network takes them, whose maps are drawn at the end.
        bundle: log the bundle as well, as an artifact of type ``model``, which :func:`exitlens.load` reads once downloaded.
        options: arguments of ``wandb.init``, such as ``project`` and ``mode="offline"``.
    """

    package, extra, file = "wandb", "wandb", "wandb_run.txt"

    def on_epoch(self, row: Row) -> None:
        """Log the metrics of an epoch."""
        self._run.log(dict(row))

    def _open(self, start: TrainingStart, known: str) -> float:
        active, again = self._package.run, {"id": known, "resume": "allow"} if known else {}
        self._is_ours = active is None
        self._run = active or self._package.init(**self.options | again)
        self.run_id = self._run.id
        self._run.config.update(list_parameters(start), allow_val_change=True)
        self._run.define_metric("*", step_metric="epoch")
        return float(self._run.summary.get("epoch", 0))

    def _finish(self, epoch: int, maps: Image.Image | None, bundle: Path | None) -> None:
        self._run.summary["kept_epoch"] = epoch
        if maps:
            self._run.log({MAPS: self._package.Image(maps)})
        if bundle:
            artifact = self._package.Artifact(f"exitlens-{self.run_id}", "model")
            artifact.add_dir(str(bundle))  # which copies
            self._run.log_artifact(artifact)

    def _close(self, status: Status) -> None:
        self._run.finish({"finished": 0, "interrupted": 255, "failed": 1}[status])  # 255: "killed"


class TensorBoardTracker(_Tracker):
    """Writes TensorBoard events (extra ``log``): parameters and the metrics of every epoch.

    A training that is resumed writes all epochs anew, and TensorBoard hides the earlier ones.

    Args:
        directory: where the events go; by default the ``out_dir`` of the training.
        examples: images ``(B,C,H,W)`` as the network takes them, whose maps are drawn at the end.
    """

    package, extra = "torch.utils.tensorboard", "log"

    def __init__(self, directory: str | Path | None = None, *, examples: Tensor | None = None) -> None:
        super().__init__(examples=examples, bundle=False)
        self.directory = directory

    def on_epoch(self, row: Row) -> None:
        """Write the metrics of an epoch."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, row["epoch"])

    def _open(self, start: TrainingStart, known: str) -> float:
        directory = self.directory or start.out_dir
        if directory is None:
            raise InputError("directory: there is no out_dir to write events to. Fix: TensorBoardTracker(directory=...).")
        self._writer = self._package.SummaryWriter(str(directory), purge_step=0 if start.history else None)
        lines = (f"    {name}: {value}" for name, value in list_parameters(start).items())
        self._writer.add_text("parameters", "\n".join(lines))
        return 0

    def _finish(self, epoch: int, maps: Image.Image | None, bundle: Path | None) -> None:
        if maps:
            self._writer.add_image(MAPS, np.asarray(maps), epoch, dataformats="HWC")

    def _close(self, status: Status) -> None:
        self._writer.close()
