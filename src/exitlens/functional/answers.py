"""Answers that are numbers or vectors: units, distances, the loss of training, and what a trace keeps of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.types.tasks import Task, read_answers, split_answers
from exitlens.types.traces import AnswerSummary

Units = tuple[tuple[float, float], ...]  # for each number its mean and its spread (standard deviation) in the training data
UNKNOWN = 1e4  # distance of exit 0's answer from that of an exit before, so that its stability is 0
NEAREST = 10  # probes that are compared
RECOGNISED = 8  # numbers of a vector that a trace keeps
LEAST = 1e-4  # distances below it count as this, before logarithms
ROUNDING = 8 * torch.finfo(torch.float64).eps  # spreads of less, relative to the mean, are of numbers that do not vary
FAR = 3  # spreads between means, or times a spread: units that differ by more are of other targets
PRECISE = 1 << 10  # spreads from 0 to the mean, beyond which float32 rounds away ten thousandths of a spread


def measure_units(targets: Tensor) -> Units:  # (N,) or (N,C)
    """Return mean and standard deviation of every number; a spread of 1 for numbers that do not vary."""
    columns = targets.double().view(len(targets), -1)
    spread, mean = torch.std_mean(columns, 0, correction=0)
    return tuple(zip(mean.tolist(), torch.where(spread > ROUNDING * mean.abs(), spread, 1.0).tolist(), strict=True))


def are_far(units: Units, others: Units) -> bool:
    """Return whether units are of targets on so different scales that those of one do not serve for the other."""
    pairs = list(zip(units, others, strict=True))
    return any(abs(m - mean) > FAR * max(s, spread) or not 1 / FAR <= s / spread <= FAR for (m, s), (mean, spread) in pairs)


def standardise(targets: Tensor, units: Units) -> Tensor:  # (B,) or (B,C) -> (B,C) float32
    """Return numbers as networks give them: less their means, in spreads."""
    mean, spread = targets.new_tensor(units or ((0.0, 1.0),), dtype=torch.float64).T
    scaled: Tensor = (targets.view(len(targets), -1) - mean) / spread
    return scaled.float()


def need_double(units: Units) -> bool:
    """Return whether float32 would round away what differs between numbers in these units."""
    return any(abs(mean) > PRECISE * spread for mean, spread in units)


def restore_units(numbers: Tensor, units: Units) -> Tensor:  # (...,C) -> (...,C)
    """Return numbers in the data's units, the inverse of :func:`standardise`: float64 where float32 would round them."""
    dtype = torch.float64 if need_double(units) else numbers.dtype
    mean, spread = numbers.new_tensor(units or ((0.0, 1.0),), dtype=dtype).T
    restored: Tensor = numbers.to(dtype) * spread + mean
    return restored


def tell_answers(p: Tensor, task: Task, units: Units) -> Tensor:  # (B,C) -> (B,), (B,C) or (B,H,W)
    """Return the answers of :func:`~exitlens.types.tasks.read_answers` as people get them: numbers in the data's units."""
    answers = read_answers(p, task)
    if task != "regression":
        return answers
    numbers = restore_units(answers, units)
    return numbers[:, 0] if numbers.shape[1] == 1 else numbers


def measure_distance(answers: Tensor, others: Tensor, task: Task) -> Tensor:  # (...,C) each -> (...)
    """Return the mean absolute difference of numbers, or 1 - cosine of vectors, in [0, 2]."""
    if task == "regression":
        return (answers - others).abs().mean(-1)
    return (1 - F.cosine_similarity(answers, others, dim=-1)).clamp_min(0)


def compare_with(p: Tensor, previous: Tensor | None, task: Task) -> Tensor:  # (B,C+1) each -> (B,C+1)
    """Put the distance from the answer of the exit before in place of the expected error, for the scores of stability."""
    answers = split_answers(p)[0]
    distance = (
        answers.new_full(answers.shape[:-1], UNKNOWN)
        if previous is None
        else measure_distance(answers, split_answers(previous)[0], task)
    )
    return torch.cat([answers, distance[..., None]], -1)


