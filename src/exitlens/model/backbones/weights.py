"""State dicts: loaded from files, matched to a backbone's tensors, and reduced to one copy of each shared tensor."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import groupby, pairwise, product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exitlens.errors import BundleError, WeightsWarning
from exitlens.types.weights import SHOWN, WeightsReport, list_names

WRAPPERS = (  # keys of weights in checkpoints, in order of preference; averaged weights come first
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher"),
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "student"),
)
COUNTER = "num_batches_tracked"  # of batch norm: files from before it existed lack it, and nothing depends on it
LEAST_SHARE = 0.5  # share of a backbone's tensors that a file has to set
State = Mapping[str, Tensor]


def load_weights(backbone: nn.Module, path: Path | str, *, strict: bool = False) -> WeightsReport:
    """Load a local state dict (``.safetensors``, or a PyTorch file read with ``weights_only=True``) into a backbone.

    Wrappers (``state_dict``, ``model``, ``ema`` and their like; averaged weights before others) and prefixes of names
    (``module.``, ``backbone.``, and any other that many of the names begin with) are ignored. The classifier starts anew if
    the file has another number of classes, or none (:func:`restart_classifier`). Where no name fits, but kinds and shapes
    of all tensors do in their order, and no two neighbours look alike, the order decides.

    Args:
        backbone: changed in place.
        path: the file.
        strict: every tensor has to fit, by name and shape, the classifier too.

    Raises:
        BundleError: before anything is written, for a file that is missing or damaged, has NaN in a parameter, or does not
            fit (without ``strict``: sets less than half of the backbone's tensors).

    Warns:
        WeightsWarning: where parts of the backbone other than the classifier stay random.

    Examples:
        >>> backbone = xl.build_backbone("small", num_classes=10)
        >>> torch.save(backbone.state_dict(), "weights.pth")
        >>> xl.load_weights(xl.build_backbone("small", num_classes=5), "weights.pth").anew  # another number of classes
        ('fc.weight (5, 128), in the source (10, 128)', 'fc.bias (5,), in the source (10,)')
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"weights: no file {path}")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # zip, pickle and safetensors raise many kinds for damaged files
        raise BundleError(f"weights: {path} cannot be read as a state dict ({type(error).__name__}: {error})") from error
    state, wrapper = _unwrap(content)
    if not state:
        raise BundleError(f"weights: {path} is no state dict of tensors. Fix: save module.state_dict()")
    return load_state(backbone, state, str(path), wrapper, strict=strict)


def _unwrap(content: Any, depth: int = 3) -> tuple[dict[str, Tensor], str]:
    """Return the state dict in what a file holds, and the path of keys to it; an empty dict if there is none."""
    if not isinstance(content, Mapping) or depth == 0:
        return {}, ""
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        return tensors, ""
    held = [key for key in content if isinstance(content[key], Mapping)]
    for key in sorted(held, key=lambda key: WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS)):
        state, path = _unwrap(content[key], depth - 1)
        if state:
            return state, f"{key}.{path}" if path else str(key)
    return {}, ""


def load_state(backbone: nn.Module, state: State, source: str, wrapper: str = "", *, strict: bool = False) -> WeightsReport:
    """Load a state dict as :func:`load_weights` does; ``source`` and ``wrapper`` say where it came from."""
    expected = backbone.state_dict(keep_vars=True)
    match = _match_names(expected, state)
    if not strict and len(match.fits) < LEAST_SHARE * len(expected):
        match = _match_order(expected, state) or match
    if wrapper:
        match = replace(match, seen_through=(f"found under {wrapper!r}", *match.seen_through))
    report = report_match(source, expected, state, match, strict=strict)
    for name, other in match.fits.items():
        ours, value = expected[name], state[other]
        odd = ours.is_floating_point() and not value.is_floating_point()
        odd |= value.is_complex() and not ours.is_complex()
        if odd or value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = f"{value.dtype}, {value.layout}" + ", without values" * value.is_meta
            raise BundleError(f"weights: {source} has {name} as {kind}, the backbone {ours.dtype}. Fix: save plain weights")
        if isinstance(ours, nn.Parameter) and not torch.isfinite(value.to(ours.dtype)).all():
            raise BundleError(f"weights: {source} has values in {name} that are NaN or infinite. Fix: take other weights")
    backbone.load_state_dict({name: state[other] for name, other in match.fits.items()}, strict=False)
    fresh = {described.split(" ")[0] for described in report.anew}
    for layer in [layer for name, layer in backbone.named_modules() if f"{name}.weight" in fresh]:
        restart_classifier(layer)
    return report


