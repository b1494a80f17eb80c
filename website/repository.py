"""Makes pages of the site out of Markdown that lies elsewhere in the repository, and rewrites their links.

Pages link as they do when they are read in the repository: by relative paths. Links to Markdown that the site has lead to
its page, links to any other file to that file at the repository's address (``project.urls`` of pyproject.toml). A line
``<!-- README: Title -->`` stands for the README's section of that title.
"""

from __future__ import annotations

import os
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
MADE = {  # pages by their names on the site, of files by their names in the repository
    "project/contributing.md": "CONTRIBUTING.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/security.md": "SECURITY.md",
    **{f"examples/{path.name}": f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.md"))},
}
HOMES = {made_of: page for page, made_of in MADE.items()} | {"README.md": "index.md"}
ASSETS = ("site.css", "logo.svg", "iframe-worker.js", "live.js")
# Links and pictures; what stands in code is found first and left alone.
LINK = re.compile(r"^```.*?^```|`[^`\n]+`|(?P<start>\]\()(?P<target>[^)\s]+)(?P<end>\))", re.M | re.S)
SECTION = re.compile(r"^<!-- README: (.+) -->$", re.M)


def on_files(files: Files, *, config: Any) -> Files:
    for page, made_of in MADE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / made_of)))
    for name in ASSETS:
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(ROOT / "website" / "assets" / name)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    source = page.file.src_uri
    lies = MADE.get(source, f"docs/{source}")  # in the repository
    parts = SECTION.split(markdown)  # words, title, words, title, ..., words
    parts[::2] = [rewrite_links(words, source, lies) for words in parts[::2]]
    parts[1::2] = [rewrite_links(read_section(title), source, "README.md") for title in parts[1::2]]
    return "".join(parts)


def read_section(title: str) -> str:
    """Return the README's section of a title, without the title."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", (ROOT / "README.md").read_text(), re.M | re.S)
    if match is None:
        raise PluginError(f"README.md has no section {title!r}")
    return match[1].strip()


def rewrite_links(markdown: str, page: str, lies: str) -> str:
    """Rewrite the links of a text at one place of the repository for a page of the site."""

    def rewrite(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or re.match(r"[a-z]+:|#", target):
            return match[0]
        path, mark, anchor = target.partition("#")
        return f"{match['start']}{find_page(path, page, lies)}{mark}{anchor}{match['end']}"

    return LINK.sub(rewrite, markdown)


def find_page(path: str, page: str, lies: str) -> str:
    """Return the page or address for a path that is relative to the text's place."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(lies), path))
    if not (ROOT / target).exists():
        raise PluginError(f"{lies}: no file {target} to link to")
    home = target.removeprefix("docs/") if target.startswith("docs/") and (ROOT / target).is_file() else HOMES.get(target)
    if home is None:
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{read_address()}/{kind}/main/{target}"
    return os.path.relpath(home, posixpath.dirname(page) or ".")


def read_address() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"])
