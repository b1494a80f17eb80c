import io

from rich.console import Console

from exitlens.progress import print_line, show_progress


def test_a_bar_shows_or_does_not():
    for shown in (True, False):
        console = Console(file=io.StringIO(), force_terminal=True, width=80)
        with show_progress(shown, console) as bar:
            task = bar.add_task("counting", total=3)
            bar.advance(task)
        assert ("counting" in console.file.getvalue()) == shown


def test_a_line_stays_a_line_where_there_is_no_terminal():
    line = "epoch 1/8: loss 1.5 | map CC with final " + "0.51 " * 20
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, color_system=None, width=40)
        print_line(console, line)
        assert (console.file.getvalue() == f"{line}\n") != terminal
