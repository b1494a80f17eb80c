"""exitlens-run: answer image files or texts from the command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import exitlens_runtime
from exitlens_runtime.errors import ExitlensRuntimeError, InputError
from exitlens_runtime.reading import FORMATS
from exitlens_runtime.sessions import BACKENDS

EXIT_CODES = "exit codes: 0: all files were answered; 1: some files could not be read, all others were answered; 2: error"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each sample; files that cannot be read are reported on standard error and skipped."""
    parser = argparse.ArgumentParser(
        prog="exitlens-run", description="Classify files with an edge bundle, without PyTorch.", epilog=EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {exitlens_runtime.__version__}")
    parser.add_argument("bundle", type=Path, help="directory that exitlens export wrote, or hf://USER/NAME")
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="image files, folders of them, or (with --text) texts")
    parser.add_argument("--text", action="store_true", help="treat the inputs as texts")
    parser.add_argument("--policy", help="name of a policy in the bundle, or path of a policy.json for the same network")
    parser.add_argument("--explain", action="store_true", help="show where the exit that answered looked")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each sample")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="engine that runs the files")
    parser.add_argument("--threads", type=int, default=0, help="number of threads (default: one for each processor)")
    options = parser.parse_args(arguments)
    try:
        failed = _run(options)
    except BrokenPipeError:  # the reader has closed standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except ExitlensRuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if failed:
        print(f"{failed} of the files could not be read", file=sys.stderr)
        raise SystemExit(1)


def _run(options: argparse.Namespace) -> int:
    """Print all answers; return the number of files that could not be read."""
    from exitlens_runtime.bundle import load

    failed: list[str] = []

    def report(path: str | Path, error: InputError) -> None:
        failed.append(str(path))
        print(f"error: {error}", file=sys.stderr)
        if options.json:
            print(json.dumps({"input": str(path), "error": str(error)}), flush=True)

    net = load(options.bundle, policy=options.policy, backend=options.backend, threads=options.threads)
    if options.text:
        names, predictions = list(options.inputs), iter([net.predict_texts(options.inputs, attention=options.explain)])
    else:
        names = list_files(options.inputs)
        predictions = net.predict_files(names, attention=options.explain, on_error=report)
    for pred in predictions:
        assert pred.index is not None
        for i, place in enumerate(pred.index.tolist()):
            row: dict[str, Any] = {"input": names[place], "label": net.name_answer(pred, i), "exit": int(pred.exits[i])}
            row |= {"confidence": round(float(pred.confidence[i]), 6), "reason": net.give_reason(pred, i)}
            if pred.trust is not None and pred.refused is not None:
                row |= {"trust": round(float(pred.trust[i]), 6), "refused": int(pred.refused[i])}
            lines = [f"{row['input']}: {row['label']} at exit {row['exit']}: {row['reason']}"]
            if pred.attention is not None:
                row["attention"] = pred.attention[i].round(6).tolist()
                lines += draw(row["attention"])
            print(json.dumps(row) if options.json else "\n".join(lines), flush=True)
    return len(failed)


def list_files(inputs: Sequence[str]) -> list[str]:
    """Return the files, and the images in folders sorted by name."""
    files: list[str] = []
    suffixes = {f".{name.lower()}" for name in FORMATS} | {".jpg", ".tif", ".pgm"}
    for name in inputs:
        if not name:
            raise InputError("FILE: expected files or folders, got an empty name. Fix: check for an unset variable.")
        if not Path(name).is_dir():
            files.append(name)
            continue
        inside = sorted(str(path) for path in Path(name).rglob("*") if path.suffix.lower() in suffixes)
        if not inside:
            raise InputError(f"{name}: expected a folder with images, got one without any")
        files += inside
    return files


def draw(attention: list[Any]) -> list[str]:
    """Return a map as lines of characters, the darkest where it is largest."""
    rows = attention if attention and isinstance(attention[0], list) else [attention]
    top = max(max(row) for row in rows) or 1.0
    return ["  " + "".join(" .:-=+*#%@"[min(9, int(10 * value / top))] * 2 for value in row) for row in rows]
