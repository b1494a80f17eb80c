"""Selects and caches the engine that a network answers with, notices changed weights, and measures the fastest tuning."""

from __future__ import annotations

import hashlib
import operator
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from exitlens.errors import EngineError, MissingExtraError, is_installed
from exitlens.functional.certification import upper_bound
from exitlens.functional.routing import find_first_firing, score_early_exits, stack_support
from exitlens.model._torch_compat import has_hooks, list_member_tables, read_version
from exitlens.model.cutting.split import Activations, Stage
from exitlens.model.engine.engine import CompiledEngine, Engine
from exitlens.model.engine.onnx_files import Written, build_engine
from exitlens.model.engine.tuning import BACKENDS, Tuning, apply_tuning, choose_default
from exitlens.model.heads import ExitHead
from exitlens.model.process import can_keep_memory, keep_memory
from exitlens.progress import track
from exitlens.types import Policy, Trace
from exitlens.types.settings import POSITIVE, NumberRule, check_choice, check_number
from exitlens.types.tasks import BY_LABELS, USUAL_SCORES, Task, are_same

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Snapshot:
    """A network's modules and tensors at one moment, in columns that are quick to compare: each answer asks."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        self.fingerprint = ""  # once it is known
        self.modules = [module for part in parts for module in part.modules()]
        tables = [table for module in self.modules for table in list_member_tables(module)]
        self._tables, self._names = [table for table in tables for _ in table], [name for table in tables for name in table]
        self._values = [value for table in tables for value in table.values()]
        self._tensors = list({id(value): value for value in self._values if isinstance(value, Tensor)}.values())
        self._versions = list(map(read_version, self._tensors))
        usual = (Tensor, nn.Parameter)
        self._placed = [
            t for t in self._tensors if type(t) in usual and t.layout is torch.strided and t.device.type != "meta"
        ]
        self._addresses = list(map(Tensor.data_ptr, self._placed))
        self._numbers: list[Any] = []  # for each CPU tensor, a view of one of its numbers
        for t in self._placed:
            integer = INTEGERS.get(t.element_size())
            if t.device.type == "cpu" and integer and t.numel() and not t.is_quantized:
                middle = t.detach()[tuple(n // 2 for n in t.shape)]
                self._numbers.append(middle.view(integer).numpy())  # as an integer, because NaN does not equal itself
        self._sampled = [number.item() for number in self._numbers]

    def is_unchanged(self) -> bool:
        """Return whether objects, addresses, version counters and sampled numbers are all the same."""
        return (
            all(map(operator.is_, map(dict.get, self._tables, self._names), self._values))
            and list(map(read_version, self._tensors)) == self._versions
            and list(map(Tensor.data_ptr, self._placed)) == self._addresses
            # after the addresses: they are still those of these arrays
            and [number.item() for number in self._numbers] == self._sampled
        )


class WeightsRecord:
    """Identifies weights by a fingerprint, and notices changes cheaply enough for every answer.

    It notices writes that PyTorch counts, tensors and modules set by hand, and changes of one number of each tensor on the
    CPU. The numbers reveal writes that PyTorch does not count, by fused optimizers and through ``.data``, unless all of
    these numbers stay the same.
    """

    def __init__(self, stages: nn.ModuleList, heads: nn.ModuleList) -> None:
        self._parts = {"stages.": stages, "heads.": heads}
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None

    def compute_fingerprint(self) -> str:
        """Return the first 16 hex digits of a SHA-256 over every tensor of the network's state."""
        digest = hashlib.sha256()
        for prefix, part in self._parts.items():
            for name, value in part.state_dict(prefix=prefix).items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """:meth:`compute_fingerprint`, recomputed only after a change was noticed."""
        snapshot = self.current()
        with self._lock:
            snapshot.fingerprint = snapshot.fingerprint or self.compute_fingerprint()
        return snapshot.fingerprint

    def current(self) -> Snapshot:
        """Return an object that stays the same until a change is noticed; call this before reading the weights."""
        snapshot = self._snapshot
        if snapshot is None or not snapshot.is_unchanged():
            snapshot = self._snapshot = Snapshot(self._parts.values())
        return snapshot

    def forget(self) -> None:
        """Forget everything, because the tensors have been exchanged."""
        self._snapshot = None


