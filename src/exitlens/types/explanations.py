"""Explanations: what every exit saw of one image or text, and why one of them answered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.types.preprocessing import Preprocessing
from exitlens.types.words import exit_name, format_threshold, tell_apart

SCHEMA = 2  # of Explanation.to_dict; 1 had no runner-up, no locations, and no agreement with the exit before


class Location(NamedTuple):
    """One location of a map: ``(row, column)`` of an image's grid, or ``(position,)`` of a text.

    ``attention`` is its share of the map; ``evidence`` is what it adds to the logit of the exit's answer.
    """

    at: tuple[int, ...]
    attention: float
    evidence: float


@dataclass(frozen=True, repr=False)
class ExitView:
    """One exit's view of the image.

    Attributes:
        exit: k. label: its answer. confidence: the policy's score. threshold: what it had to reach (0 for the final
            exit, which always answers). fired: whether it would answer. cost: in units of the plain backbone.
        probabilities: ``(C,)``. attention: ``(h,w)``, sums to 1. evidence: ``(h,w)`` for its own answer: its sum and
            ``bias`` are ``logit``, where ``exact_evidence``; elsewhere the classifier cannot be split over locations, and
            the logit is shared out by attention.
        logit, bias: of its own answer, before the policy's temperature.
        divergence, cc: of its attention map against the final exit's, as they leave the heads; the maps here are placed in
            the image (``net.map_offsets``). ``None`` where the final exit was not run.
        previous_divergence, previous_cc: the same against the exit before; ``None`` at exit 0.
        estimate, limit: of the divergence by the policy's gate, and what it allows (``math.inf``: everything); ``None``
            without a gate, and at the final exit.
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
    logit: float
    bias: float
    divergence: float | None
    cc: float | None
    previous_divergence: float | None = None
    previous_cc: float | None = None
    estimate: float | None = None
    limit: float | None = None

    def __repr__(self) -> str:
        fires = "fires" if self.fired else "does not fire"
        return f"ExitView(exit {self.exit}: class {self.label}, confidence {self.confidence:.3f}, {fires})"

    @property
    def runner_up(self) -> int:
        """The second most probable class."""
        others = self.probabilities.clone()
        others[self.label] = -1
        return int(others.argmax())

    def top(self, count: int = 5) -> list[Location]:
        """The locations with the most evidence for the answer (in absolute terms), the largest first."""
        flat, attention = self.evidence.flatten(), self.attention.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:count]
        places = zip(*(axis.tolist() for axis in torch.unravel_index(order, self.evidence.shape)), strict=True)
        return [Location(at, attention[i].item(), flat[i].item()) for at, i in zip(places, order.tolist(), strict=True)]