def share_nearest(vectors: Tensor, others: Tensor, probes: Tensor) -> Tensor:  # (B,D) each, (P,D) -> (B,)
    """Return the share of the nearest probes of vectors, by cosine, that are the nearest of others, too."""
    count, scaled = min(NEAREST, len(probes)), F.normalize(probes, dim=1).T
    first, second = (torch.topk(rows @ scaled, count, 1).indices for rows in (vectors, others))
    return (first[:, :, None] == second[:, None]).any(2).float().mean(1)


def answer_loss(logits: Tensor, target: Tensor, task: Task) -> Tensor:  # (B,C+1), (B,C) -> ()
    """Return the loss of an exit's answers against standardised targets, or the final exit's vectors.

    For numbers it is the smooth L1 loss (arXiv 1504.08083): squared up to one spread, and linear beyond, so that few odd
    targets do not decide. For vectors it is the mean of 1 - cosine, plus that of the squared difference of all similarities
    within the batch, which keeps the order of neighbours (similarity-preserving distillation, arXiv 1907.09682, on cosines).
    """
    answers = split_answers(logits.float())[0]
    if task == "regression":
        return F.smooth_l1_loss(answers, target)
    early, final = F.normalize(answers, dim=1), F.normalize(target, dim=1)
    return (1 - (early * final).sum(1)).mean() + (early @ early.T - final @ final.T).square().mean()


def forecast_loss(outputs: Sequence[Tensor], target: Tensor, task: Task) -> Tensor:  # (B,C+1) by exit, (B,C) -> ()
    """Return the mean squared error of the logarithms of the errors that exits expect of themselves.

    The kept final exit of a network that answers vectors expects none.
    """
    terms = [target.new_zeros(())]
    for logits in outputs[:-1] if task == "embedding" else outputs:
        answers, expected = split_answers(logits.float())
        error = measure_distance(answers.detach(), target, task)
        terms.append((expected.log() - error.clamp_min(LEAST).log()).square().mean())
    return torch.stack(terms).sum() / max(1, len(terms) - 1)


def rate_answers(logits: Tensor, target: Tensor, task: Task) -> Tensor:  # (B,C+1), (B,C) -> ()
    """Return a sum over samples that grows with quality: of 1 - squared error (in spreads), or of the cosine."""
    answers = split_answers(logits.float())[0]
    if task == "regression":
        return (1 - (answers - target).square().mean(1)).sum()
    return (1 - measure_distance(answers, target, task)).sum()


def summarise(
    outputs: Sequence[Tensor], task: Task, units: Units, targets: Tensor | None = None, probes: Tensor | None = None
) -> AnswerSummary:
    """Return what a trace keeps of every exit's logits ``(B,C+1)``; ``targets`` are in the data's units."""
    answers = torch.stack([split_answers(logits.float())[0] for logits in outputs], 1)  # (B,K,C)
    expected = torch.stack([split_answers(logits.float())[1] for logits in outputs], 1)
    final, change = answers[:, -1:], torch.full_like(expected, UNKNOWN)
    change[:, 1:] = measure_distance(answers[:, 1:], answers[:, :-1], task)
    change[:, -1] = 0.0  # the final exit always answers
    wanted = None if targets is None else standardise(targets, units)[:, None].expand_as(answers)
    distance, nearest = measure_distance(answers, final, task), None
    distance[:, -1] = 0.0
    if probes is not None:
        nearest = torch.stack([share_nearest(each, final[:, 0], probes) for each in answers.unbind(1)], 1)
    return AnswerSummary(
        values=restore_units(answers, units) if task == "regression" else answers[..., :RECOGNISED].contiguous(),
        scores=torch.stack([(-expected).exp(), (-change).exp()], -1),
        distance=distance,
        error=None if wanted is None else measure_distance(answers, wanted, task),
        overlap=nearest,
    )
