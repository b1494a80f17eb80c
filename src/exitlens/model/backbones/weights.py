"""State dicts: loaded from a file into a backbone, and reduced to one copy of each shared tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exitlens.errors import BundleError


def load_weights(backbone: nn.Module, path: Path | str) -> None:
    """Loads a local state dict (``.safetensors``, or a PyTorch file read with ``weights_only=True``) into a backbone.

    Raises :class:`BundleError` for a file that is missing or damaged, or whose tensors do not fit, before any is written.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"weights: no file {path}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # zip, pickle and safetensors raise many kinds for damaged files
        raise BundleError(f"weights: {path} cannot be read as a state dict ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BundleError(f"weights: {path} is no state dict of tensors: save module.state_dict()")
    mine = backbone.state_dict()
    missing, extra = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
    shapes = [name for name in mine.keys() & state.keys() if mine[name].shape != state[name].shape]
    if missing or extra or shapes:
        raise BundleError(
            f"weights: {path} does not fit this backbone: missing {missing[:3]}, unexpected {extra[:3]}, other shapes "
            f"{sorted(shapes)[:3]}"
        )
    backbone.load_state_dict(state)


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state with one copy of each tensor, also of those that appear under several names."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        first.setdefault(id(value), (name, value))
    return {name: value.detach().clone() for name, value in first.values()}


def load_unique_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Loads the result of :func:`unique_state` into a module built the same way.

    Raises :class:`BundleError` for missing, unexpected or misshapen tensors, before any is written.
    """
    expected = unique_state(module)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        raise BundleError(f"{where}: tensors do not fit the network: missing {missing[:3]}, unexpected {extra[:3]}")
    for name, value in state.items():
        if value.shape != expected[name].shape or value.dtype != expected[name].dtype:
            raise BundleError(
                f"{where}: {name} is {tuple(value.shape)} {value.dtype}, the network has {tuple(expected[name].shape)} "
                f"{expected[name].dtype}"
            )
    module.load_state_dict(state, strict=False)
