"""Identifies a network's weights by a fingerprint, and notices when they change."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from exitlens.model._torch_compat import list_member_tables, read_version

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Snapshot:
    """A network's modules and tensors at one moment, in plain lists that are quick to compare."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        self.modules = [module for part in parts for module in part.modules()]
        self._members: list[tuple[dict[str, Any], str, Any]] = []
        self._tensors: list[tuple[Tensor, int, int]] = []  # with version and address
        self._numbers: list[tuple[Any, int]] = []  # for each CPU tensor, a view of one of its numbers, and its value
        for module in self.modules:
            self._members += [(table, name, value) for table in list_member_tables(module) for name, value in table.items()]
        for t in {id(value): value for _, _, value in self._members if isinstance(value, Tensor)}.values():
            is_usual = type(t) in (Tensor, nn.Parameter) and t.layout is torch.strided and t.device.type != "meta"
            self._tensors.append((t, read_version(t), t.data_ptr() if is_usual else 0))
            integer = INTEGERS.get(t.element_size())
            if is_usual and t.device.type == "cpu" and integer and t.numel() and not t.is_quantized:
                middle = t.detach()[tuple(n // 2 for n in t.shape)]
                number = middle.view(integer).numpy()  # as an integer, because NaN does not equal itself
                self._numbers.append((number, number.item()))

    def is_unchanged(self) -> bool:
        """Return whether objects, addresses, version counters and sampled numbers are all the same."""
        for members, name, value in self._members:
            if members.get(name) is not value:
                return False
        for tensor, version, address in self._tensors:
            if read_version(tensor) != version or (address and tensor.data_ptr() != address):
                return False
        for number, value in self._numbers:  # after the addresses: they are still those of these arrays  # noqa: SIM110
            if number.item() != value:
                return False
        return True


class WeightsRecord:
    """Identifies weights by a fingerprint, and notices changes cheaply enough for every answer.

    It notices writes that PyTorch counts, tensors and modules set by hand, and changes of one number of each tensor on the
    CPU. The numbers reveal writes that PyTorch does not count, by fused optimizers and through ``.data``, unless all of
    these numbers stay the same.
    """

    def __init__(self, stages: nn.ModuleList, heads: nn.ModuleList) -> None:
        self._parts = {"stages.": stages, "heads.": heads}
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._named: tuple[str, Snapshot] | None = None  # the fingerprint, and the snapshot it was computed at

    def compute_fingerprint(self) -> str:
        """Return the first 16 hex digits of a SHA-256 over every tensor of the network's state."""
        digest = hashlib.sha256()
        for prefix, part in self._parts.items():
            for name, value in part.state_dict(prefix=prefix).items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """:meth:`compute_fingerprint`, recomputed only after a change was noticed."""
        snapshot, named = self.current(), self._named
        if named is None or named[1] is not snapshot:
            with self._lock:
                named = self._named = self.compute_fingerprint(), snapshot
        return named[0]

    def current(self) -> Snapshot:
        """Return an object that stays the same until a change is noticed; call this before reading the weights."""
        snapshot = self._snapshot
        if snapshot is None or not snapshot.is_unchanged():
            snapshot = self._snapshot = Snapshot(self._parts.values())
            self._named = None  # it would hold the old tensors
        return snapshot

    def forget(self) -> None:
        """Forget everything, because the tensors have been exchanged."""
        self._snapshot = self._named = None
