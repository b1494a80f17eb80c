"""Mends what the theme leaves out for those who do not see the page."""

from __future__ import annotations

from typing import Any

UNNAMED = 'data-md-component="search" role="dialog"'
EMPTY_HEAD = "<th></th>"  # over the first column of many tables


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    output = output.replace(UNNAMED, f'{UNNAMED} aria-label="Search"')
    return output.replace(EMPTY_HEAD, '<th><span class="unseen">row</span></th>')
