"""Contexts that use a module (or a logger) and leave it as it was: its mode, its attributes, its buffers, its parameters."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn


@contextmanager
def mute(name: str) -> Iterator[None]:
    """Keep what a logger of another library says about its own work from our users."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def switch_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Put a module into one mode, and every submodule back into its own afterwards, even after an error."""
    before = [(m, m.training) for m in module.modules()]
    if any(was != training for _, was in before):  # setting it takes half a millisecond
        module.train(training)
    try:
        yield
    finally:
        for m, was in before:
            if m.training != was:
                m.training = was


@contextmanager
def preserve_state(module: nn.Module) -> Iterator[None]:
    """Restore every submodule's attributes, also what they contain, and buffers, even after an error."""
    attributes = [(m, dict(vars(m))) for m in module.modules()]
    containers = [v for _, held in attributes for v in held.values() if isinstance(v, dict | list | set)]
    contents = [(container, copy.copy(container) if container else ()) for container in containers]
    values = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for m, held in attributes:
            vars(m).clear()
            vars(m).update(held)
        for container, content in contents:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
        with torch.no_grad():
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def fill_zero_parameters(module: nn.Module) -> Iterator[None]:
    """Fill parameters that are all zero with small noise for a while, because outputs would not show what they multiply."""
    zero = [p for p in module.parameters() if p.is_floating_point() and not bool(p.any())]
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in zero:
            p.copy_(0.5 * torch.randn(p.shape, generator=rng))
    try:
        yield
    finally:
        with torch.no_grad():
            for p in zero:
                p.zero_()


@contextmanager
def read_lengths_as_sizes(module: nn.Module) -> Iterator[None]:
    """Make ``len(x)`` in a module's forwards ``x.size(0)`` for a while, because tracers cannot follow Python's ``len``."""

    def find_length(value: Any) -> Any:
        is_proxy = isinstance(value, fx.Proxy) and not isinstance(value, fx.proxy.Attribute)
        return value.size(0) if is_proxy or isinstance(value, Tensor) else len(value)

    forwards = [inspect.unwrap(type(m).forward) for m in module.modules()]
    spaces = {id(space): space for forward in forwards if "len" not in (space := getattr(forward, "__globals__", {}))}
    patched = [space for space in spaces.values() if not space.get("__name__", "torch").startswith("torch.")]
    for space in patched:
        space["len"] = find_length
    try:
        yield
    finally:
        for space in patched:
            space.pop("len", None)
