"""Our server as a process, and requests to it."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.load.requests import make_infer_request
from benchmarks.serving.networks import Prepared
from benchmarks.serving.rivals.servers import Server, start_server

OUTPUTS = ("label", "exit", "confidence")


def serve(settings: Mapping[str, Any]) -> None:
    """In the server's process."""
    from exitlens.serving.server import serve as run
    from exitlens.serving.settings import Batching, Limits, ServerSettings, Watching

    bundles = {name: Path(path) for name, path in settings["bundles"].items()}
    given = {"batching": Batching(**settings["batching"]), "limits": Limits(**settings["limits"])}
    run(
        ServerSettings(
            bundles, port=settings["port"], watching=Watching(**settings["watching"]), **settings["more"], **given
        )
    )


@contextlib.contextmanager
def start_ours(
    bundle: Path,
    sample: np.ndarray[Any, Any],
    *,
    processors: Sequence[int] = (),
    batching: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    watching: Mapping[str, Any] | None = None,
    **more: Any,
) -> Iterator[Server]:
    """``exitlens serve`` with one model named "net", ready, without an access log, as the other servers have none."""
    settings = {
        "bundles": {"net": str(bundle)},
        "batching": {"threads": 1, **(batching or {})},
        "limits": dict(limits or {}),
        "watching": dict(watching or {}),
        "more": {"access_log": False, "reload_seconds": 0.0, **more},
    }
    probe = json.dumps({"inputs": [write_json(sample[None])]}).encode()
    with start_server(
        "benchmarks.serving.ours:serve", settings, path="/v2/models/net/infer", probe=probe, processors=processors
    ) as server:
        yield server


def write_json(samples: np.ndarray[Any, Any]) -> dict[str, Any]:
    """An input of the protocol."""
    return {"name": "inputs", "datatype": "FP32", "shape": list(samples.shape), "data": samples.reshape(-1).tolist()}


def make_requests(prepared: Prepared, size: int = 1, outputs: Sequence[str] = OUTPUTS, **parameters: Any) -> list[bytes]:
    """All samples, so many in a request."""
    parts = [prepared.samples[at : at + size] for at in range(0, len(prepared.samples), size)]
    return [
        make_infer_request("net", {"inputs": part}, outputs=outputs, parameters=parameters or None)
        for part in parts
        if len(part) == size
    ]


def read_outputs(head: bytes, body: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs of an answer by name."""
    length = next(
        (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"inference-header")), None
    )
    values = json.loads(body if length is None else body[:length])
    at, found = length or 0, {}
    for one in values["outputs"]:
        kind = {"INT64": np.int64, "FP32": np.float32, "BOOL": np.bool_}[one["datatype"]]
        if "data" in one:
            found[one["name"]] = np.array(one["data"], kind).reshape(one["shape"])
        else:
            size = one["parameters"]["binary_data_size"]
            found[one["name"]] = np.frombuffer(body[at : at + size], kind).reshape(one["shape"])
            at += size
    return found


def ask(port: int, path: str) -> tuple[int, bytes]:
    """One GET."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def read_memory(server: Server) -> float:
    """Megabytes that its processes hold now, without what they share twice."""
    total = 0
    for one in server.list_processes():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024
