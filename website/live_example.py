"""Puts the live example together: the page of ``exitlens export --web``, a small trained network, six scenes, onnxruntime-web.

onnxruntime-web is fetched once, when `make docs` sets itself up, into the folder that EXITLENS_ORT names. Without it the start
page shows a picture instead and says so.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from exitlens.edge.web import FILES, PAGE
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
NETWORK = ROOT / "website" / "live"
EITHER = re.compile(r"<!-- live: (with|without) -->\n(.*?)<!-- end of live -->\n", re.S)


def find_runtime() -> Path | None:
    """Where onnxruntime-web was put, if it is whole."""
    folder = Path(os.environ.get("EXITLENS_ORT", ROOT / ".venv" / "onnxruntime-web"))
    return folder if all((folder / name).is_file() for name in FILES) else None


def on_files(files: Files, *, config: Any) -> Files:
    runtime = find_runtime()
    if runtime is None:
        return files
    sources = [runtime / name for name in FILES] + [ROOT / "src" / "exitlens" / "edge" / "site" / name for name in PAGE]
    for source in [*sources, *sorted(NETWORK.iterdir())]:
        files.append(File.generated(config, f"live/{source.name}", abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    wanted = "without" if find_runtime() is None else "with"
    return EITHER.sub(lambda found: found[2] if found[1] == wanted else "", markdown)
