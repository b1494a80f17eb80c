"""Checks the built site: python -m website.check build/site.

Fails where a link or picture of a page leads nowhere, where a page asks another host for anything, and where a public name
of exitlens or exitlens_runtime does not have exactly one entry.
"""

from __future__ import annotations

import sys
from collections import Counter
from html.parser import HTMLParser
from inspect import ismodule
from pathlib import Path
from urllib.parse import unquote, urlsplit

import exitlens
import exitlens_runtime

LOADS = {  # what a browser fetches by itself, by tag
    **dict.fromkeys(("script", "img", "iframe", "source", "video", "audio", "embed", "input"), "src"),
    "link": "href",
    "object": "data",
}
NOT_FETCHED = {"canonical", "next", "prev", "alternate", "license"}  # kinds of link elements
FROM_ROOT = "404.html"  # its links are from the root of a server


class Page(HTMLParser):
    """The ids and links of a page, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.update([given["id"]] if given.get("id") else [])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in LOADS and given.get(LOADS[tag]) and not NOT_FETCHED & set(given.get("rel", "").split()):
            self.loads.append(given[LOADS[tag]])


def check_site(site: Path) -> list[str]:
    """List the faults of the site."""
    paths = [path.resolve() for path in sorted(site.rglob("*.html")) if path.name != FROM_ROOT]
    pages = {path: Page(path.read_text()) for path in paths}
    wrong = [line for path, page in pages.items() for line in check_page(path, page, pages)]
    entries: Counter[str] = Counter()
    for page in pages.values():
        entries.update(page.ids)
    spaces = (exitlens, exitlens.data, exitlens.demo, exitlens.errors, exitlens_runtime)
    names = [f"{space.__name__}.{name}" for space in spaces for name in space.__all__ if not ismodule(getattr(space, name))]
    names.remove("exitlens.errors.ExitlensError")  # stands at the top
    wrong += [f"{name}: {entries[name]} entries in the reference, not one" for name in names if entries[name] != 1]
    return wrong + [f"{path}: asks for {host}" for path, host in list_hosts_of_styles(site)]


def check_page(path: Path, page: Page, pages: dict[Path, Page]) -> list[str]:
    """List a page's links that lead nowhere, and what it loads from elsewhere."""
    foreign = [target for target in page.loads if urlsplit(target).scheme not in ("", "data") or target.startswith("//")]
    wrong = [f"{path}: loads {target}" for target in foreign]
    for target in [*page.links, *page.loads]:
        parts = urlsplit(target)
        if parts.scheme or target.startswith("//"):
            continue
        other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        other = other / "index.html" if other.is_dir() else other
        if not other.is_file():
            wrong.append(f"{path}: no file for {target}")
        elif parts.fragment and other in pages and unquote(parts.fragment) not in pages[other].ids:
            wrong.append(f"{path}: nothing has the id of {target}")
    return wrong


def list_hosts_of_styles(site: Path) -> list[tuple[Path, str]]:
    """List addresses of other hosts in url() and @import of style sheets."""
    hosts = []
    for path in sorted(site.rglob("*.css")):
        for part in path.read_text().replace("@import", "url(").split("url(")[1:]:
            address = part.lstrip(" '\"").split(")")[0].strip(" '\"")
            if address.startswith(("http:", "https:", "//")):
                hosts.append((path, address))
    return hosts


def main() -> None:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "build/site")
    wrong = check_site(site)
    print("\n".join([*wrong, f"{len(list(site.rglob('*.html')))} pages, {len(wrong)} things wrong"]))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
