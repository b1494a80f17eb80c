"""What exported networks promise: the same decisions, times against PyTorch and plain ONNX Runtime, sizes, int8, the browser.

Cells: decisions, speed-NETWORK, points-TASK, int8-NETWORK, install, browser. Needs `make demo-full`, and for the browser Chromium; about half
an hour on an idle machine.
"""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

import exitlens as xl
import exitlens_runtime
from benchmarks.backbones import wake
from benchmarks.harness import Job, Promise, Study, load_study, promise_table, show_interval, spread, table
from benchmarks.performance import BUNDLE, SHARES, UNREACHABLE, Network, force_shares, make_scenes
from benchmarks.results import Runs, Tree
from benchmarks.tasks import SEEDS, TASKS, build_network
from exitlens.data.demo import CLASSES
from exitlens.delivery.benchmark import pin_threads, time_calls, write_plain
from exitlens.edge.export import write_stages
from exitlens.edge.int8 import quantise
from exitlens.functional.routing import score_early_exits
from exitlens.model.engine.onnx_files import OF_HEAD, Written, open_file
from exitlens.model.timing import Times, Work, describe_machine, interleave, interval
from exitlens_runtime.routing import find_probabilities
from exitlens_runtime.sessions import open_openvino

THREADS, COUNT, SIZES, NEAR, TESTED = 2, 10_000, (1, 3, 64), 1e-5, 2_000
COUNTS = {1: 20, 8: 40, 32: 64}  # samples of a round, by those in a call
TORCH, PLAIN = "exits, PyTorch", "plain, ONNX Runtime"
RUNTIME, CASCADE = "runtime", "cascade"
NOBODY, ALL, OPENVINO = "nobody leaves", "all at exit 0", "OpenVINO"
POINTS = {"scenes": "agreeing", "fashion": "test"}  # tasks, and the test set whose exit shares are taken
Array = np.ndarray[Any, Any]
Built = tuple[nn.Module, xl.ExitNet, Tensor]  # the plain backbone, the network with exits, and images
RESNET, BLOCKS = ("layer1", "layer2", "layer3"), ("blocks.2", "blocks.5", "blocks.8")
NETWORKS = {
    "demo": Network("bundle", 40),
    "resnet18": Network("torchvision:resnet18", 160, RESNET),
    "resnet50": Network("torchvision:resnet50", 224, RESNET),
    "deit_tiny": Network("timm:deit_tiny_patch16_224", 224, BLOCKS),
}


def list_cells(quick: bool = False) -> dict[str, Job]:
    seconds = 0.0 if quick else 15.0
    return {
        "decisions": partial(compare_decisions, 300 if quick else COUNT),
        **{f"speed-{name}": partial(time_network, name, quick) for name in NETWORKS},
        **{f"points-{task}": partial(measure_points, task, seconds) for task in POINTS},
        **{f"int8-{name}": partial(measure_int8, name, seconds) for name in ("demo", "resnet18")},
        "install": measure_install,
        "browser": measure_browser,
    }


def find_near(net: xl.ExitNet, policy: xl.Policy, images: Tensor) -> Array:  # -> (N,) bool
    """Return which samples have a score so near its threshold that rounding may decide otherwise."""
    gaps = score_early_exits(xl.collect(net, images, batch_size=250), policy) - torch.tensor(policy.thresholds)
    return (gaps.abs().amin(1) < NEAR).numpy()


class Cascade:
    """``cascade.onnx`` in ONNX Runtime or OpenVINO, under one policy."""

    def __init__(self, edge: Path, policy: xl.Policy, threads: int, backend: str = "onnxruntime") -> None:
        path = edge / "cascade.onnx"
        self.limits = {key: np.array(getattr(policy, key), np.float32) for key in ("thresholds", "temperatures")}
        self.name = json.loads((edge / "manifest.json").read_text())["inputs"][0]["name"]
        if backend == "onnxruntime":
            session = open_file(path, threads)
            self.names = [{output.name} for output in session.get_outputs()]
            self.run: Callable[[Mapping[str, Array]], Iterable[Array]] = partial(session.run, None)
        else:
            settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
            settings["ENABLE_CPU_PINNING"] = False  # as exitlens_runtime has it
            model = open_openvino().compile_model(str(path), "CPU", settings)
            self.names = [output.names for output in model.outputs]  # an output may have several
            self.run = lambda feed: [value.copy() for value in model(feed).values()]

    def __call__(self, images: Array) -> dict[str, Array]:
        values = self.run({self.name: images} | self.limits)
        return {name: value for names, value in zip(self.names, values, strict=True) for name in names}


