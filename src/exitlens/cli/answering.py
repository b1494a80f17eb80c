"""Verbs that use a network: predict, explain, demo, app, export, push, serve, inspect, tune, bench."""

from __future__ import annotations

import math
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

import exitlens as xl
from exitlens.cli.options import (
    BACKBONES,
    SHOWN,
    Bundle,
    Compare,
    InputColumns,
    Json,
    OwnBundle,
    PolicyName,
    as_options,
    console,
    list_bad,
    name_exits,
    of_data,
    of_limits,
    show,
    takes,
    tell,
    verbs,
    wait,
)
from exitlens.progress import show_progress
from exitlens.serving.settings import Adapting, Batching, Limits, ServerSettings, Watching, name_bundles
from exitlens.types.settings import ReadSettings


@verbs.command(epilog="Example: `exitlens predict --bundle runs/x --data photos --out predictions.csv`")
@takes(ReadSettings, {"Data": "skip_bad workers"})
def predict(
    bundle: Bundle,
    make_reading: Callable[..., ReadSettings],
    data: Annotated[
        str,
        of_data(
            help="An image, sound, series or volume, a folder of them at any depth, a .csv, .jsonl or .txt of texts, a .csv "
            "of numbers, a .ts file, Parquet or a saved data set, tar shards, or hf:NAME; no labels are needed."
        ),
    ],
    out: Annotated[
        Path | None,
        Option(
            help="New file, a row for each sample: .csv, .jsonl or .parquet; of numbers or vectors also .npy or .npz; "
            "or, if each pixel gets a class, a folder for predictions.csv and the masks (.png)."
        ),
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="Samples in a batch.")] = 64,
    resume: Annotated[bool, Option("--resume", help="Continue the --out of a run that was stopped.")] = False,
    compiled: Annotated[bool, Option("--compile", help="Compile the stages first (a minute, needs g++).")] = False,
    monitor: Annotated[bool, Option("--monitor", help="Warn if the samples, in this order, have drifted.")] = False,
    adapt: Annotated[
        float | None,
        Option(
            help="Move the thresholds meanwhile, and keep the share of answers that are not the final exit's at most this, "
            "whatever the samples are (90 % confidence)."
        ),
    ] = None,
    audit: Annotated[
        float, Option(help="With --adapt: share of the early answers that the final exit checks in the long run.")
    ] = 0.025,
    state: Annotated[
        Path | None, Option(help="With --adapt: folder that keeps what is learnt, and from which the next run goes on.")
    ] = None,
    json_: Json = False,
    columns: InputColumns = "",
    group_by: Annotated[
        str, of_data(help="A column, or a regular expression on file names: --monitor counts those that agree in it once.")
    ] = "",
    name: PolicyName = "",
) -> None:
    """Answer each sample at the first exit that is sure enough.

    Samples that no exit has answered yet wait for those of the next batch, as the bundle is tuned (see `exitlens tune`).
    """
    from exitlens.data.readers import check_bad
    from exitlens.delivery.predictions import PredictionFile, keep_arrays, name_rows, start_watch, write_masks
    from exitlens.delivery.run_directory import describe_origin, load_calibrated, stream_samples

    _refuse_pairs(out, resume, monitor, adapt, state)
    net, policy = load_calibrated(bundle, name)
    watch = start_watch(policy, monitor, group_by)
    masks = out if out is not None and not out.suffix and net.info.task == "segmentation" else None
    out = out if masks is None else masks / "predictions.csv"
    array = out if out is not None and out.suffix.lower() in (".npy", ".npz") and not resume else None
    origin = describe_origin(net, policy, data, columns)
    file = None if out is None or array else PredictionFile(out, origin, resume=resume)
    before = [] if file is None else file.rows
    shown = before[: None if json_ else SHOWN]
    counts, confidence = Counter(row.exit for row in before), sum(row.confidence for row in before)
    if compiled:
        net.compile(policy, progress=not json_)
    reading = make_reading(data=data, columns=columns, group_by=group_by)
    with wait(json_, "listing the data"):
        samples = stream_samples(net, reading, batch_size=batch_size, without={row.file for row in before}, run=bundle)
    adaptive = None if adapt is None else _start_adapting(policy, adapt, audit, samples.total, state)
    try:
        with file or nullcontext(), show_progress(not json_, console) as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore", xl.errors.DriftWarning)  # reported at the end
            task = bar.add_task("predicting", total=len(before) + samples.total, completed=len(before))
            answers = xl.predict_stream(net, samples, adaptive or policy)
            if masks is not None:
                answers = write_masks(answers, samples, Path(data), masks, before=(row.file for row in before))
            elif array is not None:
                answers = keep_arrays(answers, samples, array)
            for batch in name_rows(net, answers, samples, watch):
                if file is not None:
                    file.append(batch)
                counts.update(row.exit for row in batch)
                confidence += sum(row.confidence for row in batch)
                shown += batch[: None if json_ else max(0, SHOWN - len(shown))]
                bar.update(task, completed=counts.total() + len(samples.bad))
            if not counts:
                check_bad(samples.bad, samples.total, reading.skip_bad)
            if file is not None:
                file.finish()
    except KeyboardInterrupt as stop:
        if file is None:
            stop.add_note("nothing was written: --out FILE keeps the answers so far")
        raise
    resumed = f", {len(before)} of them from before" if before else ""
    drift = None if watch is None else watch.state()
    values = {"predictions": [row._asdict() for row in shown], "bad": samples.bad} | _summarize(net, counts, confidence)
    if drift is not None:
        values["drift"] = drift.to_dict()
    notes = [_word_summary(net, values), "" if drift is None else drift.summary]
    if adaptive is not None:
        values["adaptive"] = adaptive.status.to_dict()
        notes.append(str(adaptive.status))
        adaptive.close()
    title = f"{counts.total()} samples{resumed}, the first {min(SHOWN, counts.total())}"
    show(json_, values, title, _tabulate_rows(net, shown[:SHOWN]), notes)


