"""Tuning: settings that change a network's speed, not its weights; their default, and graphs and heads in that form."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from exitlens.errors import InputError, require
from exitlens.model._torch_compat import has_hooks
from exitlens.model.cutting.split import Activations, Stage
from exitlens.model.cutting.trace import get_callee_name
from exitlens.model.heads import ExitHead, KeptHead, NeckHead
from exitlens.model.mixing import has_self_attention
from exitlens.model.process import THREAD_LIMIT, keep_memory
from exitlens.types.inputs import set_channels_last
from exitlens.types.settings import WHOLE, check_choice, check_numbers

PRECISIONS, BACKENDS = ("float32", "bfloat16", "int8"), ("torch", "onnx")
ATEN = torch.ops.aten
CONVOLUTIONS = (ATEN.conv2d.default, ATEN.conv2d.padding)  # (x, weight, bias, ...)
SHAPES = ("ndim", "shape")  # attributes of a convolution's output that folding does not change
NORM_ARGUMENTS = {
    F.batch_norm: ("x", "mean", "var", "weight", "bias", "training", "momentum", "eps"),
    ATEN.batch_norm.default: ("x", "weight", "bias", "mean", "var", "training", "momentum", "eps", "cudnn"),
}
# mean, variance, eps, weight and bias: what fuse_conv_bn_weights takes after the convolution's weight and bias
Norm = tuple[Tensor, Tensor, float, Tensor | None, Tensor | None]
PADS = (ATEN.pad.default, ATEN.constant_pad_nd.default)  # (x, widths, ...)
VIEWS = ("view", "view_as", "as_strided", "stride")  # calls that may not work in another memory format
DEFAULT_MICRO_BATCH = 16
FEWEST_CONVOLUTIONS = 2  # transformers have one, which makes the tokens


def name_network(fingerprint: str, precision: str) -> str:
    """Return the name that policies and traces use for a network: its fingerprint, and the precision unless float32."""
    return fingerprint + ("" if precision == "float32" else f"-{precision}")


@dataclass(frozen=True)
class Tuning:
    """Settings for running a network: measured by :meth:`~exitlens.model.network.ExitNet.tune`, set by hand
    (``net.tuning = Tuning(...)``), or the static default (:func:`~exitlens.model.engine.tuning.choose_default`).

    Args:
        micro_batch: number of samples that run through a stage together; 0: the whole batch.
        channels_last: keep images and convolution weights in that memory format.
        precision: ``float32`` keeps the network's own precision; ``bfloat16`` runs the stages in it, but not heads and
            softmax; ``int8`` marks the files of :func:`exitlens.export_int8`.
        backend: ``torch``, or ``onnx``: ONNX Runtime runs the stages with their heads, on the CPU and in float32 (needs
            the extra ``onnx``).
        folded: fold batch normalisation into the convolution before it (arXiv 1712.05877, section 3.2).
        threads: largest number of PyTorch threads; 0: all that PyTorch has.
        keep_memory: from the first answer on, the process keeps the memory it has used (:mod:`exitlens.model.process`).
        measured: measurements behind the choice, for the record.

    Examples:
        >>> net.tuning = xl.Tuning(micro_batch=8, channels_last=True)  # by hand; net.tune(images) measures
        >>> net.tuning.micro_batch
        8
    """

    micro_batch: int = 0
    channels_last: bool = False
    precision: str = "float32"
    folded: bool = False
    backend: str = "torch"
    threads: int = 0
    keep_memory: bool = False
    measured: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check_numbers(self, {"micro_batch": WHOLE, "threads": WHOLE})
        for name in ("channels_last", "folded", "keep_memory"):
            require(getattr(self, name), bool, name)
        require(self.measured, Mapping, "measured")
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("backend", self.backend, BACKENDS)
        if (self.backend, self.precision) in (("torch", "int8"), ("onnx", "bfloat16")):
            raise InputError(f"backend: {self.backend!r} does not run in {self.precision}. Fix: choose another of the two.")
        if self.backend == "onnx" and self.channels_last:
            raise InputError("backend: 'onnx' has its own memory formats. Fix: leave channels_last out.")

    @property
    def changes_weights(self) -> bool:
        """True if answers need a copy of the weights in another form."""
        return self.channels_last or self.folded or self.precision != "float32" or self.backend != "torch"

    @property
    def numbers(self) -> str:
        """The precision; for int8, with a digest of the files, because each quantisation gives other answers."""
        return f"int8-{self.measured.get('files', '')}" if self.precision == "int8" else self.precision

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tuning:
        """Inverse of :meth:`to_dict`."""
        return cls(**values)

    def convert(self, activations: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Convert the first stage's inputs to this precision and memory format."""
        if self.precision == "bfloat16":
            activations = tuple(t.to(torch.bfloat16) if t.is_floating_point() else t for t in activations)
        if self.channels_last:
            activations = tuple(map(set_channels_last, activations))
        return activations


