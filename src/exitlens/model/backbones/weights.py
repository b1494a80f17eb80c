"""State dicts: matched to a backbone's tensors by name, loaded from files, and reduced to one copy of each shared tensor."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exitlens.errors import BundleError, WeightsWarning

# under which checkpoints keep their weights, in order of preference: averaged weights are those that were evaluated
WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher"),
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "student"),
)
COUNTER = "num_batches_tracked"  # of batch norm: files from before it existed lack it, and nothing depends on it
SHOWN = 4  # names in a line
Say = Callable[[str], None]  # what to do with a line for people


@dataclass(frozen=True)
class WeightsReport:
    """What of a state dict went into a backbone, and what did not. ``str()`` gives it as lines for people.

    Attributes:
        source: the file, or the name of the pretrained weights.
        loaded: names of the backbone's tensors that were set.
        anew: those of its classifier that were not, because the source has another number of classes or no classifier:
            they stay as the backbone was made, random.
        missing: the other tensors of the backbone that the source does not have; they stay as the backbone was made.
        misshapen: the same, where the source has a tensor of another shape: ``name (its shape, in the source: shape)``.
        unused: tensors of the source that nothing took.
        seen_through: wrappers and prefixes that were looked through, in words.

    Examples:
        >>> report = xl.WeightsReport("weights.pth", loaded=("conv.weight",), unused=("head.bias",))
        >>> report.is_whole
        True
    """

    source: str
    loaded: tuple[str, ...]
    anew: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    seen_through: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether all of the backbone but its classifier was set."""
        return not self.missing and not self.misshapen

    def lines(self) -> list[str]:
        """One line on what was loaded, and one for each kind of tensor that was not."""
        through = f" ({'; '.join(self.seen_through)})" if self.seen_through else ""
        found = [f"{len(self.loaded)} tensors from {self.source}{through}"]
        for names, words in (
            (self.anew, "the classifier is made anew, for the classes of the data"),
            (self.missing, "not in the source, so random"),
            (self.misshapen, "of another shape in the source, so random"),
            (self.unused, "in the source, of no use here"),
        ):
            if names:
                found.append(f"{words}: {list_names(names)}")
        return found

    def __str__(self) -> str:
        return "\n".join(f"weights: {line}" for line in self.lines())


def tell_misfits(report: WeightsReport, say: Say | None) -> None:
    """Says what of pretrained weights did not fit; nothing where everything did."""
    if say is not None:
        for line in report.lines()[1:]:
            say(f"weights: {report.source}: {line}")


def list_names(names: Iterable[str]) -> str:
    """The first few of the names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more


def unwrap(content: Any, depth: int = 3) -> tuple[dict[str, Tensor], str]:
    """The state dict in what a file holds, and the path of keys to it; an empty dict where there is none."""
    if not isinstance(content, Mapping) or depth == 0:
        return {}, ""
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        return tensors, ""
    held = sorted((key for key in content if isinstance(content[key], Mapping)), key=_rank)
    for key in held:
        state, path = unwrap(content[key], depth - 1)
        if state:
            return state, f"{key}.{path}" if path else str(key)
    return {}, ""


def _rank(key: Any) -> int:
    return WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS)


@dataclass(frozen=True)
class Match:
    """Tensors of a state dict by the names of a backbone's tensors; shapes agree in ``fits`` and differ in ``clashes``."""

    fits: dict[str, str]
    clashes: dict[str, str]
    seen_through: tuple[str, ...] = ()


def match_names(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Match:
    """The best match over prefixes that are dropped from the source's names (``module.``) or added (``bert.``)."""
    best = Match({}, {})
    for dropped in _common_prefixes(theirs, 0.25):  # a copy of the network, as for momentum, may be beside it
        for added in _common_prefixes(mine, 0.5):
            found = _match(mine, theirs, dropped, added)
            if len(found.fits) > len(best.fits):
                best = found
    return best


def _common_prefixes(names: Iterable[str], share: float) -> list[str]:
    """The dotted prefixes, none first, that this share of the names or more begin with."""
    names = list(names)
    counts = Counter(name[: i + 1] for name in names for i, letter in enumerate(name) if letter == ".")
    return ["", *sorted((p for p, count in counts.items() if count >= share * len(names)), key=len)]


def _match(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], dropped: str, added: str) -> Match:
    fits, clashes = dict[str, str](), dict[str, str]()
    for name, value in theirs.items():
        short = name.removeprefix(dropped)
        for candidate in dict.fromkeys((added + short, short, name)):
            if candidate in mine:
                (fits if mine[candidate].shape == value.shape else clashes).setdefault(candidate, name)
                break
    words = [f"prefix {dropped!r} dropped"] if dropped else []
    words += [f"prefix {added!r} added"] if added else []
    return Match(fits, {name: other for name, other in clashes.items() if name not in fits}, tuple(words))


