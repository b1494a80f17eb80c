"""The conditions of the study: which exits, which loss. One backbone, one order of data and one budget for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from benchmarks.store import Store, Tree
from exitlens.functional.losses import EGTLoss
from exitlens.model.heads.exit_heads import HeadKind

ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0)
AS_PUBLISHED: dict[str, Any] = {"target": "attention", "reach": "network"}  # benchmarks/truth has what is the default now
WITHOUT = EGTLoss(weight=0.0, **AS_PUBLISHED)


@dataclass(frozen=True)
class PermutedLoss(EGTLoss):
    """The control: every early map is pulled towards the final map of another image of the batch."""

    def make_targets(self, maps: Sequence[Tensor], relevance: Tensor | None) -> list[Tensor]:
        return [maps[-1].detach().roll(1, 0)] * (len(maps) - 1)


@dataclass(frozen=True)
class AttachedLoss(EGTLoss):
    """The final map is not detached: it is pulled towards the early ones as well."""

    def make_targets(self, maps: Sequence[Tensor], relevance: Tensor | None) -> list[Tensor]:
        return [maps[-1]] * (len(maps) - 1)


EGT = EGTLoss(**AS_PUBLISHED)
BOTH = EGTLoss(distill=0.1, **AS_PUBLISHED)
PERMUTED, ATTACHED = PermutedLoss(**AS_PUBLISHED), AttachedLoss(**AS_PUBLISHED)


@dataclass(frozen=True)
class Condition:
    """One way of training.

    Attributes:
        letter: of the study's plan; title: in tables.
        head: kind of the early exits' heads.
        loss: ``None`` for a network without early exits.
        frozen: heads on the frozen plain backbone.
        width: channels of the backbone over those of the others'.
        swept: the name of the sweep that chooses the loss's weight.
    """

    letter: str
    title: str
    head: HeadKind = "evidence"
    loss: EGTLoss | None = WITHOUT
    frozen: bool = False
    width: float = 1.0
    swept: str = ""


SWEPT: dict[str, EGTLoss] = {
    "kl": EGTLoss(distance="kl", **AS_PUBLISHED),
    "cosine": EGTLoss(distance="cosine", **AS_PUBLISHED),
    "pearson": EGTLoss(of="evidence", distance="pearson", **AS_PUBLISHED),
    "transfer": EGTLoss(of="activation", distance="cosine", **AS_PUBLISHED),
    "js": EGT,
    "distillation": WITHOUT,
    "none": WITHOUT,
}


def list_weights(name: str, quick: bool = False) -> tuple[float, ...]:
    """The weights of one sweep."""
    return (0.0,) if name == "none" else ALPHAS[2:3] if quick else ALPHAS


def weigh(name: str, alpha: float) -> EGTLoss:
    """The loss of a sweep at one weight."""
    return replace(SWEPT[name], **{"distill" if name == "distillation" else "weight": alpha})


def choose_weight(store: Store, name: str, alphas: Sequence[float] = ALPHAS) -> float:
    """The weight with the best mean validation accuracy over all exits and both kinds of background: one rule for all losses.

    All of ``alphas`` have to be there: half a sweep would give some seeds another weight than others.
    """
    scores: dict[float, float] = {}
    for found in find_sweep(store, name):
        sets = [found[part]["accuracy"] for part in ("agreeing", "disagreeing")]
        scores[found["alpha"]] = sum(sum(accuracy) / len(accuracy) for accuracy in sets) / len(sets)
    if not set(alphas) <= set(scores):
        raise RuntimeError(f"the sweep of {name} comes first: python -m benchmarks.study 'sweep/*'")
    return max(scores, key=lambda alpha: scores[alpha])


def find_sweep(store: Store, name: str) -> list[Tree]:
    """The runs of one sweep that are there, by weight."""
    names = [f"sweep/{name}-{alpha:g}" for alpha in (0.0, *ALPHAS)]
    return [store.find(run) for run in names if run in store]


CONDITIONS = {
    "plain": Condition("a", "plain backbone", loss=None),
    "average": Condition("b", "joint, average-pool heads", "average"),
    "joint": Condition("c", "joint, evidence heads"),
    "frozen": Condition("d", "evidence heads on the frozen backbone", frozen=True),
    "distilled": Condition("e", "self-distillation of logits", swept="distillation"),
    "transfer": Condition("f", "attention transfer on activations", swept="transfer"),
    "egt-kl": Condition("g", "EGT, KL on attention", swept="kl"),
    "egt-cosine": Condition("g", "EGT, cosine on attention (the paper's)", swept="cosine"),
    "egt-pearson": Condition("g", "EGT, Pearson on evidence", swept="pearson"),
    "egt-evidence": Condition("g", "EGT (default loss), evidence heads", loss=EGT),
    "both-evidence": Condition("h", "EGT and distillation, evidence heads", loss=BOTH),
    "permuted-evidence": Condition("", "control: permuted final maps, evidence heads", loss=PERMUTED),
    "joint-context": Condition("c", "joint, context heads", "context"),
    "distilled-context": Condition("e", "self-distillation of logits, context heads", "context", swept="distillation"),
    "egt": Condition("g", "EGT, context heads", "context", loss=EGT),
    "both": Condition("h", "EGT and distillation, context heads", "context", loss=BOTH),
    "permuted": Condition("", "control: permuted final maps, context heads", "context", loss=PERMUTED),
    "attached": Condition("", "control: final map not detached, context heads", "context", loss=ATTACHED),
    "static-50": Condition("i", "static network, width 0.71", loss=None, width=0.71),
    "static-10": Condition("i", "static network, width 0.33", loss=None, width=0.33),
    "static-25": Condition("i", "static network, width 0.5", loss=None, width=0.5),
}
FEW = ("plain", "joint", "distilled", "egt-evidence", "joint-context", "egt", "both")
MAIN = (*FEW[:2], "average", "frozen", *FEW[2:], "permuted-evidence", "permuted")
SEEDS = {"scenes": 5, "small": 5, "digits": 5, "fashion": 3}
TIMED = ("scenes", "fashion")
FOR = {"scenes": tuple(CONDITIONS), "small": MAIN, "digits": MAIN, "fashion": FEW}


def list_runs() -> list[str]:
    """The names of all runs of the study."""
    names = [f"sweep/{loss}-{alpha:g}" for loss in SWEPT for alpha in list_weights(loss)]
    names += [f"{data}/{key}-{seed}" for data in FOR for key in FOR[data] for seed in range(SEEDS[data])]
    return names + [f"speed/{data}-{seed}" for data in TIMED for seed in range(SEEDS[data])]


def find_missing(store: Store) -> list[str]:
    """Runs that the study lacks; the promises are judged when there is none."""
    return [name for name in list_runs() if name not in store.read()]
