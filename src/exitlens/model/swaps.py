"""Answers after parts of the inputs are replaced by other samples' parts: trials of swaps, binding, and necessity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

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
from exitlens.types.swaps import Binding, SwapShares
from exitlens.types.tasks import USUAL_SCORES, are_same, read_answers

Maker = Callable[[Tensor], Inputs]  # rows (n,) -> their inputs
Chooser = Callable[[Tensor, Inputs], Tensor]  # rows (n,) and their inputs -> (n,*T) bool
BATCH_SIZE = 250
OBJECT = 0.4  # share of the locations that may be an object's: a donor's are painted over, so that it does not come along
AREAS = (0.05, 0.1, 0.2, 0.4)
ORACLE_AREA, ORACLE_STEPS = 0.2, 5


class SwapBatch(NamedTuple):
    """Samples, and others whose parts they take."""

    at: slice  # where they stand among all that are swapped
    answers: Tensor  # (B,K) of all exits, or (B,K,C) of several labels
    inputs: Inputs
    donors: Sequence[Inputs]  # one of each donor


Pairs = Iterable[SwapBatch]
Mixer = Callable[[Any, Any, Tensor], Inputs]


class SwapTrial:
    """Samples, what every exit says of them, and what it says when parts come from others.

    ``prepare`` returns the inputs of the samples in given rows, and ``logits`` ``(N,K,C)`` are all exits' of all samples.
    ``advance`` is called after every batch. Answers and shares are on the CPU.
    """

    def __init__(self, net: ExitNet, engine: Engine, prepare: Maker, logits: Tensor, advance: Advance) -> None:
        self.net, self.engine, self.prepare, self.logits, self.advance = net, engine, prepare, logits, advance
        self.exits, self.task, self.modality = range(net.num_exits), net.info.task, net.input_spec.modality
        self.answers = read_answers(probabilities(logits, kind=USUAL_SCORES[self.task]), self.task).cpu()  # (N,K[,C])

    def answer(self, inputs: Inputs, exits: Sequence[int]) -> Tensor:  # -> (B,exits) or (B,exits,C)
        """Return what one exit, or all, say of inputs."""
        return read_answers(torch.stack(predict_exits(self.net, self.engine, inputs, exits), 1), self.task).cpu()

    def paint(self, rows: Tensor, hide: Chooser) -> Inputs:
        """Return the inputs of these rows, painted over where ``hide`` chooses."""
        inputs = self.prepare(rows)
        return self.modality.paint_over(inputs, hide(rows, inputs))

    def pair(
        self, rows: Tensor, donors: Sequence[Tensor], hide: Chooser, size: int = BATCH_SIZE
    ) -> Iterator[SwapBatch]:  # (n,) each
        """Yield the samples in these rows, batch by batch, with donors that are painted over."""
        for start in range(0, len(rows), size):
            at = slice(start, start + size)
            given = [self.paint(each[at], hide) for each in donors]
            yield SwapBatch(at, self.answers[rows[at]], self.prepare(rows[at]), given)
            self.advance()

    def keep(self, batch: SwapBatch, cells: Tensor, exits: Sequence[int]) -> Tensor:
        """Return ``(B,exits)``: the share of donors with which each answer stays if all but the chosen cells is theirs."""
        return self._judge(batch, self.modality.keep_only, cells, exits)

    def lose(self, batch: SwapBatch, cells: Tensor, exits: Sequence[int]) -> Tensor:
        """Return ``(B,exits)``: the share of donors with which each answer changes if they give the chosen cells."""
        return 1 - self._judge(batch, self.modality.exchange, cells, exits)

    def _judge(self, batch: SwapBatch, mix: Mixer, cells: Tensor, exits: Sequence[int]) -> Tensor:
        answers = (self.answer(mix(batch.inputs, donor, cells), exits) for donor in batch.donors)
        kept = [are_same(each, batch.answers[:, list(exits)], self.task) for each in answers]
        return torch.stack(kept).float().mean(0)

    def support(self, batch: SwapBatch, cells: Tensor, k: int) -> Tensor:  # -> (B,)
        """Return the mean probability of exit k's answer (with several labels: of all) if only the chosen cells are kept."""
        total, answers = torch.zeros(len(cells), device=cells.device), batch.answers[:, k].to(cells.device)
        for donor in batch.donors:
            (p,) = predict_exits(self.net, self.engine, self.modality.keep_only(batch.inputs, donor, cells), (k,))
            if self.task == "multilabel":
                total += torch.where(answers, p, 1 - p).prod(1)
            else:
                total += p.gather(1, answers[:, None]).squeeze(1)
        return total / len(batch.donors)

    def find_changes(
        self, rows: Tensor, donors: Sequence[Tensor], keep: Chooser, hide: Chooser, exits: Sequence[int]
    ) -> Tensor:  # (n,) each -> (n,exits)
        """Return the share of donors with which answers change if all but what is kept of the samples comes from them.

        Args:
            rows: whose answers. donors: the samples that they take from, one at a time.
            keep: chooses what stays of inputs. hide: what is painted over where it is a donor's.
            exits: one of them, or all.
        """
        pairs = self.pair(rows, donors, hide)
        return 1 - torch.cat([self.keep(batch, keep(rows[batch.at], batch.inputs), exits) for batch in pairs])

    def choose_top(self, maps: Tensor, area: float) -> Chooser:  # (N,*S)
        """Return what chooses the top share of each sample's map."""
        return lambda rows, inputs: self.modality.choose_region(maps[rows], inputs, area)


