"""Tasks: a network answers one class a sample, any number of labels, one class for each pixel, numbers or a vector."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.types.inputs import check_labels
from exitlens.types.settings import (
    ALL_SCORES,
    DECIDED,
    NUMBER_SCORES,
    PIXEL_SCORES,
    SCORES,
    VECTOR_SCORES,
    check_choice,
)

Task = Literal["classes", "multilabel", "segmentation", "regression", "embedding"]
TASKS: tuple[Task, ...] = get_args(Task)
SCORES_OF: Mapping[Task, tuple[str, ...]] = {
    "classes": SCORES,
    "multilabel": (DECIDED,),
    "segmentation": PIXEL_SCORES,
    "regression": NUMBER_SCORES,
    "embedding": VECTOR_SCORES,
}
USUAL_SCORES: Mapping[Task, str] = {task: scores[0] for task, scores in SCORES_OF.items()}
ANSWERS: Mapping[Task, str] = {
    "classes": "one class a sample",
    "multilabel": "several labels a sample",
    "segmentation": "one class a pixel",
    "regression": "numbers",
    "embedding": "vectors",
}
BY_LABELS: tuple[Task, ...] = ("classes", "multilabel")  # told apart by the labels of training; the others are attached
WITH_CLASSES: tuple[Task, ...] = (*BY_LABELS, "segmentation")
CONTINUOUS: tuple[Task, ...] = ("regression", "embedding")  # their logits end with an expected error: split_answers
GUIDES: Mapping[Task, str] = {"segmentation": "segmentation", "regression": "vectors", "embedding": "vectors"}
BACKGROUND = "background"  # name of a class of the pixels that no other has
IGNORE = 255  # label of a pixel that counts nowhere, as in PASCAL VOC and Cityscapes


def task_of_score(score: str) -> Task:
    """Return the task of networks that are routed by this score."""
    return next((task for task, scores in SCORES_OF.items() if score in scores), "classes")


def task_of_labels(labels: Tensor) -> Task:
    """Return the task of labels: ``(N,)`` are classes, ``(N,C)`` several labels, ``(N,H,W)`` the classes of pixels."""
    return "segmentation" if labels.ndim == 3 else "multilabel" if labels.ndim == 2 else "classes"


def refuse_task(task: Task, what: str, known: Collection[Task] = BY_LABELS) -> None:
    """Raise :class:`InputError`, which begins with ``what`` there is not, for a network of a task that is not ``known``."""
    if task not in known:
        raise InputError(
            f"{what} is not there yet for networks that answer {ANSWERS[task]}. Fix: see docs/guides/{GUIDES[task]}.md."
        )


def count_answers(task: Task, count: int) -> str:
    """Return in words how many classes, numbers or dimensions answers have."""
    counted = {"multilabel": f"{count} labels, any number to a sample", "segmentation": f"{count} classes of pixels"}
    counted |= {"regression": f"{count} number{'' if count == 1 else 's'}", "embedding": f"vectors of {count}"}
    return counted.get(task, f"{count} classes")


def split_answers(logits: Tensor) -> tuple[Tensor, Tensor]:  # (...,C+1) -> (...,C), (...)
    """Return numbers or vectors, and the error that the head expects of them, which comes after them."""
    return logits[..., :-1], logits[..., -1]


def choose_score(score: str | None, task: Task) -> str:
    """Return the score, or the task's usual one; raise :class:`InputError` for a score of another task."""
    if score is None:
        return USUAL_SCORES[task]
    check_choice("score", score, ALL_SCORES)
    if task_of_score(score) != task:
        raise InputError(f"score: expected one of {SCORES_OF[task]} for {ANSWERS[task]}, got {score!r}: leave it out")
    return score


def find_class_axis(task: Task) -> int:
    """Return the axis of classes in logits, counted from the end: ``(...,C)``, and of pixels ``(...,C,H,W)``."""
    return -3 if task == "segmentation" else -1


def _find_largest(values: Tensor, task: Task) -> Tensor:
    # along the classes of pixels, argmax takes four times as long as max, which gives the first of equals, too
    return values.max(-3).indices if task == "segmentation" else values.argmax(-1)


def find_answers(logits: Tensor, task: Task) -> Tensor:  # (...,C) -> (...) int64, or (...,C) bool
    """Return the largest logit's class (of pixels, ``(...,C,H,W) -> (...,H,W)``); with several labels those of 0 or more.

    That is a probability of 1/2 or more, at any temperature. Numbers and vectors are answers as they are.
    """
    if task in CONTINUOUS:
        return split_answers(logits)[0]
    return logits >= 0 if task == "multilabel" else _find_largest(logits, task)


def read_answers(p: Tensor, task: Task) -> Tensor:  # (...,C) -> (...) int64, or (...,C) bool
    """Return the answers of :func:`find_answers`, from probabilities."""
    if task in CONTINUOUS:
        return split_answers(p)[0]
    return p >= 0.5 if task == "multilabel" else _find_largest(p, task)


