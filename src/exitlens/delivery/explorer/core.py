"""What the explorer knows: bundles, their images and traces, and what a network says of an image under given thresholds."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from exitlens.data.fashion import load_scenes
from exitlens.data.images import ImageSet
from exitlens.data.splits import SampleSet, Split
from exitlens.data.texts import TextSet
from exitlens.delivery.bundle import find_bundle, load
from exitlens.delivery.run_directory import (
    load_samples,
    require_image_preprocess,
    require_text_preprocess,
    shorten_names,
)
from exitlens.display import from_pixels
from exitlens.errors import DataError, ExitlensError, InputError
from exitlens.modalities import TEXT
from exitlens.modalities.image import open_picture
from exitlens.model.malloc import release_memory
from exitlens.model.network import ExitNet
from exitlens.types import Explanation, Policy, Preprocess, Trace
from exitlens.types.inputs import Inputs, draw_samples
from exitlens.workflow.collection import collect
from exitlens.workflow.evaluation import Report, evaluate
from exitlens.workflow.explanation import explain
from exitlens.workflow.inference.predict import predict

MAX_PIXELS, LONGEST = 25_000_000, 1024  # of an upload, and of the side that is kept of it
SAMPLES, EXAMPLES = 2000, 12
ROUNDS, PATIENCE = 5, 0.3  # times that an answer is timed; seconds after which no more are begun
DISPLAY = 320  # pixels of a picture's longer side


@dataclass(frozen=True)
class Subject:
    """One bundle: its network, the policy that it starts with, and where it came from."""

    name: str
    directory: Path
    net: ExitNet
    policy: Policy


@dataclass(frozen=True)
class Example:
    """A picture to start from, and what it shows."""

    picture: Image.Image
    truth: str


@dataclass(frozen=True)
class Answer:
    """What one network says: every exit's view, and the measured time of the answer and of the full network.

    ``ours_ms`` and ``full_ms`` are medians of ``rounds`` runs.
    """

    subject: Subject
    why: Explanation
    ours_ms: float
    full_ms: float
    rounds: int


class Explorer:
    """Bundles side by side. Reading and answering only; nothing is written.

    Args:
        bundles: run directories or bundles, one or two, of images or of texts.
        data: labelled folder, file or name in place of the first run's own data: for examples, and in place of the
            calibration samples. root: folder of torchvision's files.

    Raises:
        BundleError, InputError: for bundles that cannot be read or do not go together.
    """

    def __init__(self, bundles: Sequence[Path], data: str = "", root: str = "") -> None:
        if not 1 <= len(bundles) <= 2:
            raise InputError(f"bundle: expected one bundle, or two to compare, got {len(bundles)}")
        self.subjects: list[Subject] = []
        paths = [Path(path) for path in bundles]
        for name, path in zip(shorten_names(paths), paths, strict=True):
            self.subjects.append(self._subject(name, path))
        kinds = [subject.net.input_spec.modality for subject in self.subjects]
        if len(set(kinds)) > 1:
            raise InputError(f"bundle: one takes {kinds[0].plural} and the other {kinds[1].plural}: compare two of a kind")
        self.is_text = kinds[0] is TEXT
        for subject in self.subjects:
            (require_text_preprocess if self.is_text else require_image_preprocess)(subject.net)  # says what is missing
        self._data, self._root = data, root
        self.kind = f"samples of {data}" if data else "calibration samples"
        self._traces: dict[int, Trace | str] = {}
        self._lock = threading.Lock()

    def _subject(self, name: str, path: Path) -> Subject:
        directory = find_bundle(path)
        net, policy = load(directory)
        if policy is None:  # of a network without one, what a first look takes
            like = self.subjects[0].policy if self.subjects else None
            fits = like is not None and like.num_exits == net.num_exits
            thresholds = like.thresholds if like is not None and fits else (0.9,) * (net.num_exits - 1)
            score = like.score if like is not None and fits else "max_probability"
            policy = Policy(thresholds, score)
        return Subject(name, directory, net, policy)

    # --- inputs -----------------------------------------------------------------------------------------------------------

    def examples(self) -> list[Example]:
        """Test images of the first run's data, or bundled scenes where it does not say which those were.

        Raises:
            DataError: if data were named and cannot be read.
        """
        if self.is_text:
            return []
        first = self.subjects[0]
        try:
            data = self._load(first, first.net, "test")
        except (ExitlensError, OSError):
            if self._data:
                raise
            data = load_scenes("test", limit=EXAMPLES)
        assert isinstance(data, ImageSet)
        steps = torch.linspace(0, len(data) - 1, min(EXAMPLES, len(data))).long().unique()
        chosen = data.subset(steps)
        pictures = [from_pixels(pixels) for pixels in chosen.images]
        return [Example(p, chosen.classes[i]) for p, i in zip(pictures, chosen.labels.tolist(), strict=True)]

    def example_texts(self, count: int = 6) -> list[str]:
        """Texts of the first run's test split, if it says where they are."""
        first = self.subjects[0]
        try:
            data = self._load(first, first.net, "test")
        except (ExitlensError, OSError):
            if self._data:
                raise
            return []
        return list(data.texts[:count]) if isinstance(data, TextSet) else []

    def read(self, path: Path) -> Image.Image:
        """An uploaded file as a picture.

        Raises:
            DataError: for anything that is no image, or is too large; its message does not show where the file lies.
        """
        try:
            return open_picture(path, 3, MAX_PIXELS, LONGEST)
        except DataError as error:
            raise DataError(str(error).replace(str(path), path.name)) from error
        finally:
            release_memory()  # or every thread that once read a large one would stay as large

    def encode(self, subject: Subject, shown: Image.Image | str) -> Inputs:
        """A picture or text as input of one network."""
        if isinstance(shown, str):
            return require_text_preprocess(subject.net).encode([shown])
        preprocess: Preprocess = require_image_preprocess(subject.net)
        height, width = preprocess.size
        grey = "L" if len(preprocess.mean) == 1 else "RGB"
        resized = shown.convert(grey).resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(height, width, -1).permute(2, 0, 1)
        return preprocess.normalise(pixels)[None]

    # --- answers ----------------------------------------------------------------------------------------------------------

    def answer(self, index: int, shown: Image.Image | str, thresholds: Sequence[float] | None = None) -> Answer:
        """What a network says of a picture or text.

        Args:
            index: of the subject. thresholds: in place of its policy's.
        """
        subject = self.subjects[index]
        policy = self.policy(index, thresholds)
        inputs = self.encode(subject, shown)
        why = explain(subject.net, inputs, policy)
        full = replace(policy, thresholds=(math.inf,) * len(policy.thresholds))
        ours: list[float] = []
        whole: list[float] = []
        begun = time.perf_counter()
        while len(ours) < ROUNDS and (not ours or time.perf_counter() - begun < PATIENCE):
            for chosen, into in ((policy, ours), (full, whole)):
                started = time.perf_counter()
                predict(subject.net, inputs, chosen)
                into.append(1000 * (time.perf_counter() - started))
        return Answer(subject, why, statistics.median(ours), statistics.median(whole), len(ours))

    def policy(self, index: int, thresholds: Sequence[float] | None) -> Policy:
        """The subject's policy, with other thresholds if given: then without its gate's record of what was promised."""
        policy = self.subjects[index].policy
        if thresholds is None or tuple(thresholds) == policy.thresholds:
            return policy
        return replace(policy, thresholds=tuple(thresholds), calibration=None)

    def _load(self, owner: Subject, net: ExitNet, split: Split) -> SampleSet:
        return load_samples(owner.directory, net, split, data=self._data, root=self._root, skip_bad=True)

    # --- the calibration trace ---------------------------------------------------------------------------------------------

    def trace(self, index: int) -> Trace | str:
        """The trace of the run's calibration split, collected once; or the reason why there is none."""
        with self._lock:
            if index not in self._traces:
                self._traces[index] = self._collect(self.subjects[index])
            return self._traces[index]

    def _collect(self, subject: Subject) -> Trace | str:
        reason = ""
        for owner in (subject, self.subjects[0]):  # a bundle to compare with may have been trained beside the first
            try:
                data = self._load(owner, subject.net, "calibration")
                if isinstance(data, ImageSet) and data.preprocess != subject.net.info.preprocess:
                    raise DataError("its network reads images in another way than the first run's data are stored")
                return collect(subject.net, data.subset(draw_samples(len(data), SAMPLES)))
            except (ExitlensError, OSError) as error:
                reason = reason or str(error)
        return f"There is no calibration data to show shares and accuracy on: {reason}"

    def routed(self, index: int, thresholds: Sequence[float]) -> Report | str:
        """What these thresholds do on the calibration trace, or why that is not known."""
        trace = self.trace(index)
        return trace if isinstance(trace, str) else evaluate(trace, self.policy(index, thresholds))


def cover(picture: Image.Image, strokes: Image.Image | None) -> Image.Image:
    """The picture with everything that was painted (alpha of ``strokes``) replaced by its mean colour."""
    if strokes is None:
        return picture
    mask = strokes.convert("RGBA").getchannel("A").resize(picture.size).point(lambda a: 255 if a > 60 else 0)
    mean = picture.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    covered = picture.convert("RGB").copy()
    covered.paste(mean, (0, 0, *picture.size), mask)  # type: ignore[arg-type]
    return covered
