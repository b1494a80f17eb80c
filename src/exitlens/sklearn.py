"""A classifier and a regressor with exits for scikit-learn (extra ``sklearn``; docs/guides/scikit_learn.md)."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from exitlens.data.arrays import MOST_TOKENS, are_texts, arrange, choose_scaling, choose_tokens, prepare
from exitlens.delivery import bundle
from exitlens.errors import BundleError, DataWarning, InputError, import_extra
from exitlens.functional.losses import EGTLoss
from exitlens.io import read_json, write_text
from exitlens.modalities import TEXT, recognise_example
from exitlens.model.attach import attach
from exitlens.model.backbones.build import build_backbone, read_tokenizer
from exitlens.model.network import ExitNet
from exitlens.types import Explanation
from exitlens.types.inputs import Inputs, can_be_channels_last, list_tensors, map_inputs, split_rows, take_rows
from exitlens.types.preprocessing import Preprocessing, TextPreprocess
from exitlens.types.settings import NumberRule, check_number
from exitlens.types.tasks import BY_LABELS, Task
from exitlens.workflow.calibration import calibrate
from exitlens.workflow.collection import collect
from exitlens.workflow.explanation import explain_batch
from exitlens.workflow.inference import predict_stream
from exitlens.workflow.training import fit as training

base: Any = import_extra("sklearn.base", "sklearn", "exitlens.sklearn")
multiclass: Any = import_extra("sklearn.utils.multiclass", "sklearn", "exitlens.sklearn")
validation: Any = import_extra("sklearn.utils.validation", "sklearn", "exitlens.sklearn")

FILE, SEEN = "sklearn.json", ("n_features_in_", "feature_names_in_")  # in a bundle, what scikit-learn needs besides
FEWEST, FOLDS = 4, 5  # samples to fit on; of the samples kept aside, without delta
USUAL_EXITS = ["layer1", "layer2", "layer3"]
BERT: dict[str, Any] = {"model_type": "bert", "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
BERT |= {"intermediate_size": 256, "max_position_embeddings": MOST_TOKENS}  # for texts, if no backbone is named


class _ExitEstimator(base.BaseEstimator):  # type: ignore[misc]
    """What a classifier and a regressor share; ``_read_targets(y)`` of each returns what its network is trained on."""

    _tasks: ClassVar[tuple[Task, ...]]  # of its networks
    _limits: ClassVar[tuple[str, ...]]  # parameters that :func:`exitlens.calibrate` has, too
    _rules: ClassVar[Mapping[str, bool]]  # for scikit-learn's check of y

    def fit(self, X: Any, y: Any) -> Self:
        """Train on a part of the samples, and choose the policy on the others.

        Args:
            X: vectors ``(N,F)``, also as a data frame; images ``(N,C,H,W)`` or ``(N,H,W,C)`` of 1 or 3 channels, whole
                numbers up to 255 or floats in [0, 1]; series ``(N,C,T)``; or N texts. Vectors and series are standardised.
            y: ``(N,)`` labels, numbers or strings; for a regressor ``(N,)`` or ``(N,C)`` numbers.

        Warns:
            DataWarning: with ``delta``, if nothing cheaper than the whole network could be certified.
        """
        if is_text := are_texts(X):
            X, (_, y) = list(X), validation.check_X_y(np.zeros((len(X), 1)), y, **self._rules)
        else:
            X, y = validation.validate_data(self, X, y, allow_nd=True, ensure_min_samples=FEWEST, **self._rules)
            X = arrange(X)
        targets = self._read_targets(y)
        check_number("held_out", self.held_out, NumberRule("a share above 0 and below 1", lambda value: 0 < value < 1))
        seed = int(validation.check_random_state(self.random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            order, count = torch.randperm(len(y)), min(max(1, round(self.held_out * len(y))), len(y) - 2)
            aside, rows = order[:count].sort().values, order[count:]
            if is_text:
                tokenizer = read_tokenizer(self.backbone) if isinstance(self.backbone, str) else None
                preprocess: Preprocessing = choose_tokens([X[i] for i in rows.tolist()], tokenizer)
            else:
                preprocess = choose_scaling(X[rows], getattr(self, "feature_names_in_", ()))
            inputs = prepare(X, preprocess)
            pairs: Any = [(map_inputs(inputs, itemgetter(i)), target) for i, target in enumerate(targets)]
            train, held = (Subset(pairs, part.tolist()) for part in (rows, aside))
            self.net_ = self._attach(take_rows(inputs, rows[:1]), preprocess, targets)
            training.fit(
                self.net_,
                train,
                held,
                loss=None if self.loss_weight is None else EGTLoss(weight=self.loss_weight),
                epochs=self.epochs,
                batch_size=self.batch_size,
                recipe="pretrained" if self.pretrained else "scratch",
                learning_rate=self.learning_rate,
                augment=self.augment,
                seed=seed,
                keep="last",  # so the samples kept aside choose nothing
                progress=self.verbose,
            )
        folds = min(FOLDS, count) if self.delta is None and count > 1 else None
        limits: Any = {name: getattr(self, name) for name in self._limits}
        self.policy_ = calibrate(collect(self.net_, held), delta=self.delta, folds=folds, **limits)
        if self.delta is not None and min(self.policy_.thresholds, default=0.0) == np.inf:
            warnings.warn(self.policy_.certificate(), DataWarning, stacklevel=2)
        return self

    def _attach(self, example: Inputs, preprocess: Preprocessing, targets: Tensor) -> ExitNet:
        """Return a network for such samples, which knows its classes and how samples become inputs."""
        modality, names, backbone = recognise_example(example), getattr(self, "classes_", ()), self.backbone
        answers = len(names) or targets[0].numel()
        if isinstance(backbone, nn.Module):
            source, plain = "", copy.deepcopy(backbone)
        else:
            source, config = backbone or ("hf:" if modality is TEXT else "small"), None if backbone else BERT
            vocabulary = preprocess.vocabulary_size if isinstance(preprocess, TextPreprocess) else None
            channels = modality.count_channels(list_tensors(example)[0].shape[1:])
            plain = build_backbone(source, answers, channels, self.pretrained, config, vocabulary, modality=modality)
        usual = USUAL_EXITS if {*USUAL_EXITS} <= dict(plain.named_children()).keys() else 3
        exits: Any = usual if self.exits is None else self.exits
        at = int(exits) or [] if isinstance(exits, Integral) else exits  # NumPy's integers, too
        task = None if self._tasks == BY_LABELS else self._tasks[0]
        net = attach(plain, at, answers, example, head=modality.head, groups=self.groups, task=task)
        net.describe(classes=tuple(map(str, names)), preprocess=preprocess, source=source or net.info.source)
        return net.to(memory_format=torch.channels_last) if can_be_channels_last(net) else net  # type: ignore[call-overload]

    def predict_exits(self, X: Any) -> Any:
        """Return the exit ``(N,)`` that answers every sample; ``model.cost_[model.predict_exits(X)]`` is what each costs."""
        return self._answer(X, "exits")

    def explain(self, X: Any) -> list[Explanation]:
        """Explain the answer to every sample as :func:`exitlens.explain` does."""
        batches = split_rows(self._read(X), self.batch_size)
        return list(explain_batch(self.net_, batches, self.policy_))

    @property
    def cost_(self) -> Any:
        """Cost ``(K,)`` of an answer by each exit, the final one last, in units of the plain backbone's."""
        return self.net_.cost.numpy()

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a bundle without pickle, which :meth:`load`, :func:`exitlens.load` and the command line read.

        Parameters that JSON cannot hold (modules, generators, functions) are left out.
        """
        validation.check_is_fitted(self)
        target = bundle.save(self.net_, self.policy_, path, overwrite=overwrite)
        record = {name: getattr(self, name) for name in ("classes_", *SEEN) if hasattr(self, name)}
        record |= {"parameters": self.get_params(deep=False)}
        record |= {"dtype": self.classes_.dtype.str} if "classes_" in record else {}
        write_text(target / FILE, json.dumps(record, default=lambda x: x.tolist() if hasattr(x, "tolist") else None))
        return target

    @classmethod
    def load(cls, path: str | Path, *, backbone: nn.Module | None = None) -> Self:
        """Read what :meth:`save` wrote; a ``backbone`` of your own is passed again, and its weights are replaced.

        Raises:
            BundleError: for another directory, or a bundle that was altered.
        """
        (net, policy), place = bundle.load(path, backbone=backbone), Path(path) / FILE
        if policy is None or not place.is_file() or net.info.task not in cls._tasks:
            raise BundleError(f"{path}: not written by {cls.__name__}.save. Fix: read it with exitlens.load.")
        try:
            record = read_json(place)
            model = cls(**record["parameters"] | ({} if backbone is None else {"backbone": backbone}))
            if net.info.task in BY_LABELS:
                model.classes_ = np.array(record["classes_"], dtype=record["dtype"])
            for name in {*SEEN} & {*record}:
                setattr(model, name, np.array(record[name], dtype=object) if name == SEEN[1] else int(record[name]))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{place}: not as it was saved ({error!r}). Fix: save it again.") from error
        model.net_, model.policy_ = net, policy
        return model

    def _answer(self, X: Any, name: str) -> Any:
        """Return what this attribute of the predictions has of every sample."""
        inputs = self._read(X)
        parts = predict_stream(self.net_, inputs, self.policy_, batch_size=self.batch_size)
        return torch.cat([getattr(part, name) for part in parts]).numpy()

    def _read(self, X: Any) -> Inputs:
        validation.check_is_fitted(self)
        preprocess = self.net_.info.preprocess
        if not isinstance(preprocess, TextPreprocess):
            X = arrange(validation.validate_data(self, X, reset=False, allow_nd=True))
        return prepare(X, preprocess)

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn should know of the inputs."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = tags.input_tags.string = True
        return tags


class ExitClassifier(base.ClassifierMixin, _ExitEstimator):  # type: ignore[misc]
    """A network with early exits that is trained, calibrated and asked as scikit-learn's classifiers are.

    :meth:`fit` keeps a random part of the samples aside, trains on the others, and chooses on the part kept aside when early
    exits may answer. Every answer is that of :func:`exitlens.predict`: a sample leaves at the first exit that is sure.

    Args:
        backbone: a module, of which a copy is trained, or a name that :func:`exitlens.build_backbone` knows; by default the
            small network, and for texts a small transformer (extra ``hf``).
        pretrained: the backbone is fine-tuned, gently; a named one starts from the weights that its library offers.
        exits: names of the modules that early exits follow, or their number; by default ``layer1`` to ``layer3``, or 3 where
            the backbone has no such modules.
        groups: of a vector's features, columns by name: maps have a place for each group. Without, vectors have no maps.
        loss_weight: of the agreement of maps in training (:class:`exitlens.EGTLoss`); by default 1, or 0 without maps.
        max_accuracy_drop: accuracy that answering early may cost; 0.01 is a point.
        delta: the limit holds for new data with probability ``1 - delta`` (docs/concepts/guarantees.md). ``None``: it holds
            by cross-validation on the samples kept aside, and nothing is promised.
        held_out: share of the samples to keep aside.
        epochs, batch_size, learning_rate, augment: as in :func:`exitlens.fit`.
        random_state: seed or generator of the split, the weights and the training.
        verbose: show progress.

    Attributes:
        classes_: ``(C,)`` labels, in the order of :meth:`predict_proba`.
        net_: the network. policy_: its thresholds, and what they promise. The verbs of exitlens take both.
        n_features_in_: length of axis 1 of X; texts have none.
        feature_names_in_: names of the columns, after a fit on a data frame.
    """

    _tasks, _limits, _rules = BY_LABELS, ("max_accuracy_drop",), {}

    def __init__(
        self,
        backbone: nn.Module | str | None = None,
        *,
        pretrained: bool = False,
        exits: int | Sequence[str] | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
        loss_weight: float | None = None,
        max_accuracy_drop: float = 0.01,
        delta: float | None = None,
        held_out: float = 0.25,
        epochs: int = 30,
        batch_size: int = 64,
        learning_rate: float | None = None,
        augment: Any = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.backbone, self.pretrained, self.exits, self.groups = backbone, pretrained, exits, groups
        self.loss_weight, self.max_accuracy_drop, self.delta, self.held_out = loss_weight, max_accuracy_drop, delta, held_out
        self.epochs, self.batch_size, self.learning_rate, self.augment = epochs, batch_size, learning_rate, augment
        self.random_state, self.verbose = random_state, verbose

    def predict(self, X: Any) -> Any:
        """Return the label ``(N,)`` of every sample, by the first exit that is sure."""
        labels = self._answer(X, "labels")
        return self.classes_[labels]

    def predict_proba(self, X: Any) -> Any:
        """Return probabilities ``(N,C)`` ``float32`` of the classes, by the exit that answers."""
        return self._answer(X, "probabilities")

    def _read_targets(self, y: Any) -> Tensor:  # (N,) int64
        """Return the numbers of labels among the classes, which it keeps."""
        multiclass.check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(y) < FEWEST or len(self.classes_) < 2:
            got = f"{len(y)} samples of the class(es) {self.classes_.tolist()}"
            raise InputError(f"y: expected {FEWEST} samples or more, of two classes or more, got {got}. Fix: add samples.")
        return torch.tensor(numbers)


class ExitRegressor(base.RegressorMixin, _ExitEstimator):  # type: ignore[misc]
    """A network with early exits that answers numbers, one or several a sample, as scikit-learn's regressors do.

    It is fitted as :class:`ExitClassifier` is. Its limits are in spreads: standard deviations of the training targets, which
    ``net_.info.units`` keeps (docs/guides/vectors.md).

    Args:
        max_error_increase: mean absolute error that answering early may add.
        max_deviation: mean absolute difference from the full network's numbers that answering early may make.

    The other arguments and attributes are those of :class:`ExitClassifier`, which alone has ``classes_``.
    """

    _tasks, _limits = ("regression",), ("max_error_increase", "max_deviation")
    _rules = {"multi_output": True, "y_numeric": True}  # noqa: RUF012

    def __init__(
        self,
        backbone: nn.Module | str | None = None,
        *,
        pretrained: bool = False,
        exits: int | Sequence[str] | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
        loss_weight: float | None = None,
        max_error_increase: float | None = 0.02,
        max_deviation: float | None = None,
        delta: float | None = None,
        held_out: float = 0.25,
        epochs: int = 30,
        batch_size: int = 64,
        learning_rate: float | None = None,
        augment: Any = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.backbone, self.pretrained, self.exits, self.groups = backbone, pretrained, exits, groups
        self.loss_weight, self.max_error_increase, self.max_deviation = loss_weight, max_error_increase, max_deviation
        self.delta, self.held_out, self.epochs, self.batch_size = delta, held_out, epochs, batch_size
        self.learning_rate, self.augment = learning_rate, augment
        self.random_state, self.verbose = random_state, verbose

    def predict(self, X: Any) -> Any:
        """Return the number ``(N,)`` or numbers ``(N,C)`` of every sample, by the first exit that is sure.

        They are ``float32``, or ``float64`` where targets vary so little about their mean that ``float32`` would round them.
        """
        return self._answer(X, "labels")

    def _read_targets(self, y: Any) -> Tensor:  # (N,) or (N,C) float64
        if len(y) < FEWEST:
            raise InputError(f"y: expected {FEWEST} samples or more, got {len(y)}. Fix: add samples.")
        return torch.tensor(np.asarray(y, dtype=np.float64))

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn should know of inputs and targets."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