def restart_classifier(layer: nn.Module) -> None:
    """Draw a linear layer's weights within 1/sqrt(inputs), as PyTorch does.

    EfficientNets begin within 1/sqrt(classes), ten times as wide for ten classes. On trained weights their first answers
    are then sure and wrong, which costs fine-tuning many points (docs/guides/pretrained.md).
    """
    if isinstance(layer, nn.Linear):
        layer.reset_parameters()


@dataclass(frozen=True)
class Match:
    """Names in a state dict by the names of a backbone's tensors; shapes agree in ``fits`` and differ in ``clashes``."""

    fits: dict[str, str]
    clashes: dict[str, str]
    seen_through: tuple[str, ...] = ()


def _match_names(expected: State, state: State) -> Match:
    """Find the best match over prefixes that are dropped from the source's names (``module.``) or added (``bert.``)."""

    def list_prefixes(names: Iterable[str], share: float) -> list[str]:  # those of this share of the names, "" first
        names = list(names)
        counts = Counter(name[: i + 1] for name in names for i, letter in enumerate(name) if letter == ".")
        return ["", *sorted((p for p, count in counts.items() if count >= share * len(names)), key=len)]

    matches = list[Match]()
    # beside the network may be a copy of it, as for momentum
    for dropped, added in product(list_prefixes(state, 0.25), list_prefixes(expected, 0.5)):
        fits, clashes = dict[str, str](), dict[str, str]()
        for name, value in state.items():
            short = name.removeprefix(dropped)
            if (ours := next((n for n in (added + short, short, name) if n in expected), None)) is not None:
                (fits if expected[ours].shape == value.shape else clashes).setdefault(ours, name)
        words = [f"prefix {word!r} {verb}" for word, verb in ((dropped, "dropped"), (added, "added")) if word]
        matches.append(Match(fits, {name: clashes[name] for name in clashes if name not in fits}, tuple(words)))
    return max(matches, key=lambda match: len(match.fits))


def _match_order(expected: State, state: State) -> Match | None:
    """Match tensors by their order, if all kinds (``weight``) and shapes agree, but for the number of classes.

    No two neighbouring layers may look alike (query and key of attention do), because then another order would fit as well.
    """
    ours, others = ([item for item in tensors.items() if not item[0].endswith(COUNTER)] for tensors in (expected, state))
    if len(ours) != len(others) or _has_twins(ours) or _has_twins(others):
        return None
    last, fits, clashes = _find_classifier(expected, ()), dict[str, str](), dict[str, str]()
    for (name, value), (other, given) in zip(ours, others, strict=True):
        if name.rpartition(".")[2] != other.rpartition(".")[2]:
            return None
        if value.shape == given.shape:
            fits[name] = other
        elif name.startswith(last) and value.shape[1:] == given.shape[1:]:
            clashes[name] = other
        else:
            return None
    return Match(fits, clashes, ("no name fits: matched by their order, in which all kinds and shapes agree",))


def _has_twins(tensors: Iterable[tuple[str, Tensor]]) -> bool:
    """Return whether two neighbouring layers have tensors of the same kinds and shapes, at least one of them a matrix."""
    layers = groupby(tensors, key=lambda item: item[0].rpartition(".")[0])
    signs = [tuple((name.rpartition(".")[2], value.shape) for name, value in layer) for _, layer in layers]
    return any(a == b and any(len(shape) > 1 for _, shape in a) for a, b in pairwise(signs))