class EngineManager:
    """The engine that a network answers with, and the evaluation mode that this needs. Threads share both.

    An untuned network answers with a static default, which is read from its graphs without running anything
    (:func:`~exitlens.model.engine.tuning.choose_default`). While any of its modules has hooks, nothing is changed, so
    that hooks see what the module itself would get. A copy of the network has the same tuning and an engine of its own,
    which is not compiled. ``example`` returns one sample, as the first stage takes it.
    """

    def __init__(
        self, stages: nn.ModuleList, heads: nn.ModuleList, example: Callable[[], Activations], tuning: Tuning | None = None
    ) -> None:
        self.weights = WeightsRecord(stages, heads)
        self._stages, self._heads, self._example, self._tuning = stages, heads, example, tuning
        self._modules: list[nn.Module] = []  # of stages and heads, listed when first needed
        self._lock = threading.RLock()
        self._compiling = threading.Lock()  # one compilation at a time, while other threads answer
        self._cached: tuple[Engine, Snapshot] | None = None  # with the weights that it was made of
        self._files: tuple[Sequence[Written], Snapshot] | None = None  # with the weights that they hold
        self._users = 0  # answers in progress that need evaluation mode
        self._modes: list[tuple[nn.Module, bool]] = []  # modules' modes before the first of these answers

    def __reduce__(self) -> tuple[Any, ...]:
        return EngineManager, (self._stages, self._heads, self._example, self._tuning)

    @property
    def parts(self) -> tuple[Sequence[Stage], Sequence[ExitHead]]:
        """The network's stages and heads."""
        return cast(Sequence[Stage], self._stages), cast(Sequence[ExitHead], self._heads)

    @property
    def is_tuned(self) -> bool:
        """True if a tuning was set."""
        return self._tuning is not None

    @property
    def tuning(self) -> Tuning:
        """The settings in use. Setting them drops compiled code."""
        if self._tuning is not None:
            return self._tuning
        cached = self._cached
        return cached[0].tuning if cached is not None and cached[0].is_compiled else self.select().tuning

    @tuning.setter
    def tuning(self, value: Tuning) -> None:
        with self._lock:
            self._tuning, self._cached = value, None

    @property
    def precision(self) -> str:
        """The tuning's precision. It needs no engine, because no default changes it."""
        return "float32" if self._tuning is None else self._tuning.numbers

    def use(self, engine: Engine) -> None:
        """Answer with this engine and its tuning from now on, until the weights change."""
        with self._lock:
            self._tuning, self._cached = engine.tuning, (engine, self.weights.current())

    def use_files(self, files: Sequence[Written]) -> None:
        """Answer with these files when the tuning's backend is ``onnx``, until the weights change."""
        with self._lock:
            self._files = files, self.weights.current()

    def forget(self) -> None:
        """Forget the weights, because the tensors have been exchanged."""
        self.weights.forget()
        if self._cached is not None and self._cached[0].in_place:
            self._cached = None

    def select(self) -> Engine:
        """Return the engine to answer with; raise :class:`EngineError` if the weights changed after compiling.

        A tuning that leaves the weights as they are, and hooks in an untuned network, get a new engine in place. Otherwise
        the cached engine answers, which is made anew when weights change.
        """
        cached = self._cached
        if cached is None or not cached[0].is_compiled:
            if self._tuning is not None and not self._tuning.changes_weights:
                return Engine(*self.parts, self._tuning, in_place=True)
            if self._tuning is None and any(map(has_hooks, self._list_modules())):
                return Engine(*self.parts, Tuning(), in_place=True)
            if cached is not None and cached[0].in_place and not cached[0].tuning.changes_weights:
                return cached[0]  # it reads the network's own weights, so a change does not matter
        with self._lock:
            snapshot = self.weights.current()
            if self._cached is not None:
                engine, source = self._cached
                if source is snapshot:
                    return engine
                if engine.is_compiled:
                    raise EngineError("net: its weights changed after net.compile(). Fix: call net.compile() again.")
                if source.modules != snapshot.modules:
                    self._modules = []
            engine = self._make(snapshot)
            self._cached = engine, snapshot
            return engine

    def _make(self, snapshot: Snapshot) -> Engine:
        example, tuning = self._example(), self._tuning
        if tuning is not None:
            files = self._files[0] if self._files is not None and self._files[1] is snapshot else ()
            engine = build_engine(*self.parts, tuning, example, files)
            if tuning.precision != "float32":
                engine.try_out(example)
            return engine
        tuning = choose_default(*self.parts, example)
        if tuning.folded:  # on a copy of the weights
            try:
                return Engine.prepare(*self.parts, tuning)
            except Exception:  # a module that cannot be copied
                tuning = replace(tuning, folded=False)
        return Engine(*self.parts, tuning, in_place=True)

    @contextmanager
    def open(self) -> Iterator[Engine]:
        """Open the context to answer in: evaluation mode, no autograd, and the tuning's number of threads."""
        engine = self.select()
        with self._evaluate() if engine.in_place else nullcontext(), apply_tuning(engine.tuning), engine.mode():
            yield engine

    def compile(self, policy: Policy, attention: bool, progress: bool) -> dict[int, float]:
        """See :meth:`~exitlens.model.network.ExitNet.compile`; meanwhile other threads answer without compiled code."""
        with self._compiling:
            snapshot, tuned, activations = self.weights.current(), self._tuning, self._example()
            if self.precision.startswith("int8"):
                raise EngineError(
                    "compile: this network answers with int8 files, which PyTorch cannot compile. Fix: set net.tuning = "
                    "Tuning() first."
                )
            tuning = replace(tuned or choose_default(*self.parts, activations), backend="torch")
            is_image = any(t.ndim == 4 for t in activations)  # in another format, large batches would be compiled again
            engine = CompiledEngine.prepare(*self.parts, replace(tuning, channels_last=True) if is_image else tuning)
            steps = engine.warm_up(activations, policy, attention)
            with apply_tuning(tuning):
                seconds = dict(track(steps, "compiling", total=len(self._heads)) if progress else steps)
            with self._lock:
                if self._tuning is tuned:  # no other tuning was set meanwhile
                    self._tuning = None if tuned is None else tuning
                    self._cached = engine, snapshot
            return seconds

    @contextmanager
    def _evaluate(self) -> Iterator[None]:
        """Keep evaluation mode for as long as any thread needs it; then give every module its own mode back."""
        with self._lock:
            if self._users == 0 and any(module.training for module in self._list_modules()):
                self._modes = [(module, module.training) for module in self._modules]
                self._stages.eval()
                self._heads.eval()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    for module, mode in self._modes:
                        module.training = mode
                    self._modes = []

    def _list_modules(self) -> list[nn.Module]:
        self._modules = self._modules or [m for part in (self._stages, self._heads) for m in part.modules()]
        return self._modules


MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
FEW = 8  # samples of a run, where the micro-batch is not larger
NEARLY = 1.03  # times within this ratio count as equal


def tune(
    parts: tuple[Sequence[Stage], Sequence[ExitHead]],
    activations: Activations,
    policy: Policy,
    precision: str,
    min_agreement: float,
    seconds: float,
    backend: str,
) -> Engine:
    """Return the fastest engine for stages and heads; see :meth:`~exitlens.model.network.ExitNet.tune`."""
    check_choice("backend", backend, ("auto", *BACKENDS))
    check_choice("precision", precision, ("auto", "float32", "bfloat16"))
    check_number("min_agreement", min_agreement, NumberRule("a share in (0, 1]", lambda value: 0 < value <= 1))
    check_number("seconds", seconds, POSITIVE)
    meter = _Meter(parts, activations, seconds / 4, USUAL_SCORES[policy.task])
    torch_forms = [] if backend == "onnx" else meter.list_torch_forms(policy, precision, min_agreement)
    groups = [forms for forms in (meter.list_onnx_forms(backend, precision), torch_forms) if forms]
    # ONNX Runtime comes first, and so wins ties, because it is better at single samples
    best = meter.find_fastest([meter.tune_group(forms) for forms in groups])
    times = [tuning.to_dict() | {"ms": round(1000 * s, 4)} for tuning, s in meter.seconds_per_sample.items()]
    rows = [{name: value for name, value in row.items() if name != "measured"} for row in times]
    engine = meter.open(best)
    engine.tuning = replace(best, measured=meter.record | {"ms_per_sample": rows})
    return engine


