"""Every error that exitlens raises on purpose.

A message names the argument, what was expected, what was received, and how to fix it ("Fix: …").
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from types import UnionType
from typing import Any


class ExitlensError(Exception):
    """Base of all errors of this library; catch it to catch them all.

    Attributes:
        is_told: true once every process that shares the work has raised the error, so that only the first prints it.
    """

    is_told = False


class InputError(ExitlensError, ValueError):
    """A public function received a value, tensor or array that it cannot use."""


class DataError(ExitlensError):
    """A data set, folder or file cannot be read, or does not fit the network.

    Attributes:
        is_skippable: true if the error is about files or rows that ``skip_bad=True`` (``--skip-bad``) leaves out.
    """

    is_skippable = False


class AttachError(ExitlensError):
    """A backbone cannot be cut into stages, or the stages do not compute what the backbone computes."""


class TrainingError(ExitlensError):
    """Training cannot start, continue or be resumed."""


class DistributedError(ExitlensError):
    """Processes that share the work have lost one another, or one of them failed with an error that is not ours."""


class CalibrationError(ExitlensError):
    """No policy can be chosen from this trace under these limits."""


class PolicyError(ExitlensError):
    """A policy does not fit the network or trace that it is used with."""


class EngineError(ExitlensError):
    """The network cannot be compiled or tuned as requested."""


class ExportError(ExitlensError):
    """A network cannot be written in a form that other runtimes read."""


class StreamError(ExitlensError):
    """A stream of inputs broke off; everything before that was answered."""


class BundleError(ExitlensError):
    """A bundle directory is incomplete, altered or of another format."""


class HubError(ExitlensError):
    """A bundle cannot be fetched from the Hugging Face Hub, or pushed to it."""


class RequestError(ExitlensError):
    """A server cannot answer a request as it was sent; the message is meant for the client.

    Attributes:
        status: HTTP status of the answer.
        retry_after: seconds after which to try again, if that may help.
    """

    def __init__(self, message: str, status: int = 400, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class OutputExistsError(ExitlensError):
    """The output exists already, and overwriting was not requested."""


class OutputError(ExitlensError):
    """An output cannot be read or written; what was written before remains valid."""


class DataWarning(UserWarning):
    """The data can be used, but not in the way that was requested, or not for everything."""


class DriftWarning(UserWarning):
    """Incoming samples no longer look like those that the policy was calibrated on."""


class WeightsWarning(UserWarning):
    """Parts of a backbone stay random because the weights lack them, or the weights may not be the last.

    They come from an unfinished training, or from a copy on this disk because the Hugging Face Hub cannot be reached.
    """


class ReachWarning(UserWarning):
    """An exit can be attached, but its features see too little of the image to support an answer."""


class MissingExtraError(ExitlensError, ImportError):
    """An optional dependency is not installed; the message says how to install it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Fix: pip install 'exitlens[{extra}]', or in a clone pip install -e '.[{extra}]'"
        )

    def __reduce__(self) -> Any:  # its constructor does not take its message
        return copyreg.__newobj__, (type(self), *self.args)  # type: ignore[attr-defined]


def import_extra(module: str, extra: str, purpose: str) -> Any:
    """Import the module of an optional dependency, or raise :class:`MissingExtraError`."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.removeprefix("torch.utils.").partition(".")[0]
        raise MissingExtraError(package, extra, purpose) from error


def is_installed(*modules: str) -> bool:
    """Return whether all these modules of optional dependencies can be imported, without importing them."""
    return all(find_spec(module) is not None for module in modules)


def require(value: object, kind: type | UnionType, name: str, hint: str = "") -> None:
    """Raise :class:`InputError` unless ``value`` is of the kind that the argument ``name`` takes."""
    if not isinstance(value, kind):
        expected = getattr(kind, "__name__", str(kind))
        raise InputError(f"{name}: expected {expected}, got {type(value).__name__}" + (f": {hint}" if hint else ""))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def suggest(word: str, known: Iterable[str], cutoff: float = 0.4) -> str:
    """Return ``" Did you mean 'a', 'b'?"`` for the known names closest to ``word``, or an empty string."""
    close = get_close_matches(word, list(known), n=3, cutoff=cutoff)
    return f" Did you mean {', '.join(repr(name) for name in close)}?" if close else ""


__all__ = sorted(n for n, kind in globals().items() if isinstance(kind, type) and issubclass(kind, ExitlensError | Warning))
