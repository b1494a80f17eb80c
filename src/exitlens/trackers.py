"""Callbacks of ``fit`` for MLflow, Weights & Biases and TensorBoard (docs/guides/trackers.md)."""

from __future__ import annotations

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
from exitlens.model.network import ExitNet
from exitlens.types import Policy
from exitlens.workflow.explanation import explain_batch
from exitlens.workflow.training.callbacks import Row, TrainingCallback, TrainingEnd, TrainingStart

__all__ = ["MLflowTracker", "TensorBoardTracker", "TrainingCallback", "TrainingEnd", "TrainingStart", "WandbTracker"]
MAPS = "attention"  # name of the picture of all exits' maps
PATTERNS = ("loss_*", "val_loss", "accuracy_*", "f1_*", "cc_*", "seconds")  # names of all metrics but the epoch


def list_parameters(start: TrainingStart) -> dict[str, Any]:
    """Return what decides the weights by the names that ``settings.json`` has: ``settings.epochs``, ``loss.weight``, ..."""
    info = start.net.info
    network = {"source": info.source, "at": ",".join(info.at), "head": info.head, "final": info.final, "task": info.task}
    parts = {"settings": asdict(start.settings), "loss": asdict(start.loss), "network": network}
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


class _Note:
    """The identifier of a tracker's run, kept in the directory of the training run once there is an epoch to go on from."""

    def __init__(self, start: TrainingStart, file: str) -> None:
        self.path = start.out_dir and start.out_dir / file
        self.known = self.path.read_text().strip() if start.history and self.path and self.path.is_file() else None

    def write(self, identifier: str) -> None:
        if self.path and identifier != self.known:
            write_text(self.path, f"{identifier}\n")
            self.known = identifier


def _check_examples(examples: Tensor | None, net: ExitNet) -> None:
    if examples is None:
        return
    if net.input_spec.modality.name != "image":
        raise InputError(f"examples: maps are drawn over images, this network takes {net.input_spec.modality.plural}")
    require_maps(net.heads, "a tracker with examples=")
    net.check_input(examples.to(net.device), "examples")


def _draw_maps(net: ExitNet, examples: Tensor) -> Image.Image:
    """Draw a row for each image: the image, and every exit's attention over it."""
    whys = explain_batch(net, examples.to(net.device), Policy.never(net.num_exits))
    return draw_contact_sheet({"": whys})


class MLflowTracker(TrainingCallback):
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

    run_id = ""

    def __init__(self, *, examples: Tensor | None = None, bundle: bool = True, **options: Any) -> None:
        self._mlflow = import_extra("mlflow", "mlflow", "MLflowTracker")
        self.examples, self.bundle, self.options = examples, bundle, options

    def on_start(self, start: TrainingStart) -> None:
        """Open the run, and log the parameters and the epochs that it lacks."""
        _check_examples(self.examples, start.net)
        mlflow, self._note = self._mlflow, _Note(start, "mlflow_run.txt")
        active = mlflow.active_run()
        self._is_ours = active is None
        if active is None:
            known = self._note.known
            active = mlflow.start_run(run_id=known) if known and self._exists(known) else mlflow.start_run(**self.options)
        self.run_id = active.info.run_id
        given = mlflow.get_run(self.run_id).data.params if start.history else {}  # which MLflow never changes
        mlflow.log_params({name: value for name, value in list_parameters(start).items() if name not in given})
        epochs = mlflow.MlflowClient().get_metric_history(self.run_id, "val_loss") if start.history else ()
        logged = {metric.step for metric in epochs}
        for row in start.history:
            if row["epoch"] not in logged:
                self.on_epoch(row)

    def on_epoch(self, row: Row) -> None:
        """Log the metrics of an epoch."""
        metrics = {name: value for name, value in row.items() if name != "epoch"}
        self._mlflow.log_metrics(metrics, step=int(row["epoch"]), run_id=self.run_id)
        self._note.write(self.run_id)

    def on_end(self, end: TrainingEnd) -> None:
        """Log maps and bundle of a training that finished, and end the run if it was started here."""
        mlflow, status = self._mlflow, "KILLED" if end.status == "interrupted" else "FAILED"
        try:
            if end.status == "finished":
                mlflow.log_metric("kept_epoch", end.metrics["epoch"], run_id=self.run_id)
                if self.examples is not None:
                    mlflow.MlflowClient().log_image(self.run_id, _draw_maps(end.net, self.examples), f"{MAPS}.png")
                if self.bundle:
                    with TemporaryDirectory() as folder:
                        path = save(end.net, None, Path(folder, "bundle"))
                        mlflow.log_artifacts(str(path), path.name, run_id=self.run_id)
                status = "FINISHED"
        finally:
            if self._is_ours:
                mlflow.end_run(status)

    def _exists(self, run_id: str) -> bool:
        try:
            self._mlflow.get_run(run_id)
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True


