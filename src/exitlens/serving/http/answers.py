"""The terms that a request may name, and its answers as arrays by name, with a reason and a promise."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from reprlib import repr as shorten  # also of lists that are too deep for repr
from typing import Any, NamedTuple

import numpy as np

from exitlens.errors import RequestError, suggest
from exitlens.serving.cascade import Terms, Ticket, is_adapted
from exitlens.serving.models import Array, ServedModel
from exitlens.serving.settings import LONGEST_ID
from exitlens.types import Policy
from exitlens.types.inputs import MASK
from exitlens.types.outputs import tell_apart
from exitlens.types.policies import DEFAULT

TERMS = ("policy", "max_cost", "min_confidence", "deadline_ms")
DEFAULT_OUTPUTS = ("label", "probabilities", "exit", "confidence", "cost")
MAPS = ("attention", "attention_shape")
TOP = 5  # classes in an answer for people


def read_terms(model: ServedModel, given: Mapping[str, Any], started: float, attention: bool) -> Terms:
    """Return a request's own terms, from its parameters; raise :class:`RequestError` for unknown ones and bad values."""
    check_known("parameters", given, TERMS)
    policy = given.get("policy", DEFAULT)
    if not isinstance(policy, str) or policy not in model.policies:
        raise RequestError(f"policy: expected one of {sorted(model.policies)}, got {shorten(policy)}")
    cost = read_number(given, "max_cost", math.inf)
    confidence = read_number(given, "min_confidence", 1.0) or 0.0
    deadline = read_number(given, "deadline_ms", 3.6e6)
    last_exit = None if cost is None else model.find_last_exit(cost)
    return Terms(policy, last_exit, confidence, math.inf if deadline is None else started + deadline / 1000, attention)