def _refuse_pairs(out: Path | None, resume: bool, monitor: bool, adapt: float | None, state: Path | None) -> None:
    if resume and out is None:
        raise xl.errors.InputError("resume: it continues a file. Fix: name that file by --out.")
    if resume and (monitor or adapt is not None):
        verb = "monitor" if monitor else "adapt"
        raise xl.errors.InputError(f"{verb}: it has to see all samples. Fix: leave --resume out, or start another run.")
    if monitor and adapt is not None:
        raise xl.errors.InputError("monitor: thresholds that adapt look like drift. Fix: leave --monitor or --adapt out.")
    if state is not None and adapt is None:
        raise xl.errors.InputError("state: it is for thresholds that adapt. Fix: add --adapt 0.02, or another limit.")


def _start_adapting(policy: xl.Policy, limit: float, audit: float, total: int, state: Path | None) -> xl.Adaptive:
    """Return a policy that adapts, with the usual budget to warm up, or that of all samples if these are fewer."""
    usual = xl.Adaptive(policy, limit, audit=audit)
    if state is not None:
        return usual.keep(state)
    adaptive = xl.Adaptive(policy, limit, audit=audit, warm_up=min(usual.warm_up, max(1, total)))
    if not adaptive.free:
        words = "Fix: raise --audit, or add --state to count over several runs."
        raise xl.errors.InputError(f"adapt: {total:,} samples are too few for a limit of {limit:g}. {words}")
    return adaptive


def _summarize(net: xl.ExitNet, counts: Counter[int], confidence: float) -> dict[str, Any]:
    """Return the number of samples, the share answered at each exit, and means; ``confidence`` is a sum."""
    total = max(1, counts.total())
    shares = [counts[k] / total for k in range(net.num_exits)]
    cost = sum(share * cost for share, cost in zip(shares, net.cost.tolist(), strict=True))
    return {"samples": counts.total(), "exit_shares": shares, "cost": cost, "confidence": round(confidence / total, 9)}


def _word_summary(net: xl.ExitNet, summary: Mapping[str, Any]) -> str:
    named = zip(name_exits(net), summary["exit_shares"], strict=True)
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in named)
    means = f"mean cost {summary['cost']:.3f}, mean confidence {summary['confidence']:.3f}"
    return f"{summary['samples']} samples answered: {shares}; {means}"


def _tabulate_rows(net: xl.ExitNet, rows: Sequence[Row]) -> list[list[str]]:
    """Return a table of answers; trust is that of gates, and left out if there are none."""
    exits = name_exits(net)
    cut = slice(60 if net.info.task == "embedding" else None)  # characters
    cells = [row._asdict() | {"exit": exits[row.exit], "label": row.label[cut]} for row in rows]
    names = [name for name in (cells[0] if cells else ()) if any(row[name] is not None for row in cells)]
    return [names, *[["" if row[name] is None else str(row[name]) for name in names] for row in cells]]


