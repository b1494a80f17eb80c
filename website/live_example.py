"""Puts the live example together: the page of ``exitlens export --web``, a small trained network, scenes, onnxruntime-web.

onnxruntime-web is fetched once, when `make docs` sets itself up (python -m website.live_example), into .venv/onnxruntime-web
or the folder that EXITLENS_ORT names. Without it the start page shows a picture instead and says so.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from exitlens.edge.web import FILES, PAGE, find_runtime
from exitlens.errors import ExportError

ROOT = Path(__file__).parent.parent
NETWORK = ROOT / "website" / "live"  # written by scripts/train_live_example.py
EITHER = re.compile(r"<!-- live: (with|without) -->\n(.*?)<!-- end of live -->\n", re.S)


def locate_runtime() -> Path:
    return Path(os.environ.get("EXITLENS_ORT", ROOT / ".venv" / "onnxruntime-web"))


def is_there() -> bool:
    """Return whether the version of onnxruntime-web that the page was tested with was fetched."""
    paths = {locate_runtime() / name: digest for name, digest in FILES.items()}
    return all(path.is_file() and sha256(path.read_bytes()).hexdigest() == digest for path, digest in paths.items())


def on_files(files: Files, *, config: Any) -> Files:
    if is_there():
        sources = [locate_runtime() / name for name in FILES]
        sources += [ROOT / "src" / "exitlens" / "edge" / "site" / name for name in PAGE]
        sources += [path for path in sorted(NETWORK.iterdir()) if path.suffix != ".txt"]
        for source in sources:
            files.append(File.generated(config, f"live/{source.name}", abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    wanted = "with" if is_there() else "without"
    markdown = markdown.replace("<!-- live: scenes -->", write_scenes())
    markdown = EITHER.sub(lambda match: match[2] if match[1] == wanted else "", markdown)
    return markdown.replace("<!-- live: certificate -->", (NETWORK / "certificate.txt").read_text().strip())


def write_scenes() -> str:
    """Buttons for the scenes, and the place where assets/live.js puts the network's page."""
    scenes = [path.name for path in sorted(NETWORK.glob("*.png"))]
    pictures = [f'<img src="live/{name}" alt="Scene {i}" width="72" height="72">' for i, name in enumerate(scenes, 1)]
    buttons = [
        f'<button type="button" data-scene="{name}">{img}</button>' for name, img in zip(scenes, pictures, strict=True)
    ]
    return f'<p class="scenes">{"".join(buttons)}</p>\n<div class="live" hidden></div>'


def main() -> None:
    """Fetches onnxruntime-web; where that fails, says so and what it means."""
    if is_there():
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            runtime = find_runtime(Path(folder))
        except ExportError as error:
            print(f"The start page will show a picture in place of the live example: {error}")
            return
        locate_runtime().mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(runtime / name, locate_runtime() / name)


if __name__ == "__main__":
    main()
