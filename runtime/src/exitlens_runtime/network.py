"""The network: each sample leaves at the first exit that is sure, and later files run on those that stay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exitlens_runtime.answers import Answers, Prediction
from exitlens_runtime.errors import InputError, PolicyError
from exitlens_runtime.reading import Preprocess, Scaling, TextPreprocess, read_preprocess
from exitlens_runtime.routing import DECIDED, Array, Policy, decide, find_divergence, find_probabilities, find_score
from exitlens_runtime.sessions import Session

Inputs = Array | Mapping[str, Array]


class EdgeNetwork:
    """What :func:`exitlens_runtime.load` gives. Threads may share it.

    Attributes:
        classes: names, in label order; empty where the network has none.
        num_exits: K, the final exit included.
        gives_labels: answers are any number of labels, not one class.
        cost: ``(K,)`` multiply-accumulates up to each exit over the plain backbone's.
        manifest: all that the bundle says of itself.
        policies: those of the bundle by name; ``default`` is its own.
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
        self.gives_labels = manifest.get("task") == "multilabel"
        self.cost = np.asarray(manifest["cost"])
        axes = len(manifest["inputs"][0]["shape"]) - 1
        self.preprocess: Preprocess | TextPreprocess | Scaling | None = read_preprocess(manifest["preprocess"], axes)
        self._inputs = [(one["name"], np.dtype(one["dtype"]), tuple(one["shape"])) for one in manifest["inputs"]]
        self._names = set(self.input_names)
        self._vocabulary = manifest["vocabulary"]
        self._offsets = manifest["map_offsets"]
        self._policy = self._check(policy)
        self._needed = [policy.needs(k) for k in range(self.num_exits)]  # asked for at every answer

    @property
    def policy(self) -> Policy:
        """When each exit answers; :meth:`with_policy` takes another."""
        return self._policy

    @property
    def input_names(self) -> list[str]:
        """Of the tensors that it takes."""
        return [name for name, _, _ in self._inputs]

    def with_policy(self, policy: str | Policy | Mapping[str, Any]) -> EdgeNetwork:
        """The same network under another policy, or the one of that name; nothing is opened again."""
        if isinstance(policy, str) and policy not in self.policies:
            raise PolicyError(f"policy: the bundle has {list(self.policies)}, none named {policy!r}: give one of these")
        known = self.policies[policy] if isinstance(policy, str) else policy
        chosen = known if isinstance(known, Policy) else Policy.from_dict(known)
        return EdgeNetwork(self.manifest, self._sessions, chosen, self.policies)

    def _check(self, policy: Policy) -> Policy:
        if len(policy.temperatures) != self.num_exits:
            raise PolicyError(f"policy: it is for {len(policy.temperatures)} exits, the network has {self.num_exits}")
        if (policy.score == DECIDED) != self.gives_labels:
            answers = "several labels a sample" if self.gives_labels else "one class a sample"
            raise PolicyError(f"policy: its score is {policy.score!r}, the network gives {answers}: calibrate one for it")
        own = self.manifest["network"]
        if policy.network and policy.network != own:
            raise PolicyError(f"policy: it was calibrated for network {policy.network}, this is {own}: calibrate one for it")
        missing = [k for k in range(self.num_exits) if policy.needs(k) and k not in self._sessions]
        if missing:
            raise PolicyError(
                f"policy: it uses exits {missing}, the bundle has {list(self._sessions)}: export with this policy"
            )
        return policy

    def predict(self, inputs: Inputs, *, attention: bool = False) -> Prediction:
        """Answers each sample of a batch at the first exit whose score reaches its threshold.

        Args:
            inputs: as the network takes them: ``float32`` ``(B,C,H,W)``, normalised, or arrays by name.
            attention: also give the attention map of the exit that answered.

        Raises:
            InputError: for inputs that the network cannot take; nothing runs then.
        """
        tensors = self.check(inputs)
        count = len(next(iter(tensors.values())))
        answers = Answers(count, self.num_classes, attention, self.policy.gate is not None, self.gives_labels)
        self._route(tensors, answers)
        if not math.isfinite(answers.p.sum()):
            raise InputError(
                "inputs: the answers are NaN or infinite for these: check that they are normalised (huge values overflow), "
                "else export the network again"
            )
        return answers.close()

    def _route(self, tensors: dict[str, Array], answers: Answers) -> None:
        """Runs one file after the other on the samples that are left."""
        where, policy = np.arange(answers.count), self.policy
        previous: tuple[int, Array] | None = None  # the exit before, and its maps
        for k, session in self._sessions.items():
            logits, maps, *crossing = session.run(tensors)
            p = find_probabilities(logits, policy.temperatures[k], policy.score)
            before = previous[1] if previous is not None and previous[0] == k - 1 else None
            if k == self.num_exits - 1:
                trust = np.zeros(len(where), np.float32) if answers.gated else None
                answers.fill(k, where, p, find_score(p, policy.score), maps, self._offsets[k], trust)
                if before is not None:
                    answers.last[where] = find_divergence(before, maps)
                return
            if self._needed[k]:
                scores, fired, trust = decide(policy, k, p, maps, before)
                leaving = np.count_nonzero(fired)
                if leaving == len(where):
                    answers.fill(k, where, p, scores, maps, self._offsets[k], trust)
                    return
                if leaving:
                    own = None if trust is None else trust[fired]
                    answers.fill(k, where[fired], p[fired], scores[fired], maps[fired], self._offsets[k], own)
                    rows = np.flatnonzero(~fired)
                    where, maps, crossing = where[rows], maps[rows], [x.take(rows, 0) for x in crossing]
                previous = (k, maps) if answers.gated else None
            tensors = dict(zip(session.outputs[2:], crossing, strict=True))

    def compute_outputs(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Logits ``logits_K`` and attention ``attention_K`` of every exit K in the bundle, not placed in the image."""
        tensors, found = dict(inputs), dict[str, Array]()
        for k, session in self._sessions.items():
            logits, maps, *crossing = session.run(tensors)
            found |= {f"logits_{k}": logits, f"attention_{k}": maps}
            tensors = dict(zip(session.outputs[2:], crossing, strict=True))
        return found

    def check(self, inputs: Inputs) -> dict[str, Array]:
        """The tensors by name, contiguous; raises :class:`InputError` for what the network cannot take."""
        given: Mapping[str, Any] = inputs if isinstance(inputs, Mapping) else {self._inputs[0][0]: inputs}
        if given.keys() != self._names:
            raise InputError(f"inputs: expected arrays named {self.input_names}, got {sorted(given)}")
        tensors: dict[str, Array] = {}
        for (name, dtype, shape), rows in zip(self._inputs, self._vocabulary, strict=True):
            tensors[name] = _check_array(given[name], name, dtype, shape, rows)
        counts = {len(one) for one in tensors.values()}
        if len(counts) != 1:
            raise InputError(f"inputs: expected as many rows in each array, got {sorted(counts)}")
        return tensors

    def predict_stream(self, batches: Iterable[Inputs], *, attention: bool = False) -> Iterator[Prediction]:
        """A prediction for each batch, as they come."""
        count = 0
        for batch in batches:
            found = self.predict(batch, attention=attention)
            yield Prediction(**{**vars(found), "index": np.arange(count, count + len(found))})
            count += len(found)

    def predict_texts(self, texts: Sequence[str], *, attention: bool = False) -> Prediction:
        """Answers texts; raises :class:`InputError` for a network that takes none."""
        if not isinstance(self.preprocess, TextPreprocess):
            raise InputError("texts: this network takes none, or its bundle does not say how they become inputs")
        encoded = self.preprocess.encode(texts)
        return self.predict({name: encoded[name] for name in self.input_names if name in encoded}, attention=attention)

    def name_answer(self, found: Prediction, i: int) -> str:
        """The class of sample ``i`` by name, or its labels with ``;`` between; numbers where the network has no names."""
        told = np.flatnonzero(found.labels[i]).tolist() if self.gives_labels else [int(found.labels[i])]
        return ";".join(self.classes[c] if self.classes else str(c) for c in told)

    def give_reason(self, found: Prediction, i: int) -> str:
        """Why sample ``i`` was answered where it was, in a few words."""
        k, score = int(found.exits[i]), float(found.confidence[i])
        name = self.policy.score.replace("_", " ")
        if k == self.num_exits - 1:
            return f"no earlier exit was sure enough; {name} {score:.3f}"
        return f"{name} {score:.3f} >= {self.policy.thresholds[k]:.3f}"

    def predict_files(
        self, paths: Sequence[str | Path], *, attention: bool = False, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """Answers image files, a prediction for each batch of them, in order.

        Raises:
            InputError: for a file that cannot be read, or a network that does not say how files become inputs.
        """
        if not isinstance(self.preprocess, Preprocess):
            mend = "" if self.preprocess is None else ", of raw ones preprocess.normalise(values)"
            raise InputError(f"paths: the bundle does not say how image files become inputs: pass arrays to predict{mend}")
        if isinstance(paths, str | Path):
            raise InputError(f"paths: expected a list of files, got {paths!r}: put it in brackets")
        own = self.preprocess
        parts = (paths[at : at + batch_size] for at in range(0, len(paths), batch_size))
        return self.predict_stream((np.stack([own.read(Path(p)) for p in part]) for part in parts), attention=attention)


def _check_array(value: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], rows: int | None) -> Array:
    if not isinstance(value, np.ndarray):
        raise InputError(f"{name}: expected a NumPy array, got {type(value).__name__}")
    if value.shape[1:] != shape or value.ndim != len(shape) + 1:
        wanted = ",".join(("B", *map(str, shape)))
        hint = f" (add the batch axis: {name}[None])" if value.shape == shape else ""
        raise InputError(f"{name}: expected ({wanted}), got {value.shape}{hint}")
    if len(value) == 0:
        raise InputError(f"{name}: the batch is empty: pass at least one sample")
    is_float = dtype.kind == "f"
    if is_float and value.dtype != dtype:
        raise InputError(f"{name}: expected {dtype}, got {value.dtype}: convert with {name}.astype(numpy.{dtype})")
    if not is_float and value.dtype.kind not in "iub":
        raise InputError(f"{name}: expected integers, got {value.dtype}")
    if is_float and not np.isfinite(value).all():
        raise InputError(f"{name}: expected finite values, got NaN or Inf: check how these samples are read")
    if rows is not None and (value.min() < 0 or value.max() >= rows):
        raise InputError(f"{name}: expected tokens in [0, {rows}), got {value.min()} to {value.max()}")
    return np.ascontiguousarray(value, dtype)
