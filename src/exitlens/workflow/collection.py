"""collect: one pass over a data set that records every exit of every sample."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from exitlens.data.batches import count_batches, iterate_batches
from exitlens.errors import InputError, require
from exitlens.functional.gating import compute_gate_features
from exitlens.functional.groups import number_groups
from exitlens.functional.maps import on_common_grid
from exitlens.functional.similarity import MEASURES, transplant, uniform
from exitlens.model.network import ExitNet
from exitlens.types import Trace

MapPairs = list[tuple[Tensor, Tensor]]  # maps of two exits, each (B,*S)


def collect(
    net: ExitNet,
    loader: Any,
    *,
    groups: Tensor | Sequence[Hashable] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Trace:
    """Runs every sample through every exit once and records what calibration and evaluation need.

    Args:
        net: used in evaluation mode and as it is tuned, and given back in the mode it was in.
        loader: a ``DataLoader``, a ``Dataset``, an iterable of batches, or inputs; labels are optional.
        groups: ``(N,)`` integers or names: samples with the same one belong together (frames of one video, pictures of one
            patient) and are not independent; by default as the data say, if they do.
        batch_size: where the batching is ours.
        seed: of the pairing of images for the shuffled-image null.
        progress: show a progress bar.

    Returns:
        A :class:`Trace` with, besides the logits, every consistency measure of docs/method.md and its two nulls.

    Raises:
        InputError: for inputs the network cannot take, mixed labelled and unlabelled batches, no sample at all, or another
            number of groups.
    """
    require(net, ExitNet, "net")
    logits: list[Tensor] = []
    labels: list[Tensor | None] = []
    ids: list[Tensor | None] = []
    gate_features: list[Tensor] = []
    pairs: list[MapPairs] = [[] for _ in range(net.num_exits)]
    stream = iterate_batches(loader, batch_size, net.device)
    if progress:
        stream = iter(track(stream, "collecting", total=count_batches(loader, batch_size)))
    for images, target, group in stream:
        activations = net.check_input(images, "loader")
        with net.open_engine() as engine:
            outputs = engine.compute_outputs(engine.enter(activations))
        logits.append(torch.stack([out.float() for out, _ in outputs], 1).cpu())
        labels.append(None if target is None else target.cpu())
        ids.append(None if group is None else group.cpu())
        early = [attention for _, attention in outputs[:-1]]
        features = [compute_gate_features(one, early[k - 1] if k else None).cpu() for k, one in enumerate(early)]
        gate_features.append(torch.stack(features, 1) if features else torch.empty(0))
        for k, (_, attention) in enumerate(outputs):
            grids = on_common_grid(attention.float(), outputs[-1][1].float())
            pairs[k].append((grids[0].cpu(), grids[1].cpu()))
    if not logits:
        raise InputError("loader: it gave no batch: pass at least one image")
    if any(t is None for t in labels) and any(t is not None for t in labels):
        raise InputError("loader: some batches have labels and some have none: give all of them labels, or none")
    if len({early.shape[1:] for early, _ in pairs[-1]}) > 1:
        raise InputError("loader: its images have different sizes, so their maps cannot be compared: resize them to one")
    maps = [(torch.cat([a for a, _ in p]), torch.cat([b for _, b in p])) for p in pairs]
    trace = _trace(net, torch.cat(logits), labels, maps, torch.cat(gate_features) if net.num_exits > 1 else None, seed)
    return replace(trace, groups=_join_groups(groups, ids))


def _join_groups(given: Tensor | Sequence[Hashable] | None, found: list[Tensor | None]) -> Tensor | None:
    """The groups that were given, or those that came with the batches."""
    if given is not None:
        return number_groups(given)
    if any(one is None for one in found) and any(one is not None for one in found):
        raise InputError("loader: some batches have groups and some have none: give all of them groups, or none")
    return None if found[0] is None else torch.cat([one for one in found if one is not None])


def _trace(
    net: ExitNet, logits: Tensor, labels: list[Tensor | None], maps: MapPairs, gate_features: Tensor | None, seed: int
) -> Trace:
    partner = pair_samples(len(logits), seed)

    def compare(pairs: MapPairs) -> dict[str, Tensor]:
        # KL is KL(final ‖ exit); the other measures are symmetric
        return {name: torch.stack([measure(*pair) for pair in pairs], 1) for name, measure in MEASURES.items()}

    similarity = compare([(final, early) for early, final in maps])
    spread = similarity["divergence"].clone()
    spread[:, -1] = 0
    return Trace(
        logits,
        None if labels[0] is None else torch.cat([t for t in labels if t is not None]),
        spread,
        net.cost,
        network=net.identity(),
        similarity=similarity,
        null=compare([(transplant(final[partner], early), early) for early, final in maps]) if len(logits) > 1 else {},
        uniform_null=compare([(final, uniform(early)) for early, final in maps]),
        gate_features=gate_features,
    )


def pair_samples(count: int, seed: int) -> Tensor:
    """For each image another one, drawn at random: a random cycle, so that no image is its own partner."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner
