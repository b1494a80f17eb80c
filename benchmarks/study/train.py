"""Trains one condition of the study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

import exitlens as xl
from benchmarks.study.conditions import Condition
from benchmarks.study.data import Splits
from exitlens.delivery.bundle import load, save
from exitlens.functional.losses import EGTLoss
from exitlens.model.attach import attach
from exitlens.model.backbones.small import SmallResNet

WIDTHS = (48, 96, 128, 128)


def build_network(condition: Condition, splits: Splits, seed: int) -> xl.ExitNet:
    """Untrained. Every condition of a seed has the same backbone weights at the start (but for another width)."""
    torch.manual_seed(seed)
    train = splits.train
    plain = build_backbone(splits, condition.width)
    at = [] if condition.loss is None else list(plain.groups[:-1])
    final = "keep" if condition.loss is None or condition.frozen else "head"
    net = attach(plain, at, len(train.classes), train.first(1).inputs, final=final, head=condition.head)
    net.describe(classes=train.classes, preprocess=train.preprocess)
    return net.to(memory_format=torch.channels_last)


def train(
    condition: Condition,
    splits: Splits,
    seed: int,
    folder: Path,
    plain: Path | None = None,
    prepare: Callable[[xl.ExitNet], None] | None = None,
) -> tuple[xl.ExitNet, float]:
    """The network after training (kept in ``folder``), and the seconds that took.

    Args:
        plain: bundle of the plain backbone of this seed, for heads on it while it is frozen.
        prepare: changes the untrained network.
    """
    net = build_network(condition, splits, seed)
    if prepare is not None:
        prepare(net)
    if condition.frozen:
        assert plain is not None
        _take_backbone(net, load(plain, backbone=build_backbone(splits))[0])
    done = xl.fit(
        net,
        splits.train,
        next(iter(splits.validation.values())).first(64),  # for the log; nothing is chosen by it
        loss=condition.loss or EGTLoss(weight=0.0),
        epochs=splits.epochs,
        batch_size=splits.batch_size,
        out_dir=folder / "fit",
        seed=seed,
        freeze_backbone=condition.frozen,
        resume=True,
        progress=False,
    )
    save(net, None, folder / "bundle", overwrite=True)
    return net, done.seconds


def build_backbone(splits: Splits, width: float = 1.0) -> SmallResNet:
    """The backbone of every condition, untrained."""
    widths = [8 * round(w * width / 8) for w in WIDTHS]
    return SmallResNet(
        len(splits.train.classes), splits.train.images.shape[1], stem=8 * round(32 * width / 8), widths=widths
    )


def _take_backbone(net: xl.ExitNet, plain: xl.ExitNet) -> None:
    """The plain network's weights by their names in the backbone: stages are cut elsewhere, names below ``body.`` agree."""
    known = {name.split("body.", 1)[1]: value for name, value in plain.state_dict().items() if "body." in name}
    state = net.state_dict()
    for name, value in state.items():
        if "body." in name:
            value.copy_(known[name.split("body.", 1)[1]])
