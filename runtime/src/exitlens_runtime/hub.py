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
_FIX = (
    "Fix: if the Hub refuses, check name and revision, ask for access on its page, and log in by `hf auth login` or set "
    "HF_TOKEN; else check the connection, HF_ENDPOINT and HF_HUB_OFFLINE, and try again: files that have arrived are kept."
)


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
        folder = _fetch(hub, repo, revision)
    except Exception as error:  # those of the network have no common base
        raise HubError(f"hf://{repo}: {_join(error)}. {_FIX}") from error
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"hf://{repo}: it holds no {MANIFEST}, so it is no edge bundle. Fix: push what export wrote.")
    return folder


def _fetch(hub: Any, repo: str, revision: str | None) -> Path:
    fetch = partial(hub.snapshot_download, repo, allow_patterns=list(FILES), library_name="exitlens-runtime")
    try:
        is_commit = _COMMIT.fullmatch(revision or "") is not None
        commit = revision if is_commit else hub.HfApi().model_info(repo, revision=revision).sha
    except Exception as error:
        response = getattr(error, "response", None)
        if isinstance(error, ValueError) or (response is not None and response.status_code < 500):
            raise  # a wrong name, or the Hub refuses
        try:
            folder = Path(fetch(revision=revision, local_files_only=True))
        except Exception:
            raise error from None  # it says more than that there is no whole copy on this disk
        if not hub.constants.HF_HUB_OFFLINE:
            words = f"cannot be reached ({_join(error)}): the copy of commit {folder.name[:12]} is used."
            fix = "Fix: set HF_HUB_OFFLINE=1 if that is what you want."
            warnings.warn(f"hf://{repo}: the Hub {words} {fix}", stacklevel=4)
        return folder
    folder = Path(fetch(revision=commit))
    if (folder / MANIFEST).is_file():
        hub.hf_hub_download(repo, MANIFEST, revision=revision)  # from here on, the revision means this commit
    return folder


def _join(error: Exception) -> str:
    """Return the lines of its message as one, or the name of its class."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
