"""The verb export: a bundle as ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

import exitlens as xl
from exitlens.cli.options import Bundle, Json, show, verbs, wait


@verbs.command(epilog="Example: `exitlens export --bundle runs/x --out edge`")
def export(
    bundle: Bundle,
    out: Annotated[Path, Option(help="Directory of the edge bundle.")],
    web: Annotated[
        bool, Option("--web", help="A folder with one page instead: the network decides in the browser.")
    ] = False,
    ort: Annotated[
        Path | None, Option(help="With --web: folder with the files of onnxruntime-web (default: npm fetches them).")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an edge bundle that is there.")] = False,
    json_: Json = False,
) -> None:
    """Write an edge bundle: ONNX files that answer without PyTorch (`pip install exitlens-runtime`)."""
    from exitlens.delivery.run_directory import load_calibrated

    if ort is not None and not web:
        raise xl.InputError("ort: it is for the page: give --web, too")
    net, policy = load_calibrated(bundle)
    with wait(json_, "exporting and comparing"):
        if web:
            from exitlens.edge.web import export_web

            directory = export_web(net, policy, out, ort=ort, overwrite=overwrite)
        else:
            directory = xl.export(net, policy, out, overwrite=overwrite)
    files = sorted(directory.iterdir())
    rows = [["file", "MB"], *([path.name, f"{path.stat().st_size / 1e6:.2f}"] for path in files)]
    sizes = {path.name: path.stat().st_size for path in files}
    show(json_, {"out": str(directory), "bytes": sizes}, f"{'page' if web else 'edge bundle'} in {directory}", rows)
