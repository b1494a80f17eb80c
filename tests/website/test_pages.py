"""The pages of the site: each is in its navigation, links are rewritten, and the built site is checked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

import exitlens as xl
from website import glossary
from website.accessibility import on_post_page
from website.check import check_site

ROOT = Path(__file__).parents[2]
CONFIG = (ROOT / "mkdocs.yml").read_text()
NAV = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", CONFIG[CONFIG.index("\nnav:") :], re.M)
DOCS = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
MADE = {f"project/{name}.md" for name in ("contributing", "changelog", "security")} | {
    f"examples/{p.name}" for p in (ROOT / "examples").glob("*.md")
}


def test_every_page_is_in_the_navigation_once():
    assert sorted(NAV) == sorted(DOCS | MADE)


def test_links_are_rewritten_to_where_files_are_on_the_site():
    repository = pytest.importorskip("website.repository", reason="needs the extra docs")
    text = (
        "[a](../../examples/photos.md#x) `[b](no.md)` [c](exits.md) [d](../../src/exitlens/io.py) [e](#f) [g](https://h.i)"
    )
    assert repository.rewrite_links(text, "guides/speed.md", "docs/guides/speed.md") == (
        "[a](../examples/photos.md#x) `[b](no.md)` [c](exits.md) "
        f"[d]({repository.read_address()}/blob/main/src/exitlens/io.py) [e](#f) [g](https://h.i)"
    )
    assert repository.rewrite_links("[a](docs/guides/data.md)", "index.md", "README.md") == "[a](guides/data.md)"
    assert repository.rewrite_links("[a](../docs/index.md)", "examples/texts.md", "examples/texts.md") == "[a](../index.md)"
    assert repository.rewrite_links("[a](../README.md)", "examples/texts.md", "examples/texts.md") == "[a](../index.md)"
    with pytest.raises(Exception, match=r"no file docs/guides/no\.md"):
        repository.rewrite_links("[a](no.md)", "guides/speed.md", "docs/guides/speed.md")


def test_sections_of_the_readme_are_found():
    repository = pytest.importorskip("website.repository", reason="needs the extra docs")
    assert repository.read_section("In Python").startswith("```python\nimport exitlens as xl")
    with pytest.raises(Exception, match="no section"):
        repository.read_section("Nothing of this name")


def test_roles_become_links_and_lines_are_split():
    docstrings = pytest.importorskip("website.docstrings", reason="needs the extra docs")
    assert docstrings.ROLE.sub(docstrings._link, ":class:`~exitlens.types.Policy`") == "[`Policy`][exitlens.Policy]"
    assert docstrings.ROLE.sub(docstrings._link, ":meth:`to_dict`") == "`to_dict`"
    text = "Raises:\n    InputError: one, which\n        goes on; PolicyError: two.\n"
    assert docstrings.SECTION.sub(docstrings._part, text) == (
        "Raises:\n    InputError: one, which goes on.\n    PolicyError: two.\n"
    )


def test_the_start_page_has_the_live_example_or_says_why_not(tmp_path, monkeypatch):
    live = pytest.importorskip("website.live_example", reason="needs the extra docs")
    monkeypatch.setenv("EXITLENS_ORT", str(tmp_path))
    end = "<!-- end of live -->\n"
    text = f"<!-- live: with -->\nA\n<!-- live: scenes -->\n{end}<!-- live: without -->\nB\n{end}"
    assert live.on_page_markdown(text, page=None, config=None, files=None) == "B\n"
    assert live.on_files([], config=None) == []
    for name in live.FILES:
        (tmp_path / name).write_text(name)
        monkeypatch.setitem(live.FILES, name, sha256(name.encode()).hexdigest())
    with_it = live.on_page_markdown(text, page=None, config=None, files=None)
    assert with_it.startswith("A\n")
    assert with_it.count("<button") == with_it.count("<img") == 6
    assert "With 90 % confidence" in live.on_page_markdown("<!-- live: certificate -->", page=None, config=None, files=None)


def test_the_live_example_is_small_and_whole():
    network = json.loads((ROOT / "website" / "live" / "network.json").read_text())
    files = {path.name: path.stat().st_size for path in (ROOT / "website" / "live").iterdir()}
    assert len(network["examples"]) == 6
    assert set(files) == {*network["examples"], "network.json", "cascade.onnx", "certificate.txt"}
    assert sum(files.values()) < 1_500_000


def test_a_word_of_the_glossary_shows_its_meaning_where_it_is_used_first():
    markdown = pytest.importorskip("markdown", reason="needs the extra docs")
    meanings = glossary.read_glossary()
    assert {"exit", "final exit", "trace", "edge bundle"} < set(meanings)
    assert glossary.list_forms("final exit") == ["final exit", "final exits", "Final exit", "Final exits"]
    assert glossary.list_forms("policy")[1] == "policies"
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/speed.md"))
    text = "# A trace\n\nMulti-trace traces, a trace, `trace` and [a policy](#x), a policy that retraces."
    source = glossary.on_page_markdown(text, page=page, config=None, files=None)
    html = markdown.markdown(source, extensions=["abbr"])
    shown = glossary.on_page_content(html, page=page, config=None, files=None)
    assert shown == (
        f'<h1>A trace</h1>\n<p>Multi-trace <abbr title="{meanings["trace"]}">traces</abbr>, a trace, <code>trace</code> and '
        f'<a href="#x">a policy</a>, a <abbr title="{meanings["policy"]}">policy</abbr> that retraces.</p>'
    )
    page.file.src_uri = glossary.GLOSSARY
    assert glossary.on_page_markdown(text, page=page, config=None, files=None) == text


def test_verbs_in_the_picture_are_public():
    picture = (ROOT / "docs" / "guides" / "verbs.svg").read_text()
    names = re.findall(r'class="(?:name|other)"[^>]*>([\w.]+)<', picture)
    assert len(names) == len(set(names)) == 25
    assert set(names) - {"net.tune"} <= set(xl.__all__)
    assert hasattr(xl.ExitNet, "tune")


def test_accessible_names_are_added_and_intervals_stay_on_one_line():
    text = '<div data-md-component="search" role="dialog"><th></th><td>91.1 ± 0.3</td>'
    page = on_post_page(text, page=None, config=None)
    assert 'role="dialog" aria-label="Search"' in page
    assert ">row</span></th>" in page
    assert "91.1\u00a0±\u00a00.3" in page


def test_what_is_wrong_with_a_site_is_told(tmp_path):
    (tmp_path / "index.html").write_text(
        '<a id="here" href="#here">fine</a> <a href="#no">bad</a> <a href="no.html">bad</a> <a href="https://x.y">fine</a>'
        '<img src="https://x.y/z.png"> <img src="data:,"> <link rel="canonical" href="https://x.y">'
    )
    (tmp_path / "a.css").write_text("@import url('//fonts.z/a.css'); b { background: url(c.png) }")
    faults = [line for line in check_site(tmp_path) if "entries in the reference" not in line]
    expected = ["loads https://x.y/z.png", "nothing has the id of #no", "no file for no.html", "asks for //fonts.z/a.css"]
    assert [line.rpartition(": ")[2] for line in faults] == expected


@pytest.mark.slow
def test_the_site_is_built_and_nothing_is_wrong_with_it(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(words, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert check_site(tmp_path / "site") == []
