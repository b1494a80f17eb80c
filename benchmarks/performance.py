"""The engine against everything a user would pick instead, on the clock.

Cells are NETWORK-THREADS, pinned to as many processors as it has threads, and memory-small-2: what a process holds that answers a
stream. Nothing else should run during it. Needs `make demo-full`; an hour.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

import exitlens as xl
from benchmarks.backbones import wake
from benchmarks.harness import ROOT, Job, Promise, Sense, Study, save_svg, table
from benchmarks.results import Runs, Tree
from exitlens.data.demo import CLASSES, load_garments
from exitlens.delivery import benchmark
from exitlens.delivery.benchmark import MIXED, Bench, pin_threads, time_calls
from exitlens.model.engine.engine import Activations, Engine, Step
from exitlens.model.timing import Work, describe_machine, interleave, interval
from exitlens.types.inputs import Inputs, split_rows

BUNDLE = Path("runs/demo-full/bundle")
SIZES, LOADER_BATCH = (1, 8, 32, 128), 8
MEMORY, EARLYON = "memory-", f"earlyon, {MIXED}, same formats"
SHARES = (0.5, 0.3, 0.0, 0.2)  # of the samples, by the exit that answers
UNREACHABLE = 2.0  # a threshold whose exit is computed, but never answers
TITLES = {"small": "our small network, 40 px", "resnet18": "ResNet-18", "resnet50": "ResNet-50", "deit_tiny": "DeiT-tiny"}


@dataclass(frozen=True)
class Network:
    """A network that is timed: where its backbone comes from, and the size of its images."""

    source: str  # "bundle": the demo's network
    pixels: int
    at: tuple[str, ...] = ()  # where its exits stand; empty: three, placed by time
    stream: int = 0  # images of the stream that is timed as well

    def build(self) -> tuple[nn.Module, xl.ExitNet, Tensor, xl.Policy | None]:
        """Return the plain backbone and the network in evaluation mode, images, and a policy if it is trained."""
        torch.manual_seed(0)
        if self.source == "bundle":
            net, policy = xl.load(BUNDLE)
            plain = xl.build_backbone(net.info.source, net.info.num_classes, net.info.input_shape[0])
            return plain.eval(), net, make_scenes(net, 1024), policy
        plain, images = xl.build_backbone(self.source, 10).eval(), torch.randn(128, 3, self.pixels, self.pixels)
        if not self.at:
            return plain, xl.attach(plain, 3, 10, images[:1], placement="time").eval(), images, None
        net = xl.attach(xl.build_backbone(self.source, 10), self.at, 10, images[:1])
        wake(net)
        return plain, net, images, None


NETWORKS = {
    "small": Network("bundle", 40, stream=10_000),
    "resnet18": Network("torchvision:resnet18", 224, stream=10_000),
    "resnet50": Network("torchvision:resnet50", 224),
    "deit_tiny": Network("timm:deit_tiny_patch16_224", 224),
}


def make_scenes(net: xl.ExitNet, count: int, seed: int = 99) -> Tensor:
    garments, labels = load_garments("test")
    rows = torch.arange(count) % len(garments)
    made = xl.demo.make_scenes(garments[rows], labels[rows], CLASSES, background_agreement=0.8, seed=seed)
    return net.info.preprocess.normalise(made.images)


def list_cells(quick: bool = False) -> dict[str, Job]:
    pairs = [(name, threads) for threads in (2, 1) for name in NETWORKS]
    cells: dict[str, Job] = {f"{name}-{n}": partial(measure_network, name, n, quick) for name, n in pairs}
    return cells | ({} if quick else {f"{MEMORY}small-2": partial(measure_memory, "small", 2)})


class Clocked(Engine):
    """An engine that sums the time spent in stages, heads and the tuning's memory formats."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.stages, engine.heads, engine.tuning, in_place=engine.in_place)
        self.inner, self.spent = engine, 0.0

    def enter(self, activations: Activations) -> Activations:
        started = time.perf_counter()
        activations = super().enter(activations)
        self.spent += time.perf_counter() - started
        return activations

    def run_step(self, k: int, activations: Activations, attention: bool) -> Step:
        started = time.perf_counter()
        step = self.inner.run_step(k, activations, attention)
        self.spent += time.perf_counter() - started
        return step