def check_known(place: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise :class:`RequestError` for a name that is not known."""
    for name in names:
        if name not in known:
            hint = suggest(name[:20], known)
            raise RequestError(f"{place}: expected some of {', '.join(known)}, got {name!r:.60}.{hint}")


def read_number(given: Mapping[str, Any], name: str, high: float) -> float | None:
    """Return a number from 0 to ``high``, also from text; ``None`` if it is not given."""
    value = given.get(name)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= high or number == math.inf:
        limit = "or more" if high == math.inf else f"to {high:g}"
        raise RequestError(f"{name}: expected a number of 0 {limit}, got {shorten(value)}")
    return number


def describe_terms(model: ServedModel, terms: Terms) -> dict[str, str]:
    """Return the name of an answer's policy, and what it promises."""
    promise = "adaptive" if _acts(model, terms) else name_promise(model.policies[terms.policy], terms)
    return {"policy": terms.policy, "promise": promise}


def _acts(model: ServedModel, terms: Terms) -> bool:
    """Return whether thresholds that adapt decide about a request with these terms."""
    return is_adapted(model, terms) and model.adaptive is not None and model.adaptive.act


def read_feedback(model: ServedModel, body: bytes, most: int) -> tuple[str, list[int | list[int] | None]]:
    """Return the id of a request and the labels of its samples, by number, from JSON; raise :class:`RequestError`."""
    try:
        given = json.loads(body)
        name, labels = given["id"], given["labels"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        words = "Fix: send the id of an earlier request, and its labels."
        raise RequestError(f'body: expected {{"id": ..., "labels": [...]}}, got {shorten(body)}. {words}') from error
    if not isinstance(name, str) or len(name) > LONGEST_ID or not isinstance(labels, list) or len(labels) > most:
        raise RequestError(
            f"id, labels: expected a text of at most {LONGEST_ID}, and a list of at most {most} labels, got {shorten(given)}"
        )
    return name, [None if label is None else _read_label(model, label) for label in labels]


def _read_label(model: ServedModel, label: Any) -> int | list[int]:
    if model.gives_labels:
        if not isinstance(label, list):
            raise RequestError(f"labels: expected a list of labels for each sample, got {shorten(label)}")
        return [_read_class(model, each) for each in label]
    return _read_class(model, label)


def _read_class(model: ServedModel, label: Any) -> int:
    if isinstance(label, str) and label in model.info.classes:
        return model.info.classes.index(label)
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < model.info.num_classes:
        known = f"0 to {model.info.num_classes - 1}" + (" or a class's name" if model.info.classes else "")
        raise RequestError(f"labels: expected {known}, got {shorten(label)}")
    return label


class Output(NamedTuple):
    """An output that a request may ask for; openapi.json explains each."""

    datatype: str  # in the protocol
    write: Callable[[ServedModel, Ticket], Array]  # the output of all samples


def _write_attention(_: ServedModel, ticket: Ticket) -> Array:
    """Return ``(n,*S)``; where exits have maps of different sizes, smaller ones are padded with 0 at their ends."""
    maps = [attention for attention in ticket.maps if attention is not None]
    size = tuple(max(sizes) for sizes in zip(*(attention.shape for attention in maps), strict=True))
    padded = np.zeros((len(maps), *size), np.float32)
    for row, attention in zip(padded, maps, strict=True):
        row[tuple(slice(n) for n in attention.shape)] = attention.numpy()
    return padded


OUTPUTS: Mapping[str, Output] = {
    "label": Output("INT64", lambda model, ticket: ticket.labels if model.gives_values else ticket.labels.astype(np.int64)),
    "probabilities": Output("FP32", lambda _, ticket: ticket.probabilities),
    "exit": Output("INT64", lambda _, ticket: ticket.exits),
    "confidence": Output("FP32", lambda _, ticket: ticket.confidence),
    "cost": Output("FP32", lambda model, ticket: np.array(model.cost, np.float32)[ticket.exits]),
    "class": Output("BYTES", lambda model, ticket: np.array(model.name_answers(ticket.labels), dtype=object)),
    "trust": Output("FP32", lambda _, ticket: ticket.trust),
    "refused": Output("INT64", lambda _, ticket: ticket.refused),
    "limited": Output("BOOL", lambda _, ticket: ticket.limited),
    "reason": Output(
        "BYTES", lambda model, ticket: np.array([give_reason(model, ticket, i) for i in range(len(ticket))], dtype=object)
    ),
    "attention": Output("FP32", _write_attention),
    "attention_shape": Output(
        "INT64", lambda _, ticket: np.array([() if map_ is None else map_.shape for map_ in ticket.maps], np.int64)
    ),
}


def name_type(model: ServedModel, name: str) -> str:
    """Return the datatype of an output in the protocol: labels that are numbers or vectors are FP32 or FP64."""
    is_number = name == "label" and model.gives_values
    return f"FP{8 * np.dtype(model.label_type).itemsize}" if is_number else OUTPUTS[name].datatype


def list_default_outputs(model: ServedModel) -> list[str]:
    """Return the outputs of a request that names none: numbers and vectors have no probabilities."""
    return [name for name in DEFAULT_OUTPUTS if not (name == "probabilities" and model.gives_values)]


def shape_output(model: ServedModel, name: str) -> tuple[int, ...]:
    """Return the shape of an output, -1 where it depends on the request."""
    axes = len(model.spec.shape) - (0 if model.spec.names else 1)
    classes = 0 if model.gives_values else model.info.num_classes
    sizes = {"label": model.label_shape, "probabilities": (classes,), "attention": (-1,) * axes, "attention_shape": (axes,)}
    return (-1, *sizes.get(name, ()))


def write_row(model: ServedModel, ticket: Ticket, i: int) -> dict[str, Any]:
    """Return the answer of sample ``i`` for people, JSON-ready."""
    p, k = ticket.probabilities[i], int(ticket.exits[i])
    best = p.argsort()[::-1][:TOP].copy()
    labels = ticket.labels[i]
    if model.image_size:
        told: dict[str, Any] = {"areas": model.measure_areas(labels)}
    elif model.gives_values:
        told = {"label": labels.tolist()}
    else:
        told = {"label": np.flatnonzero(labels).tolist() if model.gives_labels else int(labels)}
    return {
        "class": model.name_answers(ticket.labels[i : i + 1])[0],
        **told,
        "confidence": float(ticket.confidence[i]),
        "exit": k,
        "exits": model.num_exits,
        "cost": model.cost[k],
        "probabilities": {name: float(p[c]) for name, c in zip(model.name_answers(best), best, strict=True)},
        "reason": give_reason(model, ticket, i),
        "limited": bool(ticket.limited[i]),
        "ms": round(1000 * (ticket.done - ticket.since), 3),
    }


class EmbeddingRequest(NamedTuple):
    """A request of a client of OpenAI's embeddings route."""

    texts: list[str]
    model: str
    packs: bool  # vectors come as base64, for which these clients ask unless told otherwise
    terms: Mapping[str, Any]


def read_embedding_request(body: bytes) -> EmbeddingRequest:
    """Read the JSON of a request to ``/v1/embeddings``; raise :class:`RequestError` for anything else."""
    try:
        given = json.loads(body)
        texts, model, encoding = given.pop("input"), given.pop("model", ""), given.pop("encoding_format", "float")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(f'body: expected {{"input": [...], "model": ...}}, got {shorten(body)}') from error
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"input: expected a text or a list of texts, got {shorten(texts)}")
    if encoding not in ("float", "base64"):
        raise RequestError(f"encoding_format: expected float or base64, got {shorten(encoding)}")
    given.pop("user", None)
    return EmbeddingRequest(texts, str(model), encoding == "base64", given)


def write_embeddings(model: ServedModel, ticket: Ticket, packs: bool) -> dict[str, Any]:
    """Return vectors as OpenAI's route does, with the exit of each; ``usage`` counts what the network has read."""
    vectors: list[Any] = ticket.labels.tolist()
    if packs:
        vectors = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in ticket.labels]
    named = dict(zip(model.spec.names, ticket.activations, strict=False))
    tokens = int(named[MASK].sum()) if MASK in named else ticket.activations[0].numel()
    data = [
        {"object": "embedding", "index": i, "embedding": vector, "exit": exit_}
        for i, (vector, exit_) in enumerate(zip(vectors, ticket.exits.tolist(), strict=True))
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model.name, "usage": usage, **describe_terms(model, ticket.terms)}


