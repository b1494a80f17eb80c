"""How a network runs that nobody tuned: what surely helps its kind, tried out on the network before it is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from exitlens.model.cutting.graph import get_callee_name
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.folding import can_fold
from exitlens.model.engine.tuning import Tuning
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.model.mixing import has_attention

MICRO_BATCH = 16  # suits most; net.tune finds a network's own
TOLERANCE = 1e-4  # of the largest output
FEWEST_CONVOLUTIONS = 2  # networks of tokens have one, which makes the tokens

Outputs = list[tuple[Tensor, Tensor]]  # logits and attention of every exit


def is_observed(modules: Iterable[nn.Module]) -> bool:
    """Whether any module has hooks, which have to see what the module itself gets, no more often than they do now."""
    for module in modules:  # noqa: SIM110 (a generator costs three times as much, at every answer)
        if module._forward_hooks or module._forward_pre_hooks:
            return True
    return False


def suggest_engine(stages: Sequence[Stage], heads: Sequence[ExitHead], example: Activations) -> Engine:
    """The engine by which a network answers whose tuning nobody set; ``engine.tuning`` is the suggested one.

    Convolutional networks in float32 on a CPU: micro-batches, ``channels_last``, and batch normalisation folded where there
    is any. Only what the network is seen to run with, and to give the same outputs with, is taken. All others, and
    networks with attention: everything off. Memory is not kept, because that would change the process and not the network
    alone. Weights are copied only where something is folded.

    Args:
        stages: in evaluation mode.
        heads: likewise.
        example: one sample, as the first stage takes it; of its values none is used.
    """
    plain = Engine(stages, heads, Tuning(), shared=True)
    if not _is_convolutional(stages, heads, example):
        return plain
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        activations = _draw_samples(example)
        try:
            outputs = _compute_outputs(plain, activations)
        except Exception:  # answering will tell why
            return plain
        for tuning in _list_tunings(stages):
            try:
                engine = _open(stages, heads, tuning)
                if _agree(_compute_outputs(engine, activations), outputs):
                    return engine
            except Exception:  # a module that cannot be copied, a view that wants the usual memory format
                continue
    return plain


def _open(stages: Sequence[Stage], heads: Sequence[ExitHead], tuning: Tuning) -> Engine:
    return Engine.prepare(stages, heads, tuning) if tuning.folded else Engine(stages, heads, tuning, shared=True)


def _list_tunings(stages: Sequence[Stage]) -> Iterator[Tuning]:
    """The fastest first."""
    if any(can_fold(stage.evaluation) for stage in stages):
        yield Tuning(MICRO_BATCH, channels_last=True, folded=True)
    yield Tuning(MICRO_BATCH, channels_last=True)
    yield Tuning(MICRO_BATCH)


def _is_convolutional(stages: Sequence[Stage], heads: Sequence[ExitHead], example: Activations) -> bool:
    """Whether these are stages of a convolutional network in float32 on a CPU, and the example is images for it."""
    if not any(t.ndim == 4 and t.dtype is torch.float32 and t.device.type == "cpu" for t in example):
        return False
    tensors = [t for part in (*stages, *heads) for t in (*part.parameters(), *part.buffers())]
    if any(t.device.type != "cpu" or (t.is_floating_point() and t.dtype is not torch.float32) for t in tensors):
        return False
    return sum(map(_count_convolutions, stages)) >= FEWEST_CONVOLUTIONS and not has_attention(stages)


def _count_convolutions(stage: Stage) -> int:
    graph, count = stage.evaluation, 0
    for node in graph.graph.nodes:
        if node.op == "call_module":
            count += sum(isinstance(module, nn.Conv2d) for module in graph.get_submodule(str(node.target)).modules())
        else:
            count += node.op == "call_function" and get_callee_name(node).partition(".")[0] == "conv2d"
    return count


def _draw_samples(example: Activations) -> Activations:
    """Two random samples of the example's size."""
    draws = torch.Generator().manual_seed(0)
    images = (torch.randn(2, *t.shape[1:], generator=draws) if t.is_floating_point() else torch.cat([t, t]) for t in example)
    return tuple(images)


def _compute_outputs(engine: Engine, activations: Activations) -> Outputs:
    return engine.compute_outputs(engine.enter(activations))


def _agree(ours: Outputs, plain: Outputs) -> bool:
    """Whether logits and attention of every exit are the same, but for rounding."""
    for one, other in zip((t for pair in ours for t in pair), (t for pair in plain for t in pair), strict=True):
        scale = max(1.0, other.abs().nan_to_num(0, 0, 0).amax().item())
        if not torch.allclose(one, other, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
            return False
    return True
