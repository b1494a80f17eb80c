"""Training that binds (``fit(rely_on="map")``): a guide learns where to look, then the network answers from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from exitlens.errors import TrainingError
from exitlens.functional.losses import generalised_cross_entropy, sample_losses, weigh_difficulty
from exitlens.functional.maps import find_locations, geometric_mean, place, pool_moments
from exitlens.functional.schedules import ramp
from exitlens.modalities import IMAGE
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.network import ExitNet
from exitlens.ranks import ALONE, DistributedContext
from exitlens.types import ExitOutput
from exitlens.types.inputs import Inputs, count_rows, replace_rows, take_rows
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.distributed import SharedGradients
from exitlens.workflow.training.ignoring import SHARE, TRIES, exchange_background
from exitlens.workflow.training.optimizer import dump_slots, load_slots, make_optimizer, use_half_precision

GUIDE_SHARE = 1 / 3  # epochs of the guide, of those of the network
AREAS = 0.2, 0.4  # range of the share of the locations that a map's region has
WITHOUT_OUTLINE = 0.5  # share of the samples without an exact outline that are recomposed along a region
HIDDEN, LEARNING_RATE, WEIGHT_DECAY = 64, 5e-3, 0.01  # of the expert
RAMP, POWER = 0.1, 0.7  # share of training over which its weights grow, and the power of its loss
WITH_GUIDE = 0.5  # strength of the expert beside a guide, if all samples are recomposed along regions
MIXED = 0.5  # share of the backgrounds that are mixed of two
KNOWN = 0.5  # of the loss of a guide's mean answer: with less of it, the guide knows a sample's label
WHOLE = 0.6, 1.2  # weight of samples that stayed as they are, beside others: at exit 0 and at the final one
TINY = 1e-6  # probability
PREFIX = "expert."


@dataclass(eq=False)
class ShallowExpert:
    """A small head that learns what is easy, so that the network learns the rest; thrown away at the end of training.

    It reads the mean, standard deviation and maximum over locations of the backbone's features at exit 0, and learns by
    generalised cross-entropy what is easy there, wherever it lies: samples that it gets wrong count more at every exit
    (Learning from Failure, arXiv 2007.02561; there the expert is a second network). No gradient of it reaches the network.

    We deviate where we weigh by less than full strength. A guide's is 1 - 1/C with C classes (1/2 with several labels): if
    easy samples counted nothing, those that contradict a cue would be left, and it would tell what a sample is *not*; with
    a share of 1/C it tells nothing.
    """

    net: ExitNet
    settings: TrainingSettings
    ranks: DistributedContext = ALONE
    head: nn.Sequential = field(init=False)

    def __post_init__(self) -> None:
        net = self.net
        like = net.weight
        with switch_mode(net, False), torch.no_grad():
            shallow = net.observe(net.info.example(like)).shallow
        assert shallow is not None
        channels = shallow.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            layers = nn.LayerNorm(3 * channels), nn.Linear(3 * channels, HIDDEN), nn.ReLU()
            self.head = nn.Sequential(*layers, nn.Linear(HIDDEN, net.info.num_classes)).to(like.device)
        parameters = list(self.head.parameters())
        self.optimizer = make_optimizer([{"params": parameters, "lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}])
        self.gradients = SharedGradients(parameters, self.ranks)

    def weigh(
        self,
        outputs: Sequence[ExitOutput],
        shallow: Tensor,
        labels: Tensor,
        progress: float,
        share: float = 1.0,
        strength: float = 1.0,
        is_whole: Tensor | None = None,
    ) -> Tensor:
        """Return the weight of each sample at each exit, ``(K,B)``, and add to the gradients of the expert.

        Args:
            outputs: of every exit.
            shallow: ``(B,D,*S)``, the backbone's features at exit 0.
            labels: ``(B,)`` integers, or ``(B,C)`` of 0 and 1.
            progress: share of training that is done.
            share: the batch's share of the samples of this step.
            strength: how far samples are weighed, 0 (not) to 1.
            is_whole: ``(B,)`` ``bool``, the samples that a guide left as they are (:func:`weigh_whole`).
        """
        shallow = shallow.detach().float()
        real = find_locations(outputs[0].attention)
        real = real if real is not None and real.shape[1:] == shallow.shape[2:] else None
        guess = self.head(torch.cat(pool_moments(shallow, real), 1))
        if labels.ndim == 1:  # an expert that answers one class for all would not learn any more
            counts = labels.bincount(minlength=guess.shape[1]) + 1
            guess = guess - guess.mean(0) + (counts / counts.sum()).log()
        (generalised_cross_entropy(guess, labels, POWER) * share).backward()
        losses = torch.stack([sample_losses(out.logits.detach(), labels) for out in outputs])
        weights = weigh_difficulty(losses, sample_losses(guess.detach(), labels), strength * ramp(progress, RAMP))
        return weights if is_whole is None else weigh_whole(weights, is_whole)

    def step(self, rows: int) -> None:
        """Take a step along the mean gradient over the ``rows`` of all ranks."""
        self.gradients.average(rows)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def dump(self) -> dict[str, Tensor]:
        """Return head, optimiser and the places of the network's maps, which are those of its first weights, as tensors."""
        tensors = {f"{PREFIX}{name}": value.clone() for name, value in self.head.state_dict().items()}
        tensors[f"{PREFIX}offsets"] = torch.tensor(self.net.info.map_offsets, dtype=torch.float64)
        return tensors | dump_slots(self.optimizer, f"{PREFIX}optimizer")

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what :meth:`dump` returned."""
        held = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        if not held:
            raise TrainingError("resume: the checkpoint has no expert. Fix: start again in another out_dir (--out).")
        self.net.info = replace(self.net.info, map_offsets=tuple(map(tuple, held.pop("offsets").tolist())))
        self.head.load_state_dict({name: value for name, value in held.items() if not name.startswith("optimizer.")})
        load_slots(self.optimizer, held, "optimizer")


class Guide:
    """A trained network whose maps say what to rely on: all else comes from other samples, in a share of each batch.

    In images, objects are outlined by the colours on either side of the map, because a rim of the old background is enough
    to keep a cue. Where colours tell nothing, half as many are recomposed along the region at the map's top: it leaves
    traces at its border. Other inputs have no outlines, and a region of a few words or features may cut off what tells the
    class: half of the samples whose label the guide knows are recomposed, and of others none.
    """

    def __init__(self, net: ExitNet, half_precision: bool) -> None:
        self.net, self.half_precision = net.eval().requires_grad_(False), half_precision
        self.offsets = net.map_offsets

    def exchange(self, inputs: Inputs, labels: Tensor) -> tuple[Inputs, float, Tensor]:
        """Return a batch of which a share is recomposed along the mean of the exits' maps, and what its loss should know.

        The samples of the share take from one another, so that only they are looked at. The number, 0 to ``WITH_GUIDE``,
        tells how far to trust an expert. It is in proportion to the samples that may be recomposed along a region: outlines
        leave cues out without an expert, and where a guide knows nothing, what is easy may be all that tells the class. The
        tensor, ``(B,)`` ``bool``, tells which samples stayed whole.
        """
        count = count_rows(inputs)
        is_whole = torch.ones(count, dtype=torch.bool, device=labels.device)
        if count < 2:
            return inputs, 0.0, is_whole
        rows = torch.randperm(count)[: max(2, round(SHARE * count))]
        least, most = AREAS
        area = least + (most - least) * torch.rand(()).item()
        chosen = take_rows(inputs, rows)
        with torch.no_grad(), use_half_precision(self.net.device, self.half_precision):
            outputs = self.net(chosen)
        maps = geometric_mean([place(out.attention.float(), by) for out, by in zip(outputs, self.offsets, strict=True)])
        modality = self.net.input_spec.modality
        region = modality.choose_region(maps, chosen, area)
        objects = modality.find_object(maps, chosen, region)
        order = torch.arange(len(rows))  # rows are in random order
        donors = [order.roll(step) for step in range(1, TRIES + 1) if step % len(rows)]
        others, hidden = [take_rows(chosen, at) for at in donors], [objects[at] for at in donors]
        if modality is IMAGE:
            others, hidden = mix_backgrounds(others, hidden)
        changed = exchange_background(modality, chosen, others, objects, hidden)
        is_outlined = (objects != region).flatten(1).any(1).cpu()
        by_region = ~is_outlined
        if modality is not IMAGE:
            by_region &= find_known(outputs, labels[rows]).cpu()
        taken = (is_outlined | (by_region & (torch.rand(len(rows)) < WITHOUT_OUTLINE))).nonzero()[:, 0]
        is_whole[rows[taken].to(is_whole.device)] = False
        trust = by_region.float().mean().item()
        return replace_rows(inputs, rows[taken], take_rows(changed, taken)), WITH_GUIDE * trust, is_whole


def weigh_whole(weights: Tensor, is_whole: Tensor) -> Tensor:  # (K,B), (B,) bool -> (K,B)
    """Weigh samples that stayed whole by ``WHOLE``, less at early exits than at deep ones, to a mean of 1 at each exit.

    The cue is still in them. Early exits, for which the rest is harder, would rest on it more than the final exit, where it
    is worth most.
    """
    first, last = WHOLE
    shares = torch.linspace(last, first, len(weights), device=weights.device).flip(0)[:, None]
    weights = torch.where(is_whole, weights * shares, weights)
    return weights / weights.mean(1, keepdim=True)


def mix_backgrounds(donors: Sequence[Any], hidden: Sequence[Tensor]) -> tuple[list[Any], list[Tensor]]:
    """Return donors of which half are mixed of two, in shares of their own for each sample, so that their colours are new.

    Else a network would learn which backgrounds there are, and answer worse in front of others. The plain donors come
    after, for where both of a mixture have objects.

    Args:
        donors: batches of images, ``(n,C,H,W)`` each.
        hidden: ``(n,H,W)`` ``bool`` for each, its objects; a mixture has those of both.
    """
    count = len(hidden[0])
    is_mixed = torch.rand(count) < MIXED
    shares = torch.where(is_mixed, torch.rand(count), 1.0).to(donors[0])[:, None, None, None]
    images = [torch.lerp(donors[i - 1], donor, shares) for i, donor in enumerate(donors)]
    masks = [mask | (hidden[i - 1] & is_mixed.to(mask.device)[:, None, None]) for i, mask in enumerate(hidden)]
    return [*images, *donors], [*masks, *hidden]


def find_known(outputs: Sequence[ExitOutput], labels: Tensor) -> Tensor:  # (B,) or (B,C) -> (B,) bool
    """Return of which samples the exits know the labels: their loss is below ``KNOWN`` of that of the exits' mean answer."""
    losses, guesses = [], []
    for out in outputs:
        logits = out.logits.float()
        several = labels.ndim == 2
        mean = logits.sigmoid().mean(0).logit(TINY) if several else logits.softmax(1).mean(0).clamp_min(TINY).log()
        losses.append(sample_losses(logits, labels))
        guesses.append(sample_losses(mean.expand_as(logits), labels))
    return torch.stack(losses).mean(0) < KNOWN * torch.stack(guesses).mean(0)
