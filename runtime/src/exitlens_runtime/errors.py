"""Every error that the runtime raises on purpose. Each message says what was expected, what came and the mend."""

from __future__ import annotations


class ExitlensRuntimeError(Exception):
    """Base of all errors of this package; catch it to catch them all."""


class BundleError(ExitlensRuntimeError):
    """An edge bundle is incomplete, altered or of another version."""


class InputError(ExitlensRuntimeError, ValueError):
    """A value, array or file cannot be used."""


class PolicyError(ExitlensRuntimeError):
    """A policy does not fit the network."""


class BackendError(ExitlensRuntimeError):
    """ONNX Runtime is missing, too old, or cannot run a file."""
