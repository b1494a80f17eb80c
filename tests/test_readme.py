"""README.md, CONTRIBUTING.md and docs/: their Python runs, their commands parse, their links lead somewhere."""

import contextlib
import copy
import io
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import exitlens as xl
from exitlens import modalities
from exitlens.cli import verbs
from tests.hub import open_hub

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS]
GROUP: Any = typer.main.get_command(verbs)

LESS = {  # time and samples
    "seconds=0.5": "seconds=0.01",
    "measure_faithfulness(net, test)": "measure_faithfulness(net, test.first(8))",
    "certify_binding(net, test,": "certify_binding(net, test.first(32),",
}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def read_lines(page: Path) -> list[str]:
    """Lines of sh blocks."""
    return "".join(read_blocks(page, "sh")).splitlines()


def read_commands(page: Path, program: str) -> list[list[str]]:
    """Commands of sh blocks and of inline code, in words."""
    lines = [line for line in [*read_lines(page), *read_inline_code(page)] if line.startswith(program + " ")]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if len(words) > 1]


def read_inline_code(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def run(code: str, name: str, space: dict[str, Any], folder: Path) -> str:
    """What the code prints; relative paths are in ``folder``."""
    torch.manual_seed(0)
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore", xl.errors.DriftWarning)  # a few untrained answers say nothing
        exec(compile(code, name, "exec"), space)
    return printed.getvalue()


@pytest.fixture(scope="module")
def readme(tmp_path_factory) -> tuple[dict[str, Any], str, Path]:
    """The README's Python on few images: its names, what it printed, where it wrote."""
    (code,) = read_blocks(README, "python")
    assert code.count("load_scenes(split)") == code.count("epochs=8") == 1
    code = code.replace("load_scenes(split)", "load_scenes(split, limit=96)").replace("epochs=8", "epochs=1, progress=False")
    space: dict[str, Any] = {}
    folder = tmp_path_factory.mktemp("readme")
    return space, run(code, "README.md", space, folder), folder


@pytest.mark.slow
def test_the_readme_is_one_screen_and_runs(readme):
    _, printed, folder = readme
    assert len(README.read_text().splitlines()) <= 110
    assert "routed: accuracy" in printed
    assert (folder / "bundle" / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in DOCS if read_blocks(page, "python")], ids=lambda page: page.name)
def test_python_in_docs_runs_after_the_readme(page, readme, tmp_path, monkeypatch, files_written_once):
    monkeypatch.setattr("exitlens.model.cutting.placement.SECONDS", 0.0)
    monkeypatch.setattr("exitlens.model.engine.manager.MICRO_BATCHES", (1, 8))
    monkeypatch.setattr(modalities, "MODALITIES", modalities.MODALITIES)  # to which guides/extending.md adds
    stands_alone = page.parent.name == "answers"  # its readers come from a search
    space = {} if stands_alone else dict(readme[0], net=copy.deepcopy(readme[0]["net"]))
    with open_hub(tmp_path / "cache") if page.stem == "hub" else contextlib.nullcontext():
        for block in read_blocks(page, "python"):
            for old, new in LESS.items():
                block = block.replace(old, new)
            run(block, page.name, space, tmp_path)


@pytest.mark.slow
def test_the_flow_in_the_package_docstring_runs(readme, tmp_path):
    code = "\n".join(line[4:] for line in xl.__doc__.split("::")[1].splitlines() if line.startswith("    "))
    assert code.count("epochs=8") == 1
    train, calibration, test = (readme[0][name].first(48) for name in ("train", "cal", "test"))
    space = {"xl": xl, "train": train, "val": calibration, "calibration": calibration, "test": test, "images": train.inputs}
    space["backbone"] = xl.build_backbone("small", 10)
    with pytest.raises(xl.errors.BundleError, match="backbone="):  # the last line needs the module itself
        run(code.replace("epochs=8", "epochs=1, progress=False"), "exitlens", space, tmp_path)
    assert space["report"].samples == len(space["pred"].labels) == 48
    assert xl.load(tmp_path / "bundle", backbone=space["backbone"])[1] == space["policy"]


@each_page
@pytest.mark.slow
def test_commands_in_blocks_parse(page):
    for line in read_lines(page):
        program, *words = shlex.split(line, comments=True) or [""]
        if program == "exitlens" and "[OPTIONS]" not in words:  # the reference has lines of usage, too
            assert words[0] in GROUP.commands, line
            GROUP.commands[words[0]].make_context(words[0], words[1:])  # raises UsageError for what does not fit


@each_page
def test_commands_and_options_in_prose_exist(page):
    known = {option for command in GROUP.commands.values() for p in command.params for option in p.opts + p.secondary_opts}
    for _, verb, *words in read_commands(page, "exitlens"):
        options = {option for p in GROUP.commands[verb].params for option in p.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= options, verb
    if page.parent != ROOT:  # CONTRIBUTING.md speaks of other programs' options, too
        for code in read_inline_code(page):
            if code.startswith("--"):
                assert code.split()[0] in known | {"--help"}, code


@each_page
def test_make_targets_and_modules_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for _, target, *_ in read_commands(page, "make"):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for _, *words in read_commands(page, "python"):
        path = words[1].replace(".", "/") if words[0] == "-m" else words[0]
        places = [ROOT / path, ROOT / f"{path}.py", ROOT / path / "__main__.py"]
        assert words[:2] in (["-m", "pytest"], ["-m", "http.server"]) or any(place.is_file() for place in places), words


@each_page
def test_links_and_named_files_exist(page):
    for target in re.findall(r"\]\(([^)\s:]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        assert not anchor or anchor in list_anchors(other), target
    for code in read_inline_code(page):
        if re.fullmatch(r"(?!runs/)[\w.-]+/[\w./-]+\.(py|json|csv|md|toml)", code):
            assert (ROOT / code).exists() or (ROOT / "src" / "exitlens" / code).exists(), code


def list_anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
