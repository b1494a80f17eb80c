"""EdgeNetwork: each sample leaves at the first exit that is sure, and later files run on those that stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from exitlens_runtime.adapting import Adaptive, Watch
from exitlens_runtime.errors import InputError, PolicyError
from exitlens_runtime.reading import Preprocess, Scaling, TextPreprocess, read_preprocess
from exitlens_runtime.routing import (
    CHANGE_SCORES,
    SCORES_OF,
    Array,
    Decision,
    Policy,
    compare_with,
    decide,
    enlarge,
    find_probabilities,
    find_score,
    place,
)
from exitlens_runtime.sessions import Session

THINNED = 4  # of the logits of pixels, a golden file has each such row and column
ANSWERS = {  # by task
    "classes": "one class a sample",
    "multilabel": "several labels a sample",
    "segmentation": "one class a pixel",
    "regression": "numbers",
    "embedding": "vectors",
}
PRECISE = 1 << 10  # spreads from 0 to the mean of numbers, beyond which they are float64
OF_HEAD = 3  # outputs of a file before what crosses the cut: logits, attention, support

Inputs = Array | Mapping[str, Array]


@dataclass(frozen=True)
class Prediction:
    """Answers in the order of the input: the fields of ``exitlens.Prediction``, as NumPy arrays.

    Attributes:
        labels: ``(B,)`` predicted class; for several labels ``(B,C)`` bool; of each pixel ``(B,H,W)``; numbers in the units
            of the training data, ``(B,)`` or of several ``(B,C)``; vectors ``(B,D)`` float32.
        exits: ``(B,)`` the exit that answered.
        confidence: ``(B,)`` the score that was compared with the threshold, at the exit that answered.
        probabilities: ``(B,C)`` softmax (for several labels, sigmoid) of the logits over the exit's temperature; of each
            pixel ``(B,C,H,W)``; for numbers and vectors ``(B,0)``.
        attention: for each sample the attention map ``S`` of the exit that answered, placed in the image, or ``None``.
        index: ``(B,)`` places of the samples in the batch, the stream or the list of files.
        trust, refused: ``(B,)`` if the policy has a gate, as in the library.
        adapts: thresholds adapted meanwhile, so the policy's own say nothing of these answers.
    """

    labels: Array
    exits: Array
    confidence: Array
    probabilities: Array
    attention: tuple[Array, ...] | None = None
    index: Array | None = None
    trust: Array | None = None
    refused: Array | None = None
    adapts: bool = False

    def __len__(self) -> int:
        return len(self.labels)


class _Answers:
    """Answers of ``count`` samples, filled in exit by exit."""

    def __init__(self, count: int, shape: Sequence[int]) -> None:
        self.exits, self.scores = np.zeros(count, np.int64), np.zeros(count, np.float32)
        self.p = np.zeros((count, *shape), np.float32)
        self.maps: list[Any] = [None] * count
        self.trust, self.refused = np.full(count, math.nan, np.float32), np.full(count, -1)


class EdgeNetwork:
    """A network from an edge bundle (:func:`exitlens_runtime.load`). Threads may share it.

    Attributes:
        classes: class names in label order; empty if the network has none.
        num_exits: K, the final exit included.
        gives_labels: True if an answer is any number of labels, not one class.
        gives_pixels: True if it is one class for each pixel.
        gives_values: True if it is a number or several, or a vector.
        cost: ``(K,)`` multiply-accumulates up to each exit over the plain backbone's.
        manifest: contents of the bundle's ``manifest.json``.
        policies: the bundle's policies by name; ``default`` is its own.
        input_names: names of the tensors that it takes.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        sessions: Mapping[int, Session],
        policy: Policy,
        policies: Mapping[str, Policy] | None = None,
    ) -> None:
        self.policies = dict(policies or {})
        self.manifest, self._sessions = manifest, dict(sorted(sessions.items()))
        self.classes: tuple[str, ...] = tuple(manifest["classes"])
        self.num_exits, self.num_classes = int(manifest["num_exits"]), int(manifest["num_classes"])
        task = self._task = manifest.get("task", "classes")
        self.gives_labels, self.gives_pixels = task == "multilabel", task == "segmentation"
        self.gives_values = task in ("regression", "embedding")
        units = np.array(manifest.get("units") or [(0.0, 1.0)]).T  # means and spreads
        is_near = (abs(units[0]) <= PRECISE * units[1]).all()
        self._units = units.astype(np.float32 if is_near else np.float64)
        self.cost = np.asarray(manifest["cost"])
        axes = len(manifest["inputs"][0]["shape"]) - 1
        self.preprocess: Preprocess | TextPreprocess | Scaling | None = read_preprocess(manifest["preprocess"], axes)
        self._inputs = [(value["name"], np.dtype(value["dtype"]), tuple(value["shape"])) for value in manifest["inputs"]]
        self._size = self._inputs[0][2][-2:] if self.gives_pixels else ()
        self.input_names = [name for name, _, _ in self._inputs]
        self._vocabulary, self._offsets = manifest["vocabulary"], manifest["map_offsets"]
        self._check_policy(policy)
        self._policy = policy
        self._needed = [policy.needs(k) for k in range(self.num_exits)]  # used by every answer

    @property
    def policy(self) -> Policy:
        """Decides when each exit answers; :meth:`with_policy` exchanges it."""
        return self._policy

    def with_policy(self, policy: str | Policy | Mapping[str, Any]) -> EdgeNetwork:
        """Return the same network under another policy, given by value or name, without opening files again."""
        if isinstance(policy, str):
            if policy not in self.policies:
                raise PolicyError(f"policy: expected one of {list(self.policies)}, got {policy!r}")
            policy = self.policies[policy]
        chosen = policy if isinstance(policy, Policy) else Policy.from_dict(policy)
        return EdgeNetwork(self.manifest, self._sessions, chosen, self.policies)

    def _check_policy(self, policy: Policy) -> None:
        if len(policy.temperatures) != self.num_exits:
            raise PolicyError(f"policy: it is for {len(policy.temperatures)} exits, the network has {self.num_exits}")
        if policy.score not in SCORES_OF[self._task]:
            raise PolicyError(
                f"policy: its score is {policy.score!r}, the network gives {ANSWERS[self._task]}. Fix: calibrate one for "
                "this network."
            )
        network = self.manifest["network"]
        if policy.network and policy.network != network:
            raise PolicyError(
                f"policy: it was calibrated for network {policy.network}, this is {network}. Fix: calibrate one for it."
            )
        missing = [k for k in range(self.num_exits) if policy.needs(k) and k not in self._sessions]
        if missing:
            raise PolicyError(
                f"policy: it uses exits {missing}, the bundle has {list(self._sessions)}. Fix: export with this policy."
            )

    def has_head(self, k: int) -> bool:
        """Return whether the bundle has the head of exit k."""
        return k in self._sessions

    def predict(self, inputs: Inputs, *, attention: bool = False, adaptive: Adaptive | None = None) -> Prediction:
        """Answer each sample of a batch at the first exit whose score reaches its threshold.

        Args:
            inputs: normalised ``float32`` ``(B,C,H,W)``, or arrays by name.
            attention: also return the attention map of the exit that answered.
            adaptive: moves the thresholds meanwhile, and audits some of the samples at the final exit.

        Raises:
            InputError: for inputs that the network cannot take, before anything runs; or if the answers are not finite.
        """
        if (self.gives_pixels or self.gives_values) and adaptive is not None:
            raise InputError(f"adaptive: it is not for networks that give {ANSWERS[self._task]}. Fix: leave it out.")
        tensors = self.check(inputs)
        count, is_gated = len(next(iter(tensors.values()))), self.policy.gate is not None
        answers = _Answers(count, (self.num_classes + self.gives_values, *self._size))
        self._route(tensors, np.arange(count), answers, attention, None if adaptive is None else adaptive.watch(count))
        if not math.isfinite(answers.p.sum()):
            raise InputError(
                "inputs: the answers are NaN or infinite. Fix: check that inputs are normalised (huge values overflow), "
                "else export the network again."
            )
        return Prediction(
            labels=self._read_answers(answers.p),
            exits=answers.exits,
            confidence=answers.scores,
            probabilities=answers.p[:, :0] if self.gives_values else answers.p,
            attention=tuple(answers.maps) if attention else None,
            index=np.arange(count),
            trust=answers.trust if is_gated else None,
            refused=answers.refused if is_gated else None,
            adapts=adaptive is not None,
        )

    def _route(
        self, tensors: dict[str, Array], where: Array, answers: _Answers, attention: bool, watch: Watch | None
    ) -> None:
        """Run one file after the other on the samples that are left."""
        policy = self.policy
        before: Array | None = None
        for k, session in self._sessions.items():
            logits, maps, support, *crossing = session.run(tensors)
            p = before = self._find_probabilities(k, logits, before)
            if k == self.num_exits - 1:
                decision = Decision(find_score(p, policy.score), np.ones(len(where), bool), np.ones(len(where), np.float32))
                if watch is not None:
                    watch.end(where, self._read_answers(p))
            elif self._needed[k] or watch is not None:
                decision = decide(policy, k, p, support)
                if watch is not None:
                    compared = decision.scores if decision.estimates is None else decision.estimates
                    leaving_now = watch.decide(k, where, compared, self._read_answers(p))
                    decision = decision._replace(fired=leaving_now, refused=None)
            else:
                tensors = dict(zip(session.outputs[OF_HEAD:], crossing, strict=True))
                continue
            scores, fired, estimates, refused = decision
            leaving = np.count_nonzero(fired)
            if refused is not None:
                answers.refused[where[refused & (answers.refused[where] < 0)]] = k
            if leaving:
                leave = slice(None) if leaving == len(where) else fired
                left = where[leave]
                answers.exits[left], answers.scores[left] = k, scores[leave]
                answers.p[left] = self._find_pixels(k, p[leave], logits[leave]) if self.gives_pixels else p[leave]
                if estimates is not None:
                    answers.trust[left] = estimates[leave]
                for i, map_ in zip(left.tolist(), place(maps[leave], self._offsets[k]), strict=True) if attention else ():
                    answers.maps[i] = map_
            if leaving == len(where):
                return
            if leaving:
                stay = np.flatnonzero(~fired)
                where, crossing = where[stay], [x.take(stay, 0) for x in crossing]
                before = p.take(stay, 0) if policy.score in CHANGE_SCORES else None
            tensors = dict(zip(session.outputs[OF_HEAD:], crossing, strict=True))

    def _find_probabilities(self, k: int, logits: Array, before: Array | None) -> Array:  # (n,C) each
        """Return probabilities; of numbers and vectors the logits, compared with those before for a score of stability."""
        p = find_probabilities(logits, self.policy.temperatures[k], self.policy.score)
        if self.policy.score not in CHANGE_SCORES:
            return p
        # an exit that can fire has its predecessor in the bundle, and the final one always answers
        return compare_with(p, p if k == self.num_exits - 1 else before, self.policy.score)

    def _find_pixels(self, k: int, p: Array, logits: Array) -> Array:  # (n,C,h,w) each -> (n,C,H,W)
        """Return probabilities at the images' size, which only samples that leave need."""
        if p.shape[-2:] == self._size:
            return p
        return find_probabilities(enlarge(logits, self._size), self.policy.temperatures[k], self.policy.score)

    def _read_answers(self, p: Array) -> Array:  # (B,C,*S) -> (B,*S); several labels: (B,C) bool; values: (B,C+1) -> (B,C)
        if self.gives_values:
            mean, spread = self._units
            values: Array = p[:, :-1] * spread + mean
            return values[:, 0] if self._task == "regression" and self.num_classes == 1 else values
        return p >= 0.5 if self.gives_labels else p.argmax(1)

    def compute_outputs(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return logits ``logits_K`` and maps ``attention_K`` (not placed in the image) of every exit K in the bundle.

        Of the logits of pixels, it returns every fourth row and column.
        """
        tensors, outputs = dict(inputs), dict[str, Array]()
        for k, session in self._sessions.items():
            logits, outputs[f"attention_{k}"], _, *crossing = session.run(tensors)
            outputs[f"logits_{k}"] = logits[..., ::THINNED, ::THINNED] if self.gives_pixels else logits
            tensors = dict(zip(session.outputs[OF_HEAD:], crossing, strict=True))
        return outputs

    def check(self, inputs: Inputs) -> dict[str, Array]:
        """Return contiguous tensors by name; raise :class:`InputError` for inputs that the network cannot take."""
        arrays: Mapping[str, Any] = inputs if isinstance(inputs, Mapping) else {self.input_names[0]: inputs}
        if set(arrays) != set(self.input_names):
            raise InputError(f"inputs: expected arrays named {self.input_names}, got {sorted(arrays)}")
        tensors: dict[str, Array] = {}
        for (name, dtype, shape), rows in zip(self._inputs, self._vocabulary, strict=True):
            tensors[name] = _check_array(arrays[name], name, dtype, shape, rows)
        counts = {len(tensor) for tensor in tensors.values()}
        if len(counts) != 1:
            raise InputError(f"inputs: expected the same number of rows in each array, got {sorted(counts)}")
        return tensors

    def predict_stream(
        self, batches: Iterable[Inputs], *, attention: bool = False, adaptive: Adaptive | None = None
    ) -> Iterator[Prediction]:
        """Yield a prediction for each batch; ``adaptive`` as in :meth:`predict`."""
        count = 0
        for batch in batches:
            pred = self.predict(batch, attention=attention, adaptive=adaptive)
            yield replace(pred, index=np.arange(count, count + len(pred)))
            count += len(pred)

    def predict_texts(self, texts: Sequence[str], *, attention: bool = False) -> Prediction:
        """Answer texts; raises :class:`InputError` if the network does not take texts."""
        if not isinstance(self.preprocess, TextPreprocess):
            raise InputError("texts: this network takes no texts, or its bundle does not say how they become inputs")
        encoded = self.preprocess.encode(texts)
        return self.predict({name: encoded[name] for name in self.input_names if name in encoded}, attention=attention)

    def predict_files(
        self,
        paths: Sequence[str | Path],
        *,
        attention: bool = False,
        batch_size: int = 32,
        on_error: Callable[[str | Path, InputError], None] | None = None,
    ) -> Iterator[Prediction]:
        """Answer image files; yield a prediction for each batch of them, in order.

        Args:
            on_error: called with each file that cannot be read and its error; the file is skipped, and
                :attr:`Prediction.index` has the places of the others. By default the error is raised.

        Raises:
            InputError: for a file that cannot be read, or a bundle that does not say how files become inputs.
        """
        if not isinstance(self.preprocess, Preprocess):
            hint = "" if self.preprocess is None else ", made from raw ones with preprocess.normalise(values)"
            raise InputError(
                f"paths: the bundle does not say how image files become inputs. Fix: pass arrays to predict{hint}."
            )
        if isinstance(paths, str | Path):
            raise InputError(f"paths: expected a list of files, got {paths!r}. Fix: put it in brackets.")
        read = self.preprocess.read

        def answer() -> Iterator[Prediction]:  # a generator apart, so that arguments are checked at the call
            for start in range(0, len(paths), batch_size):
                images: dict[int, Array] = {}
                for i, path in enumerate(paths[start : start + batch_size], start):
                    try:
                        images[i] = read(Path(path))
                    except InputError as error:
                        if on_error is None:
                            raise
                        on_error(path, error)
                if images:
                    pred = self.predict(np.stack(list(images.values())), attention=attention)
                    yield replace(pred, index=np.array(list(images)))

        return answer()

    def name_answer(self, pred: Prediction, i: int) -> str:
        """Return the class name of sample ``i``, or its labels separated by ``;``; numbers if classes have no names.

        Of pixels, it returns the classes with their share of the image, the largest first. It returns numbers, and those
        of a vector, separated by spaces.
        """
        if self.gives_values:
            digits = 12 if pred.labels.dtype == np.float64 else 6
            return " ".join(f"{value:.{digits}g}" for value in pred.labels[i].reshape(-1).tolist())
        if self.gives_pixels:
            shares = np.bincount(pred.labels[i].ravel(), minlength=self.num_classes) / pred.labels[i].size
            order = [c for c in np.argsort(-shares, kind="stable").tolist() if shares[c]]
            return ", ".join(f"{self.classes[c] if self.classes else c} {100 * shares[c]:.1f} %" for c in order)
        labels = np.flatnonzero(pred.labels[i]).tolist() if self.gives_labels else [int(pred.labels[i])]
        return ";".join(self.classes[c] if self.classes else str(c) for c in labels)

    def give_reason(self, pred: Prediction, i: int) -> str:
        """Return in a few words why sample ``i`` was answered at its exit, and what is promised of its map."""
        k, refusing = int(pred.exits[i]), -1 if pred.refused is None else int(pred.refused[i])
        why = f"{self.policy.score.replace('_', ' ')} {pred.confidence[i]:.3f}"
        if k == self.num_exits - 1:
            stayed = "no earlier exit was sure enough"
            if refusing >= 0:
                stayed = f"exit {refusing} was sure enough, but the gate refused its answer"
            why = f"{stayed}{', or its answer was to be checked' if pred.adapts else ''}; {why}"
        elif not pred.adapts and pred.trust is not None:
            why = f"trust of the gate {pred.trust[i]:.3f} >= {self.policy.thresholds[k]:.3f}; {why}"
        elif not pred.adapts:
            why = f"{why} >= {self.policy.thresholds[k]:.3f}"
        promise = "" if pred.adapts else self.policy.describe_binding(k)
        return f"{why}. {promise}" if promise else why


def _check_array(value: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], rows: int | None) -> Array:
    if not isinstance(value, np.ndarray):
        raise InputError(f"{name}: expected a NumPy array, got {type(value).__name__}")
    if value.shape[1:] != shape or value.ndim != len(shape) + 1:
        wanted = ",".join(("B", *map(str, shape)))
        hint = f". Fix: add the batch axis: {name}[None]" if value.shape == shape else ""
        raise InputError(f"{name}: expected ({wanted}), got {value.shape}{hint}")
    if len(value) == 0:
        raise InputError(f"{name}: expected at least one sample, got an empty batch")
    is_float = dtype.kind == "f"
    if is_float and value.dtype != dtype:
        raise InputError(f"{name}: expected {dtype}, got {value.dtype}. Fix: {name}.astype(numpy.{dtype}).")
    if not is_float and value.dtype.kind not in "iub":
        raise InputError(f"{name}: expected integers, got {value.dtype}")
    if is_float and not np.isfinite(value).all():
        raise InputError(f"{name}: expected finite values, got NaN or infinity. Fix: check how these samples are read.")
    if rows is not None and (value.min() < 0 or value.max() >= rows):
        raise InputError(f"{name}: expected tokens in [0, {rows}), got {value.min()} to {value.max()}")
    return np.ascontiguousarray(value, dtype)
