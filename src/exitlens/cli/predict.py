"""Verbs that use a network: predict, explain."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from typer import Exit, Option

import exitlens as xl
from exitlens.cli.options import Bundle, Json, SkipBad, Workers, console, literal, show, show_skipped, verbs
from exitlens.progress import show_progress

if TYPE_CHECKING:
    from exitlens.delivery.predictions.row_formats import Row


@verbs.command(epilog="Example: `exitlens predict --bundle runs/x --data photos --out predictions.csv`")
def predict(
    bundle: Bundle,
    data: Annotated[Path, Option(help="An image, or a folder of images at any depth; texts: a .csv, .jsonl or .txt file.")],
    out: Annotated[Path | None, Option(help="New file, a row for each sample: .csv, .jsonl or .parquet.")] = None,
    batch_size: Annotated[int, Option(min=1, help="Samples in a batch.")] = 64,
    resume: Annotated[bool, Option("--resume", help="Continue the --out of a run that was stopped.")] = False,
    skip_bad: SkipBad = False,
    workers: Workers = None,
    compiled: Annotated[bool, Option("--compile", help="Compile the stages first (a minute, needs g++).")] = False,
    monitor: Annotated[bool, Option("--monitor", help="Warn if the samples, in this order, have drifted.")] = False,
    group_by: Annotated[
        str, Option(help="A regular expression on file names: --monitor counts files that agree in it once.")
    ] = "",
    json_: Json = False,
) -> None:
    """Answer each image or text at the first exit that is sure enough.

    Samples that no exit has answered yet wait for those of the next batch, as the bundle is tuned (see `exitlens tune`).
    """
    from exitlens.data.checks import check_bad
    from exitlens.delivery.predictions.file import PredictionFile
    from exitlens.delivery.predictions.row_formats import name_rows
    from exitlens.delivery.predictions.watching import start_watch, watch_files
    from exitlens.delivery.run_directory import describe_origin, load_calibrated, stream_samples

    if resume and out is None:
        raise xl.InputError("resume: it continues a file: name that file by --out")
    if resume and monitor:
        raise xl.InputError("monitor: it has to see the samples from the first on: leave --resume out, or watch another run")
    net, policy = load_calibrated(bundle)
    watch = start_watch(policy, monitor, group_by)
    file = None if out is None else PredictionFile(out, describe_origin(net, policy, data), resume=resume)
    rows = [] if file is None else list(file.rows)
    if compiled:
        net.compile(policy, progress=not json_)
    without = {row.file for row in rows}
    samples = stream_samples(net, data, batch_size=batch_size, skip_bad=skip_bad, workers=workers, without=without)
    answers = watch_files(watch, xl.predict_stream(net, samples, policy), samples, group_by)
    try:
        with file or nullcontext(), show_progress(not json_, console) as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore", xl.DriftWarning)  # reported at the end
            task = bar.add_task("predicting", total=len(rows) + samples.total, completed=len(rows))
            for batch in name_rows(net, answers, samples):
                if file is not None:
                    file.append(batch)
                rows += batch
                bar.update(task, completed=len(rows) + len(samples.bad))
            if not rows:
                check_bad(samples.bad, samples.total, skip_bad)
            if file is not None:
                file.finish()
    except KeyboardInterrupt as stop:
        notes = getattr(stop, "__notes__", ["nothing was written: --out FILE keeps the answers so far"])
        Console(stderr=True).print(literal(f"stopped: {notes[-1]}"), highlight=False, soft_wrap=True)
        raise Exit(130) from None
    _show_rows(rows, 0 if file is None else len(file.rows), samples.bad, None if watch is None else watch.state(), json_)


def _show_rows(rows: list[Row], before: int, bad: list[str], drift: xl.Drift | None, json_: bool) -> None:
    shown = [[*rows[0]._fields] if rows else [], *[["" if v is None else str(v) for v in row] for row in rows[:20]]]
    resumed = f", {before} of them from before" if before else ""
    values = {"predictions": [row._asdict() for row in rows], "bad": bad}
    if drift is not None:
        values["drift"] = drift.to_dict()
    show(json_, values, f"{len(rows)} samples{resumed}, the first {min(20, len(rows))}", shown)
    if drift is not None and not json_:
        console.print(literal(drift.summary), highlight=False)
    show_skipped(json_, bad)


@verbs.command(epilog="Example: `exitlens explain --bundle runs/x --image x.png --out why`")
def explain(
    image: Annotated[Path | None, Option(help="An image file.")] = None,
    text: Annotated[str, Option(help="A text, for a network that takes texts.")] = "",
    data: Annotated[Path | None, Option(help="Images, for a table and a contact sheet, the most remarkable first.")] = None,
    bundle: Bundle = Path("runs/demo"),
    out: Annotated[Path | None, Option(help="Directory for overlays (PNG, SVG) or page (HTML), and answer (JSON).")] = None,
    skip_bad: SkipBad = False,
    json_: Json = False,
) -> None:
    """Show which exit answered, why, and where every exit looked."""
    from exitlens.delivery.run_directory import load_calibrated

    if sum((image is not None, bool(text.strip()), data is not None)) != 1:
        raise xl.InputError("image, text, data: expected one of --image FILE, --text TEXT (not empty) and --data FOLDER")
    if data is not None and out is None:
        raise xl.InputError("out: the table and contact sheet of a folder need a place: pass --out DIR")
    if data is None and skip_bad:
        raise xl.InputError("skip_bad: it is for the images of a folder: pass --data FOLDER, or leave it out")
    net, policy = load_calibrated(bundle)
    if data is not None and out is not None:
        _explain_folder(net, policy, data, out, skip_bad, json_)
    elif image is not None:
        _explain_image(net, policy, image, out, json_)
    else:
        _explain_text(net, policy, text, out, json_)


def _explain_text(net: xl.ExitNet, policy: xl.Policy, text: str, out: Path | None, json_: bool) -> None:
    from exitlens.delivery.explanations.tokens import tabulate_tokens, write_tokens
    from exitlens.delivery.run_directory import require_preprocess

    why = xl.explain(net, net.input_spec.modality.read(text, require_preprocess(net, xl.TextPreprocess)), policy)
    if out is not None:
        write_tokens(why, out, "text")
    if json_:
        show(True, why.to_dict())
    else:
        console.print(tabulate_tokens(why, colour=console.color_system is not None))


def _explain_image(net: xl.ExitNet, policy: xl.Policy, image: Path, out: Path | None, json_: bool) -> None:
    from exitlens.delivery.explanations.pictures import save_explanation
    from exitlens.delivery.run_directory import require_preprocess

    preprocess = require_preprocess(net, xl.Preprocess)
    why = xl.explain(net, net.input_spec.modality.read(image, preprocess), policy)
    if out is not None:
        save_explanation(why, out, preprocess, image.stem)
    show(json_, why.to_dict(), why.reason, _tabulate(why))


def _tabulate(why: xl.Explanation) -> list[list[str]]:
    """A row for each exit: its answer and what it had to reach; with a gate, the estimated divergence and its limit."""
    from exitlens.types.words import exit_name, tell_apart

    gated = any(view.estimate is not None for view in why.exits)
    rows = [["exit", "answer", "confidence", "threshold", *(["gate"] if gated else []), "map CC with final", ""]]
    for view in why.exits:
        confidence, threshold = tell_apart(view.confidence, view.threshold)
        if view.exit == why.num_exits - 1:
            confidence, threshold = f"{view.confidence:.3f}", "answers the rest"
        cells = [confidence, threshold.replace("inf", "never")]
        if gated:
            guess, limit = tell_apart(view.estimate or 0.0, view.limit or 0.0)
            cells.append("" if view.estimate is None else f"{guess} (limit {limit.replace('inf', 'none')})")
        mark = "answered" if view.exit == why.answered else ""
        rows.append([exit_name(view.exit, why.num_exits), why.name(view.label), *cells, f"{view.cc:.2f}", mark])
    return rows


def _explain_folder(net: xl.ExitNet, policy: xl.Policy, data: Path, out: Path, skip_bad: bool, json_: bool) -> None:
    from exitlens.data.checks import check_bad
    from exitlens.data.loading.listing import list_images
    from exitlens.delivery.explanations.folder import SHEET, explain_folder
    from exitlens.delivery.run_directory import require_preprocess

    preprocess = require_preprocess(net, xl.Preprocess)
    samples = xl.ImageStream(list_images(data), preprocess, 64, skip_bad)
    with show_progress(not json_, console) as bar:
        task = bar.add_task("explaining", total=samples.total)
        names, advance = lambda i: str(samples.files[i]), lambda count: bar.advance(task, count)
        lines = explain_folder(net, policy, samples, names, preprocess, out, advance=advance)
    if not lines:
        check_bad(samples.bad, samples.total, skip_bad)
    odd = sum(line.disagrees for line in lines)
    rows = [["file", "answer", "exit", "final exit says", "divergence of the maps", "confidence"]]
    for one in lines[:20]:
        numbers = [f"{one.divergence:.3f}", f"{one.confidence:.3f}"]
        rows.append([one.file, one.answer, str(one.exit), one.final, *numbers])
    title = f"{len(lines)} images, {odd} answered early against the final exit; what deserves a look first: {out / SHEET}"
    show(json_, {"explanations": [vars(line) for line in lines], "bad": samples.bad, "out": str(out)}, title, rows)
