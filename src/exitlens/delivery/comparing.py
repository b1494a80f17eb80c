"""Runs as subjects of one report: each tested on the same images."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from exitlens.data.images import ImageSet
from exitlens.delivery.runs import bundle_of, load_calibrated
from exitlens.delivery.subjects import Provenance, Subject
from exitlens.errors import InputError
from exitlens.workflow.collection import collect
from exitlens.workflow.evaluation import evaluate
from exitlens.workflow.faithfulness import faithfulness
from exitlens.workflow.training import SETTINGS

CONDITION = "test"


def subject_of(name: str, path: Path, images: ImageSet) -> Subject:
    """A run or bundle with everything that a report shows of it, on these images.

    Raises:
        PolicyError, BundleError: if it has no policy, or cannot be read; InputError: if it cannot take the images.
    """
    net, policy = load_calibrated(path)
    if net.info.classes and tuple(net.info.classes) != images.classes:
        raise InputError(f"{path}: its classes are {net.info.classes}, those of the images {images.classes}: compare equals")
    if net.info.preprocess is not None and net.info.preprocess != images.preprocess:
        raise InputError(
            f"{path}: it reads images as {net.info.preprocess}, the first run as {images.preprocess}: compare equals"
        )
    report = evaluate(collect(net, images), policy)
    return Subject(name, net, policy, {CONDITION: report}, {CONDITION: faithfulness(net, images)})


def provenance_of(paths: Sequence[Path], images: ImageSet, command: Sequence[str], data: str = "") -> Provenance:
    """How each run was made, as far as its directory says, and what it was tested on.

    Args:
        command: words of the command that writes the report. data: what it was given as ``--data``.
    """
    facts, seeds = {}, []
    for path in paths:
        record = bundle_of(path).parent / SETTINGS
        seed = "not recorded"
        if record.is_file():
            values = json.loads(record.read_text())
            seed = str(values["settings"].get("seed", seed))
            shown = {**values["settings"], **{f"loss {k}": v for k, v in values["loss"].items()}}
            facts[f"{path}: training"] = ", ".join(f"{k} {v}" for k, v in shown.items())
        seeds.append(seed if len(paths) == 1 else f"{seed} ({path})")
    tested = f"{len(images):,} images: {data or f'the test split of {paths[0]}'}"
    return Provenance(shlex.join(command), tested, ", ".join(seeds), facts)
