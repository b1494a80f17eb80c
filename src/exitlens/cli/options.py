"""What all verbs share: the app, options (written here, or generated from settings objects), and how results are printed."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from typer import BadParameter, Exit, Option, Typer, rich_utils
from typer.core import TyperGroup

from exitlens.launch import read_rank
from exitlens.progress import print_line, show_progress

if TYPE_CHECKING:
    from exitlens.model.network import ExitNet

if not Console().is_terminal:
    rich_utils.MAX_WIDTH = rich_utils.MAX_WIDTH or 120  # help in a pipe: wide enough for a sentence beside its option


class Verbs(TyperGroup):
    """The verbs; Ctrl-C ends each with one line that says how to go on."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; exit with code 130 if it is interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            if read_rank() == 0:
                complain("stopped", "; ".join(getattr(stop, "__notes__", ["nothing was written"])))
            raise Exit(130) from None


verbs = Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Classifiers that answer early when they can, and show where every exit looked.",
)
console = Console(emoji=False)  # a name such as x:train:0 has no picture in it

# options in panels of the help
of_data = partial(Option, rich_help_panel="Data")
of_training = partial(Option, rich_help_panel="Training")
of_more = partial(Option, rich_help_panel="More about training")
of_limits = partial(Option, rich_help_panel="Limits of requests")
of_swaps = partial(Option, rich_help_panel="Swaps")


def _refuse_address(bundle: Path) -> Path:
    """Return the bundle unless it is on the Hub, where no verb can change it."""
    from exitlens.delivery.hub import refuse_address

    return refuse_address(bundle)


Json = Annotated[bool, Option("--json", help="Print one JSON object instead of a table.")]
Bundle = Annotated[Path, Option(help="Run directory of `exitlens fit`, or a bundle; also hf://USER/NAME.")]
OwnBundle = Annotated[Path, Option(help="Run directory of `exitlens fit`, or a bundle.", callback=_refuse_address)]
PolicyName = Annotated[str, Option("--policy", help="Which of the bundle's policies, by name (default: its own).")]
Compare = Annotated[Path | None, Option(help="A second run or bundle to show beside the first.")]
Data = Annotated[
    str,
    of_data(
        help="Training data: a folder with a subfolder of files for each class (.png, .jpg, .wav, .npy, .nii.gz, ...); a "
        "table (.csv or .jsonl of texts, .csv of numbers, .ts, Parquet); a saved data set; tar shards; hf:NAME; "
        "torchvision:NAME; or generated data: `scenes`, `fashion`, `reviews`, `motifs` or `blobs`."
    ),
]
InputColumns = Annotated[
    str,
    of_data(
        help="Columns of the data: image=NAME, text=NAME, series=NAME or features=A|B (default: found by type), and "
        "key=NAME, which names the samples (default: the row's number)."
    ),
]
BACKBONES = "`small`, torchvision:NAME, timm:NAME, or hf:DIRECTORY (or hf:NAME, hf:bert) of transformers."
RENAMED = {"at": "--exits", "out_dir": "--out"}  # options by the arguments that they stand for
OFFERED: set[str] = set()  # fields of settings objects with an option of their name
LEAST_VALUES = {"workers": 0, "timed_batch": 1}  # of options that are generated
SHOWN = 20  # rows of a table, names of skipped files
LEAST_NAME, UNBOUNDED = 30, 2000  # characters: of a file's name in a table, of a table without a terminal