def are_same(answers: Tensor, others: Tensor, task: Task) -> Tensor:  # -> (...) bool
    """Return whether two answers, or an answer and the truth, are the same in all labels or pixels."""
    is_same = answers == others
    return is_same.all(-1) if task == "multilabel" else is_same.flatten(-2).all(-1) if task == "segmentation" else is_same


def name_labels(present: Tensor, classes: tuple[str, ...], separator: str = ";") -> str:  # (C,) bool
    """Join the names of a sample's labels, or their numbers if the network knows no names."""
    return separator.join(classes[c] if classes else str(c) for c in present.nonzero().flatten().tolist())


def name_answers(answers: Tensor, classes: tuple[str, ...]) -> list[str]:  # (B,), (B,C) bool or (B,H,W)
    """Return each sample's answer in words: of several labels, or of classes of pixels, all that there are, by ``;``."""
    if answers.is_floating_point():
        digits = 12 if answers.dtype is torch.float64 else 6
        return [" ".join(f"{value:.{digits}g}" for value in row) for row in answers.reshape(len(answers), -1).tolist()]
    if answers.ndim == 3:
        present = [[c for c in each.unique().tolist() if c != IGNORE] for each in answers]
        return [";".join(classes[c] if classes else str(c) for c in labels) for labels in present]
    if answers.ndim == 2:
        return [name_labels(present, classes) for present in answers]
    return [classes[i] if classes else str(i) for i in answers.tolist()]


def check_vectors(vectors: Tensor, name: str) -> None:  # (...,D)
    """Raise :class:`InputError` unless every vector has a direction: finite numbers that are not all 0."""
    is_odd = ~vectors.isfinite().all(-1) | (vectors == 0).all(-1)
    if is_odd.any():
        wanted = "finite numbers that are not all 0 in every vector"
        raise InputError(f"{name}: expected {wanted}, got {int(is_odd.sum())} without. Fix: leave these out.")


def check_truth(labels: Tensor, batch: int, classes: int, task: Task | None = None, name: str = "labels") -> None:
    """Raise :class:`InputError` unless labels are of the task, by default of any that labels tell.

    They are ``(B,)`` integers in ``[0, C)``, ``(B,C)`` of 0 and 1, ``(B,H,W)`` integers in ``[0, C)`` or :data:`IGNORE`, or
    for ``regression`` ``(B,C)`` finite floats (of one number ``(B,)``, too).
    Values are checked on the CPU only: elsewhere every step would wait for the device.
    """
    if task == "regression":
        _check_numbers(labels, batch, classes, name)
        return
    given = task_of_labels(labels)
    shapes = {"multilabel": f"({batch},{classes}) of 0 and 1", "segmentation": f"({batch},H,W) integers"}
    if task is not None and given != task:
        fix = f", or say what it answers: net.describe(task='{given}') and train it"
        raise InputError(
            f"{name}: this network answers {ANSWERS[task]}: expected {shapes.get(task, f'({batch},) integers')}, got "
            f"{tuple(labels.shape)}: give labels of its own kind{'' if 'segmentation' in (task, given) else fix}"
        )
    if given == "classes":
        check_labels(labels, batch, classes, name)
    elif given == "segmentation":
        _check_pixels(labels, batch, classes, name)
    else:
        _check_several(labels, batch, classes, task, name)


def _check_pixels(labels: Tensor, batch: int, classes: int, name: str) -> None:
    if len(labels) != batch or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"{name}: expected ({batch},H,W) integers, got {tuple(labels.shape)} {labels.dtype}")
    if classes > IGNORE:
        raise InputError(f"{name}: expected at most {IGNORE} classes of pixels, because {IGNORE} means none, got {classes}")
    if labels.device.type == "cpu":
        odd = labels[(labels < 0) | ((labels >= classes) & (labels != IGNORE))]
        if len(odd):
            known = f"classes in [0, {classes}), or {IGNORE} where a pixel has none"
            raise InputError(f"{name}: expected {known}, got {odd[0].item()} among them")


def _check_numbers(labels: Tensor, batch: int, classes: int, name: str) -> None:
    has_shape = labels.shape == (batch, classes) or (classes == 1 and labels.shape == (batch,))
    if not has_shape or not labels.is_floating_point():
        raise InputError(f"{name}: expected ({batch},{classes}) floats, got {tuple(labels.shape)} {labels.dtype}")
    if labels.device.type == "cpu" and not labels.isfinite().all():
        raise InputError(f"{name}: expected finite numbers, got NaN or Inf: leave these samples out")


def _check_several(labels: Tensor, batch: int, classes: int, task: Task | None, name: str) -> None:
    if labels.shape != (batch, classes) or labels.is_floating_point() or labels.is_complex():
        either = "" if task == "multilabel" else f"({batch},) integers, or with several labels "
        got = f"{tuple(labels.shape)} {labels.dtype}"
        raise InputError(f"{name}: expected {either}({batch},{classes}) integers or bool, got {got}")
    if labels.device.type == "cpu" and labels.dtype != torch.bool:
        odd = labels[(labels != 0) & (labels != 1)]
        if len(odd):
            raise InputError(f"{name}: expected 0 and 1 (whether a sample has the label), got {odd[0].item()} among them")
