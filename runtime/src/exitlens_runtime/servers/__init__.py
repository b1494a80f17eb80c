"""Other people's servers run an edge bundle: ``exitlens export --for`` writes what starts these models.

Their tensors have the names of ``exitlens serve``: ``inputs`` (or the network's own names, if it takes several), and
:data:`OUTPUTS`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from exitlens_runtime.errors import ExitlensRuntimeError, InputError
from exitlens_runtime.network import EdgeNetwork
from exitlens_runtime.routing import Array

INPUTS = "inputs"  # name of a network's one tensor
DEFAULT_OUTPUTS = ("label", "probabilities", "exit", "confidence", "cost")
MAPS = ("attention", "attention_shape")  # only for requests that name them
OUTPUTS = (*DEFAULT_OUTPUTS, *MAPS)
DATATYPES = {"float32": "FP32", "int64": "INT64"}


def describe_inputs(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Describe the tensors of requests as the protocol's metadata do, in the order of an edge bundle's manifest."""
    given = manifest["inputs"]
    is_alone = len(given) == 1 and given[0]["dtype"] == "float32"
    return [_describe(INPUTS if is_alone else x["name"], DATATYPES[x["dtype"]], x["shape"]) for x in given]


def describe_outputs(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Describe the tensors of answers; maps have the size of the largest."""
    classes, largest = [int(manifest["num_classes"])], _find_largest(manifest)
    label = classes if manifest.get("task") == "multilabel" else []
    shapes = {"label": label, "probabilities": classes, "attention": largest, "attention_shape": [len(largest)]}
    whole = ("label", "exit", "attention_shape")
    return [_describe(name, "INT64" if name in whole else "FP32", shapes.get(name, [])) for name in OUTPUTS]


def _describe(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1, *shape]}


def _find_largest(manifest: Mapping[str, Any]) -> list[int]:
    return [max(sizes) for sizes in zip(*(part["map_shape"] for part in manifest["segments"]), strict=True)]


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
        maps = np.zeros((len(pred), *_find_largest(net.manifest)), np.float32)
        for row, map_ in zip(maps, pred.attention, strict=True):
            row[tuple(slice(size) for size in map_.shape)] = map_
        outputs |= {"attention": maps, "attention_shape": np.array([map_.shape for map_ in pred.attention], np.int64)}
    return {name: outputs[name] for name in OUTPUTS if name in wanted}


def answer_requests(
    net: EdgeNetwork, requests: Sequence[Mapping[str, Array]], wanted: Sequence[Collection[str]]
) -> list[dict[str, Array] | ExitlensRuntimeError]:
    """Answer several requests as one batch, each with the outputs that it wants; a request with bad inputs fails alone."""
    answers: list[dict[str, Array] | ExitlensRuntimeError] = []
    for request in requests:
        try:
            net.check(_rename(net, request))
            answers.append({})
        except InputError as error:
            answers.append(error)
    good = [i for i, each in enumerate(answers) if isinstance(each, dict)]
    if not good:
        return answers
    names = [set(each or DEFAULT_OUTPUTS) for each in wanted]
    together = {name: np.concatenate([requests[i][name] for i in good]) for name in requests[good[0]]}
    try:
        outputs = answer(net, together, set().union(*(names[i] for i in good)))
    except ExitlensRuntimeError as error:
        return [error] * len(answers)
    end = 0
    for i in good:
        start, end = end, end + len(next(iter(requests[i].values())))
        answers[i] = {name: values[start:end] for name, values in outputs.items() if name in names[i]}
    return answers


def _rename(net: EdgeNetwork, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return tensors by the names in the bundle."""
    names = [tensor["name"] for tensor in describe_inputs(net.manifest)]
    if set(tensors) != set(names):
        raise InputError(f"inputs: expected tensors named {names}, got {sorted(tensors)}")
    return {inner: tensors[name] for name, inner in zip(names, net.input_names, strict=True)}