def measure_router_share(net: xl.ExitNet, inputs: Tensor, runs: int = 15) -> list[float]:
    """Return median, low and high of the share of time spent outside stages and heads, at mixed exit shares."""
    shares = list(benchmark.list_exit_shares(net.num_exits).values())[min(2, net.num_exits - 1)]
    planned, values = benchmark.Planned(net, benchmark.plan_exits(shares, len(inputs))), []
    for _ in range(runs + 1):
        with net.open_engine() as engine:
            clocked, activations = Clocked(engine), net.check_input(inputs)
            started = time.perf_counter()
            planned.answer(clocked, 0, activations)
            total = time.perf_counter() - started
        values.append((total - clocked.spent) / total)
    return interval(values[1:]).to_list()


def measure_network(name: str, threads: int, quick: bool = False) -> Tree:
    """Time batches of all sizes against the plain backbone and earlyon, bfloat16, and for some networks decisions and a stream."""
    warnings.filterwarnings("ignore", module="earlyon")
    network = NETWORKS[name]
    with pin_threads(threads):
        plain, net, images, policy = network.build()
        tuning = net.tune(images[:64], precision="float32", policy=policy, backend="torch").to_dict()
        measured: Tree = {
            "network": {"source": network.source, "pixels": network.pixels, "exits": net.info.at, "cost": net.cost.tolist()},
            "machine": describe_machine(threads),
            "tuning": {key: value for key, value in tuning.items() if key != "measured"},
        }
        bench = Bench(plain, net, images, policy, compiled=True)
        measured["router_share"] = measure_router_share(net, images[:32])
        measured["batches"] = time_batches(bench, network, threads, quick)
        twin = copy.deepcopy(net)
        twin.tune(images[:64], precision="bfloat16", backend="torch")
        keep = (benchmark.AS_IS, benchmark.TUNED, "exits, nobody leaves", f"exits, {MIXED}")
        settings: dict[str, Any] = {"rounds": 2 if quick else 5, "memory": False, "keep": lambda name: name in keep}
        measured["bfloat16"] = name_rows(Bench(plain, twin, images).run(32, **settings))
        if network.stream and threads == 2 and policy is not None:
            measured["decisions"] = compare_decisions(bench, net, policy, 500 if quick else 10_000)
        if network.stream:
            count = 400 if quick else network.stream if threads == 2 else network.stream // 5
            measured["stream"] = time_stream(net, network, count)
    return measured


def time_batches(bench: Bench, network: Network, threads: int, quick: bool) -> Tree:
    try:
        rivals = {EARLYON: make_earlyon(bench.plain, bench.net, network.pixels)}
    except ImportError:
        raise SystemExit("earlyon is not installed. Fix: pip install -e '.[benchmark]'") from None
    is_slow = threads == 1 and network.pixels > 100  # these take their time: no batches of 128
    measured = {}
    for size in (1, 8) if quick else SIZES[:3] if is_slow else SIZES:
        rounds = 2 if quick else 3 if size == 128 else 4 if is_slow else 7
        seconds = 0.0 if quick or is_slow else 8.0
        measured[str(size)] = name_rows(bench.run(size, rounds=rounds, seconds=seconds, others=rivals))
        print(f"  batch {size}: {measured[str(size)]['rounds']} rounds", flush=True)
    return measured


def compare_decisions(bench: Bench, net: xl.ExitNet, policy: xl.Policy, count: int) -> Tree:
    """Compare exits and labels by compiled stages with those by eager ones, over fresh scenes."""
    same, furthest = 0, 0.0
    for batch in make_scenes(net, count, seed=7).split(250):
        eager, compiled = xl.predict(net, batch, policy), xl.predict(bench.compiled_net, batch, policy)
        differ = (eager.exits != compiled.exits) | (eager.labels != compiled.labels)
        same += int((~differ).sum())
        for i in differ.nonzero().squeeze(1).tolist():
            pred = min(eager, compiled, key=lambda pred: int(pred.exits[i]))  # whose threshold decided between them
            furthest = max(furthest, abs(float(pred.confidence[i]) - policy.thresholds[int(pred.exits[i])]))
    return {"samples": count, "equal": same / count, "furthest_from_threshold": furthest}


