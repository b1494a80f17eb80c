"""Settings of the verbs: what a run was asked for, checked in one place, recorded as it is and read again.

The options of the command line come from the fields here and from the sentences that describe them, so this module imports
nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from exitlens.errors import InputError, suggest

BatchNorm = Literal["update", "keep"]
EpochMetric = Literal["accuracy", "final_accuracy", "loss"]
RecipeName = Literal["scratch", "pretrained"]


@dataclass(frozen=True)
class Recipe:
    """Training values that belong together; docs/guides/pretrained.md has the trials that chose them.

    A setting whose best value depends on where the weights come from has a field here, of the setting's own name.
    """

    learning_rate: float
    head_learning_rate: float | None = None
    weight_decay: float = 0.05
    warm_up: float = 0.3
    layer_decay: float = 1.0
    batch_norm: BatchNorm = "update"
    decay_vectors: bool = True


RECIPES: dict[str, Recipe] = {
    "scratch": Recipe(learning_rate=4e-3),
    "pretrained": Recipe(learning_rate=2e-4, head_learning_rate=4e-3, warm_up=0.1, decay_vectors=False),
}


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides the weights of a training run besides network, data and loss.

    :func:`exitlens.fit` builds it from its arguments, ``settings.json`` in the run directory records it, and a resumed run
    is held to it. Values that are ``None`` and belong to the recipe are filled in from it.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Samples in a training step.
        recipe: Learning rates and the like: ``scratch``, or ``pretrained`` for a backbone with pretrained weights.
        learning_rate: Peak of the one-cycle schedule (default: the recipe's).
        head_learning_rate: Peak learning rate of the exit heads, which are new even if the backbone is not (default: the
            recipe's).
        layer_decay: Factor by which the learning rate falls from each block of the backbone to the one before it (default:
            the recipe's).
        warm_up: Share of the training during which the learning rates rise (default: the recipe's).
        weight_decay: Weight decay of AdamW; ``pretrained`` spares biases and norms (default: the recipe's).
        batch_norm: Either ``update`` the backbone's batch-norm statistics, or ``keep`` them and switch its dropout off
            (default: the recipe's).
        seed: Seed of the order of the data and of all random numbers in training.
        amp: Train in bfloat16 (default: if the device is fast at it).
        channels_last: Memory format of weights and images during training.
        freeze_backbone: Train the exit heads only; the backbone then runs once per sample, not in every epoch, unless
            something forbids it.
        augment: Change training images at random: ``flip``, ``crop`` (and flip), ``trivial`` (both, and TrivialAugment) or
            ``none``.
        balanced: Show all classes equally often.
        accumulate: Batches in an optimiser step; the gradient is the mean over their samples.
        clip_norm: Largest norm of the gradient of all weights together (default: no limit).
        ema: Train as usual, but validate and keep a moving average of the weights with this decay per step, such as 0.999.
        patience: Stop after this many epochs without a better ``monitor``.
        monitor: Validation measure that chooses the best epoch: ``accuracy`` (mean over exits), ``final_accuracy`` or
            ``loss``.
        cache_features: With ``freeze_backbone``, run the backbone once and keep its features for all epochs (default: if the
            data are sure to be the same in every epoch).
        keep: Weights that the network has afterwards: those of the ``last`` or of the ``best`` epoch (default: the best with
            ``patience``, else the last).
        share_cores: Use fewer threads while other processes keep the cores busy, which is several times as fast. The last
            digits of the weights depend on the number of threads.

    Examples:
        >>> xl.TrainingSettings(recipe="pretrained").head_learning_rate
        0.004
    """

    epochs: int = 8
    batch_size: int = 64
    recipe: RecipeName = "scratch"
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    layer_decay: float | None = None
    warm_up: float | None = None
    weight_decay: float | None = None
    batch_norm: BatchNorm | None = None
    seed: int = 0
    amp: bool | None = None
    channels_last: bool = True
    freeze_backbone: bool = False
    augment: str = "none"
    balanced: bool = False
    accumulate: int = 1
    clip_norm: float | None = None
    ema: float | None = None
    patience: int | None = None
    monitor: EpochMetric = "accuracy"
    cache_features: bool | None = None
    keep: Literal["last", "best"] | None = None
    share_cores: bool = True

    def __post_init__(self) -> None:
        check_choice("recipe", self.recipe, RECIPES)
        for name, value in asdict(RECIPES[self.recipe]).items():
            if getattr(self, name, value) is None:
                object.__setattr__(self, name, value)
        for name, (expected, is_valid) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not is_valid(value):
                raise InputError(f"{name}: expected {expected}, got {value!r}")
        check_choice("batch_norm", self.batch_norm, get_args(BatchNorm))
        check_choice("monitor", self.monitor, get_args(EpochMetric))
        check_choice("keep", self.keep, ("last", "best", None))

    @property
    def rates(self) -> Recipe:
        """The recipe, with the values that were given in place of its own."""
        recipe = asdict(RECIPES[self.recipe])
        return Recipe(**{name: getattr(self, name, value) for name, value in recipe.items()})

    @property
    def kept_epoch(self) -> Literal["last", "best"]:
        """The epoch whose weights the network has afterwards."""
        return self.keep or ("last" if self.patience is None else "best")


