"""Writes the reference of the command line from its own help: ``python -m scripts.command_line``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from benchmarks.harness import fill, table
from exitlens.cli import verbs

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "command_line.md"


def write_verbs() -> str:
    group: Any = typer.main.get_command(verbs)
    return "\n\n".join(_write_verb(name, command) for name, command in sorted(group.commands.items()) if not command.hidden)


def _write_verb(name: str, command: Any) -> str:
    usage = command.collect_usage_pieces(command.make_context(name, [], resilient_parsing=True))
    rows = [_write_option(option) for option in command.params if not getattr(option, "hidden", False)]
    example = re.sub(r"^Example: `(.*)`$", r"\1", command.epilog or "")
    parts = [f"## exitlens {name}", command.help.strip(), f"```sh\nexitlens {name} {' '.join(usage)}\n```"]
    parts += [f"For example:\n\n```sh\n{example}\n```"] if example else []
    return "\n\n".join([*parts, "\n".join(table(["option", "what it does", "default"], rows))])


def _write_option(option: Any) -> list[str]:
    names = [*option.opts, *option.secondary_opts] if option.param_type_name == "option" else [option.name.upper()]
    what = (option.help or "").replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
    shown = "needed" if option.required else "" if option.default in (None, False, (), [], "") else f"`{option.default}`"
    return [", ".join(f"`{name}`" for name in names), " ".join(what.split()), shown]


if __name__ == "__main__":
    fill("verbs", [write_verbs()], [PAGE])
