"""Recipes: values of fit's arguments that belong together, for training from scratch and from pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from exitlens.errors import InputError, suggest

BatchNorm = Literal["update", "keep"]
BATCH_NORM: tuple[BatchNorm, ...] = ("update", "keep")


@dataclass(frozen=True)
class Recipe:
    """Defaults of :func:`~exitlens.workflow.training.fit.fit`, which says what each means.

    A recipe is data: a further argument of ``fit`` whose best value depends on where the weights come from gets a field
    here, of the argument's own name. docs/guides/pretrained.md has the trials that chose the values.
    """

    learning_rate: float
    head_learning_rate: float | None = None
    weight_decay: float = 0.05
    warm_up: float = 0.3
    layer_decay: float = 1.0
    batch_norm: BatchNorm = "update"
    decay_vectors: bool = True


RECIPES = {
    "scratch": Recipe(learning_rate=4e-3),
    "pretrained": Recipe(learning_rate=2e-4, head_learning_rate=4e-3, warm_up=0.1, decay_vectors=False),
}


def follow_recipe(recipe: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe, but for those that are given and not ``None``.

    Raises :class:`InputError` for a recipe that does not exist.
    """
    if recipe not in RECIPES:
        raise InputError(f"recipe: expected one of {tuple(RECIPES)}, got {recipe!r}.{suggest(str(recipe), RECIPES)}")
    values = asdict(RECIPES[recipe])
    return values | {name: given[name] for name in values if given.get(name) is not None}
