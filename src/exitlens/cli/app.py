"""The verb that opens the explorer."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

from typer import Option

from exitlens.cli.options import Bundle, Compare, OtherData, Root, tell, verbs


@verbs.command("app", epilog="Example: `exitlens app --bundle runs/demo --compare runs/demo/training/baseline`")
def explore(
    bundle: Bundle = Path("runs/demo"),
    compare: Compare = None,
    data: OtherData = "",
    root: Root = "",
    port: Annotated[int | None, Option(min=1, max=65535, help="Port on this machine (default: a free one).")] = None,
) -> None:
    """Open a local page on which to drop an image and watch the network decide (extra: app)."""
    from exitlens.delivery.explorer.app import import_gradio, serve
    from exitlens.delivery.explorer.core import Explorer

    import_gradio()
    explorer = Explorer([bundle] if compare is None else [bundle, compare], data, root)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as on Ctrl-C, uploads are removed
    tell("Starting; Ctrl-C stops it.")
    serve(explorer, port=port, ready=lambda address: tell(f"Open {address}"))
