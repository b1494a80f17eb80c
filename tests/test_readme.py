"""The README's code runs as it stands (on fewer images), and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import exitlens as xl

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 4
    code = blocks[0].replace("load_scenes(split)", "load_scenes(split, limit=128)").replace("epochs=8", "epochs=1")
    assert code.count("limit=128") == 1
    assert code.count("epochs=1") == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "routed" in out
    assert (tmp_path / "bundle" / "manifest.json").exists()
    space: dict[str, object] = {"xl": xl}
    exec(compile(blocks[1], "README.md", "exec"), space)
    assert "of the cost" in capsys.readouterr().out
    assert space["net"].num_exits == 3
    exec(compile(blocks[2], "README.md", "exec"), {})
    assert capsys.readouterr().out.count("tensor(") == 2 * 8
    exec(compile(blocks[3], "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "With 90 % confidence" in out or "with 90 % confidence" in out
    assert "no drift seen in 64 samples" in out


def test_the_flow_in_the_package_docstring_runs(tmp_path, monkeypatch):
    code = "\n".join(line[4:] for line in xl.__doc__.split("::")[1].splitlines() if line.startswith("    "))
    assert code.count("epochs=8") == 1
    monkeypatch.chdir(tmp_path)
    names = ("train", "validation", "calibration", "test")
    train, val, calibration, test = (xl.load_scenes(name, limit=64) for name in names)
    space = {"xl": xl, "train": train, "val": val, "calibration": calibration, "test": test, "images": train.inputs}
    space["backbone"] = xl.build_backbone("small", 10)
    with pytest.raises(xl.BundleError, match="backbone=that module"):  # the last line needs the module itself
        exec(compile(code.replace("epochs=8", "epochs=1"), "exitlens", "exec"), space)
    assert space["report"].samples == 64
    assert len(space["pred"].labels) == 64
    assert xl.load("bundle", backbone=space["backbone"])[1] == space["policy"]


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_commands_of_the_readme_exist():
    from exitlens.cli import verbs

    verbs = {command.name or command.callback.__name__ for command in verbs.registered_commands}
    used = set(re.findall(r"^exitlens (\w+)", README, re.M))
    assert used
    assert used <= verbs


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", xl.__all__)
def test_public_names_are_documented(name):
    assert getattr(xl, name).__doc__
