"""What both kinds of routes share: a request's own terms, and work that would hold up the others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from exitlens.errors import RequestError, suggest
from exitlens.serving.answers import name_promise
from exitlens.serving.batching.tickets import Terms, Ticket
from exitlens.serving.models import ServedModel
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Limits
from exitlens.types.policies import DEFAULT

TERMS = ("policy", "max_cost", "min_confidence", "deadline_ms")
T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """What routes work with: the models, how much a client may ask, and threads for decoding."""

    repository: Repository
    limits: Limits
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "exitlens-decode"))

    async def run_aside(self, call: Callable[..., T], *args: Any, **more: Any) -> T:
        """A call on another thread, so that other requests go on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, partial(call, *args, **more))

    def check_count(self, count: int) -> None:
        """Raises :class:`RequestError` (413) for more samples than one request may have, and (400) for none."""
        if not 0 < count <= self.limits.max_batch:
            status = 413 if count else 400
            raise RequestError(f"inputs: expected 1 to {self.limits.max_batch} samples in a request, got {count}", status)


def read_terms(model: ServedModel, given: Mapping[str, Any], started: float, attention: bool) -> Terms:
    """A request's own terms, from its parameters; raises :class:`RequestError` for unknown ones and bad values."""
    for name in given:
        if name not in TERMS:
            raise RequestError(
                f"parameters: expected some of {', '.join(TERMS)}, got {name!r:.60}.{suggest(name[:20], TERMS)}"
            )
    policy = given.get("policy", DEFAULT)
    if not isinstance(policy, str):
        raise RequestError(f"policy: expected one of {sorted(model.policies)}, got {policy!r:.60}")
    model.find_policy(policy)
    cost = read_number(given, "max_cost", 0.0, math.inf)
    confidence = read_number(given, "min_confidence", 0.0, 1.0)
    deadline = read_number(given, "deadline_ms", 0.0, 3.6e6)
    return Terms(
        policy,
        None if cost is None else model.find_last_exit(cost),
        confidence or 0.0,
        math.inf if deadline is None else started + deadline / 1000,
        attention,
    )


def read_number(given: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    """A number of a range, also from the text of an address; ``None`` if it is not given."""
    value = given.get(name)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high or number == math.inf:
        limit = "or more" if high == math.inf else f"to {high:g}"
        raise RequestError(f"{name}: expected a number of {low:g} {limit}, got {value!r:.60}")
    return number


def note(request: Request, route: str) -> None:
    """Tells the guard which route this is."""
    request.state.route = route


def note_answer(state: MutableMapping[str, Any], model: ServedModel, ticket: Ticket) -> None:
    """Tells the access log, if there is one, who answered."""
    if state["log"] is not None:
        state["log"] |= {
            "model": model.name,
            "version": model.version,
            "policy": ticket.terms.policy,
            "exits": ticket.exits[:16].tolist(),
            "samples": len(ticket),
            "answer_ms": round(1000 * (ticket.done - ticket.since), 3),
        }


def describe_terms(model: ServedModel, terms: Terms) -> dict[str, str]:
    """What an answer says of the policy that it was given under."""
    return {"policy": terms.policy, "promise": name_promise(model.policies[terms.policy], terms)}