def name_rows(measured: Tree) -> Tree:
    rows = {row["name"]: {key: value for key, value in row.items() if key != "name"} for row in measured["rows"]}
    return {**{key: value for key, value in measured.items() if key != "batch"}, "rows": rows}


# earlyon 0.3.0 on the same backbone with heads at the same places, its exits forced by the same plan

Maker = Callable[[Inputs, int, Mapping[str, Tensor]], Work]


def make_earlyon(plain: nn.Module, net: xl.ExitNet, pixels: int) -> Maker:
    """Return earlyon with the memory format and kept memory that tuning chose for ours."""
    from earlyon.models.custom import custom_ee

    layout = torch.channels_last if net.tuning.channels_last else torch.preserve_format
    backbone = copy.deepcopy(plain).eval().to(memory_format=layout)  # type: ignore[call-overload]
    wrapper = custom_ee(backbone, list(net.info.at), 10, input_shape=(1, 3, pixels, pixels), dropout=0.0).eval()
    state: dict[str, Tensor] = {}
    for k, name in enumerate(wrapper.exit_heads):
        wrapper.exit_heads[name] = Forced(wrapper.exit_heads[name], k, state)

    def make(inputs: Inputs, size: int, plans: Mapping[str, Tensor]) -> Work:
        plan = plans[MIXED]

        def run(call: tuple[int, Tensor]) -> None:
            start, batch = call
            state["plan"], batch = plan[start : start + size], batch.to(memory_format=layout)
            wrapper(batch) if size == 1 else wrapper.forward_inference_batched(batch)

        calls = list(zip(range(0, len(plan), size), split_rows(inputs, size), strict=True))
        return time_calls(run, calls, net.tuning.keep_memory)

    return make


