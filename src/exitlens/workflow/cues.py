"""find_cues: find by swaps which parts of the inputs the answers of early exits hang on, more than the final exit's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from exitlens.data.batches import HeldSamples, hold_samples
from exitlens.errors import InputError, require
from exitlens.functional.maps import geometric_mean
from exitlens.modalities.base import Modality
from exitlens.modalities.parts import Part
from exitlens.model.engine.engine import Engine
from exitlens.model.heads import have_maps
from exitlens.model.network import ExitNet
from exitlens.model.swaps import BATCH_SIZE, OBJECT, Chooser, ObservedTrial
from exitlens.progress import show_progress
from exitlens.types.cues import Cue, CueExample, Cues
from exitlens.types.inputs import Inputs, draw_samples, list_tensors, map_inputs
from exitlens.types.settings import COUNT, PROPER_SHARE, check_number
from exitlens.types.tasks import name_answers, refuse_task

TRIES = 50
SCREENED, TESTED = 0.25, 12  # share of the samples that choose what is tested, and number of parts that are
WORD_TEXTS = 20  # texts, at least, that have a word of a kind
SHOWN = 4  # examples of each cue


def find_cues(
    net: ExitNet,
    data: Any,
    *,
    samples: int = 1000,
    donors: int = 2,
    least: float = 0.05,
    delta: float = 0.05,
    seed: int = 0,
    progress: bool = False,
) -> Cues:
    """Find what the answers of an early exit hang on more than the final exit's, part by part of the inputs, by swaps.

    A part of a sample is replaced by that of a donor, a sample of another class. If the exit then answers the donor's class,
    the part carried it. Parts are places of a grid, the background, channels or groups of features, their levels (mean and
    standard deviation), texture, and words of a kind. All of them come from other samples: nothing is blacked out.

    Two things are subtracted. The control: the same part from a third sample, of a class other than the donor's, which
    turns answers into that class only by disturbing them. And the final exit, for which the same is measured on the
    same swaps: the object itself carries its answers as well. What is left is the excess; an exit that follows the
    part less often than the final one has none, whatever the control. Where masks say what the background is, the final exit
    should not hang on it either and is not subtracted. A quarter of the samples chooses which parts are tested on the
    others; intervals are normal ones of paired differences with two samples added that contradict each other (as in
    Agresti and Min, Biometrics 2005), and hold for all tested parts and exits at once (Bonferroni).

    Args:
        net: used in evaluation mode and as it is tuned, and given back in the mode it was in.
        data: as for :func:`exitlens.collect`. Classes are those of the labels, or else the final exit's answers. With masks,
            the background is what is outside them, otherwise outside the top 40 % of the exits' mean map.
        samples: maximum number of samples; if there are more, they are drawn at random.
        donors: donors of each sample.
        least: the excess that a cue has at least, by the lower end of its interval.
        delta: chance that any part is listed though its excess is below ``least``.
        seed: of the draws of samples and donors.

    Raises:
        InputError: the data have a single class, fewer than 8 samples, or texts have no padding mask.

    Examples:
        >>> cues = xl.find_cues(net, scenes, samples=32, donors=1)
        >>> cues.samples, cues.cues
        (24, ())
    """
    require(net, ExitNet, "net")
    refuse_task(net.info.task, "net: find_cues")
    for name, value, rule in (("samples", samples, COUNT), ("donors", donors, COUNT), ("least", least, PROPER_SHARE)):
        check_number(name, value, rule)
    check_number("delta", delta, PROPER_SHARE)
    modality = net.input_spec.modality
    modality.check_deletion(net.input_spec)
    held = hold_samples(data, samples, seed).to(net.device)
    if len(held) < 2 / SCREENED:
        raise InputError(f"data: expected {2 / SCREENED:.0f} samples or more, got {len(held)}. Fix: pass more of them")
    with show_progress(progress) as bar, net.open_engine() as engine:
        trial = _CueTrial(net, engine, held, seed)
        parts = _list_parts(net, held, trial)
        order = draw_samples(len(held), len(held), seed + 1)
        first, rest = order.split([round(SCREENED * len(held)), len(held) - round(SCREENED * len(held))])
        task, scores = bar.add_task("trying every part", total=len(parts)), list[float]()
        for part in parts:
            pairs = trial.swap(part, first, 1, is_controlled=False)
            scores.append(_bound(pairs.subtract(len(held), part.spares_object), 1.0)[0].max().item())
            bar.advance(task)
        best = sorted(range(len(parts)), key=scores.__getitem__, reverse=True)[:TESTED]
        z = torch.special.ndtri(torch.tensor(1 - delta / (2 * max(1, len(best) * (net.num_exits - 1))))).item()
        task, cues = bar.add_task("testing the best", total=len(best)), list[Cue]()
        for i in best:
            cue = trial.judge(parts[i], rest, donors, z)
            if cue.interval[0] >= least and len(cue.classes) > 1:
                cues.append(cue)
            bar.advance(task)
    return Cues(_drop_overlaps(cues), len(parts), len(best), len(rest), donors, delta, least)


class _Pairs(NamedTuple):
    """What swaps of a part did to P pairs of samples and donors."""

    rows: Tensor  # (P,) samples
    donors: Tensor  # (P,)
    changed: Tensor  # (P,K) 0 or 1, floats; with several labels, shares of them
    transfer: Tensor  # (P,K)
    control: Tensor  # (P,K)

    def subtract(self, count: int, spares_object: bool) -> Tensor:  # -> (2,N,K-1), or (1,N,K-1) without the final exit
        """Return how often early exits follow the part beyond control and final exit, and beyond the final exit alone.

        They are averaged over the donors of each of ``count`` samples; NaN for one without any.
        """
        gain = self.transfer - self.control  # (P,K)
        beyond = [gain[:, :-1]] if spares_object else [each[:, :-1] - each[:, -1:] for each in (gain, self.transfer)]
        total = torch.zeros(len(beyond), count, gain.shape[1] - 1).index_add_(1, self.rows, torch.stack(beyond))
        return total / torch.bincount(self.rows, minlength=count)[:, None]


class _CueTrial(ObservedTrial):
    """A trial of swaps with donors of other classes, part by part."""

    def __init__(self, net: ExitNet, engine: Engine, held: HeldSamples, seed: int) -> None:
        super().__init__(net, engine, held.prepare, len(held), lambda: None)
        self._rng = torch.Generator().manual_seed(seed)
        self.object: Chooser | None = None  # chooses all but the background
        if (masks := held.masks) is not None:
            self.object = lambda rows, _: masks[rows]
        elif have_maps(net.heads) and self.maps[0].ndim > 2:
            self.object = self.choose_top(geometric_mean(self.maps), OBJECT)
        self._known = held.labels if held.labels is not None else self.answers[:, -1]
        _, self.classes = torch.unique(self._known.cpu(), dim=0, return_inverse=True)  # (N,)
        if int(self.classes.max()) == 0:
            raise InputError("data: all samples are of one class, so nothing can carry another. Fix: pass several classes")

    def swap(self, part: Part, rows: Tensor, donors: int, is_controlled: bool = True) -> _Pairs:
        """Swap a part between these samples, as far as they have it, and donors of other classes."""
        pool = torch.arange(len(self.answers)) if part.present is None else part.present.nonzero()[:, 0]
        rows = rows[torch.isin(rows, pool)].repeat(donors)
        given = self._draw(rows, pool)
        third = self._draw(given, pool, unlike=rows)
        is_whole = (given >= 0) & (third >= 0)
        rows, given, third = rows[is_whole], given[is_whole], third[is_whole]
        before = self.answers[rows]
        target = self._known[given][:, None].to(before)  # (P,1) or (P,1,C)
        after = self._answer_swapped(part, rows, given)
        control = self._answer_swapped(part, rows, third) if is_controlled else before
        changed, *shares = (self._compare(before, *pair) for pair in ((after, after), (after, target), (control, target)))
        return _Pairs(rows, given, changed, *shares)

    def _draw(self, rows: Tensor, pool: Tensor, unlike: Tensor | None = None) -> Tensor:
        """Draw a partner of another class for each, that is not ``unlike`` either; -1 where none was drawn."""
        drawn = torch.full_like(rows, -1)
        for _ in range(TRIES):
            left = (drawn < 0).nonzero()[:, 0]
            if not len(left) or not len(pool):
                break
            offered = pool[torch.randint(len(pool), (len(left),), generator=self._rng)]
            fits = self.classes[offered] != self.classes[rows[left]]
            if unlike is not None:
                fits &= offered != unlike[left]
            drawn[left[fits]] = offered[fits]
        return drawn

    def _answer_swapped(self, part: Part, rows: Tensor, donors: Tensor) -> Tensor:  # -> (P,K) or (P,K,C)
        pairs = zip(rows.split(BATCH_SIZE), donors.split(BATCH_SIZE), strict=True) if len(rows) else ()
        return torch.cat([self.answers[:0], *(self.answer(self.exchange(part, *pair), self.exits) for pair in pairs)])

    def exchange(self, part: Part, rows: Tensor, donors: Tensor) -> Inputs:
        """Return the samples with the donors' part."""
        inputs = self.prepare(rows)
        if part.kind != "background" or self.object is None:
            return part.swap(inputs, self.prepare(donors))
        return self.modality.exchange(inputs, self.paint(donors, self.object), ~self.object(rows, inputs))

    def _compare(self, before: Tensor, after: Tensor, target: Tensor) -> Tensor:  # (P,K) or (P,K,C), target K or 1 -> (P,K)
        """Return which answers became the target, of those that were not; with several labels, the share of labels."""
        could = before != target
        did = could & (after == target)
        if self.task == "classes":
            return did.float()
        return did.float().sum(2) / could.float().sum(2).clamp_min(1)

    def judge(self, part: Part, rows: Tensor, donors: int, z: float) -> Cue:
        """Test a part on these samples, and summarise it at the early exit where the lower end of the excess is largest.

        The final exit's gain is subtracted, unless the part spares the object.
        """
        pairs = self.swap(part, rows, donors)
        gains = pairs.subtract(len(self.answers), part.spares_object)
        low, high = _bound(gains, z)
        k = int(low.argmax())
        excess = gains[0, pairs.rows, k]
        kinds, middle = self.classes[pairs.donors], (low[k] + high[k]).item() / 2
        carried = [c for c in kinds.unique().tolist() if excess[kinds == c].nanmean() >= middle / 2]
        went = ((pairs.transfer[:, k] > 0) & (pairs.transfer[:, -1] == 0)).nonzero()[:SHOWN, 0]
        changed, transfer, control = (
            tuple(column.mean(0).tolist()) for column in (pairs.changed, pairs.transfer, pairs.control)
        )
        names = tuple(self._name_class(c) for c in carried)
        examples = self._show(part, pairs.rows[went], pairs.donors[went], k)
        shares, interval = (changed, transfer, control), (low[k].item(), high[k].item())
        return Cue(part.kind, part.name, k, *shares, middle, interval, names, part.ignore, examples)

    def _name_class(self, number: int) -> str:
        row = int((self.classes == number).nonzero()[0, 0])
        return name_answers(self._known[row : row + 1], self.net.info.classes)[0]

    def _show(self, part: Part, rows: Tensor, donors: Tensor, k: int) -> tuple[CueExample, ...]:
        if not len(rows):
            return ()
        swapped = self.exchange(part, rows, donors)
        answers = (self.answers[rows, k], self.answer(swapped, self.exits)[:, k], self._known[donors])
        words = zip(*(name_answers(each, self.net.info.classes) for each in answers), strict=True)
        columns = [list_tensors(each) for each in (self.prepare(rows), self.prepare(donors), swapped)]
        return tuple(
            CueExample(*(tuple(tensor[i].cpu() for tensor in column) for column in columns), *each)  # type: ignore[arg-type]
            for i, each in enumerate(words)
        )


