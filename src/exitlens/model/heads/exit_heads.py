"""Exit heads: class evidence at every location, pooled by learned attention, so that the map shows what the answer used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exitlens.errors import InputError
from exitlens.functional.maps import energy
from exitlens.model.cutting.stage import Stage
from exitlens.model.heads.necks import ContextNeck, GroupNeck, TokenNeck, find_spread
from exitlens.model.layouts import Layout
from exitlens.types import ExitOutput

HeadKind = Literal["evidence", "context", "average"]
HEADS: tuple[HeadKind, ...] = ("evidence", "context", "average")


class ExitHead(nn.Module, ABC):
    """The head of an exit: computes logits alone, which is cheap, or attention and evidence with them.

    A head is called with all activations that cross the cut: the features first, then the padding mask where the network
    has one. ``exact_evidence``: evidence and bias sum to the logits, because the classifier is linear in the evidence.
    """

    exact_evidence: bool
    layout: Layout

    @property
    def bias(self) -> Tensor | None:
        """The part of the logits, ``(C,)``, that no location adds to."""
        return cast(nn.Linear, self.classifier).bias

    @property
    def has_map(self) -> bool:
        """Whether it has several locations to attend to; hidden features of a vector are one."""
        return self.layout.kind != "vector"

    @property
    def reads(self) -> int:
        """How many of the activations it reads: the features, and a padding mask or a lateral map."""
        return 1 + self.layout.masked

    @abstractmethod
    def with_attention(self, *activations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B,C)`` and attention ``(B,*S)``, without evidence: for adaptive inference with maps."""

    def classify(self, *activations: Tensor) -> Tensor:
        """Only the logits ``(B,C)``, for adaptive inference."""
        return self.with_attention(*activations)[0]

    def find_attention(self, *activations: Tensor) -> Tensor:
        """Only the attention ``(B,*S)``, for training."""
        return self.with_attention(*activations)[1]

    def locations(self, *activations: Tensor) -> Tensor | None:
        """``(B,N)`` bool: the positions of a sequence that are locations; ``None`` where all are."""
        return self.layout.locations(activations[0], activations[1] if self.layout.masked else None)

    def features(self, *activations: Tensor) -> Tensor:
        """The features ``(B,D,*S)``, zero at padding."""
        keep, canonical = self.locations(*activations), self.layout.canonical(activations[0])
        return canonical if keep is None else canonical * keep[:, None]

    def with_features(self, *activations: Tensor) -> tuple[ExitOutput, Tensor]:
        """The output, and the features ``(B,D,*S)`` that it was computed from (zero at padding)."""
        return self(*activations), self.features(*activations)