def _find_classifier(expected: State, loaded: Iterable[str]) -> str:
    """Return the dotted prefix of the classifier: the last layer, and the modules around it in which nothing was loaded."""
    layer = next((name for name in reversed(list(expected)) if expected[name].ndim >= 2), next(iter(expected), ""))
    prefix, loaded = layer.rpartition(".")[0], tuple(loaded)
    while "." in prefix and loaded and not any(name.startswith(prefix.rpartition(".")[0] + ".") for name in loaded):
        prefix = prefix.rpartition(".")[0]
    return f"{prefix}." if prefix else layer


def report_match(source: str, expected: State, state: State, match: Match, *, strict: bool = False) -> WeightsReport:
    """Return what a match sets and what it leaves, by kind; raise and warn as :func:`load_weights` does."""
    set_ = {id(expected[name]) for name in match.fits}  # a tensor may have several names
    head = _find_classifier(expected, match.fits)
    shapes = {name: (expected[name].shape, state[other].shape) for name, other in match.clashes.items()}
    outputs = {(ours[0], other[0]) for ours, other in shapes.values() if ours and other and ours[1:] == other[1:]}
    anew, missing, misshapen = list[str](), list[str](), list[str]()
    for name in expected:
        if id(expected[name]) in set_ or name.endswith(COUNTER):
            continue
        shape, given = expected[name].shape, shapes[name][1] if name in shapes else None
        described = name if given is None else f"{name} {tuple(shape)}, in the source {tuple(given)}"
        only_classes = given is not None and shape[1:] == given[1:] and len(outputs) == 1  # the same other number everywhere
        if name.startswith(head) or only_classes:
            anew.append(described)
        else:
            (missing if given is None else misshapen).append(described)
    used = {*match.fits.values(), *match.clashes.values()}
    unused = tuple(name for name in state if name not in used and not name.endswith(COUNTER))
    left = (tuple(anew), tuple(missing), tuple(misshapen), unused)
    report = WeightsReport(source, tuple(match.fits), *left, match.seen_through)
    _check_fit(report, expected, state, strict)
    return report


def _check_fit(report: WeightsReport, expected: State, state: State, strict: bool) -> None:
    rest = report.missing + report.misshapen
    if strict and (rest or report.anew or report.unused):
        raise BundleError(
            f"weights: {report.source} does not fit this backbone: missing {report.missing[:3]}, unexpected "
            f"{report.unused[:3]}, other shapes or classes {(report.misshapen + report.anew)[:3]}"
        )
    if len(report.loaded) < LEAST_SHARE * (len(report.loaded) + len(rest)) or not report.loaded:
        names = [name.split(" ")[0] for name in (rest or report.anew)[:SHOWN]]
        nearest = [(name, get_close_matches(name, list(state), 1, 0.3)) for name in names]
        listed = "; ".join(f"{name} (nearest: {near[0]})" if near else name for name, near in nearest)
        counts = f"{len(report.loaded)} of the backbone's {len(expected)} tensors are in it"
        raise BundleError(f"weights: {report.source} is of another network: {counts}. Not found: {listed}")
    if rest:
        warnings.warn(f"weights: {len(rest)} tensors stay random: {list_names(rest)}", WeightsWarning, stacklevel=5)


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state with one copy of each tensor, also of those that appear under several names."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        first.setdefault(id(value), (name, value))
    return {name: value.detach().clone() for name, value in first.values()}


def load_unique_state(module: nn.Module, state: State, where: str) -> None:
    """Load the result of :func:`unique_state` into a module built the same way, if all tensors fit."""
    expected = unique_state(module)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        raise BundleError(f"{where}: tensors do not fit the network: missing {missing[:3]}, unexpected {extra[:3]}")
    for name, value in state.items():
        ours, given = (f"{tuple(t.shape)} {t.dtype}" for t in (expected[name], value))
        if ours != given:
            raise BundleError(f"{where}: {name} is {given}, the network has {ours}")
    module.load_state_dict(state, strict=False)
