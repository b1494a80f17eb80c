"""Losses of training: classification, self-distillation, and the consistency of maps (Explanation-Guided Training)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional import maps as measures
from exitlens.functional.answers import answer_loss, forecast_loss
from exitlens.functional.schedules import ramp
from exitlens.functional.scores import score
from exitlens.types import ExitOutput, LossTerms
from exitlens.types.settings import COUNT, NOT_NEGATIVE, POSITIVE, NumberRule, check_choice, check_numbers
from exitlens.types.tasks import ANSWERS, BY_LABELS, CONTINUOUS, IGNORE, USUAL_SCORES, Task, check_truth, find_answers


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    sample_weights: Tensor | None = None,
) -> Tensor:  # (B,C), (B,) or (B,C), weights (B,) -> ()
    """Return the mean cross-entropy, or, for labels ``(B,C)`` of 0 and 1, binary cross-entropy (see :class:`EGTLoss`).

    Of labels ``(B,H,W)``, for logits ``(B,C,H,W)``, the mean is over all pixels of the batch that have a class.
    """
    logits = logits.float()
    weights = None if class_weights is None else torch.tensor(class_weights, device=logits.device)
    if labels.ndim == 3:
        if sample_weights is not None:
            raise InputError("sample_weights: they are not for one class a pixel. Fix: leave them out")
        labels, known = labels.long(), labels != IGNORE  # they may be bytes
        each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing, ignore_index=IGNORE)
        each = each if weights is None else each * weights[torch.where(known, labels, 0)]
        return each.sum() / known.sum().clamp_min(1)
    if labels.ndim == 2:
        target = labels.float() * (1 - label_smoothing) + label_smoothing / 2
        if sample_weights is None:
            return F.binary_cross_entropy_with_logits(logits, target, weight=weights)
        each = F.binary_cross_entropy_with_logits(logits, target, weight=weights, reduction="none").mean(1)
        return (each * sample_weights).mean()
    if weights is None and sample_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    each = each if weights is None else each * weights[labels]
    return (each if sample_weights is None else each * sample_weights).mean()


def sample_losses(logits: Tensor, labels: Tensor) -> Tensor:  # (B,C), (B,) or (B,C) -> (B,)
    """Return each sample's cross-entropy, or of several labels the mean of its binary cross-entropies."""
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(1)
    return F.cross_entropy(logits.float(), labels.long(), reduction="none")


def generalised_cross_entropy(logits: Tensor, labels: Tensor, power: float = 0.7) -> Tensor:  # -> ()
    """Return the mean of ``(1 - p^q) / q``, where ``p`` is the probability of the truth and ``q`` the ``power`` in (0, 1].

    It is arXiv 1805.07836, eq. 6: near cross-entropy for small ``q``, and 1 - p for ``q = 1``. Samples that the network
    gets wrong have small gradients, so that it learns what is easy and leaves the rest. Of several labels ``(B,C)``, the
    mean is over the labels, too, each with the probability of its truth (our extension).
    """
    logits = logits.float()
    if labels.ndim == 2:
        log_truth = F.logsigmoid(torch.where(labels.bool(), logits, -logits))
    else:
        log_truth = -F.cross_entropy(logits, labels.long(), reduction="none")
    return ((1 - (power * log_truth).exp()) / power).mean()


def weigh_difficulty(losses: Tensor, easy_losses: Tensor, strength: float = 1.0) -> Tensor:  # (K,B), (B,) -> (K,B)
    """Return weights of samples by their relative difficulty, as Learning from Failure has them (arXiv 2007.02561, eq. 4).

    ``w = CE_easy / (CE_easy + CE_k)``: samples that an expert in easy cues gets wrong count more. We scale the weights of
    each exit to mean 1 over the samples, and mix them with 1 by the ``strength`` in [0, 1].
    """
    easy = easy_losses.detach().float().clamp_min(measures.EPS)
    difficulty = easy / (easy + losses.detach().float())
    relative = difficulty / difficulty.mean(1, keepdim=True)
    return 1 + strength * (relative - 1)