@verbs.command(epilog="Example: `exitlens explain --bundle runs/x --image x.png --out why`")
@takes(ReadSettings, {"Data": "skip_bad workers"})
def explain(
    make_reading: Callable[..., ReadSettings],
    image: Annotated[Path | None, Option("--image", "--file", help="An image, a series, a volume or a vector.")] = None,
    text: Annotated[str, Option(help="A text, for a network that takes texts.")] = "",
    bundle: Bundle = Path("runs/demo"),
    out: Annotated[Path | None, Option(help="Directory for overlays (PNG, SVG) or page (HTML), and answer (JSON).")] = None,
    json_: Json = False,
    data: Annotated[str, of_data(help="Many samples, as for predict: a table and a sheet, the most remarkable first.")] = "",
    columns: InputColumns = "",
    relevance: Annotated[bool, Option("--relevance", help="Also show what one answer depends on, to first order.")] = False,
    to: Annotated[str, Option(help="For vectors: a text or file, to show why both are alike.")] = "",
    name: PolicyName = "",
) -> None:
    """Show which exit answered, why, and where every exit looked."""
    from exitlens.delivery.run_directory import load_calibrated
    from exitlens.types.tasks import WITH_CLASSES, refuse_task

    if sum((image is not None, bool(text.strip()), bool(data))) != 1:
        raise xl.errors.InputError("image, text, data: expected one of --image FILE, --text TEXT (not empty), --data DATA")
    if data and out is None:
        raise xl.errors.InputError("out: the table and contact sheet of many samples need a place. Fix: pass --out DIR.")
    if data and (relevance or to):
        name = "relevance" if relevance else "to"
        raise xl.errors.InputError(f"{name}: it is for one sample. Fix: pass --image or --text, or leave it out.")
    reading = make_reading(data=data, columns=columns)
    if not data and (reading.skip_bad or columns):
        raise xl.errors.InputError("skip_bad, columns: they are for many samples. Fix: pass --data, or leave them out.")
    with wait(json_, "loading the network"):
        net, policy = load_calibrated(bundle, name)
    if net.info.task == "embedding" and not (to or data):
        raise xl.errors.InputError("to: a vector is explained by its likeness to another one. Fix: pass --to TEXT or FILE.")
    if data and out is not None:
        refuse_task(net.info.task, "data: a table of explanations", WITH_CLASSES)
        _explain_many(net, policy, bundle, reading, out, json_)
    else:
        _explain_one(net, policy, text if image is None else image, out, json_, relevance, to)


def _explain_one(
    net: xl.ExitNet, policy: xl.Policy, sample: str | Path, out: Path | None, json_: bool, relevance: bool, to: str
) -> None:
    from exitlens.delivery.explanations import save_explanation, tabulate_tokens
    from exitlens.delivery.run_directory import require_preprocess

    modality, takes_texts = net.input_spec.modality, net.input_spec.modality.preprocess is xl.data.TextPreprocess
    is_text = isinstance(sample, str)
    kind = xl.data.TextPreprocess if is_text else xl.data.Preprocess if takes_texts else modality.preprocess
    preprocess: Any = require_preprocess(net, kind)
    if isinstance(sample, Path) and not sample.is_file():
        problem = "is a folder. Fix: pass it as --data." if sample.is_dir() else "does not exist. Fix: check the path."
        raise xl.errors.DataError(f"image: expected a file, {sample} {problem}")
    stem = sample.stem if isinstance(sample, Path) else "text"
    with wait(json_, "explaining"):
        options: dict[str, Any] = {"relevance": relevance}
        if to:
            never = xl.Policy.never(net.num_exits, score=policy.score)
            options["to"] = xl.predict(net, modality.read(to if is_text else Path(to), preprocess), never).labels[0]
        why = xl.explain(net, modality.read(sample, preprocess), policy, **options)
        if out is not None:
            save_explanation(why, out, stem)
    if is_text and not json_:
        console.print(tabulate_tokens(why, colour=console.color_system is not None))
    else:
        show(json_, why.to_dict(), why.reason, _tabulate(why))


def _tabulate(why: xl.types.Explanation) -> list[list[str]]:
    from exitlens.types.outputs import exit_name, tell_apart

    gated = any(view.estimate is not None for view in why.exits)
    gate = ["same as final"] if gated else []
    rows = [["exit", "answer", "confidence", *gate, "threshold", "map CC with final", "another sample's", ""]]
    for view in why.exits:
        compared, threshold = tell_apart(view.compared, view.threshold)
        cells = [compared, threshold.replace("inf", "never")]
        if view.exit == why.num_exits - 1:
            cells = [*([""] if gated else [f"{view.confidence:.3f}"]), "answers the rest"]
        cells = [f"{view.confidence:.3f}", *cells] if gated else cells
        mark = "answered" if view.exit == why.answered else ""
        rows.append([exit_name(view.exit, why.num_exits), why.name_answer(view), *cells, *view.format_cc(), mark])
    return rows