class ObservedTrial(SwapTrial):
    """A trial that begins with a pass of all ``count`` samples: what every exit says, and where it looks."""

    def __init__(self, net: ExitNet, engine: Engine, prepare: Maker, count: int, advance: Advance) -> None:
        logits, maps, features = list[Tensor](), list[list[Tensor]](), list[Tensor]()
        for rows in torch.arange(count).split(BATCH_SIZE):
            outputs = engine.compute_support(engine.enter(net.check_input(prepare(rows), "data")))
            logits.append(torch.stack([each.float() for each, *_ in outputs], 1).cpu())
            features.append(stack_support([support for *_, support in outputs]).cpu())
            maps.append([net.info.place(k, each.float()) for k, (_, each, _) in enumerate(outputs)])
            advance()
        super().__init__(net, engine, prepare, torch.cat(logits), advance)
        self.gate_features = torch.cat(features)  # (N,K-1,3)
        self.maps = [torch.cat(column) for column in zip(*maps, strict=True)]  # (N,*S) for each exit

    def to_trace(self) -> Trace:
        """Return what routing needs."""
        none, info = torch.zeros(self.logits.shape[:2]), self.net
        features = self.gate_features if info.num_exits > 1 else None
        return Trace(self.logits, None, none, info.cost, info.identity(), gate_features=features, task=info.info.task)


def find_backgrounds(masks: Tensor) -> Tensor:  # (N,*S) bool -> (n,)
    """Return the samples that have an object and a background."""
    flat = masks.flatten(1)
    return (flat.any(1) & ~flat.all(1)).nonzero()[:, 0].cpu()


def judge_binding(trial: SwapTrial, pairs: Pairs, maps: Sequence[Tensor], others: Sequence[Tensor]) -> Binding:
    """Swap what is outside, and what is inside, the top of every exit's map ``(N,*S)``, and of maps that are nulls.

    ``others`` are the same maps, of other samples. A donor replaces what it has at the same place.
    """
    exits, count = range(len(maps)), len(maps[0])
    # (exits,N,areas) by name: outside replaced, inside replaced
    kept, changed = (defaultdict[str, Tensor](lambda: torch.zeros(len(maps), count, len(AREAS))) for _ in range(2))
    donors_each = 0
    for batch in pairs:
        rows, donors_each = batch.at, len(batch.donors)
        shown: list[tuple[str, tuple[int, ...], Tensor]] = [("maps", (k,), maps[k][rows]) for k in exits]
        shown += [("another", (k,), others[k][rows]) for k in exits]
        blind = draw_blind_maps(trial.modality.view_grid(batch.inputs), maps[0].shape[1:])
        shown += [(name, tuple(exits), item) for name, item in blind.items()]
        for name, judged, item in shown:
            for a, area in enumerate(AREAS):
                region = trial.modality.choose_region(item, batch.inputs, area)
                kept[name][list(judged), rows, a] = trial.keep(batch, region, judged).T
                if name not in blind:
                    changed[name][list(judged), rows, a] = trial.lose(batch, region, judged).T
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


