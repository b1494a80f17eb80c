"""measure_faithfulness: test by deletion, insertion, masks and controls if maps show what answers depend on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import torch
from rich.progress import Progress
from torch import Tensor, nn

from exitlens.data.batches import hold_samples
from exitlens.errors import InputError, require
from exitlens.functional import maps as measures
from exitlens.functional.baselines import Baseline
from exitlens.functional.maps import as_distribution, find_locations, pearson
from exitlens.functional.regions import average
from exitlens.functional.scores import probabilities
from exitlens.model.attribution import attribute_exits, occlude, perturb
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.engine.engine import Engine
from exitlens.model.heads import EvidenceHead, require_maps
from exitlens.model.network import ExitNet
from exitlens.model.swaps import BATCH_SIZE, OBJECT, Maker, SwapTrial, add_oracle, find_backgrounds, judge_binding
from exitlens.progress import show_progress
from exitlens.types import ExitOutput
from exitlens.types.inputs import Inputs, draw_samples
from exitlens.types.settings import WHOLE, check_choice, check_number
from exitlens.types.swaps import AreaUnderCurve, Binding, CueSwap
from exitlens.types.tasks import USUAL_SCORES, refuse_task

ORACLE_BATCH = 25  # the oracle runs each batch once for every cell of the grid
PASSES, TINY = 4, 1e-9
FRACTION = 0.2  # share of cells deleted or inserted at the one point that is reported by itself
FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.8)  # points of the curves of deletion and insertion
DONORS, OTHERS = (101, 102), 103  # seeds of partners: whose parts a sample takes, and whose map is its null
GREEDY = 8  # the greedy oracle takes one of so many of the oracle's samples
Of = Literal["attention", "relevance", "evidence"]
M = TypeVar("M", bound=nn.Module)
Starter = Callable[..., SwapTrial]  # a name for the progress, the number of samples, and the size of batches
Deleter = Callable[[Sequence[Tensor], float], tuple[list[Tensor], list[Tensor]]]  # as attribution.perturb


@dataclass(frozen=True)
class Faithfulness:
    """Means over the samples: a number for each exit, the final exit's last.

    Attributes:
        deletion: drop in the probability of the exit's own answer after deleting the top 20 % of the map's cells.
        insertion: probability of the answer with only these cells kept.
        deletion_random, insertion_random: the same for random cells: the control.
        randomised_cc: Pearson CC of the map with that of the same head with random weights; near 1 if the map does not
            depend on what the head learned. ``None`` for a kept classifier, and for relevance.
        cascade_cc: the same as the weights of the head, then of the exit's own stage, and so on to the first stage, are
            randomised one after the other (arXiv 1810.03292): for exit k a curve of k + 2 points. ``None`` for relevance.
        energy_in_mask, pointing_game: ``None`` if the data has no masks.
        grid: the grid to which all maps are averaged before cells are chosen.
        deletion_oracle, insertion_oracle: as ``deletion`` and ``insertion``, for the cells whose deletion one by one costs
            the answer most probability, over ``oracle_samples`` of the samples; ``None`` if that is 0.
        deletion_share, insertion_share: ``(map - random) / (oracle - random)`` over these samples: the part of what is
            possible that the map reaches, 0 for a blind map. The oracle is a strong reference, not a strict maximum, so
            values a little above 1 occur. ``None`` at an exit where the oracle gains nothing over random cells.
        deletion_share_error, insertion_share_error: standard errors of these ratios, over samples.
        deletion_area, insertion_area: means of ``deletion`` and ``insertion`` over shares of cells from 5 to 80 %, over
            ``oracle_samples`` of the samples; ``None`` if that is 0.
        dependence: skill of each early exit's occlusion map (the fall of its answer's probability, cell by cell) with the
            final exit's: the Pearson CC over that with another sample's. ``None`` with fewer than two oracle samples.
        dependence_error: its standard error, over samples.
        binding: what answers keep when what a map leaves out is swapped; ``None`` without oracle samples.
        cue_swap: answers that change with the true background alone; ``None`` without masks.
        baseline: what stood in deleted cells.
    """

    deletion: tuple[float, ...]
    deletion_random: tuple[float, ...]
    insertion: tuple[float, ...]
    insertion_random: tuple[float, ...]
    randomised_cc: tuple[float | None, ...]
    energy_in_mask: tuple[float, ...] | None
    pointing_game: tuple[float, ...] | None
    grid: tuple[int, ...]
    samples: int
    oracle_samples: int = 0
    deletion_oracle: tuple[float, ...] | None = None
    insertion_oracle: tuple[float, ...] | None = None
    deletion_share: tuple[float | None, ...] | None = None
    insertion_share: tuple[float | None, ...] | None = None
    deletion_share_error: tuple[float | None, ...] | None = None
    insertion_share_error: tuple[float | None, ...] | None = None
    cascade_cc: tuple[tuple[float | None, ...], ...] | None = None
    deletion_area: AreaUnderCurve | None = None
    insertion_area: AreaUnderCurve | None = None
    dependence: tuple[float | None, ...] | None = None
    dependence_error: tuple[float | None, ...] | None = None
    binding: Binding | None = None
    cue_swap: CueSwap | None = None
    baseline: Baseline = "mean"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)


def measure_faithfulness(
    net: ExitNet,
    data: Any,
    *,
    samples: int = 1000,
    grid: tuple[int, ...] | None = None,
    oracle_samples: int = 200,
    of: Of = "attention",
    baseline: Baseline = "mean",
    progress: bool = False,
) -> Faithfulness:
    """Measure every exit's map on the same samples and grid (deletion and insertion as in RISE, arXiv 1806.07421).

    Maps are placed (``net.map_offsets``) and averaged to ``grid`` first, so that fine and coarse maps delete the same area.
    Their positive part is taken after that, so that what cancels within a cell does not count.

    Args:
        net: used in evaluation mode and as it is tuned, and given back in the mode it was in.
        data: as for :func:`exitlens.collect`; with masks, the mask measures are taken too. The samples used are held in
            memory: as stored for our own data sets, as floats for anything else.
        samples: maximum number of samples; if there are more, they are drawn at random with a fixed seed.
        grid: evaluation grid, by default (5, 5) for images, (16,) for series and (3, 3, 3) for volumes; an exit with a
            coarser map is judged on its own grid.
        oracle_samples: maximum number of samples for what takes many passes; 0 for none of it. The oracle runs the network
            once for each cell of the grid (25 times at 5x5, once for each token of a text). ``binding``, for which each
            sample takes what maps leave out of two others (docs/concepts/binding.md), takes about 100 passes with four
            exits. An eighth of the samples show what binding is possible.
        of: the maps to judge: the exits' ``attention``, the ``relevance`` of exit 0's features for an exit's answer
            (:func:`~exitlens.model.attribution.attribute`), or the ``evidence`` for it (of several labels, the strongest).
        baseline: what stands in deleted cells. ``mean``: each channel's mean, the image's mean colour; features of a vector
            become 0, and tokens of a text are masked out (arXiv 1911.03429). Images, series and volumes also have ``blur``,
            moving averages over a fifth of each axis, and ``road``, the noisy linear imputation of ROAD (arXiv 2202.00449),
            after which the shape of the deleted region tells least. Where baselines disagree, trust none by itself.

    Examples:
        >>> result = xl.measure_faithfulness(net, scenes, samples=8, oracle_samples=2)
        >>> result.samples, len(result.deletion)
        (8, 3)
    """
    require(net, ExitNet, "net")
    refuse_task(net.info.task, "net: measure_faithfulness")
    require_maps(net.heads, "faithfulness")
    modality = net.input_spec.modality
    grid = modality.grid if grid is None else grid
    if not isinstance(grid, Sequence) or not all(isinstance(n, int) and n > 0 for n in grid):
        raise InputError(f"grid: expected positive integers such as {modality.grid}, got {grid!r}")
    check_number("oracle_samples", oracle_samples, WHOLE)
    check_choice("of", of, get_args(Of))
    check_choice("baseline", baseline, get_args(Baseline))
    if of == "relevance" and net.info.groups:
        raise InputError(
            "of: relevance is about hidden features, which are in no group of a vector's features. Fix: pass 'attention' or "
            "'evidence'."
        )
    held = hold_samples(data, samples).to(net.device)
    prepare, size, masks = held.prepare, len(held), held.masks
    modality.check_deletion(net.input_spec, baseline)
    with show_progress(progress) as bar, net.open_engine() as engine:
        every, rows = torch.arange(size), draw_samples(size, oracle_samples, seed=1).sort().values
        batches = _Batches(prepare, every, bar, "judging the maps", PASSES)
        logits, attention, views = _run(net, engine, batches, of)
        signed = [net.info.place(k, item) for k, item in enumerate(views)]
        if of == "relevance":
            signed = _find_relevance(net, _Batches(prepare, every, bar, "relevance", 1))
        shown, maps = [as_distribution(item) for item in signed], [modality.coarsen(item, grid) for item in signed]
        if of != "attention":
            shown, maps = (list(map(_reach_all, each, attention)) for each in (shown, maps))
        blind = [measures.draw_random_map(m) for m in maps]
        plain = [probabilities(item, kind=USUAL_SCORES[net.info.task]) for item in logits]
        delete = partial(perturb, net, engine, batches, plain, baseline=baseline)
        guided, control = delete(maps, FRACTION), delete(blind, FRACTION)
        cascade = None
        if of != "relevance":
            with switch_mode(net, False):
                cascade = _randomise_in_turn(net, batches, views, plain, of)
        oracle: dict[str, Any] = {}
        if len(rows):
            passes = 1 + 3 * len({*FRACTIONS, FRACTION})
            judged = _Batches(prepare, rows, bar, "trying every cell", passes, ORACLE_BATCH)
            given = net, engine, judged, [p[rows] for p in plain]
            few, few_blind = ([m[rows] for m in several] for several in (maps, blind))
            losses = occlude(*given, few, baseline)
            oracle = _compare_with_oracle(partial(perturb, *given, baseline=baseline), losses, few, few_blind)

        def begin(what: str, count: int, size: int = BATCH_SIZE) -> SwapTrial:
            task = bar.add_task(what, total=-(-count // size))
            return SwapTrial(net, engine, prepare, torch.stack(logits, 1), partial(bar.advance, task))

        greedy = draw_samples(size, -(-oracle_samples // GREEDY), seed=1).sort().values
        binding = _measure_binding(begin, shown, maps, rows, greedy)
        cue_swap = None if masks is None else _swap_backgrounds(begin, masks)
    energy = pointing = None
    if masks is not None:
        energy = _average([measures.energy_in_mask(item, masks) for item in shown])
        pointing = _average([measures.pointing_game(item, masks) for item in shown])
    (drops, keeps), (drops_random, keeps_random) = ([_average(item) for item in both] for both in (guided, control))
    randomised = (None,) * net.num_exits if cascade is None else tuple(curve[0] for curve in cascade)
    means = drops, drops_random, keeps, keeps_random, randomised
    oracle |= {"cascade_cc": cascade, "binding": binding, "cue_swap": cue_swap, "baseline": baseline}
    return Faithfulness(*means, energy, pointing, grid, size, len(rows), **oracle)


def _average(values: Sequence[Tensor]) -> tuple[float, ...]:
    return tuple(column.mean().item() for column in values)


class _Batches:
    """Inputs batch by batch; each pass prepares them anew, so that only one batch is held as floats."""

    def __init__(self, prepare: Maker, rows: Tensor, bar: Progress, what: str, passes: int, size: int = BATCH_SIZE) -> None:
        self._prepare, self._rows, self._size, self._bar = prepare, rows, size, bar
        self._task = bar.add_task(what, total=passes * -(-len(rows) // size))

    def __iter__(self) -> Iterator[tuple[slice, Inputs]]:
        for start in range(0, len(self._rows), self._size):
            rows = self._rows[start : start + self._size]
            yield slice(start, start + len(rows)), self._prepare(rows)
            self._bar.advance(self._task)


def _measure_binding(
    begin: Starter, shown: Sequence[Tensor], maps: Sequence[Tensor], rows: Tensor, greedy: Tensor
) -> Binding | None:
    """Measure binding on some rows, and on fewer what is possible on the grids of ``maps``."""
    count = len(shown[0])
    if count < 2 or not len(rows):
        return None
    others, partners = [_pass_on(m) for m in shown], [measures.pair_samples(count, seed) for seed in DONORS]
    trial = begin("swapping what maps leave out", len(rows))
    hide = trial.choose_top(measures.geometric_mean(shown), OBJECT)
    pairs = trial.pair(rows, [partner[rows] for partner in partners], hide)
    binding = judge_binding(trial, pairs, [m[rows] for m in shown], [m[rows] for m in others])
    trial = begin("trying what could be left out", len(greedy), ORACLE_BATCH)
    pairs = trial.pair(greedy, [partners[0][greedy]], hide, ORACLE_BATCH)
    return add_oracle(binding, trial, pairs, *([m[greedy] for m in several] for several in (maps, shown, others)))


def _swap_backgrounds(begin: Starter, masks: Tensor) -> CueSwap | None:
    """Swap the backgrounds of all samples that have an object and a background; the donors' own objects are painted over."""
    rows = find_backgrounds(masks)
    if len(rows) < 2:
        return None
    trial, choose = begin("swapping backgrounds", len(rows)), lambda rows, _: masks[rows]
    donors = [rows[measures.pair_samples(len(rows), seed)] for seed in DONORS]
    changed = trial.find_changes(rows, donors, choose, choose, trial.exits)
    change, error = (tuple(values.tolist()) for values in average(changed))
    beyond, beyond_error = (tuple(values.tolist()) for values in average(changed - changed[:, -1:]))
    return CueSwap(change, error, beyond, beyond_error, len(rows), len(DONORS))


