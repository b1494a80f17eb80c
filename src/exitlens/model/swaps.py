"""Answers after parts of the inputs are replaced by other samples' parts: binding, necessity, and the cue swap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from exitlens.functional.maps import average_over, coarsen_map, find_locations, share_of_possible
from exitlens.functional.regions import average, centre_map, edge_energy, spectral_residual
from exitlens.functional.routing import stack_support
from exitlens.functional.scores import probabilities
from exitlens.model.attribution import predict_exits
from exitlens.model.engine.engine import Engine
from exitlens.model.network import ExitNet
from exitlens.progress import Advance
from exitlens.types import Trace
from exitlens.types.inputs import Inputs
from exitlens.types.swaps import Binding, CueSwap, Swaps
from exitlens.types.tasks import USUAL_SCORES, are_same, read_answers

Chooser = Callable[[Tensor, Inputs], Tensor]  # rows (n,) and their inputs -> (n,*T) bool
BATCH_SIZE = 250
OBJECT = 0.4  # share of the locations that may be an object's: a donor's are painted over, so that it does not come along
AREAS = (0.05, 0.1, 0.2, 0.4)
ORACLE_AREA, ORACLE_STEPS = 0.2, 5
Pairs = Iterable[tuple[slice, Inputs, Sequence[Inputs]]]  # rows of N samples, their inputs, and those of each one's donors


class Swapper:
    """Compares answers of exits before and after a swap; ``plain`` are their probabilities ``(N,C)`` on whole inputs."""

    def __init__(self, net: ExitNet, engine: Engine, plain: Sequence[Tensor]) -> None:
        self.net, self.engine = net, engine
        self.task, self.modality = net.info.task, net.input_spec.modality
        self.answers = [read_answers(p, self.task) for p in plain]

    def keep(self, rows: slice, inputs: Inputs, donors: Sequence[Inputs], cells: Tensor, exits: Sequence[int]) -> Tensor:
        """Return ``(B,exits)``: the share of donors with which each answer stays if they give the chosen cells."""
        total = torch.zeros(rows.stop - rows.start, len(exits))
        for donor in donors:
            swapped = predict_exits(self.net, self.engine, self.modality.exchange(inputs, donor, cells), exits)
            for i, (k, p) in enumerate(zip(exits, swapped, strict=True)):
                total[:, i] += are_same(read_answers(p, self.task), self.answers[k][rows], self.task).cpu()
        return total / len(donors)

    def support(self, rows: slice, inputs: Inputs, donors: Sequence[Inputs], cells: Tensor, k: int) -> Tensor:  # -> (B,)
        """Return the probability of exit k's answer (with several labels: of all of it), on average over the donors."""
        total, answers = torch.zeros(rows.stop - rows.start, device=cells.device), self.answers[k][rows]
        for donor in donors:
            (p,) = predict_exits(self.net, self.engine, self.modality.exchange(inputs, donor, cells), (k,))
            if self.task == "multilabel":
                total += torch.where(answers, p, 1 - p).prod(1)
            else:
                total += p.gather(1, answers[:, None]).squeeze(1)
        return total / len(donors)


def judge_binding(swapper: Swapper, pairs: Pairs, maps: Sequence[Tensor], others: Sequence[Tensor]) -> Binding:
    """Swap what is outside, and what is inside, the top of every exit's map ``(N,*S)``, and of maps that are nulls.

    ``others`` are the same maps, of other samples. A donor replaces what it has at the same place.
    """
    exits, count = range(len(maps)), len(maps[0])
    # (exits,N,areas) by name: outside replaced, inside replaced
    kept, changed = (defaultdict[str, Tensor](lambda: torch.zeros(len(maps), count, len(AREAS))) for _ in range(2))
    donors_each = 0
    for rows, inputs, donors in pairs:
        donors_each = len(donors)
        shown: list[tuple[str, tuple[int, ...], Tensor]] = [("maps", (k,), maps[k][rows]) for k in exits]
        shown += [("another", (k,), others[k][rows]) for k in exits]
        blind = draw_blind_maps(swapper, inputs, maps[0].shape[1:])
        shown += [(name, tuple(exits), item) for name, item in blind.items()]
        for name, judged, item in shown:
            for a, area in enumerate(AREAS):
                region = swapper.modality.choose_region(item, inputs, area)
                kept[name][list(judged), rows, a] = swapper.keep(rows, inputs, donors, ~region, judged).T
                if name not in blind:
                    changed[name][list(judged), rows, a] = 1 - swapper.keep(rows, inputs, donors, region, judged).T
    gain, error = average((kept["maps"] - kept["another"]).transpose(0, 1))
    results = {name: summarize_swaps(shares, changed.get(name)) for name, shares in kept.items()}
    return Binding(
        areas=AREAS,
        **{name: results.get(name) for name in ("maps", "another", "centre", "edges", "saliency")},  # type: ignore[arg-type]
        above_another=_to_table(gain),
        above_another_error=_to_table(error),
        samples=count,
        donors=donors_each,
    )