def give_reason(model: ServedModel, ticket: Ticket, i: int) -> str:
    """Return in a few words why sample ``i`` was answered at its exit, and what is promised of its map."""
    policy, terms = model.policies[ticket.terms.policy], ticket.terms
    why = _compare(model, ticket, i)
    promise = "" if terms.changes_policy or _acts(model, terms) else policy.describe_binding(int(ticket.exits[i]))
    return f"{why}. {promise}" if promise else why


def _compare(model: ServedModel, ticket: Ticket, i: int) -> str:
    policy, terms = model.policies[ticket.terms.policy], ticket.terms
    k, score, name = int(ticket.exits[i]), float(ticket.confidence[i]), policy.score.replace("_", " ")
    if ticket.limited[i]:
        why = "max_cost" if terms.last_exit is not None and k >= terms.last_exit else "deadline_ms"
        return f"the request's {why} allowed no deeper exit; {name} {score:.3f}"
    if k == model.num_exits - 1:
        refusing, stayed = int(ticket.refused[i]), "no earlier exit was sure enough"
        if is_adapted(model, terms):
            stayed = "no earlier exit was sure enough, or its answer was to be checked"
        if refusing >= 0:
            stayed = f"exit {refusing} was sure enough, but the gate refused its answer"
        return f"{stayed}; {name} {score:.3f}"
    if policy.gate is not None:
        reached, needed = tell_apart(float(ticket.trust[i]), float(ticket.thresholds[i]))
        return f"trust of the gate {reached} >= {needed}; {name} {score:.3f}"
    reached, needed = tell_apart(score, max(float(ticket.thresholds[i]), terms.min_confidence))
    return f"{name} {reached} >= {needed}"


def name_promise(policy: Policy, terms: Terms) -> str:
    """Return the promise about an answer under these terms: ``certified``, ``calibrated``, or ``none`` and why."""
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