def _explain_many(net: xl.ExitNet, policy: xl.Policy, bundle: Path, reading: ReadSettings, out: Path, json_: bool) -> None:
    from exitlens.data.readers import check_bad
    from exitlens.delivery.explanations import explain_folder, name_sheet
    from exitlens.delivery.run_directory import stream_samples
    from exitlens.types.inputs import count_rows
    from exitlens.types.outputs import exit_name

    with wait(json_, "listing the data"):
        samples = stream_samples(net, reading, batch_size=64, run=bundle)
    with show_progress(not json_, console) as bar:

        def read() -> Iterator[Inputs]:
            task = bar.add_task("explaining", total=samples.total)
            for batch in samples:
                yield batch
                bar.advance(task, count_rows(batch))
            bar.remove_task(task)
            bar.add_task("drawing what deserves a look", total=None)

        lines = explain_folder(net, policy, read(), lambda i: str(samples.files[i]), out)
    if not lines:
        check_bad(samples.bad, samples.total, reading.skip_bad)
    against = f"{sum(line.disagrees for line in lines)} answered early against the final exit"
    differing = [line.differing for line in lines if line.differing is not None]  # shares of pixels
    if differing:
        against = f"of whose pixels the final exit gives {100 * sum(differing) / len(differing):.1f} % another class"
    rows = [["file", "answer", "exit", "final exit says", "divergence of the maps", "confidence"]]
    for line in lines[:SHOWN]:
        numbers = [f"{line.divergence:.3f}", f"{line.confidence:.3f}"]
        rows.append([line.file, line.answer, exit_name(line.exit, net.num_exits), line.final, *numbers])
    count = f"{len(lines)} {net.input_spec.modality.plural}, {against}"
    title = f"{count}; what deserves a look first: {out / name_sheet(net)}"
    show(json_, {"explanations": [vars(line) for line in lines], "bad": samples.bad, "out": str(out)}, title, rows)


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
        raise xl.errors.InputError("full, quick: expected one of them at most, got both. Fix: leave one out.")
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
        pairs = zip(values["binding"], values["binding_another"], strict=True)
        rows.append([run, "binding at 20 % (another's map)", *[f"{share:.2f} ({other:.2f})" for share, other in pairs]])
        rows.append([run, "changed with the background", *[f"{share:.2f}" for share in values["cue_swap"]]])
        pairs = zip(values["deletion"], values["deletion_random"], strict=True)
        rows.append([run, "deletion drop (random)", *[f"{drop:.2f} ({random:.2f})" for drop, random in pairs]])
        shares = values["deletion_share"]
        rows.append([run, "share of the oracle's drop", *["" if share is None else f"{share:.2f}" for share in shares]])
    notes = []
    for name in ("batch_1", "batch_64"):
        s = result["speed"][name]
        line = f"{name.replace('_', ' size ')}: {s['speedup']:.2f} times as fast as the plain backbone, "
        change = f"{abs(100 * s['accuracy_drop']):.2f} points {'more' if s['accuracy_drop'] < 0 else 'less'} accurate"
        notes.append(f"{line}{change}, cost {s['cost']:.2f}")
    notes.append(f"Report: {out / 'report.html'}   bundle: {out / 'bundle'}   {result['seconds']:.0f} s")
    show(json_, result, "Explanation-Guided Training (egt) against the same exits without it (baseline)", rows, notes)


@verbs.command("app", epilog="Example: `exitlens app --bundle runs/demo --compare runs/demo/training/baseline`")
@takes(ReadSettings, {"Data": "data root"})
def explore(
    make_reading: Callable[..., ReadSettings],
    bundle: Bundle = Path("runs/demo"),
    compare: Compare = None,
    port: Annotated[int | None, Option(min=1, max=65535, help="Port on this machine (default: a free one).")] = None,
) -> None:
    """Open a local page on which to drop an image and watch the network decide (extra: app)."""
    from exitlens.delivery.explorer.core import Explorer
    from exitlens.delivery.explorer.interface import import_gradio, serve

    import_gradio()
    reading = make_reading()
    explorer = Explorer([bundle] if compare is None else [bundle, compare], reading.data, reading.root)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as on Ctrl-C, uploads are removed
    tell("Starting; Ctrl-C stops it.")
    serve(explorer, port=port, ready=lambda address: tell(f"Open {address}"))


