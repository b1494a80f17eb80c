"""Training and evaluation mode, put on for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
