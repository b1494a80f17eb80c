"""The values that the verbs exchange. Tensors here are never changed after they are made."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exitlens.errors import InputError, MissingExtraError, PolicyError, require

SCORES = ("max_probability", "entropy", "margin")
PADDING_TOKENS = ("[PAD]", "<pad>", "<PAD>", "<|pad|>", "<|padding|>")


class ExitOutput(NamedTuple):
    """What one exit says of a batch.

    Attributes:
        logits: ``(B,C)``.
        attention: ``(B,*S)``, non-negative, sums to 1 over the locations ``S``.
        evidence: ``(B,C,*S)``; ``evidence.sum(S) + bias == logits`` where the head is exact (every evidence head is).
    """

    logits: Tensor
    attention: Tensor
    evidence: Tensor


class LossTerms(NamedTuple):
    """Scalars by name: ``total`` is what to call ``backward`` on; the others are detached parts for logging."""

    total: Tensor
    classification: Tensor
    consistency: Tensor
    distillation: Tensor


@dataclass(frozen=True)
class Preprocess:
    """How pixels become network input: resize to ``size`` (height, width), scale to [0, 1], then ``(x - mean) / std``."""

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"size: expected height and width of 1 pixel or more, got {self.size}")
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise InputError(f"mean, std: expected 1 or 3 of each, std above 0, got {self.mean} and {self.std}")

    def normalise(self, pixels: Tensor) -> Tensor:  # (..., C, H, W) uint8 or float in [0, 1]
        """Scales ``uint8`` pixels to [0, 1] and standardises each channel; the size is left as it is."""
        if pixels.ndim < 3 or pixels.shape[-3] != len(self.mean):
            raise InputError(f"pixels: expected (...,{len(self.mean)},H,W), got {tuple(pixels.shape)}")
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise InputError(f"pixels: expected uint8, or floats in [0, 1], got {pixels.dtype}")
        x = pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels.float()
        return (x - torch.tensor(self.mean).view(-1, 1, 1)) / torch.tensor(self.std).view(-1, 1, 1)

    def restore(self, x: Tensor) -> Tensor:  # (..., C, H, W) float
        """Inverse of :meth:`normalise`, clipped to [0, 1]: the picture a person sees."""
        return (x * torch.tensor(self.std).view(-1, 1, 1) + torch.tensor(self.mean).view(-1, 1, 1)).clamp(0, 1)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {"size": list(self.size), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Inverse of :meth:`to_dict`."""
        height, width = values["size"]
        return cls((int(height), int(width)), tuple(map(float, values["mean"])), tuple(map(float, values["std"])))


@dataclass(frozen=True)
class TextPreprocess:
    """How texts become network input: token ids, truncated to ``length`` and padded to it at the end.

    Args:
        tokenizer: the JSON of a Hugging Face ``tokenizers.Tokenizer`` (its ``to_str()``).
        length: tokens N of every input, those that the tokenizer adds of its own (``[CLS]``, ``[SEP]``) included.

    Raises:
        InputError: for a JSON that is no tokenizer, or a length that leaves no room for a text.
        MissingExtraError: where the package ``tokenizers`` is not installed.
    """

    tokenizer: str = field(repr=False)
    length: int

    def __post_init__(self) -> None:
        require(self.tokenizer, str, "tokenizer", "give the JSON of a tokenizers.Tokenizer, its to_str()")
        require(self.length, int, "length")
        own = _open_tokenizer(self.tokenizer).num_special_tokens_to_add(False)
        if self.length <= own:
            raise InputError(f"length: expected {own + 1} tokens or more ({own} are the tokenizer's), got {self.length}")

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The texts as ``input_ids`` and ``attention_mask`` (1: a token, 0: padding), ``(B,N)`` ``int64`` each."""
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not len(texts):
            raise InputError(f"texts: expected a list of one text or more, got {texts!r:.60}")
        for i, text in enumerate(texts):
            require(text, str, f"texts[{i}]")
        try:
            found = _open_encoder(self.tokenizer, self.length).encode_batch(list(texts))
        except Exception as error:  # tokenizers raises plain Exception, and TypeError for half a surrogate pair
            raise InputError(
                f"texts: expected valid Unicode that the tokenizer knows or has an unknown token for ({error})"
            ) from error
        values = {"input_ids": [one.ids for one in found], "attention_mask": [one.attention_mask for one in found]}
        return {name: torch.tensor(rows, dtype=torch.int64) for name, rows in values.items()}

    def tokens(self, input_ids: Tensor) -> list[str]:  # (N,) integers
        """The tokens that the ids stand for, padding included.

        Raises:
            InputError: for ids of another shape or type, or ids that the tokenizer has no token for.
        """
        require(input_ids, Tensor, "input_ids")
        if input_ids.ndim != 1 or input_ids.is_floating_point():
            raise InputError(f"input_ids: expected (N,) integers, got {tuple(input_ids.shape)} {input_ids.dtype}")
        tokenizer, size = _open_tokenizer(self.tokenizer), self.vocabulary_size
        found: list[str] = []
        for i in input_ids.tolist():
            token = tokenizer.id_to_token(i) if 0 <= i < size else None
            if token is None:
                raise InputError(f"input_ids: expected ids of tokens, in [0, {size}), got {i}: another tokenizer made them?")
            found.append(token)
        return found

    @property
    def vocabulary_size(self) -> int:
        """How many rows an embedding needs: the largest token id plus 1."""
        return _vocabulary_size(self.tokenizer)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {"tokenizer": self.tokenizer, "length": self.length}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextPreprocess:
        """Inverse of :meth:`to_dict`."""
        return cls(values["tokenizer"], int(values["length"]))


def preprocess_from_dict(values: dict[str, Any]) -> Preprocess | TextPreprocess:
    """Inverse of both classes' ``to_dict``: text preprocessing has the key ``tokenizer``."""
    return TextPreprocess.from_dict(values) if "tokenizer" in values else Preprocess.from_dict(values)