def summarize_swaps(kept: Tensor, changed: Tensor | None) -> SwapShares:  # (exits,N,areas) each
    """Average shares over samples, and under the curve over areas."""
    binding, binding_error = map(_to_table, average(kept.transpose(0, 1)))
    necessity, necessity_error = (None, None) if changed is None else map(_to_table, average(changed.transpose(0, 1)))
    under, under_error = (tuple(values.tolist()) for values in average(average_over(AREAS, kept.unbind(-1)).T))
    return SwapShares(binding, binding_error, necessity, necessity_error, under, under_error)


def _to_table(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())


def draw_blind_maps(values: Tensor | None, grid: Sequence[int]) -> dict[str, Tensor]:  # (B,C,*S) -> (B,*S) each, by name
    """Draw maps that know no network, as far as the kind of input has them; edges and saliency on ``grid``."""
    if values is None:
        return {}
    size = tuple(values.shape[2:])
    drawn = {
        "centre": centre_map(size).to(values.device).expand(len(values), *size),
        "edges": coarsen_map(edge_energy(values), grid),
    }
    return {**drawn, "saliency": coarsen_map(spectral_residual(values), grid)} if len(size) == 2 else drawn


def add_oracle(
    binding: Binding, trial: SwapTrial, pairs: Pairs, maps: Sequence[Tensor], *compared: Sequence[Tensor]
) -> Binding:
    """Return the binding with what is possible at 20 %: that of cells chosen greedily on the grids of ``maps``.

    Each of at most five steps adds the cells that, each by itself, most raise the probability of the answer with everything
    else replaced: on grids of up to 25 cells one cell a step. Maps to be ``compared`` are those shown, and other samples'.
    """
    best, mapped, blind = (torch.zeros(len(maps), len(maps[0])) for _ in range(3))
    for batch in pairs:
        for k, (item, *shown) in enumerate(zip(maps, *compared, strict=True)):
            cells = choose_greedily(trial, batch, k, item[batch.at])
            regions = [trial.modality.choose_region(each[batch.at], batch.inputs, ORACLE_AREA) for each in shown]
            for kept, chosen in zip((best, mapped, blind), (cells, *regions), strict=True):
                kept[k, batch.at] = trial.keep(batch, chosen, (k,))[:, 0]
    mean, error = (tuple(values.tolist()) for values in average(best.T))
    shares = [share_of_possible(m, b, o) for o, m, b in zip(best, mapped, blind, strict=True)]
    share, share_error = zip(*shares, strict=True)
    return replace(
        binding,
        oracle_samples=best.shape[1],
        oracle=mean,
        oracle_error=error,
        oracle_share=share,
        oracle_share_error=share_error,
    )


def choose_greedily(trial: SwapTrial, batch: SwapBatch, k: int, maps: Tensor) -> Tensor:  # (B,*grid) -> (B,*grid) bool
    """Choose cells of the maps' grid step by step, those that raise the support of exit k's answer most."""
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
                tried = chosen.clone()
                tried[:, cell] = True
                reached = trial.support(batch, tried.view(maps.shape), k)
                support[:, cell] = torch.where(is_open, reached.to(support), support[:, cell])
        wanted = (goals * step / steps).ceil() - chosen.sum(1)
        rank = support.argsort(dim=1, descending=True, stable=True).argsort(1)
        chosen |= (rank < wanted[:, None]) & free & ~chosen
    return chosen.view(maps.shape)