@verbs.command(epilog="Example: `exitlens export --bundle runs/x --out edge`")
def export(
    bundle: Bundle,
    out: Annotated[Path, Option(help="Directory of the edge bundle.")],
    int8: Annotated[bool, Option("--int8", help="In 8-bit integers; the policy is calibrated again.")] = False,
    data: Annotated[str, of_data(help="With --int8: data that activations are measured with (default: the run's).")] = "",
    web: Annotated[bool, Option("--web", help="A folder with one page instead, which decides in the browser.")] = False,
    ort: Annotated[Path | None, Option(help="With --web: folder of onnxruntime-web (default: npm fetches it).")] = None,
    server: Annotated[
        str, Option("--for", help="A model for this server instead: triton, mlserver, kserve or bentoml.", metavar="SERVER")
    ] = "",
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an edge bundle that is there.")] = False,
    json_: Json = False,
    name: PolicyName = "",
) -> None:
    """Write an edge bundle: ONNX files that answer without PyTorch (`pip install exitlens-runtime`).

    The bundle's policies with a name go along (not with --int8 or --web); --policy names the one to answer by at first.
    With --int8 activations are measured on training data or on --data, and thresholds chosen on the calibration split.
    With --for, --bundle may be an edge bundle, too, and the name of --out is the model's in the server.
    """
    from exitlens.delivery.run_directory import load_calibrated, load_samples

    if server and (int8 or web):
        fix = "Fix: with --int8, export first and give that edge bundle as --bundle."
        raise xl.errors.InputError(f"for: a server's model is made of an edge bundle, not of --int8 or --web. {fix}")
    if server:
        _export_for(server, bundle, out, name, overwrite, json_)
        return
    if ort is not None and not web:
        raise xl.errors.InputError("ort: it is for the page. Fix: pass --web, too.")
    if data and not int8:
        raise xl.errors.InputError("data: activations are measured for int8 only. Fix: pass --int8, too.")
    if int8 and web:
        raise xl.errors.InputError("int8: the page runs in float32. Fix: leave --int8 or --web out.")
    (net, policy), named = load_calibrated(bundle, name), xl.load_policies(bundle)
    named.pop("default", None)
    if (int8 or web) and (others := [other for other in named if other != name]) and not json_:
        tell(f"without the policies {', '.join(others)}: it has one alone (--policy)")
    if int8:
        with wait(json_, "listing the data"):
            samples = load_samples(bundle, net, "train", ReadSettings(data))
            calibration = load_samples(bundle, net, "calibration")
        report = xl.export_int8(net, policy, out, samples, calibration, overwrite=overwrite, progress=not json_)
        rows = [["", *name_exits(net)]]
        rows.append(["same label as float32, %", *(f"{100 * share:.1f}" for share in report.agreement)])
        for name, values in (("accuracy, %", report.exit_accuracy), ("answers here, %", report.exit_shares)):
            for kind, shares in zip(("float32", "int8"), values or (), strict=False):
                rows.append([f"{name}, {kind}", *(f"{100 * value:.1f}" for value in shares)])
        title, promise = f"int8 edge bundle in {report.directory}, on the calibration samples", report.policy.certificate()
        told = report.to_dict() | {"bad": list_bad(samples, calibration)}
        show(json_, told, title, rows, [as_options(promise)])
        return
    with wait(json_, "exporting and comparing"):
        if web:
            from exitlens.edge.web import export_web

            directory = export_web(net, policy, out, ort=ort, overwrite=overwrite)
        else:
            directory = xl.export(net, policy, out, policies=named, overwrite=overwrite)
    _show_files(directory, "page" if web else "edge bundle", json_)


def _export_for(server: str, bundle: Path, out: Path, policy: str, overwrite: bool, json_: bool) -> None:
    """Write a model for a server from a bundle, a run or an edge bundle."""
    from exitlens.delivery.hub import fetch_bundle
    from exitlens.delivery.run_directory import load_calibrated
    from exitlens.edge.export import GOLDEN
    from exitlens.edge.packages import export_package, place_package
    from exitlens.types.tasks import refuse_task

    place_package(out, server, overwrite=overwrite)  # raises before the export, which takes its time
    with wait(json_, "exporting and comparing"), TemporaryDirectory() as folder:
        bundle = fetch_bundle(bundle)
        if not (bundle / GOLDEN).is_file():
            (net, chosen), named = load_calibrated(bundle, policy), xl.load_policies(bundle)
            refuse_task(net.info.task, "bundle: a package for another server")
            named.pop("default", None)
            bundle, policy = xl.export(net, chosen, Path(folder) / "edge", policies=named), "default"
        directory = export_package(bundle, out, server, policy=policy or "default", overwrite=overwrite)
    _show_files(directory, f"model for {server}", json_)