# Decisions: does everything that runs exported files decide as the library does?

Answer = Callable[[Array], tuple[Array, Array, list[Array]]]  # labels, exits and the map of the exit that answered


def compare_decisions(count: int = COUNT) -> Tree:
    """Count samples with another label or exit, by what answers and batch size; those near a threshold; the furthest map."""
    net, policy = xl.load(BUNDLE)
    images = make_scenes(net, count, seed=11)
    expected = [xl.predict(net, batch, policy, attention=True) for batch in images.split(250)]
    labels, exits = (torch.cat([getattr(p, n) for p in expected]).numpy() for n in ("labels", "exits"))
    maps = [attention.numpy() for p in expected for attention in p.attention or ()]
    near = find_near(net, policy, images)
    measured: Tree = {"samples": count, "near": int(near.sum())}
    with tempfile.TemporaryDirectory() as folder:
        answers = make_answers(xl.export(net, policy, Path(folder) / "edge"), policy)
        for (name, answer), size in itertools.product(answers.items(), SIZES):
            counts = {"others": 0, "others_near": 0, "map_gap": 0.0}
            for rows in (slice(at, at + size) for at in range(0, count, size)):
                their_labels, their_exits, their_maps = answer(images[rows].numpy())
                same = (their_labels == labels[rows]) & (their_exits == exits[rows])
                counts["others"] += int((~same & ~near[rows]).sum())
                counts["others_near"] += int((~same & near[rows]).sum())
                pairs = zip(maps[rows], their_maps, same, strict=True)
                counts["map_gap"] = max([counts["map_gap"], *(float(np.abs(a - b).max()) for a, b, ok in pairs if ok)])
            measured.setdefault(name, {})[str(size)] = counts
    return measured


def make_answers(edge: Path, policy: xl.Policy) -> dict[str, Answer]:
    def ask_runtime(runtime: exitlens_runtime.EdgeNetwork, images: Array) -> tuple[Array, Array, list[Array]]:
        pred = runtime.predict(images, attention=True)
        return pred.labels, pred.exits, list(pred.attention or ())

    def ask_cascade(cascade: Cascade, images: Array) -> tuple[Array, Array, list[Array]]:
        outputs = cascade(images)
        maps = [outputs[f"attention_{k}"][i] for i, k in enumerate(outputs["exits"])]
        return outputs["labels"], outputs["exits"], maps

    answers: dict[str, Answer] = {}
    for backend, suffix in (("onnxruntime", ""), ("openvino", ", OpenVINO")):
        answers[f"runtime{suffix}"] = partial(ask_runtime, exitlens_runtime.load(edge, backend=backend))
        answers[f"cascade{suffix}"] = partial(ask_cascade, Cascade(edge, policy, 0, backend))
    return answers


# Times of everything that answers with one network, in turn in one process


class StageTimes:
    """Seconds of every file of an edge bundle on all samples, from which the ideal time of a policy follows."""

    def __init__(self, edge: exitlens_runtime.EdgeNetwork, batches: Sequence[Any]) -> None:
        self.edge, self.batches, self.rounds = edge, batches, list[list[float]]()

    def __call__(self) -> list[float]:
        spent = [0.0] * self.edge.num_exits
        for batch in self.batches:
            tensors = self.edge.check(batch)
            for k, session in self.edge._sessions.items():
                started = time.perf_counter()
                crossing = session.run(tensors)[len(OF_HEAD) :]
                spent[k] += time.perf_counter() - started
                tensors = dict(zip(session.outputs[len(OF_HEAD) :], crossing, strict=True))
        self.rounds.append(spent)
        return [sum(spent)]

    def find_ideal(self, shares: Sequence[float]) -> list[float]:
        """Return the seconds of each round, were every file to take its share of the samples and nothing else any time."""
        reached = 1 - np.cumsum([0.0, *shares[:-1]])
        return [float(np.dot(reached, spent)) for spent in self.rounds]


