"""ExitNet: the stages of a backbone with an exit head after each; its inputs, and the record of how it was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from itertools import accumulate, chain
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from exitlens.display import html_table
from exitlens.errors import InputError, require
from exitlens.functional.answers import Units, standardise
from exitlens.functional.losses import EGTLoss
from exitlens.functional.maps import answer_score, gradient_x_input, place
from exitlens.functional.schedules import one_cycle_rate
from exitlens.modalities import Modality, find_modality
from exitlens.model._torch_compat import list_member_tables
from exitlens.model.cutting.boundaries import Kind
from exitlens.model.cutting.split import Activations, Stage
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.manager import EngineManager, tune
from exitlens.model.engine.tuning import Tuning, name_network
from exitlens.model.heads import ExitHead, HeadKind, enlarge_logits, have_maps, require_maps
from exitlens.model.mixing import Mixing, has_self_attention, open_inputs
from exitlens.types import ExitOutput, LossTerms, Policy
from exitlens.types.inputs import MASK, Groups, InputFormat, Inputs
from exitlens.types.outputs import exit_name
from exitlens.types.preprocessing import Preprocessing
from exitlens.types.settings import COUNT, NECK_SHARE, check_choice, check_number
from exitlens.types.tasks import BY_LABELS, TASKS, USUAL_SCORES, Task, count_answers, refuse_task
from exitlens.types.tiles import Tiles

Final = Literal["head", "keep"]


class InputSpec(InputFormat):
    """The inputs that a network takes, with their check."""

    @property
    def modality(self) -> Modality:
        """Their modality."""
        return find_modality(self.names, self.shape, self.dtypes, self.shapes).adapt(self)

    def check(self, inputs: Inputs, name: str, like: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors in the first stage's order; see :meth:`exitlens.modalities.base.Modality.check`."""
        return self.modality.check(inputs, self, name, like)