def import_tokenizers() -> Any:
    """The optional package ``tokenizers``, or :class:`MissingExtraError`."""
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError("tokenizers", "hf", "text input") from error
    return tokenizers


@lru_cache(maxsize=8)
def _open_tokenizer(description: str) -> Any:  # -> tokenizers.Tokenizer, never to be changed
    tokenizers = import_tokenizers()
    try:
        return tokenizers.Tokenizer.from_str(description)
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"tokenizer: expected the JSON of a tokenizers.Tokenizer ({error}): use its to_str()") from error


@lru_cache(maxsize=8)
def _open_encoder(description: str, length: int) -> Any:  # -> tokenizers.Tokenizer that truncates and pads
    tokenizer = import_tokenizers().Tokenizer.from_str(description)
    names = ((tokenizer.padding or {}).get("pad_token", ""), *PADDING_TOKENS)
    token = next((name for name in names if tokenizer.token_to_id(name) is not None), "")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(token) or 0, pad_token=token)
    return tokenizer


@lru_cache(maxsize=8)
def _vocabulary_size(description: str) -> int:
    return 1 + max(_open_tokenizer(description).get_vocab().values(), default=0)


@dataclass(frozen=True)
class Trace:
    """What one pass over a data set recorded: all that calibration, routing and evaluation need.

    Args:
        logits: ``(N,K,C)`` of every sample at every exit.
        labels: ``(N,)`` integers in ``[0, C)``, or ``None`` for unlabelled data.
        divergence: ``(N,K)`` in [0, 1]: Jensen-Shannon divergence of exit k's attention map from the final exit's.
        cost: ``(K,)`` increasing: cumulative multiply-accumulates up to exit k's head over the plain backbone's.
        network: fingerprint of the network that made it; empty for a trace made by hand.
        similarity: by name ``(N,K)``: agreement of exit k's map with the final exit's on the same image.
        null: by name ``(N,K)``: the same against another image's final map (the shuffled-image null).
        uniform_null: by name ``(N,K)``: the same for a uniform map.

    Raises:
        InputError: where shapes, ranges or values do not fit.
    """

    logits: Tensor
    labels: Tensor | None
    divergence: Tensor
    cost: Tensor
    network: str = ""
    similarity: Mapping[str, Tensor] = field(default_factory=dict)
    null: Mapping[str, Tensor] = field(default_factory=dict)
    uniform_null: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("logits", "divergence", "cost"):
            try:
                object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).detach().float())
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"{name}: expected a tensor or nested lists of numbers ({error})") from error
        if self.logits.ndim != 3 or 0 in self.logits.shape:
            raise InputError(f"logits: expected (N,K,C), none of them 0, got {tuple(self.logits.shape)}")
        n, k, c = self.logits.shape
        if self.labels is not None:
            labels = torch.as_tensor(self.labels)
            if labels.shape != (n,) or labels.is_floating_point() or labels.is_complex():
                raise InputError(f"labels: expected ({n},) integers, got {tuple(labels.shape)} {labels.dtype}")
            if labels.min() < 0 or labels.max() >= c:
                raise InputError(f"labels: expected values in [0, {c}), got {int(labels.min())} to {int(labels.max())}")
            object.__setattr__(self, "labels", labels.long())
        if self.divergence.shape != (n, k):
            raise InputError(f"divergence: expected ({n},{k}), got {tuple(self.divergence.shape)}")
        if self.cost.shape != (k,):
            raise InputError(f"cost: expected ({k},), got {tuple(self.cost.shape)}")
        for name in ("logits", "divergence", "cost"):
            if not torch.isfinite(getattr(self, name)).all():
                raise InputError(f"{name}: expected finite numbers, got NaN or Inf: check the network's outputs")
        if self.divergence.min() < -1e-6 or self.divergence.max() > 1 + 1e-6:
            raise InputError("divergence: expected values in [0, 1] (Jensen-Shannon divergence over ln 2)")
        if (self.cost <= 0).any() or (self.cost.diff() <= 0).any():
            raise InputError(f"cost: expected positive, strictly increasing numbers, got {self.cost.tolist()}")

    @property
    def num_exits(self) -> int:
        """K, the final exit included."""
        return self.logits.shape[1]

    def __len__(self) -> int:
        return self.logits.shape[0]

    def require_labels(self, purpose: str) -> Tensor:
        """The labels, or an error that says what needed them."""
        if self.labels is None:
            raise InputError(f"labels: {purpose} needs them and this trace has none: collect it on labelled data")
        return self.labels

    def fingerprint(self) -> str:
        """SHA-256 over logits and labels: two traces with the same fingerprint hold the same samples."""
        digest = hashlib.sha256(self.logits.contiguous().numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Policy:
    """When each early exit answers: exit k fires at ``score >= thresholds[k]``; the final exit always answers.

    Args:
        thresholds: K-1 numbers; ``math.inf`` means never.
        score: ``max_probability``, ``entropy`` (1 minus normalised entropy) or ``margin`` (top-1 minus top-2).
        temperatures: K positive numbers that divide the logits first; by default all 1.
        network: fingerprint of the network it was chosen for; empty fits any.
        chosen_by: what was asked and on what it was chosen, for the record.
    """

    thresholds: tuple[float, ...]
    score: str = "max_probability"
    temperatures: tuple[float, ...] = ()
    network: str = ""
    chosen_by: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            thresholds = tuple(float(t) for t in self.thresholds)
            temperatures = tuple(float(t) for t in self.temperatures) or (1.0,) * (len(thresholds) + 1)
        except (TypeError, ValueError) as error:
            raise PolicyError(f"thresholds and temperatures: expected sequences of numbers ({error})") from error
        object.__setattr__(self, "thresholds", thresholds)
        object.__setattr__(self, "temperatures", temperatures)
        if any(math.isnan(t) or t == -math.inf for t in thresholds):
            raise PolicyError(f"thresholds: expected numbers (math.inf: never, 0: always), got {thresholds}")
        if self.score not in SCORES:
            raise PolicyError(f"score: expected one of {SCORES}, got {self.score!r}")
        if len(temperatures) != self.num_exits or not all(0 < t < math.inf for t in temperatures):
            raise PolicyError(f"temperatures: expected {self.num_exits} positive finite numbers, got {temperatures}")

    @property
    def num_exits(self) -> int:
        """K, the final exit included."""
        return len(self.thresholds) + 1

    @classmethod
    def never(cls, num_exits: int, **values: Any) -> Policy:
        """The policy whose early exits never fire: every sample is answered by the final exit."""
        return cls((math.inf,) * (num_exits - 1), **values)

    def check(self, num_exits: int, network: str = "") -> None:
        """Raises :class:`PolicyError` unless the policy fits ``num_exits`` and, where both are known, the network."""
        if self.num_exits != num_exits:
            raise PolicyError(
                f"policy: it has {len(self.thresholds)} thresholds for {self.num_exits} exits, the network or trace has "
                f"{num_exits} exits: calibrate a policy for it"
            )
        if self.network and network and self.network != network:
            raise PolicyError(
                f"policy: it was calibrated for network {self.network}, this is {network}: calibrate one for this network"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; infinite thresholds become the string ``"never"``."""
        values = asdict(self)
        values["thresholds"] = ["never" if t == math.inf else t for t in self.thresholds]
        values["temperatures"] = list(self.temperatures)
        values["chosen_by"] = dict(self.chosen_by)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Policy:
        """Inverse of :meth:`to_dict`."""
        thresholds = tuple(math.inf if t == "never" else float(t) for t in values["thresholds"])
        return cls(thresholds, values["score"], tuple(values["temperatures"]), values["network"], dict(values["chosen_by"]))


@dataclass(frozen=True)
class Prediction:
    """Answers of adaptive inference, in the order of the input.

    Attributes:
        labels: ``(B,)`` predicted class.
        exits: ``(B,)`` the exit that answered.
        confidence: ``(B,)`` the score that was compared with the threshold, at the exit that answered.
        probabilities: ``(B,C)`` softmax of the logits over the exit's temperature.
        attention: per sample the attention map ``S`` of the exit that answered, or ``None`` if it was not asked for.
        index: ``(B,)`` the samples' places in the batch, or in the stream.

    Its tensors were made in inference mode: clone them before using them in autograd.
    """

    labels: Tensor
    exits: Tensor
    confidence: Tensor
    probabilities: Tensor
    attention: tuple[Tensor, ...] | None = None
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)
