"""What ours and a static network are worth: accuracy on every test set, and agreement with the plain full network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import exitlens as xl
from benchmarks.static.candidates import Candidate
from benchmarks.static.distil import Teacher, make_loss
from benchmarks.truth.conditions import EGT, PLAIN
from benchmarks.truth.measure import train, watch
from benchmarks.truth.tasks import Task
from exitlens.data.splits import SampleSet

LIMIT = 0.003  # accuracy that routing may lose on validation data
FOLDS = 5  # of these: samples that did not choose the thresholds keep the limit, on average
BATCH = 250


class Adapted(NamedTuple):
    """Our network, the plain full one, and two policies, each the cheapest that keeps its limit on held-out validation data.

    Attributes:
        policy: loses at most :data:`LIMIT` against our own final exit.
        fast: loses at most :data:`LIMIT` against the full network; nothing where our final exit has lost that already.
        full_accuracy: of the full network, on validation data.
    """

    net: xl.ExitNet
    full: xl.ExitNet
    policy: xl.Policy
    fast: xl.Policy
    full_accuracy: float


def adapt(task: Task, seed: int, trained: Path) -> Adapted:
    """Trained networks (or trains them) with their policies."""
    net, _ = train(task, EGT, seed, trained / f"{EGT}-{seed}")
    full = find_full(task, seed, trained)
    trace = xl.collect(net, task.validation, batch_size=BATCH)
    own, theirs = (
        rate(answers, task.validation)["accuracy"] for answers in (answer_last(trace), answer(full, task.validation))
    )
    policy, fast = (
        xl.calibrate(trace, max_accuracy_drop=limit, folds=FOLDS) for limit in (LIMIT, max(LIMIT + own - theirs, 0.0))
    )
    return Adapted(net, full, policy, fast, theirs)


def find_full(task: Task, seed: int, trained: Path) -> xl.ExitNet:
    """The plain full network: the teacher."""
    return train(task, PLAIN, seed, trained / f"{PLAIN}-{seed}")[0]


def measure_adaptive(task: Task, seed: int, trained: Path) -> dict[str, Any]:
    """Ours by each of its policies, and the full network beside it."""
    net, full, policy, fast, full_accuracy = adapt(task, seed, trained)
    found: dict[str, Any] = {"limit": LIMIT, "cost": net.cost.tolist(), "tests": {}, "fast": {"tests": {}}}
    found["full"] = {"tests": {}, "validation": full_accuracy}
    for name, data in task.tests.items():
        reference, trace = answer(full, data), xl.collect(net, data, batch_size=BATCH)
        found["tests"][name] = _route(net, trace, policy, data, reference)
        found["fast"]["tests"][name] = _route(net, trace, fast, data, reference)
        found["full"]["tests"][name] = rate(reference, data, reference)
    return found


def _route(net: xl.ExitNet, trace: xl.Trace, policy: xl.Policy, data: SampleSet, reference: Tensor) -> dict[str, Any]:
    exits, answers = xl.route(trace, policy), trace.logits.argmax(2)  # (N,K)
    routed = answers.gather(1, exits[:, None])[:, 0]
    return rate(routed, data, reference) | {
        "cost": net.cost[exits].mean().item(),
        "exit_shares": (exits.bincount(minlength=net.num_exits) / len(exits)).tolist(),
        "agreement_with_own_final_exit": (routed == answers[:, -1]).double().mean().item(),
        "exit_accuracy": (answers == data.labels[:, None]).double().mean(0).tolist(),
    }


def measure_candidate(task: Task, candidate: Candidate, seed: int, trained: Path, folder: Path) -> dict[str, Any]:
    """Trains (or goes on training) a static network, distilled from the full one by the same recipe, and measures it."""
    full = find_full(task, seed, trained)
    net, teacher = candidate.build(task, seed), Teacher(full)
    how: dict[str, Any] = {"seed": seed, "resume": True, "progress": False, **task.how}
    loss, out = make_loss(teacher), folder / "fit"
    done = xl.fit(net, task.train, watch(task), loss=loss, augment=teacher, out_dir=out, **how)
    started = time.perf_counter()
    tests = {name: rate(answer(net, data), data, answer(full, data)) for name, data in task.tests.items()}
    return {
        "title": candidate.title,
        "epochs": len(done.history),
        "train_seconds": round(done.seconds),
        "cost": net.cost[-1].item() if candidate.family == "cut" else None,  # of others attach counts their own backbone
        "parameters": sum(p.numel() for p in net.parameters()),
        "validation": rate(answer(net, task.validation), task.validation)["accuracy"],
        "tests": tests,
        "measure_seconds": round(time.perf_counter() - started),
    }


def answer(net: xl.ExitNet, data: SampleSet) -> Tensor:  # -> (N,)
    """The labels that the final exit gives."""
    return answer_last(xl.collect(net, data, batch_size=BATCH))


def answer_last(trace: xl.Trace) -> Tensor:  # -> (N,)
    """The same from a trace."""
    assert isinstance(trace.logits, Tensor)
    return trace.logits[:, -1].argmax(1)


def rate(answers: Tensor, data: SampleSet, reference: Tensor | None = None) -> dict[str, float]:
    """Accuracy, and the share of samples answered as by ``reference`` ``(N,)``."""
    found = {"samples": len(answers), "accuracy": (answers == data.labels).double().mean().item()}
    if reference is not None:
        found["agreement"] = torch.eq(answers, reference).double().mean().item()
    return found
