"""Further trial runs: what else could make the method better.

Usage: python -m benchmarks.study.trials [NAME ...]

Context heads unless said otherwise, scenes of the sweep's own seed, all of the training set, the study's epochs; judged on validation data only. Each run
also says how accurate the exits would be if every exit answered with the average of all exits so far (Zero Time Waste, arXiv
2106.05409, without its cascade). docs/measured/results.md has the table. What was tried before this script is in
benchmarks/results/trials.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import exitlens as xl
from benchmarks.study.conditions import EGT, WITHOUT, Condition
from benchmarks.study.data import DATA, Splits
from benchmarks.study.runs import QUICK, STUDY, TUNING_SEED
from benchmarks.study.train import train
from exitlens.functional.losses import EGTLoss, consistency_loss, ramp
from exitlens.functional.maps import class_evidence
from exitlens.model.process import keep_memory
from exitlens.types import ExitOutput, LossTerms
from exitlens.workflow.faithfulness import faithfulness

SAMPLES = 1000


@dataclass(frozen=True)
class MixedLoss(EGTLoss):
    """Mixed training (arXiv 2407.14320) within the same epochs: the backbone alone for half of them, then everything."""

    def __call__(
        self,
        outputs: Sequence[ExitOutput],
        labels: Tensor,
        progress: float = 1.0,
        features: Sequence[Tensor] | None = None,
    ) -> LossTerms:
        if progress < 0.5:
            alone = (0.0,) * (len(outputs) - 1) + (1.0,)
            return EGTLoss(weight=0.0, exit_weights=alone)(outputs, labels, progress)
        return super().__call__(outputs, labels, 2 * progress - 1, features)


@dataclass(frozen=True)
class BothMapsLoss(EGTLoss):
    """Consistency of attention (as the default), and Pearson's of the evidence of the true class."""

    evidence_weight: float = 0.3

    def __call__(
        self,
        outputs: Sequence[ExitOutput],
        labels: Tensor,
        progress: float = 1.0,
        features: Sequence[Tensor] | None = None,
    ) -> LossTerms:
        terms = super().__call__(outputs, labels, progress, features)
        maps = [class_evidence(out.evidence.float(), labels) for out in outputs]
        more = self.evidence_weight * ramp(progress, self.ramp_share) * consistency_loss(maps, "pearson", signed=True)
        return terms._replace(total=terms.total + more)


class _Scaled(torch.autograd.Function):
    """The same values; the gradient times ``factor``."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def balance(net: xl.ExitNet) -> None:
    """Gradient equilibrium (arXiv 1908.06294): a stage gets as much gradient from its head as from each deeper one."""
    for k in range(net.num_exits - 1):
        left = net.num_exits - k  # heads from here on, this one among them
        _scale_gradient_into(net.head(k), 1 / left)
        _scale_gradient_into(net.stage(k + 1), (left - 1) / left)


def _scale_gradient_into(module: nn.Module, factor: float) -> None:
    module.register_forward_pre_hook(lambda _, args: (_Scaled.apply(args[0], factor), *args[1:]))


TRIALS = {
    "joint-evidence": Condition("", "joint, evidence heads", loss=WITHOUT),
    "joint-evidence-1": Condition(
        "", "joint, evidence heads, all exits weigh 1", loss=replace(WITHOUT, exit_weights=(1,) * 4)
    ),
    "joint": Condition("", "joint", "context", loss=WITHOUT),
    "egt": Condition("", "EGT (default loss)", "context", loss=EGT),
    "balanced": Condition(
        "", "EGT, all exits weigh 1, gradients in balance", "context", loss=EGTLoss(exit_weights=(1,) * 4)
    ),
    "mixed": Condition("", "EGT after the backbone alone (mixed training)", "context", loss=MixedLoss()),
    "both-maps": Condition("", "EGT on attention, Pearson on evidence (0.3) as well", "context", loss=BothMapsLoss()),
    "both-maps-1": Condition("", "the same with weight 1", "context", loss=BothMapsLoss(evidence_weight=1.0)),
}


def average_so_far(logits: Tensor, labels: Tensor) -> list[float]:
    """Accuracy of every exit if it answers with the mean log-probability of all exits so far; ``logits`` are (N, K, C)."""
    so_far = logits.log_softmax(2).cumsum(1)
    return [(so_far[:, k].argmax(1) == labels).double().mean().item() for k in range(logits.shape[1])]


def run_trial(condition: Condition, splits: Splits, folder: Path) -> dict[str, Any]:
    """Trains one trial and measures it on validation data."""
    net, _ = train(condition, splits, TUNING_SEED, folder, prepare=balance if condition is TRIALS["balanced"] else None)
    found: dict[str, Any] = {"title": condition.title}
    for name, data in splits.validation.items():
        trace = xl.collect(net, data, batch_size=250)
        report = xl.evaluate(trace, xl.Policy.never(net.num_exits))
        found[name] = {
            "accuracy": [row.accuracy for row in report.exits],
            "averaged": average_so_far(trace.logits, trace.require_labels("trial")),
            "skill": [row.consistency["cc"]["skill"] for row in report.exits[:-1]],
            "kl": [row.consistency["kl"]["value"] for row in report.exits[:-1]],
        }
    sample = next(iter(splits.validation.values())).first(SAMPLES)
    found["faithfulness"] = faithfulness(net, sample, samples=SAMPLES).to_dict()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TRIALS)}; all by default")
    parser.add_argument("--images", type=int, help="of each set, for one epoch: to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    splits = DATA["scenes"](TUNING_SEED)
    if args.images:
        splits = replace(splits, train=splits.train.first(args.images), epochs=1)
        splits = replace(splits, validation={key: data.first(args.images) for key, data in splits.validation.items()})
    store = QUICK if args.images else STUDY
    for name in args.names or TRIALS:
        if f"trials/{name}" not in store:
            started = time.perf_counter()
            store.add(f"trials/{name}", run_trial(TRIALS[name], splits, store.runs / "trials" / name))
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    store.fold()


if __name__ == "__main__":
    main()