def time_network(name: str, quick: bool) -> Tree:
    built = NETWORKS[name].build()[:3]
    sizes, seconds = ((1,), 0.0) if quick else (COUNTS, 20.0)
    return {str(size): measure_speed(built, size, THREADS, seconds=seconds) for size in sizes}


def measure_speed(
    built: Built, size: int, threads: int, *, shares: tuple[float, ...] = SHARES, count: int = 0, seconds: float = 20.0
) -> Tree:
    plain, net, images = built
    count = count or COUNTS[size]
    images = images[torch.arange(count) % len(images)]
    with pin_threads(threads), tempfile.TemporaryDirectory() as folder:
        net.tuning = xl.Tuning()
        net.tune(images, precision="float32", backend="torch", seconds=max(0.01, min(2.0, seconds)))
        policy = force_shares(net, images, shares)
        works, steps = make_works(plain, net, images, policy, size, threads, Path(folder))
        times = interleave(works, rounds=5, seconds=seconds, max_rounds=200)
    facts = {"machine": describe_machine(threads), "samples": count, "rounds": len(times.rounds[TORCH])}
    return facts | summarise(times, steps, shares, count)


def make_works(
    plain: nn.Module, net: xl.ExitNet, images: Tensor, policy: xl.Policy, size: int, threads: int, folder: Path
) -> tuple[dict[str, Work], StageTimes]:
    edge = xl.export(net, policy, folder / "edge")
    arrays = [batch.numpy() for batch in images.split(size)]
    early = len(policy.thresholds)
    nobody, everybody = (replace(policy, thresholds=(limit,) * early) for limit in (UNREACHABLE, -1.0))
    runtime = exitlens_runtime.load(edge, threads=threads)
    openvino = exitlens_runtime.load(edge, threads=threads, backend="openvino")
    steps = StageTimes(runtime, arrays)
    predict = partial(xl.predict, net, policy=policy)
    works: dict[str, Work] = {"steps": steps, TORCH: time_calls(predict, images.split(size), net.tuning.keep_memory)}
    written = write_plain(plain, images)
    session = open_file(written.path, threads)

    def answer_plain(batch: Array) -> object:  # the label and its probability, with the runtime's settings
        p = find_probabilities(session.run(list(written.outputs), {written.inputs[0]: batch})[0], 1.0)
        return p.argmax(1), p.max(1)

    works[PLAIN] = time_calls(answer_plain, arrays)
    works[RUNTIME] = time_calls(runtime.predict, arrays)
    works[f"{RUNTIME}, {OPENVINO}"] = time_calls(openvino.predict, arrays)
    for name, chosen in {"": policy, f", {NOBODY}": nobody, f", {ALL}": everybody}.items():
        works[f"{CASCADE}{name}"] = time_calls(Cascade(edge, chosen, threads), arrays)
    return works, steps


def summarise(times: Times, steps: StageTimes, shares: Sequence[float], count: int) -> Tree:
    summary: Tree = {"ms": {name: times.summary(name, count)["ms"] for name in times.rounds}}
    pairs = {"torch_over_runtime": (TORCH, RUNTIME), "plain_over_runtime": (PLAIN, RUNTIME)}
    pairs["runtime_over_cascade"] = RUNTIME, CASCADE
    summary |= {key: times.ratio(*pair).to_list() for key, pair in pairs.items()}
    last = len(times.rounds["steps"])
    ideal = steps.find_ideal(shares)[-last:]
    summary["ideal_ms"] = interval([1000 * seconds / count for seconds in ideal]).to_list()
    summary["efficiency"] = interval([a / b for a, b in zip(ideal, times.seconds(RUNTIME), strict=True)]).to_list()
    first = [spent[0] for spent in steps.rounds[-last:]]
    full, early = (times.seconds(f"{CASCADE}, {name}") for name in (NOBODY, ALL))
    summary["saving"] = interval([(a - b) / (a - c) for a, b, c in zip(full, early, first, strict=True)]).to_list()
    return summary


