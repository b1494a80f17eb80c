"""Verbs that show a network and hand it out: demo, app, export, serve."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from typer import Option

import exitlens as xl
from exitlens.cli.options import (
    Bundle,
    Compare,
    Json,
    OtherData,
    PolicyName,
    Root,
    as_options,
    console,
    list_bad,
    name_exits,
    of_data,
    show,
    show_skipped,
    takes,
    tell,
    verbs,
    wait,
)
from exitlens.progress import print_line
from exitlens.serving.settings import Batching, Limits, ServerSettings, Watching, name_bundles
from exitlens.types.settings import ReadSettings


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


@verbs.command("app", epilog="Example: `exitlens app --bundle runs/demo --compare runs/demo/training/baseline`")
def explore(
    bundle: Bundle = Path("runs/demo"),
    compare: Compare = None,
    data: OtherData = "",
    root: Root = "",
    port: Annotated[int | None, Option(min=1, max=65535, help="Port on this machine (default: a free one).")] = None,
) -> None:
    """Open a local page on which to drop an image and watch the network decide (extra: app)."""
    from exitlens.delivery.explorer.core import Explorer
    from exitlens.delivery.explorer.interface import import_gradio, serve

    import_gradio()
    explorer = Explorer([bundle] if compare is None else [bundle, compare], data, root)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as on Ctrl-C, uploads are removed
    tell("Starting; Ctrl-C stops it.")
    serve(explorer, port=port, ready=lambda address: tell(f"Open {address}"))


@verbs.command(epilog="Example: `exitlens export --bundle runs/x --out edge`")
def export(
    bundle: Bundle,
    out: Annotated[Path, Option(help="Directory of the edge bundle.")],
    int8: Annotated[bool, Option("--int8", help="In 8-bit integers; the policy is calibrated again.")] = False,
    data: Annotated[str, of_data(help="With --int8: data that activations are measured with (default: the run's).")] = "",
    web: Annotated[
        bool, Option("--web", help="A folder with one page instead: the network decides in the browser.")
    ] = False,
    ort: Annotated[
        Path | None, Option(help="With --web: folder with the files of onnxruntime-web (default: npm fetches them).")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an edge bundle that is there.")] = False,
    json_: Json = False,
    name: PolicyName = "",
) -> None:
    """Write an edge bundle: ONNX files that answer without PyTorch (`pip install exitlens-runtime`).

    The bundle's policies with a name go along (not with --int8 or --web); --policy names the one to answer by at first.
    With --int8 activations are measured on training data or on --data, and thresholds chosen on the calibration split.
    """
    from exitlens.delivery.run_directory import load_calibrated, load_named, load_samples

    if ort is not None and not web:
        raise xl.errors.InputError("ort: it is for the page. Fix: pass --web, too.")
    if data and not int8:
        raise xl.errors.InputError("data: activations are measured for int8 only. Fix: pass --int8, too.")
    if int8 and web:
        raise xl.errors.InputError("int8: the page runs in float32. Fix: leave --int8 or --web out.")
    (net, policy), named = load_calibrated(bundle, name), load_named(bundle)
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
        show(json_, report.to_dict(), f"int8 edge bundle in {report.directory}, on the calibration samples", rows)
        if not json_:
            tell(as_options(report.policy.certificate()))
        show_skipped(json_, list_bad(samples, calibration))
        return
    with wait(json_, "exporting and comparing"):
        if web:
            from exitlens.edge.web import export_web

            directory = export_web(net, policy, out, ort=ort, overwrite=overwrite)
        else:
            directory = xl.export(net, policy, out, policies=named, overwrite=overwrite)
    files = sorted(directory.iterdir())
    rows = [["file", "MB"], *([path.name, f"{path.stat().st_size / 1e6:.2f}"] for path in files)]
    sizes = {path.name: path.stat().st_size for path in files}
    show(json_, {"out": str(directory), "bytes": sizes}, f"{'page' if web else 'edge bundle'} in {directory}", rows)


@verbs.command(epilog="Example: `exitlens serve --bundle runs/demo --port 8000`")
@takes(ServerSettings, {"Server": "host port workers tls_cert tls_key reload_seconds access_log"})
@takes(Batching, {"Batching": "threads batch max_delay_ms max_waiting max_wait_ms"})
@takes(Limits, {"Limits of requests": "max_body_mb max_pixels max_batch max_connections"})
@takes(Watching, {"Watching": "drift unready_on_drift shadow"})
def serve(
    bundle: Annotated[
        list[str],
        Option(help="A bundle, run directory or edge bundle; NAME=DIR names the model. As often as there are models."),
    ],
    server: Callable[..., ServerSettings],
    batching: Callable[..., Batching],
    limits: Callable[..., Limits],
    watching: Callable[..., Watching],
    timeout: Annotated[float, Option(help="Seconds for one request.", rich_help_panel="Limits of requests")] = 30.0,
    token_file: Annotated[
        Path | None,
        Option(
            help="A file with the token that clients must send (Authorization: Bearer).",
            rich_help_panel="Limits of requests",
        ),
    ] = None,
) -> None:
    """Answer over HTTP: Open Inference Protocol v2, /classify and /explain; a page at / (extra `serve`)."""
    from exitlens.serving.server import serve as run

    run(
        server(
            bundles=name_bundles(bundle),
            batching=batching(),
            watching=watching(),
            limits=limits(request_seconds=timeout, token=read_token(token_file)),
        )
    )


def read_token(path: Path | None) -> str:
    """Return the token in a file; empty if none is wanted."""
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise xl.errors.InputError(f"token_file: {path} cannot be read ({error})") from error
    if not token:
        raise xl.errors.InputError(f"token_file: {path} is empty. Fix: write the token into it.")
    return token
