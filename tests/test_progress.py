import io
import time

from rich.console import Console

from exitlens import progress
from exitlens.progress import print_line, show_progress, track


def test_a_bar_shows_or_does_not():
    for shown in (True, False):
        console = Console(file=io.StringIO(), force_terminal=True, width=80)
        with show_progress(shown, console) as bar:
            task = bar.add_task("counting", total=3)
            bar.advance(task)
        assert ("counting" in console.file.getvalue()) == shown


def test_without_a_terminal_a_line_says_what_is_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.01)
    console = Console(file=io.StringIO(), force_terminal=False)
    with show_progress(True, console) as bar:
        tasks = [bar.add_task("epoch 2", total=4), bar.add_task("listing", total=None), bar.add_task("done", total=1)]
        for task in (tasks[0], tasks[2]):
            bar.advance(task)
        time.sleep(0.001)
        bar.advance(tasks[0])
        time.sleep(0.1)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "epoch 2: 2/4, 0:00:01 left; listing: 0:00:00 so far"
    assert console.file.getvalue() == ""
    with show_progress(False, console) as bar:
        bar.add_task("quiet", total=1)
        time.sleep(0.03)
    assert capsys.readouterr() == ("", "")
    assert [time.sleep(0.05) or item for item in track("ab", "letters", total=2)] == ["a", "b"]
    assert capsys.readouterr().err.startswith("letters: ")


def test_a_line_stays_a_line_where_there_is_no_terminal():
    line = "epoch 1/8: loss 1.5 | map CC with final " + "0.51 " * 20
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, color_system=None, width=40)
        print_line(console, line)
        assert (console.file.getvalue() == f"{line}\n") != terminal