def measure_points(task: str, seconds: float = 15.0) -> Tree:
    """Time the thresholds of the study ``static`` in ONNX Runtime on both sides, batch 64, one core; random weights leave in its exit shares."""
    opened, test = TASKS[task](0), POINTS[task]
    images, runs = opened.tests[test].subset(torch.arange(512)).inputs, load_study("static").read()
    measured = {}
    for seed in range(SEEDS[task]):
        run = runs[f"{task}/adaptive-{seed}"]
        shares, lost = run["fast"]["tests"][test]["exit_shares"], run["full"]["tests"][test]["accuracy"]
        net = build_network(opened, seed, exits=True)
        wake(net)
        built = opened.build().eval(), net, images
        speed = measure_speed(built, 64, 1, shares=tuple(shares), count=512, seconds=seconds)  # type: ignore[arg-type]
        measured[str(seed)] = speed | {"points_lost": 100 * (lost - run["fast"]["tests"][test]["accuracy"])}
    return measured


# int8 against float32 in ONNX Runtime on one core: times, and labels at equal exits on new scenes


class Walk:
    def __init__(self, files: Sequence[Written]) -> None:
        self.steps = [(open_file(file.path), file) for file in files]

    def __call__(self, images: Array) -> list[Array]:
        tensors, logits = {self.steps[0][1].inputs[0]: images}, []
        for session, file in self.steps:
            outputs = session.run(list(file.outputs), tensors)
            logits.append(outputs[0])
            tensors = dict(zip(file.outputs[len(OF_HEAD) :], outputs[len(OF_HEAD) :], strict=True))
        return logits


def measure_int8(name: str, seconds: float = 15.0, test: int = TESTED) -> Tree:
    """Measure the demo's network, or a ResNet-18 that was trained for one epoch on the same scenes at 160 pixels."""
    net = xl.load(BUNDLE)[0] if name == "demo" else train_resnet()
    side = net.info.input_shape[-1]
    samples, images = (resize(make_scenes(net, n, seed=seed), side) for n, seed in ((256, 21), (test, 22)))
    with tempfile.TemporaryDirectory() as folder, pin_threads(1):
        whole, narrow = (Path(folder) / kind for kind in ("float32", "int8"))
        whole.mkdir(), narrow.mkdir()
        files = write_stages(whole, net, xl.Policy((0.0,) * (net.num_exits - 1)))
        walks = {"float32": Walk(files), "int8": Walk(quantise(net, samples, narrow)[1])}
        batches = [batch.numpy() for batch in images.split(50)]
        labels = ([np.stack([logits.argmax(1) for logits in walk(batch)]) for batch in batches] for walk in walks.values())
        full, small = (np.concatenate(parts, 1) for parts in labels)
        flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
        known = " ".join(flag for flag in ("avx512_vnni", "avx_vnni", "amx_int8") if flag in flags)
        measured: Tree = {"machine": describe_machine(1), "int8_instructions": known or "none"}
        measured["agreement"] = (full == small).mean(1).tolist()
        for size in (1, 32):
            batches = [batch.numpy() for batch in images[: max(size, 16)].split(size)]
            works = {kind: time_calls(walk, batches) for kind, walk in walks.items()}
            times = interleave(works, rounds=5, seconds=seconds, max_rounds=200)
            measured[str(size)] = times.ratio("float32", "int8").to_list()
    return measured


def train_resnet(count: int = 3_000, side: int = 160) -> xl.ExitNet:
    """Train a ResNet-18: with random weights there are no labels to agree on."""
    torch.manual_seed(0)
    made = xl.demo.load_scenes("train", limit=count)
    images = xl.data.ImageSet(resize(made.images.float(), side).round().to(torch.uint8), made.labels, CLASSES)
    parts = (images.subset(rows) for rows in torch.arange(count).split([count - 200, 200]))
    net = xl.attach("torchvision:resnet18", RESNET, len(CLASSES), images.first(1).inputs)
    net.describe(classes=CLASSES, preprocess=images.preprocess)
    xl.fit(net, *parts, epochs=1, batch_size=32, amp=True, channels_last=True)
    return net.eval()


def resize(images: Tensor, side: int) -> Tensor:
    return images if images.shape[-1] == side else interpolate(images, size=(side, side), mode="bilinear")


# What exitlens-runtime takes on a device, and how soon the exported page answers in Chromium

