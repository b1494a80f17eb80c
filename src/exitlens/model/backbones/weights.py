"""State dicts: loaded from a file into a backbone, and reduced to one copy of each shared tensor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exitlens.errors import BundleError, WeightsWarning
from exitlens.model.backbones.matching import (
    WeightsReport,
    list_names,
    match_names,
    match_order,
    nearest_names,
    report_match,
    unwrap,
)

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