def _pass_on(maps: Tensor) -> Tensor:  # (N,*S) -> (N,*S)
    """Give every sample the map of another one; in a sequence, at the locations that the sample has."""
    others, real = maps[measures.pair_samples(len(maps), OTHERS)], find_locations(maps)
    return others if real is None else (others + TINY) * real


def _compare_dependence(losses: Sequence[Tensor]) -> dict[str, Any]:
    """Return the skill of occlusion maps ``(N,*grid)`` with the final exit's, which another sample's are the null of."""
    if len(losses[0]) < 2:
        return {}
    partner, pairs = measures.pair_samples(len(losses[0]), OTHERS), []
    for item in losses[:-1]:
        size = tuple(min(sides) for sides in zip(item.shape[1:], losses[-1].shape[1:], strict=True))
        early, final = measures.regrid(item, size), measures.regrid(losses[-1], size)
        real = find_locations(early, final)
        other = final[partner] if real is None else final[partner] * real
        value, null = measures.pearson(early, final), measures.pearson(early, other)
        pairs.append(measures.share_of_possible(value, null, torch.ones_like(value)))
    skill, error = zip(*pairs, strict=True) if pairs else ((), ())
    return {"dependence": skill, "dependence_error": error}


def _compare_with_oracle(
    delete: Deleter, losses: Sequence[Tensor], maps: Sequence[Tensor], blind: Sequence[Tensor]
) -> dict[str, Any]:
    """Return what the oracle reaches, and the share of it that maps reach beyond blind ones: at a point and as areas."""
    ranked = [measures.rank_locations(loss, find_locations(m)) for loss, m in zip(losses, maps, strict=True)]
    points = sorted({*FRACTIONS, FRACTION})
    curves = [{point: delete(kind, point) for point in points} for kind in (maps, blind, ranked)]
    results = _compare_dependence(losses)
    for i, name in enumerate(("deletion", "insertion")):
        at_point = [curve[FRACTION][i] for curve in curves]
        areas = [
            [measures.average_over(FRACTIONS, values) for values in zip(*(curve[f][i] for f in FRACTIONS), strict=True)]
            for curve in curves
        ]
        share, error = _find_shares(*at_point)
        results |= {f"{name}_oracle": _average(at_point[2]), f"{name}_share": share, f"{name}_share_error": error}
        value, control, best = map(_average, areas)
        results[f"{name}_area"] = AreaUnderCurve(value, control, best, *_find_shares(*areas))
    return results


