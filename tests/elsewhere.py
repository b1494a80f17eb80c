"""A device that does not exist: its tensors lie on the CPU, but do not mix with the CPU's, as a GPU's do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
MOVES = (Tensor.to, Tensor.cpu, Tensor.copy_)  # take tensors of two devices


def is_there(tensor: Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "is_there", False)


def mark(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().is_there = True
    return tensor


class Elsewhere(TorchFunctionMode):
    """Tells tensors of :data:`DEVICE` from the CPU's, by a mark on their memory."""

    def move(self, net: nn.Module) -> None:
        """Move a network to the device."""
        with self:
            net._apply(mark)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        values, leaves = dict(kwargs or {}), tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        with torch._C.DisableTorchFunction():
            there = [is_there(tensor) for tensor in tensors]
            if func == Tensor.device.__get__:
                return DEVICE if there[0] else tensors[0].device
            self._refuse_mixed(func, tensors, there)
            goal = DEVICE in devices if devices else any(there) and func != Tensor.cpu
            if func == Tensor.to and len(tensors) == 2:
                goal = there[1]
            if DEVICE in devices:
                args = tuple("cpu" if isinstance(each, torch.device) else each for each in args)
                values |= {"device": "cpu"} if "device" in values else {}
            result = func(*args, **values)
            if func in MOVES[:2] and goal != there[0]:
                result = result.clone()
            given = [tensor.untyped_storage()._cdata for tensor in tensors]
            for leaf in tree_leaves(result):
                if goal and isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                    mark(leaf)
            return result

    def _refuse_mixed(self, func: Callable[..., Any], tensors: list[Tensor], there: list[bool]) -> None:
        """Raise as PyTorch does for a GPU: numbers of the CPU may come along, and indices."""
        if func == Tensor.numpy and there[0]:
            raise TypeError("numpy: a tensor that is elsewhere has no array")
        if not any(there) or func in MOVES or (func in (Tensor.__getitem__, Tensor.__setitem__) and there[0]):
            return
        if any(tensor.ndim and not is_marked for tensor, is_marked in zip(tensors, there, strict=True)):
            raise RuntimeError(f"{func.__name__}: tensors are on two devices")
