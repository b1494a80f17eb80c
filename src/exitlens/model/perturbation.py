"""What answers depend on, found out by deleting cells from the inputs: those of a map, or each cell by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from exitlens.functional.maps import find_locations, top_cells
from exitlens.functional.scores import probabilities
from exitlens.model.engine.engine import Engine
from exitlens.model.network import ExitNet
from exitlens.types.inputs import Inputs
from exitlens.types.tasks import USUAL_SCORES

Rows = Iterable[tuple[slice, Inputs]]


def perturb(
    net: ExitNet,
    engine: Engine,
    batches: Rows,
    plain: Sequence[Tensor],
    maps: Sequence[Tensor],
    fraction: float,
    exits: Sequence[int] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Deletes, and keeps alone, the top cells of maps, from wherever they come.

    Args:
        net: for the checks of its inputs; engine: that runs.
        batches: N samples: which rows these are, and their inputs.
        plain: ``(N,C)`` probabilities of every exit on the whole inputs.
        maps: ``(N,*grid)`` each.
        fraction: share of cells.
        exits: whose answer each map is about; by default one map for every exit.

    Returns:
        For every map, ``(N,)``: the drop in the probability of the exit's own answer, and the probability with those cells
        alone.
    """
    exits = range(len(plain)) if exits is None else exits
    modality = net.input_spec.modality
    chosen = [top_cells(one, fraction, find_locations(one)) for one in maps]
    drops: list[list[Tensor]] = [[] for _ in maps]
    keeps: list[list[Tensor]] = [[] for _ in maps]
    for rows, inputs in batches:
        for i, (k, cells) in enumerate(zip(exits, chosen, strict=True)):
            p = plain[k][rows]
            answer = p.argmax(1, keepdim=True)
            deleted, kept = modality.delete(inputs, cells[rows]), modality.insert(inputs, cells[rows])
            drops[i].append((p - _answer(net, engine, deleted, k)).gather(1, answer))
            keeps[i].append(_answer(net, engine, kept, k).gather(1, answer))
    return [torch.cat(one).squeeze(1) for one in drops], [torch.cat(one).squeeze(1) for one in keeps]


def occlude(net: ExitNet, engine: Engine, batches: Rows, plain: Sequence[Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
    """Deletes every cell by itself: as many passes through the network as a grid has cells, for every grid there is.

    Occlusion as in arXiv 1311.2901, section 4.2, with cells side by side.

    Args:
        net: for the checks of its inputs; engine: that runs.
        batches: N samples: which rows these are, and their inputs.
        plain: ``(N,C)`` probabilities of every exit on the whole inputs.
        maps: ``(N,*grid)`` of every exit: its grid, and which of the cells are locations (padding is not).

    Returns:
        ``(N,*grid)`` of every exit: the drop in the probability of its own answer; 0 at padding.
    """
    modality, found = net.input_spec.modality, [torch.zeros_like(one) for one in maps]
    for rows, inputs in batches:
        for grid in dict.fromkeys(one.shape[1:] for one in maps):
            judged = [k for k, one in enumerate(maps) if one.shape[1:] == grid]
            real = find_locations(*(maps[k][rows] for k in judged))
            for cell in range(grid.numel()):
                cells = torch.zeros(rows.stop - rows.start, grid.numel(), dtype=torch.bool, device=maps[0].device)
                cells[:, cell] = True if real is None else real.flatten(1)[:, cell]
                if not cells.any():
                    continue
                deleted = modality.delete(inputs, cells.view(-1, *grid))
                outputs = engine.compute_outputs(engine.enter(net.check_input(deleted)))
                for k in judged:
                    whole = plain[k][rows]
                    p = probabilities(outputs[k][0], kind=USUAL_SCORES[net.info.task])
                    drop = (whole - p).gather(1, whole.argmax(1, keepdim=True)).squeeze(1)
                    found[k][rows].flatten(1)[:, cell] = drop * cells[:, cell]
    return found


def _answer(net: ExitNet, engine: Engine, inputs: Inputs, k: int) -> Tensor:
    """Probabilities ``(B,C)`` at exit k."""
    logits = engine.compute_logits(k, engine.enter(net.check_input(inputs)))
    return probabilities(logits, kind=USUAL_SCORES[net.info.task])
