"""What the answer of an exit depends on: by gradients of earlier features, and by deleting cells from the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from exitlens.errors import InputError, require
from exitlens.functional.baselines import Baseline
from exitlens.functional.maps import answer_score, choose_explained, find_locations, gradient_x_input, top_cells
from exitlens.functional.scores import probabilities
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.cutting.split import Activations
from exitlens.model.engine.engine import Engine
from exitlens.model.heads import ExitHead
from exitlens.model.mixing import Mixing
from exitlens.model.network import ExitNet
from exitlens.types import ExitOutput
from exitlens.types.inputs import Inputs, check_labels
from exitlens.types.settings import check_choice
from exitlens.types.tasks import USUAL_SCORES, refuse_task

Method = Literal["gradient_x_input", "layer_cam", "integrated_gradients"]
METHODS: tuple[Method, ...] = get_args(Method)
Score = Callable[[Tensor], Tensor]  # features -> (B,)
Rows = Iterable[tuple[slice, Inputs]]
STEPS = 16  # points on the path of integrated gradients


def attribute(
    net: ExitNet,
    inputs: Inputs,
    *,
    exit: int | None = None,
    labels: Tensor | None = None,
    at: int | None = None,
    method: Method = "gradient_x_input",
    detached: bool | None = None,
) -> Tensor:
    """Return where an exit's logit of a class, less the mean of all logits, depends on features, to first order.

    An attention map says which of its own features an exit used; deep features are mixtures of many places of the input.
    This says which places of *shallow* features the answer depends on. The network runs in evaluation mode and untuned.

    Args:
        inputs: B samples.
        exit: the exit whose answer is explained; by default the final one.
        labels: ``(B,)`` classes; by default the exit's own answers. In a multi-label network, one label for each sample; by
            default all that the exit predicts (if none, the strongest), and the map is about the sum of their logits alone.
        at: the exit whose features and grid the map has: ``exit`` or one before it, by default the first (in a cascade, of
            the same member).
        method: ``gradient_x_input`` (arXiv 1605.01713), one backward pass. ``layer_cam``: only gradients that speak for the
            class, and only a positive sum (LayerCAM, IEEE TIP 2021, eq. 4-6). ``integrated_gradients`` (arXiv 1703.01365):
            gradient times input, averaged over 16 points from features of 0 on; its sum is nearly the change of the score.
        detached: attention weights and the scales of layer norms count as constants, as in arXiv 2202.07304; by default in
            networks with attention, where plain gradients point elsewhere.

    Returns:
        ``(B,*S)`` float32, signed (``layer_cam``: not negative), placed in the image; 0 at padding.

    Examples:
        >>> xl.attribute(net, images).shape  # of the final exit's answer, on the grid of exit 0
        torch.Size([8, 10, 10])
    """
    require(net, ExitNet, "net")
    refuse_task(net.info.task, "net: relevance")
    last = net.num_exits - 1
    exit = last if exit is None else exit
    if not isinstance(exit, int) or not 0 <= exit <= last:
        raise InputError(f"exit: expected a number from 0 to {last}, got {exit!r}. Fix: count exits from 0.")
    first = net.first_exit(exit)
    at = first if at is None else at
    if not isinstance(at, int) or not first <= at <= exit:
        raise InputError(f"at: expected a number from {first} to {exit}, got {at!r}. Fix: pass exit or one before it.")
    check_choice("method", method, METHODS)
    detached = net.has_self_attention if detached is None else detached
    activations = net.check_input(inputs)
    if labels is not None:
        check_labels(labels, len(activations[0]), net.info.num_classes)
        if net.info.task == "multilabel":
            labels = labels[:, None] == torch.arange(net.info.num_classes, device=labels.device)

    def score(features: Tensor) -> Tensor:  # -> (B,); features may be several for each sample, one batch after the other
        nonlocal labels
        copies = 1 if labels is None else len(features) // len(labels)
        passed: Activations = (features, *(t.repeat(copies, *[1] * (t.ndim - 1)) for t in activations[1:]))
        with Mixing(is_fixed=True) if detached else nullcontext():
            for k in range(at + 1, exit + 1):
                passed = net.stage(k)(*passed)
        logits = net.head(exit).classify(*passed)
        labels = choose_explained(logits, net.info.task) if labels is None else labels  # from the first features on
        return answer_score(logits, net.info.task, labels.repeat(copies, *[1] * (labels.ndim - 1)))

    with torch.inference_mode(False), switch_mode(net, False), torch.no_grad():
        activations = _leave_inference_mode(activations)
        for k in range(at + 1):
            activations = net.stage(k)(*activations)
        with torch.enable_grad():
            shares = _attribute(method, score, activations[0])
        relevance = net.head(at).sum_shares(shares, *activations)
    return net.info.place_relevance(at, relevance.clamp_min(0) if method == "layer_cam" else relevance)


def attribute_exits(net: ExitNet, inputs: Inputs) -> tuple[Tensor, ...]:
    """Return :func:`attribute` of every exit's own answer, ``(B,*S)`` each, from one forward pass."""
    activations = net.check_input(inputs)
    with switch_mode(net, False):
        exits = range(net.num_exits)
        recording = Recording([net.stage(k) for k in exits], [net.head(k) for k in exits], net)
        outputs = list(recording.iterate_outputs(activations))
        return tuple(torch.stack(recording.find_relevance([k] * len(outputs[k].logits))) for k in exits)


