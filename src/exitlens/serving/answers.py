"""Answers as arrays by name, why each was given, and what is promised about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from exitlens.serving.batching.tickets import Array, Terms, Ticket
from exitlens.serving.models import ServedModel
from exitlens.types import Policy
from exitlens.types.outputs import tell_apart

DEFAULT_OUTPUTS = ("label", "probabilities", "exit", "confidence", "cost")
Writer = Callable[[ServedModel, Ticket], Array]


def _write_attention(model: ServedModel, ticket: Ticket) -> Array:
    """``(n,*S)``; where exits have maps of different sizes, each is padded with 0 at its ends (see ``attention_shape``)."""
    maps = [one for one in ticket.maps if one is not None]
    size = tuple(max(sizes) for sizes in zip(*(one.shape for one in maps), strict=True))
    found = np.zeros((len(maps), *size), np.float32)
    for row, one in zip(found, maps, strict=True):
        row[tuple(slice(n) for n in one.shape)] = one.numpy()
    return found


OUTPUTS: Mapping[str, tuple[str, str, Writer]] = {  # type, what it is, and how it comes from the answers
    "label": (
        "INT64",
        "number of the class; of several labels, whether each is there",
        lambda _, t: t.labels.astype(np.int64),
    ),
    "probabilities": ("FP32", "of every class, at the exit that answered", lambda _, t: t.probabilities),
    "exit": ("INT64", "that answered", lambda _, t: t.exits),
    "confidence": ("FP32", "the policy's score at that exit", lambda _, t: t.confidence),
    "cost": ("FP32", "as a fraction of the plain backbone's", lambda m, t: np.array(m.cost, np.float32)[t.exits]),
    "class": ("BYTES", "name of the class, or of the labels: a;b", lambda m, t: _write_texts(map(m.name_answer, t.labels))),
    "limited": ("BOOL", "the request's own limits ended it, not the policy", lambda _, t: t.limited),
    "reason": (
        "BYTES",
        "why this exit answered",
        lambda m, t: _write_texts(give_reason(m, t, i) for i in range(len(t))),
    ),
    "attention": ("FP32", "map of the exit that answered", _write_attention),
    "attention_shape": ("INT64", "of each sample's map", lambda _, t: np.array([m.shape for m in t.maps], np.int64)),  # type: ignore[union-attr]
}
MAPS = ("attention", "attention_shape")


def _write_texts(texts: Any) -> Array:
    return np.array(list(texts), dtype=object)


def shape_output(model: ServedModel, name: str) -> tuple[int, ...]:
    """Of an output, -1 where it depends on the request."""
    axes = len(model.spec.shape) - (0 if model.spec.names else 1)
    more = {
        "label": (model.info.num_classes,) if model.gives_labels else (),
        "probabilities": (model.info.num_classes,),
        "attention": (-1,) * axes,
        "attention_shape": (axes,),
    }
    return (-1, *more.get(name, ()))


def give_reason(model: ServedModel, ticket: Ticket, i: int) -> str:
    """Why sample ``i`` was answered where it was, in a few words."""
    policy, terms = model.policies[ticket.terms.policy], ticket.terms
    k, score, name = int(ticket.exits[i]), float(ticket.confidence[i]), policy.score.replace("_", " ")
    if ticket.limited[i]:
        why = "max_cost" if terms.last_exit is not None and k >= terms.last_exit else "deadline_ms"
        return f"the request's {why} allowed no deeper exit; {name} {score:.3f}"
    if k == model.num_exits - 1:
        return f"no earlier exit was sure enough; {name} {score:.3f}"
    found, needed = tell_apart(score, max(policy.thresholds[k], terms.min_confidence))
    return f"{name} {found} >= {needed}"


def name_promise(policy: Policy, terms: Terms) -> str:
    """What is promised about an answer under these terms: ``certified``, ``calibrated``, or ``none`` and why."""
    if terms.changes_policy:
        given = {"max_cost": terms.last_exit is not None, "min_confidence": terms.min_confidence > 0}
        names = [name for name, is_given in given.items() if is_given] or ["deadline_ms"]
        return f"none: the policy's own was made without {names[0]}"
    record = policy.calibration
    if record is None:
        return "none: thresholds were set by hand"
    if policy.is_changed:
        return "none: the policy was changed since it was calibrated"
    tested = record.certification
    return "certified" if tested is not None and not tested.reason else "calibrated"