def describe_fields(settings: type) -> dict[str, str]:
    """Return the first sentence about each field, from the section "Attributes:" of a settings object's docstring."""
    section = (inspect.getdoc(settings) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    texts = {name: " ".join(text.replace("``", "`").split()) for name, text in entries}
    return {name: re.split(r"(?<=\.) (?=[A-Z])", text[0].upper() + text[1:])[0] for name, text in texts.items()}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def name_options(text: str) -> str:
    """Return a text with options in place of arguments: ``--out`` for ``out_dir (--out)``, ``--max-ms`` for ``max_ms``."""
    text = re.sub(r"\bhf:/(?=[^/])", "hf://", text)  # of a Path
    text = re.sub(r"\b[a-z_]+(?:=[\w'.]+)? \((?:option )?(--[a-z-]+)\)", r"\1", text)
    text = re.sub(r"(--[a-z-]+(?: \w+)?) \([a-z_]+=[\w'.]+\)", r"\1", text)  # --skip-bad (skip_bad=True)
    leading = re.match(r"(?:\w+, )*\w+(?=: )", text)  # the arguments that an error is about
    if leading:
        names = leading[0].split(", ")
        words = [RENAMED.get(name, _flag(name) if name in OFFERED else name) for name in names]
        text = ", ".join(words) + text[leading.end() :]
    return re.sub(r"(?<![\w./-])([a-z]+(?:_[a-z]+)+)\b", lambda m: _flag(m[1]) if m[1] in OFFERED else m[1], text)


def make_options(settings: type, panels: Mapping[str, str]) -> list[inspect.Parameter]:
    """Return options for fields of a settings object, by panel of the help; type, default and help are the field's."""
    helps, known = describe_fields(settings), {field.name: field for field in fields(settings)}
    options, offered = [], {name for names in panels.values() for name in names.split()}
    OFFERED.update(offered)
    kinds_of = inspect.get_annotations(settings, eval_str=True)
    for panel, names in panels.items():
        for name in names.split():
            kind: Any = kinds_of[name]
            flag = _flag(name)
            if bool in (kind, *get_args(kind)) and known[name].default is not False:
                flag = f"{flag}/--no-{flag[2:]}"
            parts = (kind,) if get_origin(kind) is Literal else get_args(kind) or (kind,)
            kinds = [str if get_origin(part) is Literal else part for part in parts]  # settings refuse an unknown word
            read: Any = {"parser": read_shares, "metavar": "NAME=SHARE,..."} if get_origin(parts[0]) is Mapping else {}
            text = re.sub(r"`(\w+)`", lambda match: _flag(match[1]) if match[1] in offered else match[0], helps[name])
            option = Option(flag, help=name_options(text), rich_help_panel=panel, min=LEAST_VALUES.get(name), **read)
            annotation: Any = Annotated[kinds[0] | None if len(kinds) > 1 else kinds[0], option]
            default = known[name].default
            options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    return options


def read_shares(words: str) -> dict[str, float]:
    """Read numbers by name from words such as ``"lesion=0.05,vessel=0.1"``."""
    try:
        pairs = [part.rpartition("=") for part in words.split(",")]
        return {name.strip(): float(share) for name, _, share in pairs if name.strip() or share}
    except ValueError as error:
        raise BadParameter(f"expected NAME=SHARE,NAME=SHARE, got {words!r}") from error


def takes(settings: type, panels: Mapping[str, str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the options of a settings object; its parameter ``Callable[..., settings]`` makes the object from them."""
    options = make_options(settings, panels)

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(verb, eval_str=True)
        place = next(p.name for p in signature.parameters.values() if p.annotation == Callable[..., settings])

        def run(**given: Any) -> None:
            values = {option.name: given.pop(option.name) for option in options}
            verb(**given, **{place: partial(settings, **values)})

        parameters = [
            part.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            for part in (options if parameter.name == place else [parameter])
        ]
        run.__name__, run.__doc__, run.__module__ = verb.__name__, verb.__doc__, verb.__module__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def show(
    as_json: bool, values: dict[str, Any], title: str = "", rows: Sequence[list[str]] = (), notes: Sequence[str] = ()
) -> None:
    """Print ``values`` as JSON; or ``rows`` as a table, the head first, then notes, and what is in ``values["bad"]``."""
    if as_json:
        sys.stdout.write(json.dumps(values) + "\n")
        return
    from rich.table import Table

    rows = [[_as_text(cell) for cell in row] for row in rows]
    target = console if console.is_terminal else Console(emoji=False, width=UNBOUNDED)
    if title:
        tell(title)
    table = Table()
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for number, name in enumerate(rows[0]):
        table.add_column(escape(name), no_wrap=name == "file")
        if name == "file":
            room = max(LEAST_NAME, target.width - 3 * len(rows[0]) - 1 - sum(widths) + widths[number])
            for row in rows[1:]:
                if cell_len(row[number]) > room:  # its end tells it from others
                    while cell_len(row[number]) >= room:
                        row[number] = row[number][1:]
                    row[number] = f"…{row[number]}"
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    target.print(table)
    for note in filter(None, notes):
        tell(note)
    show_skipped(values.get("bad", ()))


def tell(line: str) -> None:
    """Print text as it is, wrapped to the width of a terminal; without one it stays one line."""
    print_line(console, literal(line), highlight=False)


def complain(kind: Literal["error", "warning", "stopped"], text: str) -> None:
    """Print an error, warning or the like on standard error."""
    colour = "red" if kind == "error" else "yellow"
    line = f"[bold {colour}]{kind}:[/bold {colour}] {literal(text)}"
    Console(stderr=True, emoji=False).print(line, highlight=False, soft_wrap=True)


@contextmanager
def wait(as_json: bool, what: str) -> Iterator[Progress]:
    """Show what is being waited for, while it lasts, and yield the display for more tasks."""
    with show_progress(not as_json, console) as bar:
        bar.add_task(what, total=None)
        yield bar


def show_skipped(bad: Sequence[str]) -> None:
    """Print what was left out, each with the reason."""
    if not bad:
        return
    tell(f"left out, because they cannot be read: {len(bad)}")
    for reason in bad[:SHOWN]:
        tell(f"skipped {reason}")
    if len(bad) > SHOWN:
        tell(f"and {len(bad) - SHOWN} more (--json lists all)")


def list_bad(*sets: object) -> list[str]:
    """Return what could not be read in these sets and streams, each with the reason; empty for those in memory."""
    return list(dict.fromkeys(reason for data in sets for reason in getattr(data, "bad", ())))


def literal(text: str) -> str:
    """Return text that prints unchanged: brackets are no markup, and bytes that are not UTF-8 become ``\\udcXX``."""
    return escape(_as_text(text))


def _as_text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def as_options(text: str) -> str:
    """Return a text with arguments as they are typed: ``--delta 0.1`` for ``delta=0.1``."""
    return re.sub(r"(?<![\w-])(delta|folds)=([\d.]*\d)", r"--\1 \2", text)


def name_exits(net: ExitNet) -> list[str]:
    """Return what tables call the exits: exit 0, ..., final."""
    from exitlens.types.outputs import exit_name

    return [exit_name(k, net.num_exits) for k in range(net.num_exits)]
