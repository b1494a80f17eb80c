"""Writes the reference of the command line out of its own help, in place of the line ``<!-- verbs -->``."""

from __future__ import annotations

import re
from typing import Any

import typer

from exitlens.cli import verbs

PLACE = "<!-- verbs -->"


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    return markdown.replace(PLACE, write_verbs()) if PLACE in markdown else markdown


def write_verbs() -> str:
    """A section for each verb: what it does, its usage, its options."""
    group: Any = typer.main.get_command(verbs)
    return "\n\n".join(_write_verb(name, command) for name, command in sorted(group.commands.items()) if not command.hidden)


def _write_verb(name: str, command: Any) -> str:
    usage = command.collect_usage_pieces(command.make_context(name, [], resilient_parsing=True))
    rows = [_write_option(option) for option in command.params if not getattr(option, "hidden", False)]
    example = re.sub(r"^Example: `(.*)`$", r"\1", command.epilog or "")
    parts = [f"## exitlens {name}", command.help.strip(), f"```sh\nexitlens {name} {' '.join(usage)}\n```"]
    parts += [f"For example:\n\n```sh\n{example}\n```"] if example else []
    return "\n\n".join([*parts, "| option | what it does | default |\n| --- | --- | --- |\n" + "\n".join(rows)])


def _write_option(option: Any) -> str:
    names = [*option.opts, *option.secondary_opts] if option.param_type_name == "option" else [option.name.upper()]
    what = (option.help or "").replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
    shown = "needed" if option.required else "" if option.default in (None, False, (), [], "") else f"`{option.default}`"
    return f"| {', '.join(f'`{name}`' for name in names)} | {' '.join(what.split())} | {shown} |"
