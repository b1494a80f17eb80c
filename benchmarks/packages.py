"""Measure models of `exitlens export --for` in other people's servers, beside the whole backbone as one ONNX file in the same server.

Cells: SERVER (triton, mlserver, which also serves in KServe's container, and bentoml). Their programs have to be on PATH (`tritonserver`, `mlserver`, `bentoml`), each
from an environment of its own, since their requirements exclude one another. Both models are packages of the same kind; in the whole backbone's, the only
file is the plain backbone's, without a map. Twenty minutes on two cores, nothing else running.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

import exitlens as xl
import exitlens_runtime
from benchmarks.backbones import wake
from benchmarks.edge import RESNET
from benchmarks.harness import Job, Promise, Study, promise_table, spread, table, take_turns
from benchmarks.load import INFER, Array, Spec, find_capacity, make_infer_request, make_request, run_load
from benchmarks.performance import force_shares
from benchmarks.results import Runs, Tree
from benchmarks.servers import start_server
from benchmarks.serving import LOAD, SERVER, run_trial
from exitlens.delivery.benchmark import write_plain
from exitlens.edge.export import GOLDEN, MANIFEST
from exitlens.edge.packages import export_package

SOURCE, PIXELS, IMAGES = "torchvision:resnet50", 96, 200
EXITS, WHOLE = "exits", "whole"
SHARES = (0.8, 0.0, 0.0, 0.2)
LIMIT, SECONDS, TRIALS = 0.25, 8.0, 6  # of 99 % of the answers; of a trial; at the rate in question
FASTER = 1.5  # times as many requests
OUTPUTS = ("label", "exit", "confidence")
JSON = {"Content-Type": "application/json"}
QUIET = {
    "BENTOML_DO_NOT_TRACK": "True",
    "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false",
    "MLSERVER_DEBUG": "false",
}


@dataclass(frozen=True)
class Rival:
    """A server: where its requests and its check of readiness go, and the requests a second at which the search begins."""

    infer: str
    ready: str
    start: float


RIVALS = {
    "triton": Rival(INFER, "/v2/models/net/ready", 60.0),
    "mlserver": Rival(INFER, "/v2/models/net/ready", 36.0),
    "bentoml": Rival("/classify", "/readyz", 40.0),
}


def list_cells(quick: bool = False) -> dict[str, Job]:
    return {name: partial(measure, name, 1.5 if quick else SECONDS, 2 if quick else TRIALS) for name in RIVALS}


def measure(name: str, seconds: float, trials: int) -> Tree:
    """Find the requests a second, of one image each, that the whole backbone sustains, and send half as many again to the exits."""
    images, measured = prepare(), Tree()
    edges = {kind: exitlens_runtime.load(STUDY.folder / kind, threads=1) for kind in (WHOLE, EXITS)}
    expected, rate = edges[EXITS].predict(images), 0.0
    times = take_turns({kind: lambda turn, kind=kind: edges[kind].predict(images[:32]) for kind in edges}, 5)
    measured["ms"] = {kind: 1000 * float(np.median(values)) / 32 for kind, values in times.items()}
    requests = [make_packed_request(name, images[at : at + 1]) for at in range(len(images))]
    for kind in edges:
        settings = {"name": name, "folder": str(pack(name, kind))}
        where: Any = {"path": RIVALS[name].ready, "probe": None, "processors": SERVER, "environment": QUIET}
        with start_server("packages:serve", settings, **where) as running:
            spec = Spec(running.port, requests, connections=64, warmup=1.0, grace=5.0, processors=LOAD)
            before = running.read_cpu_seconds()
            answers = ask_slowly(name, spec)
            measured[kind] = {"cpu_ms": 1000 * (running.read_cpu_seconds() - before) / len(answers)}
            run_at = partial(run_trial, spec, seconds, count())
            if kind == WHOLE:
                rate = find_capacity(run_at, LIMIT, RIVALS[name].start, step=1.2).rate
            else:
                pairs = zip(expected.labels.tolist(), expected.exits.tolist(), strict=True)
                measured["differing"] = sum(answer != pair for answer, pair in zip(answers, pairs, strict=True))
                rate *= FASTER
            runs = [run_at(rate) for _ in range(trials)]
        measured[kind] |= {
            "rate": rate,
            "p99_ms": [1000 * run.p99 for run in runs],
            "failures": sum(run.failures for run in runs),
        }
        print(f"  {name}, {kind}: {measured[kind]}", flush=True)
    return measured


def prepare() -> Array:
    """Write both edge bundles once; return images of which 80 % leave at exit 0."""
    folder = STUDY.folder
    if not (folder / "images.npy").exists():
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(0)
        images = torch.randn(IMAGES, 3, PIXELS, PIXELS)
        net = xl.attach(xl.build_backbone(SOURCE, 10), RESNET, 10, images[:1])
        wake(net)
        policy = force_shares(net, images, SHARES)
        policy = replace(policy, thresholds=(policy.thresholds[0], math.inf, math.inf))
        xl.export(net, policy, folder / EXITS)
        plain = xl.build_backbone(SOURCE, 10).eval()
        xl.export(xl.attach(plain, [], 10, images[:1], final="keep"), xl.Policy(()), folder / WHOLE)
        file = write_plain(plain, images[:1])  # its directory goes with it
        put_plain(folder / WHOLE, file.path)
        np.save(folder / "images.npy", images.numpy())
    return np.load(folder / "images.npy")


def put_plain(edge: Path, file: Path) -> None:
    """Let the plain backbone's file answer in an edge bundle of one stage, without a map: its logits stand in for what goes with it."""
    import onnx

    model, manifest = onnx.load(file), json.loads((edge / MANIFEST).read_text())
    (part,), (given,), (source,) = manifest["segments"], model.graph.input, [output.name for output in model.graph.output]
    for node in model.graph.node:
        node.input[:] = [part["inputs"][0] if name == given.name else name for name in node.input]
    given.name = part["inputs"][0]
    del model.graph.output[:]
    for name in part["outputs"]:
        if name != source:
            model.graph.node.append(onnx.helper.make_node("Identity", [source], [name]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", 10]))
    onnx.save(model, edge / part["file"])
    with np.load(edge / GOLDEN) as file:
        golden = dict(file)
    np.savez(edge / GOLDEN, **{name: golden["logits_0"] if name == "attention_0" else golden[name] for name in golden})
    for name in (part["file"], GOLDEN):
        manifest["sha256"][name] = hashlib.sha256((edge / name).read_bytes()).hexdigest()
    (edge / MANIFEST).write_text(json.dumps(manifest))


def pack(name: str, kind: str) -> Path:
    """Write the model "net" of a server, with one thread."""
    package = export_package(STUDY.folder / kind, STUDY.folder / f"{name}-{kind}" / "net", name, overwrite=True)
    for file, many in {
        "config.pbtxt": 'string_value: "0"',
        "model-settings.json": '"threads": 0',
        "service.py": "threads=0",
    }.items():
        if (package / file).exists():
            (package / file).write_text((package / file).read_text().replace(many, many.replace("0", "1")))
    return package


def serve(settings: Mapping[str, Any]) -> None:
    """Become the server."""
    folder, port = Path(settings["folder"]).resolve(), int(settings["port"])
    words = {
        "triton": f"tritonserver --model-repository {folder.parent} --http-port {port} --allow-grpc false --allow-metrics false",
        "mlserver": f"mlserver start {folder}",
        "bentoml": f"bentoml serve service:Cascade --port {port}",
    }[settings["name"]].split()
    os.environ |= {f"MLSERVER_{kind}_PORT": str(port + i) for i, kind in enumerate(("HTTP", "GRPC", "METRICS"))}
    os.chdir(folder)
    os.execvp(words[0], words)


def make_packed_request(name: str, images: Array) -> bytes:
    """Return a request in the form that its server reads best: binary tensors for Triton, JSON for the others."""
    if name == "triton":
        return make_infer_request(images, OUTPUTS)
    content: Tree = {"inputs": images.tolist()}
    if name == "mlserver":
        tensor = {"name": "inputs", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
        content = {"inputs": [tensor], "outputs": [{"name": output} for output in OUTPUTS]}
    return make_request(RIVALS[name].infer, json.dumps(content).encode(), JSON)


def ask_slowly(name: str, spec: Spec) -> list[tuple[int, int] | None]:
    """Return label and exit of every image, asked about one after the other, 20 in a second; ``None``: no answer."""
    order = np.arange(len(spec.requests))
    trial = run_load(replace(spec, due=order / 20, which=order, warmup=0.0, grace=20.0, keep=True))
    return [read_label_and_exit(name, answer) for answer in trial.answers]


def read_label_and_exit(name: str, answer: bytes) -> tuple[int, int] | None:
    head, _, body = answer.partition(b"\r\n\r\n")
    if head[9:12] != b"200":
        return None
    if b"chunked" in head.lower():
        body = b"".join(body.split(b"\r\n")[1::2])
    content = json.loads(body)
    if name == "bentoml":
        return content[0]["label"], content[0]["exit"]
    values = {output["name"]: output["data"][0] for output in content["outputs"]}
    return values["label"], values["exit"]


def list_promises(runs: Runs) -> Iterator[Promise]:
    for name, run in runs.items():
        what = f"{name}: median p99 (ms) at {FASTER} times the requests a second that the whole backbone sustains"
        p99 = run[EXITS]["p99_ms"]
        yield Promise.of_median(f"packages|{name}|p99", what, spread(p99, ends=(25, 75)), "<=", 1000 * LIMIT, len(p99))
        what = f"{name}: requests without an answer at that rate"
        yield Promise(f"packages|{name}|failures", what, run[EXITS]["failures"], "<=", 0, exact=True)
        what = f"{name}: answers with another label or exit than the runtime's, or none"
        yield Promise(f"packages|{name}|differing", what, run["differing"], "<=", 0, exact=True)


def write_table(runs: Runs) -> list[str]:
    rows = []
    for name, run in runs.items():
        for kind, title in ((EXITS, "with exits"), (WHOLE, "the whole backbone in one file")):
            p99 = " / ".join(f"{value:.0f}" for value in run[kind]["p99_ms"])
            rows.append(
                [name, title, f"{run['ms'][kind]:.1f}", f"{run[kind]['cpu_ms']:.1f}", f"{run[kind]['rate']:.0f}", p99]
            )
    words = (
        "ms an image, in batches of 32",
        "ms of processor a request alone",
        "requests a second",
        "p99 of each trial, ms",
    )
    head = ["server", "model", *words]
    return [*table(head, rows), "", *promise_table(list_promises(runs))] if rows else []


STUDY = Study("packages", list_cells, list_promises, {"packages": write_table})