def _show_files(directory: Path, kind: str, json_: bool) -> None:
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in paths}
    rows = [["file", "MB"], *([file, f"{size / 1e6:.2f}"] for file, size in sizes.items())]
    show(json_, {"out": str(directory), "bytes": sizes}, f"{kind} in {directory}", rows)


@verbs.command(epilog="Example: `exitlens push runs/x user/name --private`")
def push(
    bundle: Annotated[Path, Argument(help="Run directory of `exitlens fit`, a bundle or an edge bundle.")],
    repo: Annotated[str, Argument(help="USER/NAME on the Hugging Face Hub, or USER/NAME@BRANCH.")],
    private: Annotated[bool | None, Option("--private/--public", help="Of a new repository.")] = None,
    message: Annotated[str, Option(help="Of the commit.")] = "",
    json_: Json = False,
) -> None:
    """Push a bundle with a model card to the Hugging Face Hub (extra `hub`); --bundle hf://USER/NAME then names it."""
    address = xl.push_to_hub(bundle, repo, private=private, message=message)
    title = f"{bundle} is on the Hub; this address names its present state for good"
    show(json_, {"address": address}, title, [["address"], [address]])


@verbs.command(epilog="Example: `exitlens serve --bundle runs/demo --port 8000`")
@takes(ServerSettings, {"Server": "host port workers tls_cert tls_key reload_seconds access_log"})
@takes(Batching, {"Batching": "threads batch max_delay_ms max_waiting max_wait_ms"})
@takes(Limits, {"Limits of requests": "max_body_mb max_pixels max_batch max_connections"})
@takes(Watching, {"Watching": "drift unready_on_drift shadow"})
@takes(Adapting, {"Thresholds that adapt": "adapt loss audit warm_up state propose"})
def serve(
    bundle: Annotated[
        list[str], Option(help="A bundle, run or edge bundle; also hf://USER/NAME; NAME=DIR names it. Once for each model.")
    ],
    make_server: Callable[..., ServerSettings],
    make_batching: Callable[..., Batching],
    make_limits: Callable[..., Limits],
    make_watching: Callable[..., Watching],
    make_adapting: Callable[..., Adapting],
    timeout: Annotated[float, of_limits(help="Seconds for one request.")] = 30.0,
    token_file: Annotated[Path | None, of_limits(help="A file with the token of clients (Authorization: Bearer).")] = None,
) -> None:
    """Answer over HTTP: Open Inference Protocol v2, /classify and /explain; a page at / (extra `serve`)."""
    from exitlens.serving.server import serve as run

    run(
        make_server(
            bundles=name_bundles(bundle),
            batching=make_batching(),
            watching=make_watching(),
            adapting=make_adapting(),
            limits=make_limits(request_seconds=timeout, token=read_token(token_file)),
        )
    )


@verbs.command(epilog="Example: `exitlens replay --log adapting --bundle runs/x --out day.svg`")
def replay(
    log: Annotated[Path, Option(help="Folder that was given to --state.")],
    bundle: Bundle,
    since: Annotated[datetime | None, Option(help="Use only what was logged at or after this time (UTC).")] = None,
    until: Annotated[datetime | None, Option(help="Use only what was logged at or before this time (UTC).")] = None,
    out: Annotated[
        Path | None, Option(help="Picture of cost, other answers and thresholds over time (.svg, .png, .pdf).")
    ] = None,
    json_: Json = False,
) -> None:
    """Compare the bundle's policies on the observed samples of a journal: what each would have cost and changed.

    Observed samples are those that reached the final exit; weighted by the chance of it, they stand for all. Policies whose
    scores were not logged are left out.
    """
    from exitlens.delivery import replay as replays
    from exitlens.delivery.plans import check_picture
    from exitlens.io import make_directory
    from exitlens.serving.models import open_bundle

    if out is not None:
        check_picture(out)
    model = open_bundle("model", bundle)
    first = -math.inf if since is None else since.replace(tzinfo=UTC).timestamp()
    last = math.inf if until is None else until.replace(tzinfo=UTC).timestamp()
    read = replays.read_log(replays.find_journal(log, model.version), first, last)
    rows = replays.replay(read, model.policies, model.cost)
    if out is not None:
        make_directory(out.parent, "out")
        replays.draw_course(replays.summarize_course(read, model.policies, model.cost)).savefig(out)
    left_out = [name for name, policy in model.policies.items() if not replays.compares_logged_scores(policy, read)]
    notes = [f"policies whose scores were not logged: {', '.join(left_out)}"] if left_out else []
    values = {"observed": len(read), "limit": read.facts["limit"], "rows": [row.to_dict() for row in rows]}
    show(json_, values, f"{len(read):,} observed samples", replays.tabulate_replay(rows, read.facts["loss"]), notes)


