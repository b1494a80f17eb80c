"""A module used for a while and given back as it was: its mode, its buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def mode_of(module: nn.Module, training: bool) -> Iterator[None]:
    """Puts a module into one mode and gives every submodule its own mode back, also after an error."""
    before = [(m, m.training) for m in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for m, was in before:
            m.training = was


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Gives every buffer (batch-norm statistics) its values back, also after an error."""
    before = {name: value.clone() for name, value in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in module.named_buffers():
                value.copy_(before[name])
