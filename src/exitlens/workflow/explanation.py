"""explain: for one image, what every exit looked at, which exit answered, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import InputError, require
from exitlens.functional.gating import estimate, map_clues, trusted
from exitlens.functional.inputs import MASK, Inputs, count_rows, map_inputs
from exitlens.functional.maps import all_finite, on_common_grid
from exitlens.functional.routing import fires, first_firing
from exitlens.functional.scores import probabilities, score_of
from exitlens.functional.similarity import divergence, pearson
from exitlens.model.network import ExitNet
from exitlens.types import ExitOutput, Policy, TextPreprocess

SCHEMA = 1


@dataclass(frozen=True)
class ExitView:
    """One exit's view of the image.

    Attributes:
        exit: k. label: its answer. confidence: the policy's score. threshold: what it had to reach (0 for the final
            exit, which always answers). fired: whether it would answer. cost: in units of the plain backbone.
        probabilities: ``(C,)``. attention: ``(h,w)``, sums to 1. evidence: ``(h,w)`` for its own answer; with the bias it
            sums to that logit where ``exact_evidence``.
        divergence, cc: of its attention map against the final exit's.
        estimate: of that divergence by the policy's gate; ``None`` without one, and at the final exit.
    """

    exit: int
    label: int
    confidence: float
    threshold: float
    fired: bool
    cost: float
    probabilities: Tensor
    attention: Tensor
    evidence: Tensor
    exact_evidence: bool
    divergence: float
    cc: float
    estimate: float | None = None


@dataclass(frozen=True)
class Explanation:
    """Every exit's view, which of them answered, and a sentence that says why.

    ``image`` is the network's input ``(C,H,W)``, or the token ids ``(N,)`` of a text, whose ``tokens`` are named where the
    network knows its tokenizer (padding left out). All exits were run to make the explanation, also those that the policy
    would not have reached.
    """

    image: Tensor
    exits: tuple[ExitView, ...]
    answered: int
    classes: tuple[str, ...]
    tokens: tuple[str, ...] = ()

    @property
    def label(self) -> int:
        """The class that the answering exit gives."""
        return self.exits[self.answered].label

    def name(self, label: int) -> str:
        """The class's name, or its number where the network knows no names."""
        return self.classes[label] if label < len(self.classes) else f"class {label}"

    @property
    def reason(self) -> str:
        """Why this exit answered, in plain words."""
        view, last = self.exits[self.answered], len(self.exits) - 1
        if view.exit == last:
            why = "no earlier exit could answer, so the final exit answered"
            confidence = f"it is {100 * view.confidence:.1f} % sure"
        else:
            why = f"exit {view.exit} answered"
            confidence = f"its confidence {view.confidence:.3f} reached the threshold {view.threshold:.3f}"
            if view.estimate is not None and view.threshold > 0:
                confidence += f" and its map is estimated to be near the final one (divergence {view.estimate:.3f})"
            if view.threshold == 0:
                confidence = f"which answers everything under this policy (confidence {view.confidence:.3f})"
        sentence = f"{self.name(view.label)}: {why}, {confidence}, at {100 * view.cost:.0f} % of the full network's cost."
        sure = [f"exit {v.exit}" for v in self.exits[: self.answered] if v.confidence >= v.threshold]  # not trusted, then
        if sure:
            sentence += f" {' and '.join(sure).capitalize()} reached the threshold too, but the map was not trusted."
        if view.exit == last:
            return sentence
        said = self.name(self.exits[last].label)
        return f"{sentence} The final exit says {said}; the two attention maps correlate at {view.cc:.2f}."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with maps as nested lists."""
        rows = []
        for view in self.exits:
            row = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in vars(view).items()}
            rows.append(row | {"label_name": self.name(view.label), "threshold": _json_number(view.threshold)})
        return {
            "schema": SCHEMA,
            **({"tokens": list(self.tokens)} if self.tokens else {}),
            "label": self.label,
            "label_name": self.name(self.label),
            "answered": self.answered,
            "reason": self.reason,
            "exits": rows,
        }


def _json_number(value: float) -> float | str:
    return "never" if value == math.inf else value


def explain(net: ExitNet, image: Inputs, policy: Policy) -> Explanation:
    """Explains the answer to one image or text, from one forward pass through all exits.

    Args:
        net: used in evaluation mode, and given back in the mode it was in.
        image: ``(C,H,W)`` or ``(1,C,H,W)`` normalised floats; or one text, tokens ``(N,)`` or ``(1,N)`` by name.
        policy: of this network.

    Raises:
        InputError: for several images or inputs the network cannot take; PolicyError: for another network's policy.
    """
    require(net, ExitNet, "net")
    axes = 1 if net.contract.is_text else 3
    if not isinstance(image, Tensor | Mapping) or (axes == 3 and not isinstance(image, Tensor)):
        hint = "TextPreprocess.encode" if axes == 1 else "exitlens.read_image"
        wanted = "tokens by name" if axes == 1 else "a torch.Tensor (C,H,W)"
        raise InputError(f"image: expected {wanted}, got {type(image).__name__}: see {hint}")
    images = map_inputs(image, lambda t: t[None] if isinstance(t, Tensor) and t.ndim == axes else t)
    if count_rows(images) != 1:
        raise InputError(f"image: expected one image, got a batch of {count_rows(images)}: call explain_batch")
    return explain_batch(net, images, policy)[0]


def explain_batch(net: ExitNet, images: Inputs, policy: Policy) -> Sequence[Explanation]:
    """:func:`explain` for every sample of a batch, in one pass."""
    require(net, ExitNet, "net")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    tensors = net.check_input(images)
    policy.check(net.num_exits, net.identity() if policy.network else "")
    with net.running() as engine:
        found = engine.explained(engine.enter(tensors))
    outputs = [ExitOutput(*(t.clone() for t in out)) for out in found]  # ordinary tensors
    if not all(all_finite(out.logits) for out in outputs):
        raise InputError("net: its logits are NaN or infinite for these images: its weights are damaged, train it again")
    p = [probabilities(out.logits, t) for out, t in zip(outputs, policy.temperatures, strict=True)]
    scores = torch.stack([score_of(q, policy.score) for q in p], 1)
    decisive, estimates = _gated(policy, scores, p, [out.attention for out in outputs])
    answered = first_firing(decisive, policy.thresholds).tolist()
    grids = [on_common_grid(out.attention.float(), outputs[-1].attention.float()) for out in outputs]
    spread = [divergence(final, early) for early, final in grids]
    cc = [pearson(final, early) for early, final in grids]
    result = []
    for i, sample in enumerate(tensors[0]):
        views = []
        for k, out in enumerate(outputs):
            label = int(p[k][i].argmax())
            threshold = policy.thresholds[k] if k < len(policy.thresholds) else 0.0
            views.append(
                ExitView(
                    exit=k,
                    label=label,
                    confidence=scores[i, k].item(),
                    threshold=threshold,
                    fired=k == net.num_exits - 1 or bool(fires(decisive[i, k], threshold)),
                    cost=net.cost[k].item(),
                    probabilities=p[k][i],
                    attention=out.attention[i].float(),
                    evidence=out.evidence[i, label].float(),
                    exact_evidence=bool(getattr(net.heads[k], "exact_evidence", False)),
                    divergence=spread[k][i].item(),
                    cc=cc[k][i].item(),
                    estimate=None if estimates is None or k >= estimates.shape[1] else estimates[i, k].item(),
                )
            )
        result.append(Explanation(sample, tuple(views), answered[i], net.info.classes, _tokens(net, tensors, i)))
    return result


def _gated(policy: Policy, scores: Tensor, p: Sequence[Tensor], maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """The early exits' scores as they decide ``(B,K-1)``, and the gate's estimates, if there is one."""
    early = scores[:, :-1]
    if policy.gate is None or not early.shape[1]:
        return early, None
    found, decisive = [], []
    for k, limit in enumerate(policy.gate.limits):
        clues = map_clues(maps[k], maps[k - 1] if k else None)
        found.append(estimate(policy.gate, k, p[k].amax(1), clues))
        decisive.append(trusted(early[:, k], found[-1], limit))
    return torch.stack(decisive, 1), torch.stack(found, 1)


def _tokens(net: ExitNet, tensors: Sequence[Tensor], row: int) -> tuple[str, ...]:
    """The tokens of one text without its padding, where the network knows its tokenizer."""
    if not isinstance(net.info.preprocess, TextPreprocess):
        return ()
    names, ids = net.contract.names, tensors[0][row]
    length = int(tensors[names.index(MASK)][row].sum()) if MASK in names else len(ids)
    return tuple(net.info.preprocess.tokens(ids[:length].cpu()))
