"""How long a visitor of the explorer waits: for the first page, and for an explained answer. Writes results/explorer.json.

Usage: python -m benchmarks.performance.explorer [--rounds N] [--out FILE]   (nothing else running; Chromium for the first page)

Networks have random weights, which change no time. An explained answer is timed on one core, in turn with the network's own
forward pass over all exits, so that their difference is what explaining adds.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import exitlens as xl
from benchmarks.store import RESULTS, write_atomically
from exitlens.delivery.explorer.core import Explorer
from exitlens.delivery.explorer.page import answer_page
from exitlens.display import from_pixels
from exitlens.model.timing import interval

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
NETWORKS = {"small network, 40 px": ("small", 40), "ResNet-50, 224 px": ("torchvision:resnet50", 224)}


def make_bundle(source: str, size: int, folder: Path) -> Path:
    """A bundle of a network with three early exits, with thresholds that nothing chose."""
    torch.manual_seed(0)
    scenes = xl.load_scenes("test", limit=1)
    net = xl.attach(source, 3, len(scenes.classes), torch.zeros(1, 3, size, size)).eval()
    net.describe(classes=scenes.classes, preprocess=xl.Preprocess((size, size)))
    xl.save(net, xl.Policy((0.5,) * 3), folder / "bundle")
    return folder


def time_first_page(folder: Path) -> tuple[float, float]:
    """Seconds from the loaded bundle to the first answer in the browser, and to the thresholds' effect on 2,000 scenes."""
    from playwright.sync_api import sync_playwright

    words = [sys.executable, "-m", "exitlens", "app", "--bundle", str(folder), "--data", "scenes"]
    with sync_playwright() as playwright, subprocess.Popen(words, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            assert process.stdout is not None
            process.stdout.readline()  # "Starting": the bundle is loaded
            started = time.perf_counter()
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address, "exitlens app gave no address"
            page = browser.new_page()
            page.goto(address[0])
            page.wait_for_selector("#xl-answer-0 .xl-exit")
            answered = time.perf_counter() - started
            page.wait_for_selector("#xl-routed-0 .xl-share", timeout=120_000)
            return answered, time.perf_counter() - started
        finally:
            browser.close()
            process.terminate()


def time_ms(work: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def time_explanations(folder: Path, rounds: int) -> dict[str, Any]:
    """What an explanation, and the explorer's whole panel, take on one core beyond the network's forward pass."""
    explorer = Explorer([folder])
    net, policy = explorer.runs[0].net, explorer.runs[0].policy
    picture = from_pixels(xl.load_scenes("test", limit=1).images[0])
    x = explorer.encode(explorer.runs[0], picture)

    def alone() -> None:
        with torch.inference_mode():
            net(x)

    times: dict[str, list[float]] = {"network": [], "explain": [], "panel": []}
    for i in range(rounds + 3):
        found = {
            "network": time_ms(alone),
            "explain": time_ms(lambda: xl.explain(net, x, policy)),
            "panel": time_ms(lambda: answer_page(explorer.answer(0, picture), picture)),
        }
        if i >= 3:
            for name, value in found.items():
                times[name].append(value)
    beyond = [one - other for one, other in zip(times["explain"], times["network"], strict=True)]
    values = {name: interval(rows).to_list() for name, rows in times.items()}
    return {**values, "explain_beyond_network": interval(beyond).to_list()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS / "explorer.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"unit": "ms: median, 95 % interval", "rounds": args.rounds, "explained": {}}
    with tempfile.TemporaryDirectory() as folder:
        for title, (source, size) in NETWORKS.items():
            bundle = make_bundle(source, size, Path(folder) / source.rpartition(":")[2])
            found["explained"][title] = time_explanations(bundle, args.rounds)
            print(title, found["explained"][title], flush=True)
        if CHROMIUM is not None:
            pages = [time_first_page(Path(folder) / "small") for _ in range(max(1, args.rounds // 6))]
            for name, rows in zip(("first_answer_s", "thresholds_live_s"), zip(*pages, strict=True), strict=True):
                found[name] = interval(rows).to_list()
                print(name, found[name], flush=True)
    write_atomically(args.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
