"""Tuning: settings that change a network's speed, not its weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import InputError, require
from exitlens.model.process import THREAD_LIMIT, keep_memory
from exitlens.types.inputs import set_channels_last

PRECISIONS, BACKENDS = ("float32", "bfloat16", "int8"), ("torch", "onnx")


def name_network(fingerprint: str, precision: str) -> str:
    """Return the name that policies and traces use for a network: its fingerprint, and the precision unless float32."""
    return fingerprint + ("" if precision == "float32" else f"-{precision}")


@dataclass(frozen=True)
class Tuning:
    """Settings for running a network: measured by :meth:`~exitlens.model.network.ExitNet.tune`, set by hand
    (``net.tuning = Tuning(...)``), or the static default (:func:`~exitlens.model.engine.preparation.choose_default`).

    Args:
        micro_batch: number of samples that run through a stage together; 0: the whole batch.
        channels_last: keep images and convolution weights in that memory format.
        precision: ``float32`` keeps the network's own precision; ``bfloat16`` runs the stages in it, but not heads and
            softmax; ``int8`` marks the files of :func:`exitlens.export_int8`.
        backend: ``torch``, or ``onnx``: ONNX Runtime runs the stages with their heads, on the CPU and in float32 (needs
            the extra ``onnx``).
        folded: fold batch normalisation into the convolution before it (arXiv 1712.05877, section 3.2).
        threads: largest number of PyTorch threads; 0: all that PyTorch has.
        keep_memory: from the first answer on, the process keeps the memory it has used (:mod:`exitlens.model.process`).
        measured: measurements behind the choice, for the record.

    Raises:
        InputError: for a value of the wrong kind, or a backend that does not run in the precision.

    Examples:
        >>> net.tuning = xl.Tuning(micro_batch=8, channels_last=True)  # by hand; net.tune(images) measures
        >>> net.tuning.micro_batch
        8
    """

    micro_batch: int = 0
    channels_last: bool = False
    precision: str = "float32"
    folded: bool = False
    backend: str = "torch"
    threads: int = 0
    keep_memory: bool = False
    measured: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("micro_batch", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InputError(f"{name}: expected an integer of 0 or more, got {value!r}")
        for name in ("channels_last", "folded", "keep_memory"):
            require(getattr(self, name), bool, name)
        require(self.measured, Mapping, "measured")
        for name, known in (("precision", PRECISIONS), ("backend", BACKENDS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: expected one of {known}, got {getattr(self, name)!r}")
        if (self.backend, self.precision) in (("torch", "int8"), ("onnx", "bfloat16")):
            raise InputError(f"backend: {self.backend!r} does not run in {self.precision}. Fix: choose another of the two.")
        if self.backend == "onnx" and self.channels_last:
            raise InputError("backend: 'onnx' has its own memory formats. Fix: leave channels_last out.")

    @property
    def changes_weights(self) -> bool:
        """True if answers need a copy of the weights in another form."""
        return self.channels_last or self.folded or self.precision != "float32" or self.backend != "torch"

    @property
    def numbers(self) -> str:
        """The precision; for int8, with a digest of the files, because each quantisation gives other answers."""
        return f"int8-{self.measured.get('files', '')}" if self.precision == "int8" else self.precision

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tuning:
        """Inverse of :meth:`to_dict`."""
        return cls(**values)

    def convert(self, activations: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Convert the first stage's inputs to this precision and memory format."""
        if self.precision == "bfloat16":
            activations = tuple(t.to(torch.bfloat16) if t.is_floating_point() else t for t in activations)
        if self.channels_last:
            activations = tuple(map(set_channels_last, activations))
        return activations


def apply_tuning(tuning: Tuning) -> AbstractContextManager[Any]:
    """Return a context that limits PyTorch's threads, never above the caller's number; keep memory from now on if asked."""
    if tuning.keep_memory:
        keep_memory()
    return THREAD_LIMIT.apply(tuning.threads) if tuning.threads else nullcontext()