def apply_tuning(tuning: Tuning) -> AbstractContextManager[Any]:
    """Return a context that limits PyTorch's threads, never above the caller's number; keep memory from now on if asked."""
    if tuning.keep_memory:
        keep_memory()
    return THREAD_LIMIT.apply(tuning.threads) if tuning.threads else nullcontext()


def choose_default(stages: Sequence[Stage], heads: Sequence[ExitHead], example: Activations) -> Tuning:
    """Return the tuning of an untuned network, read from its graphs: nothing runs, nothing is measured.

    Convolutional networks for images, in float32 on a CPU, run in micro-batches of 16, in ``channels_last`` unless a graph
    takes views of tensors, which may not work in that format, and with batch normalisation folded where there is any.
    All others, such as networks with attention, run unchanged. Memory is not kept, because that affects the whole process.
    """
    graphs = [stage.evaluation for stage in stages] + [h.tail.evaluation for h in heads if isinstance(h, KeptHead)]
    tensors = [*example, *(t for part in (*stages, *heads) for t in (*part.parameters(), *part.buffers()))]
    is_plain = all(t.device.type == "cpu" and (t.dtype is torch.float32 or not t.is_floating_point()) for t in tensors)
    if not is_plain or not any(t.ndim == 4 for t in example) or has_self_attention(stages):
        return Tuning()
    convolutions, has_views = 0, False
    for graph, node in ((body, node) for body in graphs for node in body.graph.nodes):
        if node.op.startswith("call_"):
            callee = get_callee_name(node).partition(".")[0]
            modules = graph.get_submodule(str(node.target)).modules() if node.op == "call_module" else ()
            convolutions += sum(isinstance(module, nn.Conv2d) for module in modules) or callee == "conv2d"
            has_views |= callee in VIEWS
    if convolutions < FEWEST_CONVOLUTIONS:
        return Tuning()
    folded = any(True for graph in graphs for _ in find_norms(graph))
    return Tuning(DEFAULT_MICRO_BATCH, channels_last=not has_views, folded=folded)


def prepare_graph(body: fx.GraphModule, tuning: Tuning) -> fx.GraphModule:
    """Return a copy of an evaluation graph in the tuning's form."""
    body = copy.deepcopy(body).eval()
    if tuning.folded:
        fold(body)
        absorb(body)
    if tuning.precision == "bfloat16":
        body = body.to(torch.bfloat16)
    if tuning.channels_last:
        body = body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return body.requires_grad_(False)


def prepare_head(head: ExitHead, tuning: Tuning) -> ExitHead:
    """Return a copy of a head for evaluation, in the head's own precision."""
    twin = copy.deepcopy(head).eval().requires_grad_(False)
    if isinstance(twin, KeptHead):
        twin.tail.replace_evaluation(prepare_graph(twin.tail.evaluation, tuning))
    if isinstance(twin, NeckHead) and twin.neck is not None:
        twin.neck.fuse()
    return twin


def fold(body: fx.GraphModule) -> None:
    """Fold, in place, every batch normalisation into the convolution whose output only it reads."""
    for conv, node, norm in list(find_norms(body)):
        inputs = [*node.all_input_nodes, *conv.all_input_nodes]
        if conv.op == "call_module":
            module = cast(nn.Conv2d, copy.deepcopy(body.get_submodule(str(conv.target))))
            module.weight, module.bias = fuse_conv_bn_weights(module.weight, module.bias, *norm)
            body.set_submodule(str(conv.target), module)
        else:  # this call gets weights of its own, because other calls may use the old ones
            x, *arguments = conv.args
            weight, bias = (_read_tensor(body, value) for value in (*arguments, None)[:2])
            assert weight is not None
            nodes = []
            for kind, value in zip(("weight", "bias"), fuse_conv_bn_weights(weight, bias, *norm), strict=True):
                body.register_parameter(name := f"{conv.name}_folded_{kind}", value)
                with body.graph.inserting_before(conv):
                    nodes.append(body.graph.get_attr(name))
            conv.args = (x, *nodes, *arguments[2:])
        node.replace_all_uses_with(conv)
        body.graph.erase_node(node)
        for old in dict.fromkeys(inputs):
            if old.op == "get_attr" and not old.users:
                body.graph.erase_node(old)
    body.delete_all_unused_submodules()
    body.recompile()


def find_norms(body: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node, Norm]]:
    """Yield each convolution call, the normalisation call that can be folded into it, and the latter's numbers."""
    calls = Counter(str(node.target) for node in body.graph.nodes if node.op == "call_module")
    calls.update(str(node.target).rpartition(".")[0] for node in body.graph.nodes if node.op == "get_attr")
    for node in body.graph.nodes:
        conv = node.args[0] if node.args else None
        if not isinstance(conv, fx.Node) or not _is_convolution(body, conv, calls):
            continue
        readers = [user for user in conv.users if user.target is not getattr or user.args[1] not in SHAPES]
        norm = _read_norm(body, node, calls) if len(readers) == 1 else None
        if norm is not None:
            yield conv, node, norm


