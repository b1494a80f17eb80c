"""Times the engine against everything a user would pick instead; one JSON per network and number of threads.

Usage: python benchmarks/performance.py [--only NETWORK-THREADS ...] [--again] [--quick]

Every part runs in a process of its own, pinned to as many processors as it has threads; what is there already is skipped
(`--again` measures it again). Nothing else should run meanwhile. The results go to benchmarks/results/performance/ and from
there, by benchmarks/performance_page.py, to docs/performance.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import exitlens as xl
from exitlens.data.fashion import CLASSES, load_garments
from exitlens.delivery.bench.benchmark import AS_IS, MIXED, TUNED, Bench, machine
from exitlens.delivery.bench.timing import Work, clocked, interleave, pinned
from exitlens.types import Preprocess
from exitlens.types.inputs import Inputs, split_rows

RESULTS = Path(__file__).parent / "results" / "performance"
BUNDLE = Path("runs/demo/bundle")
SIZES = (1, 8, 32, 128)


@dataclass(frozen=True)
class Subject:
    """A network to time: where its backbone comes from, and the size of its images."""

    source: str
    pixels: int
    stream: int = 0  # images of the stream that is timed, too

    def build(self) -> tuple[nn.Module, xl.ExitNet, Tensor, xl.Policy | None]:
        """The plain backbone, the network with three early exits placed by time, images, and a policy if it is trained."""
        torch.manual_seed(0)
        if self.source == "bundle":
            net, policy = xl.load(BUNDLE)
            plain = xl.build_backbone(net.info.source, net.info.num_classes, net.info.input_shape[0])
            return plain, net, scenes(net, 1024), policy
        plain = xl.build_backbone(self.source, 10)
        images = torch.randn(128, 3, self.pixels, self.pixels)
        return plain, xl.attach(plain, 3, 10, images[:1], by="time").eval(), images, None


SUBJECTS = {
    "small": Subject("bundle", 40, stream=10_000),
    "resnet18": Subject("torchvision:resnet18", 224, stream=10_000),
    "resnet50": Subject("torchvision:resnet50", 224),
    "deit_tiny": Subject("timm:deit_tiny_patch16_224", 224),
}


def scenes(net: xl.ExitNet, count: int, seed: int = 99) -> Tensor:
    """Garments of the test split in scenes that were not seen in training or calibration."""
    garments, labels = load_garments("test")
    rows = torch.arange(count) % len(garments)
    made = xl.make_scenes(garments[rows], labels[rows], CLASSES, background_agreement=0.8, seed=seed)
    assert isinstance(net.info.preprocess, Preprocess)
    return net.info.preprocess.normalise(made.images)


def earlyon_makers(plain: nn.Module, net: xl.ExitNet, pixels: int) -> dict[str, Callable[..., Work]]:
    """earlyon on the same backbone with heads at the same places, its exits forced by the same plan.

    Twice: as it comes, and with the memory format and kept memory that ours has.
    """
    from earlyon.models.custom import custom_ee

    def maker(tuned: bool) -> Callable[[Inputs, int, Mapping[str, Tensor]], Work]:
        backbone = copy.deepcopy(plain).eval()
        if tuned and net.tuning.channels_last:
            backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        wrapper = custom_ee(backbone, list(net.info.at), 10, input_shape=(1, 3, pixels, pixels), dropout=0.0).eval()
        state: dict[str, Tensor] = {}
        for k, name in enumerate(wrapper.exit_heads):
            wrapper.exit_heads[name] = _Forced(wrapper.exit_heads[name], k, state)

        def make(inputs: Inputs, size: int, plans: Mapping[str, Tensor]) -> Work:
            plan = plans[MIXED]

            def run(call: tuple[int, Inputs]) -> None:
                start, batch = call
                state["plan"] = plan[start : start + size]
                if tuned and net.tuning.channels_last:
                    batch = batch.contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
                wrapper(batch) if size == 1 else wrapper.forward_inference_batched(batch)

            calls = list(zip(range(0, len(plan), size), split_rows(inputs, size), strict=True))
            return clocked(run, calls, tuned and net.tuning.keep_memory)

        return make

    return {f"earlyon, {MIXED}": maker(False), f"earlyon, {MIXED}, same formats": maker(True)}


class _Forced(nn.Module):
    """A head that is computed, and then says what the plan wants: sure where the sample is to leave, else unsure."""

    def __init__(self, head: nn.Module, exit_: int, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.head, self.exit, self.state = head, exit_, state

    def forward(self, features: Tensor) -> Tensor:
        logits = 0 * self.head(features)
        logits[:, 0] = torch.where(self.state["plan"] <= self.exit, 100.0, 0.0)
        return logits


def run_batches(subject: Subject, threads: int, quick: bool) -> dict[str, Any]:
    """Everything about one network in this many threads."""
    plain, net, images, policy = subject.build()
    at = net.info.at
    tuning = net.tune(images[:64], precision="float32", policy=policy)
    found: dict[str, Any] = {
        "network": {"source": subject.source, "pixels": subject.pixels, "exits": at, "cost": net.cost.tolist()},
        "machine": machine(threads),
        "tuning": tuning.to_dict(),
        "batches": [],
    }
    started = time.perf_counter()
    bench = Bench(plain, net, images, policy, compiled=True)
    found["compile_seconds"] = round(time.perf_counter() - started, 1)
    found["router_share"] = bench.router_time()
    try:
        others = earlyon_makers(plain, net, subject.pixels)
    except ImportError:
        raise SystemExit("earlyon is not installed: pip install -e '.[benchmark]'") from None
    large = threads == 1 and subject.pixels > 100  # these take their time: no batches of 128
    for size in (1, 8) if quick else SIZES[:3] if large else SIZES:
        rounds = 2 if quick else 3 if size == 128 else 4 if large else 7
        seconds = 0.0 if quick or large else 8.0
        found["batches"].append(bench.run(size, rounds=rounds, seconds=seconds, others=others))
        print(f"  batch {size}: {found['batches'][-1]['rounds']} rounds", flush=True)
    found["bfloat16"] = half(plain, net, images, quick)
    if subject.stream and threads == 2 and policy is not None:
        found["decisions"] = decisions(bench, net, policy, 500 if quick else 10_000)
    if subject.stream:
        found["stream"] = stream(net, subject, 400 if quick else subject.stream if threads == 2 else subject.stream // 5)
    return found


def half(plain: nn.Module, net: xl.ExitNet, images: Tensor, quick: bool) -> dict[str, Any]:
    """The same in bfloat16, at batch 32: what is gained where the decisions allow it."""
    twin = copy.deepcopy(net)
    twin.tune(images[:64], precision="bfloat16")
    keep = (AS_IS, TUNED, "exits, nobody leaves", f"exits, {MIXED}")
    found = Bench(plain, twin, images).run(32, rounds=2 if quick else 5, memory=False, keep=lambda name: name in keep)
    return found | {"agreement": twin.tuning.measured.get("bfloat16_agreement"), "tuning": twin.tuning.to_dict()}


def decisions(bench: Bench, net: xl.ExitNet, policy: xl.Policy, count: int) -> dict[str, Any]:
    """Exits and labels by compiled stages against eager ones, over fresh scenes."""
    assert bench.compiled_net is not None
    images = scenes(net, count, seed=7)
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


def stream(net: xl.ExitNet, subject: Subject, count: int) -> dict[str, Any]:
    """A stream in loader batches of 8: survivors that wait for company, against each batch on its own."""
    twin = copy.deepcopy(net)
    known = scenes(net, 1024) if subject.source == "bundle" else torch.randn(256, 3, subject.pixels, subject.pixels)
    policy = shares_policy(twin, known, (0.5, 0.3, 0.0, 0.2))
    batches = list(known.split(8))

    def loader(images: int) -> Iterator[Tensor]:
        for i in range(images // 8):
            yield batches[i % len(batches)]

    shares = torch.zeros(twin.num_exits)

    def streamed(images: int) -> None:
        for pred in xl.predict(twin, loader(images), policy):
            shares.add_(pred.exits.bincount(minlength=twin.num_exits))

    def batch_by_batch(images: int) -> None:
        for batch in loader(images):
            xl.predict(twin, batch, policy)

    chunk = max(count // 10, 8)
    kept = twin.tuning.keep_memory
    works = {"batch by batch": clocked(batch_by_batch, [chunk], kept), "stream": clocked(streamed, [chunk], kept)}
    times = interleave(works, rounds=10)
    return {
        "samples": chunk * 10,
        "loader_batch": 8,
        "shares": (shares / shares.sum()).tolist(),
        "gain": times.ratio("batch by batch", "stream").to_list(),
        "rows": {name: times.summary(name, chunk) for name in works},
    }


def stream_memory(name: str) -> dict[str, Any]:
    """What a process of its own holds while it answers a stream, without memory being kept."""
    subject = SUBJECTS[name]
    _, net, images, policy = subject.build()
    net.tuning = xl.Tuning(micro_batch=32, channels_last=True, folded=True)
    batches = list(images[:256].split(8))

    def predictions(count: int) -> Iterator[xl.Prediction]:
        return xl.predict(net, (batches[i % len(batches)] for i in range(count // 8)), policy or xl.Policy.never(4))

    return {"samples": subject.stream, "resident_mb": resident(predictions, subject.stream)}


def resident(predictions: Callable[[int], Iterator[xl.Prediction]], count: int) -> list[float]:
    """Megabytes that the process holds after each fifth of one stream."""
    found, seen, marks = [], 0, [count * i // 5 // 8 * 8 for i in range(1, 6)]
    for pred in predictions(count):
        seen += len(pred)
        if marks and seen >= marks[0]:
            marks.pop(0)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found.append(round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1))
    return found


def shares_policy(net: xl.ExitNet, images: Tensor, shares: tuple[float, ...]) -> xl.Policy:
    """Thresholds at which these images leave in these shares: between two neighbouring scores, exit by exit."""
    logits = xl.collect(net, images).logits
    rest, thresholds = torch.arange(len(images)), []
    for k, share in enumerate(shares[:-1]):
        leave = round(share * len(images))
        if leave == 0:
            thresholds.append(float("inf"))
            continue
        scores = logits[rest, k].softmax(1).amax(1).sort(descending=True)
        thresholds.append((scores.values[leave - 1] + scores.values[min(leave, len(rest) - 1)]).item() / 2)
        rest = rest[scores.indices[leave:]]
    return xl.Policy(tuple(thresholds))


def part(name: str, threads: int, quick: bool) -> None:
    """Measures one part in this process and writes its file."""
    started = time.perf_counter()
    warnings.filterwarnings("ignore", module="earlyon")
    with pinned(threads):
        found = run_batches(SUBJECTS[name], threads, quick)
    found["seconds"] = round(time.perf_counter() - started)
    path = RESULTS / f"{name}-{threads}.json"
    if quick:
        print(json.dumps(found)[:400])
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1) + "\n")
    temporary.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="such as resnet50-2")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few rounds, small batches, nothing is written")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part and given.part.startswith("memory-"):
        name = given.part.removeprefix("memory-")
        path = RESULTS / "memory" / f"{name}-2.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pinned(2):
            path.write_text(json.dumps(stream_memory(name), indent=1) + "\n")
        return
    if given.part:
        name, _, threads = given.part.rpartition("-")
        part(name, int(threads), given.quick)
        return
    wanted = given.only or [f"{name}-{threads}" for threads in (2, 1) for name in SUBJECTS]
    for key in wanted:
        if (RESULTS / f"{key}.json").exists() and not (given.again or given.quick):
            print(f"{key}: there already")
            continue
        print(f"{key} ...", flush=True)
        command = [sys.executable, __file__, "--part", key, *(["--quick"] if given.quick else [])]
        subprocess.run(command, check=True)
    if not given.only and not given.quick:
        subprocess.run([sys.executable, __file__, "--part", "memory-small"], check=True)


if __name__ == "__main__":
    main()
