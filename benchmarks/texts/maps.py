"""Where maps of texts lie: on words that raters call good or bad, by chance, and by their places in the sentence alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import exitlens as xl
from exitlens.functional.attribution import draw_random_map, energy_in_mask, pointing_game
from exitlens.functional.maps import as_distribution, pearson
from exitlens.functional.scores import probabilities
from exitlens.model.attribution import perturb
from exitlens.types.inputs import MASK, Inputs

BATCH_SIZE = 250
FRACTION = 0.2  # of the tokens are deleted


def match_lengths(lengths: Tensor, seed: int = 0) -> Tensor:  # (N,) integers -> (N,)
    """For each text another one of the same length, drawn at random; -1 where there is none."""
    partner = torch.full_like(lengths, -1)
    rng = torch.Generator().manual_seed(seed)
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero().squeeze(1)
        if len(rows) > 1:
            order = rows[torch.randperm(len(rows), generator=rng)]
            partner[order] = order.roll(1)
    return partner


def collect_maps(net: xl.ExitNet, data: xl.TextSet) -> tuple[list[Tensor], list[Tensor]]:
    """Probabilities ``(N,C)`` and attention ``(N,L)`` of every exit."""
    answers: list[list[Tensor]] = [[] for _ in range(net.num_exits)]
    attention: list[list[Tensor]] = [[] for _ in answers]
    for rows in torch.arange(len(data)).split(BATCH_SIZE):
        with torch.inference_mode():
            for k, out in enumerate(net(data.subset(rows).inputs)):
                answers[k].append(probabilities(out.logits))
                attention[k].append(out.attention.float())
    return [torch.cat(one) for one in answers], [torch.cat(one) for one in attention]


def find_relevance(net: xl.ExitNet, data: xl.TextSet) -> Tensor:  # -> (N,L)
    """What speaks for the final exit's answers, as a distribution over the tokens."""
    parts = (data.subset(rows).inputs for rows in torch.arange(len(data)).split(BATCH_SIZE))
    return as_distribution(torch.cat([xl.compute_relevance(net, one) for one in parts]).clamp_min(0))


def point_at_words(maps: Sequence[Tensor], masks: Tensor, locations: Tensor, partner: Tensor) -> dict[str, Any]:
    """How often each exit's largest token is of a marked word, and the share of the map that lies on such words.

    Args:
        maps: ``(N,L)`` of every exit. masks: ``(N,L)`` bool: the words. locations: ``(N,L)`` bool: all tokens that a map has.
        partner: of :func:`match_lengths`.

    Returns:
        Over the texts that have a marked word: ``pointing`` and ``energy`` of the map, ``random``: of any of its tokens, and
        ``matched`` and ``matched_energy`` of another text's map of the same length, where there is one.
    """
    some = (masks & locations).any(1)
    both = some & (partner >= 0)
    found: dict[str, Any] = {"texts": int(some.sum()), "matched_texts": int(both.sum())}
    found["random"] = ((masks & locations).sum(1) / locations.sum(1))[some].mean().item()
    for name, null, measure in (("pointing", "matched", pointing_game), ("energy", "matched_energy", energy_in_mask)):
        found[name] = [measure(one[some], masks[some]).mean().item() for one in maps]
        found[null] = [measure(one[partner[both]], masks[both]).mean().item() for one in maps]
    return found


def occlude_tokens(net: xl.ExitNet, data: xl.TextSet) -> Tensor:  # -> (N,L)
    """Drop in the probability of exit 0's answer when each token alone is masked out; 0 for padding and the class token."""
    modality, inputs = net.input_spec.modality, data.inputs
    with net.open_engine() as engine, torch.inference_mode():

        def answer(given: Inputs) -> Tensor:  # -> (N,C)
            return probabilities(engine.compute_logits(0, engine.enter(net.check_input(given))))

        plain = answer(inputs)
        chosen, drops = plain.argmax(1, keepdim=True), torch.zeros(inputs[MASK].shape)
        for i in range(1, drops.shape[1]):
            cells = torch.zeros_like(inputs[MASK], dtype=torch.bool)
            cells[:, i] = inputs[MASK][:, i] > 0
            drops[:, i] = (plain - answer(modality.delete(inputs, cells))).gather(1, chosen).squeeze(1) * cells[:, i]
    return drops


def agree_by_length(maps: Sequence[Tensor], partner: Tensor) -> dict[str, list[float]]:
    """Correlation of each early exit's map with the final one's, and with that of another text of the same length."""
    rows = (partner >= 0).nonzero().squeeze(1)
    pairs = {"cc": maps[-1][rows], "null": maps[-1][partner[rows]]}
    return {name: [pearson(final, one[rows]).mean().item() for one in maps[:-1]] for name, final in pairs.items()}


def delete_tokens(
    net: xl.ExitNet, data: xl.TextSet, answers: Sequence[Tensor], maps: Sequence[Tensor], partner: Tensor
) -> dict[str, list[float]]:
    """Drop in the probability of each exit's answer without the top 20 % of the tokens of some map.

    Args:
        answers: ``(N,C)`` probabilities of every exit. maps: ``(N,L)`` of every exit.
        partner: of :func:`match_lengths`; texts without one are left out.

    Returns:
        Means: ``deletion`` by the exit's own map, ``deletion_random`` by a random one, ``deletion_matched`` by that of another
        text of the same length.
    """
    rows = (partner >= 0).nonzero().squeeze(1)
    some = data.subset(rows)
    chunks = [slice(int(part[0]), int(part[-1]) + 1) for part in torch.arange(len(rows)).split(BATCH_SIZE)]
    batches = [(part, some.subset(torch.arange(part.start, part.stop)).inputs) for part in chunks]
    own, others = [one[rows] for one in maps], [one[partner[rows]] for one in maps]
    judged = {"deletion": own, "deletion_random": [draw_random_map(one) for one in own], "deletion_matched": others}
    found = {}
    with net.open_engine() as engine, torch.inference_mode():
        for name, shown in judged.items():
            drops, _ = perturb(net, engine, batches, [p[rows] for p in answers], shown, FRACTION)
            found[name] = [one.mean().item() for one in drops]
    return found