def _bound(values: Tensor, z: float) -> tuple[Tensor, Tensor]:  # (M,N,E), NaN: not measured -> (E,) each
    """Return the ends of the lowest of the intervals of M means; two samples of 1 and -1 are added to each.

    So no interval has width 0.
    """
    values = values[:, ~values[0].isnan().any(1)]
    added = torch.ones(len(values), 1, values.shape[2])
    values = torch.cat([values, added, -added], 1)
    mean, half = values.mean(1), z * values.std(1) / values.shape[1] ** 0.5  # (M,E)
    low, which = (mean - half).min(0)
    return low, (mean + half).gather(0, which[None])[0]


def _drop_overlaps(cues: Sequence[Cue]) -> tuple[Cue, ...]:
    """Sort cues by the lower ends of their intervals, and leave out places that overlap with a clearer one."""
    kept: list[Cue] = []
    for cue in sorted(cues, key=lambda each: each.interval[0], reverse=True):
        places = [other.ignore for other in kept if other.kind == cue.kind == "place"]
        if not any(bool((place & cue.ignore).any()) for place in places):  # type: ignore[operator]
            kept.append(cue)
    return tuple(kept)


def _list_parts(net: ExitNet, held: HeldSamples, trial: _CueTrial) -> list[Part]:
    """List the parts that these samples have, the background last if there are masks or maps of places."""
    modality: Modality = net.input_spec.modality
    example = held.prepare(torch.arange(1))
    whole = example if isinstance(example, Tensor) else held.prepare(torch.arange(len(held)))  # words are counted in all
    parts = modality.list_parts(map_inputs(whole, Tensor.cpu), net.info.preprocess, min(WORD_TEXTS, len(held)))
    if trial.object is not None and isinstance(example, Tensor):
        is_known = held.masks is not None
        name = "background" if is_known else "outside the maps"
        ignore: Literal["background"] | None = "background" if is_known else None
        parts.append(Part("background", name, lambda inputs, donors: donors, ignore, spares_object=is_known))
    return parts
