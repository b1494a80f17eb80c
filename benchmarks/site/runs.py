"""The pages that are judged, one of each kind, and where the figures are kept."""

from __future__ import annotations

from pathlib import Path

from benchmarks.store import RESULTS, Store

VERSION = "12.2.3"  # of Lighthouse
PAGES = ("index", "start/index", "guides/thresholds", "reference/thresholds", "measured/results/scenes")
SCHEMES = {"light": "1", "dark": "0"}  # Chromium's preferredColorScheme
CATEGORIES = ("accessibility", "best-practices")
SITE = Store(RESULTS / "site.csv", Path("runs/site"))
