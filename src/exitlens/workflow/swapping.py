"""certify_binding: promise how many answers stay when everything that their maps leave out comes from other samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rich.progress import Progress, TaskID
from torch import Tensor

from exitlens.data.batches import HeldSamples, hold_samples
from exitlens.errors import CalibrationError, InputError, require
from exitlens.functional.certification import FEWEST, bound_mean
from exitlens.functional.groups import average_groups, pair_groups
from exitlens.functional.maps import geometric_mean
from exitlens.functional.routing import compute_gate_features, route
from exitlens.functional.scores import probabilities
from exitlens.model.heads import require_maps
from exitlens.model.network import ExitNet
from exitlens.model.swaps import Swapper
from exitlens.progress import show_progress
from exitlens.types import Policy, Trace
from exitlens.types.inputs import Inputs
from exitlens.types.policies import BindingCertificate
from exitlens.types.settings import COUNT, NumberRule, check_number
from exitlens.types.tasks import USUAL_SCORES, are_same, find_answers

BATCH_SIZE = 250
OBJECT = 0.4  # share of the locations that may be an object's: a donor's are painted over, so that it does not come along
SAME = 0.99  # of the answers, when samples are read again: batches of another size may change the last digits
SEED = 105  # of the pairs of samples
Chooser = Callable[[Tensor, Inputs], Tensor]  # rows (n,) and their inputs -> (n,*T) bool
OPEN = NumberRule("a number in (0, 1)", lambda value: 0 < value < 1)


class _Sample:
    """Samples, and what every exit says of them whole."""

    def __init__(self, net: ExitNet, held: HeldSamples, bar: Progress, passes: int) -> None:
        self.net, self.held, self._bar, self._task = net, held, bar, TaskID(0)
        self._task = bar.add_task("swapping what maps leave out", total=passes * -(-len(held) // BATCH_SIZE))
        logits, maps, features = list[Tensor](), list[list[Tensor]](), list[Tensor]()
        with net.open_engine() as engine:
            for _, inputs in self._iterate():
                outputs = engine.compute_outputs(engine.enter(net.check_input(inputs, "data")))
                attention = [each.float() for _, each in outputs]
                logits.append(torch.stack([each.float() for each, _ in outputs], 1).cpu())
                pairs = zip(attention[:-1], [None, *attention[:-2]], strict=True)
                early = [compute_gate_features(item, before).cpu() for item, before in pairs]
                features.append(torch.stack(early, 1) if early else torch.empty(len(attention[0]), 0, 2))
                maps.append([net.info.place(k, each) for k, each in enumerate(attention)])
        self.logits, self.gate_features = torch.cat(logits), torch.cat(features)  # (N,K,C), (N,K-1,2)
        self.maps = [torch.cat(column) for column in zip(*maps, strict=True)]  # (N,*S) for each exit

    def _iterate(self) -> Iterator[tuple[slice, Inputs]]:
        for rows in torch.arange(len(self.held)).split(BATCH_SIZE):
            yield slice(int(rows[0]), int(rows[-1]) + 1), self.held.prepare(rows)
            self._bar.advance(self._task)

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
                inputs, donors = self.held.prepare(part), self.held.prepare(partner[part])
                donors = modality.paint_over(donors, hide(partner[part], donors))
                plain = [probabilities(self.logits[part, k], kind=score) for k in range(net.num_exits)]
                every, outside = slice(0, len(part)), ~keep(part, inputs)
                changes.append(Swapper(net, engine, plain).keep(every, inputs, [donors], outside, exits) < 1)
                self._bar.advance(self._task)
        return torch.cat(changes)

    def choose_top(self, maps: Tensor, area: float) -> Chooser:  # (N,*S)
        """Return what chooses the top share of each sample's map."""
        return lambda rows, inputs: self.net.input_spec.modality.choose_region(maps[rows], inputs, area)

    def to_trace(self) -> Trace:
        """Return what routing needs."""
        none, info = torch.zeros(self.logits.shape[:2]), self.net
        features = self.gate_features if info.num_exits > 1 else None
        return Trace(self.logits, None, none, info.cost, info.identity(), gate_features=features, task=info.info.task)


def _take_masks(masks: Tensor, rows: Tensor, _: Inputs) -> Tensor:
    return masks[rows]


