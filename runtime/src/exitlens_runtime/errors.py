"""Errors that the runtime raises on purpose: each names the argument, what was expected, what was received, and the fix."""

from __future__ import annotations


class ExitlensRuntimeError(Exception):
    """Base of all errors of this package: catching it catches them all."""


class BundleError(ExitlensRuntimeError):
    """An edge bundle is incomplete, altered or of another version."""


class HubError(ExitlensRuntimeError):
    """An edge bundle cannot be fetched from the Hugging Face Hub."""


class InputError(ExitlensRuntimeError, ValueError):
    """A value, array or file cannot be used."""


class PolicyError(ExitlensRuntimeError):
    """A policy does not fit the network."""


class BackendError(ExitlensRuntimeError):
    """A backend is missing, too old, or cannot run a file."""