class Recording:
    """A pass through the exits, by the stages of a network or engine, from which one backward pass finds relevance."""

    def __init__(self, stages: Sequence[Callable[..., Any]], heads: Sequence[ExitHead], net: ExitNet) -> None:
        self._stages, self._heads, self._logits, self._goes_on = stages, heads, list[Tensor](), True
        self._detached, self._info = net.has_self_attention, net.info
        self._firsts = [net.first_exit(k) for k in range(len(heads))]
        self._starts = dict[int, Activations]()  # activations at the first exit, and at that of each further member

    def iterate_outputs(self, activations: Activations) -> Iterator[ExitOutput]:
        """Yield outputs as :meth:`~exitlens.model.engine.engine.Engine.iterate_outputs` does, detached."""
        activations = _leave_inference_mode(activations)
        for k, (stage, head) in enumerate(zip(self._stages, self._heads, strict=True)):
            with torch.inference_mode(False):  # its tensors have no gradients
                is_first = self._firsts[k] == k
                is_recorded = not is_first and self._goes_on
                mixing = Mixing(is_fixed=True) if is_recorded and self._detached else nullcontext()
                with torch.set_grad_enabled(is_recorded), mixing:
                    activations = stage(*activations)
                with torch.set_grad_enabled(self._goes_on):
                    if is_first:
                        activations = (activations[0].detach().requires_grad_(), *activations[1:])
                        self._starts[k] = activations
                    out = head(*activations)
            self._logits.append(out.logits)
            yield ExitOutput(*(t.detach() for t in out))

    def stop(self) -> None:
        """Record no gradients from now on."""
        self._goes_on = False

    def find_relevance(self, exits: Sequence[int]) -> list[Tensor]:  # -> B of (*S)
        """Return :func:`attribute` of every sample for the answer of its exit."""
        relevance: list[Tensor] = [torch.empty(0)] * len(exits)
        for first in {self._firsts[k] for k in exits}:
            start = self._starts[first]
            with torch.inference_mode(False), torch.enable_grad():
                chosen = torch.tensor(exits, device=start[0].device)
                scores = torch.zeros(len(chosen), device=chosen.device)
                for k in {k for k in exits if self._firsts[k] == first}:
                    scores = torch.where(chosen == k, answer_score(self._logits[k], self._info.task), scores)
                shares = gradient_x_input(scores, start[0], retain_graph=True)
                maps = self._info.place_relevance(first, self._heads[first].sum_shares(shares, *start))
            for i, k in enumerate(exits):
                relevance[i] = maps[i] if self._firsts[k] == first else relevance[i]
        return relevance


def _leave_inference_mode(activations: Activations) -> Activations:
    with torch.inference_mode(False):
        return tuple(t.clone() if t.is_inference() else t for t in activations)


