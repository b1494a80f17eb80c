"""The documentation's site as Lighthouse judges it: one page of each kind, in light and dark.

Needs npm and Chromium; `make docs` builds the site. A minute.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial

from benchmarks.harness import Job, Study
from benchmarks.promises import Promise
from benchmarks.results import Runs, Tree

VERSION = "12.2.3"  # of Lighthouse
PAGES = ("index", "start/index", "guides/thresholds", "reference/thresholds", "measured/truth")
SCHEMES = {"light": "1", "dark": "0"}  # Chromium's preferredColorScheme
CATEGORIES = ("accessibility", "best-practices")
CHROMIUM = "--headless --no-sandbox --disable-gpu --blink-settings=preferredColorScheme="


def list_cells(quick: bool = False) -> dict[str, Job]:
    return {page: partial(judge_page, page) for page in PAGES}


def judge_page(page: str) -> Tree:
    """Serve the built site and have Lighthouse judge one of its pages: scores out of 100."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="build/site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{page}.html"
        scores = {scheme: judge(address, setting) for scheme, setting in SCHEMES.items()}
        server.shutdown()
    return {"lighthouse": VERSION, "schemes": scores}


def judge(address: str, setting: str) -> dict[str, int]:
    command = ["npx", "--yes", f"lighthouse@{VERSION}", address, "--output=json", "--quiet"]
    command += [f"--only-categories={','.join(CATEGORIES)}", f"--chrome-flags={CHROMIUM}{setting}"]
    environment = os.environ | {"CHROME_PATH": shutil.which("chromium") or ""}
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    return {name: round(100 * report["categories"][name]["score"]) for name in CATEGORIES}


def list_promises(runs: Runs) -> Iterator[Promise]:
    for page, measured in runs.items():
        for scheme, scores in measured["schemes"].items():
            for category, score in scores.items():
                what = f"page {page}, {scheme}: {category} by Lighthouse {VERSION}"
                yield Promise(f"site|{page}|{scheme}|{category}", what, score, ">=", 95)


STUDY = Study("site", list_cells, list_promises)
