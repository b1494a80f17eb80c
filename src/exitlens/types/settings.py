"""Settings of the verbs: what was asked for, checked and described here alone, recorded as it is and read again.

The options of the command line come from the fields here and from the sentences that describe them, so this module imports
nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from exitlens.errors import InputError, require, suggest

Record = TypeVar("Record")


def read_record(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """Rebuild a dataclass from the JSON of its ``asdict``, where tuples are lists, by the types of its fields."""
    hints = get_type_hints(kind)
    return kind(**{name: _read_value(hints.get(name), value) for name, value in values.items()})


def _read_value(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(kind) is UnionType:  # X | None
        kind = get_args(kind)[0]
    if is_dataclass(kind) and isinstance(kind, type):
        return read_record(kind, value)
    if get_origin(kind) is tuple:
        first, *_ = get_args(kind)
        return tuple(_read_value(first, item) for item in value)
    if get_origin(kind) is Mapping:
        return {name: _read_value(get_args(kind)[1], item) for name, item in value.items()}
    return float(value) if kind is float else value


class NumberRule(NamedTuple):
    """What a number has to be: in words, as a test, and what to do about it."""

    expected: str
    is_valid: Callable[[float], bool]
    fix: str = ""


COUNT = NumberRule("a whole number of 1 or more", lambda value: isinstance(value, int) and value >= 1)
POSITIVE = NumberRule("a finite number above 0", lambda value: 0 < value < math.inf)
WHOLE = NumberRule("a whole number of 0 or more", lambda value: isinstance(value, int) and value >= 0)
SHARE = NumberRule("a number in [0, 1]", lambda value: 0 <= value <= 1)
PROPER_SHARE = NumberRule("a number in (0, 1)", lambda value: 0 < value < 1)
NOT_NEGATIVE = NumberRule("a finite number of 0 or more", lambda value: 0 <= value < math.inf)


def check_number(name: str, value: object, rule: NumberRule) -> None:
    """Raise :class:`InputError` unless an argument's value is a number that keeps the rule."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not rule.is_valid(value):
        raise InputError(f"{name}: expected {rule.expected}, got {value!r}" + (f". Fix: {rule.fix}" if rule.fix else ""))


def check_numbers(settings: object, rules: Mapping[str, NumberRule]) -> None:
    """Check fields of a dataclass by their rules; ``None`` is allowed where it is the default."""
    for name, rule in rules.items():
        value = getattr(settings, name)
        if value is not None or getattr(type(settings), name) is not None:
            check_number(name, value, rule)


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise :class:`InputError` unless an argument's value is one of the choices."""
    if value not in tuple(choices):
        hint = suggest(str(value), [word for word in choices if isinstance(word, str)])
        raise InputError(f"{name}: expected one of {tuple(choices)}, got {value!r}.{hint}")


SCORES = ("max_probability", "entropy", "margin")  # of one class
DECIDED = "decided"  # the score of several labels: how sure the least sure of them is
# of one class a pixel, over the cells of the exit's grid: the mean of the largest probabilities, the value that nine tenths
# of them reach, and the share of those of 0.9 or more
PIXEL_SCORES = ("mean_probability", "low_probability", "sure_share")
# of numbers, and of vectors: exp(-error), as the head expects it, and exp(-distance) from the answer of the exit before
NUMBER_SCORES = ("closeness", "stability")
VECTOR_SCORES = ("vector_closeness", "vector_stability")
CHANGE_SCORES = (NUMBER_SCORES[1], VECTOR_SCORES[1])
ALL_SCORES = (*SCORES, DECIDED, *PIXEL_SCORES, *NUMBER_SCORES, *VECTOR_SCORES)

PIXEL_LIMITS = ("max_pixel_error_drop", "max_miou_drop")  # of one class a pixel; and max_missed_area, by class
MISSED_AREA = "max_missed_area of "  # begins the names of these limits
SAMPLE_LIMITS = ("max_accuracy_drop", "max_class_accuracy_drop", "max_false_negative_drop")  # of all other tasks
NUMBER_LIMITS = ("max_error_increase", "max_deviation")
VECTOR_LIMITS = ("max_distance", "max_rank_change")
NEED_LABELS = (*SAMPLE_LIMITS, *PIXEL_LIMITS, "max_error_increase")
RISK_LIMITS = (*NEED_LABELS, "max_deviation", *VECTOR_LIMITS, "max_disagreement", "max_divergence", "max_cue_drop")