PROBE = """
import re, sys, time
started = time.perf_counter()
import exitlens_runtime
imported = time.perf_counter()
import numpy
net = exitlens_runtime.load(sys.argv[1])
net.predict(numpy.load(sys.argv[2])[:1])
answered = time.perf_counter()
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]  # maxrss would count the process that started this
print(imported - started, answered - started, int(peak) / 1024)
"""


def measure_install(rounds: int = 7) -> Tree:
    """Measure megabytes of a fresh environment; seconds to import, and to the first answer in a fresh process; memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net, policy = xl.load(BUNDLE)
        edge = xl.export(net, policy, folder / "edge")
        np.save(folder / "images.npy", make_scenes(net, 4).numpy())
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "v")], check=True)
        python = str(folder / "v" / "bin" / "python")
        subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "./runtime"], check=True)
        files = [path for path in (folder / "v" / "lib").rglob("*") if path.is_file() and not path.is_symlink()]
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        probe = [python, "-c", PROBE, str(edge), str(folder / "images.npy")]
        outputs = [subprocess.run(probe, capture_output=True, text=True, check=True).stdout for _ in range(rounds)]
    columns = zip(*([float(word) for word in line.split()] for line in outputs), strict=True)
    names = ("import_seconds", "first_answer_seconds", "memory_megabytes")
    return {"megabytes": megabytes, **dict(zip(names, map(spread, columns), strict=True))}


def measure_browser(rounds: int = 7) -> Tree:
    """Time the first picture dropped on a loaded page until its answer; the page is opened anew each time."""
    from playwright.sync_api import sync_playwright

    net, policy = xl.load(BUNDLE)
    scene = xl.demo.load_scenes("test", limit=1).images[0]
    with tempfile.TemporaryDirectory() as name, sync_playwright() as tools:
        site = xl.export_web(net, policy, Path(name) / "site")
        picture = Path(name) / "picture.png"
        Image.fromarray(np.ascontiguousarray(scene.permute(1, 2, 0).numpy())).save(picture)
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = tools.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        seconds = list[float]()
        for _ in range(rounds):
            page = browser.new_context().new_page()
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/", wait_until="load")
            page.wait_for_selector("body[data-ready]")
            ready = time.perf_counter()
            page.set_input_files("#files", str(picture))
            page.wait_for_selector("#answer:not([hidden])")
            seconds.append(time.perf_counter() - ready)
            page.context.close()
        browser.close()
        server.shutdown()
    return {"first_answer_seconds": spread(seconds)}


DECISIONS = {"others": ("other decisions, no score near its threshold", 0), "map_gap": ("furthest attention map", 1e-4)}
DECISIONS["others_near"] = "other decisions within 1e-5 of a threshold", 2  # the most there may be
OVER_TORCH = {"demo": 2.0, "resnet18": 1.6, "resnet50": 1.3, "deit_tiny": 1.1}  # one image
OVER_PLAIN = {"demo": 2.5, "resnet50": 2.2}


def list_promises(runs: Runs) -> Iterator[Promise]:
    for run, measured in runs.items():
        kind, _, name = run.partition("-")
        match kind:
            case "decisions":
                counted = [(name, sizes) for name, sizes in measured.items() if isinstance(sizes, dict)]
                for (backend, sizes), size, (key, (words, most)) in itertools.product(
                    counted, map(str, SIZES), DECISIONS.items()
                ):
                    what = f"{backend}, batch {size}, {measured['samples']} images: {words}"
                    yield Promise(f"edge|{key}|{backend}|{size}", what, sizes[size][key], "<=", most, exact=True)
            case "speed":
                yield from promise_speed(name, measured)
            case "points":
                ratios, lost = ([run[key] for run in measured.values()] for key in ("plain_over_runtime", "points_lost"))
                what = f"{name}: times the plain backbone, ONNX Runtime on both sides, batch 64"
                yield Promise.of_mean(f"edge|points|{name}", what, [ratio[0] for ratio in ratios], ">=", 3.5)
                yield Promise.of_mean(f"edge|lost|{name}", f"{name}: points lost at that speed", lost, "<=", 0.3)
            case "int8":
                for size in ("1", "32") if measured["int8_instructions"] != "none" else ():
                    what = f"{name}: int8, times float32 in ONNX Runtime, one core, batch {size}"
                    yield Promise.of_median(f"edge|int8|{name}|{size}", what, measured[size], ">=", 1.3)
                what = f"{name}: int8, labels as in float32, at the exit with fewest"
                yield Promise.of_share(f"edge|labels|{name}", what, min(measured["agreement"]), TESTED, ">=", 0.99)
            case "install":
                what = "exitlens-runtime, installed with what it needs, megabytes"
                yield Promise("edge|size", what, measured["megabytes"], "<=", 170.0, exact=True)
                for key, bar in {"import_seconds": 0.3, "first_answer_seconds": 0.6, "memory_megabytes": 150.0}.items():
                    what = f"exitlens-runtime: {key.replace('_', ' ')}"
                    yield Promise.of_median(f"edge|{key}", what, measured[key], "<=", bar)
            case "browser":
                what, seconds = "page in Chromium: seconds to the first answer", measured["first_answer_seconds"]
                yield Promise.of_median("edge|browser", what, seconds, "<=", 1.0)


def promise_speed(name: str, measured: Tree) -> Iterator[Promise]:
    for size, speed in measured.items():
        bar = OVER_TORCH[name] if size == "1" else 1.0
        figures = [("torch", "runtime, times the tuned engine", "torch_over_runtime", bar)]
        if name in OVER_PLAIN and size in ("1", "32"):
            words = "runtime, times the plain backbone in ONNX Runtime"
            figures += [("plain", words, "plain_over_runtime", OVER_PLAIN[name])]
            figures += [("ideal", "ideal time by stage times, over the runtime's", "efficiency", 0.95)]
        if size in ("1", "32"):
            figures += [("cascade", "cascade, times the runtime", "runtime_over_cascade", 0.9)]
        if (name, size) == ("resnet50", "1"):
            figures += [("saving", "cascade, all at exit 0: saving over the ideal one", "saving", 0.85)]
        for key, words, figure, bar in figures:
            what = f"{name}, batch {size}: {words}"
            yield Promise.of_median(f"edge|{key}|{name}|{size}", what, speed[figure], ">=", bar)


COLUMNS = {  # of the table of times, and what they show
    "PyTorch, tuned": TORCH,
    "plain, ONNX Runtime": PLAIN,
    "runtime": RUNTIME,
    "its ideal": "ideal",
    "cascade": CASCADE,
    "runtime on OpenVINO": f"{RUNTIME}, {OPENVINO}",
}


def write_speed(runs: Runs) -> list[str]:
    rows = []
    for run, measured in runs.items():
        for size, speed in measured.items() if run.startswith("speed-") else ():
            ms = speed["ms"] | {"ideal": speed["ideal_ms"]}
            values = [ms[key] for key in COLUMNS.values()]
            cells = [show_interval(v, 3 if v[0] < 1 else 2 if v[0] < 10 else 1) for v in values]
            rows.append([run.removeprefix("speed-"), size, *cells])
    note = f"Milliseconds a sample, median and 95 % interval; 50 / 30 / 0 / 20 % leave at exits 0 to 3. {THREADS} threads."
    return [note, "", *table(["network", "batch", *COLUMNS], rows)]


def write_decisions(runs: Runs) -> list[str]:
    measured, rows = runs["decisions"], []
    for name, sizes in measured.items():
        if isinstance(sizes, dict):
            worst = [max(counts[key] for counts in sizes.values()) for key in ("others", "others_near", "map_gap")]
            rows.append([name, f"{worst[0]}", f"{worst[1]}", f"{worst[2]:.1g}"])
    head = ["answered by", "others", "others, a score within 1e-5 of its threshold", "furthest attention map"]
    sizes = ", ".join(map(str, SIZES))
    note = f"{measured['samples']:,} test images of the demo, batches of {sizes}: answers with another label or exit than the library's."
    return [note, "", *table(head, rows)]


def write_promises(runs: Runs) -> list[str]:
    return promise_table(list_promises({name: run for name, run in runs.items() if name != "decisions"}))


TABLES = {"edge-speed": write_speed, "edge-decisions": write_decisions, "edge-promises": write_promises}
STUDY = Study("edge", list_cells, list_promises, TABLES)
