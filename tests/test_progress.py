import io

from rich.console import Console

from exitlens.progress import show_progress


def test_a_bar_shows_or_does_not():
    for shown in (True, False):
        console = Console(file=io.StringIO(), force_terminal=True, width=80)
        with show_progress(shown, console) as bar:
            task = bar.add_task("counting", total=3)
            bar.advance(task)
        assert ("counting" in console.file.getvalue()) == shown