class WandbTracker(TrainingCallback):
    """Logs to Weights & Biases (extra ``wandb``): parameters, the metrics of every epoch, and at the end the bundle.

    It logs to the active run, which stays open, or starts a run and finishes it. A training that is resumed goes on with
    the run that ``out_dir/wandb_run.txt`` names. Offline, each call writes a directory that has all epochs so far.

    Args:
        examples: images ``(B,C,H,W)`` as the network takes them, whose maps are drawn at the end.
        bundle: log the bundle as well, as an artifact of type ``model``, which :func:`exitlens.load` reads once downloaded.
        options: arguments of ``wandb.init``, such as ``project`` and ``mode="offline"``.
    """

    def __init__(self, *, examples: Tensor | None = None, bundle: bool = True, **options: Any) -> None:
        self._wandb = import_extra("wandb", "wandb", "WandbTracker")
        self.examples, self.bundle, self.options = examples, bundle, options

    def on_start(self, start: TrainingStart) -> None:
        """Open the run, and log the parameters and the epochs that it lacks."""
        _check_examples(self.examples, start.net)
        self._note, active = _Note(start, "wandb_run.txt"), self._wandb.run
        self._is_ours = active is None
        if active is None:
            again = {"id": self._note.known, "resume": "allow"} if self._note.known else {}
            active = self._wandb.init(**self.options | again)
        self._run = active
        self._run.config.update(list_parameters(start), allow_val_change=True)
        for pattern in PATTERNS:
            self._run.define_metric(pattern, step_metric="epoch")
        last = self._run.summary.get("epoch", 0) if start.history else 0
        for row in start.history:
            if row["epoch"] > last:
                self.on_epoch(row)

    def on_epoch(self, row: Row) -> None:
        """Log the metrics of an epoch."""
        self._run.log(dict(row))
        self._note.write(self._run.id)

    def on_end(self, end: TrainingEnd) -> None:
        """Log maps and bundle of a training that finished, and finish the run if it was started here."""
        wandb, run, code = self._wandb, self._run, 255 if end.status == "interrupted" else 1  # 255: "killed"
        try:
            if end.status == "finished":
                run.summary["kept_epoch"] = end.metrics["epoch"]
                if self.examples is not None:
                    run.log({MAPS: wandb.Image(_draw_maps(end.net, self.examples))})
                if self.bundle:
                    artifact = wandb.Artifact(f"exitlens-{run.id}", "model")
                    with TemporaryDirectory() as folder:
                        artifact.add_dir(str(save(end.net, None, Path(folder, "bundle"))))  # which copies
                    run.log_artifact(artifact)
                code = 0
        finally:
            if self._is_ours:
                run.finish(code)


class TensorBoardTracker(TrainingCallback):
    """Writes TensorBoard events (extra ``log``): parameters and the metrics of every epoch.

    A training that is resumed writes all epochs anew, and TensorBoard hides the earlier ones.

    Args:
        directory: where the events go; by default the ``out_dir`` of the training.
        examples: images ``(B,C,H,W)`` as the network takes them, whose maps are drawn at the end.
    """

    def __init__(self, directory: str | Path | None = None, *, examples: Tensor | None = None) -> None:
        self._tensorboard = import_extra("torch.utils.tensorboard", "log", "TensorBoardTracker")
        self.directory, self.examples = directory, examples

    def on_start(self, start: TrainingStart) -> None:
        """Choose the directory; nothing is written before the first epoch."""
        _check_examples(self.examples, start.net)
        directory = self.directory or start.out_dir
        if directory is None:
            raise InputError("directory: there is no out_dir to write events to. Fix: TensorBoardTracker(directory=...).")
        self._start, self._folder = start, str(directory)
        self._writer: Any = None

    def on_epoch(self, row: Row) -> None:
        """Write the metrics of an epoch."""
        if self._writer is None:
            history, values = self._start.history, list_parameters(self._start)
            self._writer = self._tensorboard.SummaryWriter(self._folder, purge_step=0 if history else None)
            self._writer.add_text("parameters", "\n".join(f"    {name}: {value}" for name, value in values.items()))
            for earlier in history:
                self.on_epoch(earlier)
        for name, value in row.items():
            self._writer.add_scalar(name, value, row["epoch"])

    def on_end(self, end: TrainingEnd) -> None:
        """Draw the maps of a training that finished, and close the file."""
        if self._writer is None:
            return
        if self.examples is not None and end.status == "finished":
            picture = _draw_maps(end.net, self.examples)
            self._writer.add_image(MAPS, np.asarray(picture), int(end.metrics["epoch"]), dataformats="HWC")
        self._writer.close()