@dataclass(frozen=True)
class SampleSketch:
    """A trace's fingerprint and the smallest hashes of its samples: traces that share many samples share some of these."""

    data: str = ""
    sketch: tuple[str, ...] = ()


@dataclass(frozen=True)
class Temperatures:
    """Temperatures ``values``, one for each exit, that an earlier calibration fitted.

    ``fitted_on`` are the samples that they were fitted on; ``network`` is their network's fingerprint, empty for any.
    """

    values: tuple[float, ...]
    fitted_on: tuple[SampleSketch, ...] = ()
    network: str = ""


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """What :func:`exitlens.calibrate` is asked for. A policy's record keeps it, so that it can be repeated.

    Attributes:
        max_accuracy_drop: Accuracy that may be lost, in [0, 1]; 0.01 is one point. Final accuracy minus routed accuracy;
            needs labels. With several labels per sample, an answer is right if all of them are (subset accuracy).
        max_class_accuracy_drop: Accuracy that may be lost in every class, in [0, 1]. Needs labels. With several labels per
            sample: how much more often each label may be missed in the samples that have it.
        max_false_negative_drop: Share of a sample's labels that may be missed in addition, on average, in [0, 1]. For
            networks that give several labels; needs labels. A sample without labels counts as 0.
        max_pixel_error_drop: Share of an image's pixels that may be wrong in addition, on average over images, in [0, 1].
            For networks that answer one class a pixel; needs labels.
        max_miou_drop: Mean IoU of an image that may be lost, on average over images, in [0, 1]. An image's is the mean over
            the classes that its label has; it is not the mean IoU of the data set, whose counts are summed over images
            first. For one class a pixel; needs labels.
        max_missed_area: Share of a class's pixels that may be missed, by name (text) or number of the class, such as
            ``{"lesion": 0.05}``, on average over the images that have the class: a false-negative rate, in which the final
            exit's own misses count, too. For one class a pixel; needs labels.
        max_error_increase: Error that may be added, in [0, 1], where 1 is the spread (standard deviation) of the training
            targets. The mean of the exit's absolute error less the final exit's, each sample's clipped to [-1, 1]. For
            networks that answer numbers; needs targets. Of several numbers a sample, the mean.
        max_deviation: Mean distance of numbers from the final exit's, in the same unit, each sample's clipped to [0, 1].
        max_distance: Mean of 1 - cosine of vectors and the final exit's, each sample's clipped to [0, 1].
        max_rank_change: Share of the ten nearest probes of a vector that may not be the final vector's, on average. Needs a
            trace with probes (``collect(..., probes=vectors)``).
        max_disagreement: Share of answers that may differ from the final exit's, in [0, 1]. Of one class a pixel, the share
            of pixels, on average over images. Not for numbers and vectors.
        max_divergence: Mean divergence allowed between the attention map that answers and the final one, in [0, 1].
        max_cue_drop: How much more often early answers than final ones may change when everything outside the object comes
            from another sample, in [0, 1]. Needs a trace with swaps (``collect(..., swapped=2000)``), but no labels.
        max_cost: Mean cost allowed on these samples, as a fraction of the plain backbone's.
        max_ms: Milliseconds that a batch may take at the exits taken, on average. Needs a trace with measured times
            (``collect(..., cost="time")``). Every sample counts with the time of a batch that leaves at its exit. Times are
            taken as measured; a certificate covers which exits samples take.
        percentile: Share of samples, in (0, 100], that must keep max_ms; without it, their mean must.
        delta: Certify the limits for new data, with this chance of being wrong, such as 0.1. Needs a limit on a risk, or
            ``max_ms``. Without it the limits hold on these samples only (empirical mode).
        score: Confidence score: max_probability (the default), entropy or margin; for several labels decided. For one class
            a pixel mean_probability (the default), low_probability or sure_share. For numbers closeness (the default) or
            stability, for vectors vector_closeness (the default) or vector_stability.
        temperature_scaling: Fit a temperature to each exit first, by likelihood. Needs labels and is skipped without them,
            for one class a pixel, because a trace does not keep what it takes, and for numbers and vectors. Certified mode
            fits on the samples that propose thresholds, which do not test them.
        temperatures: Temperatures fitted on other data, used instead.
        gate: Decide by more than confidence which early answers leave: by an estimate that the final exit would answer the
            same, which sees what an answer owes to few places. With ``max_divergence``, its map has to be near, too. The
            :class:`~exitlens.types.Gate` is fitted as the temperatures are; it needs no labels.
        equal_groups: Certify means over groups, large or small, instead of over samples. Needs ``delta`` and groups. By
            default a group weighs its size, capped at that of the largest group that proposed thresholds.
        folds: Number of cross-validation folds, such as 5, so that the limits also hold on held-out samples. Each part is
            routed by thresholds that the others choose. Temperatures and gate are fitted on all samples.
        seed: Seed of the split into samples (or groups) that propose thresholds and those that test them, or into folds.

    Examples:
        >>> request = xl.calibrate(trace, max_disagreement=0.5).calibration.request
        >>> request.limits, request.score
        ({'max_disagreement': 0.5}, None)
    """

    max_accuracy_drop: float | None = None
    max_class_accuracy_drop: float | None = None
    max_false_negative_drop: float | None = None
    max_pixel_error_drop: float | None = None
    max_miou_drop: float | None = None
    max_missed_area: Mapping[str | int, float] | None = None
    max_error_increase: float | None = None
    max_deviation: float | None = None
    max_distance: float | None = None
    max_rank_change: float | None = None
    max_disagreement: float | None = None
    max_divergence: float | None = None
    max_cue_drop: float | None = None
    max_cost: float | None = None
    max_ms: float | None = None
    percentile: float | None = None
    delta: float | None = None
    score: str | None = None
    temperature_scaling: bool = True
    temperatures: Temperatures | None = None
    gate: bool = False
    equal_groups: bool = False
    folds: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, _REQUEST_NUMBERS)
        if self.max_missed_area is not None:
            require(
                self.max_missed_area, Mapping, "max_missed_area", "pass a share for each class, such as {'lesion': 0.05}"
            )
            for name, limit in self.max_missed_area.items():
                require(name, str | int, "max_missed_area", "pass names of classes, or their numbers")
                check_number(f"{MISSED_AREA}{name}", limit, SHARE)
            object.__setattr__(self, "max_missed_area", dict(self.max_missed_area) or None)
        check_choice("score", self.score, (*ALL_SCORES, None))
        for name in ("temperature_scaling", "gate", "equal_groups"):
            require(getattr(self, name), bool, name)
        if self.temperatures is not None:
            require(self.temperatures, Temperatures, "temperatures")
        has_delta, has_risk, is_timed = self.delta is not None, bool(self.risk_limits), self.max_ms is not None
        has_share, has_folds, all_limits = self.percentile is not None, self.folds is not None, ", ".join(RISK_LIMITS)
        refusals = {
            f"limits: expected at least one of {all_limits}, max_cost or max_ms, got none. Fix: pass one": not self.limits,
            "percentile: it is the share of samples to be answered within max_ms. Fix: pass max_ms, too.": has_share
            and not is_timed,
            "percentile: samples never show that all samples are fast. Fix: with delta, pass less than 100.": has_delta
            and self.percentile == 100,
            "delta: it certifies limits on risks. Fix: pass max_accuracy_drop or another one, too.": has_delta
            and not (has_risk or is_timed),
            "equal_groups: it is about a certificate. Fix: pass delta, or leave equal_groups out.": self.equal_groups
            and not has_delta,
            "equal_groups: swaps couple groups, so max_cue_drop is about samples. Fix: leave one of the two out.": (
                self.equal_groups and self.max_cue_drop is not None
            ),
            "folds: delta promises more. Fix: pass one of the two.": has_folds and has_delta,
            "folds: they are about limits on risks. Fix: pass one of these limits, or leave folds out.": has_folds
            and not has_risk,
        }
        for message, is_wrong in refusals.items():
            if is_wrong:
                raise InputError(message)

    @property
    def risk_limits(self) -> dict[str, float]:
        """The limits on risks that were given, by name; of missed area, one for each class."""
        missed = {f"{MISSED_AREA}{name}": limit for name, limit in (self.max_missed_area or {}).items()}
        return {name: value for name in RISK_LIMITS if (value := getattr(self, name)) is not None} | missed

    @property
    def limits(self) -> dict[str, float]:
        """All limits that were given, by name: on risks, ``max_cost`` and ``max_ms``."""
        spending = {"max_cost": self.max_cost, "max_ms": self.max_ms}
        return self.risk_limits | {name: value for name, value in spending.items() if value is not None}

    def name_classes(self, names: Sequence[str]) -> CalibrationRequest:
        """Return the request with a name for every number of a class; of two limits on a class the lower one holds."""
        limits: dict[str | int, float] = {}
        for key, limit in (self.max_missed_area or {}).items():
            if not isinstance(key, str) and not 0 <= key < len(names):
                raise InputError(
                    f"max_missed_area: expected numbers of classes below {len(names)}, got {key}. Fix: count from 0."
                )
            name = key if isinstance(key, str) else names[key]
            limits[name] = min(limit, limits.get(name, limit))
        return replace(self, max_missed_area=limits or None)

    def for_any_network(self) -> CalibrationRequest:
        """Return the request for a network with other scores, such as an int8 copy; given temperatures are kept."""
        return self if self.temperatures is None else replace(self, temperatures=replace(self.temperatures, network=""))


