"""Runs as subjects of one report: each tested on the same images."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from exitlens.data.images import ImageSet
from exitlens.delivery.bundle import find_bundle
from exitlens.delivery.report.subjects import Provenance, Subject
from exitlens.delivery.run_directory import load_calibrated, shorten_names
from exitlens.errors import DataError, InputError
from exitlens.workflow.collection import collect
from exitlens.workflow.evaluation import evaluate
from exitlens.workflow.faithfulness import faithfulness
from exitlens.workflow.training.run import SETTINGS

CONDITION = "test"


def measure_subjects(paths: Sequence[Path], images: ImageSet) -> list[Subject]:
    """Runs or bundles with everything that a report shows of them, on these images; refused before anything is measured.

    Raises:
        PolicyError, BundleError: if one has no policy, or cannot be read; InputError: if it cannot take the images, or they
        cannot be compared.
    """
    loaded = [load_calibrated(path) for path in paths]
    counts = [net.num_exits for net, _ in loaded]
    if len(set(counts)) > 1:
        raise InputError(f"runs: they have {counts} exits: compare networks with equally many")
    for path, (net, _) in zip(paths, loaded, strict=True):
        if net.info.classes and tuple(net.info.classes) != images.classes:
            raise InputError(
                f"{path}: its classes are {net.info.classes}, those of the images {images.classes}: compare equals"
            )
        if net.info.preprocess is not None and net.info.preprocess != images.preprocess:
            raise InputError(
                f"{path}: it reads images as {net.info.preprocess}, the first run as {images.preprocess}: compare equals"
            )
    named = zip(shorten_names(paths), loaded, strict=True)
    return [
        Subject(
            name, net, policy, {CONDITION: evaluate(collect(net, images), policy)}, {CONDITION: faithfulness(net, images)}
        )
        for name, (net, policy) in named
    ]


def describe_provenance(paths: Sequence[Path], images: ImageSet, command: Sequence[str], data: str = "") -> Provenance:
    """How each run was made, as far as its directory says, and what it was tested on.

    Args:
        command: words of the command that writes the report. data: what it was given as ``--data``.

    Raises:
        DataError: for a damaged record.
    """
    facts, seeds = {}, []
    for path in paths:
        record = find_bundle(path).parent / SETTINGS
        seed = "not recorded"
        if record.is_file():
            try:
                values = json.loads(record.read_text())
                seed = str(values["settings"]["seed"])
                shown = {**values["settings"], **{f"loss {k}": v for k, v in values["loss"].items()}}
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{record}: damaged ({type(error).__name__}: {error}): take it away, or train again"
                ) from error
            facts[f"{path}: training"] = ", ".join(f"{k} {v}" for k, v in shown.items())
        seeds.append(seed if len(paths) == 1 else f"{seed} ({path})")
    tested = f"{len(images):,} images: {data or f'the test split of {paths[0]}'}"
    return Provenance(shlex.join(command), tested, ", ".join(seeds), facts)
