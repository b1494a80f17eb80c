"""certify_binding: promise how many answers stay when everything that their maps leave out comes from other samples."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from exitlens.data.batches import hold_samples
from exitlens.errors import CalibrationError, require
from exitlens.functional.certification import FEWEST, bound_mean
from exitlens.functional.groups import average_groups, pair_groups
from exitlens.functional.maps import find_locations, geometric_mean
from exitlens.functional.routing import route
from exitlens.model.heads import require_maps
from exitlens.model.network import ExitNet
from exitlens.model.swaps import BATCH_SIZE, OBJECT, Chooser, ObservedTrial
from exitlens.progress import show_progress
from exitlens.types import Policy, Trace
from exitlens.types.inputs import Inputs
from exitlens.types.policies import BindingCertificate
from exitlens.types.settings import PROPER_SHARE, NumberRule, SampleSketch, check_number
from exitlens.types.tasks import refuse_task

SEED = 105  # of the pairs of samples
ENOUGH = NumberRule(f"an integer of {2 * FEWEST} or more", lambda value: isinstance(value, int) and value >= 2 * FEWEST)


def bound_share(changed: Tensor, groups: Tensor, unit: Tensor, delta: float) -> tuple[float, float]:  # (N,) each
    """Return the share of answers that stay with probability 1 - delta, and the share that stayed, over equal groups.

    ``changed`` is 1 where an answer changed. Groups of one ``unit`` took from one another.
    """
    numbers = groups.unique(return_inverse=True)[1]
    means, _ = average_groups(changed, numbers)
    units, _ = average_groups(means, torch.zeros(len(means), dtype=torch.int64).scatter(0, numbers, unit))
    seen = 1 - means.mean().item()
    return min(1 - bound_mean(units.numpy(), delta), seen), seen  # by luck in its order, a bet may end above what was seen


def _refuse_seen(trace: Trace, policy: Policy, asked: tuple[float, float]) -> None:
    record, before = policy.calibration, policy.binding
    if before is not None and (before.area, before.delta) != asked and trace.shares_samples(before.data):
        raise CalibrationError(
            f"data: these samples have certified binding at area {before.area:g} and delta {before.delta:g} before, and the "
            "best of several certificates is wrong more often than one. Fix: pass other samples."
        )
    if record is not None and any(map(trace.shares_samples, [SampleSketch(record.data, record.sketch), *record.fitted_on])):
        raise CalibrationError(
            "data: the policy was calibrated on some of these samples, so they cannot promise anything about it. Fix: pass "
            "samples that nothing was chosen on."
        )


def _watch(choose: Chooser, maps: Tensor, shown: Tensor) -> Chooser:
    """Return what chooses the same, and writes down which share of each sample it is; padding is no part of a sample."""

    def choose_and_write(rows: Tensor, inputs: Inputs) -> Tensor:
        region, real = choose(rows, inputs), find_locations(maps[rows])
        size = region[0].numel() if real is None or real.shape != region.shape else real.flatten(1).sum(1)
        shown[rows] = (region.flatten(1).sum(1) / size).cpu()
        return region

    return choose_and_write


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

    The promise is of one certificate from these samples. To choose an area or a policy by what can be certified of it, use
    other samples: the best of several certificates is wrong more often than one.

    If the data name groups, only these are independent: groups take from one another, and the share is the mean over
    groups of the share of their samples, of which as many are drawn from each.

    Args:
        net: used in evaluation mode and as it is tuned, and given back in the mode it was in.
        data: as for :func:`exitlens.collect`: other samples than those that training and calibration have seen.
        area: share of the input's locations that a map shows.
        delta: chance that the promise is wrong.
        samples: maximum number of samples, 20 or more, held in memory; if there are more, they are drawn at random.

    Returns:
        The policy, with the promise as ``policy.binding``; bundles, reports, server and runtime pass it on.

    Raises:
        InputError: the exits have no maps, texts have no padding mask, or an argument is out of range.
        CalibrationError: fewer than 20 samples or groups, or the policy was calibrated on some of them.

    Examples:
        >>> certified = xl.certify_binding(net, scenes, policy, area=0.4)
        >>> certified.binding.samples, certified.binding.share <= certified.binding.seen
        (64, True)
    """
    require(net, ExitNet, "net")
    refuse_task(net.info.task, "net: certify_binding")
    net.check_policy(policy)
    policy = replace(policy, network=net.identity())
    require_maps(net.heads, "certify_binding")
    net.input_spec.modality.check_deletion(net.input_spec)
    for name, value in (("area", area), ("delta", delta)):
        check_number(name, value, PROPER_SHARE)
    check_number("samples", samples, ENOUGH)
    held = hold_samples(data, samples, equal_groups=True).to(net.device)
    groups = torch.arange(len(held)) if held.groups is None else held.groups
    count = len(groups.unique())
    if count < 2 * FEWEST:
        what = "samples" if held.groups is None else "groups"
        raise CalibrationError(
            f"data: {count} {what} are too few to promise anything. Fix: pass {2 * FEWEST} or more, preferably some "
            "hundreds."
        )
    with show_progress(progress) as bar, net.open_engine() as engine:
        task = bar.add_task("swapping what maps leave out", total=2 * -(-len(held) // BATCH_SIZE))
        sample = ObservedTrial(net, engine, held.prepare, len(held), partial(bar.advance, task))
        trace = sample.to_trace()
        _refuse_seen(trace, policy, (area, delta))
        exits = route(trace, policy)
        partner, unit = pair_groups(groups, SEED)
        hide = sample.choose_top(geometric_mean(sample.maps), OBJECT)
        changed, shown = torch.zeros(2, len(held))
        for k in exits.unique().tolist():
            rows, keep = (exits == k).nonzero()[:, 0], _watch(sample.choose_top(sample.maps[k], area), sample.maps[k], shown)
            changed[rows] = sample.find_changes(rows, [partner[rows]], keep, hide, (k,))[:, 0]
    share, seen = bound_share(changed, groups, unit, delta)
    by_exit = {k: int((exits == k).sum()) for k in range(net.num_exits)}
    binding = BindingCertificate(
        area=area,
        delta=delta,
        share=share,
        seen=seen,
        samples=len(held),
        groups=None if held.groups is None else count,
        by_exit=tuple((n, 1 - changed[exits == k].mean().item() if n else None) for k, n in by_exit.items()),
        rule=policy.rule_hash(),
        shown=shown.mean().item(),
        distinct=len(set(trace.hash_samples())),
        data=trace.sketch(),
    )
    return replace(policy, binding=binding)
