"""Run directories: where a run's bundle and the description of its data are."""

from __future__ import annotations

import json
from pathlib import Path

from exitlens.data.sources import DataSource
from exitlens.delivery.bundle import MANIFEST, load, save
from exitlens.errors import BundleError, DataError, OutputExistsError
from exitlens.model.weights import write_text
from exitlens.types import Policy

DATA = "data.json"


def bundle_of(path: Path) -> Path:
    """The bundle directory for a run directory or for the bundle itself.

    Raises:
        BundleError: if neither is there.
    """
    for candidate in (path, path / "bundle"):
        if (candidate / MANIFEST).is_file():
            return candidate
    raise BundleError(f"bundle: {path} is no bundle and holds none (no {MANIFEST}): give what exitlens fit wrote")


def write_source(out: Path, source: DataSource, *, resume: bool) -> None:
    """Records a run's data in its directory, before training starts.

    Raises:
        OutputExistsError: if the directory is in use and this is no resumed run; DataError: if it is of other data.
    """
    path = out / DATA
    if out.exists() and any(out.iterdir()) and not resume:
        raise OutputExistsError(f"out: {out} exists and is not empty: choose another directory, or pass --resume")
    if path.exists() and json.loads(path.read_text()) != source.to_dict():
        raise DataError(f"data: {path} was made with other data: pass the same, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(source.to_dict(), indent=1) + "\n")


def forget_source(out: Path) -> None:
    """Takes back :func:`write_source` where nothing else was written since, so that a corrected call can use ``out``."""
    if [path.name for path in out.iterdir()] == [DATA]:
        (out / DATA).unlink()
        out.rmdir()


def read_source(path: Path) -> DataSource:
    """The data of the run that a run directory or bundle belongs to.

    Raises:
        DataError: if there is no record of it.
    """
    for candidate in (path / DATA, bundle_of(path).parent / DATA):
        if candidate.is_file():
            try:
                return DataSource(**json.loads(candidate.read_text()))
            except (ValueError, TypeError) as error:
                raise DataError(f"{candidate}: damaged ({error}): pass --data") from error
    raise DataError(f"data: {path} does not say which data it was trained on: pass --data")


def replace_policy(directory: Path, policy: Policy) -> None:
    """Stores another policy in an existing bundle."""
    net, _ = load(directory)
    save(net, policy, directory, overwrite=True)
