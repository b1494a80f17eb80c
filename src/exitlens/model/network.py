"""ExitNet: the stages of a backbone with an exit head after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from exitlens.display import html_table
from exitlens.errors import require
from exitlens.functional.attribution import answer_score, gradient_x_input
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.autotune import tune
from exitlens.model.engine.session import EngineContext, Session
from exitlens.model.engine.tuning import Tuning, name_network
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.model.info import NetworkInfo
from exitlens.model.input_spec import InputSpec
from exitlens.model.mixing import Mixing, has_attention, open_inputs
from exitlens.types import ExitOutput, Policy
from exitlens.types.inputs import Inputs
from exitlens.types.outputs import exit_name
from exitlens.types.tasks import USUAL_SCORES


class ExitNet(nn.Module):
    """Stages with an exit head after each; calling it runs them all.

    Attributes:
        stages: K modules that run alone, one after the other.
        heads: K exit heads; the last is the final exit's.
        cost: ``(K,)`` cumulative MACs up to and including exit k's head over the plain backbone's MACs.
        head_share: all heads' MACs over the plain backbone's (the kept classifier of ``final="keep"`` is the backbone's).
        info: how the network was made.
        input_spec: the inputs it takes.
        has_attention: whether its stages mix locations by attention, as transformers do.
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
        self.has_attention = has_attention(stages)
        self._session = Session(self.stages, self.heads, self._make_example)
        self.__dict__["_source"] = source  # it shares its buffers; no member of this module

    @property
    def num_exits(self) -> int:
        """K, the final exit included."""
        return len(self.heads)

    @property
    def map_offsets(self) -> tuple[tuple[float, ...], ...]:
        """How far every exit's map lies off its cells, in cells along each axis; see docs/concepts/method.md."""
        return self.info.map_offsets or ((0.0,) * (len(self.info.input_shape) - 1),) * self.num_exits

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.heads[0].parameters()).device

    @property
    def is_channels_last(self) -> bool:
        """Whether its weights are in the memory format channels_last; a bundle keeps that, to give the same to the bit."""
        last = torch.channels_last
        return any(p.ndim == 4 and p.is_contiguous(memory_format=last) and not p.is_contiguous() for p in self.parameters())

    def stage(self, k: int) -> Stage:
        """Stage k: what runs between exit k-1 and exit k."""
        return cast(Stage, self.stages[k])

    def head(self, k: int) -> ExitHead:
        """The head of exit k."""
        return cast(ExitHead, self.heads[k])

    def __repr__(self) -> str:
        i = self.info
        of = i.source or type(self.__dict__["_source"]).__name__
        return f"ExitNet({of}, {self.num_exits} exits with {i.head} heads, {i.num_classes} classes, input {i.input_shape})"

    def _repr_html_(self) -> str:
        places = [*self.info.at, "the end"]
        rows = []
        for k, place in enumerate(places):
            count = f"{sum(p.numel() for p in self.stage(k).parameters()):,}"
            rows.append([exit_name(k, self.num_exits), place, f"{self.cost[k]:.3f}", type(self.head(k)).__name__, count])
        return html_table(["exit", "after", "cost", "head", "parameters of the stage"], rows, repr(self))

    def forward(self, inputs: Inputs) -> tuple[ExitOutput, ...]:
        """Images ``(B,C,H,W)``, or tokens by name, -> the output of every exit, the final one last."""
        return tuple(self._walk(self.unpack(inputs)))

    def with_features(self, inputs: Inputs) -> tuple[tuple[ExitOutput, ...], tuple[Tensor, ...]]:
        """The outputs of every exit, and the features ``(B,D,*S)`` that each was computed from (0 at padding)."""
        activations, found = self.unpack(inputs), []
        for k, stage in enumerate(self.stages):
            activations = stage(*activations)
            found.append(self.head(k).with_features(*activations))
        outputs, features = zip(*found, strict=True)
        return outputs, features

    def with_separate_maps(self, inputs: Inputs) -> tuple[ExitOutput, ...]:
        """The outputs of every exit; gradients of the attention maps reach the heads only, not the backbone.

        The heads run once more for that, on detached activations: the maps have the same values.
        """
        activations, outputs = self.unpack(inputs), list[ExitOutput]()
        for k, stage in enumerate(self.stages):
            activations = stage(*activations)
            outputs.append(self._answer(k, activations, True))
        return tuple(outputs)

    def _answer(self, k: int, activations: Activations, separate: bool) -> ExitOutput:
        out: ExitOutput = self.head(k)(*activations)
        if not separate:
            return out
        return out._replace(attention=self.head(k).find_attention(*(t.detach() for t in activations)))

    def with_relevance(self, inputs: Inputs, separate_maps: bool = False) -> tuple[tuple[ExitOutput, ...], Tensor]:
        """The outputs of every exit, and the relevance of exit 0's features for the final exit's answer.

        Gradient times input of the answer's logit less the mean logit, summed over channels: ``(B,*S)`` on the grid of
        exit 0's features, signed, detached (0 at padding). In networks with attention, of the first tensor of that shape
        that a layer norm takes before any attention, if there is one; what mixes is constant (model/mixing.py).
        """
        activations, outputs, mixing = self.unpack(inputs), list[ExitOutput](), Mixing()
        if self.has_attention:
            activations = open_inputs(activations, self.stage(0))
        for k, stage in enumerate(self.stages):
            with mixing if self.has_attention else nullcontext():
                activations = stage(*activations)
            if k == 0:
                own = activations[0] if activations[0].requires_grad else activations[0].detach().requires_grad_()
                activations = (own, *activations[1:])
                first, locate = mixing.find_unmixed(own), self.head(0).locations(*activations)
            outputs.append(self._answer(k, activations, separate_maps))
        with mixing.fixed():
            logits = outputs[-1].logits
            shares = gradient_x_input(answer_score(logits, self.info.task), first, own, retain_graph=True)
        relevance = self.head(0).layout.canonical(shares).sum(1)
        return tuple(outputs), relevance if locate is None else relevance * locate

    def unpack(self, inputs: Inputs) -> Activations:
        """The tensors that the first stage takes, not checked."""
        return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs[name] for name in self.input_spec.names)

    def walk(self, inputs: Inputs) -> Iterator[ExitOutput]:
        """Yields one exit's output after the other; stage k+1 runs only when exit k+1 is asked for.

        Raises :class:`InputError` for inputs that the network cannot take (checked at the call, before any stage runs).
        """
        return self._walk(self.check_input(inputs))

    def _walk(self, activations: Activations) -> Iterator[ExitOutput]:
        for stage, head in zip(self.stages, self.heads, strict=True):
            activations = stage(*activations)
            yield head(*activations)

    def check_input(self, inputs: Inputs, name: str = "images") -> Activations:
        """The tensors that the first stage takes; raises :class:`InputError` for inputs that the network cannot take."""
        return self.input_spec.check(inputs, name, next(self.heads[0].parameters()))

    def _make_example(self) -> Activations:
        return self.unpack(self.info.example(next(self.heads[0].parameters())))

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles share nothing with the backbone that it was made from."""
        return self.__dict__ | {"_source": None}

    def fingerprint(self) -> str:
        """Names the weights: the first 16 hex digits of a SHA-256 over every tensor of the state."""
        return self._session.weights.compute_fingerprint()

    def cached_fingerprint(self) -> str:
        """:meth:`fingerprint`, computed again only after the state was seen to change (not by some writes to ``.data``)."""
        return self._session.weights.fingerprint

    def identity(self) -> str:
        """What policies and traces name the network by: the fingerprint, and the precision where tuning changed it."""
        return name_network(self.cached_fingerprint(), self._session.precision)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As ``torch.nn.Module.load_state_dict``; forgets the fingerprint."""
        self._session.weights.forget()
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # what to(), double(), cuda() call
        """As ``torch.nn.Module._apply``; a buffer that several stages, or the source, share stays one tensor."""
        self._session.weights.forget()
        changed: dict[int, tuple[Tensor, Tensor]] = {}

        def once(t: Tensor) -> Tensor:
            if id(t) not in changed:
                changed[id(t)] = (t, fn(t))  # t is kept, so that its id stays its own
            return changed[id(t)][1]

        moved: Any = super()._apply(once, recurse)  # type: ignore[no-untyped-call]
        source: nn.Module | None = self.__dict__["_source"]
        for module in source.modules() if source is not None else ():
            for name, buffer in module._buffers.items():
                if buffer is not None and id(buffer) in changed:
                    module._buffers[name] = changed[id(buffer)][1]
        return moved

    @property
    def tuning(self) -> Tuning:
        """How it runs for answers. Where nobody set it, what suits it (engine/suggest.py)."""
        return self._session.tuning

    @tuning.setter
    def tuning(self, value: Tuning) -> None:
        require(value, Tuning, "tuning")
        self._session.tuning = value

    @property
    def is_tuned(self) -> bool:
        """Whether its tuning was set: by :meth:`tune`, by hand or by a bundle."""
        return self._session.is_tuned

    def open_engine(self) -> EngineContext:
        """``with net.open_engine() as engine``: in evaluation mode, without autograd; threads may share it.

        Raises :class:`EngineError` if the weights were changed after :meth:`compile`.
        """
        return EngineContext(self._session)

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
        """Finds the fastest :class:`~exitlens.model.engine.tuning.Tuning` on this machine by measuring, sets and returns it.

        Backend, memory format, precision, micro-batch and threads are tried in turn, and stored by :func:`exitlens.save`.
        Calibrate after tuning: :func:`exitlens.collect` then records what the tuned network says. A policy of a network in
        float32 is refused by one in bfloat16, and the other way round.

        Args:
            example: inputs like those to come, of all kinds; 300 or more to judge bfloat16 by.
            policy: whose answers bfloat16 has to keep, beside the labels of every exit.
            precision: ``auto`` takes bfloat16 if it is faster and keeps the decisions; the others are taken as they are.
            min_agreement: share of decisions that bfloat16 has to keep, with 95 % confidence (exact binomial bound).
            seconds: to measure for, about; large networks take longer, and writing them as ONNX some seconds more.
            backend: ``auto`` tries ONNX Runtime, too, if the extra ``onnx`` is installed; the others are taken as they are.

        Raises InputError or EngineError for arguments that do not fit, or a network that does not run as was asked for.
        """
        policy, activations = self._choose_policy(policy), self.check_input(example, "example")
        self._session.adopt(tune(*self._session.parts, activations, policy, precision, min_agreement, seconds, backend))
        return self.tuning

    def _choose_policy(self, policy: Policy | None) -> Policy:
        require(policy, Policy | None, "policy", "see exitlens.calibrate")
        chosen = policy or Policy((0.0,) * (self.num_exits - 1), USUAL_SCORES[self.info.task])
        chosen.check(self.num_exits, self.identity() if chosen.network else "", self.info.task)
        return chosen

    def compile(  # type: ignore[override]
        self, policy: Policy | None = None, *, attention: bool = False, progress: bool = False
    ) -> dict[int, float]:
        """Compiles every stage with its head by ``torch.compile``, for any number of samples, and warms it up.

        Compiled is a copy of the weights as they are now (they become constants of the code): after training on, or
        loading other weights, call it again. ``deepcopy`` and ``save`` leave it out.

        Args:
            policy: whose exits are used (those that never fire are left out) and whose score; by default all exits.
            attention: for predictions with attention maps.
            progress: show a progress bar.

        Returns:
            Seconds by stage.

        Raises :class:`EngineError` where PyTorch cannot compile on this machine (it needs a C++ compiler).
        """
        return self._session.compile(self._choose_policy(policy), attention, progress)

    def describe(self, **values: Any) -> None:
        """Records class names, preprocessing, source or task in :attr:`info` (they travel with the bundle)."""
        self.info = replace(self.info, **values)
