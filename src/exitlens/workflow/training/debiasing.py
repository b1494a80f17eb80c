"""Training that binds (``fit(rely_on="map")``): what a map leaves out, and what is too easy, must not decide the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from exitlens.functional.losses import generalised_cross_entropy, ramp, sample_losses, weigh_difficulty
from exitlens.functional.maps import find_locations, geometric_mean, place, pool_moments
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.network import ExitNet
from exitlens.ranks import ALONE, DistributedContext
from exitlens.types import ExitOutput
from exitlens.types.inputs import Inputs, count_rows, replace_rows, take_rows
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.distributed import SharedGradients
from exitlens.workflow.training.optimizer import load_slots, make_optimizer, use_half_precision

PREFIX = "debiasing."
OFFSETS = f"{PREFIX}offsets"


@dataclass(frozen=True)
class DebiasingStrengths:
    """How strongly training works against easy cues; shares are of training, of samples or of locations.

    Attributes:
        difficulty: how far samples are weighed by their relative difficulty for the shallow expert, 0 (not) to 1.
        ramp_share: share of training over which that grows from 0.
        recomposed: share of each batch that is recomposed; 0: none. recomposed_from: share of training before that.
        least_area, most_area: range of the area of the map that is kept.
        power: of the generalised cross-entropy that the expert learns by.
        hidden: hidden units of the expert. learning_rate: of the expert.
    """

    difficulty: float = 1.0
    ramp_share: float = 0.3
    recomposed: float = 0.5
    recomposed_from: float = 1 / 3
    least_area: float = 0.2
    most_area: float = 0.4
    power: float = 0.7
    hidden: int = 64
    learning_rate: float = 1e-3


STRENGTHS = DebiasingStrengths()


@dataclass(eq=False)
class Debiasing:
    """What a run with ``rely_on="map"`` has besides the network, and throws away at its end.

    - The *expert* is a small head on the mean, standard deviation and maximum over locations of the backbone's features at
      exit 0. By generalised cross-entropy it learns what is easy there, wherever it lies: samples that it gets wrong count
      more at every exit (Learning from Failure, arXiv 2007.02561; there the expert is a second network).
    - *Recomposition* pastes what a sample's own map points at on another sample without its object, later in training. In
      images the object is outlined by its colours, because a rim of the old background is enough to keep a cue.

    No gradient of the expert reaches the network.
    """

    net: ExitNet
    settings: TrainingSettings
    ranks: DistributedContext = ALONE
    strengths: DebiasingStrengths = STRENGTHS
    recomposes: bool = True  # False: the inputs are kept features, which have no inside
    expert: nn.Sequential = field(init=False)
    offsets: tuple[tuple[float, ...], ...] = field(init=False)  # of maps from their cells, as at the start of the run

    def __post_init__(self) -> None:
        net, hidden, self.offsets = self.net, self.strengths.hidden, self.net.map_offsets
        like = next(net.heads[0].parameters())
        with switch_mode(net, False), torch.no_grad():
            channels = net.observe(net.info.example(like)).shallow.shape[1]

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            layers = nn.LayerNorm(3 * channels), nn.Linear(3 * channels, hidden), nn.ReLU()
            self.expert = nn.Sequential(*layers, nn.Linear(hidden, net.info.num_classes)).to(like.device)
        parameters = list(self.expert.parameters())
        rate = self.strengths.learning_rate
        self.optimizer = make_optimizer([{"params": parameters, "lr": rate, "weight_decay": 0.01}])
        self.gradients = SharedGradients(parameters, self.ranks)

    def prepare(self, inputs: Inputs, progress: float) -> Inputs:
        """Return a batch of which a share is recomposed: what a sample's map shows, on what another's leaves out.

        Of an object, only what lies at the top of the map is kept; the other sample loses all of its own. These samples take
        from one another, so that only they are looked at. The map is the mean of the exits', from a pass in evaluation mode
        and without gradients.
        """
        strengths, net = self.strengths, self.net
        rows = torch.randperm(count_rows(inputs))[: round(strengths.recomposed * count_rows(inputs))]
        if not self.recomposes or progress < strengths.recomposed_from or len(rows) < 2:
            return inputs
        area = strengths.least_area + (strengths.most_area - strengths.least_area) * torch.rand(()).item()
        kept = take_rows(inputs, rows)
        with switch_mode(net, False), torch.no_grad(), use_half_precision(net.device, bool(self.settings.amp)):
            outputs = net(kept)
        maps = geometric_mean([place(out.attention.float(), by) for out, by in zip(outputs, self.offsets, strict=True)])
        modality = net.input_spec.modality
        region = modality.choose_region(maps, kept, area)
        objects = modality.find_object(maps, kept, region)
        donors = torch.arange(len(rows)).roll(1)  # rows are in random order
        others = take_rows(modality.paint_over(kept, objects), donors)
        return replace_rows(inputs, rows, modality.exchange(kept, others, ~(objects & region)))

    def weigh(
        self, outputs: Sequence[ExitOutput], shallow: Tensor, labels: Tensor, progress: float, share: float = 1.0
    ) -> Tensor:
        """Return the weight of each sample at each exit, ``(K,B)``, and add to the gradients of the expert.

        Args:
            outputs: of every exit.
            shallow: ``(B,D,*S)``, the backbone's features at exit 0.
            labels: ``(B,)`` integers, or ``(B,C)`` of 0 and 1.
            progress: share of training that is done.
            share: the batch's share of the samples of this step.
        """
        strengths, shallow = self.strengths, shallow.detach().float()
        real = find_locations(outputs[0].attention)
        real = real if real is not None and real.shape[1:] == shallow.shape[2:] else None
        guess = self.expert(torch.cat(pool_moments(shallow, real), 1))
        (generalised_cross_entropy(guess, labels, strengths.power) * share).backward()
        losses = torch.stack([sample_losses(out.logits.detach(), labels) for out in outputs])
        strength = strengths.difficulty * ramp(progress, strengths.ramp_share)
        return weigh_difficulty(losses, sample_losses(guess.detach(), labels), strength)

    def step(self, rows: int) -> None:
        """Take a step of the expert along the mean gradient over the ``rows`` of all ranks."""
        self.gradients.average(rows)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def dump(self) -> dict[str, Tensor]:
        """Return expert and optimiser as tensors for a checkpoint."""
        tensors = {f"{PREFIX}{name}": value.clone() for name, value in self.expert.state_dict().items()}
        tensors[OFFSETS] = torch.tensor(self.offsets, dtype=torch.float64)
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{PREFIX}optimizer.{index}.{slot}": value for slot, value in slots.items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what :meth:`dump` returned."""
        held = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        self.offsets = tuple(map(tuple, held.pop("offsets").tolist()))
        self.expert.load_state_dict({name: value for name, value in held.items() if not name.startswith("optimizer.")})
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in held.items():
            if name.startswith("optimizer."):
                _, index, slot = name.split(".", 2)
                slots.setdefault(int(index), {})[slot] = value
        load_slots(self.optimizer, slots)
