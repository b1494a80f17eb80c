"""export_web: write a static folder with a page on which the network answers in the browser, without any request."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from exitlens.edge import export
from exitlens.errors import ExportError, InputError, require
from exitlens.io import write_json, write_manifest
from exitlens.model.network import ExitNet
from exitlens.types import Policy
from exitlens.types.preprocessing import Preprocess
from exitlens.types.tasks import count_answers

VERSION = "1.30.0"  # of onnxruntime-web
FILES = {  # in its folder dist, with their SHA-256
    "ort.wasm.min.js": "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
PAGE = ("index.html", "page.css", "page.js", "pixels.js")
NETWORK = "network.json"


def export_web(
    net: ExitNet,
    policy: Policy,
    directory: str | Path,
    *,
    ort: str | Path | None = None,
    examples: Sequence[str | Path] = (),
    overwrite: bool = False,
) -> Path:
    """Write a folder for any web server: a page that takes pictures, the network, and ONNX Runtime's WebAssembly.

    Args:
        net: a network for images, in float32, with preprocessing (``net.describe(preprocess=...)``).
        policy: a policy of this network, without a gate.
        directory: a new directory; it appears complete or not at all.
        ort: a folder with the files of ``onnxruntime-web`` (its ``dist``); by default ``npm`` fetches the package.
        examples: image files that visitors can click, all with different names.
        overwrite: replace an earlier export.

    Raises:
        ExportError: if the network or policy does not fit, or files of onnxruntime-web are missing or of another
            version; also the errors of :func:`exitlens.export`.

    Examples:
        >>> xl.export_web(net, policy, "site", ort="package/dist")  # without ort=, npm fetches it
        Traceback (most recent call last):
        exitlens.errors.ExportError: ...
    """
    require(ort, str | Path | None, "ort")
    export.check_arguments(net, policy, directory)
    if not isinstance(net.info.preprocess, Preprocess):
        raise ExportError("net: the page has to know how pictures become inputs. Fix: call net.describe(preprocess=...).")
    if net.info.task == "multilabel":
        raise ExportError("net: the page does not show several labels of a picture. Fix: use xl.export.")
    pictures = _check_examples(examples)
    with tempfile.TemporaryDirectory() as folder, export.open_target(directory, overwrite) as temporary:
        runtime = find_runtime(Path(folder)) if ort is None else Path(ort)
        for name, checksum in FILES.items():
            path = runtime / name
            if not path.is_file():
                raise ExportError(f"ort: expected the folder dist of onnxruntime-web {VERSION}, but {path} is missing")
            if hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
                raise ExportError(f"ort: {path} is not of onnxruntime-web {VERSION} (its checksum differs)")
            shutil.copyfile(path, temporary / name)
        for picture in pictures:
            shutil.copyfile(picture, temporary / picture.name)
        for name in PAGE:
            (temporary / name).write_bytes(resources.files("exitlens.edge").joinpath("site", name).read_bytes())
        parts = export.write_stages(Path(folder), net, policy)
        export.write_checked_cascade(temporary / export.CASCADE, net, policy, parts)
        described = {
            "input": export.name_inputs(net)[0],
            "classes": list(net.info.classes),
            "answers": count_answers(net.info.task, net.info.num_classes).capitalize(),
            "num_exits": net.num_exits,
            "task": net.info.task,
            "exits": [part.exit for part in parts],
            "preprocess": net.info.preprocess.to_dict(),
            "examples": [picture.name for picture in pictures],
        }
        values = policy.to_dict()
        described |= {name: values[name] for name in ("thresholds", "temperatures", "score")}
        write_json(temporary / NETWORK, described)
        files = [temporary / name for name in (*FILES, *PAGE, export.CASCADE, NETWORK, *(path.name for path in pictures))]
        facts = {"segments": [part.exit for part in parts], "network": net.fingerprint()}
        write_manifest(temporary / export.MANIFEST, files, facts)
    return Path(directory).resolve()


def find_runtime(folder: Path) -> Path:
    """Fetch ``onnxruntime-web`` into ``folder`` with npm and return its ``dist``; raise :class:`ExportError` on failure."""
    fix = f"Fix: pass a folder with its files (--ort): `npm pack onnxruntime-web@{VERSION}`, unpacked, package/dist."
    try:
        words = ["npm", "pack", f"onnxruntime-web@{VERSION}", "--silent", "--pack-destination", str(folder)]
        subprocess.run(words, check=True, capture_output=True, text=True, cwd=folder)
        with tarfile.open(next(folder.glob("onnxruntime-web-*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
    except FileNotFoundError as error:
        raise ExportError(f"ort: npm, which fetches onnxruntime-web, is not installed. {fix}") from error
    except (subprocess.CalledProcessError, StopIteration, tarfile.TarError, OSError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()[-200:]
        raise ExportError(f"ort: npm cannot fetch onnxruntime-web ({reason}). {fix}") from error
    return folder / "package" / "dist"


def _check_examples(examples: Sequence[str | Path]) -> list[Path]:
    """Return the files; raise :class:`InputError` unless each can be copied into the folder."""
    if isinstance(examples, str) or not isinstance(examples, Sequence):
        raise InputError(f"examples: expected a list of image files, got {examples!r:.60}")
    paths = [Path(path) for path in examples]
    taken = [*FILES, *PAGE, export.CASCADE, NETWORK, export.MANIFEST]
    for path in paths:
        if not path.is_file():
            raise InputError(f"examples: expected image files, got {path}, which does not exist")
        if path.name in taken:
            raise InputError(f"examples: the folder has another file {path.name}. Fix: rename {path}.")
        taken.append(path.name)
    return paths
