"""A served model: a bundle or an edge bundle, as one object that checks inputs and opens an engine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exitlens.delivery.bundle import MANIFEST, find_bundle, load, load_policies, read_policies
from exitlens.delivery.hub import fetch_bundle
from exitlens.edge.export import FORMAT, GOLDEN, thin
from exitlens.errors import BundleError, ExitlensError, PolicyError, RequestError
from exitlens.functional.answers import need_double
from exitlens.functional.routing import needs_head
from exitlens.io import read_json, verify_checksums
from exitlens.modalities.image import decode_image
from exitlens.model.cutting.split import Activations
from exitlens.model.engine.adapting import Adaptive
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.onnx_files import ATTENTION, LOGITS, OnnxEngine, Written, is_close
from exitlens.model.engine.tuning import Tuning
from exitlens.model.network import ExitNet, InputSpec, NetworkInfo
from exitlens.serving.settings import Adapting
from exitlens.types import Policy
from exitlens.types.inputs import Inputs, list_tensors
from exitlens.types.policies import DEFAULT
from exitlens.types.preprocessing import Preprocess, TextPreprocess
from exitlens.types.tasks import CONTINUOUS, name_answers, refuse_task
from exitlens.workflow.inference import check_policy

Array = np.ndarray[Any, np.dtype[Any]]
TINY = 1e-6  # rounding of costs
INPUTS, IMAGE, TEXT = "inputs", "image", "text"  # names in requests of a network's one tensor, encoded files, and texts


class InputTensor(NamedTuple):
    """A tensor that the network takes: its name in requests, its type, and the shape of one sample."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ServedModel:
    """One version of a model."""

    name: str  # in requests
    version: str  # identifies the contents of its bundle
    info: NetworkInfo
    spec: InputSpec
    cost: tuple[float, ...]  # (K,) as a fraction of the plain backbone's
    policies: Mapping[str, Policy]  # by name; "default" is the bundle's own
    open_engine: Callable[[], AbstractContextManager[Engine]]
    exits: frozenset[int]  # the exits whose heads it has
    net: ExitNet | None  # if it is a PyTorch network: explanations with evidence need it
    adaptive: Adaptive | None = None  # takes the place of the policy "default", for requests without terms of their own

    @property
    def num_exits(self) -> int:
        """K, including the final exit."""
        return len(self.cost)

    @cached_property
    def inputs(self) -> tuple[InputTensor, ...]:
        """Tensors that a request may give as arrays."""
        pairs = zip(self.spec.names or (INPUTS,), self.make_example(), strict=True)
        return tuple(InputTensor(name, np.dtype(str(t.dtype)[len("torch.") :]), tuple(t.shape[1:])) for name, t in pairs)

    @cached_property
    def _like(self) -> Tensor:
        """A tensor of the network's type, on its device."""
        return torch.zeros(()) if self.net is None else self.net.weight

    def make_example(self) -> Activations:
        """Return one sample, as the first stage takes it."""
        return list_tensors(self.info.example(self._like))

    def name_answers(self, labels: Array) -> list[str]:
        """Return the class of each sample, its labels (of ``(B,C)`` bool) with ``;`` between, or shares of its pixels."""
        if labels.ndim == 3:
            shares = [self.measure_areas(each).items() for each in labels]
            return [", ".join(f"{name} {100 * share:.1f} %" for name, share in row) for row in shares]
        return name_answers(torch.from_numpy(labels), self.info.classes)

    def measure_areas(self, labels: Array) -> dict[str, float]:  # (H,W)
        """Return the share of an image's pixels that each class has which any pixel has, the largest first."""
        shares = np.bincount(labels.ravel(), minlength=self.info.num_classes) / labels.size
        order = [c for c in np.argsort(-shares, kind="stable").tolist() if shares[c]]
        names = name_answers(torch.tensor(order), self.info.classes)
        return dict(zip(names, shares[order].tolist(), strict=True))

    @property
    def image_size(self) -> tuple[int, ...]:
        """Height and width of the images whose pixels it answers; empty if it answers whole samples."""
        return tuple(self.spec.shape[-2:]) if self.info.task == "segmentation" else ()

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of a sample's answer; empty for a class or a number."""
        count = self.info.num_classes
        has_columns = self.gives_labels or self.info.task == "embedding" or (self.gives_values and count > 1)
        return (count,) if has_columns else self.image_size

    @property
    def label_type(self) -> Any:
        """NumPy's type of an answer."""
        if self.gives_values:
            return np.float64 if need_double(self.info.units) else np.float32
        return np.bool_ if self.gives_labels else np.int64

    @property
    def gives_values(self) -> bool:
        """True if an answer is a number or several, or a vector: it has no classes and no probabilities."""
        return self.info.task in CONTINUOUS

    @property
    def gives_labels(self) -> bool:
        """True if an answer is any number of labels, not one class."""
        return self.info.task == "multilabel"

    def find_last_exit(self, max_cost: float) -> int:
        """Return the deepest exit that costs at most ``max_cost``; raise :class:`RequestError` if there is none."""
        known = sorted(self.exits)
        if not max_cost >= self.cost[known[0]] - TINY:
            least = math.ceil(1000 * self.cost[known[0]]) / 1000
            raise RequestError(f"max_cost: expected {least} (exit {known[0]}) or more, got {max_cost}")
        return max(k for k in known if self.cost[k] <= max_cost + TINY)

    def check_arrays(self, arrays: Mapping[str, Array]) -> Activations:
        """Return the tensors that the first stage takes; raise :class:`InputError` or :class:`RequestError` for others."""
        names, tensors = [tensor.name for tensor in self.inputs], dict[str, Tensor]()
        if arrays.keys() != set(names):
            raise RequestError(f"inputs: expected tensors named {names}, got {sorted(arrays)}")
        for name, dtype, shape in self.inputs:
            value = arrays[name]
            if value.dtype != dtype:
                raise RequestError(f"{name}: expected {dtype}, got {value.dtype}")
            if value.shape[1:] != shape or value.ndim != len(shape) + 1:
                raise RequestError(f"{name}: expected (B,{','.join(map(str, shape))}), got {value.shape}")
            tensors[name] = torch.from_numpy(value if value.flags.writeable else value.copy())
        return self.check_tensors(tensors if self.spec.names else tensors[INPUTS])

    def check_tensors(self, inputs: Inputs) -> Activations:
        """Return the tensors that the first stage takes; raise :class:`InputError` for values that are not finite."""
        return self.spec.check(inputs, INPUTS, self._like)

    @property
    def sample_name(self) -> str:
        """What requests call its samples as files or texts; empty if it cannot read them."""
        if isinstance(self.info.preprocess, Preprocess):
            return IMAGE
        return TEXT if isinstance(self.info.preprocess, TextPreprocess) else ""

    def read(self, samples: Sequence[bytes | str], max_pixels: int) -> Activations:
        """Return image files or texts as inputs.

        Raises :class:`RequestError`, :class:`InputError` or :class:`DataError` for bad ones, and for what it does not take.
        """
        preprocess = self.info.preprocess
        if isinstance(preprocess, TextPreprocess):
            texts = [sample if isinstance(sample, str) else decode_text(sample) for sample in samples]
            if not all(text.strip() for text in texts):
                raise RequestError("text: expected texts, got an empty one")
            encoded = preprocess.encode(texts)
            return self.check_tensors({name: encoded[name] for name in self.spec.names if name in encoded})
        if not isinstance(preprocess, Preprocess):
            plural = self.info.modality.plural
            why = f"its bundle does not say how {plural} become inputs" if preprocess is None else f"it takes {plural}"
            raise RequestError(f"{self.name}: {why}. Fix: use /v2/models/{self.name}/infer")
        pixels = list[Tensor]()
        for i, sample in enumerate(samples):
            if isinstance(sample, str):
                raise RequestError(f"text: {self.name} takes images, got a text. Fix: send an image file.")
            pixels.append(decode_image(sample, f"{IMAGE}[{i}]", preprocess.size, len(preprocess.mean), max_pixels))
        return self.check_tensors(preprocess.normalise(torch.stack(pixels)))


