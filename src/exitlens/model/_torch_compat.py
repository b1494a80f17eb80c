"""The private parts of PyTorch that exitlens relies on, in one place: a new PyTorch release may break only this file."""

from __future__ import annotations

from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

# Tracing


def use_fake_tensors() -> FakeTensorMode:
    """A context whose tensors have a shape and a dtype but no values; the parameters they meet may be real."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def is_mutating_operation(target: Any) -> bool | None:
    """Whether an ATen operation changes one of its arguments; ``None`` for what is no ATen operation."""
    schema = getattr(target, "_schema", None)
    return None if schema is None else bool(schema.is_mutable)