def read_token(path: Path | None) -> str:
    """Return the token in a file, or an empty one."""
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise xl.errors.InputError(f"token_file: {path} cannot be read ({error})") from error
    if not token:
        raise xl.errors.InputError(f"token_file: {path} is empty. Fix: write the token into it.")
    return token


if TYPE_CHECKING:
    from exitlens.data.splits import Split
    from exitlens.delivery.predictions import Row
    from exitlens.model.cutting.placement import Placement
    from exitlens.types.inputs import Inputs


@verbs.command(epilog="Example: `exitlens inspect --backbone timm:resnet18 --size 224`")
def inspect(
    backbone: Annotated[str, Option(help=BACKBONES)],
    size: Annotated[int, Option(min=0, help="Pixels, height and width (0: 224); tokens of a text (0: 64).")] = 0,
    channels: Annotated[int, Option(min=1, max=3, help="1 for grey images, 3 for colour.")] = 3,
    exits: Annotated[int, Option(min=1, help="Mark the places that this many early exits would get.")] = 3,
    json_: Json = False,
) -> None:
    """List the places an exit can go, with the share of multiply-accumulates (cost) and of measured time up to there."""
    from exitlens.model.backbones.build import make_example
    from exitlens.model.cutting.placement import PLACEMENTS, choose_points

    plain = xl.build_backbone(backbone, 1000, channels)
    points = xl.list_exit_candidates(plain, make_example(plain, channels, size))
    if not points:
        raise xl.errors.AttachError(f"backbone: {backbone} has no place after which the rest needs one map or sequence only")
    choices: dict[Placement, list[str]] = {}
    for placement in PLACEMENTS:
        choices[placement] = []
        with suppress(xl.errors.AttachError):  # so many exits do not fit
            choices[placement] = choose_points(points, exits, placement)
    chosen_by = [[by for by in PLACEMENTS if p.name in choices[by]] for p in points]
    rows = [["exit after", "million MACs", "cost %", "time %", "features", f"{exits} chosen by"]]
    for p, by in zip(points, chosen_by, strict=True):
        shape = "x".join(map(str, p.shape))
        shares = [f"{100 * p.cost:.1f}", f"{100 * p.time_share:.1f}"]
        rows.append([p.name, f"{p.macs / 1e6:.1f}", *shares, shape, ", ".join(by)])
    listed = [p.to_dict() | {"chosen_by": by} for p, by in zip(points, chosen_by, strict=True)]
    title = f"{backbone}{f', size {size}' if size else ''}{'' if choices['cost'] else f': {exits} exits do not fit'}"
    show(json_, {"backbone": backbone, "exits": exits, "points": listed}, title, rows)


@verbs.command(epilog="Example: `exitlens tune --bundle runs/x`")
@takes(ReadSettings, {"Data": "data root"})
def tune(
    bundle: OwnBundle,
    make_reading: Callable[..., ReadSettings],
    precision: Annotated[str, Option(help="auto (bfloat16 if faster with equal decisions), float32 or bfloat16.")] = "auto",
    backend: Annotated[str, Option(help="auto (ONNX Runtime where it is installed and faster), torch or onnx.")] = "auto",
    samples: Annotated[int, Option(min=1, help="Calibration samples to judge bfloat16 by.")] = 1024,
    json_: Json = False,
) -> None:
    """Find how the network runs fastest on this machine (a few seconds), and store that in the bundle.

    If that changes the precision, the policies are left out: calibrate again, on what the network says then.
    """
    from exitlens.delivery.bundle import replace_network

    (net, policy), policies = xl.load(bundle), xl.load_policies(bundle)
    before = net.tuning.precision
    example = _draw_inputs(bundle, net, "calibration", samples, make_reading())
    tuning = net.tune(example, policy=policy, precision=precision, backend=backend)  # type: ignore[arg-type]
    dropped = [] if tuning.precision == before else list(policies)
    replace_network(bundle, net, {} if dropped else policies)
    rows = [["backend", "micro-batch", "memory format", "precision", "folded", "threads", "memory kept", "ms/sample"]]
    for tried in tuning.measured["ms_per_sample"]:
        chosen = "*" if all(tried[name] == value for name, value in tuning.to_dict().items() if name in tried) else ""
        words = ["channels_last" if tried["channels_last"] else "as it is", tried["precision"]]
        flags = ["yes" if tried[name] else "no" for name in ("folded", "keep_memory")]
        threads = str(tried["threads"] or "all")
        rows.append(
            [tried["backend"], f"{tried['micro_batch']}{chosen}", *words, flags[0], threads, flags[1], f"{tried['ms']:.3f}"]
        )
    names = "its policy was" if dropped == ["default"] else f"its policies ({', '.join(dropped)}) were"
    notes = [f"it runs in {tuning.precision} now, {names} for {before}: calibrate again"] if dropped else []
    show(json_, tuning.to_dict() | {"policy_kept": not dropped}, "settings tried; * is stored with the bundle", rows, notes)