def _is_count(value: float) -> bool:
    return isinstance(value, int) and value >= 1


_COUNT = ("a whole number of 1 or more", _is_count)
_RATE = ("a finite number above 0", lambda value: 0 < value < math.inf)
_NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "accumulate": _COUNT,
    "patience": _COUNT,
    "learning_rate": _RATE,
    "head_learning_rate": _RATE,
    "clip_norm": _RATE,
    "weight_decay": ("a finite number of 0 or more", lambda value: 0 <= value < math.inf),
    "layer_decay": ("a factor above 0 and up to 1", lambda value: 0 < value <= 1),
    "warm_up": ("a share of training from 0 to below 1", lambda value: 0 <= value < 1),
    "ema": ("a decay above 0 and below 1", lambda value: 0 < value < 1),
    "seed": ("a whole number from 0 to below 2^40", lambda value: isinstance(value, int) and 0 <= value < 2**40),
}
_OPTIONAL = {"patience", "head_learning_rate", "clip_norm", "ema"}


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise :class:`InputError` unless an argument's value is one of the choices."""
    if value not in tuple(choices):
        hint = suggest(str(value), [word for word in choices if isinstance(word, str)])
        raise InputError(f"{name}: expected one of {tuple(choices)}, got {value!r}.{hint}")


@dataclass(frozen=True)
class NetworkSettings:
    """The network that a run trains: its backbone, the weights to start from, and its exits.

    Attributes:
        backbone: The network that gets exits: ``small``, torchvision:NAME, timm:NAME, or hf:DIRECTORY (or hf:NAME, hf:bert)
            of transformers.
        exits: Names of the modules after which exits go, comma-separated, or a number of exits (default:
            layer1,layer2,layer3 where the backbone has these and ``placement`` is ``cost``, else 3).
        placement: Place a number of exits at equal shares of ``cost``, or of measured ``time``.
        groups: Groups of a vector's features, for maps that have a place for each: blood=age|pressure,heart=rate.
        head: Kind of exit heads: ``context`` (with a neck; the default except for vectors), ``evidence`` or ``average``.
        keep_final: Keep the backbone's own classifier as the final exit.
        pretrained: Start from the weights that torchvision, timm or transformers offers for the backbone.
        init_weights: Start from the weights in a local file (a state dict as safetensors or by PyTorch).
        strict_weights: Refuse weights if any tensor does not fit, the classifier's included.
        normalise: Mean and standard deviation of pixels: ``own`` (that of the backbone's weights; the default where weights
            are given), ``imagenet`` or ``half``.
    """

    backbone: str = "small"
    exits: str = ""
    placement: Literal["cost", "time"] = "cost"
    groups: str = ""
    head: str = ""
    keep_final: bool = False
    pretrained: bool = False
    init_weights: Path | None = None
    strict_weights: bool = False
    normalise: str = ""

    @property
    def has_weights(self) -> bool:
        """True if training starts from weights and not from random numbers."""
        return self.pretrained or self.init_weights is not None


@dataclass(frozen=True)
class ReadSettings:
    """The samples that a verb reads, and how.

    Attributes:
        data: Labelled data to use instead of the run's own, as for fit.
        root: Folder with torchvision's data sets, for torchvision:NAME.
        columns: Columns of a table: image=NAME,label=NAME, or text=NAME, series=NAME or features=A|B for other inputs
            (default: found by type); label=A|B|C names columns of 0 and 1, of which any number may be 1.
        group_by: Samples that belong together (of one patient, one video): a column of the data, or a regular expression on
            file names.
        skip_bad: Leave out files and rows that cannot be read.
        workers: Processes that decode files (0: none besides this one; default: one for each core, at most 8).
        cache: Directory that keeps decoded, resized images for the next run.
    """

    data: str = ""
    root: str = ""
    columns: str = ""
    group_by: str = ""
    skip_bad: bool = False
    workers: int | None = None
    cache: Path | None = None
