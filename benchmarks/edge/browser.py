"""How soon the exported page answers in Chromium."""

from __future__ import annotations

import functools
import http.server
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import exitlens as xl
from benchmarks.edge.networks import BUNDLE
from exitlens.data.demo.garments import CLASSES, load_garments

ROUNDS = 7
READY, ANSWER = "body[data-ready]", "#answer:not([hidden])"


def measure_browser() -> dict[str, Any]:
    """Seconds from dropping the first picture on a page that is loaded to its answer; the page is opened anew each time."""
    from playwright.sync_api import sync_playwright

    net, policy = xl.load(BUNDLE)
    assert policy is not None
    garments, labels = load_garments("test")
    scene = xl.make_scenes(garments[:1], labels[:1], CLASSES, background_agreement=0.8, seed=1).images[0]
    with tempfile.TemporaryDirectory() as name, sync_playwright() as tools:
        site = xl.export_web(net, policy, Path(name) / "site")
        picture = Path(name) / "picture.png"
        Image.fromarray(np.ascontiguousarray(scene.permute(1, 2, 0).numpy())).save(picture)
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = tools.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        found: dict[str, Any] = {"browser": browser.version}
        loaded, answered = [], []
        for _ in range(ROUNDS):
            page = browser.new_context().new_page()
            started = time.perf_counter()
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/", wait_until="load")
            page.wait_for_selector(READY)
            ready = time.perf_counter()
            page.set_input_files("#files", str(picture))
            page.wait_for_selector(ANSWER)
            loaded.append(ready - started)
            answered.append(time.perf_counter() - ready)
            page.context.close()
        browser.close()
        server.shutdown()
    for key, values in (("load_seconds", loaded), ("first_answer_seconds", answered)):
        found[key] = [statistics.median(values), min(values), max(values)]
    return found