_REQUEST_NUMBERS = dict.fromkeys((*RISK_LIMITS, "max_cost"), SHARE._replace(fix="pass 0.01 for one per cent.")) | {
    "max_ms": NumberRule("milliseconds above 0", POSITIVE.is_valid),
    "percentile": NumberRule("a number in (0, 100]", lambda value: 0 < value <= 100, "pass 95 for 95 of 100 samples."),
    "delta": PROPER_SHARE._replace(fix="pass 0.1 for 90 % confidence."),
    "folds": NumberRule("an integer of 2 or more", lambda value: isinstance(value, int) and value >= 2, "pass folds=5."),
    "seed": NumberRule("an integer from 0 to below 2**63", lambda value: isinstance(value, int) and 0 <= value < 2**63),
}


@dataclass(frozen=True)
class CertificateRequest:
    """A request for a certificate from the samples of a trace, and its outcome: repeated requests are corrected for."""

    request: CalibrationRequest
    level: float  # the tests' level: the request's delta, less the levels of earlier requests that were refused
    granted: bool  # if so, the level is available to the next request
    units: str = ""  # digest of the groups and swaps of the trace: with others it is another request


SWAPPED = 2000  # samples that take from others what is outside the object, where a limit is on what that changes
BatchNorm = Literal["update", "keep"]
RelyOn = Literal["anything", "map"]
EpochMetric = Literal["accuracy", "final_accuracy", "loss"]
RecipeName = Literal["scratch", "pretrained"]
LimitedLoss = Literal["disagreement", "divergence", "binding"]  # of early answers, with thresholds that adapt


