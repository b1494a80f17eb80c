"""predict: adaptive inference, routed per sample: those who are sure leave, the others are gathered and go on."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from exitlens.errors import InputError, require
from exitlens.functional.inputs import Inputs
from exitlens.functional.maps import all_finite
from exitlens.functional.routing import fires
from exitlens.functional.scores import probabilities, score_of
from exitlens.model.modes import mode_of
from exitlens.model.network import ExitNet
from exitlens.model.stages import Carried
from exitlens.types import Policy, Prediction


def predict(net: ExitNet, images: Inputs, policy: Policy, *, attention: bool = False) -> Prediction:
    """Answers each sample at the first exit whose score reaches its threshold.

    Exits that can never fire (threshold infinite) are not computed. Between exits the host looks at the device once.

    Args:
        net: used in evaluation mode, and given back in the mode it was in.
        images: ``(B,C,H,W)`` normalised floats, or texts as :meth:`~exitlens.types.TextPreprocess.encode` gives them; not
            changed.
        policy: of this network (checked by fingerprint where the policy carries one).
        attention: also return the attention map of the exit that answered.

    Returns:
        Labels, exits, scores and probabilities in the order of ``images``.

    Raises:
        InputError: for images the network cannot take; PolicyError: for a policy of another network.
    """
    require(net, ExitNet, "net")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    carried = net.check_input(images)
    policy.check(net.num_exits, net.cached_fingerprint() if policy.network else "")
    with mode_of(net, False) if net.any_training() else nullcontext(), torch.inference_mode():
        parts = _route(net, carried, policy, attention)
    if len(parts) == 1:
        return _in_order(parts, None)
    return _in_order(parts, torch.cat([where for where, *_ in parts]).argsort())


Part = tuple[Tensor, int, Tensor, Tensor, Tensor | None]  # places, exit, scores, probabilities, attention


def _route(net: ExitNet, carried: Carried, policy: Policy, attention: bool) -> list[Part]:
    parts: list[Part] = []
    last = net.num_exits - 1
    where = torch.arange(len(carried[0]), device=carried[0].device)
    for k in range(net.num_exits):
        carried = net.stage(k)(*carried)
        if k < last and policy.thresholds[k] == float("inf"):
            continue
        logits, maps = _answer(net, k, carried, attention)
        p = probabilities(logits, policy.temperatures[k])
        scores = score_of(p, policy.score)
        if k == last:
            parts.append((where, k, scores, p, maps))
            break
        fired = fires(scores, policy.thresholds[k])
        count = int(fired.sum())  # the one synchronisation of this exit
        if count == len(where):
            parts.append((where, k, scores, p, maps))
            break
        if count:
            leave, stay = fired.nonzero().squeeze(1), (~fired).nonzero().squeeze(1)
            parts.append((where[leave], k, scores[leave], p[leave], None if maps is None else maps[leave]))
            where = where[stay]
            carried = tuple(_gather(t, stay) for t in carried)
    return parts


def _gather(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of ``x`` in the memory format of ``x``."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)  # whole rows of memory, copied once
    return x.index_select(0, rows)


def _answer(net: ExitNet, k: int, carried: Carried, attention: bool) -> tuple[Tensor, Tensor | None]:
    if attention:
        return net.head(k).with_attention(*carried)
    return net.head(k).classify(*carried), None


def _in_order(parts: list[Part], order: Tensor | None) -> Prediction:
    """Parts by exit -> one prediction in the order of the input."""

    def joined(columns: list[Tensor]) -> Tensor:
        return columns[0] if order is None else torch.cat(columns)[order]

    probability = joined([p for _, _, _, p, _ in parts])
    if not all_finite(probability):
        raise InputError("net: its logits are NaN or infinite for these images: its weights are damaged, train it again")
    exits = joined([torch.full_like(where, k) for where, k, *_ in parts])
    maps: tuple[Tensor, ...] | None = None
    if parts[0][4] is not None:
        rows = [row for *_, part in parts if part is not None for row in part.unbind(0)]
        maps = tuple(rows if order is None else (rows[i] for i in order.tolist()))
    return Prediction(probability.argmax(1), exits, joined([s for _, _, s, _, _ in parts]), probability, maps)
