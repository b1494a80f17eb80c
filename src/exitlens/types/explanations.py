"""Explanations: what every exit saw of one sample, and why one of them answered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.types.outputs import exit_name, format_threshold, tell_apart
from exitlens.types.preprocessing import Preprocessing

SCHEMA = 2  # of Explanation.to_dict


def _keep_positive(values: Tensor) -> Tensor:
    """Return the positive part, which sums to 1 (or is 0 everywhere)."""
    positive = values.clamp_min(0)
    return positive / positive.sum().clamp_min(1e-30)


class Location(NamedTuple):
    """One location of a map: ``(row, column)`` of an image's grid, or ``(position,)`` of a text.

    ``attention`` is its share of the map; ``evidence`` is what it adds to the logit of the exit's answer.
    """

    at: tuple[int, ...]
    attention: float
    evidence: float


class LabelView(NamedTuple):
    """One label of an exit's answer: its number and probability, and the evidence for it.

    ``evidence`` is ``(h,w)``; if the exit's evidence is exact, its sum and ``bias`` are ``logit``.
    """

    label: int
    probability: float
    evidence: Tensor
    logit: float
    bias: float

    @property
    def speaks_for(self) -> Tensor:
        """The positive part of the evidence, which sums to 1 (or is 0 everywhere)."""
        return _keep_positive(self.evidence)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return self._asdict() | {"evidence": self.evidence.tolist()}


class NumberView(NamedTuple):
    """One number of an exit's answer, and what each location adds to it.

    Attributes:
        number: in the units of the training targets; or the cosine of the exit's vector with another.
        evidence: ``(*S)``; if the exit's evidence is exact, its sum and ``bias`` are the number.
        bias: what no location adds.

    Examples:
        >>> counting = xl.attach("small", ["layer2"], 1, images[:1], task="regression").eval()
        >>> view = xl.explain(counting, images[0], xl.Policy((0.5,), score="closeness")).exits[0].numbers[0]
        >>> abs(view.evidence.sum().item() + view.bias - view.number) < 1e-4
        True
    """

    number: float
    evidence: Tensor
    bias: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return self._asdict() | {"evidence": self.evidence.tolist()}


class PixelView(NamedTuple):
    """An exit's answer for every pixel, and where it saw each class.

    Attributes:
        labels: ``(H,W)``, the class of each pixel. told: ``(P,)``, the classes that any pixel has.
        class_maps: ``(P,h,w)``, where the logit of each of these is large on the exit's own grid: non-negative, sums to 1.
        differs: ``(H,W)`` bool, the pixels whose class differs from the final exit's; ``None`` if that was not run.

    Examples:
        >>> decoded = xl.attach("small", ["layer2"], 10, images[:1], task="segmentation").eval()
        >>> view = xl.explain(decoded, images[0], xl.Policy((0.5,), score="mean_probability")).exits[0].pixels
        >>> view.labels.shape, view.differs.dtype
        (torch.Size([40, 40]), torch.bool)
    """

    labels: Tensor
    told: Tensor
    class_maps: Tensor
    differs: Tensor | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: None if value is None else value.tolist() for name, value in self._asdict().items()}


@dataclass(frozen=True, repr=False)
class ExitView:
    """One exit's view of the sample.

    If the network gives several labels, all but ``labels`` is about the strongest one, in the answer or not. If it answers
    each pixel, ``label`` is the most frequent class, ``probabilities`` are the shares of the pixels, the evidence is that
    class's logit on the exit's grid, and ``pixels`` has the rest. If it answers numbers, ``numbers`` has them, ``evidence``,
    ``logit`` and ``bias`` are of the first, and there are no probabilities; if it answers vectors, the number is the cosine
    with the vector that was given (``explain(..., to=vector)``).

    Attributes:
        exit: k. label: its answer. confidence: the policy's score. threshold: that it had to reach (0 for the final exit,
            which always answers). fired: whether it would answer. cost: in units of the plain backbone.
        probabilities: ``(C,)``. attention: ``(h,w)``, sums to 1. evidence: ``(h,w)`` for its answer: if ``exact_evidence``,
            its sum and ``bias`` are ``logit``; else the logit is shared out by attention.
        logit, bias: of its answer, before the policy's temperature.
        divergence, cc: of its attention map against the final exit's, before both are placed in the image
            (``net.map_offsets``). ``None`` if the final exit was not run.
        cc_null: mean correlation with another sample's final map, measured by calibration; ``None``: not measured.
        previous_divergence, previous_cc: the same against the exit before; ``None`` at exit 0.
        estimate: the gate's, that the final exit answers the same, which is compared with the threshold; ``None`` without a
            gate, and at the final exit. refused: whether the confidence alone would have been enough.
        labels: that it tells, in label order; ``None`` if the network gives one class.
        pixels: the answer for each pixel; ``None`` if the network answers for whole samples.
        numbers: that it tells, or of a vector the cosine; ``None`` for classes.
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
    cc_null: float | None = None
    previous_divergence: float | None = None
    previous_cc: float | None = None
    estimate: float | None = None
    refused: bool = False
    labels: tuple[LabelView, ...] | None = None
    pixels: PixelView | None = None
    numbers: tuple[NumberView, ...] | None = None

    def __repr__(self) -> str:
        fires = "fires" if self.fired else "does not fire"
        if self.numbers is not None:
            return f"ExitView(exit {self.exit}: {self.tell_numbers()}, confidence {self.confidence:.3f}, {fires})"
        answer = f"class {self.label}" if self.labels is None else f"labels {list(self.answer)}"
        return f"ExitView(exit {self.exit}: {answer}, confidence {self.confidence:.3f}, {fires})"

    def tell_numbers(self) -> str:
        """Return the numbers that it tells; empty for classes."""
        return ", ".join(f"{view.number:.4g}" for view in self.numbers or ())

    @property
    def compared(self) -> float:
        """The gate's estimate, or else the confidence: it is compared with the threshold."""
        return self.confidence if self.estimate is None else self.estimate

    def format_cc(self) -> list[str]:
        """Return the correlation with the final map, and what another sample's map has; empty if there is none."""
        if self.cc is None:
            return ["", ""]
        return [f"{self.cc:.2f}", "not measured" if self.cc_null is None else f"{self.cc_null:.2f}"]

    @property
    def answer(self) -> tuple[int, ...]:
        """The class, or the labels or classes of pixels, that it tells."""
        if self.pixels is not None:
            return tuple(self.pixels.told.tolist())
        return (self.label,) if self.labels is None else tuple(view.label for view in self.labels)

    @property
    def runner_up(self) -> int:
        """The second most probable class; of several labels the least decided one."""
        if self.labels is not None:
            return int((self.probabilities - 0.5).abs().argmin())
        if self.numbers is not None:
            raise InputError("runner_up: numbers and vectors have none. Fix: see the view's numbers")
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

    ``inputs`` is the network's input ``(C,H,W)``, or the token ids ``(N,)`` of a text with its ``tokens``, without padding.
    ``exits`` were run: all ``num_exits``, or those up to the exit that answered. ``relevance`` ``(*S)``, signed, tells where
    the answer depends on the features of exit 0, to first order.
    """

    inputs: Tensor
    exits: tuple[ExitView, ...]
    answered: int
    classes: tuple[str, ...]
    num_exits: int
    tokens: tuple[str, ...] = ()
    preprocess: Preprocessing | None = None
    draw_map: Callable[..., str] | None = None  # the modality's way to draw a map
    relevance: Tensor | None = None
    calibration_error: float | None = None  # of the routed answers, on the policy's calibration samples
    promise: str = ""  # how many answers rest on what maps show, if the policy's binding is certified

    def __repr__(self) -> str:
        return f"Explanation({self.reason})"

    def _repr_html_(self) -> str:
        from exitlens.display import caption, html_table

        rows, is_gated = [], any(view.estimate is not None for view in self.exits)
        for view in self.exits:
            name = exit_name(view.exit, self.num_exits) + (" (answered)" if view.exit == self.answered else "")
            runner_up = ""
            if view.numbers is None:
                runner_up = f"{self.name(view.runner_up)} {100 * view.probabilities[view.runner_up]:.0f} %"
            sure = [f"{view.confidence:.3f}", format_threshold(view.threshold, 3)]
            if is_gated:
                sure.insert(1, "" if view.estimate is None else f"{view.estimate:.3f}")
            rows.append([name, self.name_answer(view), *sure, runner_up, *view.format_cc()])
        second = "runner-up" if self.exits[0].labels is None else "least decided"
        sure = ["confidence", "trust of the gate", "threshold on it"] if is_gated else ["confidence", "threshold"]
        head = ["exit", "answer", *sure, second, "map's CC with final", "another sample's"]
        drawn = []
        if self.draw_map is not None:
            drawn = [(self.draw_exit(view), self.caption_exit(view)) for view in self.exits]
            evidence = {f"what speaks for {self.name(view.label)}": view.evidence for view in self.labels}
            if self.relevance is not None:
                evidence[f"what the answer depends on: {self.name_answer()}"] = self.relevance
            drawn += [(self._draw(_keep_positive(values), values, label), label) for label, values in evidence.items()]
        maps = "".join(caption(figure, label) for figure, label in drawn if figure)
        maps = f'<div style="display:flex;flex-wrap:wrap;gap:8px">{maps}</div>' if maps else ""
        return html_table(head, rows, self.reason) + maps

    def draw_exit(self, view: ExitView) -> str:
        """Draw an exit's map over the sample, or over the names of its locations, as HTML; empty if it cannot be drawn."""
        return self._draw(view.attention, view.evidence, self.caption_exit(view))

    def caption_exit(self, view: ExitView) -> str:
        """Return what an exit's map shows."""
        return f"{exit_name(view.exit, self.num_exits)}, where it looked: {self.name_answer(view)}"

    def draw_relevance(self, relevance: Tensor) -> str:
        """Draw the positive part of a relevance map ``(*S)`` as :meth:`draw_exit` draws an exit's map."""
        return self._draw(_keep_positive(relevance), relevance, "what the answer depends on")

    def _draw(self, attention: Tensor, evidence: Tensor, label: str) -> str:
        from exitlens.display import names_html

        drawn = "" if self.draw_map is None else self.draw_map(self.inputs, self.preprocess, attention, evidence, label)
        return names_html(self.tokens, attention) if not drawn and 0 < len(self.tokens) <= attention.numel() else drawn

    @property
    def speaks_for(self) -> Tensor:
        """The positive part of the relevance, which sums to 1 (or is 0 everywhere): it speaks for the answer."""
        if self.relevance is None:
            raise InputError("relevance: it was not computed: call explain(..., relevance=True)")
        return _keep_positive(self.relevance)

    @property
    def label(self) -> int:
        """The class that the answering exit gives; of several labels, the strongest."""
        return self.exits[self.answered].label

    @property
    def labels(self) -> tuple[LabelView, ...]:
        """The labels that the answering exit tells, each with its evidence; empty if the network gives one class."""
        return self.exits[self.answered].labels or ()

    @property
    def final(self) -> ExitView | None:
        """The final exit's view, if it was run."""
        return self.exits[-1] if len(self.exits) == self.num_exits else None

    @property
    def disagrees(self) -> bool:
        """True if an early exit answered and the final exit answers differently (any pixel)."""
        pixels = self.exits[self.answered].pixels
        if pixels is not None:
            return pixels.differs is not None and bool(pixels.differs.any())
        if self.exits[self.answered].numbers is not None:  # they always differ somewhat
            return False
        return self.final is not None and self.final.answer != self.exits[self.answered].answer

    def name(self, label: int) -> str:
        """Return the class's name, or its number if the network knows no names."""
        return self.classes[label] if label < len(self.classes) else f"class {label}"

    def name_answer(self, view: ExitView | None = None) -> str:
        """Return an exit's answer in words, by default that of the exit that answered."""
        view = self.exits[self.answered] if view is None else view
        answer = view.answer
        if view.numbers is not None:
            return view.tell_numbers()
        return ", ".join(map(self.name, answer)) or "none of the labels"

    @property
    def reason(self) -> str:
        """Why this exit answered, in plain words, with a warning if confidences are known to be off by 5 % or more."""
        view, is_final = self.exits[self.answered], self.answered == self.num_exits - 1
        why = "no earlier exit could answer, so the final exit answered" if is_final else f"exit {view.exit} answered"
        if is_final and view.labels is not None:
            confidence = f"each label decided with {100 * view.confidence:.1f} % or more"
        elif is_final and view.numbers is not None:
            confidence = "whose answer the others are compared with"
        elif is_final and view.pixels is not None:
            confidence = f"with confidence {view.confidence:.3f}"
        elif is_final:
            confidence = f"with probability {100 * view.probabilities[view.label]:.1f} %"
        elif view.threshold == 0:
            confidence = f"which answers everything under this policy (confidence {view.confidence:.3f})"
        else:
            what = "its confidence" if view.estimate is None else "the trust of the gate in it"
            confidence = "{} {} reached the threshold {}".format(what, *tell_apart(view.compared, view.threshold))
        sentence = f"{self.name_answer(view)}: {why}, {confidence}, at {100 * view.cost:.0f} % of the full network's cost."
        for earlier in self.exits[: self.answered]:
            if earlier.refused and earlier.estimate is not None:
                guess, threshold = tell_apart(earlier.estimate, earlier.threshold)
                sentence += (
                    f" Exit {earlier.exit} was sure enough, but the gate refused its answer ({self.name_answer(earlier)}): "
                    f"the trust of the gate in it, {guess}, is below the threshold {threshold}."
                )
        if not is_final and self.final is not None:
            value, null = view.format_cc()
            agreement = f"; the two attention maps correlate at {value} (another sample's map: {null})" if value else ""
            elsewhere = ""
            if view.pixels is not None and view.pixels.differs is not None:
                elsewhere = f", and another class at {100 * view.pixels.differs.float().mean():.1f} % of the pixels"
            sentence += f" The final exit says {self.name_answer(self.final)}{elsewhere}{agreement}."
        if (error := self.calibration_error or 0.0) >= 0.05:
            sentence += f" Confidences are off by {100 * error:.0f} % on average (calibration samples, routed answers)."
        return f"{sentence} {self.promise}".rstrip()

    def explain_rule(self, view: ExitView) -> list[str]:
        """Return an exit's confidence, or what the gate makes of it, against its threshold."""
        compared, threshold = tell_apart(view.compared, view.threshold)
        if view.exit == self.num_exits - 1:
            return [f"confidence {view.confidence:.3f}", "it answers whatever comes to it"]
        rule = [] if view.estimate is None else [f"confidence {view.confidence:.3f}"]
        name = "confidence" if view.estimate is None else "trust of the gate"
        if view.threshold == math.inf:
            return [*rule, f"{name} {compared}", "under these thresholds it never answers"]
        return [*rule, f"{name} {compared} {'≥' if view.fired else '<'} threshold {threshold}"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with maps as nested lists; its ``schema`` is :data:`SCHEMA`."""
        values = {
            "schema": SCHEMA,
            "label": self.label,
            "label_name": self.name_answer(),
            "answered": self.answered,
            "final_ran": self.final is not None,
            "reason": self.reason,
            "calibration_error": self.calibration_error,
            "binding": self.promise,
            "exits": [self._row(view) for view in self.exits],
        }
        if self.tokens:
            values["tokens"] = list(self.tokens)
        if self.relevance is not None:
            values["relevance"] = self.relevance.tolist()
        return values

    def _row(self, view: ExitView) -> dict[str, Any]:
        row = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in vars(view).items()}
        labels = row.pop("labels")
        row.pop("pixels")
        row.pop("numbers")
        second: dict[str, Any] = {}
        if view.numbers is not None:
            row["numbers"] = [item.to_dict() for item in view.numbers]
        else:
            second = {"runner_up": view.runner_up, "runner_up_name": self.name(view.runner_up)}
            second["runner_up_probability"] = view.probabilities[view.runner_up].item()
        if view.pixels is not None:
            row["pixels"] = view.pixels.to_dict()
        if labels is not None:
            row["labels"] = [item.to_dict() | {"label_name": self.name(item.label)} for item in labels]
        top: list[dict[str, Any]] = []
        for at, attention, evidence in view.top():
            token = {"token": self.tokens[at[0]]} if self.tokens and at[0] < len(self.tokens) else {}
            top.append({"at": list(at), "attention": attention, "evidence": evidence, **token})
        return row | {
            "label_name": self.name_answer(view),
            "threshold": "never" if view.threshold == math.inf else view.threshold,
            **second,
            "top_locations": top,
            "evidence_elsewhere": view.evidence.sum().item() - sum(item["evidence"] for item in top),
        }
