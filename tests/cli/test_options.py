"""What all verbs share: help, errors in one line, defaults; and that help does not wait for PyTorch."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest
from typer import Typer
from typer.testing import CliRunner

import exitlens as xl
from exitlens.cli.options import as_options, console, literal, name_options, show, show_skipped, takes, tell
from exitlens.types.settings import check_choice

HELP = """
import sys
from exitlens import cli
sys.argv = ["exitlens", "--help"]
try:
    cli.main()
except SystemExit:
    print(sorted({"torch", "torchvision", "matplotlib", "scipy", "PIL", "numpy"} & sys.modules.keys()))
"""
VERBS = [
    "demo",
    "fit",
    "calibrate",
    "evaluate",
    "cascade",
    "certify",
    "cues",
    "report",
    "predict",
    "explain",
    "inspect",
    "tune",
    "bench",
]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.slow
def test_help_shows_an_example(verb, call):
    out = call.ok(verb, "--help")
    assert "Example:" in out
    assert "--json" in out


def test_the_version(call):
    assert call("--version") == (0, f"exitlens {xl.__version__}\n", "")


def test_help_imports_nothing_heavy():
    found = subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True, text=True).stdout
    assert "calibrate" in found
    assert found.splitlines()[-1] == "[]"


@dataclass(frozen=True)
class Oven:
    """An oven.

    Attributes:
        heat: degrees, below ``limit``. More is said here.
        limit: the most.
        fan: whether it blows,
            all around.
        mode: one of ``up`` or ``down``.
        hidden: no option.
    """

    heat: float | None = None
    limit: int = 3
    fan: bool | None = None
    mode: Literal["up", "down"] = "up"
    hidden: int = 0

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("up", "down"))


def test_options_come_from_the_fields_and_docstring_of_settings():
    app, baked = Typer(), []

    @app.command()
    @takes(Oven, {"Oven": "heat limit fan mode"})
    def bake(loaf: str, oven: Callable[..., Oven], count: int = 1) -> None:
        """Bake."""
        baked.append((loaf, count, oven(hidden=4)))

    runner = CliRunner()
    words = "rye --heat 2.5 --no-fan --mode down --count 2"
    assert runner.invoke(app, words.split()).exit_code == 0
    assert baked == [("rye", 2, Oven(2.5, 3, False, "down", 4))]
    shown = " ".join(runner.invoke(app, ["--help"]).output.replace("│", "").split())
    assert "Degrees, below --limit." in shown
    assert "More is said" not in shown
    assert "Whether it blows, all around." in shown
    assert "--hidden" not in shown
    assert isinstance(runner.invoke(app, ["rye", "--mode", "dwn"]).exception, xl.errors.InputError)


def test_errors_name_options_in_place_of_arguments():
    for text, shown in (
        ("cache_features: pass freeze_backbone=True (--freeze-backbone).", "--cache-features: pass --freeze-backbone."),
        ("out_dir (--out) was a/batch_size.csv", "--out was a/batch_size.csv"),
        ("pass --skip-bad (skip_bad=True) or --size STEPS (size=STEPS)", "pass --skip-bad or --size STEPS"),
        ("epochs, bundle: 3", "--epochs, bundle: 3"),
        ("at: no module max_nothing", "--exits: no module max_nothing"),
    ):
        assert name_options(text) == shown


def test_errors_are_one_line_with_exit_code_2(tmp_path, call):
    code, out, err = call("evaluate", "--bundle", tmp_path / "[none]")
    assert (code, out) == (2, "")
    assert err.startswith("error: bundle:")
    assert "[none]" in err
    assert err.count("\n") == 1


def test_tables_show_text_as_it_is(capsys):
    show(False, {}, "", [["", "value"], ["[red]a[/red]", "\udcff"], ["x:train:0", "1"]])
    shown = capsys.readouterr().out
    assert "[red]a[/red]" in shown
    assert "x:train:0" in shown  # no picture of a train
    assert "\\udcff" in shown
    assert literal("[x]") == "\\[x]"


def test_skipped_files_are_listed_up_to_twenty(capsys):
    show_skipped([f"file {i}" for i in range(22)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["left out, because they cannot be read: 22", "skipped file 0"]
    assert lines[-1] == "and 2 more (--json lists all)"


def test_a_warning_of_ours_is_one_line(call, monkeypatch):
    def explore(*_):
        warnings.warn("the disk is full", xl.errors.DataWarning, stacklevel=2)
        warnings.warn("another", UserWarning, stacklevel=2)

    monkeypatch.setattr("exitlens.cli.verbs", explore)
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(str(message)))
        assert call()[2] == "warning: the disk is full\n"
    assert shown == ["another"]


PATH = "photos/some/deep/folder/of/pictures/that/somebody/has/with_a_long_name__17.png"


def _show_path(capsys):
    show(False, {}, "", [["file", "label", "confidence"], [PATH, "cat", "0.5"], ["写真/猫.png", "cat", "0.5"]])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    return [line.split("│")[1].strip() for line in lines]


def test_names_of_files_are_whole_in_tables_where_there_is_no_terminal(capsys):
    assert _show_path(capsys) == [PATH, "写真/猫.png"]


def test_names_of_files_keep_their_end_in_one_line_of_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(console, "width", 70)
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "_color_system", None)
    long, short = _show_path(capsys)
    assert long[0] == "…"
    assert PATH.endswith(long[1:])
    assert len(long) > 40
    assert short == "写真/猫.png"


def test_lines_are_not_wrapped_where_there_is_no_terminal(capsys):
    line = "a line of many words " * 20
    tell(line)
    show(False, {}, line, [["a"], ["1"]])
    assert capsys.readouterr().out.count(line) == 2


def test_arguments_as_they_are_typed():
    text = "Calibrate with folds=5 for limits, or with delta=0.1 for a certificate: my_delta=0.1."
    assert as_options(text) == "Calibrate with --folds 5 for limits, or with --delta 0.1 for a certificate: my_delta=0.1."