class _Meter:
    """Lists tunings, times them in turn, and remembers the times."""

    def __init__(
        self, parts: tuple[Sequence[Stage], Sequence[ExitHead]], example: Activations, seconds: float, score: str
    ) -> None:
        self.parts, self.example, self.seconds, self.score = parts, example, seconds, score
        self.record: dict[str, Any] = {
            "machine": platform.processor() or platform.machine(),
            "cores": torch.get_num_threads(),
        }
        rows = torch.arange(MICRO_BATCHES[-1]) % len(example[0])
        self.activations = tuple(t[rows.to(t.device)] for t in example)
        self.seconds_per_sample: dict[Tuning, float] = {}
        self.engines: dict[tuple[bool, bool, str, str], Engine] = {}  # one copy of the weights for each form

    def list_onnx_forms(self, backend: str, precision: str) -> list[Tuning]:
        """Return the tuning for ONNX Runtime, if the network runs in it; else raise if it was asked for, or record why."""
        if backend == "torch" or (backend == "auto" and not is_installed("onnxruntime", "onnx", "onnxscript")):
            return []
        tuning = Tuning(micro_batch=FEW, backend="onnx")
        try:
            if precision == "bfloat16":
                raise EngineError("backend: 'onnx' does not run in bfloat16. Fix: leave one of the two at 'auto'.")
            self.open(tuning)
        except (EngineError, MissingExtraError) as error:  # an installed package may still fail to load
            if backend == "onnx":
                raise
            self.record["onnx"] = str(error)
            return []
        return [tuning]

    def list_torch_forms(self, policy: Policy, precision: str, min_agreement: float) -> list[Tuning]:
        """Return the memory formats and precisions that the network may run in; record the measured agreement."""
        forms = [Tuning(micro_batch=FEW)]
        if any(t.ndim == 4 for t in self.example):
            forms.append(replace(forms[0], channels_last=True, folded=True))
        if precision == "float32" or policy.task not in BY_LABELS:
            return forms
        halves = [replace(tuning, precision="bfloat16") for tuning in forms]
        try:
            self.open(halves[-1]).try_out(tuple(t[:1] for t in self.example))
        except EngineError:  # graphs made by torch.export may have the example's precision written into them
            if precision == "bfloat16":
                raise
            return forms
        half, full = (self.observe(tuning, policy.task) for tuning in (halves[-1], forms[-1]))
        (exits, count), answers = (_take_exits(half, policy), len(half)), (half.answers, full.answers)
        same = are_same(*answers, policy.task)  # (N,K)
        decided = (exits == _take_exits(full, policy)) & same.gather(1, exits[:, None])[:, 0]
        agreement = min(same.float().mean(0).min().item(), decided.float().mean().item())
        self.record["bfloat16_agreement"], self.record["bfloat16_samples"] = agreement, count
        if precision == "bfloat16":
            return halves
        is_safe = upper_bound(round((1 - agreement) * count), count, 0.05) <= 1 - min_agreement
        return forms + halves if is_safe else forms

    def observe(self, tuning: Tuning, task: Task) -> Trace:
        """Return logits of the example in a tuning's form, and what a gate takes."""
        engine, logits, features = self.open(tuning), list[Tensor](), list[Tensor]()
        with engine.mode():
            for part in zip(*(t.split(16) for t in self.example), strict=True):
                outputs = engine.compute_support(tuning.convert(part))
                logits.append(torch.stack([each.float() for each, *_ in outputs], 1).cpu())
                features.append(stack_support([support for *_, support in outputs]).cpu())
        count, exits = len(self.example[0]), len(engine.heads)
        given = torch.cat(features) if exits > 1 else None
        return Trace(
            torch.cat(logits), None, torch.zeros(count, exits), torch.arange(1.0, exits + 1), gate_features=given, task=task
        )

    def tune_group(self, forms: list[Tuning]) -> Tuning:
        """Return the fastest tuning of one backend."""
        best = self.find_fastest(forms)
        if best.backend == "torch" and can_keep_memory() and self.example[0].device.type == "cpu":
            # decided first, because it changes which micro-batch is best
            best = self.find_fastest([replace(best, keep_memory=True), best])
        sizes = [replace(best, micro_batch=size) for size in MICRO_BATCHES]
        best = self.find_fastest(sizes, stop_early=True)  # the smallest wins ties, because survivors fill it sooner
        return self.find_fastest([best, replace(best, threads=1)]) if torch.get_num_threads() > 1 else best

    def find_fastest(self, tunings: Sequence[Tuning], stop_early: bool = False) -> Tuning:
        """Return the first tuning (simplest first) whose time per sample is within ``NEARLY`` of the lowest.

        ``stop_early``: leave out all tunings after the first that is no better than its predecessors.
        """
        times, tried = self.seconds_per_sample, list[Tuning]()
        for tuning in tunings:
            before = min((times[t] for t in tried), default=float("inf"))
            tried.append(tuning)
            times[tuning] = min(self._run(tuning) for _ in range(2))  # the first run also warms up
            if stop_early and tuning.micro_batch > FEW and times[tuning] * NEARLY > before:
                break
        started, rounds = time.perf_counter(), 0
        while rounds < 2 or (time.perf_counter() - started < self.seconds and rounds < 50):
            for tuning in tried:
                times[tuning] = min(times[tuning], self._run(tuning))
            rounds += 1
        limit = NEARLY * min(times[tuning] for tuning in tried)
        return next(tuning for tuning in tried if times[tuning] <= limit)

    def open(self, tuning: Tuning) -> Engine:
        """Return the engine in a tuning's form."""
        form = tuning.channels_last, tuning.folded, tuning.precision, tuning.backend
        if form not in self.engines:
            self.engines[form] = build_engine(*self.parts, tuning, tuple(t[:1] for t in self.example))
        return self.engines[form]

    def _run(self, tuning: Tuning) -> float:
        """Return the seconds per sample."""
        engine, count = self.open(tuning), max(FEW, tuning.micro_batch)
        for _ in range(1 + keep_memory(tuning.keep_memory)):  # after a change, the first run warms up
            with apply_tuning(tuning), engine.mode():
                started = time.perf_counter()
                inputs = engine.enter(tuple(t[:count] for t in self.activations))
                for at in range(0, count, tuning.micro_batch):
                    activations = tuple(t[at : at + tuning.micro_batch] for t in inputs)
                    for k in range(len(engine.heads)):
                        activations, p, *_ = engine.run_exit(k, activations, 1.0, self.score)
                float(p.sum())  # waits for the device
                spent = time.perf_counter() - started
        return spent / count


def _take_exits(trace: Trace, policy: Policy) -> Tensor:  # -> (N,)
    return find_first_firing(score_early_exits(trace, policy), policy.thresholds)
