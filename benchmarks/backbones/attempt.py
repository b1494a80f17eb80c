"""Tries one backbone: how exactly its stages do what it does, and what can be done with the network that they make."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import exitlens as xl
from benchmarks.backbones.catalogue import CLASSES, Backbone
from benchmarks.backbones.compiling import compile_stages
from exitlens.model.backbones.build import make_example
from exitlens.model.cutting.graph import pick_logits
from exitlens.model.cutting.modes import switch_mode
from exitlens.types.inputs import Inputs

Row = dict[str, Any]
TOLERANCE = 1e-5


def make_inputs(chosen: Backbone, plain: nn.Module) -> Inputs:
    """Two samples: noise, or random tokens of which the second text has a quarter of padding."""
    size = chosen.size
    if isinstance(size, Mapping):
        return {name: torch.randn(2, *shape) for name, shape in size.items()}
    if isinstance(size, tuple):
        return torch.randn(2, *size)
    zeros = make_example(plain, 3, size)
    if isinstance(zeros, torch.Tensor):
        return torch.randn(2, 3, size, size)
    mask = (torch.arange(size) < torch.tensor([[size], [3 * size // 4]])).long()
    return {"input_ids": torch.randint(5, 200, (2, size)), "attention_mask": mask}


def compute_logits(module: nn.Module, x: Inputs) -> torch.Tensor:
    if isinstance(module, xl.ExitNet):
        return module(x)[-1].logits
    return pick_logits(module(x) if isinstance(x, torch.Tensor) else module(**x))


def try_backbone(chosen: Backbone) -> Row:
    """Everything about one backbone."""
    plain = chosen.build()
    x = make_inputs(chosen, plain)
    started = time.perf_counter()
    net = xl.attach(plain, chosen.at, CLASSES, x, final="keep")
    row: Row = {"attach_seconds": time.perf_counter() - started, "cuts": list(net.info.at)}
    row["traced_by"] = "torch.export" if net.input_spec.exact_size else "torch.fx"
    row |= compare_outputs(plain, net, x)
    row["gradient_gap"] = compare_gradients(plain, net, x)
    exits = xl.attach(chosen.build(), list(net.info.at), CLASSES, x, groups=chosen.groups)
    if chosen.make is None:
        exits.describe(source=chosen.source)
    row["head_share"] = exits.head_share
    row |= train_one_step(exits, x)
    row["bundle"] = compare_bundle(exits.eval(), x, None if exits.info.source else chosen.build()) == 0
    row["export"], row["compile"] = compile_stages(exits, x, None if chosen.groups else net.head(net.num_exits - 1))
    return row


def attach(chosen: Backbone, cuts: Sequence[str]) -> xl.ExitNet:
    """A backbone with exits after the same parts as before."""
    plain = chosen.build()
    return xl.attach(plain, list(cuts), CLASSES, make_inputs(chosen, plain), groups=chosen.groups)


def compare_outputs(plain: nn.Module, net: xl.ExitNet, x: Inputs) -> Row:
    """Logits in both modes with the same seed, and statistics after a training pass."""
    row: Row = {}
    for mode, training in (("eval", False), ("train", True)):
        outs, buffers = [], []
        for module in (plain, net):
            with switch_mode(module, training), torch.no_grad():
                torch.manual_seed(1)
                state = copy.deepcopy(plain.state_dict())
                outs.append(compute_logits(module, x))
                buffers.append([b.clone().float() for b in plain.buffers()])
                plain.load_state_dict(state)
        row[f"{mode}_gap"] = (outs[0] - outs[1]).abs().max().item()
        row["buffer_gap"] = max((gap(a, b) for a, b in zip(*buffers, strict=True)), default=0.0)
    return row


def train_one_step(net: xl.ExitNet, x: Inputs) -> Row:
    """Whether everything stays finite with EGT, and the attention that padding gets."""
    outs = net.train()(x)
    loss = xl.EGTLoss()(outs, torch.tensor([0, 4])).total
    loss.backward()
    finite = all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)
    mask = None if isinstance(x, torch.Tensor) else x.get("attention_mask")
    padding = torch.zeros(1) if mask is None else outs[0].attention[mask == 0]
    return {"egt_step": bool(torch.isfinite(loss)) and finite, "padding_attention": padding.abs().max().item()}


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item() if a.numel() else 0.0


def compare_gradients(plain: nn.Module, net: xl.ExitNet, x: Inputs) -> float:
    plain.eval(), net.eval()
    grads = []
    weights = torch.randn(2, 5)  # some classifiers start at zero, so the logits alone would have no gradient
    for module in (plain, net):
        plain.zero_grad()
        (compute_logits(module, x) * weights).sum().backward()
        grads.append({name: p.grad.clone() for name, p in plain.named_parameters() if p.grad is not None})
    plain.zero_grad()
    if grads[0].keys() != grads[1].keys():
        return math.nan
    scale = max(g.abs().max().item() for g in grads[0].values())
    return max(gap(grads[0][name], grads[1][name]) for name in grads[0]) / scale


def compare_bundle(net: xl.ExitNet, x: Inputs, backbone: nn.Module | None) -> float:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        back, _ = xl.load(xl.save(net, None, Path(folder) / "b"), backbone=backbone)
        return max(gap(a.logits, b.logits) for a, b in zip(net(x), back(x), strict=True))


def passes(row: Row) -> bool:
    if "error" in row:
        return False
    exact = (
        row["eval_gap"] == 0
        and row["train_gap"] <= TOLERANCE
        and row["gradient_gap"] <= TOLERANCE
        and row["buffer_gap"] <= TOLERANCE
    )
    return (
        exact
        and row["head_share"] <= 0.05
        and row["padding_attention"] == 0
        and all(row[name] for name in ("egt_step", "bundle", "export", "compile", "edge"))
    )
