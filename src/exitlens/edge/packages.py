"""export_package: write what Triton, MLServer, KServe or BentoML start, with an edge bundle inside.

In KServe the model's container runs MLServer, which speaks the protocol that KServe asks in and gathers requests.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import jinja2

import exitlens
from exitlens.edge.export import FORMAT, MANIFEST, POLICIES
from exitlens.errors import BundleError, ExportError, InputError, OutputExistsError, PolicyError, suggest
from exitlens.io import read_json, replace_directory, verify_checksums, write_text
from exitlens.types.policies import DEFAULT
from exitlens.types.tasks import refuse_task

PLACES = {"triton": "1/edge", "mlserver": "edge", "kserve": "edge", "bentoml": "edge"}  # of the bundle, by server
NEEDS = {
    "triton": "numpy>=1.26,<2",
    "bentoml": "bentoml>=1.4,<2",
    **dict.fromkeys(("mlserver", "kserve"), "mlserver>=1.6,<2"),
}
NAME = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a name that Kubernetes takes, too


def export_package(
    edge: str | Path, directory: str | Path, server: str, *, policy: str = DEFAULT, overwrite: bool = False
) -> Path:
    """Write an edge bundle as a model for another server, with the files that the server is configured by.

    Args:
        edge: an edge bundle, which :func:`exitlens.export` wrote.
        directory: a new directory, which appears complete or not at all. Its name is the model's in the server: lower-case
            letters, digits and ``-``. For ``triton`` and ``mlserver`` it belongs into the model repository.
        server: ``triton``, ``mlserver``, ``kserve`` or ``bentoml``.
        policy: name of the policy in the bundle that answers.
        overwrite: replace an earlier package; files that it did not have stay.

    Raises:
        InputError: for an unknown server, or a name that servers do not take.
        ExportError: if the server cannot run the network.
        BundleError: for a missing or altered edge bundle; PolicyError: for an unknown policy.
    """
    source, target = Path(edge).resolve(), place_package(directory, server, overwrite=overwrite)
    manifest = _read_manifest(source, policy)
    refuse_task(manifest.get("task", "classes"), "edge: a package for another server")
    files = render_package(manifest, target.name, server, policy)
    with replace_directory(target, {Path(name).parts[0] for name in (*files, PLACES[server])}) as temporary:
        shutil.copytree(source, temporary / PLACES[server])
        for name, text in files.items():
            write_text(temporary / name, text)
    return target


def place_package(directory: str | Path, server: str, *, overwrite: bool = False) -> Path:
    """Return where a package is written; raise what :func:`export_package` raises before it reads the edge bundle."""
    target = Path(directory).resolve()
    if server not in PLACES:
        raise InputError(f"server: expected one of {', '.join(PLACES)}, got {server!r}.{suggest(server, PLACES)}")
    if not NAME.fullmatch(target.name):
        raise InputError(
            f"directory: its name is the model's, of a-z, 0-9 and - (63 at most), got {target.name!r}. Fix: rename it."
        )
    if target.exists() and not (overwrite and (target / PLACES[server] / MANIFEST).is_file()):
        fix = "Fix: choose another directory (overwrite=True replaces an earlier package)."
        raise OutputExistsError(f"directory: {target} exists. {fix}")
    return target


def render_package(manifest: dict[str, Any], name: str, server: str, policy: str) -> dict[str, str]:
    """Return the text files of a package by name, for an edge bundle with this manifest: templates and requirements."""
    inputs, is_text = manifest["inputs"], "tokenizer" in (manifest["preprocess"] or {})
    if server == "bentoml" and len(inputs) > 1 and not is_text:
        raise ExportError(
            f"server: BentoML gathers batches of one array, this network takes {[x['name'] for x in inputs]}. "
            "Fix: choose triton, mlserver or kserve."
        )
    version = manifest["network"][:12]
    note = f"Written by exitlens {exitlens.__version__}, network {version}."
    threads = int(server == "kserve")  # a container sees all processors of its machine; 0: one for each
    facts = {"name": name, "version": version, "policy": policy, "note": note, "input": inputs[0], "is_text": is_text}
    folders, undefined = ["mlserver", server] if server == "kserve" else [server], jinja2.StrictUndefined
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader("exitlens.edge", f"servers/{folder}") for folder in folders])
    templates = jinja2.Environment(loader=loader, undefined=undefined, trim_blocks=True, keep_trailing_newline=True)
    files = {
        path.removesuffix(".j2"): templates.get_template(path).render(facts, threads=threads)
        for path in templates.list_templates()
    }
    runtime = f"exitlens-runtime{'[text]' if is_text else ''}=={exitlens.__version__}"
    return files | {"requirements.txt": f"{runtime}\n{NEEDS[server]}\n"}


def _read_manifest(source: Path, policy: str) -> dict[str, Any]:
    """Return the manifest of an edge bundle whose files are whole and which has this policy."""
    manifest = read_json(source / MANIFEST) if (source / MANIFEST).is_file() else None
    if not isinstance(manifest, dict) or "segments" not in manifest or manifest.get("format") != FORMAT:
        raise BundleError(f"edge: expected an edge bundle of format {FORMAT}, got {source}. Fix: run exitlens export.")
    verify_checksums(source, manifest)
    names = [DEFAULT, *(read_json(source / POLICIES) if POLICIES in manifest["sha256"] else ())]
    if policy not in names:
        raise PolicyError(f"policy: expected one of {names}, got {policy!r}.{suggest(policy, names)}")
    return manifest