@dataclass(frozen=True)
class Recipe:
    """Training settings that depend on where the weights come from (docs/guides/pretrained.md has the trials)."""

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
class Ignored:
    """What must not matter to a network: parts of the inputs that :func:`exitlens.fit` takes from other samples.

    Attributes:
        background: Everything outside the training data's ``masks``.
        masks: Locations, the same in all samples, each packed as text ("8x8:..."), which `fit` makes of a mask.
        names: Channels of series and volumes, features or groups of vectors, or words of texts.

    Examples:
        >>> settings = xl.TrainingSettings(ignore=xl.types.Ignored(names=("lead 2",)))
        >>> bool(settings.ignore), bool(xl.TrainingSettings().ignore)
        (True, False)
    """

    background: bool = False
    masks: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.background, bool, "background")
        for name in ("masks", "names"):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(value, str) and value for value in values):
                raise InputError(f"{name}: expected a tuple of words, got {values!r:.60}")
            object.__setattr__(self, name, tuple(values))

    def __bool__(self) -> bool:
        """Return whether there is anything."""
        return self.background or bool(self.masks or self.names)


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
        amp: Train in bfloat16 (default: if the device is fast at it and the inputs are no vectors).
        channels_last: Memory format of weights and images during training.
        freeze_backbone: Train the exit heads only; the backbone then runs once per sample, not in every epoch, unless
            something forbids it. Always so where answers are vectors, because the final exit's must not move.
        augment: Change training images at random: ``flip``, ``crop`` (and flip), ``trivial`` (both, and TrivialAugment) or
            ``none``.
        balanced: Show all classes equally often.
        rely_on: Let answers rest on ``anything``, or on what attention maps show (``map``), which costs accuracy where the
            rest of the input helps, and a third more epochs, of a guide.
        ignore: Parts of the inputs that must not matter, taken from other samples in most steps.
        teacher: Fingerprint of the network whose answers the exits learn, besides the labels; empty for none.
        accumulate: Batches in an optimiser step; the gradient is the mean over their samples.
        clip_norm: Largest norm of the gradient of all weights together (default: no limit).
        ema: Train as usual, but validate and keep a moving average of the weights with this decay per step, such as 0.999.
        patience: Stop after this many epochs without a better ``monitor``.
        monitor: Validation measure that chooses the best epoch: ``accuracy`` (mean over exits), ``final_accuracy`` or
            ``loss``. Of numbers R², of vectors the cosine with the final exit's, stand for accuracy.
        cache_features: With ``freeze_backbone``, run the backbone once and keep its features for all epochs (default: if the
            data are sure to be the same in every epoch).
        keep: Weights that the network has afterwards: those of the ``last`` or of the ``best`` epoch (default: the best with
            ``patience``, else the last).
        share_cores: Use fewer threads while other processes keep the cores busy, which is several times as fast (Linux, one
            process). The last digits of the weights depend on the number of threads.

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
    rely_on: RelyOn = "anything"
    ignore: Ignored = Ignored()
    teacher: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.ignore, Mapping):  # as a run's record has it
            object.__setattr__(self, "ignore", Ignored(**self.ignore))
        require(self.ignore, Ignored, "ignore")
        check_choice("rely_on", self.rely_on, get_args(RelyOn))
        check_choice("recipe", self.recipe, RECIPES)
        for name, value in asdict(RECIPES[self.recipe]).items():
            if getattr(self, name, value) is None:
                object.__setattr__(self, name, value)
        check_numbers(self, _TRAINING_NUMBERS)
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


