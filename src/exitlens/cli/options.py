"""What all verbs share: the app, common options, and how results are printed."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from typer import Option, Typer

from exitlens.progress import print_line

if TYPE_CHECKING:
    from exitlens.model.network import ExitNet

verbs = Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Classifiers that answer early when they can, and show that the early answer looked at the right thing.",
)
console = Console(emoji=False)  # a name such as x:train:0 has no picture in it

# options in panels of the help
of_data = partial(Option, rich_help_panel="Data")
of_limits = partial(Option, rich_help_panel="Limits")
of_network = partial(Option, rich_help_panel="Network")
of_training = partial(Option, rich_help_panel="Training")
of_more = partial(Option, rich_help_panel="More about training")

Json = Annotated[bool, Option("--json", help="Print one JSON object instead of a table.")]
Bundle = Annotated[Path, Option(help="Run directory of `exitlens fit`, or a bundle.")]
PolicyName = Annotated[str, Option("--policy", help="Which of the bundle's policies, by name (default: its own).")]
Compare = Annotated[Path | None, Option(help="A second run or bundle to show beside the first.")]
Data = Annotated[
    str,
    of_data(
        help="A folder class/image.png (or .wav, .npy, .nii.gz and so on), a .csv or .jsonl of texts, a .csv of numbers, "
        "a .ts file, Parquet or a saved data set, tar shards, hf:NAME, torchvision:NAME, `scenes`, `fashion`, `reviews`, "
        "`motifs` or `blobs`."
    ),
]
OtherData = Annotated[str, of_data("--data", help="In place of the run's own: labelled data, as for fit.")]
Columns = Annotated[
    str,
    of_data(
        help="Columns of the data: image=NAME,label=NAME, or text=NAME, series=NAME or features=A|B in place of the image "
        "(default: found by type); label=A|B|C: columns of 0 and 1, of which any number may be 1."
    ),
]
InputColumns = Annotated[
    str,
    of_data(
        help="Columns of the data: image=NAME, text=NAME, series=NAME or features=A|B (default: found by type), and "
        "key=NAME, which names the samples (default: the row's number)."
    ),
]
GroupBy = Annotated[
    str,
    of_data(help="What belongs together (patient, video): a column of the data, or a regular expression on file names."),
]
SplitBy = Annotated[str, of_data(help="A column of the data that names each sample's split.")]
Compact = Annotated[
    bool | None,
    of_data(
        "--compact/--no-compact",
        help="Keep only the largest logits and what the others amount to (default: of 100 classes and 2^26 logits on).",
    ),
]
TraceDir = Annotated[
    Path | None, of_data(help="Directory to leave the trace in, for `Trace.load` (default: it is not kept).")
]
Cost = Annotated[
    str, of_data(help="What cost is: macs (multiply-accumulates), or time, measured now: let nothing else run meanwhile.")
]
TimedBatch = Annotated[
    int | None, of_data(min=1, help="With --cost time: samples in the batch that is timed, 1 for single ones (default: 64).")
]
EGT_WEIGHT = 1.0  # the default of EGTLoss, as a test checks: reading it there would import PyTorch
BACKBONES = "`small`, torchvision:NAME, timm:NAME, or hf:DIRECTORY (or hf:NAME, hf:bert) of transformers."
Root = Annotated[str, of_data(help="Folder of torchvision's files.")]
SkipBad = Annotated[bool, of_data("--skip-bad", help="Leave out files and rows that cannot be read.")]
Workers = Annotated[
    int | None, of_data(min=0, help="Processes that decode files (0: this one; default: one for each core, at most 8).")
]
Cache = Annotated[Path | None, of_data(help="Directory for decoded, resized images, to be found there the next time.")]
SHOWN = 20  # rows of a table, names of skipped files
LEAST, UNBOUNDED = 30, 2000  # characters: of the name of a file in a table, of a table that no terminal shows


def show(as_json: bool, values: dict[str, Any], title: str = "", rows: list[list[str]] | None = None) -> None:
    """Prints ``values`` as JSON, or as a table: ``rows`` with the head first, or a line for each value."""
    if as_json:
        sys.stdout.write(json.dumps(values) + "\n")
        return
    from rich.table import Table

    rows = rows or [["", "value"], *[[k, f"{v:.4g}" if isinstance(v, float) else str(v)] for k, v in values.items()]]
    rows = [[_as_text(cell) for cell in row] for row in rows]
    shown = console if console.is_terminal else Console(emoji=False, width=UNBOUNDED)
    if title:
        tell(title)
    table = Table()
    for number, name in enumerate(rows[0]):
        table.add_column(escape(name), no_wrap=name == "file")
        if name == "file":
            room = max(LEAST, shown.width - 3 * len(rows[0]) - 1 - _measure(rows, number))
            for row in rows[1:]:
                row[number] = _keep_end(row[number], room)
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    shown.print(table)


def _measure(rows: Sequence[Sequence[str]], but: int) -> int:
    """Characters that the columns of a table take, but for one."""
    return sum(max(map(cell_len, column)) for number, column in enumerate(zip(*rows, strict=True)) if number != but)


def _keep_end(name: str, room: int) -> str:
    """The name, or what fits of its end, which tells it from others, after an ellipsis."""
    if cell_len(name) <= room:
        return name
    while cell_len(name) >= room:
        name = name[1:]
    return f"…{name}"


def tell(line: str) -> None:
    """Prints text as it is: a line is wrapped to the width of a terminal, and stays a line where there is none."""
    print_line(console, literal(line), highlight=False)


def wait(as_json: bool, what: str) -> AbstractContextManager[object]:
    """Says what is being waited for, while it lasts."""
    return nullcontext() if as_json else console.status(what)


def show_skipped(as_json: bool, bad: Sequence[str]) -> None:
    """Prints what was left out, each with the reason; JSON has it among its values."""
    if bad and not as_json:
        tell(f"left out, because they cannot be read: {len(bad)}")
    for line in [] if as_json else [f"skipped {reason}" for reason in bad[:SHOWN]]:
        tell(line)
    if len(bad) > SHOWN and not as_json:
        tell(f"and {len(bad) - SHOWN} more (--json lists all)")


def list_bad(*sets: object) -> list[str]:
    """What could not be read of these sets and streams, each with the reason; empty for those in memory."""
    return list(dict.fromkeys(reason for one in sets for reason in getattr(one, "bad", ())))


def literal(text: str) -> str:
    """Text to print unchanged: brackets are no markup, and bytes of file names that are not UTF-8 become ``\\udcXX``."""
    return escape(_as_text(text))


def _as_text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def as_options(text: str) -> str:
    """A text with arguments as they are typed: ``--delta 0.1`` for ``delta=0.1``."""
    return re.sub(r"(?<![\w-])(delta|folds)=([\d.]*\d)", r"--\1 \2", text)


def name_exits(net: ExitNet) -> list[str]:
    """What tables call the exits: exit 0, ..., final."""
    from exitlens.types.outputs import exit_name

    return [exit_name(k, net.num_exits) for k in range(net.num_exits)]
