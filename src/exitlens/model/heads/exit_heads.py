"""Exit heads: class evidence at every location, pooled by learned attention, so that the map shows what the answer used."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exitlens.errors import InputError
from exitlens.functional.maps import energy
from exitlens.model.cutting.stage import Stage
from exitlens.model.heads.necks import Neck, find_spread
from exitlens.model.layouts import Layout
from exitlens.types import ExitOutput

HeadKind = Literal["evidence", "context", "average"]
HEADS: tuple[HeadKind, ...] = get_args(HeadKind)


class ExitHead(nn.Module, ABC):
    """The head of an exit: computes logits alone, which is cheap, or attention and evidence with them.

    It is called with all activations that cross the cut: the features first, then the padding mask if the network has one.
    With ``exact_evidence``, evidence and bias sum to the logits.
    """

    exact_evidence: bool
    layout: Layout

    @property
    def bias(self) -> Tensor | None:
        """The part of the logits, ``(C,)``, that no location adds to."""
        return cast(nn.Linear, self.classifier).bias

    @property
    def has_map(self) -> bool:
        """True if it has several locations to attend to; hidden features of a vector are one location."""
        return self.layout.kind != "vector"

    @property
    def reads(self) -> int:
        """The number of activations it reads: the features, and a padding mask or a lateral map."""
        return 1 + self.layout.masked

    def answer(self, activations: Sequence[Tensor], separate_map: bool = False) -> ExitOutput:
        """Return the output; with ``separate_map``, gradients of the attention do not reach the activations."""
        out: ExitOutput = self(*activations)
        return out._replace(attention=self.find_attention(*(t.detach() for t in activations))) if separate_map else out

    @abstractmethod
    def with_attention(self, *activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(B,C)`` and attention ``(B,*S)``, without evidence."""

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