_TRAINING_NUMBERS = {
    **dict.fromkeys(("epochs", "batch_size", "accumulate", "patience"), COUNT),
    **dict.fromkeys(("learning_rate", "head_learning_rate", "clip_norm"), POSITIVE),
    "weight_decay": NOT_NEGATIVE,
    "layer_decay": NumberRule("a factor above 0 and up to 1", lambda value: 0 < value <= 1),
    "warm_up": NumberRule("a share of training from 0 to below 1", lambda value: 0 <= value < 1),
    "ema": NumberRule("a decay above 0 and below 1", lambda value: 0 < value < 1),
    "seed": NumberRule("a whole number from 0 to below 2^40", lambda value: isinstance(value, int) and 0 <= value < 2**40),
}

NECK_SHARE = 0.04  # of the plain backbone's multiply-accumulates, for all necks together


@dataclass(frozen=True)
class NetworkSettings:
    """The network that a run trains: its backbone, the weights to start from, and its exits.

    Attributes:
        backbone: The network that gets exits: ``small``, torchvision:NAME, timm:NAME, or hf:DIRECTORY (or hf:NAME, hf:bert)
            of transformers.
        exits: Names of the modules after which exits go, comma-separated, or a number of exits (default:
            layer1,layer2,layer3 where the backbone has these and ``placement`` is ``cost``, else 3); 0 for none.
        end: Name of the module after which the network ends; the rest of the backbone is left out. Without ``exits`` it then
            has no early ones.
        placement: Place a number of exits at equal shares of ``cost``, or of measured ``time``.
        groups: Groups of a vector's features, for maps that have a place for each: blood=age|pressure,heart=rate.
        head: Kind of exit heads: ``context`` (with a neck; the default except for vectors), ``evidence`` or ``average``.
        neck_share: Share of the backbone's multiply-accumulates that all necks of context heads together may take; more
            than the default is for small networks.
        keep_final: Keep the backbone's own classifier as the final exit.
        pretrained: Start from the weights that torchvision, timm or transformers offers for the backbone.
        init_weights: Start from the weights in a local file (a state dict as safetensors or by PyTorch).
        strict_weights: Refuse weights if any tensor does not fit, the classifier's included.
        normalise: Mean and standard deviation of pixels: ``own`` (that of the backbone's weights; the default where weights
            are given), ``imagenet`` or ``half``.
    """

    backbone: str = "small"
    exits: str = ""
    end: str = ""
    placement: Literal["cost", "time"] = "cost"
    groups: str = ""
    head: str = ""
    neck_share: float = NECK_SHARE
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


AS_RECORDED = ReadSettings()  # the run's own data
