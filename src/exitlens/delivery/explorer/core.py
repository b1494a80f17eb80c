"""The explorer's model: bundles, their images and traces, and a network's answers under given thresholds."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from exitlens.data.demo import load_scenes
from exitlens.data.sets import ImageSet, LazySet, SampleSet
from exitlens.data.splits import Split
from exitlens.data.texts import TextSet
from exitlens.delivery.benchmark import time_calls
from exitlens.delivery.bundle import load
from exitlens.delivery.run_directory import load_samples, require_preprocess, shorten_names
from exitlens.display import from_pixels
from exitlens.errors import DataError, ExitlensError, InputError, MissingExtraError
from exitlens.modalities import IMAGE, TEXT
from exitlens.modalities.image import open_picture, to_pixels
from exitlens.model.attribution import attribute_exits
from exitlens.model.heads import have_maps
from exitlens.model.network import ExitNet
from exitlens.model.process import release_memory
from exitlens.model.timing import interleave
from exitlens.types import Explanation, Policy, Trace
from exitlens.types.inputs import Inputs, draw_samples, list_tensors
from exitlens.types.preprocessing import Preprocess, TextPreprocess
from exitlens.types.settings import ReadSettings
from exitlens.types.tasks import USUAL_SCORES, WITH_CLASSES, name_answers, refuse_task
from exitlens.workflow.collection import collect
from exitlens.workflow.evaluation import Report, evaluate
from exitlens.workflow.explanation import explain
from exitlens.workflow.inference import predict

MAX_PIXELS, LONGEST = 25_000_000, 1024  # of an upload, and of the longer side of what is kept of it
SAMPLES, EXAMPLES, TEXTS = 2000, 12, 6
ROUNDS, PATIENCE = 5, 0.3  # how often an answer is timed at most; seconds after which no further round begins
Shown = Image.Image | str | Tensor  # a picture, a text, or the input (without the batch axis) of another kind of network
DISPLAY = 320  # pixels, the longer side of a picture
SLOW_MS = 200  # relevance that takes longer is not shown until it is asked for
RESULT, TRAINING, MAIN = "result.json", "training", "egt"  # of a demo: its file, the folder of its runs, its own network


class Share(NamedTuple):
    """A deletion share: the part of what the occlusion oracle gains over random cells that a map gains."""

    value: float
    error: float  # standard error
    samples: int


def read_shares(directory: Path, fingerprint: str, exits: int) -> tuple[Share | None, ...]:
    """Read every exit's share from the result that a demo stored beside its runs; ``None`` where it is not known.

    ``fingerprint`` is the network's, which the demo's own has to have.
    """
    unknown = (None,) * exits
    run = directory.resolve()
    run = run.parent if run.name == "bundle" else run
    inside = run.parent.name == TRAINING
    folder, name = (run.parent.parent, run.name) if inside else (run, MAIN)
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if name == MAIN and result["policy"]["network"] != fingerprint:
            return unknown  # another network was put in its place
        row = next(measures for measures in result[name].values() if "deletion_share" in measures)
        pairs, samples = zip(row["deletion_share"], row["deletion_share_error"], strict=True), int(row["oracle_samples"])
        shares = tuple(None if value is None else Share(float(value), float(error), samples) for value, error in pairs)
        return shares if len(shares) == exits else unknown
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return unknown


@dataclass(frozen=True)
class LoadedRun:
    """A bundle: its network, the policy to start with, its directory, and every exit's deletion share if it is known."""

    name: str
    directory: Path
    net: ExitNet
    policy: Policy
    shares: tuple[Share | None, ...]


@dataclass(frozen=True)
class Answer:
    """A network's answer, its median time and that of the full network, and every exit's relevance ``(*S)`` if asked for."""

    run: LoadedRun
    why: Explanation
    ours_ms: float
    full_ms: float
    rounds: int
    relevance: tuple[torch.Tensor, ...] = ()


