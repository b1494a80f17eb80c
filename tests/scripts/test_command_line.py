"""The committed reference of the command line is what its help says."""

from __future__ import annotations

from typing import Any

import typer

from benchmarks.harness import fill
from exitlens.cli import verbs
from scripts.command_line import PAGE, write_verbs

GROUP: Any = typer.main.get_command(verbs)


def test_the_committed_page_is_what_the_help_says(tmp_path):
    copy = tmp_path / PAGE.name
    copy.write_text(PAGE.read_text())
    assert fill("verbs", [write_verbs()], [copy]) == [copy]
    assert copy.read_text() == PAGE.read_text(), "run python -m scripts.command_line"


def test_every_verb_and_option_is_there():
    written = write_verbs()
    for name, command in GROUP.commands.items():
        section = written.split(f"## exitlens {name}\n")[1].split("\n## ")[0]
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
        assert all(f"`{option}`" in section for option in options)
