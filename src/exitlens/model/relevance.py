"""Where the answer of an exit depends on the features of an earlier one: a backward pass through the stages between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from exitlens.errors import InputError, require
from exitlens.functional.attribution import answer_score, choose_explained, gradient_x_input
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.cutting.stage import Activations
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.model.mixing import Mixing
from exitlens.model.network import ExitNet
from exitlens.types import ExitOutput
from exitlens.types.inputs import Inputs, check_labels

Method = Literal["gradient_x_input", "layer_cam", "integrated_gradients"]
METHODS: tuple[Method, ...] = get_args(Method)
Score = Callable[[Tensor], Tensor]  # features -> (B,)
STEPS = 16  # of the path of integrated gradients


def compute_relevance(
    net: ExitNet,
    inputs: Inputs,
    *,
    exit: int | None = None,
    labels: Tensor | None = None,
    at: int = 0,
    method: Method = "gradient_x_input",
    detached: bool | None = None,
) -> Tensor:
    """Where an exit's logit of a class, less the mean of all logits, depends on features, to first order.

    An attention map says which of its own features an exit used; deep features are mixtures of many places of the input.
    This says which places of *shallow* features the answer depends on.

    Args:
        net: used in evaluation mode, as it is without tuning, and given back in the mode it was in.
        inputs: B samples.
        exit: whose answer; by default the final exit's.
        labels: ``(B,)`` classes; by default the exit's own answers. Of several labels, one for each sample, by default all
            that the exit tells (where it tells none, the strongest); it is then about the sum of their logits alone.
        at: the exit whose features the map is about, and whose grid it has: ``exit`` or one before it.
        method: ``gradient_x_input`` (arXiv 1605.01713), one backward pass. ``layer_cam``: only gradients that speak for the
            class, and only a positive sum (LayerCAM, IEEE TIP 2021, eq. 4-6). ``integrated_gradients``: gradient times
            input, averaged over 16 points of the way from features of 0 (arXiv 1703.01365); its sum is the score less the
            score there, nearly.
        detached: attention weights and the scales of layer norms count as constants, as in arXiv 2202.07304 (which AttnLRP,
            arXiv 2402.05602, refines); by default in networks with attention, where plain gradients point elsewhere.

    Returns:
        ``(B,*S)`` float32, signed (``layer_cam``: not negative), placed in the image (see docs/concepts/method.md);
        0 at padding.

    Raises:
        InputError: for an exit, place or method that does not exist, and for inputs that the network cannot take.

    Examples:
        >>> xl.compute_relevance(net, images).shape  # of the final exit's answer, on the grid of exit 0
        torch.Size([8, 10, 10])
    """
    require(net, ExitNet, "net")
    last = net.num_exits - 1
    exit = last if exit is None else exit
    for name, value, top in (("exit", exit, last), ("at", at, exit)):
        if not isinstance(value, int) or not 0 <= value <= top:
            raise InputError(f"{name}: expected a number from 0 to {top}, got {value!r}")
    if method not in METHODS:
        raise InputError(f"method: expected one of {METHODS}, got {method!r}")
    detached = net.has_attention if detached is None else detached
    activations = net.check_input(inputs)
    if labels is not None:
        check_labels(labels, len(activations[0]), net.info.num_classes)
        if net.info.task == "multilabel":
            labels = labels[:, None] == torch.arange(net.info.num_classes, device=labels.device)
    with torch.inference_mode(False), switch_mode(net, False), torch.no_grad():
        activations = _leave_inference_mode(activations)
        for k in range(at + 1):
            activations = net.stage(k)(*activations)
        with torch.enable_grad():
            fixed = [] if labels is None else [labels]
            score = partial(_score, net, activations[1:], range(at + 1, exit + 1), exit, fixed, detached)
            shares = EXPLAIN[method](score, activations[0])
        head = net.head(at)
        relevance, locations = head.layout.canonical(shares).sum(1), head.locations(*activations)
    relevance = relevance.clamp_min(0) if method == "layer_cam" else relevance
    return net.info.place_relevance(at, relevance if locations is None else relevance * locations)


def compute_relevance_of_exits(net: ExitNet, inputs: Inputs) -> tuple[Tensor, ...]:
    """:func:`compute_relevance` of every exit's own answer, from one pass and a way back for each: ``(B,*S)`` each.

    Raises:
        InputError: for inputs that the network cannot take.
    """
    activations = net.check_input(inputs)
    with switch_mode(net, False):
        exits = range(net.num_exits)
        recording = Recording([net.stage(k) for k in exits], [net.head(k) for k in exits], net)
        outputs = list(recording.iterate_explained(activations))
        return tuple(recording.find_relevance([k] * len(outputs[k].logits)) for k in exits)


class Recording:
    """A pass through the exits from which relevance is found afterwards, by one way back instead of a pass of its own.

    Gradients are recorded from exit 0's features on; :meth:`stop` ends that, once all answers are known. Stages and heads
    are those of ``net``, or an engine's.
    """

    def __init__(self, stages: Sequence[Callable[..., Any]], heads: Sequence[ExitHead], net: ExitNet) -> None:
        self._stages, self._heads, self._logits, self._goes_on = stages, heads, list[Tensor](), True
        self._detached, self._info = net.has_attention, net.info

    def iterate_explained(self, activations: Activations) -> Iterator[ExitOutput]:
        """As :meth:`~exitlens.model.engine.engine.Engine.iterate_explained`, the outputs detached."""
        activations = _leave_inference_mode(activations)
        for k, (stage, head) in enumerate(zip(self._stages, self._heads, strict=True)):
            with torch.inference_mode(False):  # its tensors have no gradients
                is_recorded = k > 0 and self._goes_on
                mixing = Mixing(is_fixed=True) if is_recorded and self._detached else nullcontext()
                with torch.set_grad_enabled(is_recorded), mixing:
                    activations = stage(*activations)
                with torch.set_grad_enabled(self._goes_on):
                    if k == 0:
                        self._features = activations[0].detach().requires_grad_()
                        activations = (self._features, *activations[1:])
                        self._layout, self._locations = head.layout, head.locations(*activations)
                    out = head(*activations)
            self._logits.append(out.logits)
            yield ExitOutput(*(t.detach() for t in out))

    def stop(self) -> None:
        """What runs from now on is not recorded."""
        self._goes_on = False

    def find_relevance(self, exits: Sequence[int]) -> Tensor:  # -> (B,*S)
        """What :func:`compute_relevance` gives, of every sample for the answer of its own exit."""
        with torch.inference_mode(False), torch.enable_grad():
            of = torch.tensor(exits, device=self._features.device)
            scores = torch.zeros(len(of), device=of.device)
            for k in set(exits):
                logits = self._logits[k]
                scores = torch.where(of == k, answer_score(logits, self._info.task), scores)
            relevance = self._layout.canonical(gradient_x_input(scores, self._features, retain_graph=True)).sum(1)
        return self._info.place_relevance(0, relevance if self._locations is None else relevance * self._locations)


def _leave_inference_mode(activations: Activations) -> Activations:
    """Tensors that autograd does not refuse."""
    with torch.inference_mode(False):
        return tuple(t.clone() if t.is_inference() else t for t in activations)


def _score(
    net: ExitNet,
    others: Activations,
    stages: Sequence[int],
    exit: int,
    labels: list[Tensor],
    detached: bool,
    features: Tensor,
) -> Tensor:  # -> (B,)
    """The exit's score of the labels, from features and what else crosses the cut; without any, of its answers.

    These are the answers to the first features that it is asked for: they stay the same on the way to others. The features
    may be several for each sample, one batch of them after the other.
    """
    copies = len(features) // len(labels[0]) if labels else 1
    activations: Activations = (features, *(t.repeat(copies, *[1] * (t.ndim - 1)) for t in others))
    with Mixing(is_fixed=True) if detached else nullcontext():
        for k in stages:
            activations = net.stage(k)(*activations)
    logits = net.head(exit).classify(*activations)
    if not labels:
        labels.append(choose_explained(logits, net.info.task))
    return answer_score(logits, net.info.task, labels[0].repeat(copies, *[1] * (labels[0].ndim - 1)))


def _multiply(score: Score, features: Tensor) -> Tensor:
    features = features.detach().requires_grad_()
    return gradient_x_input(score(features), features)


def _rectify(score: Score, features: Tensor) -> Tensor:
    features = features.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(features).sum(), features)
    return gradient.float().clamp_min(0) * features.detach().float()


def _integrate(score: Score, features: Tensor) -> Tensor:
    """Midpoints of equal parts of the way, so that the sum is near the difference that it stands for."""
    with torch.no_grad():
        score(features)
    total = torch.zeros_like(features, dtype=torch.float32)
    for steps in ((torch.arange(STEPS) + 0.5) / STEPS).split(max(1, STEPS // len(features))):  # small batches together
        points = torch.cat([features.detach() * step for step in steps.tolist()]).requires_grad_()
        (gradient,) = torch.autograd.grad(score(points).sum(), points)
        total += gradient.float().unflatten(0, (len(steps), -1)).sum(0)
    return total / STEPS * features.detach().float()


EXPLAIN: dict[Method, Callable[[Score, Tensor], Tensor]] = {
    "gradient_x_input": _multiply,
    "layer_cam": _rectify,
    "integrated_gradients": _integrate,
}
