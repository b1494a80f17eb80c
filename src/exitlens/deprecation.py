"""Former names of functions and arguments: they go on for two minor versions, and say what to use instead.

No name is deprecated without one of the two decorators here, and a test fails when the version that a name goes in has
come (docs/project/stability.md).
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from exitlens.errors import ExitlensDeprecationWarning, InputError

P = ParamSpec("P")
R = TypeVar("R")


def deprecate_function(*, since: str, gone: str, use: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Marks a function that is there for its former name's sake: it does what it did, and warns at every call.

    ::

        @deprecate_function(since="0.3", gone="0.5", use="exitlens.collect")
        def gather(net, loader):
            return collect(net, loader)

    Args:
        since: the version ``X.Y`` that first warns. gone: the first that does not have it, two minor versions later or more.
        use: what to write instead.

    Returns:
        A decorator. What it gives warns with :class:`~exitlens.ExitlensDeprecationWarning` at the line of its caller.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        message = _say(f"{function.__qualname__}()", since, gone, use)

        @functools.wraps(function)
        def warn_and_call(*args: P.args, **kwargs: P.kwargs) -> R:
            _warn(message)
            return function(*args, **kwargs)

        warn_and_call.__doc__ = f"{message[0].upper()}{message[1:]}.\n\n{inspect.getdoc(function) or ''}".rstrip()
        return warn_and_call

    return decorate


def rename_argument(old: str, new: str, *, since: str, gone: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Lets a function take an argument by its former name, too, with a warning.

    ::

        @rename_argument("max_drop", "max_accuracy_drop", since="0.3", gone="0.5")
        def calibrate(trace, max_accuracy_drop=None): ...

    Args:
        old: the name that goes; the function itself no longer has it. new: the one that it has.
        since, gone: see :func:`deprecate_function`.

    Returns:
        A decorator; several may stand above one another. What it gives raises :class:`~exitlens.InputError` when an argument
        comes by both names.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature, name = inspect.signature(function), function.__qualname__
        assert [one for one in (old, new) if one in signature.parameters] == [new], f"{name}: {old} -> {new}"
        message = _say(f"the argument {old} of {name}()", since, gone, f"{new}=")

        @functools.wraps(function)
        def warn_and_call(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                if new in kwargs or new in signature.bind_partial(*args).arguments:
                    raise InputError(f"{old}: expected it or {new}, which is its name now, got both: give {new} alone")
                _warn(message)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return warn_and_call

    return decorate


def _say(what: str, since: str, gone: str, use: str) -> str:
    return f"{what} is deprecated since exitlens {since} and will be gone in {gone}: use {use}"


def _warn(message: str) -> None:
    """At the first line outside of this file, however many decorators there are."""
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, ExitlensDeprecationWarning, stacklevel=depth)