def adapt(model: ServedModel, adapting: Adapting) -> ServedModel:
    """Return the model with thresholds that adapt, if the settings ask for them.

    Raises :class:`PolicyError` if its bundle lacks heads, and what :class:`Adaptive` raises.
    """
    if not adapting.adapt:
        return model
    refuse_task(model.info.task, "adapt: it")
    if missing := sorted(set(range(model.num_exits)) - model.exits):
        raise PolicyError(
            f"adapt: {model.name} has no heads at exits {missing}, where audits look. Fix: serve the bundle it was exported "
            "from, or export it with a policy that uses all exits."
        )
    policy = model.policies[DEFAULT]
    adaptive = Adaptive(
        policy,
        adapting.adapt,
        loss=adapting.loss,
        audit=adapting.audit,
        warm_up=adapting.warm_up or None,
        act=not adapting.propose,
    )
    if model.net is not None:
        check_policy(model.net, adaptive)
    if adapting.state is not None:
        adaptive.keep(adapting.state / model.name / model.version, adapting.processes)
    return replace(model, adaptive=adaptive)


def decode_text(text: bytes) -> str:
    """Return a text; raise :class:`RequestError` for other bytes than UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{TEXT}: expected UTF-8, got other bytes ({error.reason})") from error


def open_bundle(name: str, directory: Path) -> ServedModel:
    """Open a bundle, run directory or edge bundle, on this disk or on the Hub.

    Raises :class:`BundleError`, :class:`HubError`, or :class:`PolicyError` without a policy.
    """
    source = find_bundle(fetch_bundle(directory))
    version, manifest = read_version(source), read_json(source / MANIFEST)
    if isinstance(manifest, dict) and "segments" in manifest:
        model = _open_edge(name, source, manifest)
    else:
        policies = load_policies(source)
        if DEFAULT not in policies:
            raise PolicyError(f"bundle: {directory} has no policy yet. Fix: run exitlens calibrate --bundle {directory}")
        model = wrap_network(name, load(source)[0], policies)
    if read_version(source) != version:  # its parts may be of either version
        raise BundleError(f"{directory}: it was replaced while it was read. Fix: try again.")
    return replace(model, version=version)


def read_version(source: Path) -> str:
    """Return a name for the contents of a bundle; raise :class:`BundleError` if there is no bundle."""
    try:
        return hashlib.sha256((source / MANIFEST).read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise BundleError(f"{source / MANIFEST}: cannot be read ({error}). Fix: write the bundle again.") from error


def wrap_network(name: str, net: ExitNet, policies: Mapping[str, Policy]) -> ServedModel:
    """Return a network in memory with its policies, one of them ``default``; raise :class:`PolicyError` for misfits."""
    for policy in policies.values():
        net.check_policy(policy)
    exits, cost, version = frozenset(range(net.num_exits)), tuple(net.cost.tolist()), net.fingerprint()[:12]
    is_dense = net.info.task == "segmentation"  # then answers have the declared size, and so must images
    spec = replace(net.input_spec, exact_size=net.input_spec.exact_size or is_dense)
    return ServedModel(name, version, net.info, spec, cost, dict(policies), net.open_engine, exits, net)


def _open_edge(name: str, source: Path, manifest: Mapping[str, Any]) -> ServedModel:
    """Open a bundle of ``exitlens export``: its ONNX files take the place of stages and heads."""
    if (got := manifest.get("format")) != FORMAT:
        raise BundleError(f"{source / MANIFEST}: expected format {FORMAT}, got {got}. Fix: export the network again.")
    verify_checksums(source, manifest)
    try:
        info = NetworkInfo.from_edge(manifest)
        dtypes, prefix = tuple(getattr(torch, given["dtype"]) for given in manifest["inputs"]), int(manifest["prefix"])
        vocabulary, shapes = tuple(manifest["vocabulary"]), info.input_shapes
        spec = InputSpec(info.inputs, info.input_shape, True, vocabulary, prefix, dtypes, shapes=shapes)
        paths = [str(segment["file"]) for segment in manifest["segments"]]
        if not set(paths) <= set(manifest["sha256"]):  # these have no path in their names
            raise ValueError(f"no checksum for some of {paths}")
        files = [Written.from_dict(segment, source) for segment in manifest["segments"]]
        engine = OnnxEngine(files, Tuning(backend="onnx"))
        exits = frozenset(engine.opened)
        cost = tuple(map(float, manifest["cost"]))
        policies = read_policies(source, manifest, len(cost), str(manifest["network"]), info.task)
    except ExitlensError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        words = f"expected a manifest of exitlens export, got another ({error!r}). Fix: export again."
        raise BundleError(f"{source / MANIFEST}: {words}") from error
    for policy_name, policy in policies.items():
        if missing := [k for k in range(len(cost)) if needs_head(policy, k) and k not in exits]:
            words = f"it uses exits {missing}, the bundle has {sorted(exits)}. Fix: export with this policy."
            raise PolicyError(f"{policy_name}: {words}")
    _check_golden(source / GOLDEN, engine, manifest)

    @contextmanager
    def open_engine() -> Iterator[Engine]:
        with engine.mode():
            yield engine

    return ServedModel(name, "", info, spec, cost, policies, open_engine, exits, None)


def _check_golden(path: Path, engine: OnnxEngine, manifest: Mapping[str, Any]) -> None:
    """Raise :class:`BundleError` unless the files compute here what the library computed where they were exported."""
    try:
        with np.load(path) as file:
            golden = {name: torch.from_numpy(file[name]) for name in file.files}
        inputs = tuple(golden[given["name"]] for given in manifest["inputs"])
        with engine.mode():
            outputs = engine.compute_outputs(inputs)
        pairs = [
            (thin(values) if name == LOGITS else values, golden[f"{name}_{k}"])
            for k, output in zip(engine.opened, outputs, strict=True)
            for name, values in zip((LOGITS, ATTENTION), output, strict=True)
        ]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path}: cannot be read ({error}). Fix: copy the bundle again.") from error
    if not all(is_close(values, known) for values, known in pairs):
        raise BundleError(f"{path}: this machine computes something else than where it was exported. Fix: export it here.")