class EvidenceHead(ExitHead):
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
        super().__init__()
        self.layout, self.lateral, self.neck = layout or Layout(), lateral, neck
        self.keeps_features = neck is not None and neck.keeps_features  # the classifier reads them beside the neck's output
        width = channels if neck is None else neck.width
        self.classifier = nn.Linear(width + channels * self.keeps_features, num_classes)
        self.attend = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.attend.weight)  # starts as average pooling

    @property
    def has_map(self) -> bool:
        """True if it has several locations to attend to; groups of features are several."""
        return super().has_map or self.neck is not None

    @property
    def reads(self) -> int:
        """The number of activations it reads."""
        return super().reads + (self.lateral is not None)

    def locate(self, *activations: Tensor) -> Tensor:
        """Return what attention is computed from, ``(B,width,*S)``: the features, through the neck if there is one."""
        features = self.layout.canonical(activations[0])
        if self.neck is None:
            return features
        lateral = None if self.lateral is None else self.lateral.canonical(activations[self.reads - 1])
        return cast(Tensor, self.neck(features, lateral, self.locations(*activations)))

    def _weigh(self, flat: Tensor, activations: Sequence[Tensor]) -> Tensor:  # (B,width,N) -> (B,N,1)
        weight = self.attend.weight.to(flat.dtype)
        # each memory order has its fast product
        scores = F.linear(flat.transpose(1, 2), weight) if flat.stride(1) == 1 else (weight @ flat).transpose(1, 2)
        keep = self.locations(*activations)
        return (scores.float() if keep is None else scores.float().masked_fill(~keep[..., None], -torch.inf)).softmax(1)

    def _pool(self, *activations: Tensor) -> _Pooled:
        located = self.locate(*activations)
        flat = located.flatten(2)  # (B,width,N)
        rows = flat.transpose(1, 2)  # (B,N,width): rows of memory in channels_last and for tokens
        attention = self._weigh(flat, activations)
        weights = attention.to(flat.dtype).transpose(1, 2)  # (B,1,N)
        pooled, deep, spread = torch.bmm(weights, rows), None, None
        if self.keeps_features:  # enlarging features and pooling them is pooling them by attention that is summed up
            features = self.layout.canonical(activations[0]).to(flat.dtype)
            deep, spread = features.flatten(2).transpose(1, 2), find_spread(features.shape[2:], located.shape[2:], flat)
            pooled = torch.cat([pooled, torch.bmm(weights if spread is None else weights @ spread, deep)], 2)
        # in the head's own precision, whatever the stages'
        logits = self.classifier(pooled.squeeze(1).to(self.classifier.weight.dtype))
        return _Pooled(logits, attention.squeeze(2).unflatten(1, located.shape[2:]), rows, deep, spread)

    def find_attention(self, *activations: Tensor) -> Tensor:
        """Return only the attention ``(B,*S)``, for training."""
        located = self.locate(*activations)
        return cast(Tensor, self._weigh(located.flatten(2), activations).squeeze(2).unflatten(1, located.shape[2:]))

    def with_attention(self, *activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(B,C)`` and attention ``(B,*S)``."""
        pooled = self._pool(*activations)
        return pooled.logits, pooled.attention

    def forward(self, *activations: Tensor) -> ExitOutput:
        """Return logits, attention and evidence."""
        return self._explain(self._pool(*activations))

    def with_features(self, *activations: Tensor) -> tuple[ExitOutput, Tensor]:
        """Return the output, and the features ``(B,D,*S)`` that were pooled: after the neck, zero at padding."""
        pooled = self._pool(*activations)
        rows = pooled.rows if pooled.deep is None else torch.cat([pooled.rows, pooled.enlarge(pooled.deep)], 2)
        keep, features = self.locations(*activations), rows.transpose(1, 2).unflatten(2, pooled.attention.shape[1:])
        return self._explain(pooled), features if keep is None else features * keep[:, None]

    def _explain(self, pooled: _Pooled) -> ExitOutput:
        rows = pooled.rows
        weight = self.classifier.weight.to(rows.dtype).t()  # (width + D, C)
        evidence = rows @ weight[: rows.shape[2]]  # (B,N,C)
        if pooled.deep is not None:
            evidence = evidence + pooled.enlarge(pooled.deep @ weight[rows.shape[2] :])
        located = (evidence * pooled.attention.flatten(1)[..., None]).transpose(1, 2).contiguous()
        return ExitOutput(pooled.logits, pooled.attention, located.unflatten(2, pooled.attention.shape[1:]))


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
    def linear(self) -> nn.Linear | None:
        """The classifier, if it is one linear layer on pooled features."""
        return None if self.pooled_linear is None else cast(nn.Linear, self.tail.body.get_submodule(self.pooled_linear))

    @property
    def bias(self) -> Tensor | None:
        """The classifier's bias, if it is one linear layer on pooled features."""
        return None if self.linear is None else self.linear.bias

    def classify(self, *activations: Tensor) -> Tensor:
        """Return the logits ``(B,C)`` of the backbone's own classifier."""
        return cast(Tensor, self.tail(*activations)[0])

    def forward(self, *activations: Tensor) -> ExitOutput:
        """Return logits, attention (energy) and evidence."""
        logits, attention = self.with_attention(*activations)
        if self.linear is None:
            shared = attention[:, None] * logits.view(*logits.shape, *[1] * (attention.ndim - 1))
            return ExitOutput(logits, attention, shared)
        features = self.layout.canonical(activations[0])
        evidence = torch.einsum("cd,bd...->bc...", self.linear.weight, features) / features[0, 0].numel()
        return ExitOutput(logits, attention, evidence)


def have_maps(heads: Iterable[nn.Module]) -> bool:
    """True if the exits of a network have maps: hidden features of a vector are no locations."""
    return all(head.has_map for head in heads if isinstance(head, ExitHead))


def require_maps(heads: Iterable[nn.Module], purpose: str) -> None:
    """Raise :class:`InputError` if the exits of a network have no maps."""
    if not have_maps(heads):
        raise InputError(
            f"net: {purpose} needs attention maps, and this network's exits have none, because hidden features of a vector "
            "are no locations. Fix: name groups of features: xl.attach(..., groups={'blood': [0, 1], ...})"
        )