def _find_shares(
    values: Sequence[Tensor], control: Sequence[Tensor], best: Sequence[Tensor]
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """Return the share of what is possible at every exit, and its error."""
    share, error = zip(*map(measures.share_of_possible, values, control, best), strict=True)
    return share, error


def _run(net: ExitNet, engine: Engine, batches: _Batches, of: Of) -> Iterator[list[Tensor]]:
    """Return logits, attention and the views of every exit: its attention, or its evidence for its answer."""
    parts = []
    for _, chunk in batches:
        activations = engine.enter(net.check_input(chunk, "data"))
        if of == "evidence":
            outputs = engine.iterate_outputs(activations)
            parts.append([(out.logits, out.attention, _view(out, out.logits.argmax(1), of)) for out in outputs])
        else:
            parts.append([(logits, maps, maps) for logits, maps in engine.compute_outputs(activations)])
    return ([torch.cat([part[k][i] for part in parts]) for k in range(net.num_exits)] for i in range(3))


def _view(out: ExitOutput, answers: Tensor, of: Of) -> Tensor:  # -> (B,*S)
    """Return an exit's attention, or the signed evidence for the answers ``(B,)``."""
    return out.evidence[torch.arange(len(answers), device=answers.device), answers] if of == "evidence" else out.attention


def _reach_all(maps: Tensor, attention: Tensor) -> Tensor:  # (N,*S), (N,*T) -> (N,*S)
    """Let locations that do not speak for the answer count a little: 0 marks the padding of sequences."""
    real = find_locations(attention)
    if real is None:
        return maps
    return (maps + TINY) * real if real.shape == maps.shape else maps + TINY


def _find_relevance(net: ExitNet, batches: _Batches) -> list[Tensor]:
    """Return where every exit's answer depends on exit 0's features, signed, ``(N,*S)`` each."""
    parts = [attribute_exits(net, inputs) for _, inputs in batches]
    return [torch.cat(columns) for columns in zip(*parts, strict=True)]


def _randomise_in_turn(
    net: ExitNet, batches: _Batches, views: Sequence[Tensor], plain: Sequence[Tensor], of: Of
) -> tuple[tuple[float | None, ...], ...]:
    """Correlate every exit's map with itself as head and stages get random weights in turn (arXiv 1810.03292)."""
    count, answers = net.num_exits, [p.argmax(1) for p in plain]
    heads = [_randomise(head) if isinstance(head, EvidenceHead) else net.head(k) for k, head in enumerate(net.heads)]
    stages = [_randomise(net.stage(k).evaluation, seed=1 + k) for k in range(count)]
    sums = [[0.0] * count for _ in range(count + 1)]  # by the first random stage; k + 1: the head of exit k alone
    for rows, chunk in batches:
        activations = net.check_input(chunk)
        for first in range(count):
            passed = activations
            for k in range(first, count):
                passed = stages[k](*passed)
                shown = _view(heads[k](*passed), answers[k][rows], of)
                sums[first][k] += _correlate(views[k][rows], shown)
            activations = net.stage(first)(*activations)
            shown = _view(heads[first](*activations), answers[first][rows], of)
            sums[first + 1][first] += _correlate(views[first][rows], shown)
    means = [[total / len(views[0]) for total in row] for row in sums]
    curves = [[means[first][k] for first in range(k + 1, -1, -1)] for k in range(count)]
    return tuple(
        (curve[0] if isinstance(head, EvidenceHead) else None, *curve[1:])
        for curve, head in zip(curves, net.heads, strict=True)
    )


def _correlate(a: Tensor, b: Tensor) -> float:
    """Return the sum of the correlations of samples' maps, of signed ones of their positive parts."""
    return pearson(as_distribution(a.float()), as_distribution(b.float())).sum().item()


def _randomise(module: M, seed: int = 0) -> M:
    """Return a copy in evaluation mode with random matrices and kernels of the same spread; biases and norms stay."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.no_grad():
        module = copy.deepcopy(module).eval()
        for weight in module.parameters():
            if weight.ndim > 1 and weight.is_floating_point():
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight.copy_(noise * weight.std(correction=0).clamp_min(1e-3))
    return module
