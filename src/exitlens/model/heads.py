"""Exit heads: class evidence pooled by learned attention, so that maps show what answers used; and necks before them."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from exitlens.errors import AttachError, InputError
from exitlens.functional.maps import attend_classes, energy
from exitlens.functional.pixels import resize_logits
from exitlens.functional.routing import find_direction, measure_evidence_support, measure_support
from exitlens.model.cutting.boundaries import Layout
from exitlens.model.cutting.split import Pieces, Stage
from exitlens.types import ExitOutput
from exitlens.types.inputs import Groups, list_tensors
from exitlens.types.tasks import Task

KERNELS = {2: 5, 3: 3}  # side of the depthwise convolutions by axes: 5x5x5 would take longer than the rest of the neck
DEPTH, WIDEST, NARROWEST = 2, 256, 8
DENSE_SHRINK, LEAST_DENSE_SIDE = 8, 16  # see choose_dense_side
FINER = (4, 2, 1)  # logits along each side of a location, the first that takes half a neck's budget at most
TINY = 1e-12
HIDDEN, MOST = 32, 8.0  # units of the perceptrons that expect errors, and the largest logarithm that they give
LEAST_SIDE = 7  # least side of context heads' maps, where the backbone has features as fine


class Neck(nn.Module):
    """Layers before an exit head: ``neck(features, lateral, keep)``."""

    width: int  # channels of the output
    keeps_features: bool = False  # the classifier reads the features beside the output

    def fuse(self) -> Self:
        """Fold batch normalisations into the layers before them, for evaluation, in place; return this neck."""
        return self


class ContextNeck(Neck):
    """Brings the features to the grid of the maps and mixes them over it: pairs of depthwise 5x5 and 1x1 convolutions.

    An early stage sees a small part of the image at every location, so its exit can neither tell the object from the
    background nor look where the final exit looks. Exits have layers of their own in MSDNet (arXiv 1703.09844) and
    Shallow-Deep Networks (arXiv 1810.07052), too; depthwise-separable convolutions come from arXiv 1704.04861. A convolution
    over whole cells, which stays centred, shrinks finer features by the factor ``shrink``. Coarser ones are enlarged and
    added to ``lateral`` channels of an earlier stage, as in feature pyramids (arXiv 1612.03144). Volumes have 3 ``axes`` of
    locations and 3x3x3 convolutions.
    """

    def __init__(self, channels: int, width: int, shrink: int = 1, lateral: int = 0, axes: int = 2) -> None:
        super().__init__()
        self.shrink, self.width, self.keeps_features = shrink, width, lateral > 0
        self.inlet = _Step(channels, width, shrink, shrink, axes=axes)
        self.lateral = _Step(lateral, width, axes=axes) if lateral else None
        self.mixers = nn.Sequential(*(_Mixer(width, axes) for _ in range(DEPTH)))

    def forward(self, features: Tensor, lateral: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Return features with context, ``(B,width,H/shrink,W/shrink)``; with a lateral map ``(B,width,h,w)``."""
        dtype = self.inlet.conv.weight.dtype  # the head's precision, whatever the stages'
        x = self.inlet(features.to(dtype))
        if self.lateral is not None and lateral is not None:
            beside = self.lateral(lateral.to(dtype))
            x = enlarge(x, beside.shape[2:]) + beside
        return cast(Tensor, self.mixers(F.relu(x)))

    def fuse(self) -> Self:
        """Fold the batch normalisations into the convolutions, for evaluation, in place; return this neck."""
        for step in list(self.modules()):
            if isinstance(step, _Step) and isinstance(step.norm, nn.BatchNorm2d | nn.BatchNorm3d):
                step.conv, step.norm = fuse_conv_bn_eval(step.conv, step.norm), nn.Identity()
        return self


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:  # (B,D,H,W) -> (B,D,*size)
    """Enlarge linearly along every axis, about the centres of cells."""
    return F.interpolate(x, tuple(size), mode="bilinear" if x.ndim == 4 else "trilinear", align_corners=False)


def find_spread(size: Sequence[int], onto: Sequence[int], like: Tensor) -> Tensor | None:
    """Return the weights ``(N,M)`` of M coarse locations in N fine ones by :func:`enlarge`; ``None`` for equal sizes."""
    if tuple(size) == tuple(onto):
        return None
    count = math.prod(size)
    cells = torch.eye(count, dtype=torch.float32, device=like.device).view(count, 1, *size)
    return enlarge(cells, onto).view(count, -1).t().to(like.dtype)


class _Step(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, axes: int = 2) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        make, norm = (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.conv: nn.Conv2d | nn.Conv3d = make(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm: nn.Module = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.conv(x)))


class _Mixer(nn.Module):
    """``relu(x + pointwise(relu(depthwise(x))))``."""

    def __init__(self, width: int, axes: int = 2) -> None:
        super().__init__()
        self.depthwise = _Step(width, width, KERNELS[axes], groups=width, axes=axes)
        self.pointwise = _Step(width, width, axes=axes)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.pointwise(F.relu(self.depthwise(x))))


