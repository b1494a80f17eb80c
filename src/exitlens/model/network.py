"""The network with exits: attach heads to the stages of a backbone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from exitlens.errors import AttachError, InputError
from exitlens.functional.maps import all_finite
from exitlens.model.backbones import build_backbone
from exitlens.model.cost import count_macs
from exitlens.model.heads import EvidenceHead, ExitHead, KeptHead
from exitlens.model.layouts import KINDS, Kind
from exitlens.model.placement import place_exits
from exitlens.model.stages import Carried, Split, Stage, split
from exitlens.model.tracing import mode_of
from exitlens.types import ExitOutput, Preprocess

Final = Literal["head", "keep"]


@dataclass(frozen=True)
class NetworkInfo:
    """How a network was made: enough to build it again, and what its inputs and outputs mean.

    ``source`` is empty for a module of the user's own; such a bundle is loaded with ``xl.load(dir, backbone=...)``.
    """

    at: tuple[str, ...]
    num_classes: int
    final: Final
    input_shape: tuple[int, ...]  # (C,H,W)
    source: str = ""
    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    layout: Kind | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = asdict(self)
        values["preprocess"] = None if self.preprocess is None else self.preprocess.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkInfo:
        """Inverse of :meth:`to_dict`."""
        fields = dict(values)
        for name in ("at", "input_shape", "classes"):
            fields[name] = tuple(fields[name])
        fields["preprocess"] = None if fields["preprocess"] is None else Preprocess.from_dict(fields["preprocess"])
        return cls(**fields)


class ExitNet(nn.Module):
    """Stages with an exit head after each; calling it runs them all.

    Attributes:
        stages: K modules that run alone, one after the other.
        heads: K exit heads; the last is the final exit's.
        cost: ``(K,)`` cumulative MACs up to and including exit k's head over the plain backbone's MACs.
        head_share: all heads' MACs over the plain backbone's (the kept classifier of ``final="keep"`` is the backbone's).
        info: how the network was made.
    """

    def __init__(
        self, stages: Sequence[Stage], heads: Sequence[ExitHead], cost: Tensor, head_share: float, info: NetworkInfo
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        self.cost = cost
        self.head_share = head_share
        self.info = info
        self._fingerprint = ""
        self._seen: list[tuple[Tensor, int]] | None = None  # tensors and their versions when the fingerprint was taken
        self.__dict__["_members"] = None  # all modules, once listed; not registered as members again

    @property
    def num_exits(self) -> int:
        """K, the final exit included."""
        return len(self.heads)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.heads[0].parameters()).device

    def stage(self, k: int) -> Stage:
        """Stage k: what runs between exit k-1 and exit k."""
        return cast(Stage, self.stages[k])

    def head(self, k: int) -> ExitHead:
        """The head of exit k."""
        return cast(ExitHead, self.heads[k])

    def forward(self, images: Tensor) -> tuple[ExitOutput, ...]:
        """Images ``(B,C,H,W)`` -> the output of every exit, the final one last."""
        return self.with_features(images)[0]

    def with_features(self, images: Tensor) -> tuple[tuple[ExitOutput, ...], tuple[Tensor, ...]]:
        """The outputs of every exit and the features ``(B,D,*S)`` that each of them was computed from."""
        outputs, features = [], []
        carried: Carried = (images,)
        for stage, head in zip(self.stages, self.heads, strict=True):
            carried = stage(*carried)
            features.append(cast(ExitHead, head).layout.canonical(carried[0]))
            outputs.append(head(carried[0]))
        return tuple(outputs), tuple(features)

    def walk(self, images: Tensor) -> Iterator[ExitOutput]:
        """Yields one exit's output after the other; stage k+1 runs only when exit k+1 is asked for.

        Raises:
            InputError: for inputs that the network cannot take (checked at the call, before any stage runs).
        """
        self.check_input(images)
        return self._walk(images)

    def _walk(self, images: Tensor) -> Iterator[ExitOutput]:
        carried: Carried = (images,)
        for stage, head in zip(self.stages, self.heads, strict=True):
            carried = stage(*carried)
            yield head(carried[0])

    def check_input(self, images: Tensor, name: str = "images") -> None:
        """Raises :class:`InputError` for anything but a non-empty batch ``(B,C,H,W)`` of finite floats."""
        if not isinstance(images, Tensor):
            raise InputError(f"{name}: expected a torch.Tensor, got {type(images).__name__}")
        channels = self.info.input_shape[0]
        if images.ndim != 4 or images.shape[1] != channels:
            hint = " (add the batch axis: images[None])" if images.ndim == 3 else ""
            raise InputError(f"{name}: expected (B,{channels},H,W), got {tuple(images.shape)}{hint}")
        if len(images) == 0:
            raise InputError(f"{name}: the batch is empty: pass at least one image")
        if not images.is_floating_point():
            raise InputError(f"{name}: expected floats, got {images.dtype}: normalise uint8 pixels first (xl.Preprocess)")
        parameter = next(self.heads[0].parameters())
        if images.dtype != parameter.dtype or images.device != parameter.device:
            raise InputError(
                f"{name}: expected {parameter.dtype} on {parameter.device} as the network, got {images.dtype} on "
                f"{images.device}: convert with images.to(...)"
            )
        if min(images.shape[2:]) * 2 < min(self.info.input_shape[1:]):
            raise InputError(f"{name}: {tuple(images.shape[2:])} is far below the network's {self.info.input_shape[1:]}")
        if not all_finite(images):
            raise InputError(f"{name}: expected finite values, got NaN or Inf: check the loading of these images")

    _members: list[nn.Module] | None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the fingerprint's memory out of copies and pickles, which get tensors of their own."""
        return self.__dict__ | {"_fingerprint": "", "_seen": None, "_members": None}

    def fingerprint(self) -> str:
        """Names the weights: the first 16 hex digits of a SHA-256 over every tensor of the state."""
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def cached_fingerprint(self) -> str:
        """:meth:`fingerprint`, computed again only after a tensor of the state was changed in place, moved or loaded.

        A comparison of version counters, cheap enough for every prediction. It cannot see writes through ``.data`` or a
        parameter object set by hand; call :meth:`fingerprint` to be sure.
        """
        if self._seen is None or any(tensor._version != version for tensor, version in self._seen):
            tensors = (*self.parameters(), *self.buffers())
            self._fingerprint, self._seen = self.fingerprint(), [(t, t._version) for t in tensors]
        return self._fingerprint

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As ``torch.nn.Module.load_state_dict``; forgets the fingerprint."""
        self._seen = None
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # what to(), double(), cuda() and so on call
        self._seen = None
        moved: Any = super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return moved

    def any_training(self) -> bool:
        """Whether any module is in training mode (cheap enough for every prediction)."""
        if self._members is None:
            self.__dict__["_members"] = list(self.modules())
        for module in self._members or ():  # noqa: SIM110 (a generator costs three times as much, at every prediction)
            if module.training:
                return True
        return False

    def describe(self, **values: Any) -> None:
        """Records class names, preprocessing or source in :attr:`info` (they travel with the bundle)."""
        self.info = replace(self.info, **values)


def attach(
    backbone: nn.Module | str,
    at: Sequence[str] | int,
    num_classes: int,
    example: Tensor,
    *,
    final: Final = "head",
    layout: Kind | None = None,
) -> ExitNet:
    """Attaches exits to a backbone; its weights are shared, not copied.

    Args:
        backbone: a module with one image input and one logits output, or a source such as ``"torchvision:resnet18"``.
        at: names of the modules after which the early exits stand, in the order of execution; or how many early exits
            to place at equal shares of cost (see :func:`~exitlens.model.placement.place_exits`).
        num_classes: ``C`` of every exit.
        example: ``(B,C,H,W)`` floats of the size the network will see; one image is enough.
        final: ``"head"`` gives the final exit an evidence head, to be trained; ``"keep"`` leaves it the backbone's own
            classifier, so that its outputs stay those of the plain backbone.
        layout: ``nchw``, ``nhwc`` or ``tokens`` for all exits; by default found out from the shapes.

    Returns:
        The network with ``len(at) + 1`` exits, in the mode (train or eval) of the backbone.

    Raises:
        AttachError: where the backbone cannot be cut; InputError: where an argument does not fit.
    """
    _check_arguments(at, num_classes, example, final)
    if layout not in (None, *KINDS):
        raise InputError(f"layout: expected one of {KINDS} or None, got {layout!r}")
    if not isinstance(backbone, nn.Module | str):
        raise InputError(f"backbone: expected an nn.Module or a source such as 'small', got {type(backbone).__name__}")
    source = backbone if isinstance(backbone, str) else ""
    module = build_backbone(backbone, num_classes, example.shape[1]) if isinstance(backbone, str) else backbone
    example = example[:1].detach()
    at = place_exits(module, example, at) if isinstance(at, int) else at
    pieces = split(module, at, example, layout)
    if at and math.prod(pieces.sizes[-1]) == 1:
        raise AttachError(
            f"example: at {tuple(example.shape[2:])} pixels the final features are 1x1, so there is no map for the early "
            "exits to agree with: use larger images, or a backbone that shrinks them less"
        )
    heads: list[ExitHead] = [
        EvidenceHead(d, num_classes, lay) for d, lay in zip(pieces.channels, pieces.layouts, strict=True)
    ]
    if final == "keep":
        heads[-1] = KeptHead(pieces.tail, pieces.pooled_linear, pieces.layouts[-1])
        _check_kept(pieces, num_classes, example)
    for head in heads[: len(heads) - (final == "keep")]:
        head.to(example.device, next(module.parameters()).dtype)
    cost, head_share = _measure(module, pieces, heads, example, final)
    info = NetworkInfo(tuple(at), num_classes, final, tuple(example.shape[1:]), source, layout=layout)
    net = ExitNet(pieces.stages, heads, cost, head_share, info)
    net.heads.train(module.training)
    for stage in pieces.stages:
        stage.training = module.training
    return net


def _check_arguments(at: Sequence[str] | int, num_classes: int, example: Tensor, final: str) -> None:
    names = [] if isinstance(at, int) and not isinstance(at, bool) else at
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InputError(f"at: expected a list of module names such as ['layer1', 'layer2'], got {at!r}")
    if not isinstance(num_classes, int) or num_classes < 2:
        raise InputError(f"num_classes: expected an integer of 2 or more, got {num_classes!r}")
    if final not in ("head", "keep"):
        raise InputError(f"final: expected 'head' or 'keep', got {final!r}")
    if not isinstance(example, Tensor) or example.ndim != 4 or len(example) == 0 or not example.is_floating_point():
        seen = f"{tuple(example.shape)} {example.dtype}" if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"example: expected a float tensor (B,C,H,W) with B >= 1, got {seen}")


def _check_kept(pieces: Split, num_classes: int, example: Tensor) -> None:
    carried: Carried = (example,)
    with torch.no_grad():
        for stage in (*pieces.stages, pieces.tail):
            with mode_of(stage, False):
                carried = stage(*carried)
    if carried[0].shape[-1] != num_classes:
        raise AttachError(
            f"num_classes: the backbone's own classifier has {carried[0].shape[-1]} outputs, got {num_classes}: pass that "
            "number, or final='head' for a new classifier"
        )


def _measure(
    backbone: nn.Module, pieces: Split, heads: Sequence[ExitHead], example: Tensor, final: Final
) -> tuple[Tensor, float]:
    """Cumulative cost at every exit, and the share of the heads, in units of the plain backbone's MACs."""
    with mode_of(backbone, False):
        plain, _ = count_macs(backbone, example)
        total, at_heads, cost = 0, 0, []
        carried: Carried = (example,)
        for k, (stage, head) in enumerate(zip(pieces.stages, heads, strict=True)):
            with mode_of(stage, False):
                macs, carried = count_macs(stage, *carried)
            head_macs, _ = count_macs(head.classify, carried[0])
            total += macs + head_macs
            at_heads += 0 if final == "keep" and k == len(heads) - 1 else head_macs
            cost.append(total / plain)
    return torch.tensor(cost), at_heads / plain
