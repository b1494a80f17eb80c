"""The subjects of a report: networks with what was measured of them, and the provenance of the numbers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from exitlens.data.splits import SampleSet
from exitlens.delivery.bundle import find_bundle
from exitlens.delivery.run_directory import load_calibrated, shorten_names
from exitlens.errors import DataError, InputError
from exitlens.model.heads.exit_heads import have_maps
from exitlens.model.network import ExitNet
from exitlens.types import Policy
from exitlens.workflow.collection import collect
from exitlens.workflow.evaluation import Report, evaluate
from exitlens.workflow.faithfulness import Faithfulness, faithfulness
from exitlens.workflow.training.record import SETTINGS

CONDITION = "test"


@dataclass(frozen=True)
class Subject:
    """A trained network with its policy, and what was measured of it under each test condition, the main one first."""

    name: str
    net: ExitNet
    policy: Policy
    reports: Mapping[str, Report]
    faithfulness: Mapping[str, Faithfulness] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Where every number of a report comes from, shown beside each table.

    Attributes:
        command: reproduces the numbers.
        data: what was tested on, in words.
        seed: of training, in words.
        facts: everything else about training and testing, shown as a table.
    """

    command: str
    data: str
    seed: str
    facts: Mapping[str, str] = field(default_factory=dict)


def measure_subjects(
    paths: Sequence[Path],
    images: SampleSet,
    *,
    progress: bool = False,
    cost: Literal["macs", "time"] = "macs",
    timed_batch: int | None = None,
) -> list[Subject]:
    """Evaluates runs or bundles on the same images; whatever cannot be compared is refused before anything is measured.

    ``cost`` and ``timed_batch`` as for :func:`exitlens.collect`.

    Raises:
        PolicyError, BundleError: for a run without a policy or one that cannot be read; InputError: for networks that do
            not take the images, or cannot be compared.
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
    return [
        Subject(
            name,
            net,
            policy,
            {CONDITION: evaluate(collect(net, images, cost=cost, progress=progress, timed_batch=timed_batch), policy)},
            {CONDITION: faithfulness(net, images, progress=progress)} if can_delete(net) else {},
        )
        for name, (net, policy) in zip(shorten_names(paths), loaded, strict=True)
    ]


def can_delete(net: ExitNet) -> bool:
    """Whether its maps can be judged by deletion: it has some, and what there is to delete from."""
    with suppress(InputError):
        net.input_spec.modality.check_deletion(net.input_spec)
        return have_maps(net.heads)
    return False


def describe_provenance(paths: Sequence[Path], images: SampleSet, command: Sequence[str], data: str = "") -> Provenance:
    """How the runs at ``paths`` were made, as far as they record it, and what they were tested on.

    ``command`` has the words of the command that writes the report, ``data`` is its ``--data``. Raises :class:`DataError`
    for a damaged record.
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
                what = f"damaged ({type(error).__name__}: {error})"
                raise DataError(f"{record}: {what}: take it away, or train again") from error
            facts[f"{path}: training"] = ", ".join(f"{k} {v!s:.80}" for k, v in shown.items())
        seeds.append(seed if len(paths) == 1 else f"{seed} ({path})")
    tested = f"{len(images):,} {images.modality.plural}: {data or f'the test split of {paths[0]}'}"
    return Provenance(shlex.join(command), tested, ", ".join(seeds), facts)
