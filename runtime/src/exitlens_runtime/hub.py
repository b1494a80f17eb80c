"""The Hugging Face Hub: edge bundles that are fetched from addresses such as hf://user/name."""

from __future__ import annotations

import re
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from exitlens_runtime.errors import BundleError, HubError, InputError

MANIFEST = "manifest.json"
FILES = (MANIFEST, "policy.json", "policies.json", "golden.npz", "*.onnx")  # nothing else is fetched
_ADDRESS = re.compile(r"hf:/(?:models/)?([\w.-]+/[\w.-]+)(?:@(refs/(?:pr/\d+|convert/[\w.-]+)|[^/@]+))?")  # of a Path
_COMMIT = re.compile("[0-9a-f]{40}")
_LOGIN = "log in by `hf auth login`, or set HF_TOKEN"


def fetch_bundle(path: str | Path) -> Path:
    """Return the directory of an edge bundle; if it is an address, fetch what it names, as the library does.

    A revision means a newer commit only once all files of that commit have arrived, so that an interrupted download takes no
    older copy away. If the Hub cannot be reached, the copy on this disk is used, with a warning unless ``HF_HUB_OFFLINE`` is
    set.
    """
    if Path(path).parts[:1] != ("hf:",):
        return Path(path)
    if (match := _ADDRESS.fullmatch(Path(path).as_posix())) is None:
        raise InputError(f"directory: expected hf://USER/NAME or hf://USER/NAME@REVISION, got {str(path)!r}")
    repo, revision = match[1], unquote(match[2]) if match[2] else None
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        raise HubError(
            f"hf://{repo}: it needs the package huggingface_hub. Fix: pip install 'exitlens-runtime[hub]'."
        ) from error
    try:
        folder, reason = _fetch(hub, repo, revision)
    except Exception as error:  # those of the network have no common base
        raise HubError(f"hf://{repo}: {_explain(hub, error, repo)}") from error
    if reason and not hub.constants.HF_HUB_OFFLINE:
        warnings.warn(
            f"hf://{repo}: the Hub cannot be reached ({reason}): the copy of commit {folder.name[:12]} is used. Fix: set "
            "HF_HUB_OFFLINE=1 if that is what you want.",
            stacklevel=3,
        )
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"hf://{repo}: it holds no {MANIFEST}, so it is no edge bundle. Fix: push what export wrote.")
    return folder


def _fetch(hub: Any, repo: str, revision: str | None) -> tuple[Path, str]:
    """Return the directory, and why the Hub was not asked, if so."""
    fetch = partial(hub.snapshot_download, repo, allow_patterns=list(FILES), library_name="exitlens-runtime")
    if _COMMIT.fullmatch(revision or ""):
        return Path(fetch(revision=revision)), ""
    try:
        commit = hub.HfApi().model_info(repo, revision=revision).sha
    except Exception as error:
        response = getattr(error, "response", None)
        if isinstance(error, ValueError) or (response is not None and response.status_code < 500):
            raise
        return Path(fetch(revision=revision, local_files_only=True)), _first_line(error)
    folder = Path(fetch(revision=commit))
    if (folder / MANIFEST).is_file():
        hub.hf_hub_download(repo, MANIFEST, revision=revision)  # is there: from here on, the revision means this commit
    return folder, ""


def _first_line(error: Exception) -> str:
    """Return the first line of its message, or the name of its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _explain(hub: Any, error: Exception, repo: str) -> str:
    errors, endpoint = hub.errors, hub.constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return f"the repository is gated. Fix: ask for access at {endpoint}/{repo}, and {_LOGIN}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private. Fix: check the name; for a private one, {_LOGIN}."
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision. Fix: name a branch, a tag or a whole commit, or leave the revision out."
    if isinstance(error, errors.LocalEntryNotFoundError) and hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and no whole copy is on this disk. Fix: unset it, and fetch the bundle once."
    return (
        f"{endpoint} cannot be reached, refuses, or broke off ({_first_line(error)}). Fix: check the connection and try "
        f"again: files that have arrived are kept. If it refuses, {_LOGIN}."
    )
