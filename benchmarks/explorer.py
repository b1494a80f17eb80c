"""Measure how long a visitor of the explorer waits for the first page and for an explained answer.

Networks have random weights, which change no time. An explained answer is timed on one core, in turn with the network's own forward
pass over all exits, so that their difference is what explaining adds. Nothing else should run; the first page needs Chromium.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import exitlens as xl
from benchmarks.harness import Job, Promise, Study, take_turns
from benchmarks.results import Runs, Tree
from exitlens.delivery.explorer.core import Explorer
from exitlens.display import from_pixels
from exitlens.model.timing import interval

NETWORKS = {"small network, 40 px": ("small", 40), "ResNet-50, 224 px": ("torchvision:resnet50", 224)}


def list_cells(quick: bool = False) -> dict[str, Job]:
    return {"explorer": partial(measure, 3 if quick else 30)}


def measure(rounds: int) -> Tree:
    torch.set_num_threads(1)
    scenes = xl.demo.load_scenes("test", limit=1)
    measured: Tree = {"unit": "ms: median, 95 % interval", "rounds": rounds, "explained": {}}
    with tempfile.TemporaryDirectory() as folder:
        for title, (source, size) in NETWORKS.items():
            torch.manual_seed(0)
            net = xl.attach(source, 3, len(scenes.classes), torch.zeros(1, 3, size, size)).eval()
            net.describe(classes=scenes.classes, preprocess=xl.data.Preprocess((size, size)))
            run = Path(folder) / source.rpartition(":")[2]
            xl.save(net, xl.Policy((0.5,) * 3), run / "bundle")  # thresholds that nothing chose
            measured["explained"][title] = time_explanations(run, rounds)
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if chromium is not None:
            pages = [time_first_page(Path(folder) / "small", chromium) for _ in range(max(1, rounds // 6))]
            measured["first_answer_s"] = interval(pages).to_list()
    return measured


def time_first_page(folder: Path, chromium: str) -> float:
    """Return the seconds from the loaded bundle to the first answer in the browser."""
    from playwright.sync_api import sync_playwright

    words = [sys.executable, "-m", "exitlens", "app", "--bundle", str(folder), "--data", "scenes"]
    with sync_playwright() as playwright, subprocess.Popen(words, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        try:
            process.stdout.readline()  # "Starting": the bundle is loaded
            started = time.perf_counter()
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address, "exitlens app gave no address"
            page = browser.new_page()
            page.goto(address[0])
            page.wait_for_selector("#xl-answer-0 .xl-exit")
            return time.perf_counter() - started
        finally:
            browser.close()
            process.terminate()


def time_explanations(folder: Path, rounds: int) -> Tree:
    explorer = Explorer([folder])
    run, picture = explorer.runs[0], from_pixels(xl.demo.load_scenes("test", limit=1).images[0])
    x = explorer.encode(run, picture)
    works: dict[str, Callable[[int], Any]] = {"explain": lambda _: xl.explain(run.net, x, run.policy)}
    works["network"] = torch.inference_mode()(lambda _: run.net(x))
    seconds = take_turns(works, rounds, clock=time.perf_counter)
    seconds["explain_beyond_network"] = [a - b for a, b in zip(seconds["explain"], seconds["network"], strict=True)]
    return {name: interval([1000 * value for value in values]).to_list() for name, values in seconds.items()}


def list_promises(runs: Runs) -> Iterator[Promise]:
    for measured in runs.values():
        if "first_answer_s" in measured:
            what = "explorer: first page, answered, seconds after the bundle is loaded"
            yield Promise.of_median("explorer|page", what, measured["first_answer_s"], "<=", 5)
        for title, ms in measured["explained"].items():
            what = f"explorer: {title}, ms that explaining adds to the network's own on one core"
            yield Promise.of_median(f"explorer|{title}", what, ms["explain_beyond_network"], "<=", 150)


STUDY = Study("explorer", list_cells, list_promises)