def _attribute(method: Method, score: Score, features: Tensor) -> Tensor:
    """Return what features add to a score, by gradients; integrated ones are taken at the midpoints of equal steps."""
    if method != "integrated_gradients":
        features = features.detach().requires_grad_()
        if method == "gradient_x_input":
            return gradient_x_input(score(features), features)
        (gradient,) = torch.autograd.grad(score(features).sum(), features)
        return gradient.float().clamp_min(0) * features.detach().float()
    with torch.no_grad():
        score(features)
    total = torch.zeros_like(features, dtype=torch.float32)
    for steps in ((torch.arange(STEPS) + 0.5) / STEPS).split(max(1, STEPS // len(features))):  # small batches together
        points = torch.cat([features.detach() * step for step in steps.tolist()]).requires_grad_()
        (gradient,) = torch.autograd.grad(score(points).sum(), points)
        total += gradient.float().unflatten(0, (len(steps), -1)).sum(0)
    return total / STEPS * features.detach().float()


def predict_exits(net: ExitNet, engine: Engine, inputs: Inputs, exits: Sequence[int]) -> list[Tensor]:
    """Return the probabilities ``(B,C)`` at one exit, or at all."""
    activations = engine.enter(net.check_input(inputs))
    if len(exits) == 1:
        logits = [engine.compute_logits(exits[0], activations)]
    else:
        logits = [output[0] for output in engine.compute_outputs(activations)]
    return [probabilities(item, kind=USUAL_SCORES[net.info.task]) for item in logits]


def perturb(
    net: ExitNet,
    engine: Engine,
    batches: Rows,
    plain: Sequence[Tensor],
    maps: Sequence[Tensor],
    fraction: float,
    exits: Sequence[int] | None = None,
    baseline: Baseline = "mean",
) -> tuple[list[Tensor], list[Tensor]]:
    """Delete, and keep alone, the top ``fraction`` of the cells of maps ``(N,*grid)``.

    ``batches`` are rows and inputs of N samples, ``plain`` the probabilities ``(N,C)`` of every exit on the whole inputs;
    ``baseline`` stands in deleted cells. Returns ``(N,)`` for every map: the drop in the probability of its exit's answer
    (by default, map k is about exit k), and that probability with those cells alone.
    """

    exits = range(len(plain)) if exits is None else exits
    modality = net.input_spec.modality
    chosen = [top_cells(m, fraction, find_locations(m)) for m in maps]
    drops, keeps = ([plain[k].new_zeros(len(plain[k])) for k in exits] for _ in range(2))
    for rows, inputs in batches:
        for i, (k, cells) in enumerate(zip(exits, chosen, strict=True)):
            p = plain[k][rows]
            label = p.argmax(1, keepdim=True)
            deleted, kept = (change(inputs, cells[rows], baseline) for change in (modality.delete, modality.insert))
            less, alone = (predict_exits(net, engine, changed, (k,))[0] for changed in (deleted, kept))
            drops[i][rows] = (p - less).gather(1, label).squeeze(1)
            keeps[i][rows] = alone.gather(1, label).squeeze(1)
    return drops, keeps


def occlude(
    net: ExitNet,
    engine: Engine,
    batches: Rows,
    plain: Sequence[Tensor],
    maps: Sequence[Tensor],
    baseline: Baseline = "mean",
) -> list[Tensor]:
    """Delete every cell by itself (occlusion as in arXiv 1311.2901, section 4.2), one pass for every cell of every grid.

    Arguments are those of :func:`perturb`. Returns ``(N,*grid)`` for every exit: the drop in probability; 0 at padding.
    """
    modality, drops = net.input_spec.modality, [torch.zeros_like(m) for m in maps]
    for rows, inputs in batches:
        for grid in dict.fromkeys(m.shape[1:] for m in maps):
            judged = [k for k, m in enumerate(maps) if m.shape[1:] == grid]
            real = find_locations(*(maps[k][rows] for k in judged))
            for cell in range(grid.numel()):
                cells = torch.zeros(rows.stop - rows.start, grid.numel(), dtype=torch.bool, device=maps[0].device)
                cells[:, cell] = True if real is None else real.flatten(1)[:, cell]
                if not cells.any():
                    continue
                deleted = modality.delete(inputs, cells.view(-1, *grid), baseline)
                left = predict_exits(net, engine, deleted, range(net.num_exits))
                for k in judged:
                    whole = plain[k][rows]
                    drop = (whole - left[k]).gather(1, whole.argmax(1, keepdim=True)).squeeze(1)
                    drops[k][rows].flatten(1)[:, cell] = drop * cells[:, cell]
    return drops
