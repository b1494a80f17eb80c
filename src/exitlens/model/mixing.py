"""Backward passes through transformers with attention weights and the scales of layer norms held constant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from exitlens.model.cutting.split import Activations, Stage
from exitlens.model.cutting.trace import get_callee_name

ATTENTION, SOFTMAX = ("scaled_dot_product_attention", "multi_head_attention_forward"), ("softmax", "_softmax")
PRODUCTS = ("matmul", "bmm", "einsum")


class Mixing(TorchFunctionMode):
    """Watches a forward pass. While ``is_fixed``, gradients take its attention weights and layer-norm scales as constants.

    Gradients then say which of the mixed values an answer comes from, not how they were weighed (arXiv 2202.07304).
    """

    def __init__(self, is_fixed: bool = False) -> None:
        super().__init__()
        self.is_fixed = is_fixed
        self._normalised: dict[torch.Size, Tensor] | None = None if is_fixed else {}
        self._is_mixed = False

    def find_unmixed(self, features: Tensor) -> Tensor:
        """Return the first input of this shape to a layer norm before any attention, or else the features; call it once."""
        seen, self._normalised = self._normalised, None  # else these tensors keep the whole pass in memory
        unmixed = (seen or {}).get(features.shape, features)
        return unmixed if unmixed.requires_grad else features

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Compute gradients in this context with attention weights and scales as constants."""
        self.is_fixed = True
        try:
            yield
        finally:
            self.is_fixed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]
        self._is_mixed |= name in ATTENTION or name in SOFTMAX
        if name in ATTENTION:  # query and key: the first two arguments, or by keyword
            held = {word: self._hold(kwargs[word]) for word in ("query", "key") if word in kwargs}
            return func(*map(self._hold, args[:2]), *args[2:], **kwargs | held)
        if name == "layer_norm":
            return self._normalise(*args, **kwargs)
        result = func(*args, **kwargs)
        if name == "embedding" and self._normalised is not None and torch.is_grad_enabled():
            result.requires_grad_()  # even if the embedding is frozen
        return self._hold(result) if name in SOFTMAX else result

    def _hold(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Hold.apply(x, self))  # type: ignore[no-untyped-call]

    def _normalise(
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        if self._normalised is not None and not self._is_mixed:
            self._normalised.setdefault(input.shape, input)
        given = (input, list(normalized_shape), weight, bias, eps, self)
        return cast(Tensor, _Normalise.apply(*given))  # type: ignore[no-untyped-call]


class _Hold(torch.autograd.Function):
    """The identity, which passes no gradient back while the mixing is fixed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mixing: Mixing) -> Tensor:
        ctx.mixing = mixing
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        return None if ctx.mixing.is_fixed else grads[0], None


class _Normalise(torch.autograd.Function):
    """``F.layer_norm``; while the mixing is fixed, its scale has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float, mixing: Mixing
    ) -> Tensor:
        out, mean, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x, mean, scale, weight, bias)
        ctx.shape, ctx.mixing = shape, mixing
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None, None]:
        (x, mean, scale, weight, bias), grad = ctx.saved_tensors, grads[0]
        if ctx.mixing.is_fixed:
            scaled = grad if weight is None else grad * weight
            centred = scaled - scaled.mean(tuple(range(-len(ctx.shape), 0)), keepdim=True)
            return (centred * scale).to(x.dtype), None, None, None, None, None
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3]]
        given = (grad.contiguous(), x, ctx.shape, mean, scale, weight, bias, wanted)
        by_x, by_weight, by_bias = torch.ops.aten.native_layer_norm_backward(*given)
        return by_x, None, by_weight, by_bias, None, None


def open_inputs(activations: Activations, stage: Stage) -> Activations:
    """Return inputs that require gradients if the stage has frozen weights, so that it is recorded; else the same inputs."""
    if all(p.requires_grad for p in stage.parameters()):
        return activations
    return tuple(t.detach().requires_grad_() if t.is_floating_point() and not t.requires_grad else t for t in activations)


def has_self_attention(stages: Iterable[Stage]) -> bool:
    """Return whether any stage mixes locations: by an attention module or function, or a softmax before a product."""

    def mixes(graph: fx.GraphModule, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            attends = any(isinstance(m, nn.MultiheadAttention) for m in module.modules())
            return attends or (isinstance(module, nn.Softmax) and _is_multiplied(node))
        name = get_callee_name(node).partition(".")[0] if node.op.startswith("call_") else ""
        return name.endswith("attention") or (name in SOFTMAX and _is_multiplied(node))

    return any(mixes(stage.evaluation, node) for stage in stages for node in stage.evaluation.graph.nodes)


def _is_multiplied(node: fx.Node, steps: int = 4) -> bool:
    """Return whether a matrix product takes the result, at once or after a few steps such as dropout."""
    return any(
        any(word in get_callee_name(user).partition(".")[0] for word in PRODUCTS)
        or (steps > 0 and _is_multiplied(user, steps - 1))
        for user in node.users
    )
