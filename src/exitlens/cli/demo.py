"""The verb that shows everything on the images of the extra ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from exitlens.cli.options import Json, console, show, tell, verbs
from exitlens.errors import InputError
from exitlens.progress import print_line


@verbs.command(epilog="Example: `exitlens demo --out runs/demo`")
def demo(
    out: Annotated[Path, Option(help="Directory for report, bundle and JSON.")] = Path("runs/demo"),
    seed: Annotated[int, Option(help="Seed of data, weights and training.")] = 0,
    resume: Annotated[bool, Option("--resume", help="Continue an unfinished run in the same directory.")] = False,
    full: Annotated[bool, Option("--full", help="The long run behind the documentation's figures (15 minutes).")] = False,
    quick: Annotated[bool, Option("--quick", help="A tiny run that shows the flow; its numbers mean nothing.")] = False,
    json_: Json = False,
) -> None:
    """Train with and without Explanation-Guided Training on real images, compare, and write a report."""
    from exitlens.delivery.demo import DemoSettings, run_demo
    from exitlens.types.outputs import exit_name

    if full and quick:
        raise InputError("full, quick: expected one of them at most, got both. Fix: leave one out.")
    settings = DemoSettings.full(seed) if full else DemoSettings.quick(seed) if quick else DemoSettings(seed)
    result = run_demo(out, settings, resume=resume, quiet=json_)
    count = len(result["egt"]["agreeing"]["accuracy"])
    rows = [["", "", *[exit_name(k, count) for k in range(count)]]]
    for run in ("baseline", "egt"):
        for condition in ("agreeing", "disagreeing"):
            values = result[run][condition]
            rows.append([run, f"accuracy %, {condition}", *[f"{100 * a:.1f}" for a in values["accuracy"]]])
        values = result[run]["agreeing"]
        rows.append([run, "attention skill", *[f"{a:.2f}" for a in values["skill"]], ""])
        pairs = zip(values["deletion"], values["deletion_random"], strict=True)
        rows.append([run, "deletion drop (random)", *[f"{drop:.2f} ({random:.2f})" for drop, random in pairs]])
        shares = values["deletion_share"]
        rows.append([run, "share of the oracle's drop", *["" if share is None else f"{share:.2f}" for share in shares]])
    show(json_, result, "Explanation-Guided Training (egt) against the same exits without it (baseline)", rows)
    if json_:
        return
    for name in ("batch_1", "batch_64"):
        s = result["speed"][name]
        line = f"{name.replace('_', ' size ')}: [bold]{s['speedup']:.2f}x[/bold] faster than the plain backbone, "
        print_line(console, line + f"{100 * s['accuracy_drop']:.2f} points less accurate, cost {s['cost']:.2f}")
    tell(f"Report: {out / 'report.html'}   bundle: {out / 'bundle'}   {result['seconds']:.0f} s")
