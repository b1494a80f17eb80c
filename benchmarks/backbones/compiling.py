"""Whether stages and heads can be exported and compiled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import exitlens as xl
from exitlens.types.inputs import Inputs, list_tensors, map_inputs

Tensors = tuple[Tensor, ...]


def compile_stages(net: xl.ExitNet, x: Inputs, kept: nn.Module | None) -> tuple[bool, bool]:
    """Every stage and head through torch.export, and every stage through torch.compile's front end; a dynamic batch.

    ``kept``: the backbone's own classifier, where it reads what the final head reads.
    """
    activations = list_tensors(map_inputs(x, lambda t: torch.cat([t, t])[:3]))
    exports = compiles = True
    for k, stage in enumerate(net.stages):
        torch._dynamo.reset()
        with torch.no_grad():
            after = stage(*activations)
        is_kept = kept is not None and k == net.num_exits - 1
        heads = (net.head(k), kept.eval()) if is_kept else (net.head(k),)
        exports &= export_stage(k, stage, heads, activations, after)
        compiles &= compile_stage(k, stage, activations, after)
        activations = after
    return exports, compiles


def export_stage(k: int, stage: nn.Module, heads: Sequence[nn.Module], activations: Tensors, after: Tensors) -> bool:
    """Whether the exported stage gives what it should for another number of samples, and its heads can be exported."""
    batch = torch.export.Dim("batch", min=2, max=512)
    try:
        shapes = (tuple({0: batch} for _ in activations),)
        exported = torch.export.export(stage, activations, dynamic_shapes=shapes).module()
        is_close = _is_close(exported(*[t[:2] for t in activations])[0], after[0][:2])
        for head in heads:
            torch.export.export(head, after, dynamic_shapes=(tuple({0: batch} for _ in after),))
    except Exception as error:
        print(f"   export of stage {k}: {type(error).__name__}: {str(error)[:160]}")
        return False
    return is_close


def compile_stage(k: int, stage: nn.Module, activations: Tensors, after: Tensors) -> bool:
    """Whether the whole stage but for recurrent layers is one graph, and the graph gives what it should."""
    try:
        for tensor in activations:
            torch._dynamo.mark_dynamic(tensor, 0)
        whole = not any(isinstance(module, nn.RNNBase) for module in stage.modules())  # these torch.compile leaves alone
        graph = torch.compile(stage, backend="eager", fullgraph=whole)
        return _is_close(graph(*activations)[0], after[0])
    except Exception as error:
        print(f"   compile of stage {k}: {type(error).__name__}: {str(error)[:160]}")
        return False


def _is_close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, atol=1e-4, rtol=1e-3)