def weigh_by_routing(
    logits: Sequence[Tensor], strength: float = 1.0, several: bool = False
) -> Tensor:  # (B,C) each -> (K,B)
    """Return weights of samples at each exit: those that an earlier exit would answer count less.

    Every exit answers as many samples of the batch: of those that come to it, its surest (by largest probability, or of
    ``several`` labels by the least decided one), so that thresholds move with training. Those that come to an exit weigh the
    same, the others nothing; weights have mean 1, and are mixed with 1 by the ``strength`` in [0, 1].

    Deep exits thus learn what early ones leave to them. BoostNet (arXiv 2211.16726) adds the earlier exits' logits for that,
    and L2W-DEN (arXiv 2209.08310) learns the weights by a second network; we do neither.
    """
    count, exits, kind = len(logits[0]), len(logits), USUAL_SCORES["multilabel" if several else "classes"]
    comes, weights = logits[0].new_ones(count, dtype=torch.float32), list[Tensor]()
    for k, each in enumerate(logits):
        weights.append(1 + strength * (comes / comes.mean() - 1))
        unsure = score(each.detach(), kind).masked_fill(comes == 0, math.inf).argsort(stable=True)
        comes = torch.zeros_like(comes).index_fill(0, unsure[: max(1, round(count * (exits - 1 - k) / exits))], 1.0)
    return torch.stack(weights)


def distillation_loss(outputs: Sequence[ExitOutput], temperature: float = 2.0, several: bool = False) -> Tensor:
    """``T^2/(K-1) sum_k KL(softmax(final/T) ‖ softmax(exit k/T))``, final detached; of ``several`` labels by sigmoids."""
    if len(outputs) < 2:
        return outputs[0].logits.new_zeros(())
    *students, teacher = (out.logits.float() / temperature for out in outputs)
    if several:
        target = teacher.detach().sigmoid()
        least = F.binary_cross_entropy_with_logits(teacher.detach(), target)
        terms = [F.binary_cross_entropy_with_logits(student, target) - least for student in students]
    else:
        target = teacher.detach().softmax(1)
        terms = [F.kl_div(student.log_softmax(1), target, reduction="none").sum(1).mean() for student in students]
    return temperature**2 * torch.stack(terms).mean()


Of = Literal["attention", "evidence", "activation"]
Distance = Literal["kl", "js", "cosine", "pearson", "mse"]
Target = Literal["attention", "mean", "relevance", "product"]
Reach = Literal["heads", "network"]
EARLY_WEIGHT = 0.25
_NUMBERS = {
    "weight": NOT_NEGATIVE,
    "distill": NOT_NEGATIVE,
    **dict.fromkeys(("ramp_share", "routed"), NumberRule("a share in [0, 1]", lambda value: 0 <= value <= 1)),
    "label_smoothing": NumberRule("a share in [0, 1)", lambda value: 0 <= value < 1),
    "sharpness": POSITIVE,
    "spread": NumberRule("a share in [0, 1)", lambda value: 0 <= value < 1),
    "every": COUNT,
}
FLOOR = 0.2  # least perplexity of targets, as a share of the locations
FLOOR_AFTER = 10  # epochs without a floor; it rises over as many
SHARPNESS, SHARPNESS_OF_TEXTS = 1.03, 0.5  # of means of maps; of products for texts


def consistency_loss(
    targets: Sequence[Tensor], maps: Sequence[Tensor], distance: Distance, signed: bool = False
) -> Tensor:  # (B,*S) each -> ()
    """Return the mean distance of maps from their targets, each pair on the coarser grid; ``kl`` is KL(target ‖ map).

    The final map, which comes last, may have no target. Maps that are ``signed`` (evidence) are not distributions.
    """
    if not targets:
        return maps[0].new_zeros(())
    pairs = zip(targets, maps, strict=False)
    return torch.stack([_distance(target, exit_map, distance, signed).mean() for target, exit_map in pairs]).mean()


