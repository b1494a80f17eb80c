"""Copies of a network's graphs and heads in the formats that a tuning asks for."""

from __future__ import annotations

import copy

import torch
from torch import fx

from exitlens.model.engine.folding import fold
from exitlens.model.engine.padding import absorb
from exitlens.model.engine.tuning import Tuning
from exitlens.model.heads.exit_heads import EvidenceHead, ExitHead, KeptHead


def prepare_graph(body: fx.GraphModule, tuning: Tuning) -> fx.GraphModule:
    """A copy of an evaluation graph as the tuning wants it; the original is left as it is."""
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
    """A copy of a head for evaluation; heads stay in their own precision."""
    twin = copy.deepcopy(head).eval().requires_grad_(False)
    if isinstance(twin, KeptHead):
        twin.tail.replace_evaluation(prepare_graph(twin.tail.evaluation, tuning))
    if isinstance(twin, EvidenceHead) and twin.neck is not None:
        twin.neck.fuse()
    return twin
