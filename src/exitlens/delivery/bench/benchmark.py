"""The plain backbone and the network with exits, timed side by side, and the measured saving beside the ideal one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exitlens.delivery.bench.contenders import AsIs, Plain, Planned, StepTimes, measure_router_share, plan_exits
from exitlens.delivery.bench.timing import measure_peak_bytes, time_calls
from exitlens.model.heads.exit_heads import have_maps
from exitlens.model.network import ExitNet
from exitlens.model.timing import Times, Work, interleave, interval
from exitlens.types import Policy
from exitlens.types.inputs import Inputs, count_rows, map_inputs, split_rows
from exitlens.workflow.inference import predict

AS_IS, TUNED, COMPILED = "plain, as PyTorch runs it", "plain, tuned", "plain, compiled"
STEPS = "stages alone"
SHARES: dict[str, tuple[float, ...]] = {
    "nobody leaves": (0, 0, 0, 1),
    "all at exit 0": (1, 0, 0, 0),
    "50/30/0/20": (0.5, 0.3, 0, 0.2),
    "40/30/20/10": (0.4, 0.3, 0.2, 0.1),
}
MIXED = "50/30/0/20"


def list_exit_shares(num_exits: int) -> dict[str, tuple[float, ...]]:
    """The exit shares to force on a network with this many exits."""
    if num_exits == 4:
        return SHARES
    found = {"nobody leaves": (0.0,) * (num_exits - 1) + (1.0,)}
    if num_exits > 1:
        found["all at exit 0"] = (1.0,) + (0.0,) * (num_exits - 1)
        found["80/20"] = (0.8,) + (0.0,) * (num_exits - 2) + (0.2,)
    return found


class Bench:
    """A network against its plain backbone, on given inputs.

    Args:
        plain: the backbone, with a classifier for the same classes.
        net: with its tuning.
        inputs: ``(N,...)``, repeated where a batch needs more.
        policy: also time it.
        compiled: also time compiled stages and a compiled backbone (compiling takes a minute or two).
    """

    def __init__(
        self, plain: nn.Module, net: ExitNet, inputs: Inputs, policy: Policy | None = None, compiled: bool = False
    ) -> None:
        self.plain, self.net, self.inputs, self.policy = plain.eval(), net.eval(), inputs, policy
        tuning = replace(net.tuning, channels_last=net.tuning.channels_last or net.is_channels_last)
        self.tuned = Plain(plain, inputs, tuning)
        self.compiled_plain = Plain(plain, inputs, tuning, compiled=True) if compiled else None
        self.compiled_net = copy.deepcopy(net) if compiled else None
        if self.compiled_net is not None:
            self.compiled_net.compile()

    def samples(self, count: int) -> Inputs:
        """``count`` inputs, repeated if there are fewer."""
        rows = torch.arange(count) % count_rows(self.inputs)
        return map_inputs(self.inputs, lambda t: t[rows])

    def run(
        self,
        size: int,
        *,
        rounds: int = 5,
        seconds: float = 10.0,
        memory: bool = True,
        others: Mapping[str, Callable[[Inputs, int, Mapping[str, Tensor]], Work]] | None = None,
        keep: Callable[[str], bool] = lambda name: True,
    ) -> dict[str, Any]:
        """Times every contender in calls of ``size`` samples; JSON-ready.

        Args:
            size: samples in a call.
            rounds: the least number of rounds.
            seconds: how long to continue.
            memory: also measure each contender's peak.
            others: makers of further contenders by name, given the inputs, the size and the plans.
            keep: selects contenders by name; the first two always run.
        """
        count = {1: 20, 8: 40}.get(size, size)
        inputs = self.samples(count)
        plans = {name: plan_exits(shares, count) for name, shares in list_exit_shares(self.net.num_exits).items()}
        steps = StepTimes(self.net, inputs, size)
        works = self._works(inputs, size, plans) | {STEPS: steps}
        meters = {"": (steps, TUNED)}
        if self.compiled_net is not None:
            works[f"{STEPS}, compiled"] = compiled = StepTimes(self.compiled_net, inputs, size)
            meters[", compiled"] = (compiled, COMPILED)
        works |= {name: make(inputs, size, plans) for name, make in (others or {}).items()}
        works = {name: work for name, work in works.items() if keep(name) or name in (AS_IS, TUNED)}
        times = interleave(works, rounds=rounds, seconds=seconds)
        rows = []
        for name in works:
            row = {"name": name} | times.summary(name, count)
            row["speedup"] = times.ratio(AS_IS, name).to_list()
            row["speedup_tuned"] = times.ratio(TUNED, name).to_list()
            for suffix, (meter, reference) in meters.items():
                plan = plans.get(name.removeprefix("exits, ").removesuffix(suffix))
                if plan is not None and name.endswith(suffix) and meter.rounds:
                    row |= self._ideal(times, name, meter, reference, plan, count)
            if memory and not name.startswith(STEPS):
                row["peak_mb"] = round(measure_peak_bytes(works[name]) / 1e6, 3)
            rows.append(row)
        return {"batch": size, "samples": count, "rounds": len(times.rounds[TUNED]), "rows": rows} | self._ratios(times)

    def _works(self, inputs: Inputs, size: int, plans: Mapping[str, Tensor]) -> dict[str, Work]:
        kept, batches = self.net.tuning.keep_memory, split_rows(inputs, size)
        works = {AS_IS: time_calls(AsIs(self.plain), batches), TUNED: time_calls(self.tuned, batches, kept)}
        works |= {f"exits, {name}": Planned(self.net, plan).work(inputs, size) for name, plan in plans.items()}
        last, nobody = MIXED if MIXED in plans else list(plans)[-1], plans["nobody leaves"]
        works[f"exits, {last}, whole batches"] = Planned(self.net, plans[last], whole_batches=True).work(inputs, size)
        if have_maps(self.net.heads):
            works["exits, nobody leaves, with attention"] = Planned(self.net, nobody, attention=True).work(inputs, size)
        if self.policy is not None:
            works["exits, policy"] = time_calls(partial(predict, self.net, policy=self.policy), batches, kept)
        if self.net.num_exits > 2:
            works["static, cut at exit 1"] = time_calls(partial(answer_at, self.net, 1), batches, kept)
        if self.compiled_plain is not None and self.compiled_net is not None:
            works[COMPILED] = time_calls(self.compiled_plain, batches, kept)
            for name in plans:
                works[f"exits, {name}, compiled"] = Planned(self.compiled_net, plans[name]).work(inputs, size)
        return works

    @staticmethod
    def _ideal(times: Times, name: str, steps: StepTimes, reference: str, plan: Tensor, count: int) -> dict[str, Any]:
        """The time that the plan would take if only its stages took time, and how close the measured time comes.

        ``saving`` is the measured saving against the plain backbone in the same form, as a share of the ideal saving;
        ``efficiency`` is the ideal time over the measured one.
        """
        ideal = steps.ideal(plan)[-len(times.rounds[name]) :]  # without the warm-up
        triples = list(zip(ideal, times.seconds(name), times.seconds(reference), strict=True))
        found = {
            "ideal_ms": round(1000 * interval(ideal).median / count, 4),
            "efficiency": interval([a / b for a, b, _ in triples]).to_list(),
        }
        if max(plan.tolist()) > min(plan.tolist()) or plan[0] == 0:  # somebody leaves early
            found["saving"] = interval([(plain - b) / (plain - a) for a, b, plain in triples]).to_list()
        return found

    def _ratios(self, times: Times) -> dict[str, Any]:
        """Ratios other than those to the plain backbone."""
        nobody = "exits, nobody leaves"
        pairs = {
            "nobody_over_plain": (nobody, TUNED),
            "attention_over_none": (f"{nobody}, with attention", nobody),
            "nobody_over_plain, compiled": (f"{nobody}, compiled", COMPILED),
        }
        found = {key: times.ratio(*pair).to_list() for key, pair in pairs.items() if set(pair) <= set(times.rounds)}
        for name in times.rounds:
            eager = name.removesuffix(", compiled")
            if eager != name and eager in times.rounds:
                found[f"compiled_over_eager, {eager}"] = times.ratio(name, eager).to_list()
        return found

    def router_time(self, size: int = 32, runs: int = 15) -> list[float]:
        """Median, low and high of the share of time spent outside stages and heads, at mixed exit shares."""
        shares = list(list_exit_shares(self.net.num_exits).values())[min(2, self.net.num_exits - 1)]
        share = measure_router_share(Planned(self.net, plan_exits(shares, size)), self.samples(size))
        share()
        return interval([share() for _ in range(runs)]).to_list()


def answer_at(net: ExitNet, exit_: int, batch: Inputs) -> None:
    """Answers a batch at one exit, in micro-batches: the smaller static network of the same kind."""
    with net.open_engine() as engine:
        activations = net.unpack(batch)
        size = net.tuning.micro_batch or len(activations[0])
        for at in range(0, len(activations[0]), size):
            part = engine.enter(tuple(t[at : at + size] for t in activations))
            for k in range(exit_):
                part = engine.advance(k, part)
            engine.answer(exit_, part, 1.0, "max_probability")


def tabulate(found: Mapping[str, Any]) -> list[list[str]]:
    """Rows of a table for people from the result of :meth:`Bench.run`."""
    rows = [["", "ms/sample", "p95 ms", "x plain", "x tuned", "ideal ms", "MB"]]
    for row in found["rows"]:
        cells = [f"{row['ms'][0]:.3f}", f"{row['call_p95_ms']:.2f}", f"{row['speedup'][0]:.2f}"]
        cells += [f"{row['speedup_tuned'][0]:.2f}", f"{row['ideal_ms']:.3f}" if "ideal_ms" in row else ""]
        rows.append([row["name"], *cells, f"{row['peak_mb']:.0f}" if "peak_mb" in row else ""])
    return rows
