"""What all verbs share: the app, common options, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.markup import escape
from typer import Option, Typer

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


def show(as_json: bool, values: dict[str, Any], title: str = "", rows: list[list[str]] | None = None) -> None:
    """Prints ``values`` as JSON, or as a table: ``rows`` with the head first, or a line for each value."""
    if as_json:
        sys.stdout.write(json.dumps(values) + "\n")
        return
    from rich.table import Table

    rows = rows or [["", "value"], *[[k, f"{v:.4g}" if isinstance(v, float) else str(v)] for k, v in values.items()]]
    table = Table(title=literal(title) or None, title_justify="left")
    for name in rows[0]:  # the end of a file's name is what tells it from others, so it is never cut off
        table.add_column(literal(name), overflow="fold" if name == "file" else "ellipsis")
    for row in rows[1:]:
        table.add_row(*map(literal, row))
    console.print(table)


def wait(as_json: bool, what: str) -> AbstractContextManager[object]:
    """Says what is being waited for, while it lasts."""
    return nullcontext() if as_json else console.status(what)


def show_skipped(as_json: bool, bad: Sequence[str]) -> None:
    """Prints what was left out, each with the reason; JSON has it among its values."""
    for line in [] if as_json else [f"skipped {reason}" for reason in bad[:SHOWN]]:
        console.print(literal(line), highlight=False)
    if len(bad) > SHOWN and not as_json:
        console.print(f"and {len(bad) - SHOWN} more (--json lists all)", highlight=False)


def list_bad(*sets: object) -> list[str]:
    """What could not be read of these sets and streams, each with the reason; empty for those in memory."""
    return list(dict.fromkeys(reason for one in sets for reason in getattr(one, "bad", ())))


def literal(text: str) -> str:
    """Text to print unchanged: brackets are no markup, and bytes of file names that are not UTF-8 become ``\\udcXX``."""
    return escape(text.encode("utf-8", "backslashreplace").decode())


def name_exits(net: ExitNet) -> list[str]:
    """What tables call the exits: exit 0, ..., final."""
    from exitlens.types.words import exit_name

    return [exit_name(k, net.num_exits) for k in range(net.num_exits)]
