"""fit: joint training of backbone and exits (or of the heads alone), resumable to the bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exitlens.errors import InputError, require
from exitlens.functional.losses import EGTLoss
from exitlens.model._torch_compat import has_fast_bfloat16
from exitlens.model.network import ExitNet
from exitlens.ranks import Ranks, find_ranks
from exitlens.workflow.training.distributed import use_common_statistics
from exitlens.workflow.training.log import format_epoch, open_tensorboard, show_progress
from exitlens.workflow.training.run import Augment, TrainingRun
from exitlens.workflow.training.step import TrainingSettings, use_memory_format


@dataclass
class FitResult:
    """What :func:`fit` did.

    Attributes:
        history: one row an epoch: loss terms, validation accuracy per exit, validation CC with the final map per early
            exit, seconds.
        best_epoch: the epoch (from 1) of the best mean validation accuracy over exits.
        seconds: time spent in epochs, resumed ones included.
        out_dir: where checkpoints and log are, or ``None``.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    out_dir: Path | None = None


def fit(
    net: ExitNet,
    train: Any,
    val: Any,
    *,
    loss: EGTLoss | None = None,
    epochs: int = 10,
    out_dir: str | Path | None = None,
    batch_size: int = 64,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
    amp: bool | None = None,
    channels_last: bool = True,
    freeze_backbone: bool = False,
    augment: Augment | None = None,
    workers: int = 0,
    resume: bool = False,
    keep: str = "last",
    progress: bool = True,
    tensorboard: bool = False,
    ranks: Ranks | None = None,
) -> FitResult:
    """Trains the network in place with AdamW and a one-cycle learning rate (arXiv 1708.07120).

    A run that is killed at any time and called again with ``resume=True`` and the same arguments goes on from the last
    whole epoch and ends with the weights it would have had, bit for bit on the CPU: the order of data and all random
    numbers of an epoch depend on ``seed`` and the epoch only.

    Called in every process that ``torchrun`` starts, or of a process group that there is, it trains data-parallel: each
    takes its rows of the same batches, and all end with the same weights (docs/several_machines.md).

    Args:
        net: trained in place; left in evaluation mode and in the memory format that it had.
        train: a ``Dataset`` of ``(image, label)``, batched and shuffled here; or a ``DataLoader``, used as it is.
        val: the same, or an iterable of batches; chooses the best checkpoint and nothing else.
        loss: default ``EGTLoss()``.
        epochs: 1 or more.
        out_dir: for ``last.safetensors``, ``best.safetensors``, ``log.csv``; nothing is written without it.
        batch_size: images a step.
        learning_rate: peak of the cycle.
        weight_decay: of AdamW.
        seed: of data order and of all random numbers during training.
        amp: bfloat16 autocast; by default where the device is fast at it.
        channels_last: memory format of weights and images during training.
        freeze_backbone: train the heads only; backbone weights and batch-norm statistics stay as they are.
        augment: a function of a batch of images, run in training only.
        workers: processes of the data loader.
        resume: go on from ``out_dir`` if it holds a run; without it an existing run is an error.
        keep: ``"last"`` or ``"best"``: which weights the network has afterwards.
        progress: show a progress bar.
        tensorboard: also write TensorBoard events to ``out_dir`` (extra ``log``).
        ranks: the processes that share the work; by default those that ``torchrun`` started, or of the process group that
            there is; ``Ranks()``: this process alone.

    Raises:
        InputError, OutputExistsError, TrainingError: bad arguments, an existing run, a loss that is NaN or infinite.
        DistributedError: the other processes are lost; what one of them raises, all raise.
    """
    require(net, ExitNet, "net", "attach exits to the backbone first")
    require(loss, EGTLoss | None, "loss")
    require(out_dir, str | Path | None, "out_dir")
    if augment is not None and not callable(augment):
        raise InputError(f"augment: expected a function of a batch of inputs, got {type(augment).__name__}")
    if not isinstance(workers, int) or workers < 0:
        raise InputError(f"workers: expected an integer of 0 or more, got {workers!r}")
    if keep not in ("last", "best"):
        raise InputError(f"keep: expected 'last' or 'best', got {keep!r}")
    require(ranks, Ranks | None, "ranks")
    ranks = ranks or find_ranks()
    use_amp = ranks.share(lambda: has_fast_bfloat16(net.device)) if amp is None else amp
    settings = TrainingSettings(
        epochs, batch_size, learning_rate, weight_decay, seed, use_amp, channels_last, freeze_backbone
    )
    directory = None if out_dir is None else Path(out_dir)
    with use_memory_format(net, channels_last):
        run = TrainingRun(net, loss or EGTLoss(), settings, augment, workers, directory, ranks)
        run.open(resume, train)
        shown, events = progress and ranks.is_first, directory if tensorboard and ranks.is_first else None
        with use_common_statistics(net, ranks), show_progress(shown) as bar, open_tensorboard(events) as write_events:
            for epoch in range(run.epochs_done, epochs):
                row = run.train_epoch(epoch, train, val, bar)
                run.save(row)
                write_events(row)
                bar.console.print(format_epoch(row, epochs)) if shown else None
        run.finish(keep)
    return FitResult(run.history, run.best_epoch, run.seconds, directory)
