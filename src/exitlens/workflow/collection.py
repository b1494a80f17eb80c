"""collect: one pass over a data set that records every exit of every sample."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from exitlens.data.batches import Batch, count_batches, iterate_batches, take_share
from exitlens.errors import InputError, require
from exitlens.functional.gating import compute_gate_features
from exitlens.functional.groups import number_groups
from exitlens.functional.maps import on_common_grid
from exitlens.functional.similarity import MEASURES, transplant, uniform
from exitlens.model.network import ExitNet
from exitlens.ranks import Ranks, find_ranks
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
    ranks: Ranks | None = None,
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
        ranks: the processes that share the work; by default those that ``torchrun`` started, or of the process group that
            there is; ``Ranks()``: this process alone. They take the batches in turn; each gets the trace of all, which is
            the one that a single process makes.

    Returns:
        A :class:`Trace` with, besides the logits, every consistency measure of docs/method.md and its two nulls.

    Raises:
        InputError: for inputs the network cannot take, mixed labelled and unlabelled batches, no sample at all, or another
            number of groups.
    """
    require(net, ExitNet, "net")
    require(ranks, Ranks | None, "ranks")
    ranks = find_ranks() if ranks is None else ranks
    with ranks.together():
        source = take_share(loader, batch_size, ranks, "loader")
        stream = iterate_batches(source, batch_size, net.device)
        if progress and ranks.is_first:
            stream = iter(track(stream, "collecting", total=count_batches(source, batch_size)))
    seen: list[_Observed] = []
    ranks.hand_over(_observe(net, stream), seen.append)
    return ranks.share(lambda: _record(net, seen, groups, seed))


class _Observed(NamedTuple):
    """What one batch gave, on the CPU: ``(B,K,C)``, ``(B,)``, ``(B,)``, ``(B,K-1,2)``, and a pair of maps for each exit."""

    logits: Tensor
    labels: Tensor | None
    groups: Tensor | None
    gate_features: Tensor
    maps: MapPairs  # of the exit and of the final one, on one grid


def _observe(net: ExitNet, stream: Iterator[Batch]) -> Iterator[_Observed]:
    """Runs every batch through every exit."""
    for images, labels, groups in stream:
        activations = net.check_input(images, "loader")
        with net.open_engine() as engine:
            outputs = engine.compute_outputs(engine.enter(activations))
        early = [attention for _, attention in outputs[:-1]]
        features = [compute_gate_features(one, early[k - 1] if k else None).cpu() for k, one in enumerate(early)]
        grids = (on_common_grid(attention.float(), outputs[-1][1].float()) for _, attention in outputs)
        yield _Observed(
            torch.stack([out.float() for out, _ in outputs], 1).cpu(),
            None if labels is None else labels.cpu(),
            None if groups is None else groups.cpu(),
            torch.stack(features, 1) if features else torch.empty(0),
            [(one.cpu(), final.cpu()) for one, final in grids],
        )


def _record(net: ExitNet, seen: Sequence[_Observed], groups: Tensor | Sequence[Hashable] | None, seed: int) -> Trace:
    """The trace of all batches."""
    if not seen:
        raise InputError("loader: it gave no batch: pass at least one image")
    labels = [one.labels for one in seen]
    if any(t is None for t in labels) and any(t is not None for t in labels):
        raise InputError("loader: some batches have labels and some have none: give all of them labels, or none")
    if len({one.maps[-1][0].shape[1:] for one in seen}) > 1:
        raise InputError("loader: its images have different sizes, so their maps cannot be compared: resize them to one")
    pairs = list(zip(*(one.maps for one in seen), strict=True))
    maps = [(torch.cat([a for a, _ in p]), torch.cat([b for _, b in p])) for p in pairs]
    features = torch.cat([one.gate_features for one in seen]) if net.num_exits > 1 else None
    trace = _trace(net, torch.cat([one.logits for one in seen]), labels, maps, features, seed)
    return replace(trace, groups=_join_groups(groups, [one.groups for one in seen]))


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