def match_order(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Match | None:
    """The match of networks that hold the same tensors in the same order under other names, or ``None``.

    Kinds (``weight``, ``running_mean``) and shapes have to agree from first to last, but for the number of classes of the
    last layer; and no two neighbouring layers may look alike (query and key of attention do), because then another order
    would fit as well.
    """
    kept = [{name: t for name, t in state.items() if not name.endswith(COUNTER)} for state in (mine, theirs)]
    if len(kept[0]) != len(kept[1]) or any(_has_twins(state) for state in kept):
        return None
    last, fits, clashes = find_classifier(mine, ()), dict[str, str](), dict[str, str]()
    for (name, value), (other, found) in zip(kept[0].items(), kept[1].items(), strict=True):
        if name.rpartition(".")[2] != other.rpartition(".")[2]:
            return None
        if value.shape == found.shape:
            fits[name] = other
        elif name.startswith(last) and value.shape[1:] == found.shape[1:]:
            clashes[name] = other
        else:
            return None
    return Match(fits, clashes, ("no name fits: matched by their order, in which all kinds and shapes agree",))


def _has_twins(state: Mapping[str, Tensor]) -> bool:
    layers = groupby(state.items(), key=lambda item: item[0].rpartition(".")[0])
    signs = [tuple((name.rpartition(".")[2], value.shape) for name, value in layer) for _, layer in layers]
    return any(a == b and any(len(shape) > 1 for _, shape in a) for a, b in pairwise(signs))


def find_classifier(mine: Mapping[str, Tensor], loaded: Iterable[str]) -> str:
    """The dotted prefix of the classifier: the last layer, and the modules around it of which nothing was loaded."""
    layer = next((name for name in reversed(list(mine)) if mine[name].ndim >= 2), next(iter(mine), ""))
    prefix, loaded = layer.rpartition(".")[0], tuple(loaded)
    while "." in prefix and loaded and not any(name.startswith(prefix.rpartition(".")[0] + ".") for name in loaded):
        prefix = prefix.rpartition(".")[0]
    return f"{prefix}." if prefix else layer


def report_match(source: str, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], match: Match) -> WeightsReport:
    """What a match sets, and what it leaves, by kind."""
    set_ = {id(mine[name]) for name in match.fits}  # a tensor may have several names
    rest = [name for name in mine if id(mine[name]) not in set_ and not name.endswith(COUNTER)]
    head = find_classifier(mine, match.fits)
    pairs = {name: (mine[name].shape, theirs[other].shape) for name, other in match.clashes.items()}
    outputs = {(ours[0], other[0]) for ours, other in pairs.values() if ours and other and ours[1:] == other[1:]}
    anew, missing, misshapen = [], [], []
    for name in rest:
        shape, found = mine[name].shape, pairs[name][1] if name in pairs else None
        only_classes = found is not None and shape[1:] == found[1:] and len(outputs) == 1  # one other number everywhere
        if name.startswith(head) or only_classes:
            anew.append(name if found is None else f"{name} {tuple(shape)}, in the source {tuple(found)}")
        elif found is None:
            missing.append(name)
        else:
            misshapen.append(f"{name} {tuple(shape)}, in the source {tuple(found)}")
    used = {*match.fits.values(), *match.clashes.values()}
    unused = [name for name in theirs if name not in used and not name.endswith(COUNTER)]
    loaded = tuple(match.fits)
    listed = (tuple(anew), tuple(missing), tuple(misshapen), tuple(unused))
    return WeightsReport(source, loaded, *listed, match.seen_through)