@dataclass(frozen=True, repr=False)
class Explanation:
    """Every exit's view, which of them answered, and a sentence that says why.

    ``image`` is the network's input ``(C,H,W)``, or the token ids ``(N,)`` of a text, whose ``tokens`` are named where the
    network knows its tokenizer (padding left out). ``exits`` are those that were run: all ``num_exits`` of them, or, if the
    final exit was not asked for, those up to the one that answered. ``relevance`` ``(*S)``, if it was asked for: where the
    answer depends on the features of exit 0, to first order; signed, on their grid.
    """

    image: Tensor
    exits: tuple[ExitView, ...]
    answered: int
    classes: tuple[str, ...]
    num_exits: int
    tokens: tuple[str, ...] = ()
    preprocess: Preprocessing | None = None
    draw_map: Callable[..., str] | None = None  # of the modality
    relevance: Tensor | None = None

    def __repr__(self) -> str:
        return f"Explanation({self.reason})"

    def _repr_html_(self) -> str:
        from exitlens.display import html_table

        rows = []
        for view in self.exits:
            name = exit_name(view.exit, self.num_exits) + (" (answered)" if view.exit == self.answered else "")
            runner_up = f"{self.name(view.runner_up)} {100 * view.probabilities[view.runner_up]:.0f} %"
            cc = "" if view.cc is None else f"{view.cc:.2f}"
            rows.append(
                [name, self.name(view.label), f"{view.confidence:.3f}", format_threshold(view.threshold, 3), runner_up, cc]
            )
        head = ["exit", "answer", "confidence", "threshold", "runner-up", "map's CC with final"]
        return html_table(head, rows, self.reason) + self._maps()

    def _maps(self) -> str:
        """Every exit's map over the sample, or over the names of its locations, where it can be drawn."""
        if self.draw_map is None:
            return ""
        drawn = ""
        for view in self.exits:
            drawn += self._draw(view.attention, view.evidence, f"where exit {view.exit} looked: {self.name(view.label)}")
        if self.relevance is not None:
            drawn += self._draw(self.speaks_for, self.relevance, f"what the answer depends on: {self.name(self.label)}")
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{drawn}</div>' if drawn else ""

    def _draw(self, attention: Tensor, evidence: Tensor, label: str) -> str:
        assert self.draw_map is not None
        from exitlens.display import caption, names_html

        drawn = self.draw_map(self.image, self.preprocess, attention, evidence, label)
        if not drawn and 0 < len(self.tokens) <= attention.numel():
            drawn = names_html(self.tokens, attention)
        return caption(drawn, label) if drawn else ""

    @property
    def speaks_for(self) -> Tensor:
        """The positive part of the relevance, which sums to 1 (or is 0 everywhere): what speaks for the answer."""
        if self.relevance is None:
            raise InputError("relevance: it was not computed: call explain(..., relevance=True)")
        positive = self.relevance.clamp_min(0)
        return positive / positive.sum().clamp_min(1e-30)

    @property
    def label(self) -> int:
        """The class that the answering exit gives."""
        return self.exits[self.answered].label

    @property
    def final(self) -> ExitView | None:
        """The final exit's view, if it was run."""
        return self.exits[-1] if len(self.exits) == self.num_exits else None

    @property
    def disagrees(self) -> bool:
        """Whether an early exit answered and the final exit says something else."""
        return self.final is not None and self.final.label != self.label

    def name(self, label: int) -> str:
        """The class's name, or its number where the network knows no names."""
        return self.classes[label] if label < len(self.classes) else f"class {label}"

    @property
    def reason(self) -> str:
        """Why this exit answered, in plain words."""
        view, last = self.exits[self.answered], self.num_exits - 1
        if view.exit == last:
            why = "no earlier exit could answer, so the final exit answered"
            confidence = f"with probability {100 * view.probabilities[view.label]:.1f} %"
        else:
            why = f"exit {view.exit} answered"
            confidence = "its confidence {} reached the threshold {}".format(*tell_apart(view.confidence, view.threshold))
            if view.estimate is not None and view.threshold > 0:
                confidence += f" and its map is estimated to be near the final one (divergence {view.estimate:.3f})"
            if view.threshold == 0:
                confidence = f"which answers everything under this policy (confidence {view.confidence:.3f})"
        sentence = f"{self.name(view.label)}: {why}, {confidence}, at {100 * view.cost:.0f} % of the full network's cost."
        for one in self.exits[: self.answered]:
            if one.confidence >= one.threshold and one.estimate is not None and one.limit is not None:
                guess, limit = tell_apart(one.estimate, one.limit)
                sentence += (
                    f" Exit {one.exit} reached the threshold too, but its map was not trusted: its estimated divergence "
                    f"from the final one is {guess}, over the limit {limit}."
                )
        if view.exit == last or self.final is None:
            return sentence
        said = f"{sentence} The final exit says {self.name(self.final.label)}"
        return f"{said}." if view.cc is None else f"{said}; the two attention maps correlate at {view.cc:.2f}."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with maps as nested lists; its ``schema`` is :data:`SCHEMA`."""
        return {
            "schema": SCHEMA,
            **({"tokens": list(self.tokens)} if self.tokens else {}),
            "label": self.label,
            "label_name": self.name(self.label),
            "answered": self.answered,
            "final_ran": self.final is not None,
            "reason": self.reason,
            "exits": [self._row(view) for view in self.exits],
            **({} if self.relevance is None else {"relevance": self.relevance.tolist()}),
        }

    def _row(self, view: ExitView) -> dict[str, Any]:
        row = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in vars(view).items()}
        top: list[dict[str, Any]] = []
        for at, attention, evidence in view.top():
            token = {"token": self.tokens[at[0]]} if self.tokens and at[0] < len(self.tokens) else {}
            top.append({"at": list(at), "attention": attention, "evidence": evidence, **token})
        return row | {
            "label_name": self.name(view.label),
            "threshold": "never" if view.threshold == math.inf else view.threshold,
            "limit": "none" if view.limit == math.inf else view.limit,
            "runner_up": view.runner_up,
            "runner_up_name": self.name(view.runner_up),
            "runner_up_probability": view.probabilities[view.runner_up].item(),
            "top_locations": top,
            "evidence_elsewhere": view.evidence.sum().item() - sum(one["evidence"] for one in top),
        }