def record_swaps(net: ExitNet, trace: Trace, data: Any, count: int, progress: bool) -> Trace:
    """Return the trace with the swaps of ``count`` of its samples: what is outside the object comes from another sample.

    The object is the sample's mask, or else the top 40 % of the locations by the final exit's map.
    """
    require_maps(net.heads, "swapped")
    held = hold_samples(data, count)
    if int(held.rows.max()) >= len(trace) or len(held.rows) != len(held):
        raise InputError("swapped: some of the data cannot be read, so that rows do not fit. Fix: leave these samples out")
    groups = torch.arange(len(held)) if trace.groups is None else trace.groups[held.rows]
    with show_progress(progress) as bar:
        sample = _Sample(net, held, bar, 2)
        answers = find_answers(sample.logits, net.info.task), trace.answers[held.rows]
        if are_same(*answers, net.info.task).float().mean() < SAME:
            fix = "Fix: pass a data set, or a loader that does not shuffle."
            raise InputError(f"swapped: the data came in another order, or changed, when they were read again. {fix}")
        rows, choose, masks = torch.arange(len(held)), sample.choose_top(sample.maps[-1], OBJECT), held.masks
        if masks is not None:
            flat = masks.flatten(1)
            rows = (flat.any(1) & ~flat.all(1)).nonzero()[:, 0]  # with an object and a background
            choose = partial(_take_masks, masks)
        if len(groups[rows].unique()) < 2:
            raise InputError("swapped: expected two samples or more (or groups) with a background, got fewer")
        among, unit = pair_groups(groups[rows], SEED)
        partner = torch.arange(len(held)).scatter(0, rows, rows[among])
        among_changed = sample.find_changes(rows, partner, choose, choose, tuple(range(net.num_exits)))
    changed = torch.zeros(len(trace), net.num_exits, dtype=torch.bool)
    units = torch.full((len(trace),), -1)
    changed[held.rows[rows]], units[held.rows[rows]] = among_changed, unit
    return replace(trace, swaps={"changed": changed, "unit": units})


def _refuse_seen(trace: Trace, policy: Policy) -> None:
    record = policy.calibration
    if record is not None and (record.data == trace.fingerprint() or any(map(trace.shares_samples, record.fitted_on))):
        raise CalibrationError(
            "data: the policy was calibrated on some of these samples, so they cannot promise anything about it. Fix: pass "
            "samples that nothing was chosen on."
        )


def certify_binding(
    net: ExitNet,
    data: Any,
    policy: Policy,
    *,
    area: float = 0.2,
    delta: float = 0.1,
    samples: int = 2000,
    progress: bool = False,
) -> Policy:
    """Promise how many answers rest on what their maps show: they stay when all else comes from another sample.

    Every sample leaves where the policy sends it. The top ``area`` of the map of that exit stays, and everything outside
    comes from another sample whose own object, the top 40 % of its mean map, has been painted over (the swap of
    docs/concepts/binding.md). Samples are paired at random and take from one another, so that the pairs are independent,
    and a bet against "fewer answers stay" (arXiv 2010.09686) gives the share that is promised: with probability at least
    1 - ``delta`` over the draw of these samples, at least so many answers to new ones stay. No labels are needed.

    If the data name groups, only these are independent: groups take from one another, and the share is the mean over
    groups of the share of their samples.

    Args:
        net: used in evaluation mode and as it is tuned, and given back in the mode it was in.
        data: as for :func:`exitlens.collect`: other samples than those that training and calibration have seen.
        area: share of the input's locations that a map shows.
        delta: chance that the promise is wrong.
        samples: maximum number of samples, held in memory; if there are more, they are drawn at random.

    Returns:
        The policy, with the promise as ``policy.binding``; bundles, reports, server and runtime pass it on.

    Raises:
        InputError: the exits have no maps, or an argument is out of range.
        CalibrationError: fewer than 20 samples or groups, or the policy was calibrated on some of them.

    Examples:
        >>> certified = xl.certify_binding(net, scenes, policy, area=0.4)
        >>> certified.binding.samples, certified.binding.share <= certified.binding.seen
        (64, True)
    """
    require(net, ExitNet, "net")
    net.check_policy(policy)
    require_maps(net.heads, "certify_binding")
    for name, value in (("area", area), ("delta", delta)):
        check_number(name, value, OPEN)
    check_number("samples", samples, COUNT)
    held = hold_samples(data, samples)
    groups = torch.arange(len(held)) if held.groups is None else held.groups
    count = len(groups.unique())
    if count < 2 * FEWEST:
        what = "samples" if held.groups is None else "groups"
        raise CalibrationError(f"data: {count} {what} promise nothing. Fix: pass {2 * FEWEST} or more, best some hundred.")
    with show_progress(progress) as bar:
        sample = _Sample(net, held, bar, 2)
        trace = sample.to_trace()
        _refuse_seen(trace, policy)
        exits = route(trace, policy)
        partner, unit = pair_groups(groups, SEED)
        hide, changed = sample.choose_top(geometric_mean(sample.maps), OBJECT), torch.zeros(len(held))
        for k in exits.unique().tolist():
            rows, keep = (exits == k).nonzero()[:, 0], sample.choose_top(sample.maps[k], area)
            changed[rows] = sample.find_changes(rows, partner, keep, hide, (k,))[:, 0].float()
    numbers = groups.unique(return_inverse=True)[1]
    means, _ = average_groups(changed, numbers)
    first = torch.zeros(count, dtype=torch.int64).scatter(0, numbers, unit)
    units, _ = average_groups(means, first)
    by_exit = {k: int((exits == k).sum()) for k in range(net.num_exits)}
    binding = BindingCertificate(
        area=area,
        delta=delta,
        share=1 - bound_mean(units.numpy(), delta),
        seen=1 - means.mean().item(),
        samples=len(held),
        groups=None if held.groups is None else count,
        by_exit=tuple((n, 1 - changed[exits == k].mean().item() if n else None) for k, n in by_exit.items()),
        rule=policy.rule_hash(),
    )
    return replace(policy, binding=binding)