class Explorer:
    """One or two bundles of one kind of input, to read and ask; nothing is written.

    ``data`` (with ``root``, torchvision's folder) replaces the first run's test and calibration data.
    """

    def __init__(self, bundles: Sequence[Path], data: str = "", root: str = "") -> None:
        if not 1 <= len(bundles) <= 2:
            raise InputError(f"bundle: expected one bundle, or two to compare, got {len(bundles)}")
        self.runs: list[LoadedRun] = []
        paths = [Path(path) for path in bundles]
        for name, path in zip(shorten_names(paths), paths, strict=True):
            net, policy = load(path)
            refuse_task(net.info.task, "bundle: the explorer", WITH_CLASSES)
            if policy is None:
                policy = Policy((0.9,) * (net.num_exits - 1), USUAL_SCORES[net.info.task])
                first = self.runs[0].policy if self.runs else policy
                if (first.num_exits, first.task) == (net.num_exits, net.info.task):
                    policy = Policy(first.thresholds, first.score)
            shares = read_shares(path, net.cached_fingerprint(), net.num_exits)
            self.runs.append(LoadedRun(name, path, net, policy, shares))
        kinds = [run.net.input_spec.modality for run in self.runs]
        if len({kind.name for kind in kinds}) > 1:
            raise InputError(f"bundle: expected two of a kind, got {kinds[0].plural} and {kinds[1].plural}")
        self.is_text, self.is_picture, self.modality = kinds[0] is TEXT, kinds[0] is IMAGE, kinds[0]
        preprocesses = [require_preprocess(run.net, kinds[0].preprocess) for run in self.runs]
        if not (self.is_text or self.is_picture or preprocesses[0] == preprocesses[-1]):
            raise InputError(f"bundle: expected two that make inputs of {kinds[0].plural} alike, got two that differ")
        self._data, self._root = data, root
        self.kind = f"samples of {data}" if data else "calibration samples"
        self._traces: dict[int, Trace | str] = {}
        self._lock = threading.Lock()

    # --- inputs ---

    def examples(self) -> list[tuple[Shown, str]]:
        """Return test samples of the first run's data (else scenes) with their classes, which texts do not show."""
        first = self.runs[0]
        try:
            data = self._load(first, first.net, "test")
        except (ExitlensError, OSError):
            if self._data:
                raise
            if not self.is_picture:
                return []
            try:
                data = load_scenes("test", limit=EXAMPLES)
            except MissingExtraError:
                return []
        if isinstance(data, TextSet):
            return [(text, "") for text in data.texts[:TEXTS]]
        few = data.subset(torch.linspace(0, len(data) - 1, min(EXAMPLES, len(data))).long().unique())
        few = few.load() if isinstance(few, LazySet) else few
        names = name_answers(few.labels, few.classes)
        shown = map(from_pixels, few.images) if isinstance(few, ImageSet) else list_tensors(few.inputs)[0]
        return list(zip(shown, names, strict=True))

    def read(self, path: Path) -> Image.Image | Tensor:
        """Read an uploaded file; if it cannot be read or is too large, raise a :class:`DataError` that hides its path."""
        try:
            if not self.is_picture:
                return list_tensors(self.modality.read(path, self.runs[0].net.info.preprocess))[0][0]
            return open_picture(path, 3, MAX_PIXELS, LONGEST)
        except DataError as error:
            raise DataError(str(error).replace(str(path), path.name)) from error
        finally:
            release_memory()  # else every thread that once read a large file would keep its memory

    def encode(self, run: LoadedRun, shown: Shown) -> Inputs:
        """Turn what is shown into the input of a run's network."""
        if isinstance(shown, Tensor):
            return shown[None]
        if isinstance(shown, str):
            return require_preprocess(run.net, TextPreprocess).encode([shown])
        preprocess = require_preprocess(run.net, Preprocess)
        channels = len(preprocess.mean)
        pixels = to_pixels(shown.convert("L" if channels == 1 else "RGB"), preprocess.size, channels)
        return preprocess.normalise(pixels)[None]

    # --- answers ---

    def answer(
        self, index: int, shown: Shown, thresholds: Sequence[float] | None = None, *, relevance: bool = False
    ) -> Answer:
        """Answer what is shown, under ``thresholds`` or those of the run's policy."""
        run = self.runs[index]
        policy = self.policy(index, thresholds)
        inputs = self.encode(run, shown)
        why = explain(run.net, inputs, policy)
        full = replace(policy, thresholds=(math.inf,) * len(policy.thresholds))
        works = {
            name: time_calls(partial(predict, run.net, policy=chosen), [inputs], run.net.tuning.keep_memory)
            for name, chosen in (("ours", policy), ("full", full))
        }
        times = interleave(works, rounds=1, seconds=PATIENCE, max_rounds=ROUNDS, warm_up=False)
        maps = attribute_exits(run.net, inputs) if relevance and can_attribute(run.net) else ()
        medians = times.median_ms("ours"), times.median_ms("full"), len(times.rounds["ours"])
        return Answer(run, why, *medians, tuple(batch[0] for batch in maps))

    @property
    def has_relevance(self) -> bool:
        """True if relevance can be shown of any run."""
        return any(can_attribute(run.net) for run in self.runs)

    def is_relevance_slow(self) -> bool:
        """Return whether the relevance of all exits of all runs takes so long that nobody should wait for it unasked."""
        works = {}
        for i, run in enumerate(self.runs):
            if not can_attribute(run.net):
                return True
            example = run.net.info.example(next(run.net.parameters()))
            works[str(i)] = time_calls(partial(attribute_exits, run.net), [example])
        times = interleave(works, rounds=1, seconds=SLOW_MS / 1000, max_rounds=3)
        return sum(times.median_ms(name) for name in works) > SLOW_MS

    def policy(self, index: int, thresholds: Sequence[float] | None) -> Policy:
        """Return a run's policy; with other thresholds nothing was promised, and what a gate refuses is not known."""
        policy = self.runs[index].policy
        if thresholds is None or tuple(thresholds) == policy.thresholds:
            return policy
        gate = None if policy.gate is None else replace(policy.gate, confidences=())
        return replace(policy, thresholds=tuple(thresholds), calibration=None, gate=gate)

    def _load(self, owner: LoadedRun, net: ExitNet, split: Split) -> SampleSet:
        return load_samples(owner.directory, net, split, ReadSettings(self._data, self._root, skip_bad=True))

    # --- the calibration trace ---

    def trace(self, index: int) -> Trace | str:
        """Return the trace of a run's calibration split, collected once, or the reason why there is none."""
        with self._lock:
            if index not in self._traces:
                self._traces[index] = self._collect(self.runs[index])
            return self._traces[index]

    def _collect(self, run: LoadedRun) -> Trace | str:
        reason = ""
        for owner in (run, self.runs[0]):  # a second bundle may have been trained beside the first
            try:
                data = self._load(owner, run.net, "calibration")
                if data.modality is IMAGE and data.preprocess != run.net.info.preprocess:
                    raise DataError("its network reads images in another way than the first run's data are stored")
                return collect(run.net, data.subset(draw_samples(len(data), SAMPLES)))
            except (ExitlensError, OSError) as error:
                reason = reason or str(error)
        return f"There is no calibration data to show shares and accuracy on: {reason}"

    def evaluate(self, index: int, thresholds: Sequence[float]) -> Report | str:
        """Evaluate thresholds on the calibration trace, or say why there is none."""
        trace = self.trace(index)
        return trace if isinstance(trace, str) else evaluate(trace, self.policy(index, thresholds))


def can_attribute(net: ExitNet) -> bool:
    """Return whether exits have maps, and answer whole samples, so that their relevance can be shown."""
    return have_maps(net.heads) and net.info.task != "segmentation"


def cover(picture: Image.Image, strokes: Image.Image | None) -> Image.Image:
    """Replace everything that was painted (alpha of ``strokes``) by the picture's mean colour."""
    if strokes is None:
        return picture
    mask = strokes.convert("RGBA").getchannel("A").resize(picture.size).point(lambda a: 255 if a > 60 else 0)
    mean = picture.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    covered = picture.convert("RGB").copy()
    covered.paste(mean, (0, 0, *picture.size), mask)  # type: ignore[arg-type]
    return covered
