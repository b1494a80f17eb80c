"""Everything about one network in so many threads."""

from __future__ import annotations

import copy
import time
from typing import Any

from torch import Tensor, nn

import exitlens as xl
from benchmarks.performance.networks import Network, make_scenes
from benchmarks.performance.rivals import make_rivals
from benchmarks.performance.streams import time_stream
from exitlens.delivery.bench.benchmark import AS_IS, MIXED, TUNED, Bench
from exitlens.model.timing import describe_machine

SIZES = (1, 8, 32, 128)


def measure_network(network: Network, threads: int, quick: bool) -> dict[str, Any]:
    """Batches of all sizes against the plain backbone and earlyon, bfloat16, and for some networks decisions and a stream."""
    plain, net, images, policy = network.build()
    tuning = net.tune(images[:64], precision="float32", policy=policy, backend="torch")
    found: dict[str, Any] = {
        "network": {"source": network.source, "pixels": network.pixels, "exits": net.info.at, "cost": net.cost.tolist()},
        "machine": describe_machine(threads),
        "tuning": name_tunings(tuning.to_dict()),
    }
    started = time.perf_counter()
    bench = Bench(plain, net, images, policy, compiled=True)
    found["compile_seconds"] = round(time.perf_counter() - started, 1)
    found["router_share"] = bench.router_time()
    found["batches"] = time_batches(bench, network, threads, quick)
    found["bfloat16"] = time_bfloat16(plain, net, images, quick)
    if network.stream and threads == 2 and policy is not None:
        found["decisions"] = compare_decisions(bench, net, policy, 500 if quick else 10_000)
    if network.stream:
        count = 400 if quick else network.stream if threads == 2 else network.stream // 5
        found["stream"] = time_stream(net, network, count)
    return found


def time_batches(bench: Bench, network: Network, threads: int, quick: bool) -> dict[str, Any]:
    """By batch size."""
    try:
        rivals = make_rivals(bench.plain, bench.net, network.pixels)
    except ImportError:
        raise SystemExit("earlyon is not installed: pip install -e '.[benchmark]'") from None
    large = threads == 1 and network.pixels > 100  # these take their time: no batches of 128
    found = {}
    for size in (1, 8) if quick else SIZES[:3] if large else SIZES:
        rounds = 2 if quick else 3 if size == 128 else 4 if large else 7
        seconds = 0.0 if quick or large else 8.0
        found[str(size)] = name_rows(bench.run(size, rounds=rounds, seconds=seconds, others=rivals))
        print(f"  batch {size}: {found[str(size)]['rounds']} rounds", flush=True)
    return found


def time_bfloat16(plain: nn.Module, net: xl.ExitNet, images: Tensor, quick: bool) -> dict[str, Any]:
    """The same in bfloat16, at batch 32: what is gained where the decisions allow it."""
    twin = copy.deepcopy(net)
    twin.tune(images[:64], precision="bfloat16", backend="torch")
    keep = (AS_IS, TUNED, "exits, nobody leaves", f"exits, {MIXED}")
    found = Bench(plain, twin, images).run(32, rounds=2 if quick else 5, memory=False, keep=lambda name: name in keep)
    tuning = name_tunings(twin.tuning.to_dict())
    return {"batch": 32, **name_rows(found), "agreement": twin.tuning.measured.get("bfloat16_agreement"), "tuning": tuning}


def compare_decisions(bench: Bench, net: xl.ExitNet, policy: xl.Policy, count: int) -> dict[str, Any]:
    """Exits and labels by compiled stages against eager ones, over fresh scenes."""
    assert bench.compiled_net is not None
    images = make_scenes(net, count, seed=7)
    same, furthest, compiled_net = 0, 0.0, bench.compiled_net
    for batch in images.split(250):
        one, other = xl.predict(net, batch, policy), xl.predict(compiled_net, batch, policy)
        differ = (one.exits != other.exits) | (one.labels != other.labels)
        same += int((~differ).sum())
        for i in differ.nonzero().squeeze(1).tolist():
            first = min(int(one.exits[i]), int(other.exits[i]))  # whose threshold decided between them
            pred = one if int(one.exits[i]) == first else other
            furthest = max(furthest, abs(float(pred.confidence[i]) - policy.thresholds[first]))
    return {"samples": count, "equal": same / count, "furthest_from_threshold": furthest}


def name_rows(found: dict[str, Any]) -> dict[str, Any]:
    """What was timed for one batch size, its rows by name; the size itself is the name of the whole."""
    rows = {row["name"]: {key: value for key, value in row.items() if key != "name"} for row in found["rows"]}
    return {**{key: value for key, value in found.items() if key != "batch"}, "rows": rows}


def name_tunings(tuning: dict[str, Any]) -> dict[str, Any]:
    """A tuning with what was tried numbered."""
    tried = {str(i): one for i, one in enumerate(tuning["measured"]["ms_per_sample"])}
    return {**tuning, "measured": {**tuning["measured"], "ms_per_sample": tried}}
