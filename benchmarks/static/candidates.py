"""The static networks that one would use instead: the same backbone narrower, cut early, or on smaller images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exitlens as xl
from benchmarks.truth.tasks import Task
from exitlens.model.backbones.small import SmallResNet
from exitlens.types.inputs import Inputs, split_rows

STEM, WIDTHS = 32, (48, 96, 128, 128)  # SmallResNet's own


@dataclass(frozen=True)
class Candidate:
    """One static network.

    Attributes:
        family: what is made smaller; between the members of a family accuracy at a given time is interpolated.
        title: for tables.
        make: the untrained network of one exit for a task.
        pixels: a side of the images that it makes smaller first; 0: it takes them as they are.
    """

    family: str
    title: str
    make: Callable[[Task], xl.ExitNet]
    pixels: int = 0

    def build(self, task: Task, seed: int) -> xl.ExitNet:
        """The untrained network; its weights depend on the seed only."""
        torch.manual_seed(seed)
        net = self.make(task)
        net.describe(classes=tuple(task.train.classes), preprocess=task.train.preprocess)
        return net

    def build_timed(self, task: Task, inputs: Inputs) -> tuple[xl.ExitNet, Inputs]:
        """What its time is measured with: images that are small already cost it nothing to make small."""
        if not self.pixels:
            return self.make(task), inputs
        return _attach(task, task.build(), inputs := shrink(_of_images(inputs), self.pixels)), inputs


class Resized(nn.Module):
    """A backbone that sees smaller images: (B,C,H,W) -> (B,classes)."""

    def __init__(self, backbone: nn.Module, pixels: int) -> None:
        super().__init__()
        self.backbone, self.pixels = backbone, pixels

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the images at so many pixels a side."""
        return self.backbone(shrink(x, self.pixels))  # type: ignore[no-any-return]


def shrink(x: Tensor, pixels: int) -> Tensor:  # (B,C,H,W) -> (B,C,pixels,pixels)
    """Smaller images, bilinear and antialiased."""
    return F.interpolate(x, (pixels, pixels), mode="bilinear", antialias=True)


def make_narrow(task: Task, width: float) -> xl.ExitNet:
    """Our small network with fewer channels (in steps of 8) and its own classifier."""
    stem, *widths = (8 * round(channels * width / 8) for channels in (STEM, *WIDTHS))
    channels = _of_images(_take_example(task)).shape[1]
    return _attach(task, SmallResNet(len(task.train.classes), channels, stem, widths))


def make_resized(task: Task, pixels: int) -> xl.ExitNet:
    """The backbone with its weights and its own classifier, on smaller images."""
    return _attach(task, Resized(task.build(), pixels))


def make_cut(task: Task, name: str) -> xl.ExitNet:
    """The backbone with its weights up to one module, and the head that an exit has there; the rest is gone."""
    net = xl.attach(task.build(), [name], len(task.train.classes), _take_example(task), head=task.head)
    info = replace(net.info, at=())
    return xl.ExitNet([net.stage(0)], [net.head(0)], net.cost[:1].clone(), net.head_share, info, net.input_spec)


def _attach(task: Task, backbone: nn.Module, inputs: Inputs | None = None) -> xl.ExitNet:
    example = _take_example(task) if inputs is None else split_rows(inputs, 1)[0]
    return xl.attach(backbone, [], len(task.train.classes), example, final="keep")


def _take_example(task: Task) -> Inputs:
    return task.train.subset(torch.arange(1)).inputs


def _of_images(inputs: Inputs) -> Tensor:
    assert isinstance(inputs, Tensor)
    return inputs


def _list_widths(*shares: int) -> dict[str, Candidate]:
    return {
        f"width-{share}": Candidate("width", f"{share} % of the channels", partial(make_narrow, width=share / 100))
        for share in shares
    }


def _list_cuts(*names: str) -> dict[str, Candidate]:
    return {f"cut-{name}": Candidate("cut", f"cut after `{name}`", partial(make_cut, name=name)) for name in names}


def _list_sizes(*sizes: int) -> dict[str, Candidate]:
    return {
        f"pixels-{size}": Candidate("pixels", f"images of {size} pixels", partial(make_resized, pixels=size), size)
        for size in sizes
    }


_SMALL = {**_list_widths(33, 50, 71), **_list_cuts("layer1", "layer2")}
CANDIDATES: dict[str, dict[str, Candidate]] = {
    **dict.fromkeys(("scenes", "small", "digits", "fashion"), _SMALL),
    "pictures": {**_list_sizes(64, 96, 112), **_list_cuts("blocks.2.0", "blocks.4.0", "blocks.5.1")},
    "vit": _list_cuts("blocks.1", "blocks.3"),
    "reviews": _list_cuts("bert.encoder.layer.0", "bert.encoder.layer.2"),
}
RIVALS = {**dict.fromkeys(CANDIDATES, "cut"), "digits": "width"}  # by validation data of seed 0
ONCE = {"fashion", "vit"}  # tasks whose static networks are trained with the first seed only
FAMILIES = {"width": "narrower", "cut": "cut early", "pixels": "smaller images"}


def list_candidates(task: str, seed: int) -> dict[str, Candidate]:
    """All of them with the first seed; with others those of the family that was best with it, or none."""
    more = RIVALS[task] if task not in ONCE else None
    return {name: one for name, one in CANDIDATES[task].items() if seed == 0 or one.family == more}


def list_families(task: str) -> list[str]:
    """In the order of the candidates."""
    return list(dict.fromkeys(one.family for one in CANDIDATES[task].values()))