@verbs.command(epilog="Example: `exitlens bench --bundle runs/demo --batch-sizes 1,32`")
@takes(ReadSettings, {"Data": "data root"})
def bench(
    bundle: Bundle,
    make_reading: Callable[..., ReadSettings],
    batch_sizes: Annotated[str, Option(help="Samples in a call, comma-separated.")] = "1,8,32",
    samples: Annotated[int, Option(min=1, help="Test samples to use (repeated where a batch needs more).")] = 256,
    rounds: Annotated[int, Option(min=1, help="Rounds at least; medians are reported.")] = 7,
    seconds: Annotated[float, Option(min=0, help="Seconds at least for each batch size.")] = 5.0,
    threads: Annotated[int, Option(min=0, help="Processors to pin to (0: as the process is).")] = 0,
    compiled: Annotated[bool, Option("--compile", help="Also compiled stages and backbone (a minute, needs g++).")] = False,
    out: Annotated[Path | None, Option(help="Also write everything to this new JSON file.")] = None,
    json_: Json = False,
    name: PolicyName = "",
) -> None:
    """Time adaptive inference against the plain backbone, in turn, in one process, with the ideal saving beside it."""
    from exitlens.delivery.benchmark import Bench, pin_threads, tabulate
    from exitlens.delivery.run_directory import load_calibrated
    from exitlens.io import write_json
    from exitlens.model.backbones.build import rebuild_backbone
    from exitlens.model.timing import describe_machine

    words = batch_sizes.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise xl.errors.InputError(f"--batch-sizes: expected whole numbers above 0 such as 1,64, got {batch_sizes!r}")
    if out is not None and out.exists():
        raise xl.errors.OutputExistsError(f"out: {out} exists. Fix: choose another file.")
    net, policy = load_calibrated(bundle, name)
    if not net.info.source:
        raise xl.errors.BundleError(
            "bundle: it holds a module of your own. Fix: time it in Python (exitlens.delivery.benchmark)."
        )
    inputs = _draw_inputs(bundle, net, "test", samples, make_reading())
    with pin_threads(threads) if threads else nullcontext():
        run = Bench(rebuild_backbone(net.info), net, inputs, policy, compiled=compiled)
        batches = []
        with show_progress(not json_, console) as bar:
            for size in map(int, words):
                task = bar.add_task(f"timing calls of {size}", total=None)
                batches.append(run.run(size, rounds=rounds, seconds=seconds))
                bar.remove_task(task)
        facts = describe_machine(threads)
        values = {"machine": facts, "tuned": net.is_tuned, "tuning": net.tuning.to_dict(), "batches": batches}
    if out is not None:
        write_json(out, values)
    if json_:
        show(True, values)
        return
    for batch in batches:
        show(False, {}, f"calls of {batch['batch']}: median of {batch['rounds']} rounds", tabulate(batch))
    state = "tuned" if net.is_tuned else "not tuned, runs as suits most networks of its kind: see exitlens tune"
    tell(f"{facts['threads']} threads; {state}")


def _draw_inputs(bundle: Path, net: xl.ExitNet, split: Split, count: int, reading: ReadSettings) -> Inputs:
    from exitlens.delivery.run_directory import load_samples
    from exitlens.types.inputs import draw_samples

    data_set = load_samples(bundle, net, split, reading)  # folders are in the order of their classes
    return data_set.subset(draw_samples(len(data_set), count)).inputs
