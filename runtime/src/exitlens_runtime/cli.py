"""exitlens-run: answers image files or texts from the command line."""

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each sample; an error of ours becomes one line on standard error, with exit code 2."""
    parser = argparse.ArgumentParser(prog="exitlens-run", description="Answers with an edge bundle, without PyTorch.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {exitlens_runtime.__version__}")
    parser.add_argument("bundle", type=Path, help="what exitlens export wrote")
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="image files, folders of them, or (with --text) texts")
    parser.add_argument("--text", action="store_true", help="the inputs are texts")
    parser.add_argument("--policy", help="one of the bundle's policies by name, or another policy.json of the same network")
    parser.add_argument("--explain", action="store_true", help="show where the exit that answered looked")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each sample")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="what runs the files")
    parser.add_argument("--threads", type=int, default=0, help="that one call uses (default: all processors)")
    given = parser.parse_args(arguments)
    try:
        _run(given)
    except BrokenPipeError:  # whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except ExitlensRuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(given: argparse.Namespace) -> None:
    from exitlens_runtime.bundle import load

    net = load(given.bundle, policy=given.policy, backend=given.backend, threads=given.threads)
    if given.text:
        names, predictions = list(given.inputs), iter([net.predict_texts(given.inputs, attention=given.explain)])
    else:
        names = list_files(given.inputs)
        predictions = net.predict_files(names, attention=given.explain)
    done = 0
    for found in predictions:
        for i in range(len(found)):
            row: dict[str, Any] = {"input": names[done], "label": net.name_answer(found, i), "exit": int(found.exits[i])}
            row |= {"confidence": round(float(found.confidence[i]), 6), "reason": net.give_reason(found, i)}
            if found.attention is not None:
                row["attention"] = found.attention[i].round(6).tolist()
            print(json.dumps(row) if given.json else _write_row(row), flush=True)
            done += 1


def list_files(inputs: Sequence[str]) -> list[str]:
    """Files as they are; of folders the images in them, by name."""
    found: list[str] = []
    suffixes = {f".{name.lower()}" for name in FORMATS} | {".jpg", ".tif", ".pgm"}
    for one in inputs:
        if not one:
            raise InputError("FILE: expected files or folders, got an empty name (an unset variable?): name one")
        path = Path(one)
        if not path.is_dir():
            found.append(one)
            continue
        inside = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in suffixes)
        if not inside:
            raise InputError(f"{one}: expected images in this folder, found none")
        found += inside
    return found


def _write_row(row: dict[str, Any]) -> str:
    line = f"{row['input']}: {row['label']} at exit {row['exit']} ({row['reason']})"
    return "\n".join([line, *draw(row["attention"])]) if "attention" in row else line


def draw(attention: list[Any]) -> list[str]:
    """A map as rows of shades, the darkest where it is largest."""
    rows = attention if attention and isinstance(attention[0], list) else [attention]
    top = max(max(row) for row in rows) or 1.0
    return ["  " + "".join(" .:-=+*#%@"[min(9, int(10 * value / top))] * 2 for value in row) for row in rows]
