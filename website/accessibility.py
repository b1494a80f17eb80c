"""Adds accessible names that the theme and the tables lack, and keeps intervals on one line."""

from __future__ import annotations

import re
from typing import Any

UNNAMED = 'data-md-component="search" role="dialog"'
EMPTY_HEAD = "<th></th>"  # over the first column of many tables
INTERVAL = re.compile(r"(?<=\d) ± (?=\d)")


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    output = output.replace(UNNAMED, f'{UNNAMED} aria-label="Search"')
    output = output.replace(EMPTY_HEAD, '<th><span class="unseen">row</span></th>')
    return INTERVAL.sub("\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}", output)
