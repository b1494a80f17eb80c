"""The samples of all requests on their way through the stages of one model; one thread runs it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import RequestError
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.router import RoutedBatch, Router
from exitlens.serving.batching.scheduling import Pace, Pool, choose_pool
from exitlens.serving.batching.tickets import Terms, Ticket
from exitlens.serving.models import ServedModel
from exitlens.types.tasks import read_answers

LOG = logging.getLogger("exitlens.serving")
MARGIN = 0.002  # seconds before a deadline at which its answer goes out
URGENT, URGENT_SECONDS = 4, 0.05  # steps, as long as they get, and seconds before a deadline from which on it goes first


class Cascade:
    """Routers that share an engine: one for each policy, and one more for requests with terms of their own.

    Args:
        size: samples that run through a stage together.
        max_delay: seconds that a sample waits for company before a later stage, while there is other work.
        on_step: told stage, samples and seconds of every step.
    """

    def __init__(
        self,
        model: ServedModel,
        engine: Engine,
        pace: Pace,
        size: int,
        max_delay: float,
        on_step: Callable[[int, int, float], None] = lambda *_: None,
    ) -> None:
        self.model, self.engine, self.pace, self.size, self.max_delay = model, engine, pace, size, max_delay
        self.on_step = on_step
        self._open: dict[int, Ticket] = {}  # by the places of samples without an answer
        self._urgent: dict[int, Ticket] = {}  # those with a deadline, by their first place
        self._done: list[Ticket] = []
        self._routers: list[Router] = []
        self._known: dict[tuple[str, bool], int] = {}
        self._entered: dict[tuple[int, int], float] = {}  # by router and stage: since when somebody waits there
        self._next, self._with_maps = 0, 0
        self._shares = [cost / model.cost[-1] for cost in model.cost]  # of a sample's work, up to and including each exit
        self._ended: float | None = None  # when the last step ended, if somebody has waited since then

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits, and all that ended is told."""
        return not (self._open or self._done)

    def admit(self, ticket: Ticket) -> None:
        """Takes a request in."""
        terms, ticket.first = ticket.terms, self._next
        self._next += len(ticket)
        where = torch.arange(ticket.first, self._next)
        self._open |= dict.fromkeys(range(ticket.first, self._next), ticket)
        if terms.deadline < math.inf:
            self._urgent[ticket.first] = ticket
        at = self._find_router(terms)
        if terms.attention:
            self._with_maps += 1
            for router in self._routers:
                router.attention = True
        self._entered.setdefault((at, 0), ticket.since)
        self._routers[at].admit(where, ticket.activations, ticket.since)

    def _find_router(self, terms: Terms) -> int:
        key = terms.policy, terms.changes_policy
        if key not in self._known:
            rule = self._leave if terms.changes_policy else None
            policy = self.model.policies[terms.policy]
            self._known[key] = len(self._routers)
            heads = self.model.exits if terms.changes_policy else ()
            self._routers.append(Router(self.engine, policy, self._with_maps > 0, self.size, rule, heads))
        return self._known[key]

    def advance(self) -> list[Ticket]:
        """Answers those whose time is up, and runs one stage; the requests that this ended."""
        self._end_overdue()
        pools = self._list_pools()
        if pools:
            self._run(choose_pool(pools, self.size, time.monotonic(), self.max_delay))
        return self._close()

    def _list_pools(self) -> list[Pool]:
        found, urgent = [], self._is_urgent()
        for at, router in enumerate(self._routers):
            for k, (count, _) in enumerate(router.list_waiting()):
                if count:
                    found.append(Pool(at, k, count, self._entered.get((at, k), 0.0), urgent and router.rule is not None))
        return found

    def _is_urgent(self) -> bool:
        """Whether a deadline is so near that its samples have to go first."""
        soon = time.monotonic() + URGENT * self.pace.forecast_longest() + URGENT_SECONDS
        return any(ticket.terms.deadline < soon for ticket in self._urgent.values())

    def _run(self, pool: Pool) -> None:
        router, started = self._routers[pool.router], time.monotonic()
        count = pool.samples if pool.samples < 2 * self.size else self.size
        try:
            routed = router.run_stage(pool.stage)
        except Exception:
            LOG.exception("%s: stage %d failed", self.model.name, pool.stage)
            for part in router.take_routed():  # who had left before it failed
                self._assign(part)
            self._fail_missing()
            self._note_waiting(pool.router)
            return
        ended = time.monotonic()
        self._note_waiting(pool.router)
        following = pool.router, pool.stage + 1
        if pool.stage and following in self._entered:  # who has waited for company before goes on with whoever is there
            self._entered[following] = min(self._entered[following], pool.entered)
        worked, self._ended = ended - (started if self._ended is None else self._ended), ended
        self.pace.observe(pool.stage, count, ended - started)
        self.pace.observe_work(self._count_work(pool.stage, count, routed), worked)
        for part in routed:
            self._assign(part)
        self.on_step(pool.stage, count, ended - started)

    def _count_work(self, stage: int, count: int, routed: Iterable[RoutedBatch]) -> float:
        """How many samples' work a step did: its share of all that went through, and what those who left need not do."""
        done = self._shares[stage] - (self._shares[stage - 1] if stage else 0.0)
        return count * done + sum(len(part.where) * (1 - self._shares[part.exit]) for part in routed)

    def _note_waiting(self, at: int) -> None:
        """Since when somebody waits for each stage of a router."""
        now = time.monotonic()
        for k, (left, _) in enumerate(self._routers[at].list_waiting()):
            if not left:
                self._entered.pop((at, k), None)
            else:
                self._entered.setdefault((at, k), now)

    def _assign(self, part: RoutedBatch) -> None:
        for place, answer in zip(part.where.tolist(), self._read(part), strict=True):
            ticket = self._open.pop(place)
            ticket.answer(place - ticket.first, *answer)
            if not ticket.left:
                self._done.append(ticket)

    def _read(self, part: RoutedBatch) -> Iterator[tuple[int, Any, float, Any, Tensor | None]]:
        """Exit, label (of several, which are there), score, probabilities and map of each sample."""
        p, k, maps = part.probabilities.cpu(), part.exit, part.attention
        placed: Iterable[Tensor | None] = [None] * len(p)
        if maps is not None:
            placed = self.model.info.place(k, maps.float()).cpu().unbind(0)
        labels: Any = read_answers(p, self.model.info.task)
        labels = labels.numpy() if self.model.gives_labels else labels.tolist()
        return zip([k] * len(p), labels, part.scores.tolist(), p.numpy(), placed, strict=True)

    def _leave(self, batch: RoutedBatch, fired: Tensor) -> Tensor:
        """Who leaves an exit by the requests' own terms."""
        out, now = fired.tolist(), time.monotonic()
        later = now + self.pace.forecast(batch.exit + 1, len(out)) + self.pace.forecast_longest() + MARGIN
        for i, (place, answer) in enumerate(zip(batch.where.tolist(), self._read(batch), strict=True)):
            ticket = self._open[place]
            terms, row = ticket.terms, place - ticket.first
            sure = out[i] and answer[2] >= terms.min_confidence
            ends = (terms.last_exit is not None and batch.exit >= terms.last_exit) or later > terms.deadline
            out[i] = sure or ends
            ticket.limited[row] = ends and not sure
            if terms.deadline < math.inf:
                ticket.kept[row] = answer
        return torch.tensor(out)

    def _end_overdue(self) -> None:
        """Requests whose time is nearly up get the answers that there are."""
        now, gone = time.monotonic(), list[int]()
        for first, ticket in list(self._urgent.items()):
            if not ticket.left:
                del self._urgent[first]
            elif now + MARGIN > ticket.terms.deadline:
                del self._urgent[first]
                gone += self._forget(ticket)
                if not ticket.answer_by_kept():
                    ticket.fail(RequestError("deadline_ms: it passed before the first exit could answer: give more", 504))
                self._done.append(ticket)
        self._discard(gone)

    def _close(self) -> list[Ticket]:
        """The requests that ended since the last call."""
        done, self._done = self._done, []
        if self.is_empty:
            self._ended = None
        ended = time.monotonic()
        for ticket in done:
            ticket.done = ended
            ticket.check_finite()
            self._with_maps -= ticket.terms.attention
        if done and not self._with_maps:
            for router in self._routers:
                router.attention = False
        return done

    def _fail_missing(self) -> None:
        """Fails the requests whose samples were lost with a stage that raised."""
        left = {place for router in self._routers for place in router.list_places()}
        lost = dict.fromkeys(ticket for place, ticket in self._open.items() if place not in left)
        self._fail(lost, "the network failed on these samples, or on others in their batch")

    def abandon(self, ticket: Ticket) -> None:
        """Ends a request that nobody waits for; what it has not run yet is left."""
        if ticket.left:
            self._fail([ticket], "nobody waits for it any more")

    def fail_all(self) -> list[Ticket]:
        """Ends every request that waits."""
        self._fail(dict.fromkeys(self._open.values()), "it has stopped")
        return self._close()

    def _fail(self, tickets: Iterable[Ticket], why: str) -> None:
        for ticket in list(tickets):
            self._discard(self._forget(ticket))
            self._urgent.pop(ticket.first, None)
            ticket.fail(RequestError(f"{self.model.name}: {why}: the server's log says more", 500))
            self._done.append(ticket)

    def _forget(self, ticket: Ticket) -> list[int]:
        """The places of those of its samples that had no answer."""
        return [place for place in range(ticket.first, ticket.first + len(ticket)) if self._open.pop(place, None)]

    def _discard(self, gone: list[int]) -> None:
        for at, router in enumerate(self._routers if gone else ()):
            router.discard(torch.tensor(gone))
            self._note_waiting(at)