def summarize_swaps(kept: Tensor, changed: Tensor | None) -> Swaps:  # (exits,N,areas) each
    """Average shares over samples, and under the curve over areas."""
    binding, binding_error = map(_to_table, average(kept.transpose(0, 1)))
    necessity, necessity_error = (None, None) if changed is None else map(_to_table, average(changed.transpose(0, 1)))
    under, under_error = (tuple(values.tolist()) for values in average(average_over(AREAS, kept.unbind(-1)).T))
    return Swaps(binding, binding_error, necessity, necessity_error, under, under_error)


def _to_table(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())


def draw_blind_maps(swapper: Swapper, inputs: Inputs, grid: Sequence[int]) -> dict[str, Tensor]:  # (B,*S) each, by name
    """Draw maps that know no network, as far as the kind of input has them; edges and saliency on ``grid``."""
    values = swapper.modality.view_grid(inputs)
    if values is None:
        return {}
    size = tuple(values.shape[2:])
    drawn = {
        "centre": centre_map(size).to(values.device).expand(len(values), *size),
        "edges": coarsen_map(edge_energy(values), grid),
    }
    return {**drawn, "saliency": coarsen_map(spectral_residual(values), grid)} if len(size) == 2 else drawn


def try_binding(
    swapper: Swapper, pairs: Pairs, maps: Sequence[Tensor], shown: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return binding at 20 %, ``(exits,N)`` each: of cells chosen greedily on grids, of the maps shown, and of others'.

    Each of at most five steps adds the cells that, each by itself, most raise the probability of the answer with everything
    else replaced: on grids of up to 25 cells one cell a step. ``maps`` are those shown, on the grids for the oracle.
    """
    best, mapped, blind = (torch.zeros(len(maps), len(maps[0])) for _ in range(3))
    for rows, inputs, donors in pairs:
        for k, (item, *compared) in enumerate(zip(maps, shown, others, strict=True)):
            cells = choose_greedily(swapper, (rows, inputs, donors), k, item[rows])
            best[k, rows] = swapper.keep(rows, inputs, donors, ~cells, (k,))[:, 0]
            for kept, values in zip((mapped, blind), compared, strict=True):
                region = swapper.modality.choose_region(values[rows], inputs, ORACLE_AREA)
                kept[k, rows] = swapper.keep(rows, inputs, donors, ~region, (k,))[:, 0]
    return best, mapped, blind


def choose_greedily(
    swapper: Swapper, batch: tuple[slice, Inputs, Sequence[Inputs]], k: int, maps: Tensor
) -> Tensor:  # (B,*grid) -> (B,*grid) bool
    """Choose cells of the maps' grid step by step, those that raise the support of exit k's answer most."""
    rows, inputs, donors = batch
    real = find_locations(maps)
    free = torch.ones_like(maps, dtype=torch.bool).flatten(1) if real is None else real.flatten(1)
    chosen = torch.zeros_like(free)
    goals = (ORACLE_AREA * free.sum(1)).ceil().clamp_min(1)  # (B,), as top_cells counts
    steps = min(ORACLE_STEPS, int(goals.max()))
    for step in range(1, steps + 1):
        support = maps.new_full(free.shape, -torch.inf)
        for cell in range(free.shape[1]):
            is_open = free[:, cell] & ~chosen[:, cell]
            if is_open.any():
                trial = chosen.clone()
                trial[:, cell] = True
                reached = swapper.support(rows, inputs, donors, ~trial.view(maps.shape), k)
                support[:, cell] = torch.where(is_open, reached.to(support), support[:, cell])
        wanted = (goals * step / steps).ceil() - chosen.sum(1)
        rank = support.argsort(dim=1, descending=True, stable=True).argsort(1)
        chosen |= (rank < wanted[:, None]) & free & ~chosen
    return chosen.view(maps.shape)


def add_oracle(binding: Binding, best: Tensor, mapped: Tensor, blind: Tensor) -> Binding:  # (exits,N) each
    """Return the binding with what :func:`try_binding` found."""
    mean, error = (tuple(values.tolist()) for values in average(best.T))
    pairs = [share_of_possible(m, b, o) for o, m, b in zip(best, mapped, blind, strict=True)]
    share, share_error = zip(*pairs, strict=True)
    return replace(
        binding,
        oracle_samples=best.shape[1],
        oracle=mean,
        oracle_error=error,
        oracle_share=share,
        oracle_share_error=share_error,
    )


def judge_cue_swap(swapper: Swapper, pairs: Pairs, masks: Tensor) -> CueSwap:  # masks (N,*S) bool
    """Replace everything outside the masks by donors that have been painted over where their own objects are."""
    exits = range(len(swapper.answers))
    changed, donors_each = torch.zeros(len(masks), len(exits)), 0
    for rows, inputs, donors in pairs:
        donors_each = len(donors)
        changed[rows] = 1 - swapper.keep(rows, inputs, donors, ~masks[rows], exits)
    change, error = (tuple(values.tolist()) for values in average(changed))
    beyond, beyond_error = (tuple(values.tolist()) for values in average(changed - changed[:, -1:]))
    return CueSwap(change, error, beyond, beyond_error, len(masks), donors_each)


class SwapTrial:
    """Samples, what every exit says of them, and what it says when parts come from others.

    ``prepare`` returns the inputs of the samples in given rows, of 0 to ``count``; ``advance`` is called after every batch.
    """

    def __init__(self, net: ExitNet, prepare: Callable[[Tensor], Inputs], count: int, advance: Advance) -> None:
        self.net, self._prepare, self._count, self._advance = net, prepare, count, advance
        logits, maps, features = list[Tensor](), list[list[Tensor]](), list[Tensor]()
        with net.open_engine() as engine:
            for _, inputs in self._iterate():
                outputs = engine.compute_support(engine.enter(net.check_input(inputs, "data")))
                attention = [each.float() for _, each, _ in outputs]
                logits.append(torch.stack([each.float() for each, *_ in outputs], 1).cpu())
                features.append(stack_support([support for *_, support in outputs]).cpu())
                maps.append([net.info.place(k, each) for k, each in enumerate(attention)])
        self.logits, self.gate_features = torch.cat(logits), torch.cat(features)  # (N,K,C), (N,K-1,3)
        self.maps = [torch.cat(column) for column in zip(*maps, strict=True)]  # (N,*S) for each exit

    def _iterate(self) -> Iterator[tuple[slice, Inputs]]:
        for rows in torch.arange(self._count).split(BATCH_SIZE):
            yield slice(int(rows[0]), int(rows[-1]) + 1), self._prepare(rows)
            self._advance()

    def find_changes(
        self, rows: Tensor, partner: Tensor, keep: Chooser, hide: Chooser, exits: tuple[int, ...]
    ) -> Tensor:  # (n,), (N,) -> (n,exits) bool
        """Return which answers of these rows change if all but what is kept of them comes from their partners.

        Args:
            rows: whose answers. partner: the samples that each one takes from.
            keep: chooses what stays of inputs. hide: what is painted over where it is a partner's.
            exits: one of them, or all.
        """
        net, changes = self.net, list[Tensor]()
        modality, score = net.input_spec.modality, USUAL_SCORES[net.info.task]
        with net.open_engine() as engine:
            for part in rows.split(BATCH_SIZE):
                inputs, donors = self._prepare(part), self._prepare(partner[part])
                donors = modality.paint_over(donors, hide(partner[part], donors))
                plain = [probabilities(self.logits[part, k], kind=score) for k in range(net.num_exits)]
                every, outside = slice(0, len(part)), ~keep(part, inputs)
                changes.append(Swapper(net, engine, plain).keep(every, inputs, [donors], outside, exits) < 1)
                self._advance()
        return torch.cat(changes)

    def choose_top(self, maps: Tensor, area: float) -> Chooser:  # (N,*S)
        """Return what chooses the top share of each sample's map."""
        return lambda rows, inputs: self.net.input_spec.modality.choose_region(maps[rows], inputs, area)

    def to_trace(self) -> Trace:
        """Return what routing needs."""
        none, info = torch.zeros(self.logits.shape[:2]), self.net
        features = self.gate_features if info.num_exits > 1 else None
        return Trace(self.logits, None, none, info.cost, info.identity(), gate_features=features, task=info.info.task)