def nearest_names(names: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    """For a few of the names, ``name (nearest known name)``."""
    known = list(known)
    for name in list(names)[:SHOWN]:
        near = get_close_matches(name, known, 1, 0.3)
        yield f"{name} (nearest: {near[0]})" if near else name


LEAST_SHARE = 0.5  # of a backbone's tensors that a file has to set


def load_weights(backbone: nn.Module, path: Path | str, *, strict: bool = False) -> WeightsReport:
    """Loads a local state dict (``.safetensors``, or a PyTorch file read with ``weights_only=True``) into a backbone.

    Wrappers (``state_dict``, ``model``, ``ema`` and their like; averaged weights before others) and prefixes of names
    (``module.``, ``model.``, ``backbone.``, ``_orig_mod.``, and any other that a good part of the names begin with) are
    seen through. A classifier for another number of classes is left out: the backbone keeps the one it was made with. Where
    no name fits, but kinds and shapes of all tensors do in their order, and no two neighbours look alike, the order decides.

    Args:
        backbone: changed in place.
        path: the file.
        strict: every tensor has to fit, by name and shape, the classifier too.

    Returns:
        What was loaded, and by name what was not; its ``str()`` says so in a few lines.

    Raises:
        BundleError: for a file that is missing or damaged, has NaN in a parameter, or does not fit (not strict: of which
            less than half of the backbone's tensors can be set), before any is written.

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
    state, wrapper = unwrap(content)
    if not state:
        raise BundleError(f"weights: {path} is no state dict of tensors: save module.state_dict()")
    return load_state(backbone, state, str(path), wrapper, strict=strict)


def load_state(
    backbone: nn.Module, state: Mapping[str, Tensor], source: str, wrapper: str = "", *, strict: bool = False
) -> WeightsReport:
    """Loads a state dict as :func:`load_weights` does; ``source`` and ``wrapper`` say where it came from."""
    mine = backbone.state_dict(keep_vars=True)
    match = match_names(mine, state)
    if not strict and len(match.fits) < LEAST_SHARE * len(mine):
        match = match_order(mine, state) or match
    report = report_match(source, mine, state, match)
    if wrapper:
        report = replace(report, seen_through=(f"found under {wrapper!r}", *report.seen_through))
    check_fit(report, mine, state, strict=strict)
    _check_values({name: (mine[name], state[other]) for name, other in match.fits.items()}, source)
    backbone.load_state_dict({name: state[other] for name, other in match.fits.items()}, strict=False)
    return report


def check_fit(
    report: WeightsReport, mine: Mapping[str, Tensor], state: Mapping[str, Tensor], *, strict: bool = False
) -> None:
    """Raises :class:`BundleError` for weights of another network, and warns where parts of the backbone stay random."""
    rest = report.missing + report.misshapen
    if strict and (rest or report.anew or report.unused):
        raise BundleError(
            f"weights: {report.source} does not fit this backbone: missing {report.missing[:3]}, unexpected "
            f"{report.unused[:3]}, other shapes or classes {(report.misshapen + report.anew)[:3]}"
        )
    if len(report.loaded) < LEAST_SHARE * (len(report.loaded) + len(rest)) or not report.loaded:
        raise BundleError(
            f"weights: {report.source} is of another network: {len(report.loaded)} of the backbone's {len(mine)} tensors "
            f"are in it. Not found: {'; '.join(nearest_names((n.split(' ')[0] for n in rest or report.anew), state))}"
        )
    if rest:
        warnings.warn(f"weights: {len(rest)} tensors stay random: {list_names(rest)}", WeightsWarning, stacklevel=4)


def _check_values(pairs: Mapping[str, tuple[Tensor, Tensor]], source: str) -> None:
    """Raises :class:`BundleError` for tensors that cannot be copied as numbers, and for parameters that are not finite."""
    for name, (own, value) in pairs.items():
        odd = (own.is_floating_point() and not value.is_floating_point()) or (value.is_complex() and not own.is_complex())
        if odd or value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = f"{value.dtype}, {value.layout}" + ", without values" * value.is_meta
            raise BundleError(f"weights: {source} has {name} as {kind}, the backbone {own.dtype}: save plain weights")
        if isinstance(own, nn.Parameter) and not torch.isfinite(value.to(own.dtype)).all():
            raise BundleError(f"weights: {source} has values in {name} that are NaN or infinite: take other weights")


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state with one copy of each tensor, also of those that appear under several names."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        first.setdefault(id(value), (name, value))
    return {name: value.detach().clone() for name, value in first.values()}


def load_unique_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Loads the result of :func:`unique_state` into a module built the same way.

    Raises :class:`BundleError` for missing, unexpected or misshapen tensors, before any is written.
    """
    expected = unique_state(module)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        raise BundleError(f"{where}: tensors do not fit the network: missing {missing[:3]}, unexpected {extra[:3]}")
    for name, value in state.items():
        if value.shape != expected[name].shape or value.dtype != expected[name].dtype:
            raise BundleError(
                f"{where}: {name} is {tuple(value.shape)} {value.dtype}, the network has {tuple(expected[name].shape)} "
                f"{expected[name].dtype}"
            )
    module.load_state_dict(state, strict=False)
