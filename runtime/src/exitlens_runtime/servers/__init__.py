"""Other people's servers run an edge bundle: ``exitlens export --for`` writes what starts these models.

Their tensors have the names of ``exitlens serve``: ``inputs`` (or the network's own names, if it takes several), and
:data:`OUTPUTS`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from exitlens_runtime.errors import ExitlensRuntimeError, InputError
from exitlens_runtime.network import EdgeNetwork
from exitlens_runtime.routing import Array

INPUTS = "inputs"  # name of a network's one tensor
DEFAULT_OUTPUTS = ("label", "probabilities", "exit", "confidence", "cost")
MAPS = ("attention", "attention_shape")  # only for requests that name them
OUTPUTS = (*DEFAULT_OUTPUTS, *MAPS)


def list_inputs(net: EdgeNetwork) -> dict[str, tuple[int, ...]]:
    """Return the tensors that requests have, by name, with the shape of one sample."""
    tensors = net.manifest["inputs"]
    is_alone = len(tensors) == 1 and tensors[0]["dtype"].startswith("float")
    return {INPUTS if is_alone else tensor["name"]: tuple(tensor["shape"]) for tensor in tensors}


def answer(
    net: EdgeNetwork, tensors: Mapping[str, Array], wanted: Collection[str] = DEFAULT_OUTPUTS
) -> dict[str, Array]:  # of B rows
    """Answer a batch; return the wanted outputs, or the default ones if none is named.

    Maps are padded with 0 to the largest of the network, so that batches can be split; ``attention_shape`` ``(B,axes)``
    has their true sizes. Raises :class:`InputError` for what the network cannot take, and for unknown outputs.
    """
    wanted = wanted or DEFAULT_OUTPUTS
    if unknown := sorted(set(wanted) - set(OUTPUTS)):
        raise InputError(f"outputs: expected some of {', '.join(OUTPUTS)}, got {', '.join(unknown)}")
    pred = net.predict(_rename(net, tensors), attention=any(name in wanted for name in MAPS))
    outputs = {
        "label": pred.labels.astype(np.int64),
        "probabilities": pred.probabilities,
        "exit": pred.exits,
        "confidence": pred.confidence,
        "cost": net.cost[pred.exits].astype(np.float32),
    }
    if pred.attention is not None:
        shapes = [part["map_shape"] for part in net.manifest["segments"]]
        maps = np.zeros((len(pred), *(max(sizes) for sizes in zip(*shapes, strict=True))), np.float32)
        for row, map_ in zip(maps, pred.attention, strict=True):
            row[tuple(slice(size) for size in map_.shape)] = map_
        outputs |= {"attention": maps, "attention_shape": np.array([map_.shape for map_ in pred.attention], np.int64)}
    return {name: outputs[name] for name in OUTPUTS if name in wanted}


def answer_requests(
    net: EdgeNetwork, requests: Sequence[Mapping[str, Array]], wanted: Sequence[Collection[str]]
) -> list[dict[str, Array] | ExitlensRuntimeError]:
    """Answer several requests as one batch, each with the outputs that it wants; a request with bad inputs fails alone."""
    answers: list[dict[str, Array] | ExitlensRuntimeError] = []
    good, names = [], set[str]()
    for request, each in zip(requests, wanted, strict=True):
        try:
            net.check(_rename(net, request))
            answers.append({})
            good.append(request)
            names |= set(each or DEFAULT_OUTPUTS)
        except InputError as error:
            answers.append(error)
    if not good:
        return answers
    counts = [len(next(iter(request.values()))) for request in good]
    try:
        together = answer(net, {name: np.concatenate([request[name] for request in good]) for name in good[0]}, names)
    except ExitlensRuntimeError as error:
        return [error] * len(answers)
    ends = np.cumsum(counts)[:-1]
    parts = {name: iter(np.split(values, ends)) for name, values in together.items()}
    for i, each in enumerate(wanted):
        if isinstance(answers[i], dict):
            rows = {name: next(values) for name, values in parts.items()}
            answers[i] = {name: rows[name] for name in rows if name in (each or DEFAULT_OUTPUTS)}
    return answers


def _rename(net: EdgeNetwork, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return tensors by the names in the bundle."""
    names = list(list_inputs(net))
    if set(tensors) != set(names):
        raise InputError(f"inputs: expected tensors named {names}, got {sorted(tensors)}")
    return {inner: tensors[name] for name, inner in zip(names, net.input_names, strict=True)}
