"""predict: adaptive inference on one batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from exitlens.errors import InputError, require
from exitlens.functional.maps import all_finite
from exitlens.model.engine.router import RoutedBatch, Router
from exitlens.model.heads.exit_heads import require_maps
from exitlens.model.network import ExitNet
from exitlens.types import Policy, Prediction
from exitlens.types.inputs import Inputs
from exitlens.types.tasks import read_answers


def predict(net: ExitNet, inputs: Inputs, policy: Policy, *, attention: bool = False) -> Prediction:
    """Answers each sample of a batch at the first exit whose score reaches its threshold.

    Exits that can never fire (threshold infinite) are not computed. Between exits the host looks at the device once. The
    network runs as ``net.tuning`` says, on compiled stages if there are any (:meth:`~exitlens.model.network.ExitNet.tune`,
    :meth:`~exitlens.model.network.ExitNet.compile`). Threads may share a network, unless one of them trains it.

    Args:
        net: used in evaluation mode, and given back in the mode it was in.
        inputs: ``(B,C,H,W)`` normalised floats, or texts as :meth:`~exitlens.types.TextPreprocess.encode` gives them; not
            changed. For a folder, a loader or other batches call :func:`exitlens.predict_stream`.
        policy: of this network (checked by fingerprint where the policy carries one).
        attention: also return the attention map of the exit that answered, placed in the image
            (see docs/concepts/method.md).

    Returns:
        Labels (one class a sample, or of several labels whether each is there), exits, scores and probabilities in the order
        of ``inputs``.

    Raises:
        InputError: for inputs that the network cannot take; PolicyError: for a policy of another network.

    Examples:
        >>> pred = xl.predict(net, images, policy, attention=True)
        >>> pred.labels.shape, pred.exits.shape, len(pred.attention)
        (torch.Size([8]), torch.Size([8]), 8)
    """
    check_policy(net, policy)
    if attention:
        require_maps(net.heads, "attention=True")
    if not isinstance(inputs, Tensor | Mapping):
        many = isinstance(inputs, str | Path | Dataset | Iterable)
        hint = ": call exitlens.predict_stream for a folder, a loader or several batches" if many else ""
        raise InputError(f"inputs: expected a torch.Tensor or a dict of them, one batch, got {type(inputs).__name__}{hint}")
    with net.open_engine() as engine:
        activations = net.check_input(inputs, "inputs")
        router = Router(engine, policy, attention, engine.tuning.micro_batch)
        where = torch.arange(len(activations[0]), device=activations[0].device)
        return merge_routed(net, router.run(where, activations))


def check_policy(net: ExitNet, policy: Policy) -> None:
    """Raises :class:`InputError` or :class:`PolicyError` unless this is a network and a policy of it."""
    require(net, ExitNet, "net")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    policy.check(net.num_exits, net.identity() if policy.network else "", net.info.task)


def merge_routed(net: ExitNet, routed: list[RoutedBatch]) -> Prediction:
    """What the router gave, as one prediction in the order of places; raises :class:`InputError` for NaN or infinity.

    Attention maps are placed in the image.
    """
    if len(routed) == 1:
        where, exit_, scores, p, rows, trust = routed[0]
        _check_answers(p)
        maps = None if rows is None else tuple(net.info.place(exit_, rows).unbind(0))
        estimates, last = (None, None) if trust is None else trust.unbind(1)
        return Prediction(
            read_answers(p, net.info.task), torch.full_like(where, exit_), scores, p, maps, where, estimates, last
        )
    where, order = torch.cat([part.where for part in routed]).sort()
    p = torch.cat([part.probabilities for part in routed])[order]
    _check_answers(p)
    maps = None
    if routed[0].attention is not None:
        placed = [net.info.place(part.exit, part.attention) for part in routed if part.attention is not None]
        every = [row for rows in placed for row in rows.unbind(0)]
        maps = tuple(every[i] for i in order.tolist())
    exits = torch.cat([torch.full_like(part.where, part.exit) for part in routed])[order]
    scores = torch.cat([part.scores for part in routed])[order]
    known = [part.trust for part in routed if part.trust is not None]
    estimates, last = torch.cat(known)[order].unbind(1) if known else (None, None)
    return Prediction(read_answers(p, net.info.task), exits, scores, p, maps, where, estimates, last)


def _check_answers(p: Tensor) -> None:
    if not all_finite(p):
        raise InputError("net: its logits are NaN or infinite for these images: its weights are damaged, train it again")