@dataclass(frozen=True)
class NetworkInfo:
    """Record of how a network was made, sufficient to build it again, and of what its inputs and outputs mean."""

    at: tuple[str, ...]  # names of the modules that early exits follow
    num_classes: int
    final: Final
    input_shape: tuple[int, ...]  # one sample's: (C,H,W) for an image, (N,) for a text; with several inputs, the first's
    source: str = ""  # empty for the user's own module, which ``xl.load(dir, backbone=...)`` takes
    classes: tuple[str, ...] = ()
    preprocess: Preprocessing | None = None
    layout: Kind | None = None
    inputs: tuple[str, ...] = ()  # names; empty for one tensor alone
    dtypes: tuple[str, ...] = ()  # those of tokens and masks; empty for floats, which have the network's dtype
    config: dict[str, Any] | None = None  # a transformers model's
    head: HeadKind = "evidence"
    neck_share: float = NECK_SHARE
    map_offsets: tuple[tuple[float, ...], ...] = ()  # how far each exit's map is off its cells, in cells; empty: not at all
    feature_offsets: tuple[tuple[float, ...], ...] = ()  # the same for its features, whose grid a neck may change
    input_shapes: tuple[tuple[int, ...], ...] = ()  # one sample's, for several inputs of different kinds
    groups: Groups = ()  # for a vector, the groups of features that maps lie on
    task: Task = "classes"
    members: tuple[NetworkInfo, ...] = ()  # of a cascade
    end: str = ""  # name of the module that ends it; empty: the whole backbone
    units: Units = ()  # of numbers: mean and spread of each in the training data; empty: as they are

    def __post_init__(self) -> None:
        check_choice("task", self.task, TASKS)

    @property
    def modality(self) -> Modality:
        """Modality of the inputs."""
        dtypes = [getattr(torch, name) for name in self.dtypes]
        return find_modality(self.inputs, self.input_shape, dtypes, self.input_shapes)

    @property
    def channels(self) -> int:
        """Channels of a sample, for building the backbone again."""
        return self.modality.count_channels(self.input_shape)

    def read_targets(self, labels: Tensor) -> Tensor:
        """Return labels as losses take them: numbers as the network gives them, and others as they are."""
        return standardise(labels, self.units) if self.task == "regression" else labels

    def place(self, k: int, maps: Tensor) -> Tensor:
        """Move maps ``(...,*S)`` of exit k to their place in the image, to be drawn, deleted or compared with a mask."""
        return place(maps, self.map_offsets[k]) if self.map_offsets else maps

    def place_relevance(self, k: int, maps: Tensor) -> Tensor:
        """Move maps on the grid of exit k's features, as :meth:`place` does."""
        return place(maps, self.feature_offsets[k]) if self.feature_offsets else maps

    def example(self, like: Tensor) -> Inputs:
        """Return an example with which :func:`exitlens.attach` makes the network again, on the device of ``like``."""
        dtypes = [getattr(torch, name) for name in self.dtypes] or [like.dtype] * max(1, len(self.inputs))
        shapes = self.input_shapes or [self.input_shape] * len(dtypes)
        pairs = zip(shapes, dtypes, strict=True)
        zeros = [torch.zeros(1, *shape, dtype=dtype, device=like.device) for shape, dtype in pairs]
        named = dict(zip(self.inputs, zeros, strict=False))
        if MASK in named:
            named[MASK] = torch.ones_like(named[MASK])
        return named or zeros[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["preprocess"] = None if self.preprocess is None else self.preprocess.to_dict()
        return values | {"members": [member.to_dict() for member in self.members]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkInfo:
        """Inverse of :meth:`to_dict`."""
        members, preprocess = tuple(map(cls.from_dict, values.get("members", ()))), values["preprocess"]
        rest = {name: _to_tuples(value) for name, value in values.items() if name not in ("members", "preprocess")}
        info = cls(**rest, members=members)
        return info if preprocess is None else replace(info, preprocess=info.modality.preprocess.from_dict(preprocess))

    @classmethod
    def from_edge(cls, manifest: Mapping[str, Any]) -> NetworkInfo:
        """Return what the manifest of an edge bundle says of its network."""
        names, kinds = (tuple(str(given[key]) for given in manifest["inputs"]) for key in ("name", "dtype"))
        shapes = tuple(tuple(given["shape"]) for given in manifest["inputs"])
        has_floats = any(kind.startswith("float") for kind in kinds)
        is_alone = has_floats and len(names) == 1
        info = cls(
            at=("",) * (int(manifest["num_exits"]) - 1),
            num_classes=int(manifest["num_classes"]),
            final="head",
            input_shape=shapes[0],
            classes=tuple(manifest["classes"]),
            inputs=() if is_alone else names,
            dtypes=() if is_alone else kinds,
            input_shapes=shapes if has_floats and not is_alone else (),
            map_offsets=tuple(map(tuple, manifest["map_offsets"])),
            task=manifest.get("task", "classes"),
            units=_to_tuples(manifest.get("units", ())),
        )
        preprocess = manifest["preprocess"]
        return info if preprocess is None else replace(info, preprocess=info.modality.preprocess.from_dict(preprocess))


def _to_tuples(value: Any) -> Any:
    return tuple(map(_to_tuples, value)) if isinstance(value, list | tuple) else value


class Observation(NamedTuple):
    """What one pass in training computes.

    Attributes:
        outputs: of every exit, final last.
        shallow: ``(B,D,*S)``, the backbone's features at exit 0, before any neck (0 at padding), detached, or ``None``.
        features: ``(B,D,*S)`` of every exit, after its neck, that its output was computed from (0 at padding), if asked for.
        relevance: ``(B,*S)``, see :meth:`ExitNet.observe`, if it was asked for.
    """

    outputs: tuple[ExitOutput, ...]
    shallow: Tensor | None
    features: tuple[Tensor, ...] | None = None
    relevance: Tensor | None = None


class ExitNet(nn.Module):
    """Stages with an exit head after each; calling it runs them all.

    Attributes:
        stages: K modules that run alone, one after the other.
        heads: K exit heads; the last is the final exit's.
        cost: ``(K,)`` cumulative MACs up to and including exit k's head over the plain backbone's MACs.
        head_share: all heads' MACs over the plain backbone's (the kept classifier of ``final="keep"`` is the backbone's).
        info: record of how the network was made.
        input_spec: the inputs it takes.
        has_self_attention: True if its stages mix locations by attention, as transformers do.
        engine: runs the network to answer; see :class:`~exitlens.model.engine.manager.EngineManager`.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        heads: Sequence[ExitHead],
        cost: Tensor,
        head_share: float,
        info: NetworkInfo,
        input_spec: InputSpec,
        source: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)
        self.cost, self.head_share = cost, head_share
        self.info, self.input_spec = info, input_spec
        self.has_self_attention = has_self_attention(stages)
        self.engine = EngineManager(self.stages, self.heads, self._make_example)
        self.__dict__["_source"] = source  # shares its buffers, but is no submodule

    @property
    def num_exits(self) -> int:
        """K, the final exit included."""
        return len(self.heads)

    @property
    def map_offsets(self) -> tuple[tuple[float, ...], ...]:
        """Offset of every exit's map from its cells, in cells along each axis; see docs/concepts/method.md."""
        return self.info.map_offsets or ((0.0,) * (len(self.info.input_shape) - 1),) * self.num_exits

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.weight.device

    @property
    def weight(self) -> nn.Parameter:
        """A parameter, whose device and dtype inputs take; of the first head, unless it has none."""
        return next(chain(self.heads[0].parameters(), self.parameters()))

    @property
    def is_channels_last(self) -> bool:
        """True if weights are in the memory format channels_last. Bundles keep it, so that answers are bitwise equal."""
        last = torch.channels_last
        return any(p.ndim == 4 and p.is_contiguous(memory_format=last) and not p.is_contiguous() for p in self.parameters())

    def stage(self, k: int) -> Stage:
        """Return stage k, which runs between exit k-1 and exit k."""
        return cast(Stage, self.stages[k])

    def head(self, k: int) -> ExitHead:
        """Return the head of exit k."""
        return cast(ExitHead, self.heads[k])

    def first_exit(self, k: int) -> int:
        """Return the first exit with whose features exit k's answer begins: 0, or in a cascade the first of its member."""
        starts = accumulate((len(member.at) + 1 for member in self.info.members), initial=0)
        return max(start for start in starts if start <= k)

    def __repr__(self) -> str:
        info, heads = self.info, "" if self.info.members else f" with {self.info.head} heads"
        exits = f"{self.num_exits} exits{heads}"
        backbone = info.source or type(self.__dict__["_source"]).__name__
        backbone += f" up to {info.end}" if info.end else ""
        return f"ExitNet({backbone}, {exits}, {count_answers(info.task, info.num_classes)}, input {info.input_shape})"

    def _repr_html_(self) -> str:
        rows = []
        for k, module in enumerate([*self.info.at, self.info.end or "the end"]):
            count = f"{sum(p.numel() for p in self.stage(k).parameters()):,}"
            rows.append([exit_name(k, self.num_exits), module, f"{self.cost[k]:.3f}", type(self.head(k)).__name__, count])
        return html_table(["exit", "after", "cost", "head", "parameters of the stage"], rows, repr(self))

    def forward(self, inputs: Inputs, separate_maps: bool = False) -> tuple[ExitOutput, ...]:
        """Return the outputs of every exit for images ``(B,C,H,W)`` or tensors by name; the final exit comes last.

        Logits of pixels are ``(B,C,H,W)``, of the size of the images.
        With ``separate_maps``, gradients of the attention maps reach the heads only, not the backbone.
        """
        return tuple(self._walk(self.unpack(inputs), separate_maps))

    def observe(
        self, inputs: Inputs, separate_maps: bool = False, *, features: bool = False, relevance: bool = False
    ) -> Observation:
        """Run all exits once, and return their outputs with what a loss may ask for besides.

        Relevance is that of exit 0's features for the final exit's answer: gradient times input of the answer's logit minus
        the mean logit, summed over channels: ``(B,*S)`` on the grid of exit 0's features, signed, detached (0 at padding).
        In networks with attention it is taken at the first tensor of that shape that a layer norm reads before any
        attention, if there is any, and operations that mix locations are held constant (model/mixing.py).
        """
        if relevance:
            refuse_task(self.info.task, "relevance: it", (*BY_LABELS, "regression"))
        activations = self.unpack(inputs)
        first_input = activations[0]
        outputs: list[ExitOutput] = []  # list[ExitOutput]() would break the graph of torch.compile
        pooled: list[Tensor] = []
        mixing = Mixing() if relevance and self.has_self_attention else None
        if mixing:
            activations = open_inputs(activations, self.stage(0))
        for k, stage in enumerate(self.stages):
            with mixing or nullcontext():
                activations = stage(*activations)
            if k == 0:
                if relevance and not activations[0].requires_grad:
                    activations = (activations[0].detach().requires_grad_(), *activations[1:])
                start, first = activations, mixing.find_unmixed(activations[0]) if mixing else activations[0]
            if features:
                output, located = self.head(k).with_features(*activations)
                pooled.append(located)
            else:
                output = self.head(k).answer(activations, separate_maps)
            outputs.append(enlarge_logits(output, first_input))
        shallow = self.head(0).features(*(tensor.detach() for tensor in start))
        traced = None
        if relevance:
            score = answer_score(outputs[-1].logits, self.info.task)
            with mixing.fixed() if mixing else nullcontext():
                shares = gradient_x_input(score, first, start[0], retain_graph=True)
            traced = self.head(0).sum_shares(shares, *start)
        return Observation(tuple(outputs), shallow, tuple(pooled) if features else None, traced)

    def choose_loss(self, loss: EGTLoss | None = None, frozen: bool = False) -> EGTLoss:
        """Return the loss with all settings chosen to suit this network; by default EGT if its exits have maps.

        Without maps, and in a cascade, the default is classification alone. ``frozen``: the backbone is not trained.
        """
        if loss is None:
            loss = EGTLoss(weight=1.0 if have_maps(self.heads) and not self.info.members else 0.0)
        elif loss.weight > 0:
            require_maps(self.heads, "a loss with a weight above 0")
            if self.info.members:
                raise InputError(
                    "loss: members of a cascade share no features, so no map can be pulled towards another's. Fix: pass "
                    "EGTLoss(weight=0), or EGTLoss(weight=0, distill=0.5) if the last one is to teach the others."
                )
        attends = self.has_self_attention and not frozen
        kind = self.info.final == "keep", self.info.modality.name == "image", self.info.task
        loss = loss.for_network(attends, *kind)
        loss.check_size(self.num_exits, self.info.num_classes)
        return loss

    def with_loss(self, loss: EGTLoss | None = None, *, steps: int, epochs: int) -> Objective:
        """Return this network and its loss as one module, for a training loop of your own (docs/guides/loops.md).

        ``terms, outputs = net.with_loss(steps=900, epochs=3)(images, labels, step)`` is what :func:`exitlens.fit` computes
        at that step (from 0): the :class:`~exitlens.types.LossTerms`, to call ``backward`` on their ``total``, and the
        output of every exit. DistributedDataParallel and other trainers wrap the module as any other; it trains this
        network, which is used by itself afterwards. In evaluation mode the loss is the classification term alone.

        ``torch.optim.lr_scheduler.LambdaLR(optimizer, model.scale_rate)`` gives the learning rates of ``fit``, too.

        Args:
            loss: settings left open are chosen to suit the network (:meth:`choose_loss`).
            steps: of the optimiser, in the whole training; the weight of consistency rises over them.
            epochs: passes over the data that these steps are; see ``spread`` of :class:`~exitlens.EGTLoss`.
        """
        require(loss, EGTLoss | None, "loss", "call any other on the outputs of net(images)")
        check_number("steps", steps, COUNT)
        check_number("epochs", epochs, COUNT)
        return Objective(self, loss, steps, epochs)

    def unpack(self, inputs: Inputs) -> Activations:
        """Return the tensors that the first stage takes, unchecked."""
        return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs[name] for name in self.input_spec.names)

    def walk(self, inputs: Inputs) -> Iterator[ExitOutput]:
        """Check the inputs, then yield the exits' outputs; stage k+1 runs only when exit k+1 is asked for."""
        return self._walk(self.check_input(inputs))

    def _walk(self, activations: Activations, separate_maps: bool = False) -> Iterator[ExitOutput]:
        first_input = activations[0]
        for k, stage in enumerate(self.stages):
            activations = stage(*activations)
            yield enlarge_logits(self.head(k).answer(activations, separate_maps), first_input)

    def check_input(self, inputs: Inputs, name: str = "images") -> Activations:
        """Return the tensors that the first stage takes; raise :class:`InputError` for inputs it cannot take."""
        return self.input_spec.check(inputs, name, self.weight)

    def check_policy(self, policy: Policy, tiles: Tiles | None = None) -> None:
        """Raise :class:`InputError` for another object, :class:`PolicyError` for a policy of another network or tiles."""
        require(policy, Policy, "policy", "see exitlens.calibrate")
        policy.check(self.num_exits, self.identity() if policy.network else "", self.info.task)
        policy.check_tiles(tiles)

    def _make_example(self) -> Activations:
        return self.unpack(self.info.example(self.weight))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the original backbone, so that copies and pickles share nothing with it."""
        return self.__dict__ | {"_source": None}

    def fingerprint(self) -> str:
        """Return the first 16 hex digits of a SHA-256 over every tensor of the state."""
        return self.engine.weights.compute_fingerprint()

    def cached_fingerprint(self) -> str:
        """:meth:`fingerprint`, recomputed only after a change was noticed (a few writes to ``.data`` are not)."""
        return self.engine.weights.fingerprint

    def identity(self) -> str:
        """Return the name in policies and traces: the fingerprint, and the precision where tuning changed it."""
        return name_network(self.cached_fingerprint(), self.engine.precision)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state as ``torch.nn.Module.load_state_dict`` does, and forget the fingerprint."""
        self.engine.forget()
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # what to(), double(), cuda() call
        """Apply ``fn`` as ``torch.nn.Module._apply`` does; shared buffers (also with the source) stay one tensor."""
        self.engine.forget()
        changed: dict[int, tuple[Tensor, Tensor]] = {}

        def once(t: Tensor) -> Tensor:
            if id(t) not in changed:
                changed[id(t)] = (t, fn(t))  # keeping t keeps its id unique
            return changed[id(t)][1]

        moved: Any = super()._apply(once, recurse)  # type: ignore[no-untyped-call]
        source: nn.Module | None = self.__dict__["_source"]
        for module in source.modules() if source is not None else ():
            buffers = list_member_tables(module)[2]
            for name, buffer in buffers.items():
                if buffer is not None and id(buffer) in changed:
                    buffers[name] = changed[id(buffer)][1]
        return moved

    @property
    def tuning(self) -> Tuning:
        """Settings that the network answers with; for an untuned network, the static default."""
        return self.engine.tuning

    @tuning.setter
    def tuning(self, value: Tuning) -> None:
        require(value, Tuning, "tuning")
        self.engine.tuning = value

    @property
    def is_tuned(self) -> bool:
        """True if a tuning was set: by :meth:`tune`, by hand or by a bundle."""
        return self.engine.is_tuned

    def open_engine(self) -> AbstractContextManager[Engine]:
        """Open the context to answer in and yield the engine: evaluation mode, no autograd. Threads may share it."""
        return self.engine.open()

    def tune(
        self,
        example: Inputs,
        *,
        policy: Policy | None = None,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        min_agreement: float = 0.99,
        seconds: float = 4.0,
        backend: Literal["auto", "torch", "onnx"] = "auto",
    ) -> Tuning:
        """Find the fastest :class:`~exitlens.model.engine.tuning.Tuning` on this machine by measuring; set and return it.

        Backend, memory format, precision, micro-batch and threads are tried in turn; :func:`exitlens.save` stores the
        result. Calibrate after tuning: :func:`exitlens.collect` then records the tuned network's outputs. A network in
        bfloat16 refuses policies of the same network in float32, and vice versa.

        Args:
            example: representative inputs; judging bfloat16 takes 300 or more.
            policy: a policy whose answers bfloat16 has to keep, beside the labels of every exit.
            precision: ``auto`` takes bfloat16 if it is faster and keeps the decisions (never with one class a pixel).
            min_agreement: share of decisions that bfloat16 has to keep, with 95 % confidence (exact binomial bound).
            seconds: approximate time to measure; large networks take longer, and writing ONNX files a few seconds more.
            backend: ``auto`` also tries ONNX Runtime if the extra ``onnx`` is installed.
        """
        if precision == "bfloat16":
            refuse_task(self.info.task, "precision: judging bfloat16")
        policy, activations = self._choose_policy(policy), self.check_input(example, "example")
        self.engine.use(tune(self.engine.parts, activations, policy, precision, min_agreement, seconds, backend))
        return self.tuning

    def _choose_policy(self, policy: Policy | None) -> Policy:
        require(policy, Policy | None, "policy", "see exitlens.calibrate")
        chosen = policy or Policy((0.0,) * (self.num_exits - 1), USUAL_SCORES[self.info.task])
        self.check_policy(chosen)
        return chosen

    def compile(  # type: ignore[override]
        self, policy: Policy | None = None, *, attention: bool = False, progress: bool = False
    ) -> dict[int, float]:
        """Compile every stage with its head by ``torch.compile``, for any number of samples, and return seconds by stage.

        The weights become constants of the code, so call it again after further training or loading other weights.
        ``deepcopy`` and ``save`` leave the compiled code out.

        Args:
            policy: its score and the exits that it lets fire are compiled; by default all exits.
            attention: compile for predictions with attention maps.
            progress: show a progress bar.

        Raises:
            EngineError: where PyTorch cannot compile on this machine (it needs a C++ compiler).
        """
        return self.engine.compile(self._choose_policy(policy), attention, progress)

    def describe(self, **values: Any) -> None:
        """Record class names, preprocessing, source or task in :attr:`info`, which travels with the bundle."""
        self.info = replace(self.info, **values)


class Objective(nn.Module):
    """A network and its loss in one module; see :meth:`ExitNet.with_loss`."""

    def __init__(self, net: ExitNet, loss: EGTLoss | None, steps: int, epochs: int) -> None:
        super().__init__()
        self.net, self.steps, self.epochs = net, steps, epochs
        self.frozen = not any(p.requires_grad for p in net.stages.parameters())
        self.loss = net.choose_loss(loss, self.frozen)
        self.judge = replace(self.loss, weight=0.0, distill=0.0)  # in evaluation mode

    def forward(self, inputs: Inputs, labels: Tensor, step: int | None = None) -> tuple[LossTerms, tuple[ExitOutput, ...]]:
        """Return the loss of a batch at a step of the training, from 0, and the output of every exit."""
        labels = self.net.info.read_targets(labels)
        if not self.training:
            outputs = self.net(inputs)
            return self.judge(outputs, labels), outputs
        if step is None:
            raise InputError(
                "step: expected the step of the optimiser, from 0, got none. Fix: pass it, or call eval() to validate."
            )
        loss, progress = self.loss.at(step, self.steps, self.epochs)
        # a compiled stage would take the backward pass of relevance through what must be held constant
        observe = torch.compiler.disable(self.net.observe) if loss.needs_relevance else self.net.observe
        seen = observe(inputs, **loss.ask(self.frozen))
        additions = {} if seen.relevance is None else {"relevance": seen.relevance}
        return loss(seen.outputs, labels, progress, seen.features, **additions), seen.outputs

    def scale_rate(self, step: int) -> float:
        """Return the learning rate of :func:`exitlens.fit` at a step, from 0, as a share of its peak: for ``LambdaLR``."""
        return one_cycle_rate(step / self.steps, 1.0)
