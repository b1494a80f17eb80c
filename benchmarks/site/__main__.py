"""Has Lighthouse judge pages of the built site: python -m benchmarks.site [--lighthouse COMMAND] [--site build/site].

Needs npm and Chromium; `make docs` builds the site. A minute. Figures: benchmarks/results/site.csv.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from benchmarks.site.runs import CATEGORIES, PAGES, SCHEMES, SITE, VERSION

CHROMIUM = "--headless --no-sandbox --disable-gpu --blink-settings=preferredColorScheme="


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lighthouse", default=f"npx --yes lighthouse@{VERSION}", help="the command that runs it")
    parser.add_argument("--site", type=Path, default=Path("build/site"))
    given = parser.parse_args(arguments)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(given.site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for page in PAGES:
            address = f"http://127.0.0.1:{server.server_port}/{page}.html"
            words = shlex.split(given.lighthouse)
            found = {scheme: judge([*words, address], setting) for scheme, setting in SCHEMES.items()}
            print(page, found)
            SITE.add(page, {"lighthouse": VERSION, "schemes": found})
        server.shutdown()
    SITE.fold()


def judge(words: Sequence[str], setting: str) -> dict[str, int]:
    """Scores of one page, out of 100."""
    options = [
        f"--only-categories={','.join(CATEGORIES)}",
        "--output=json",
        "--quiet",
        f"--chrome-flags={CHROMIUM}{setting}",
    ]
    place = os.environ | {"CHROME_PATH": shutil.which("chromium") or ""}
    said = subprocess.run([*words, *options], check=True, capture_output=True, text=True, env=place).stdout
    found = json.loads(said)
    if found["lighthouseVersion"] != VERSION:
        raise SystemExit(f"Lighthouse {VERSION} was expected, this is {found['lighthouseVersion']}")
    return {name: round(100 * found["categories"][name]["score"]) for name in CATEGORIES}


if __name__ == "__main__":
    main()
