"""Verbs that use a network: predict, explain."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import exitlens as xl
from exitlens.cli.options import Bundle, Json, SkipBad, console, literal, show, verbs
from exitlens.data.checks import check_bad
from exitlens.data.folders import list_images
from exitlens.data.streams import ImageStream, TextStream
from exitlens.delivery.explanations.folder import SHEET, explain_folder
from exitlens.delivery.explanations.pictures import save_explanation
from exitlens.delivery.explanations.tokens import tabulate_tokens, write_tokens
from exitlens.delivery.predictions.file import PredictionFile
from exitlens.delivery.predictions.row_formats import Row
from exitlens.delivery.run_directory import (
    load_calibrated,
    made_by,
    require_image_preprocess,
    require_text_preprocess,
    stream_samples,
)
from exitlens.types.words import exit_name, tell_apart


@verbs.command(epilog="Example: `exitlens predict --bundle runs/x --data photos --out predictions.csv`")
def predict(
    bundle: Bundle,
    data: Annotated[
        Path, typer.Option(help="An image, or a folder of images at any depth; texts: a .csv, .jsonl or .txt file.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write one row a sample, batch by batch, to this new file: .csv, .jsonl or .parquet.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a call.")] = 64,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the --out of a run that was stopped.")] = False,
    skip_bad: SkipBad = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the stages first (a minute, needs g++).")] = False,
    monitor: Annotated[
        bool, typer.Option("--monitor", help="Warn if the samples, in this order, stop looking like the calibration's.")
    ] = False,
    json_: Json = False,
) -> None:
    """Answer each image or text at the first exit that is sure enough.

    Survivors of one batch wait at each stage for those of the next, as the bundle is tuned (see `exitlens tune`).
    """
    if resume and out is None:
        raise xl.InputError("resume: it goes on with a file: name that file by --out")
    if resume and monitor:
        raise xl.InputError("monitor: it has to see the samples from the first on: leave --resume out, or watch another run")
    net, policy = load_calibrated(bundle)
    file = None if out is None else PredictionFile(out, made_by(net, policy, data), resume=resume)
    rows = [] if file is None else list(file.rows)
    done = {row.file for row in rows}
    if compiled:
        net.compile(policy, progress=not json_)
    watch = xl.Monitor(policy) if monitor else None
    samples = stream_samples(net, data, batch_size=batch_size, skip_bad=skip_bad, without=done)
    try:
        with file or nullcontext(), _bar(not json_) as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore", xl.DriftWarning)  # told at the end
            task = bar.add_task("predicting", total=len(rows) + samples.total, completed=len(rows))
            answers: Iterable[xl.Prediction] = xl.predict_stream(net, samples, policy)
            for batch in _rows(net, answers if watch is None else watch.watch(answers), samples):
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
        raise typer.Exit(130) from None
    before = f", {len(done)} of them from before" if done else ""
    table = [list(Row._fields), *[["" if value is None else str(value) for value in row] for row in rows[:20]]]
    values = {"predictions": [row._asdict() for row in rows], "bad": samples.bad}
    if watch is not None:
        values["drift"] = watch.state().to_dict()
    show(json_, values, f"{len(rows)} samples{before}, the first {min(20, len(rows))}", table)
    if watch is not None and not json_:
        console.print(literal(watch.state().summary), highlight=False)
    for reason in samples.bad if not json_ else ():
        console.print(literal(f"skipped {reason}"), highlight=False)


def _rows(net: xl.ExitNet, predictions: Iterable[xl.Prediction], samples: ImageStream | TextStream) -> Iterator[list[Row]]:
    """Predictions with the names of their samples, which may be ahead of them."""
    count = 0
    for pred in predictions:
        names = map(str, samples.files[count : count + len(pred)])
        labels = [net.info.classes[i] if net.info.classes else str(i) for i in pred.labels.tolist()]
        sure = [round(value, 6) for value in pred.confidence.tolist()]
        estimates: list[float | None] = [None] * len(pred)
        if pred.divergence_estimate is not None:
            estimates = [round(value, 6) for value in pred.divergence_estimate.tolist()]
        yield [Row(*values) for values in zip(names, labels, pred.exits.tolist(), sure, estimates, strict=True)]
        count += len(pred)


def _bar(is_shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not is_shown, transient=True)


@verbs.command(epilog="Example: `exitlens explain --bundle runs/x --image x.png --out why`")
def explain(
    image: Annotated[Path | None, typer.Option(help="An image file.")] = None,
    text: Annotated[str, typer.Option(help="A text, for a network that takes texts.")] = "",
    data: Annotated[
        Path | None, typer.Option(help="A folder of images: a table and a contact sheet, what deserves a look first.")
    ] = None,
    bundle: Bundle = Path("runs/demo"),
    out: Annotated[
        Path | None, typer.Option(help="Directory for overlays (PNG, SVG) or page (HTML), and answer (JSON).")
    ] = None,
    skip_bad: SkipBad = False,
    json_: Json = False,
) -> None:
    """Show which exit answered, why, and where every exit looked."""
    if sum((image is not None, bool(text.strip()), data is not None)) != 1:
        raise xl.InputError("image, text, data: expected one of --image FILE, --text TEXT (not empty) and --data FOLDER")
    if data is not None and out is None:
        raise xl.InputError("out: the table and contact sheet of a folder need a place: pass --out DIR")
    if data is None and skip_bad:
        raise xl.InputError("skip_bad: it is for the images of a folder: pass --data FOLDER, or leave it out")
    net, policy = load_calibrated(bundle)
    if data is not None and out is not None:
        _explain_folder(net, policy, data, out, skip_bad, json_)
        return
    if image is None:
        answer = xl.explain(net, require_text_preprocess(net).encode([text]), policy)
        if out is not None:
            write_tokens(answer, out, "text")
        if json_:
            show(True, answer.to_dict())
        else:
            console.print(tabulate_tokens(answer, colour=console.color_system is not None))
        return
    preprocess = require_image_preprocess(net)
    why = xl.explain(net, preprocess.normalise(xl.read_image(image, preprocess.size, len(preprocess.mean))), policy)
    if out is not None:
        save_explanation(why, out, preprocess, image.stem)
    show(json_, why.to_dict(), why.reason, _table(why))


def _table(why: xl.Explanation) -> list[list[str]]:
    """One row an exit: its answer, and what it had to reach; with a gate, the estimated divergence and its limit."""
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
    preprocess = require_image_preprocess(net)
    samples = ImageStream(list_images(data), preprocess, 64, skip_bad)
    with _bar(not json_) as bar:
        task = bar.add_task("explaining", total=samples.total)
        lines = explain_folder(
            net,
            policy,
            samples,
            lambda i: str(samples.files[i]),
            preprocess,
            out,
            advance=lambda count: bar.advance(task, count),
        )
    if not lines:
        check_bad(samples.bad, samples.total, skip_bad)
    odd = sum(line.disagrees for line in lines)
    head = ["file", "answer", "exit", "final exit says", "divergence of the maps", "confidence"]
    first = [
        [one.file, one.answer, str(one.exit), one.final, f"{one.divergence:.3f}", f"{one.confidence:.3f}"]
        for one in lines[:20]
    ]
    title = f"{len(lines)} images, {odd} answered early against the final exit; what deserves a look first: {out / SHEET}"
    show(json_, {"explanations": [vars(line) for line in lines], "bad": samples.bad, "out": str(out)}, title, [head, *first])