class Forced(nn.Module):
    """A head that is computed, and then answers by plan: sure where the sample is to leave, else unsure."""

    def __init__(self, head: nn.Module, exit_: int, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.head, self.exit, self.state = head, exit_, state

    def forward(self, features: Tensor) -> Tensor:
        logits = 0 * self.head(features)
        logits[:, 0] = torch.where(self.state["plan"] <= self.exit, 100.0, 0.0)
        return logits


# Streams of batches: how fast they are answered, and what a process holds that answers one


def time_stream(net: xl.ExitNet, network: Network, count: int) -> Tree:
    """Time a stream in loader batches of 8: survivors that wait for company, against each batch alone."""
    twin = copy.deepcopy(net)
    known = make_scenes(net, 1024) if network.source == "bundle" else torch.randn(256, 3, network.pixels, network.pixels)
    policy = force_shares(twin, known)
    shares = torch.zeros(twin.num_exits)

    def answer_stream(images: int) -> None:
        for pred in xl.predict_stream(twin, load_batches(known, images), policy):
            shares.add_(pred.exits.bincount(minlength=twin.num_exits))

    def answer_batches(images: int) -> None:
        for batch in load_batches(known, images):
            xl.predict(twin, batch, policy)

    chunk, kept = max(count // 10, LOADER_BATCH), twin.tuning.keep_memory
    works = {"batch by batch": time_calls(answer_batches, [chunk], kept), "stream": time_calls(answer_stream, [chunk], kept)}
    gain = interleave(works, rounds=10).ratio("batch by batch", "stream").to_list()
    return {"samples": chunk * 10, "shares": (shares / shares.sum()).tolist(), "gain": gain}


def load_batches(images: Tensor, count: int) -> Iterator[Tensor]:
    batches = images.split(LOADER_BATCH)
    yield from (batches[i % len(batches)] for i in range(count // LOADER_BATCH))


def force_shares(net: xl.ExitNet, images: Tensor, shares: tuple[float, ...] = SHARES) -> xl.Policy:
    """Return a policy by which these images leave in these shares: thresholds in the middle of the gaps between their scores."""
    logits = xl.collect(net, images).logits.unbind(1)
    temperatures = tuple(max(float(exit_logits.std()), 1e-6) for exit_logits in logits)
    left, thresholds, owed = torch.arange(len(images)), list[float](), 0.0
    for exit_logits, share, temperature in zip(logits, shares[:-1], temperatures, strict=False):
        owed += share * len(images)
        count = min(round(owed), len(left))
        owed -= count
        ordered, order = (exit_logits[left] / temperature).softmax(1).amax(1).sort(descending=True)
        gaps = [UNREACHABLE, *((ordered[:-1] + ordered[1:]) / 2).tolist(), -1.0]  # by the number of samples that leave
        thresholds.append(gaps[count])
        left = left[order[count:]]
    return xl.Policy(tuple(thresholds), temperatures=temperatures, network=net.identity())


def measure_memory(name: str, threads: int) -> Tree:
    """Measure the megabytes that this process holds after each fifth of one stream, without memory being kept."""
    network, resident, seen = NETWORKS[name], [], 0
    with pin_threads(threads):
        _, net, images, policy = network.build()
        net.tuning = xl.Tuning(micro_batch=32, channels_last=True, folded=True)
        marks = [network.stream * i // 5 // LOADER_BATCH * LOADER_BATCH for i in range(1, 6)]
        for pred in xl.predict_stream(net, load_batches(images[:256], network.stream), policy or xl.Policy.never(4)):
            seen += len(pred)
            if marks and seen >= marks[0]:
                marks.pop(0)
                resident.append(round(psutil.Process().memory_info().rss / 1e6, 1))
    return {"samples": network.stream, "resident_mb": resident}


Figure = tuple[str, str, Any, Sense, float]  # key, words, the median and its interval (None: not measured), bar


def list_promises(runs: Runs) -> Iterator[Promise]:
    for run in sorted(name for name in runs if not name.startswith(MEMORY)):
        measured = runs[run]
        for size, batch in measured["batches"].items():
            figures = [*list_ratios(run, int(size), batch), *list_savings(run, int(size), batch["rows"])]
            yield from (Promise.of_median(*figure) for figure in figures if figure[2])
        if run.startswith("resnet18"):
            what = f"{run}, batch 32: the router's own time"
            yield Promise.of_median(f"router|{run}", what, measured["router_share"], "<=", 0.01)
        if "stream" in measured:
            what = f"{run}: throughput of a stream over separate batches of 8"
            yield Promise.of_median(f"stream|{run}", what, measured["stream"]["gain"], ">=", 1.15)
        if "decisions" in measured:
            same, far = measured["decisions"]["equal"], measured["decisions"]["furthest_from_threshold"]
            what = f"{run}: share of 10,000 samples that compiled and eager stages decide alike"
            yield Promise(f"decisions|{run}", what, same, ">=", 0.9999, exact=True)
            what = f"{run}: largest distance of the others from their thresholds"
            yield Promise(f"near|{run}", what, far, "<=", 1e-4, exact=True)
        if f"{MEMORY}{run}" in runs:
            held = runs[f"{MEMORY}{run}"]["resident_mb"]
            what = f"{run}: memory at the end of a stream over that after a fifth of it"
            yield Promise(f"memory|{run}", what, held[-1] / held[0], "<=", 1.05)


def list_ratios(run: str, size: int, batch: Tree) -> Iterator[Figure]:
    at, end, first, eager = f"{run}, batch {size}", f"{run}|{size}", "exits, all at exit 0", "compiled_over_eager, "
    for form in ("", ", compiled"):
        ratio = batch.get(f"nobody_over_plain{form}")
        yield f"nobody{form}|{end}", f"{at}: nobody leaves{form}, time over plain", ratio, "<=", 1.04
    forms = [batch["rows"][name] for name in (first, f"{first}, compiled") if name in batch["rows"] and size == 1]
    best = max((row["efficiency"] for row in forms), default=None)
    yield f"exit0|{run}", f"{at}: all leave at exit 0, share of the speed that the stage allows", best, ">=", 0.95
    ratio = batch.get("attention_over_none")
    yield f"attention|{end}", f"{at}: attention of every exit, time over without", ratio, "<=", 1.02
    for name in [key.removeprefix(eager) for key in batch if key.startswith(eager)]:
        yield f"compiled|{name}|{end}", f"{at}: {name}, compiled over eager", batch[eager + name], "<=", 1.0


def list_savings(run: str, size: int, rows: Tree) -> Iterator[Figure]:
    for shares in (MIXED, "40/30/20/10", "all at exit 0") if size >= 8 else ():
        names = [name for name in (f"exits, {shares}", f"exits, {shares}, compiled") if "saving" in rows.get(name, {})]
        if names:
            fastest = min(names, key=lambda name: rows[name]["ms"][0])
            form = "compiled" if fastest.endswith("compiled") else "eager"
            what = f"{run}, batch {size}: {shares}, saving over ideal saving ({form}, the faster)"
            yield f"saving|{shares}|{run}|{size}", what, rows[fastest]["saving"], ">=", 0.95
    mixed, other, at = rows.get(f"exits, {MIXED}"), rows.get(EARLYON), f"{run}, batch {size}: {MIXED}, times"
    if mixed and run.startswith("resnet50") and size == 32:
        yield f"plain|{run}", f"{at} faster than plain as PyTorch runs it", mixed["speedup"], ">=", 2.4
        yield f"tuned|{run}", f"{at} faster than plain with the same tuning", mixed["speedup_tuned"], ">=", 1.6
    if mixed and other and size in (1, 32):
        (middle, low, high), (ms, least, most) = other["ms"], mixed["ms"]
        summary, what = (middle / ms, low / most, high / least), f"{at} earlyon's throughput, same formats"
        yield f"earlyon, same formats|{run}|{size}", what, summary, ">=", 1.0 if size == 1 else 2.2


def order_runs(runs: Runs) -> dict[tuple[str, int], Tree]:
    return {(name, threads): runs[key] for threads in (2, 1) for name in TITLES if (key := f"{name}-{threads}") in runs}


def write_performance(runs: Runs) -> list[str]:
    ordered = order_runs(runs)
    first = next(iter(ordered.values()))["machine"]
    at = f"{first['processor']} ({first['cores']} cores), PyTorch {first['torch']}, Python {first['python']}"
    lines = [f"Measured on {at}."]
    for (name, threads), measured in ordered.items():
        for part in (write_network(name, threads, measured), write_batches(measured), write_further(measured)):
            lines += ["", *part]
    return [*lines, ""]


def write_network(name: str, threads: int, measured: Tree) -> list[str]:
    network, tuning = measured["network"], measured["tuning"]
    at, cost = ", ".join(f"`{a}`" for a in network["exits"]), ", ".join(f"{100 * c:.0f} %" for c in network["cost"])
    used = tuning["threads"] or threads
    words = [
        f"micro-batch {tuning['micro_batch']}",
        "channels_last" if tuning["channels_last"] else "own memory format",
        "batch normalisation folded" if tuning["folded"] else "nothing to fold",
        "memory kept" if tuning["keep_memory"] else "memory not kept",
        f"{used} thread{'s' if used > 1 else ''}",
    ]
    title = f"### {TITLES[name]}, {threads} core{'s' if threads > 1 else ''}"
    return [title, "", f"Exits after {at} (cost {cost}). Tuned: {', '.join(words)}, {tuning['precision']}."]


def write_batches(measured: Tree) -> list[str]:
    by_size = [batch["rows"] for batch in measured["batches"].values()]
    head = ["ms a sample (times faster than plain as PyTorch runs it)", *(f"batch {size}" for size in measured["batches"])]
    cells = {name: [batch.get(name) for batch in by_size] for name in by_size[0]}
    shown = {
        name: [f"{row['ms'][0]:.2f} ({row['speedup'][0]:.2f}x)" if row else "" for row in cells[name]] for name in cells
    }
    return table(head, ([name, *row] for name, row in shown.items()))


def write_further(measured: Tree) -> list[str]:
    half = measured["bfloat16"]["rows"]
    ours, plain = half[f"exits, {MIXED}"], half["plain, tuned"]
    lines = [
        f"In bfloat16, batch 32: plain {plain['ms'][0]:.2f} ms, ours at {MIXED} {ours['ms'][0]:.2f} ms "
        f"({ours['speedup'][0]:.1f} times faster than plain as PyTorch runs it)."
    ]
    if "stream" in measured:
        stream = measured["stream"]
        shares = "/".join(f"{100 * s:.0f}" for s in stream["shares"])
        lines.append(
            f"A stream of {stream['samples']:,} images in loader batches of 8 (shares {shares}): {stream['gain'][0]:.2f} times the "
            "throughput of batch-by-batch compaction."
        )
    if "decisions" in measured:
        same = measured["decisions"]
        lines.append(
            f"Compiled stages decide as eager ones for {100 * same['equal']:.2f} % of {same['samples']:,} scenes; of the others "
            f"no score is further than {same['furthest_from_threshold']:.1e} from its threshold."
        )
    return lines


def write_summary(runs: Runs) -> list[str]:
    rows = []
    for name, measured in ((name, run) for (name, threads), run in order_runs(runs).items() if threads == 2):
        both = [measured["batches"][size]["rows"] for size in ("1", "32")]
        values = [batch[f"exits, {MIXED}"][kind] for kind in ("speedup", "speedup_tuned") for batch in both]
        cells = [f"**{v[0]:.1f}** ({v[1]:.1f} to {v[2]:.1f})" for v in values]
        rivals = [batch[EARLYON]["ms"][0] / batch[f"exits, {MIXED}"]["ms"][0] for batch in both]
        rows.append([TITLES[name], *cells, *(f"**{rival:.1f}**" for rival in rivals)])
    head = ["times faster than", "plain as PyTorch runs it, batch 1", "batch 32"]
    head += ["plain with the same tuning, batch 1", "batch 32", "earlyon 0.3.0 in the same formats, batch 1", "batch 32"]
    return [
        f"Exit shares {MIXED} forced on three exits placed by time, two cores, float32, heads included; medians with 95 % "
        "intervals. What your network allows is decided by its accuracy at each exit; this is what the engine makes of it.",
        "",
        *table(head, rows),
    ]


BARS = {  # rows of the chart: label and colour (Okabe and Ito's)
    "plain, tuned": ("plain backbone, tuned", "#999999"),
    "plain, compiled": ("plain backbone, tuned and compiled", "#555555"),
    EARLYON: ("earlyon 0.3.0, same formats", "#E69F00"),
    f"exits, {MIXED}, whole batches": ("ours, whole batches", "#56B4E9"),
    f"exits, {MIXED}": ("ours, tuned", "#0072B2"),
    f"exits, {MIXED}, compiled": ("ours, tuned and compiled", "#009E73"),
}
WIDTH, LABEL_HEIGHT = 0.82 / len(BARS), 0.35


def plot_speed(runs: Runs, path: Path = ROOT / "docs" / "measured" / "performance.svg") -> None:
    """Plot batch 32 on two cores: how many times faster than plain as PyTorch runs it, with the ideal as a mark."""
    from matplotlib.figure import Figure

    on_two = {name: measured for (name, threads), measured in order_runs(runs).items() if threads == 2}
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for j, (key, (label, colour)) in enumerate(BARS.items()):
        places = [i + (j - (len(BARS) - 1) / 2) * WIDTH for i in range(len(on_two))]
        rows = [(x, run["batches"]["32"]["rows"].get(key)) for x, run in zip(places, on_two.values(), strict=True)]
        for x, row in ((x, row) for x, row in rows if row is not None):
            (value, low, high), top = row["speedup"], row["speedup"][2]
            error = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.bar(x, value, WIDTH * 0.92, color=colour, yerr=error, ecolor="#222222", label=label if x < 0.5 else None)
            if "ideal_ms" in row:
                ideal = value * row["ms"][0] / row["ideal_ms"]
                axes.plot([x - WIDTH / 2, x + WIDTH / 2], [ideal, ideal], color="#D55E00", lw=2)
                top = max(high, ideal) + 0.03 if ideal < high + LABEL_HEIGHT else high  # no figure is drawn over the mark
            axes.annotate(f"{value:.1f}", (x, top), ha="center", va="bottom", fontsize=7)
    axes.plot([], [], color="#D55E00", lw=2, label="ideal: stage times x shares")
    axes.axhline(1, color="#222222", lw=0.8)
    axes.set_xticks(range(len(on_two)), [TITLES[name] for name in on_two])
    axes.set_ylabel("times faster than the plain backbone\nas PyTorch runs it (batch 32)")
    axes.set_title(f"Exit shares {MIXED}, two cores, float32; medians with 95 % intervals", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    save_svg(figure, path)


TABLES = {"performance": write_performance, "speed": write_summary}
STUDY = Study("performance", list_cells, list_promises, TABLES, finish=plot_speed)
