"""The Hugging Face Hub: bundles that are fetched from addresses such as hf://user/name, and pushed to them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from exitlens.delivery.card import CARD, MANIFEST, publish_card
from exitlens.errors import BundleError, HubError, InputError, WeightsWarning, first_line, import_extra, require
from exitlens.io import read_json, verify_checksums

# of bundles and edge bundles: nothing else is fetched, above all no code and no pickle
FILES = (MANIFEST, "network.json", "policy.json", "policies.json", "weights.safetensors", "golden.npz", "*.onnx")
_ADDRESS = re.compile(r"hf:/(?:models/)?([\w.-]+/[\w.-]+)(?:@(refs/(?:pr/\d+|convert/[\w.-]+)|[^/@]+))?")  # of a Path
_COMMIT = re.compile("[0-9a-f]{40}")
_FIX = (
    "Fix: if the Hub refuses, check name and revision, ask for access on its page, and log in by `hf auth login` or set "
    "HF_TOKEN (to push, with a token that may write); else check the connection, HF_ENDPOINT and HF_HUB_OFFLINE, and try "
    "again: files that have arrived are kept."
)


def is_address(path: str | Path) -> bool:
    """Return whether it is an address on the Hub; so is its ``Path``, in which one slash is left."""
    return Path(path).parts[:1] == ("hf:",)


def parse_address(address: str | Path) -> tuple[str, str | None]:
    """Return repository and revision of ``hf://USER/NAME`` or ``hf://USER/NAME@REVISION``, as huggingface_hub reads it."""
    match = _ADDRESS.fullmatch(Path(address).as_posix())
    if match is None:
        raise InputError(
            f"bundle: expected hf://USER/NAME or hf://USER/NAME@REVISION, got {str(address)!r}. Fix: name a model "
            "repository, and no folder in it; write %2F for a slash in a revision."
        )
    return match[1], unquote(match[2]) if match[2] else None


def refuse_address(path: Path) -> Path:
    """Return the path of a bundle that is to be changed; raise :class:`BundleError` for one on the Hub."""
    if not is_address(path):
        return path
    repo, _ = parse_address(path)
    raise BundleError(
        f"bundle: hf://{repo} is on the Hub and cannot be changed there. Fix: fetch a copy of your own by hf download "
        f"{repo} --local-dir DIR, give DIR here, and push it when it is done."
    )


def fetch_bundle(path: str | Path) -> Path:
    """Return the directory of a bundle; if it is an address, fetch what it names into the cache of huggingface_hub first.

    A revision means a newer commit only once all files of that commit have arrived. So an interrupted download takes no
    older copy away, and the next one fetches what is missing. If the Hub cannot be reached, the copy on this disk is used,
    with a :class:`~exitlens.errors.WeightsWarning` unless ``HF_HUB_OFFLINE`` is set.

    Raises:
        HubError: for a repository or revision that does not exist or may not be read, and without a connection or copy.
        BundleError: if the repository holds no bundle.
    """
    if not is_address(path):
        return Path(path)
    repo, revision = parse_address(path)
    hub = import_extra("huggingface_hub", "hub", f"hf://{repo}")
    fetch = partial(hub.snapshot_download, repo, allow_patterns=list(FILES), library_name="exitlens")
    with _translate_errors(repo):
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
                words = f"cannot be reached ({first_line(error)}): the copy of commit {folder.name[:12]} is used."
                fix = "Fix: set HF_HUB_OFFLINE=1 if that is what you want."
                warnings.warn(f"hf://{repo}: the Hub {words} {fix}", WeightsWarning, stacklevel=3)
        else:
            folder = Path(fetch(revision=commit))
            if (folder / MANIFEST).is_file():
                hub.hf_hub_download(repo, MANIFEST, revision=revision)  # from here on, the revision means this commit
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"hf://{repo}: it holds no {MANIFEST}, so it is no bundle. Fix: name one that push_to_hub made.")
    return folder


def push_to_hub(directory: str | Path, repo: str, *, private: bool | None = None, message: str = "") -> str:
    """Push a bundle or edge bundle to the Hugging Face Hub, as one commit, and return its address (extra ``hub``).

    The repository is made if it does not exist. Files of the bundle, its model card (``README.md``) and nothing else leave
    the directory; a bundle in the repository is replaced, other files there stay. Without a card, or with the card of an
    older state of the bundle, one is written from the record first; your own text and metadata in it are kept.

    Args:
        directory: what :func:`exitlens.save` or :func:`exitlens.export` wrote, or a run directory.
        repo: ``user/name``, or ``user/name@branch`` for a branch that exists.
        private: of a new repository; ``None``: as the account or organisation has it.
        message: of the commit.

    Returns:
        ``hf://user/name@commit``, which names this very state for good; ``hf://user/name`` names the newest.

    Raises:
        BundleError: for a directory that is no bundle, or a damaged one.
        HubError: without a connection, a token that may write there, or the branch.

    Source: https://huggingface.co/docs/hub/model-cards and the guides of huggingface_hub on uploads.
    """
    require(directory, str | Path, "directory")
    require(repo, str, "repo", "user/name")
    source = Path(directory) if (Path(directory) / MANIFEST).is_file() else Path(directory) / "bundle"
    manifest = read_json(source / MANIFEST) if (source / MANIFEST).is_file() else None
    if not isinstance(manifest, dict) or not ("segments" in manifest or manifest.get("kind") == "exitlens"):
        raise BundleError(f"directory: expected a bundle, got {directory}. Fix: give what save, export or fit wrote.")
    verify_checksums(source, manifest)
    repo, revision = parse_address(repo if is_address(repo) else f"hf://{repo}")
    hub = import_extra("huggingface_hub", "hub", "push_to_hub")
    publish_card(source, repo)
    with _translate_errors(repo):
        api = hub.HfApi(library_name="exitlens")
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            revision=revision,
            folder_path=source,
            allow_patterns=[*manifest["sha256"], MANIFEST, CARD],
            delete_patterns=list(FILES),  # of the bundle before
            commit_message=message or "Push a bundle of exitlens",
        )
    return f"hf://{repo}@{commit.oid}"


@contextmanager
def _translate_errors(repo: str) -> Iterator[None]:
    """Raise :class:`HubError`, with its words and what to do, in place of an error of huggingface_hub or of the network."""
    try:
        yield
    except Exception as error:  # they have no common base
        words = " ".join(str(error).split()) or type(error).__name__
        raise HubError(f"hf://{repo}: {words.rstrip('.')}. {_FIX}") from error
