"""The verb that answers over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

import exitlens as xl
from exitlens.cli.options import verbs

of_requests = {"rich_help_panel": "Limits of requests"}
of_batching = {"rich_help_panel": "Batching"}
of_watching = {"rich_help_panel": "Watching"}


@verbs.command(epilog="Example: `exitlens serve --bundle runs/demo --port 8000`")
def serve(
    bundle: Annotated[
        list[str],
        Option(help="A bundle, run directory or edge bundle; NAME=DIR names the model. As often as there are models."),
    ],
    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0: all, for other machines.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port; 0: any that is free.")] = 8000,
    workers: Annotated[int, Option(min=1, help="Processes, each with the whole network.")] = 1,
    threads: Annotated[
        int, Option(min=0, help="That one process computes with (0: its share of the processors).", **of_batching)
    ] = 0,
    batch: Annotated[int, Option(min=1, help="Samples that run through a stage together.", **of_batching)] = 32,
    max_delay_ms: Annotated[
        float, Option(min=0, help="That a sample waits for company before a later stage.", **of_batching)
    ] = 20.0,
    max_waiting: Annotated[int, Option(min=1, help="Samples that may wait; more get 429.", **of_batching)] = 1024,
    max_wait_ms: Annotated[
        float, Option(min=1, help="Work that may be before a new request, by the pace so far; more gets 429.", **of_batching)
    ] = 1000.0,
    max_body_mb: Annotated[float, Option(min=0.001, help="Megabytes of a request.", **of_requests)] = 32.0,
    max_pixels: Annotated[int, Option(min=1, help="Of one image.", **of_requests)] = 50_000_000,
    max_batch: Annotated[int, Option(min=1, help="Samples in one request.", **of_requests)] = 256,
    timeout: Annotated[float, Option(min=0.1, help="Seconds for one request.", **of_requests)] = 30.0,
    max_connections: Annotated[int, Option(min=1, help="Open at once.", **of_requests)] = 1000,
    token_file: Annotated[
        Path | None, Option(help="A file with the token that clients must send (Authorization: Bearer).", **of_requests)
    ] = None,
    tls_cert: Annotated[Path | None, Option(help="Certificate in PEM.", **of_requests)] = None,
    tls_key: Annotated[Path | None, Option(help="Its key in PEM.", **of_requests)] = None,
    reload_seconds: Annotated[
        float, Option(min=0, help="How often bundles are looked at for a new version; 0: never.")
    ] = 2.0,
    access_log: Annotated[bool, Option(help="A line of JSON for every request on standard output.")] = True,
    drift: Annotated[
        bool, Option(help="Watch whether samples still look like those of the calibration.", **of_watching)
    ] = True,
    unready_on_drift: Annotated[
        bool, Option("--unready-on-drift", help="A model whose samples drift is not ready any more.", **of_watching)
    ] = False,
    shadow: Annotated[
        float, Option(min=0, max=1, help="Share of samples that are run to the final exit in idle time, too.", **of_watching)
    ] = 0.0,
) -> None:
    """Answer over HTTP: Open Inference Protocol v2, /classify and /explain; a page at / (extra `serve`)."""
    from exitlens.serving.server import serve as run
    from exitlens.serving.settings import Batching, Limits, ServerSettings, Watching, name_bundles

    settings = ServerSettings(
        name_bundles(bundle),
        host,
        port,
        workers,
        Batching(batch, max_delay_ms, max_waiting, max_wait_ms, threads),
        Watching(drift, shadow=shadow, unready_on_drift=unready_on_drift),
        Limits(
            max_body_mb=max_body_mb,
            request_seconds=timeout,
            max_connections=max_connections,
            max_pixels=max_pixels,
            max_batch=max_batch,
            token=read_token(token_file),
        ),
        reload_seconds,
        access_log,
        tls_cert,
        tls_key,
    )
    run(settings)


def read_token(path: Path | None) -> str:
    """The token in a file; empty: none is wanted."""
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise xl.InputError(f"token_file: {path} cannot be read ({error})") from error
    if not token:
        raise xl.InputError(f"token_file: {path} is empty: write the token into it")
    return token