class EvidenceHead(ExitHead):
    """``logit[c] = sum_i a[i] * (w_c . f_i) + b_c`` with ``a = softmax_i(u . f_i)``.

    The logits are computed as ``W (sum_i a[i] f_i) + b``, which is the same by linearity and does not build the
    ``(B,C,*S)`` evidence; that is made only for those who ask for it. Attention pooling as a classifier head follows
    attention-based multiple-instance learning (arXiv 1802.04712, eq. 8, without the gating tanh). Padding and class tokens
    of a sequence get attention 0, exactly.

    Args:
        channels: ``D`` of the features ``(B,D,*S)``.
        num_classes: ``C``.
        layout: how the features lie in memory; by default ``(B,D,H,W)``.
        neck: small layers before it (:class:`~exitlens.model.heads.necks.ContextNeck`,
            :class:`~exitlens.model.heads.necks.TokenNeck`); its locations are the map's.
        lateral: how the earlier features lie in memory that a neck takes beside the features.
    """

    exact_evidence = True

    def __init__(
        self,
        channels: int,
        num_classes: int,
        layout: Layout | None = None,
        neck: ContextNeck | TokenNeck | GroupNeck | None = None,
        lateral: Layout | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.lateral = layout or Layout(), lateral
        self.neck = neck
        width = channels if neck is None else neck.width
        self.classifier = nn.Linear(width + channels * self._keeps_features, num_classes)
        self.attend = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.attend.weight)  # starts as average pooling

    @property
    def has_map(self) -> bool:
        """Whether it has several locations to attend to; groups of features are some."""
        return super().has_map or self.neck is not None

    @property
    def reads(self) -> int:
        """How many of the activations it reads."""
        return super().reads + (self.lateral is not None)

    @property
    def _keeps_features(self) -> bool:
        """Whether the classifier reads the features beside what the neck made of them."""
        return self.neck is not None and self.neck.keeps_features

    def locate(self, *activations: Tensor) -> Tensor:
        """What attention is computed from, ``(B,width,*S)``: the features, through the neck if there is one."""
        features = self.layout.canonical(activations[0])
        if self.neck is None:
            return features
        lateral = None if self.lateral is None else self.lateral.canonical(activations[self.reads - 1])
        located: Tensor = self.neck(features, lateral, self.locations(*activations))
        return located

    def _weigh(self, flat: Tensor, activations: Sequence[Tensor]) -> Tensor:  # (B,width,N) -> (B,N,1)
        """Attention."""
        weight = self.attend.weight.to(flat.dtype)
        # each memory order has its fast product
        scores = F.linear(flat.transpose(1, 2), weight) if flat.stride(1) == 1 else (weight @ flat).transpose(1, 2)
        keep = self.locations(*activations)
        scores = scores.float() if keep is None else scores.float().masked_fill(~keep[..., None], -torch.inf)
        return scores.softmax(1)

    def pool(self, *activations: Tensor) -> _Pooled:
        """Logits, attention and what they come from."""
        located = self.locate(*activations)
        flat = located.flatten(2)  # (B,width,N)
        rows = flat.transpose(1, 2)  # (B,N,width): rows of memory in channels_last and for tokens
        attention = self._weigh(flat, activations)
        weights = attention.to(flat.dtype).transpose(1, 2)  # (B,1,N)
        pooled, deep = torch.bmm(weights, rows), None
        if self._keeps_features:
            features = self.layout.canonical(activations[0]).to(flat.dtype)
            deep = _Deep(features.flatten(2).transpose(1, 2), find_spread(features.shape[2:], located.shape[2:], flat))
            pooled = torch.cat([pooled, torch.bmm(deep.gather(weights), deep.rows)], 2)
        # in the head's own precision, whatever the stages'
        logits = self.classifier(pooled.squeeze(1).to(self.classifier.weight.dtype))
        return _Pooled(logits, attention, rows, deep, located.shape[2:])

    def find_attention(self, *activations: Tensor) -> Tensor:
        """Only the attention ``(B,*S)``, for training."""
        located = self.locate(*activations)
        attention: Tensor = self._weigh(located.flatten(2), activations).squeeze(2).unflatten(1, located.shape[2:])
        return attention

    def with_attention(self, *activations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B,C)`` and attention ``(B,*S)``."""
        found = self.pool(*activations)
        return found.logits, found.attention.squeeze(2).unflatten(1, found.size)

    def forward(self, *activations: Tensor) -> ExitOutput:
        """Activations (the features first) -> logits, attention and evidence."""
        return self._explain(self.pool(*activations))

    def with_features(self, *activations: Tensor) -> tuple[ExitOutput, Tensor]:
        """The output, and the features ``(B,D,*S)`` that were pooled: after the neck, zero at padding."""
        found = self.pool(*activations)
        rows = found.rows if found.deep is None else torch.cat([found.rows, found.deep.enlarge(found.deep.rows)], 2)
        keep, features = self.locations(*activations), rows.transpose(1, 2).unflatten(2, found.size)
        return self._explain(found), features if keep is None else features * keep[:, None]

    def _explain(self, found: _Pooled) -> ExitOutput:
        rows = found.rows
        weight = self.classifier.weight.to(rows.dtype).t()  # (width + D, C)
        evidence = rows @ weight[: rows.shape[2]]  # (B,N,C)
        if found.deep is not None:
            evidence = evidence + found.deep.enlarge(found.deep.rows @ weight[rows.shape[2] :])
        located = (evidence * found.attention).transpose(1, 2).contiguous().unflatten(2, found.size)
        return ExitOutput(found.logits, found.attention.squeeze(2).unflatten(1, found.size), located)


class _Deep(NamedTuple):
    """Features ``(B,M,D)`` beside the neck's, and how they are spread over its N locations, ``(N,M)``; None: as they are.

    Enlarging features and pooling them is pooling them by attention that is summed up.
    """

    rows: Tensor
    spread: Tensor | None

    def gather(self, weights: Tensor) -> Tensor:
        """Attention ``(B,1,N)`` -> ``(B,1,M)``."""
        return weights if self.spread is None else weights @ self.spread

    def enlarge(self, values: Tensor) -> Tensor:
        """``(B,M,X)`` -> ``(B,N,X)``."""
        return values if self.spread is None else self.spread @ values


class _Pooled(NamedTuple):
    """What a head computed: logits ``(B,C)``, attention ``(B,N,1)``, features ``(B,N,width)``, the size ``S``."""

    logits: Tensor
    attention: Tensor
    rows: Tensor
    deep: _Deep | None
    size: Sequence[int]


class AverageHead(ExitHead):
    """Average pooling and one linear layer: the usual exit of early-exit networks (BranchyNet, arXiv 1709.01686).

    For comparison: its answer goes through no attention. Its map is the normalised channel energy of the features, which is
    seldom far from uniform; its evidence is CAM (arXiv 1512.04150) over the number of locations, which is exact. Its
    arguments are those of :class:`EvidenceHead`.
    """

    exact_evidence = True

    def __init__(self, channels: int, num_classes: int, layout: Layout | None = None) -> None:
        super().__init__()
        self.layout = layout or Layout()
        self.classifier = nn.Linear(channels, num_classes)

    def _pool(self, *activations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Activations -> logits ``(B,C)``, features ``(B,D,*S)``, number of locations ``(B,1)``."""
        features, keep = self.features(*activations), self.locations(*activations)
        flat = features.flatten(2)
        count = flat.new_full((len(flat), 1), flat.shape[2]) if keep is None else keep.sum(1, keepdim=True).to(flat.dtype)
        pooled = flat.sum(2) / count
        return self.classifier(pooled.to(self.classifier.weight.dtype)), features, count

    def classify(self, *activations: Tensor) -> Tensor:
        """Only the logits ``(B,C)``, for adaptive inference."""
        return self._pool(*activations)[0]

    def with_attention(self, *activations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B,C)`` and attention ``(B,*S)``: the normalised energy of the features."""
        logits, features, _ = self._pool(*activations)
        return logits, energy(features)

    def forward(self, *activations: Tensor) -> ExitOutput:
        """Activations (the features first) -> logits, attention (energy) and evidence."""
        logits, features, count = self._pool(*activations)
        weight = self.classifier.weight.to(features.dtype)
        evidence = torch.einsum("cd,bdn->bcn", weight, features.flatten(2) / count[..., None])
        return ExitOutput(logits, energy(features), evidence.unflatten(2, features.shape[2:]))


class KeptHead(ExitHead):
    """The backbone's own pooling and classifier as the final exit: its logits are the plain backbone's, bit for bit.

    Attention is the normalised channel energy of the features. Evidence is exact where the classifier is global average
    pooling and one linear layer (then it is CAM, arXiv 1512.04150, over the number of locations); elsewhere the
    classifier cannot be split over locations, and the logits are shared out in proportion to the attention
    (``exact_evidence`` is False and reports say so).
    """

    def __init__(self, tail: Stage, pooled_linear: str | None, layout: Layout | None = None) -> None:
        super().__init__()
        self.layout = layout or Layout()
        self.tail, self.pooled_linear = tail, pooled_linear
        self.exact_evidence = pooled_linear is not None

    @property
    def bias(self) -> Tensor | None:
        """The classifier's, where it is one linear layer on pooled features."""
        return None if self.pooled_linear is None else self._linear().bias

    def _linear(self) -> nn.Linear:
        return cast(nn.Linear, self.tail.body.get_submodule(cast(str, self.pooled_linear)))

    def classify(self, *activations: Tensor) -> Tensor:
        """Logits ``(B,C)`` of the backbone's own classifier."""
        return cast(Tensor, self.tail(*activations)[0])

    def with_attention(self, *activations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B,C)`` and attention ``(B,*S)``: the normalised energy of the features."""
        return self.classify(*activations), energy(self.features(*activations))

    def forward(self, *activations: Tensor) -> ExitOutput:
        """Activations (the features first) -> logits, attention (energy) and evidence."""
        logits, attention = self.with_attention(*activations)
        if self.pooled_linear is None:
            shared = attention[:, None] * logits.view(*logits.shape, *[1] * (attention.ndim - 1))
            return ExitOutput(logits, attention, shared)
        features = self.layout.canonical(activations[0])
        evidence = torch.einsum("cd,bd...->bc...", self._linear().weight, features) / features[0, 0].numel()
        return ExitOutput(logits, attention, evidence)


def have_maps(heads: Iterable[nn.Module]) -> bool:
    """Whether the exits of a network have maps."""
    return all(head.has_map for head in heads if isinstance(head, ExitHead))


def require_maps(heads: Iterable[nn.Module], purpose: str) -> None:
    """Raises :class:`InputError` if the exits of a network have no maps."""
    if not have_maps(heads):
        raise InputError(
            f"net: {purpose} needs attention maps, and this network's exits have none: hidden features of a vector are no "
            "locations. Name groups of features: xl.attach(..., groups={'blood': [0, 1], ...})"
        )