def _is_convolution(body: fx.GraphModule, node: fx.Node, calls: Counter[str]) -> bool:
    """True for a convolution whose weights may be changed for it alone (hooks might set them)."""
    if node.op == "call_module":
        conv = body.get_submodule(str(node.target))
        return type(conv) is nn.Conv2d and calls[str(node.target)] == 1 and not has_hooks(conv)
    if node.target not in CONVOLUTIONS or node.kwargs:
        return False
    return all(value is None or _read_tensor(body, value) is not None for value in node.args[1:3])


def _read_norm(body: fx.GraphModule, node: fx.Node, calls: Counter[str]) -> Norm | None:
    if node.op == "call_module":
        norm = body.get_submodule(str(node.target))
        if type(norm) is not nn.BatchNorm2d or calls[str(node.target)] > 1 or has_hooks(norm):
            return None  # a subclass may do more
        mean, var = norm.running_mean, norm.running_var
        return None if mean is None or var is None else (mean, var, norm.eps, norm.weight, norm.bias)
    names = NORM_ARGUMENTS.get(node.target) if node.op == "call_function" else None
    if names is None:
        return None
    arguments = dict(zip(names, node.args, strict=False)) | node.kwargs
    mean, var, weight, bias = (_read_tensor(body, arguments.get(name)) for name in ("mean", "var", "weight", "bias"))
    is_known = (weight is None) == (arguments.get("weight") is None) and (bias is None) == (arguments.get("bias") is None)
    eps = arguments.get("eps", 1e-5)
    if mean is None or var is None or not is_known or arguments.get("training", False) is not False:
        return None
    return (mean, var, eps, weight, bias) if isinstance(eps, float) else None


def _read_tensor(body: fx.GraphModule, node: object) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = attrgetter(str(node.target))(body)
    return value if isinstance(value, Tensor) else None


class _Convolution(NamedTuple):
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None = None
    stride: Sequence[int] = (1, 1)
    padding: Sequence[int] = (0, 0)
    dilation: Sequence[int] = (1, 1)
    groups: int = 1


def absorb(body: fx.GraphModule) -> None:
    """Remove, in place, the copies that one-sided padding makes before depthwise convolutions, which can add the zeros.

    There a copy costs as much as the convolution; other convolutions compute far more. Networks ported from TensorFlow pad
    like this ("same" padding).
    """
    for node in list(body.graph.nodes):
        if node.target is not ATEN.conv2d.default or node.kwargs:
            continue
        conv, pad = _Convolution(*node.args), node.prev
        while pad.op == "get_attr":  # nothing else may stand between: it might change the copied tensor in place
            pad = pad.prev
        is_only_reader = conv.x is pad and len(pad.users) == 1 and conv.groups > 1
        if not is_only_reader or any(len(pair) != 2 for pair in conv[3:6]) or not _pads_zeros(pad):
            continue
        x, (left, right, top, bottom) = pad.args[:2]
        above, aside = conv.padding
        zeros = (left + aside, right + aside, top + above, bottom + above)
        arguments: Any = (x, conv.weight, conv.bias, conv.stride, zeros, conv.dilation, conv.groups)
        with body.graph.inserting_before(node):
            node.replace_all_uses_with(body.graph.call_function(convolve_padded, arguments))
        body.graph.erase_node(node)
        body.graph.erase_node(pad)
    body.recompile()


def convolve_padded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    zeros: tuple[int, int, int, int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:  # (B,C,H,W) -> (B,C',H',W')
    """Convolve images with ``zeros`` around them: left, right, above and below.

    Convolutions add the same number of zeros on both sides. Where more are needed after than before, whole strides are
    added before, and their outputs are cut off.
    """
    left, right, top, bottom = zeros
    padding, kept = [], [slice(None), slice(None)]
    for axis, (before, after) in enumerate(((top, bottom), (left, right))):
        steps = max(0, -((before - after) // stride[axis]))
        reach = dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        count = (x.shape[2 + axis] + before + after - reach) // stride[axis] + 1
        padding.append(before + steps * stride[axis])
        kept.append(slice(steps, steps + count))
    return F.conv2d(x, weight, bias, list(stride), padding, list(dilation), groups)[tuple(kept)]


def _pads_zeros(node: fx.Node) -> bool:
    """True if the node adds zeros to the last two axes, and cuts nothing off."""
    if node.target not in PADS or node.kwargs:
        return False
    arguments: Any = node.args
    _, widths, *rest = arguments
    if node.target is ATEN.pad.default and rest and rest.pop(0) != "constant":
        return False
    return len(widths) == 4 and all(isinstance(n, int) and n >= 0 for n in widths) and rest in ([], [0], [None])