def _distance(target: Tensor, exit_map: Tensor, distance: Distance, signed: bool) -> Tensor:  # -> (B,)
    if signed:
        size = tuple(min(m, n) for m, n in zip(target.shape[1:], exit_map.shape[1:], strict=True))
        target, exit_map = measures.regrid(target, size), measures.regrid(exit_map, size)
    else:
        target, exit_map = measures.on_common_grid(target, exit_map)
    if distance == "mse":
        return (target - exit_map).square().flatten(1).sum(1)
    if distance in ("kl", "js"):
        return (measures.kl if distance == "kl" else measures.divergence)(target, exit_map)
    return 1 - (measures.cosine if distance == "cosine" else measures.pearson)(target, exit_map)


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Raise :class:`InputError` unless labels fit logits ``(B,C)`` or ``(B,C,H,W)``."""
    batch, classes, *size = logits.shape
    check_truth(labels, batch, classes, "segmentation" if size else "classes" if labels.ndim == 3 else None)
    if size and list(labels.shape[1:]) != size:
        raise InputError(f"labels: expected {(batch, *size)}, of the size of the images, got {tuple(labels.shape)}")


@dataclass(frozen=True)
class EGTLoss:
    """Explanation-Guided Training: cross-entropy at every exit plus attention consistency with the final exit.

    ``L = (1/K) sum_k w_k CE_k + weight * ramp(t) * 1/(K-1) sum_k D(stop_gradient(M_final), M_k)``, as arXiv 2601.08891.
    The paper's distance is ``distance="cosine"``; we default to the Jensen-Shannon divergence, always detach the final
    map, and raise the weight over the whole training, so that the exits do not follow a map that is still random.

    With one class a pixel, labels are ``(B,H,W)``, and cross-entropy is the mean over pixels. The maps of an image are those
    of the classes that its label has: the softmax over locations of a class's logits. This is channel-wise distillation
    (arXiv 2011.13256) between exits of one network, with its temperature at 1, our distance, and the classes of the label
    only, because the maps of absent ones say little.

    Of numbers and vectors, the classification term is :func:`~exitlens.functional.answers.answer_loss` at every exit; the
    vectors of the final exit, which is not trained, are the targets of the others. The total also has
    :func:`~exitlens.functional.answers.forecast_loss`, which trains nothing but what exits expect of themselves.

    Args:
        weight: of the consistency term, 0 or more; 0 trains the exits jointly without it.
        of: ``attention``, ``evidence`` (of the true class, or the mean of the true labels) or ``activation`` (channel
            energy; needs ``features``).
        distance: ``kl``, ``js``, ``cosine``, ``pearson`` or ``mse``.
        target: map that the exits' maps are pulled towards. The default suits the network in :func:`exitlens.fit`
            (:meth:`for_network`), and is ``attention`` elsewhere. ``attention`` pulls the early exits' maps towards the
            final exit's (the paper). The others pull the maps of all exits: ``mean`` towards their geometric mean;
            ``relevance`` towards the locations of exit 0's features (of tokens, before any attention) that speak for the
            final exit's answer, to first order; ``product`` towards that times the attention of exit 0.
        reach: part that the consistency of attention maps trains. ``heads``, the default in :func:`exitlens.fit`, trains the
            exits' heads only, which needs maps without gradients into the backbone: ``net(x, separate_maps=True)``.
            ``network`` trains all of it (the paper, and the default elsewhere).
        sharpness: power of targets other than ``attention``. For ``mean`` 1.03 by default, for ``product`` of texts 0.5, so
            that more words are read; else 1.
        spread: least perplexity of targets other than ``attention``, as a share of the locations: sharper ones are flattened
            to it. By default it is 0 for the first ten epochs of :func:`exitlens.fit` and rises to 0.2 in the next ten,
            because maps that follow ``mean`` or ``product`` would go on shrinking until a single cell is left (``relevance``
            is rarely below it). 0 lets them (docs/measured/truth.md).
        exit_weights: ``w_k``, K non-negative numbers; by default 0.25 for the early exits and 1 for the final one.
        ramp_share: the share of training over which the weight grows from 0.
        every: compare maps in one of this many steps only, with this many times the weight (:meth:`at`; used by
            ``fit``). The default is 2 for images and targets made of relevance, which costs a backward pass, else 1.
        distill: weight of the distillation of logits from the final exit (arXiv 1905.08094), with the same ramp; of numbers
            :func:`~exitlens.functional.answers.answer_loss` with the final exit's as targets.
        label_smoothing: share in [0, 1) of every label that is spread evenly over all classes (arXiv 1512.00567), or with
            several labels over yes and no.
        class_weights: C positive numbers, the weights of samples by their class, or of several labels' terms. The mean is
            over samples, not over weights as PyTorch's is, so that batches can be split and added. ``"balanced"`` is for
            :func:`exitlens.fit`, which counts one label a sample: N / (C * samples of the class).
        routed: share in [0, 1] of each exit's classification term that is about the samples that earlier exits leave to it,
            in the place of all (:func:`weigh_by_routing`); by default none. It is for classes or labels of whole samples.
        task: ``regression`` or ``embedding``, as :meth:`for_network` fills it in; else the labels tell.
    """

    weight: float = 1.0
    of: Of = "attention"
    distance: Distance = "js"
    target: Target | None = None
    reach: Reach | None = None
    sharpness: float | None = None
    spread: float | None = None
    exit_weights: tuple[float, ...] | None = None
    ramp_share: float = 1.0
    every: int | None = None
    distill: float = 0.0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    routed: float | None = None
    task: Task | None = None

    def __post_init__(self) -> None:
        check_choice("of", self.of, get_args(Of))
        check_choice("distance", self.distance, get_args(Distance))
        check_choice("target", self.target, (*get_args(Target), None))
        check_choice("reach", self.reach, (*get_args(Reach), None))
        check_choice("task", self.task, (*CONTINUOUS, None))
        if self.target not in ("attention", None) and self.of != "attention":
            raise InputError(f"target: {self.target!r} is for attention maps, got of={self.of!r}")
        if self.of == "evidence" and self.distance in ("kl", "js"):
            raise InputError(
                f"distance: {self.distance!r} compares distributions and evidence has negative values: use 'pearson', "
                "'cosine' or 'mse', or of='attention'"
            )
        check_numbers(self, _NUMBERS)
        for name in ("sharpness", "spread"):
            if getattr(self, name) is not None and self.target == "attention":
                raise InputError(f"{name}: it is for targets made of several maps or of relevance, got target='attention'")
        for name, expected in (
            ("exit_weights", "a number per exit, finite, 0 or more and not all 0"),
            ("class_weights", "'balanced', or a number per class, finite and above 0"),
        ):
            values = getattr(self, name)
            if values is None or (name == "class_weights" and isinstance(values, str) and values == "balanced"):
                continue
            try:
                weights = tuple(float(value) for value in values)
            except (TypeError, ValueError):
                weights = ()
            if not any(weights) or not all(0 <= w < math.inf for w in weights) or (name == "class_weights" and 0 in weights):
                raise InputError(f"{name}: expected {expected}, got {values!r:.60}")
            object.__setattr__(self, name, weights)

    @property
    def needs_relevance(self) -> bool:
        """True if it needs a relevance map."""
        return self.target in ("relevance", "product") and self.weight > 0

    def for_network(
        self, attends: bool, keeps_final: bool = False, of_images: bool = True, task: Task = "classes"
    ) -> EGTLoss:
        """Return the loss with defaults for a kind of network filled in: target, its sharpness, reach and ``every``.

        Convolutional networks get ``mean``. Networks that mix by attention (``attends``) get ``product``, because there
        attention by itself says little about where an answer comes from. If the final exit is the backbone's own classifier
        (``keeps_final``), its map is fixed and the others follow it; so do maps other than attention. Relevance for images
        (``of_images``) is asked every second step (docs/measured/truth.md compares). With one class a pixel (``task``),
        the maps follow the final exit's.
        """
        of_pixels = task == "segmentation"
        refused = {
            "of: 'evidence' is for classes or labels of whole samples": self.weight > 0 and self.of == "evidence",
            f"routed: {self.routed} is for classes or labels of whole samples": bool(self.routed),
            f"target: {self.target!r} is not for answers to each pixel, or vectors": self.needs_relevance
            and task in ("segmentation", "embedding"),
            "label_smoothing: it is for classes or labels": task in CONTINUOUS and self.label_smoothing > 0,
            "class_weights: they are for classes or labels": task in CONTINUOUS and self.class_weights is not None,
        }
        for wrong, is_asked in refused.items():
            if task not in BY_LABELS and is_asked:
                raise InputError(f"{wrong}, and this network answers {ANSWERS[task]}. Fix: leave it out")
        follows = self.of != "attention" or (keeps_final and not attends) or of_pixels
        target = self.target or ("attention" if follows else "product" if attends else "mean")
        usual = {"mean": SHARPNESS, "product": None if of_images else SHARPNESS_OF_TEXTS}.get(target)
        power = self.sharpness or (usual if self.weight > 0 else None)
        chosen = replace(self, target=target, reach=self.reach or "heads", sharpness=power)
        chosen = replace(chosen, task=task) if task in CONTINUOUS else chosen
        pauses = chosen.needs_relevance and of_images and type(self) is EGTLoss
        return replace(chosen, every=self.every or (2 if pauses else 1))

    def at(self, step: int, steps: int, epochs: int) -> tuple[EGTLoss, float]:
        """Return the loss of a step (from 0) of a training of so many ``steps`` and ``epochs``, and its progress in [0, 1).

        The loss has the ``spread`` of long trainings, where none was given, and ``every`` times the weight, or no
        consistency. The progress is what calling it takes.
        """
        loss, every, epoch = self, self.every or 1, step * epochs // steps
        share = min(1.0, max(0, epoch - FLOOR_AFTER) / FLOOR_AFTER)
        if share and self.spread is None and self.target not in ("attention", None):
            loss = replace(loss, spread=FLOOR * share)
        if every > 1:
            loss = replace(loss, weight=0.0 if step % every else self.weight * every, every=1)
        return loss, step / steps

    def ask(self, frozen: bool = False) -> dict[str, bool]:
        """Return what ``net.observe`` has to compute for it, by its arguments; ``frozen``: the backbone is not trained."""
        at_heads = self.reach == "heads" and self.of == "attention" and self.weight > 0  # where gradients of maps end
        separates = at_heads and not frozen  # else all gradients end at the heads anyway
        return {"separate_maps": separates, "features": self.of == "activation", "relevance": self.needs_relevance}

    def __call__(
        self,
        outputs: Sequence[ExitOutput],
        labels: Tensor,
        progress: float = 1.0,
        features: Sequence[Tensor] | None = None,
        relevance: Tensor | None = None,
        sample_weights: Tensor | None = None,
        teacher: Tensor | None = None,
    ) -> LossTerms:
        """Return the loss of one batch.

        Args:
            outputs: of every exit, final last.
            labels: ``(B,)`` integers in ``[0, C)``, or with several labels ``(B,C)`` of 0 and 1: the classification term is
                then the mean of the labels' binary cross-entropies; or ``(B,H,W)`` integers, 255 where a pixel has none.
                Of numbers ``(B,C)`` in spreads about their means, and of vectors anything with B rows.
            progress: share of training that is done, in [0, 1]; sets the ramp.
            features: ``(B,D,*S)`` of every exit (``net.observe``), for ``of="activation"``.
            relevance: ``(B,*S)`` signed (``net.observe``), for targets made of it.
            sample_weights: ``(K,B)``, of each sample in the classification term of each exit; by default 1.
            teacher: logits of another network for the same batch. Every exit then learns them as much as the labels: at
                temperature 2, ``T^2 KL(teacher ‖ exit)`` (Hinton et al. 2015, arXiv 1503.02531), weighted by
                ``exit_weights``. It counts as distillation, and is not ramped.
        """
        if self.task is None:
            check_labels(labels, outputs[0].logits)
        if self.of == "activation" and self.weight > 0 and (features is None or len(features) != len(outputs)):
            raise InputError("features: of='activation' needs every exit's features: net.observe(x, features=True).features")
        if self.needs_relevance and (relevance is None or len(relevance) != len(labels)):
            raise InputError(
                f"relevance: target={self.target!r} needs each sample's: net.observe(x, relevance=True).relevance"
            )
        labels = labels if labels.ndim == 2 or self.task is not None else labels.long()
        alpha = ramp(progress, self.ramp_share)
        if self.routed:
            weights = weigh_by_routing([out.logits for out in outputs], self.routed, several=labels.ndim == 2)
            sample_weights = weights if sample_weights is None else weights * sample_weights
        classification = self.classify(outputs, labels, sample_weights)
        consistency = distillation = classification.new_zeros(())
        maps = self._list_maps(outputs, labels, features) if self.weight > 0 else []
        if maps and len(maps[0]):  # with one class a pixel, no pixel may have any
            consistency = consistency_loss(self.make_targets(maps, relevance), maps, self.distance, self.of == "evidence")
        if self.distill > 0:
            distillation = self._distill(outputs, labels)
        total = classification + alpha * (self.weight * consistency + self.distill * distillation)
        if teacher is not None:
            taught = self._follow(outputs, teacher, labels.ndim == 2)
            total, distillation = total + taught, distillation + taught
        if self.task is not None:
            total = total + forecast_loss([out.logits for out in outputs], self._find_target(outputs, labels), self.task)
        return LossTerms(total, classification.detach(), consistency.detach(), distillation.detach())

    def _find_target(self, outputs: Sequence[ExitOutput], labels: Tensor) -> Tensor:
        """Return the targets of numbers, or the final exit's vectors."""
        return labels if self.task == "regression" else find_answers(outputs[-1].logits.detach().float(), "embedding")

    def _distill(self, outputs: Sequence[ExitOutput], labels: Tensor) -> Tensor:
        if self.task is None:
            return distillation_loss(outputs, several=labels.ndim == 2)
        *early, final = (out.logits for out in outputs)
        teacher = find_answers(final.detach(), self.task)
        return (
            torch.stack([answer_loss(logits, teacher, self.task) for logits in early]).mean() if early else final.sum() * 0
        )

    def _follow(self, outputs: Sequence[ExitOutput], teacher: Tensor, several: bool) -> Tensor:
        """Return the weighted mean of the exits' divergences from a teacher's answers."""
        shape = outputs[-1].logits.shape
        if self.task is not None or teacher.shape != shape:
            raise InputError(
                f"teacher: expected logits of classes, {tuple(shape)} as the exits', got {tuple(teacher.shape)}. "
                f"Fix: {'leave it out for numbers and vectors' if self.task else 'pass its answers to the same batch'}."
            )
        pairs = [(out, out._replace(logits=teacher)) for out in outputs]
        terms = [distillation_loss(pair, several=several) for pair in pairs]
        return torch.stack([w * term for w, term in zip(self._weigh_exits(len(outputs)), terms, strict=True)]).mean()

    def _weigh_exits(self, exits: int) -> tuple[float, ...]:
        return self.exit_weights or (EARLY_WEIGHT,) * (exits - 1) + (1.0,)

    def _list_maps(self, outputs: Sequence[ExitOutput], labels: Tensor, features: Sequence[Tensor] | None) -> list[Tensor]:
        """Return the maps of every exit, ``(B,*S)``; with one class a pixel ``(P,h,w)``, those of the labels' classes."""
        if self.of == "activation":
            return [measures.energy(f) for f in features or ()]
        if labels.ndim == 3 and self.task is None:
            present = measures.present_classes(labels, outputs[0].logits.shape[1])
            return [measures.class_maps(out.evidence)[present] for out in outputs]
        if self.of == "attention":
            return [out.attention.float() for out in outputs]
        choose = measures.class_evidence if labels.ndim == 1 else measures.label_evidence
        return [choose(out.evidence.float(), labels) for out in outputs]

    def classify(self, outputs: Sequence[ExitOutput], labels: Tensor, sample_weights: Tensor | None = None) -> Tensor:
        """Return the classification term: the weighted mean of the exits' cross-entropies."""
        self.check_size(len(outputs), outputs[0].logits.shape[1])
        weights = self._weigh_exits(len(outputs))
        if self.task is not None:
            target = self._find_target(outputs, labels)
            pairs = zip(weights, outputs, strict=True)
            return torch.stack([w * answer_loss(out.logits, target, self.task) for w, out in pairs]).mean()
        options = self.label_smoothing, None if self.class_weights == "balanced" else self.class_weights
        samples = [None] * len(outputs) if sample_weights is None else list(sample_weights)
        exits = zip(weights, outputs, samples, strict=True)
        terms = [w * classification_loss(out.logits, labels, *options, each) for w, out, each in exits]
        return torch.stack(terms).mean()

    def check_size(self, exits: int, classes: int) -> None:
        """Raise :class:`InputError` if weights of exits or classes are not as many as these."""
        weights = self.class_weights
        if weights is not None and (isinstance(weights, str) or len(weights) != classes):
            raise InputError(f"class_weights: expected {classes} numbers, one per class, got {weights!r:.60}")
        if self.exit_weights is not None and len(self.exit_weights) != exits:
            raise InputError(f"exit_weights: expected {exits} numbers, one per exit, got {self.exit_weights}")

    def make_targets(self, maps: Sequence[Tensor], relevance: Tensor | None) -> list[Tensor]:
        """Return the detached target of each map: of the early ones, and of the final one if it is pulled, too."""
        if self.target == "mean":
            return [self._flatten(measures.geometric_mean(maps, self.sharpness or SHARPNESS))] * len(maps)
        if relevance is None or not self.needs_relevance:
            return [maps[-1].detach()] * (len(maps) - 1)
        given = relevance, maps[0], self.target == "product", self.sharpness or 1.0
        targets = {size: self._flatten(measures.mix_target(*given, size)) for size in {each.shape[1:] for each in maps}}
        return [targets[each.shape[1:]] for each in maps]

    def _flatten(self, target: Tensor) -> Tensor:
        return measures.keep_spread(target, self.spread) if self.spread else target
