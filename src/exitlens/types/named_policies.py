"""Policies by name: what a name may be, and whether each of them fits a network."""

from __future__ import annotations

import re
from collections.abc import Mapping

from exitlens.errors import InputError, PolicyError, require
from exitlens.types.policies import Policy
from exitlens.types.tasks import Task

DEFAULT = "default"  # what the policy that a bundle is saved with is called among those with a name
_NAME = re.compile("[a-z0-9_-]{1,40}")


def check_name(name: object, argument: str) -> None:
    """Raises :class:`InputError`, which names the argument, unless a policy beside a bundle's own may be called so."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"{argument}: expected names of 1 to 40 characters a-z, 0-9, _ and -, got {name!r:.80}")
    if name == DEFAULT:
        raise InputError(f"{argument}: {DEFAULT!r} is what the bundle's own policy is called: choose another name")


def check_named(policies: Mapping[str, Policy], num_exits: int, network: str, task: Task | None = None) -> None:
    """Checks every name and policy.

    Raises:
        InputError: for a name that none may have, or a value that is no policy; PolicyError: for a policy of another
            network, by its name.
    """
    require(policies, Mapping, "policies", "names and policies")
    for name, policy in policies.items():
        check_name(name, "policies")
        require(policy, Policy, f"policies, {name}", "see exitlens.calibrate")
        check_fit(policy, num_exits, network, f"policies, {name}", task)


def check_fit(policy: Policy, num_exits: int, network: str, place: str, task: Task | None = None) -> None:
    """As :meth:`Policy.check`, with an error that says which policy it is: ``place``."""
    try:
        policy.check(num_exits, network, task)
    except PolicyError as error:
        raise PolicyError(f"{place}: {str(error).removeprefix('policy: ')}") from error