class TokenNeck(Neck):
    """Mixes neighbouring locations of a sequence: pairs of depthwise convolutions over 5 of them and linear layers.

    Deep tokens are mixtures of all tokens, so attention to them says little about where an answer comes from. The neck
    therefore also reads ``lateral`` channels of tokens of an early stage, which are hardly mixed yet. Unlike in
    :class:`ContextNeck`, layer norms replace batch norms, and padding is never read.
    """

    keeps_features = True

    def __init__(self, channels: int, width: int, lateral: int = 0) -> None:
        super().__init__()
        self.width = width
        self.inlet = _Inlet(channels, width)
        self.lateral = _Inlet(lateral, width) if lateral else None
        self.mixers = nn.ModuleList(_TokenMixer(width) for _ in range(DEPTH))

    def forward(self, features: Tensor, lateral: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Return ``(B,width,N)`` from ``(B,D,N)``; ``keep``: ``(B or 1,N)`` bool, the positions that others may read."""
        x: Tensor = self.inlet(features)
        if self.lateral is not None and lateral is not None:
            x = x + self.lateral(lateral)
        x = F.relu(x)
        for mixer in self.mixers:
            x = mixer(x, keep)
        return x


class _Inlet(nn.Module):
    """Linear layer and layer norm, in the precision of the head."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(channels, width, bias=False), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:  # (B,D,N) -> (B,width,N), rows of memory
        return cast(Tensor, self.norm(self.linear(x.transpose(1, 2).to(self.linear.weight.dtype)))).transpose(1, 2)


class _TokenMixer(nn.Module):
    """``relu(x + norm(linear(relu(norm(depthwise(x))))))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, KERNELS[2], padding=KERNELS[2] // 2, groups=width, bias=False)
        self.first, self.linear, self.second = nn.LayerNorm(width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:  # (B,width,N)
        mixed = self.depthwise(x if keep is None else x * keep[:, None]).transpose(1, 2)
        return F.relu(x + self.second(self.linear(F.relu(self.first(mixed)))).transpose(1, 2))


class GroupNeck(Neck):
    """Reads each group of a vector's features by itself, and the hidden features of the whole vector beside it.

    ``g_j = relu(W_j x_j + b_j + V h)``, then ``relu(g_j + U relu(g_j))``: the location of group j sees its own features
    ``x_j``, and through ``h`` what the network has made of all of them. So attention to it means that these features count
    *given* the others; only deletion shows whether they count alone. Additive networks (arXiv 2004.13912) lack ``h``.
    """

    def __init__(self, channels: int, features: int, groups: Groups, width: int) -> None:
        super().__init__()
        self.width = width
        self.members = [list(members) for _, members in groups]
        self.inlet = nn.Linear(channels, width, bias=False)
        self.readers = nn.ModuleList(nn.Linear(len(members), width) for members in self.members)
        self.mixer = nn.Linear(width, width)

    def forward(self, features: Tensor, lateral: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Return ``(B,width,G)`` from ``(B,D,1)`` and the vector ``(B,F,1)``."""
        assert lateral is not None
        dtype = self.inlet.weight.dtype
        vector, whole = lateral[..., 0].to(dtype), self.inlet(features[..., 0].to(dtype))
        pairs = zip(self.readers, self.members, strict=True)
        read = torch.stack([reader(vector[:, members]) for reader, members in pairs], 1)  # (B,G,width)
        x = F.relu(read + whole[:, None])
        return F.relu(x + self.mixer(x)).transpose(1, 2)


def find_width(count_macs: Callable[[int], int], budget: float) -> int:
    """Return the largest width of a neck within a budget of multiply-accumulates: a multiple of 8, and at least 8."""
    width = NARROWEST
    while width + 8 <= WIDEST and count_macs(width + 8) <= budget:
        width += 8
    return width


def fit_neck(
    channels: int, size: Sequence[int], grid: Sequence[int], budget: float, lateral: int = 0, outputs: int = 0
) -> ContextNeck:
    """Make a neck that enlarges features to the grid of a lateral map, or shrinks them to the grid if that divides them.

    ``outputs``: logits of a location, whose convolution is in the budget, too.
    """
    factors = {a // b if a % b == 0 else 1 for a, b in zip(size, grid, strict=True)}
    shrink = factors.pop() if len(factors) == 1 and not lateral else 1
    locations = math.prod(grid if lateral else [n // shrink for n in size])
    inlets, window = math.prod(size) * channels + locations * lateral, math.prod([KERNELS[len(size)]] * len(size))
    width = find_width(lambda w: w * inlets + locations * (DEPTH * (window * w + w**2) + outputs * w), budget)
    return ContextNeck(channels, width, shrink, lateral, len(size))


def fit_token_neck(channels: int, locations: int, budget: float, lateral: int = 0) -> TokenNeck:
    """Make a neck for a sequence of so many locations."""
    width = find_width(lambda w: locations * (w * (channels + lateral) + DEPTH * (KERNELS[2] * w + w**2)), budget)
    return TokenNeck(channels, width, lateral)


def fit_group_neck(channels: int, features: int, groups: Groups, budget: float) -> GroupNeck:
    """Make a neck for groups of a vector's features."""
    width = find_width(lambda w: w * (channels + features) + len(groups) * w**2, budget)
    return GroupNeck(channels, features, groups, width)


def check_groups(groups: Mapping[str, Sequence[int]] | None, shape: Sequence[int], first: Tensor) -> Groups:
    """Return groups of features in their order; raise :class:`InputError` unless they fit a vector of this shape."""
    if groups is None:
        return ()
    if len(shape) != 1 or not first.is_floating_point():
        raise InputError(f"groups: they are for vectors (B,F), the example has {tuple(shape)}. Fix: leave them out")
    if not isinstance(groups, Mapping) or len(groups) < 2:
        raise InputError(f"groups: expected a dict of two groups or more, such as {{'blood': [0, 1]}}, got {groups!r:.60}")
    for name, members in groups.items():
        is_list = isinstance(members, Sequence) and not isinstance(members, str) and len(members) > 0
        if not is_list or not all(isinstance(i, int) and 0 <= i < shape[0] for i in members):
            raise InputError(f"groups: {name!r}: expected columns from 0 to {shape[0] - 1}, got {members!r:.60}")
    taken = [i for members in groups.values() for i in members]
    if len(set(taken)) < len(taken):
        twice = next(i for i in taken if taken.count(i) > 1)
        raise InputError(f"groups: column {twice} is in two groups: every feature belongs to one at most")
    return tuple((str(name), tuple(members)) for name, members in groups.items())


HeadKind = Literal["evidence", "context", "average", "skip"]
HEADS: tuple[HeadKind, ...] = get_args(HeadKind)


class ExitHead(nn.Module, ABC):
    """The head of an exit: computes logits alone, which is cheap, or attention and evidence with them.

    It is called with all activations that cross the cut: the features first, then the padding mask if the network has one.
    With ``exact_evidence``, evidence and bias sum to the logits.
    """

    exact_evidence: bool = False
    layout: Layout
    lateral: Layout | None = None  # of earlier features that it reads beside its own

    @property
    def bias(self) -> Tensor | None:
        """The part of the logits, ``(C,)``, that no location adds to; ``None`` if that is not known."""
        classifier = cast(nn.Linear | None, self.classifier)
        return None if classifier is None else classifier.bias

    @property
    def reads(self) -> int:
        """The number of activations it reads: the features, and a padding mask or a lateral map."""
        return 1 + self.layout.masked + (self.lateral is not None)

    def answer(self, activations: Sequence[Tensor], separate_map: bool = False) -> ExitOutput:
        """Return the output; with ``separate_map``, gradients of the attention do not reach the activations."""
        out: ExitOutput = self(*activations)
        if not separate_map:
            return out
        # the map is computed once more, neck included: gradients of the logits still have to reach the activations
        return out._replace(attention=self.find_attention(*(t.detach() for t in activations)))

    @abstractmethod
    def with_attention(self, *activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(B,C)`` and attention ``(B,*S)``, without evidence."""

    def with_support(self, *activations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, attention and, for a gate, ``(B,3)`` of :func:`~exitlens.functional.routing.measure_support`."""
        out: ExitOutput = self(*activations)
        if out.logits.ndim == 4 or not out.evidence.shape[1]:  # of pixels and of vectors, which have no gate
            return out.logits, out.attention, out.attention.new_zeros(out.attention.shape[0], 3)
        return out.logits, out.attention, measure_evidence_support(out.evidence, out.logits, out.attention)

    def classify(self, *activations: Tensor) -> Tensor:
        """Return only the logits ``(B,C)``."""
        return self.with_attention(*activations)[0]

    def find_attention(self, *activations: Tensor) -> Tensor:
        """Return only the attention ``(B,*S)``, for training."""
        return self.with_attention(*activations)[1]

    def locations(self, *activations: Tensor) -> Tensor | None:
        """Return ``(B,N)`` bool: the positions of a sequence that are locations; ``None`` if all are."""
        return self.layout.locations(activations[0], activations[1] if self.layout.masked else None)

    def features(self, *activations: Tensor) -> Tensor:
        """Return the features ``(B,D,*S)``, zero at padding."""
        keep, canonical = self.locations(*activations), self.layout.canonical(activations[0])
        return canonical if keep is None else canonical * keep[:, None]

    def with_features(self, *activations: Tensor) -> tuple[ExitOutput, Tensor]:
        """Return the output, and the features ``(B,D,*S)`` that it was computed from (zero at padding)."""
        return self(*activations), self.features(*activations)

    def sum_shares(self, shares: Tensor, *activations: Tensor) -> Tensor:
        """Sum what each feature adds to a score over the channels: ``(B,*S)``, zero at padding."""
        total, keep = self.layout.canonical(shares).sum(1), self.locations(*activations)
        return total if keep is None else total * keep


class NeckHead(ExitHead):
    """A head that may read its features through a neck, and earlier features of the layout ``lateral`` beside them."""

    def __init__(self, layout: Layout | None, neck: Neck | None, lateral: Layout | None) -> None:
        super().__init__()
        self.layout, self.lateral, self.neck = layout or Layout(), lateral, neck

    def locate(self, *activations: Tensor) -> Tensor:
        """Return what the answer is computed from, ``(B,width,*S)``: the features, through the neck if there is one."""
        features = self.layout.canonical(activations[0])
        if self.neck is None:
            return features
        lateral = None if self.lateral is None else self.lateral.canonical(activations[self.reads - 1])
        return cast(Tensor, self.neck(features, lateral, self.locations(*activations)))


class EvidenceHead(NeckHead):
    """``logit[c] = sum_i a[i] * (w_c . f_i) + b_c`` with ``a = softmax_i(u . f_i)``.

    The logits are computed as ``W (sum_i a[i] f_i) + b``, which is the same by linearity and does not build the
    ``(B,C,*S)`` evidence; that is made only on request. Attention pooling as a classifier head follows attention-based
    multiple-instance learning (arXiv 1802.04712, eq. 8, without the gating tanh). Padding and class tokens of a sequence
    get attention 0, exactly.

    The features ``(B,D,*S)`` have the layout ``layout``, by default ``(B,D,H,W)``. A ``neck`` may come before the head; then
    the map lies on its locations. ``lateral`` is the layout of earlier features that the neck takes beside the features.
    """

    exact_evidence = True

    def __init__(
        self,
        channels: int,
        num_classes: int,
        layout: Layout | None = None,
        neck: Neck | None = None,
        lateral: Layout | None = None,
    ) -> None:
        super().__init__(layout, neck, lateral)
        self.keeps_features = neck is not None and neck.keeps_features  # the classifier reads them beside the neck's output
        width = channels if neck is None else neck.width
        self.classifier = nn.Linear(width + channels * self.keeps_features, num_classes)
        self.attend = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.attend.weight)  # starts as average pooling

    def _attend(self, *activations: Tensor) -> tuple[Tensor, Tensor]:  # -> (B,width,*S), (B,*S)
        located = self.locate(*activations)
        flat, weight = located.flatten(2), self.attend.weight.to(located.dtype)
        # each memory order has its fast product
        scores = F.linear(flat.transpose(1, 2), weight) if flat.stride(1) == 1 else (weight @ flat).transpose(1, 2)
        keep = self.locations(*activations)
        scores = scores.float() if keep is None else scores.float().masked_fill(~keep[..., None], -torch.inf)
        return located, scores.softmax(1).squeeze(2).unflatten(1, located.shape[2:])

    def _pool(self, *activations: Tensor) -> _Pooled:
        located, attention = self._attend(*activations)
        rows = located.flatten(2).transpose(1, 2)  # (B,N,width): rows of memory in channels_last and for tokens
        weights = attention.flatten(1)[:, None].to(rows.dtype)  # (B,1,N)
        pooled, deep, spread = torch.bmm(weights, rows), None, None
        if self.keeps_features:  # each is pooled by the sum of the attention of its copies, so it is not enlarged
            features = self.layout.canonical(activations[0]).to(rows.dtype)
            deep, spread = features.flatten(2).transpose(1, 2), find_spread(features.shape[2:], located.shape[2:], rows)
            pooled = torch.cat([pooled, torch.bmm(weights if spread is None else weights @ spread, deep)], 2)
        # in the head's own precision, whatever the stages'
        logits = self.answer_pooled(pooled.squeeze(1).to(self.classifier.weight.dtype))
        return _Pooled(logits, attention, rows, deep, spread)

    def answer_pooled(self, pooled: Tensor) -> Tensor:  # (B,width) -> (B,C)
        """Return the logits of pooled features."""
        return cast(Tensor, self.classifier(pooled))

    def find_attention(self, *activations: Tensor) -> Tensor:
        """Return only the attention ``(B,*S)``, for training."""
        return self._attend(*activations)[1]

    def with_attention(self, *activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(B,C)`` and attention ``(B,*S)``."""
        pooled = self._pool(*activations)
        return pooled.logits, pooled.attention

    def with_support(self, *activations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, attention and support, without evidence for all classes."""
        pooled = self._pool(*activations)
        rows = pooled.rows
        direction, margin = find_direction(pooled.logits, self.classifier.weight)
        direction = direction.to(rows.dtype)[..., None]  # (B,width+D,1)
        shares = rows @ direction[:, : rows.shape[2]]
        if pooled.deep is not None:
            shares = shares + pooled.enlarge(pooled.deep @ direction[:, rows.shape[2] :])
        shares = shares[..., 0] * pooled.attention.flatten(1)
        return pooled.logits, pooled.attention, measure_support(shares, margin, pooled.attention)

    def forward(self, *activations: Tensor) -> ExitOutput:
        """Return logits, attention and evidence."""
        return self._add_evidence(self._pool(*activations))

    def with_features(self, *activations: Tensor) -> tuple[ExitOutput, Tensor]:
        """Return the output, and the features ``(B,D,*S)`` that were pooled: after the neck, zero at padding."""
        pooled = self._pool(*activations)
        rows = pooled.rows if pooled.deep is None else torch.cat([pooled.rows, pooled.enlarge(pooled.deep)], 2)
        keep, features = self.locations(*activations), rows.transpose(1, 2).unflatten(2, pooled.attention.shape[1:])
        return self._add_evidence(pooled), features if keep is None else features * keep[:, None]

    def _add_evidence(self, pooled: _Pooled) -> ExitOutput:
        rows = pooled.rows
        weight = self.classifier.weight.to(rows.dtype).t()  # (width + D, C)
        evidence = rows @ weight[: rows.shape[2]]  # (B,N,C)
        if pooled.deep is not None:
            evidence = evidence + pooled.enlarge(pooled.deep @ weight[rows.shape[2] :])
        located = (evidence * pooled.attention.flatten(1)[..., None]).transpose(1, 2).contiguous()
        return ExitOutput(pooled.logits, pooled.attention, located.unflatten(2, pooled.attention.shape[1:]))


class NumberHead(EvidenceHead):
    """Answers numbers, in spreads about their means in the training data, and how far off it expects them to be.

    The logits ``(B,C+1)`` are the numbers and the expected error (:func:`~exitlens.functional.answers.measure_distance`
    from the target): the exponential of a small perceptron on the pooled features, which are detached, so that it changes no
    answer. Evidence is exact for the numbers.

    Parts that predict a network's loss are known from learning loss (arXiv 1905.03677), which ranks pairs of samples.
    """

    def __init__(self, *parts: Any) -> None:  # of an EvidenceHead
        super().__init__(*parts)
        self.forecast = nn.Sequential(nn.Linear(self.classifier.in_features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def answer_pooled(self, pooled: Tensor) -> Tensor:  # (B,width) -> (B,C+1)
        """Return the numbers and the expected error."""
        return torch.cat([self.read_out(pooled), self.forecast(pooled.detach()).clamp_max(MOST).exp()], 1)

    def read_out(self, pooled: Tensor) -> Tensor:  # (B,width) -> (B,C)
        """Return the numbers."""
        return cast(Tensor, self.classifier(pooled))

    def with_support(self, *activations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, attention and zeros: there is no gate."""
        logits, attention = self.with_attention(*activations)
        return logits, attention, attention.new_zeros(len(attention), 3)


class VectorHead(NumberHead):
    """Answers a vector of unit norm in the space of the final exit's: a linear map of the pooled features, normalised.

    The expected error is the distance from the final exit's vector.
    The evidence of a vector would be as large as all features; it is left empty, ``(B,0,*S)``, and :meth:`share_similarity`
    has what each location adds to a similarity instead.
    """

    def read_out(self, pooled: Tensor) -> Tensor:  # (B,width) -> (B,C)
        """Return vectors of unit norm."""
        return F.normalize(self.classifier(pooled), dim=1)

    def _add_evidence(self, pooled: _Pooled) -> ExitOutput:
        return leave_out_evidence(pooled.logits, pooled.attention)

    def share_similarity(self, to: Tensor, *activations: Tensor) -> SharedSimilarity:  # (B,C)
        """Share out the cosine with other vectors; it is exact in sum."""
        evidence = super()._add_evidence(self._pool(*activations)).evidence.float()
        bias, scaled = self.classifier.bias.float(), F.normalize(to.float(), dim=1)
        norm = (evidence.flatten(2).sum(2) + bias).norm(dim=1).clamp_min(TINY)
        shares = torch.einsum("bc...,bc->b...", evidence, scaled / norm[:, None])
        rest = scaled @ bias / norm
        return SharedSimilarity(shares.flatten(1).sum(1) + rest, shares, rest, True)


class SharedSimilarity(NamedTuple):
    """The cosine of an exit's vectors with others, and what each location adds to it."""

    cosine: Tensor  # (B,)
    shares: Tensor  # (B,*S)
    rest: Tensor  # (B,), that no location adds
    is_exact: bool  # shares and rest sum to the cosine because the vector does; else it is shared out by attention


def leave_out_evidence(logits: Tensor, attention: Tensor) -> ExitOutput:
    """Return the output of an exit whose answer is a vector, with evidence of no class, ``(B,0,*S)``."""
    return ExitOutput(logits, attention, attention.new_zeros(len(attention), 0, *attention.shape[1:]))


class _Pooled(NamedTuple):
    """What an evidence head computed, and the features beside the neck's, at M locations spread over its N."""

    logits: Tensor  # (B,C)
    attention: Tensor  # (B,*S)
    rows: Tensor  # (B,N,width)
    deep: Tensor | None  # (B,M,D)
    spread: Tensor | None  # (N,M); None: the locations are the same

    def enlarge(self, values: Tensor) -> Tensor:  # (B,M,X) -> (B,N,X)
        return values if self.spread is None else self.spread @ values


class _EnergyHead(ExitHead):
    """A head whose answer goes through no attention; its map is the normalised channel energy of the features."""

    def with_attention(self, *activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(B,C)`` and attention ``(B,*S)``: the normalised energy of the features."""
        return self.classify(*activations), energy(self.features(*activations))


class AverageHead(_EnergyHead):
    """Average pooling and one linear layer, for comparison: the usual early exit (BranchyNet, arXiv 1709.01686).

    Its map is seldom far from uniform; its evidence is CAM (arXiv 1512.04150) over the number of locations, which is exact.
    """

    exact_evidence = True

    def __init__(self, channels: int, num_classes: int, layout: Layout | None = None) -> None:
        super().__init__()
        self.layout = layout or Layout()
        self.classifier = nn.Linear(channels, num_classes)

    def _divide(self, pooled: Tensor, *activations: Tensor) -> Tensor:  # (B,...) -> (B,...)
        keep, count = self.locations(*activations), math.prod(self.layout.size(activations[0].shape))
        return pooled / (count if keep is None else keep.sum(1).to(pooled.dtype).view(-1, *[1] * (pooled.ndim - 1)))

    def classify(self, *activations: Tensor) -> Tensor:
        """Return only the logits ``(B,C)``."""
        pooled = self._divide(self.features(*activations).flatten(2).sum(2), *activations)
        return cast(Tensor, self.classifier(pooled.to(self.classifier.weight.dtype)))

    def forward(self, *activations: Tensor) -> ExitOutput:
        """Return logits, attention (energy) and evidence."""
        parts = self._divide(self.features(*activations), *activations)
        evidence = torch.einsum("cd,bd...->bc...", self.classifier.weight.to(parts.dtype), parts)
        return ExitOutput(*self.with_attention(*activations), evidence)


class KeptHead(_EnergyHead):
    """The backbone's own pooling and classifier as the final exit: its logits are the plain backbone's, bit for bit.

    Evidence is exact (CAM, arXiv 1512.04150, over the number of locations) where the classifier is global average pooling
    and one linear layer. Elsewhere the logits are shared out in proportion to the attention.
    """

    def __init__(self, tail: Stage, pooled_linear: str | None, layout: Layout | None = None) -> None:
        super().__init__()
        self.layout = layout or Layout()
        self.tail, self.pooled_linear = tail, pooled_linear
        self.exact_evidence = pooled_linear is not None

    @property
    def classifier(self) -> nn.Linear | None:
        """The classifier, if it is one linear layer on pooled features."""
        return None if self.pooled_linear is None else cast(nn.Linear, self.tail.body.get_submodule(self.pooled_linear))

    def classify(self, *activations: Tensor) -> Tensor:
        """Return the logits ``(B,C)`` of the backbone's own classifier."""
        return cast(Tensor, self.tail(*activations)[0])

    def forward(self, *activations: Tensor) -> ExitOutput:
        """Return logits, attention (energy) and evidence."""
        logits, attention = self.with_attention(*activations)
        if (linear := self.classifier) is None:
            shared = attention[:, None] * logits.view(*logits.shape, *[1] * (attention.ndim - 1))
            return ExitOutput(logits, attention, shared)
        features = self.layout.canonical(activations[0]).to(linear.weight.dtype)  # stages may run in another
        evidence = torch.einsum("cd,bd...->bc...", linear.weight, features) / features[0, 0].numel()
        return ExitOutput(logits, attention, evidence)


class KeptVectorHead(KeptHead):
    """The backbone's own vector as the final exit's answer, bit for bit, followed by 0: its distance from itself."""

    def classify(self, *activations: Tensor) -> Tensor:
        """Return the backbone's vectors and zeros, ``(B,C+1)``."""
        vectors = super().classify(*activations)
        return torch.cat([vectors, vectors.new_zeros(len(vectors), 1)], 1)

    def forward(self, *activations: Tensor) -> ExitOutput:
        """Return logits, attention (energy) and no evidence, see :class:`VectorHead`."""
        return leave_out_evidence(*self.with_attention(*activations))

    def share_similarity(self, to: Tensor, *activations: Tensor) -> SharedSimilarity:  # (B,C)
        """Share out the cosine with other vectors.

        It is exact where the vector is the normalised mean of the features, as in most sentence encoders; elsewhere the
        cosine is shared out by attention.
        """
        vectors, features = super().classify(*activations).float(), self.features(*activations).float()
        cosine, total = F.cosine_similarity(vectors, to.float(), dim=1), features.flatten(2).sum(2)
        is_mean = total.shape == vectors.shape and torch.allclose(F.normalize(total, dim=1), vectors, atol=1e-4)
        if is_mean:
            scaled = F.normalize(to.float(), dim=1) / total.norm(dim=1, keepdim=True).clamp_min(TINY)
            shares = torch.einsum("bc...,bc->b...", features, scaled)
        else:
            attention = energy(features)
            shares = attention * cosine.view(-1, *[1] * (attention.ndim - 1))
        return SharedSimilarity(cosine, shares, torch.zeros_like(cosine), is_mean)


class SkipHead(_EnergyHead):
    """Answers with copies of the last stage and of the backbone's own tail, which read an earlier exit's features.

    Residual networks bear skipped stages (stochastic depth, arXiv 1603.09382), and training makes up for them. The distance
    from the final exit's vector is foreseen from the features, so the router runs the copies only for samples that leave.
    """

    reads = 1 << 30  # all activations

    def __init__(self, pieces: Pieces, k: int) -> None:
        super().__init__()
        here, layout = pieces.features[k], pieces.features[-1].layout
        self.layout, self.last = here.layout, copy.deepcopy(pieces.stages[-1]).requires_grad_()
        self.final = KeptVectorHead(copy.deepcopy(pieces.tail).requires_grad_(), None, layout)
        self.forecast = nn.Sequential(nn.Linear(here.channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def foresee(self, *activations: Tensor) -> Tensor:  # -> (B,1)
        """Return the expected error, from the sum of the features."""
        total = self.features(*activations).flatten(2).float().sum(2).detach()
        return cast(Tensor, self.forecast(F.layer_norm(total, total.shape[1:])).clamp_max(MOST).exp())

    def classify(self, *activations: Tensor) -> Tensor:
        """Return vectors of unit norm and the expected error, ``(B,C+1)``."""
        vectors = self.final.classify(*self._run_last(activations))[:, :-1]
        return torch.cat([vectors, self.foresee(*activations)], 1)

    def forward(self, *activations: Tensor) -> ExitOutput:
        """Return logits, attention (energy) and no evidence, see :class:`VectorHead`."""
        return leave_out_evidence(*self.with_attention(*activations))

    def share_similarity(self, to: Tensor, *activations: Tensor) -> SharedSimilarity:  # (B,C)
        """Share out the cosine with other vectors, see :class:`KeptVectorHead`."""
        return self.final.share_similarity(to, *self._run_last(activations))

    def _run_last(self, activations: Sequence[Tensor]) -> Sequence[Tensor]:
        dtype = next(self.parameters()).dtype  # whatever the stages'; the graph of evaluation has no dropout
        return self.last.evaluation(*(t.to(dtype) if t.is_floating_point() else t for t in activations))  # type: ignore[no-any-return]


class PixelHead(NeckHead):
    """Answers one class a pixel: a 1x1 convolution gives each location ``finer`` x ``finer`` logits for every class.

    So an exit can tell borders within a location (sub-pixel convolution, arXiv 1609.05158). Their grid stays until
    :func:`enlarge_logits` brings the logits to the size of the inputs, which the router does only for answers that leave.
    The evidence is their mean in each location, and the attention the mean of the class maps of all classes that are told
    (:func:`~exitlens.functional.maps.attend_classes`).
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        layout: Layout | None = None,
        neck: Neck | None = None,
        lateral: Layout | None = None,
        finer: int = 1,
    ) -> None:
        super().__init__(layout, neck, lateral)
        self.finer = finer
        self.classifier = nn.Conv2d(channels if neck is None else neck.width, num_classes * finer**2, 1)

    @property
    def bias(self) -> Tensor | None:
        """``None``: the evidence has all of the logits."""
        return None

    def classify(self, *activations: Tensor) -> Tensor:
        """Return the logits ``(B,C,h*finer,w*finer)``."""
        logits = self.classifier(self.locate(*activations).to(self.classifier.weight.dtype))
        return F.pixel_shuffle(logits, self.finer) if self.finer > 1 else cast(Tensor, logits)

    def with_attention(self, *activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(B,C,h*finer,w*finer)`` and attention ``(B,h,w)``."""
        out = self(*activations)
        return out.logits, out.attention

    def forward(self, *activations: Tensor) -> ExitOutput:
        """Return logits, attention, and evidence ``(B,C,h,w)``."""
        logits = self.classify(*activations)
        evidence = F.avg_pool2d(logits, self.finer) if self.finer > 1 else logits
        return ExitOutput(logits, attend_classes(evidence), evidence)

    def answer(self, activations: Sequence[Tensor], separate_map: bool = False) -> ExitOutput:
        """Return the output; with ``separate_map``, gradients of attention and evidence do not reach the activations."""
        if not separate_map:
            return cast(ExitOutput, self(*activations))
        return self(*(t.detach() for t in activations))._replace(logits=self.classify(*activations))  # type: ignore[no-any-return]


class KeptPixelHead(KeptHead):
    """The backbone's own last layers as the final exit of a network that answers each pixel.

    Its logits are the plain backbone's, bit for bit; its evidence is their mean over the cells of the last features' grid.
    """

    def with_attention(self, *activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(B,C,H,W)`` and attention ``(B,h,w)``."""
        out = self(*activations)
        return out.logits, out.attention

    def answer(self, activations: Sequence[Tensor], separate_map: bool = False) -> ExitOutput:
        """Return the output; with ``separate_map``, attention and evidence have no gradients, as they are the backbone's."""
        out: ExitOutput = self(*activations)
        if not separate_map:
            return out
        return out._replace(attention=out.attention.detach(), evidence=out.evidence.detach())

    def forward(self, *activations: Tensor) -> ExitOutput:
        """Return logits, attention and evidence."""
        logits, size = self.classify(*activations), self.layout.size(activations[0].shape)
        grid = tuple(map(min, logits.shape[2:], size))
        evidence = logits if grid == tuple(logits.shape[2:]) else F.adaptive_avg_pool2d(logits, (grid[0], grid[1]))
        return ExitOutput(logits, attend_classes(evidence), evidence)


def enlarge_logits(out: ExitOutput, inputs: Tensor) -> ExitOutput:
    """Bring the logits of pixels to the size of the inputs ``(B,C,H,W)``; other outputs stay as they are."""
    return out._replace(logits=resize_logits(out.logits, inputs.shape[2:])) if out.logits.ndim == 4 else out


def choose_dense_side(shape: Sequence[int]) -> int:  # (C,H,W)
    """Return the least side of the grid on which exits answer pixels: an eighth of the image's, or 16 of a quarter's."""
    side = min(shape[1:], default=0)
    return max(-(-side // DENSE_SHRINK), min(LEAST_DENSE_SIDE, -(-side // 4)))


def make_head(
    pieces: Pieces, k: int, num_classes: int, kind: HeadKind, budget: float, groups: Groups, task: Task = "classes"
) -> ExitHead:
    """Make one head; all necks together may take a ``budget`` of multiply-accumulates."""
    if task == "segmentation":
        return _make_pixel_head(pieces, k, num_classes, kind, budget)
    features, lateral, count = pieces.features[k], pieces.lateral, len(pieces.stages)
    channels, layout, size = features.channels, features.layout, features.size
    make = {"regression": NumberHead, "embedding": VectorHead}.get(task, EvidenceHead)
    is_plane = len(size) >= 2
    if kind == "average":
        return AverageHead(channels, num_classes, layout)
    if kind == "skip":
        return _make_skip_head(pieces, k, num_classes, task)
    if groups and lateral is not None:
        neck = fit_group_neck(channels, lateral.channels, groups, budget / count)
        return make(channels, num_classes, layout, neck, lateral.layout)
    final_has_none = is_plane and lateral is None  # its own features are fine enough
    if kind == "evidence" or math.prod(size) == 1 or (k == count - 1 and final_has_none):
        return make(channels, num_classes, layout)
    budget /= count - 1 if final_has_none else count
    grid, lateral = (lateral or pieces.features[-1]).size, pieces.lateral_at(k)
    beside = lateral.channels if lateral else 0
    fitted = (
        fit_neck(channels, size, grid, budget, beside) if is_plane else fit_token_neck(channels, size[0], budget, beside)
    )
    return make(channels, num_classes, layout, fitted, lateral.layout if lateral else None)


def _make_skip_head(pieces: Pieces, k: int, num_classes: int, task: Task) -> ExitHead:
    here, before = pieces.features[k], pieces.features[-2:][0]
    if task != "embedding" or (here.channels, here.size) != (before.channels, before.size):
        raise AttachError("head: 'skip' is for vectors, of a network whose features keep their shape. Fix: leave it out")
    if k >= len(pieces.stages) - 2:  # nothing lies between
        return VectorHead(here.channels, num_classes, here.layout)
    return SkipHead(pieces, k)


def _make_pixel_head(pieces: Pieces, k: int, num_classes: int, kind: HeadKind, budget: float) -> PixelHead:
    features, lateral, count = pieces.features[k], pieces.lateral_at(k), len(pieces.stages)
    channels, layout, size = features.channels, features.layout, features.size
    if len(size) != 2:
        raise AttachError(
            f"at: exit {k}: answers for pixels need a map of the image, its features are {size}. Fix: put the exit elsewhere"
        )
    is_decoded = k == count - 1 and pieces.traced.is_dense  # by the backbone itself
    if kind == "evidence" or is_decoded:
        return PixelHead(channels, num_classes, layout)
    if lateral is not None and min(size) >= min(lateral.size):  # in a decoder
        lateral = None
    grid, beside = (pieces.lateral or pieces.features[-1]).size, lateral.channels if lateral else 0
    budget /= count - pieces.traced.is_dense or 1
    sides = list_tensors(pieces.traced.example)[0].shape[2:]
    for finer in FINER:
        outputs = num_classes * finer**2
        neck = fit_neck(channels, size, grid, budget, beside, outputs)
        cells = lateral.size if lateral else [n // neck.shrink for n in size]
        has_pixels = all(side >= n * finer for side, n in zip(sides, cells, strict=True))
        if has_pixels and math.prod(cells) * neck.width * outputs <= budget / 2:
            break
    return PixelHead(channels, num_classes, layout, neck, lateral.layout if lateral else None, finer)


def have_maps(heads: Iterable[nn.Module]) -> bool:
    """True if the exits of a network have maps: groups of a vector's features are locations, hidden features are not."""
    exits = [head for head in heads if isinstance(head, ExitHead)]
    return all(head.layout.kind != "vector" or getattr(head, "neck", None) is not None for head in exits)


def require_maps(heads: Iterable[nn.Module], purpose: str) -> None:
    """Raise :class:`InputError` if the exits of a network have no maps."""
    if not have_maps(heads):
        raise InputError(
            f"net: {purpose} needs attention maps, and this network's exits have none, because hidden features of a vector "
            "are no locations. Fix: name groups of features: xl.attach(..., groups={'blood': [0, 1], ...})"
        )
