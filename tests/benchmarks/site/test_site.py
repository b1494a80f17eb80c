"""Scores of the site's pages: read from what Lighthouse says, and held to the bar."""

import json
import sys

import pytest

from benchmarks.site.__main__ import judge
from benchmarks.site.promises import list_promises
from benchmarks.site.runs import CATEGORIES, PAGES, SCHEMES, SITE, VERSION


def write_lighthouse(folder, version):
    """A program that says what Lighthouse would."""
    found = {"lighthouseVersion": version, "categories": {name: {"score": 0.97} for name in CATEGORIES}}
    (folder / "lighthouse.py").write_text(f"print({json.dumps(json.dumps(found))})")
    return [sys.executable, str(folder / "lighthouse.py"), "http://127.0.0.1"]


def test_scores_are_read_of_the_right_version(tmp_path):
    assert judge(write_lighthouse(tmp_path, VERSION), "0") == dict.fromkeys(CATEGORIES, 97)
    with pytest.raises(SystemExit, match="was expected"):
        judge(write_lighthouse(tmp_path, "1.0"), "0")


def test_every_page_was_judged_and_keeps_the_bar():
    runs = SITE.read()
    assert set(runs) == set(PAGES)
    promises = [promise for page in PAGES for promise in list_promises(page, runs[page])]
    assert len(promises) == len(PAGES) * len(SCHEMES) * len(CATEGORIES)
    assert all(promise.is_kept for promise in promises)
