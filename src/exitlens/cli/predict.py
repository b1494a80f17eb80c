"""Verbs that use a network: predict, explain."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from typer import Option

import exitlens as xl
from exitlens.cli.options import (
    SHOWN,
    Bundle,
    InputColumns,
    Json,
    PolicyName,
    console,
    of_data,
    show,
    show_skipped,
    takes,
    tell,
    verbs,
    wait,
)
from exitlens.progress import show_progress
from exitlens.types.settings import ReadSettings


@verbs.command(epilog="Example: `exitlens predict --bundle runs/x --data photos --out predictions.csv`")
@takes(ReadSettings, {"Data": "skip_bad workers"})
def predict(
    bundle: Bundle,
    reading: Callable[..., ReadSettings],
    data: Annotated[
        str,
        of_data(
            help="An image, sound, series or volume, a folder of them at any depth, a .csv, .jsonl or .txt of texts, a .csv "
            "of numbers, a .ts file, Parquet or a saved data set, tar shards, or hf:NAME; no labels are needed."
        ),
    ],
    out: Annotated[Path | None, Option(help="New file, a row for each sample: .csv, .jsonl or .parquet.")] = None,
    batch_size: Annotated[int, Option(min=1, help="Samples in a batch.")] = 64,
    resume: Annotated[bool, Option("--resume", help="Continue the --out of a run that was stopped.")] = False,
    compiled: Annotated[bool, Option("--compile", help="Compile the stages first (a minute, needs g++).")] = False,
    monitor: Annotated[bool, Option("--monitor", help="Warn if the samples, in this order, have drifted.")] = False,
    json_: Json = False,
    columns: InputColumns = "",
    group_by: Annotated[
        str,
        of_data(
            help="A column of the data, or a regular expression on file names: --monitor counts those that agree in it once."
        ),
    ] = "",
    name: PolicyName = "",
) -> None:
    """Answer each sample at the first exit that is sure enough.

    Samples that no exit has answered yet wait for those of the next batch, as the bundle is tuned (see `exitlens tune`).
    """
    from exitlens.data.readers import check_bad
    from exitlens.delivery.predictions import PredictionFile, name_rows, start_watch, watch_files
    from exitlens.delivery.run_directory import describe_origin, load_calibrated, stream_samples

    if resume and out is None:
        raise xl.errors.InputError("resume: it continues a file. Fix: name that file by --out.")
    if resume and monitor:
        raise xl.errors.InputError("monitor: it has to see all samples. Fix: leave --resume out, or watch another run.")
    net, policy = load_calibrated(bundle, name)
    watch = start_watch(policy, monitor, group_by)
    file = None if out is None else PredictionFile(out, describe_origin(net, policy, data, columns), resume=resume)
    before = [] if file is None else file.rows
    done, shown = len(before), before[: None if json_ else SHOWN]
    if compiled:
        net.compile(policy, progress=not json_)
    where = reading(data=data, columns=columns, group_by=group_by)
    with wait(json_, "listing the data"):
        samples = stream_samples(net, where, batch_size=batch_size, without={row.file for row in before}, run=bundle)
    answers = watch_files(watch, xl.predict_stream(net, samples, policy), samples)
    try:
        with file or nullcontext(), show_progress(not json_, console) as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore", xl.errors.DriftWarning)  # reported at the end
            task = bar.add_task("predicting", total=done + samples.total, completed=done)
            for batch in name_rows(net, answers, samples):
                if file is not None:
                    file.append(batch)
                done += len(batch)
                shown += batch[: None if json_ else max(0, SHOWN - len(shown))]
                bar.update(task, completed=done + len(samples.bad))
            if not done:
                check_bad(samples.bad, samples.total, where.skip_bad)
            if file is not None:
                file.finish()
    except KeyboardInterrupt as stop:
        if file is None:
            stop.add_note("nothing was written: --out FILE keeps the answers so far")
        raise
    fields = shown[0]._fields if shown else ()
    names = [name for name in fields if any(getattr(row, name) is not None for row in shown)]  # estimates: of gates only
    rows = [names, *[["" if (v := getattr(row, name)) is None else str(v) for name in names] for row in shown[:SHOWN]]]
    resumed = f", {len(before)} of them from before" if before else ""
    values: dict[str, Any] = {"predictions": [row._asdict() for row in shown], "bad": samples.bad}
    if watch is not None:
        values["drift"] = watch.state().to_dict()
    show(json_, values, f"{done} samples{resumed}, the first {min(SHOWN, done)}", rows)
    if watch is not None and not json_:
        tell(watch.state().summary)
    show_skipped(json_, samples.bad)


@verbs.command(epilog="Example: `exitlens explain --bundle runs/x --image x.png --out why`")
@takes(ReadSettings, {"Data": "skip_bad workers"})
def explain(
    reading: Callable[..., ReadSettings],
    image: Annotated[
        Path | None, Option("--image", "--file", help="A file: an image, a series, a volume or a vector.")
    ] = None,
    text: Annotated[str, Option(help="A text, for a network that takes texts.")] = "",
    bundle: Bundle = Path("runs/demo"),
    out: Annotated[Path | None, Option(help="Directory for overlays (PNG, SVG) or page (HTML), and answer (JSON).")] = None,
    json_: Json = False,
    data: Annotated[
        str, of_data(help="Many samples, as for predict: a table and a contact sheet, the most remarkable first.")
    ] = "",
    columns: InputColumns = "",
    relevance: Annotated[
        bool, Option("--relevance", help="Also show what the answer depends on, to first order (--image, --text).")
    ] = False,
    name: PolicyName = "",
) -> None:
    """Show which exit answered, why, and where every exit looked."""
    from exitlens.delivery.run_directory import load_calibrated

    if sum((image is not None, bool(text.strip()), bool(data))) != 1:
        raise xl.errors.InputError(
            "image, text, data: expected one of --image FILE, --text TEXT (not empty) and --data DATA"
        )
    if data and out is None:
        raise xl.errors.InputError("out: the table and contact sheet of many samples need a place. Fix: pass --out DIR.")
    if data and relevance:
        raise xl.errors.InputError("relevance: it is for one sample. Fix: pass --image or --text, or leave it out.")
    where = reading(data=data, columns=columns)
    if not data and (where.skip_bad or columns):
        raise xl.errors.InputError("skip_bad, columns: they are for many samples. Fix: pass --data, or leave them out.")
    net, policy = load_calibrated(bundle, name)
    if data and out is not None:
        _explain_many(net, policy, bundle, where, out, json_)
    else:
        _explain_one(net, policy, text if image is None else image, out, json_, relevance)


def _explain_one(
    net: xl.ExitNet, policy: xl.Policy, sample: str | Path, out: Path | None, json_: bool, relevance: bool
) -> None:
    """Explain a text, or what is in a file."""
    from exitlens.delivery.explanations import save_explanation, write_explanation
    from exitlens.delivery.pages import tabulate_tokens
    from exitlens.delivery.run_directory import require_preprocess

    modality, takes_texts = net.input_spec.modality, net.input_spec.modality.preprocess is xl.data.TextPreprocess
    is_text = isinstance(sample, str)
    kind = xl.data.TextPreprocess if is_text else xl.data.Preprocess if takes_texts else modality.preprocess
    preprocess: Any = require_preprocess(net, kind)
    if isinstance(sample, Path) and not sample.is_file():
        problem = "is a folder. Fix: pass it as --data." if sample.is_dir() else "does not exist. Fix: check the path."
        raise xl.errors.DataError(f"image: expected a file, {sample} {problem}")
    why = xl.explain(net, modality.read(sample, preprocess), policy, relevance=relevance)
    stem = sample.stem if isinstance(sample, Path) else "text"
    if out is not None and isinstance(preprocess, xl.data.Preprocess):
        save_explanation(why, out, preprocess, stem)
    elif out is not None:
        write_explanation(why, out, stem)
    if is_text and not json_:
        console.print(tabulate_tokens(why, colour=console.color_system is not None))
    else:
        show(json_, why.to_dict(), why.reason, _tabulate(why))


def _tabulate(why: xl.Explanation) -> list[list[str]]:
    """Return a row per exit: its answer and what it had to reach; with a gate, the estimated divergence and its limit."""
    from exitlens.types.outputs import exit_name, tell_apart

    gated = any(view.estimate is not None for view in why.exits)
    rows = [["exit", "answer", "confidence", "threshold", *(["gate"] if gated else []), "map CC with final", ""]]
    for view in why.exits:
        confidence, threshold = tell_apart(view.confidence, view.threshold)
        if view.exit == why.num_exits - 1:
            confidence, threshold = f"{view.confidence:.3f}", "answers the rest"
        cells = [confidence, threshold.replace("inf", "never")]
        if gated:
            estimate, limit = tell_apart(view.estimate or 0.0, view.limit or 0.0)
            cells.append("" if view.estimate is None else f"{estimate} (limit {limit.replace('inf', 'none')})")
        mark = "answered" if view.exit == why.answered else ""
        cells.append("" if view.cc is None else f"{view.cc:.2f}")
        rows.append([exit_name(view.exit, why.num_exits), why.name_answer(view), *cells, mark])
    return rows


def _explain_many(net: xl.ExitNet, policy: xl.Policy, bundle: Path, reading: ReadSettings, out: Path, json_: bool) -> None:
    from exitlens.data.readers import check_bad
    from exitlens.delivery.explanations import explain_folder, name_sheet
    from exitlens.delivery.run_directory import stream_samples

    with wait(json_, "listing the data"):
        samples = stream_samples(net, reading, batch_size=64, run=bundle)
    preprocess = samples.preprocess
    with show_progress(not json_, console) as bar:
        task = bar.add_task("explaining", total=samples.total)
        names, advance = lambda i: str(samples.files[i]), lambda count: bar.advance(task, count)
        lines = explain_folder(net, policy, samples, names, preprocess, out, advance=advance)
    if not lines:
        check_bad(samples.bad, samples.total, reading.skip_bad)
    disagreeing = sum(line.disagrees for line in lines)
    rows = [["file", "answer", "exit", "final exit says", "divergence of the maps", "confidence"]]
    for line in lines[:SHOWN]:
        numbers = [f"{line.divergence:.3f}", f"{line.confidence:.3f}"]
        rows.append([line.file, line.answer, str(line.exit), line.final, *numbers])
    count = f"{len(lines)} {net.input_spec.modality.plural}, {disagreeing} answered early against the final exit"
    title = f"{count}; what deserves a look first: {out / name_sheet(preprocess)}"
    show(json_, {"explanations": [vars(line) for line in lines], "bad": samples.bad, "out": str(out)}, title, rows)
    show_skipped(json_, samples.bad)
