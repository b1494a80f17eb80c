"""The verb export: a bundle as ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

import exitlens as xl
from exitlens.cli.options import (
    Bundle,
    Json,
    PolicyName,
    as_options,
    list_bad,
    name_exits,
    of_data,
    show,
    show_skipped,
    tell,
    verbs,
    wait,
)


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
    from exitlens.delivery.run_directory import load_calibrated, load_named

    if ort is not None and not web:
        raise xl.InputError("ort: it is for the page: give --web, too")
    if data and not int8:
        raise xl.InputError("data: activations are measured for int8 only: give --int8, too")
    if int8 and web:
        raise xl.InputError("int8: the page runs in float32: leave --int8 or --web out")
    (net, policy), named = load_calibrated(bundle, name), load_named(bundle)
    if (int8 or web) and (left := [one for one in named if one != name]) and not json_:
        tell(f"without the policies {', '.join(left)}: it has one alone (--policy)")
    if int8:
        _export_int8(net, policy, bundle, out, data, overwrite, json_)
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


def _export_int8(
    net: xl.ExitNet, policy: xl.Policy, bundle: Path, out: Path, data: str, overwrite: bool, json_: bool
) -> None:
    from exitlens.delivery.run_directory import load_samples
    from exitlens.types.settings import ReadSettings

    with wait(json_, "listing the data"):
        samples, calibration = (
            load_samples(bundle, net, "train", ReadSettings(data)),
            load_samples(bundle, net, "calibration"),
        )
    found = xl.export_int8(net, policy, out, samples, calibration, overwrite=overwrite, progress=not json_)
    rows = [["", *name_exits(net)]]
    rows.append(["same label as float32, %", *(f"{100 * share:.1f}" for share in found.agreement)])
    for name, values in (("accuracy, %", found.exit_accuracy), ("answers here, %", found.exit_shares)):
        for kind, one in zip(("float32", "int8"), values or (), strict=False):
            rows.append([f"{name}, {kind}", *(f"{100 * value:.1f}" for value in one)])
    show(json_, found.to_dict(), f"int8 edge bundle in {found.directory}, on the calibration samples", rows)
    if not json_:
        tell(as_options(found.policy.certificate()))
    show_skipped(json_, list_bad(samples, calibration))
