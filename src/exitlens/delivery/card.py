"""Model cards: README.md of a bundle or edge bundle, written from its record, with metadata that the Hub reads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from exitlens.errors import InputError, first_line, import_extra
from exitlens.io import read_json, write_text
from exitlens.model.network import NetworkInfo
from exitlens.types import Policy
from exitlens.types.outputs import exit_name, format_threshold
from exitlens.types.policies import DEFAULT, Calibration
from exitlens.types.tasks import BY_LABELS
from exitlens.workflow.evaluation import Report

CARD, MANIFEST = "README.md", "manifest.json"
_PIPELINES = {"image": "image-classification", "text": "text-classification", "vector": "tabular-classification"}
_PIPELINES |= {"image segmentation": "image-segmentation", "vector regression": "tabular-regression"}
_PIPELINES |= {"image embedding": "image-feature-extraction", "text embedding": "feature-extraction"}
_UNKNOWN = "-"
_TAGS = ("exitlens", "early-exit")
_BEGIN = "<!-- exitlens: from the record of bundle {}; text of your own goes above this line or below the last -->"
_END = "<!-- exitlens: end of the record -->"
_RECORD = re.compile(f"{_BEGIN.format('([0-9a-f]+)')}.*?{_END}", re.S)
_ADDRESS = re.compile(r"hf://[\w.-]+/[\w.-]+")
_UNSAID = "*What it was trained on, and what it is for, its author has not written here yet.*"


def write_card(directory: Path, report: Report | None = None) -> None:
    """Write the card of a bundle or edge bundle; text and metadata that its author added to an older one stay.

    ``report`` gives figures of test samples; without one, the figures are those of the calibration.
    """
    from exitlens.delivery.explanations import load_template

    manifest, policies, path = read_json(directory / MANIFEST), _read_policies(directory), directory / CARD
    policy, info = policies.pop(DEFAULT, None), _read_info(directory, manifest)
    modality, by_labels = info.modality.name, info.task in BY_LABELS
    title = f"{modality} {'classifier' if by_labels else info.task} with {len(info.at) + 1} exits".capitalize()
    pipeline = _PIPELINES.get(modality if by_labels else f"{modality} {info.task}")
    record = None if policy is None or policy.is_changed else policy.calibration
    columns = {} if policy is None else _tabulate(policy, record, report, manifest.get("cost", ()))
    text = load_template("card.md.j2").render(
        info=info,
        sources=_list_sources(info),
        precision=manifest.get("precision"),  # of the files of an edge bundle
        is_unfinished="unfinished" in manifest,
        policy=policy,
        calibration=record,
        others=policies,
        report=report,
        columns=list(columns),
        rows=list(zip(*columns.values(), strict=True)),
    )
    begin, text = _BEGIN.format(_hash_bundle(directory)), re.sub(r"\n{3,}", "\n\n", text).strip()
    written, card = f"{begin}\n\n{text}\n\n{_END}", _open_card(path, f"---\n{{}}\n---\n\n# {title}\n\n{_UNSAID}\n")
    is_marked = _RECORD.search(card.text) is not None
    card.text = _RECORD.sub(lambda _: written, card.text) if is_marked else f"{card.text.rstrip()}\n\n{written}\n"
    card.data.library_name, card.data.pipeline_tag = "exitlens", pipeline
    card.data.tags = [*_TAGS, *(tag for tag in card.data.tags or () if tag not in _TAGS)]
    card.data.model_name = card.data.model_name or title
    card.data.eval_results = (
        _list_results(pipeline or f"{modality}-{'classification' if by_labels else info.task}", record, report) or None
    )
    write_text(path, str(card))


def publish_card(directory: Path, repo: str) -> None:
    """Write a card where there is none, or one of an older state of the bundle, and name the repository in it.

    A README without the marks of such a card is its author's alone, and stays as it is.
    """
    path = directory / CARD
    written = _RECORD.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    if path.is_file() and written is None:
        return
    if written is None or written[1] != _hash_bundle(directory):
        write_card(directory)
    card = _open_card(path)
    card.text = _RECORD.sub(lambda record: _ADDRESS.sub(f"hf://{repo}", record[0]), card.text)
    card.data.model_name = repo.partition("/")[2]
    write_text(path, str(card))


def _open_card(path: Path, opening: str = "") -> Any:
    """Read the card there as a ``ModelCard`` of huggingface_hub, or make one that begins like this."""
    hub = import_extra("huggingface_hub", "hub", "a model card")
    try:
        return hub.ModelCard(path.read_text(encoding="utf-8") if path.is_file() else opening)
    except Exception as error:  # of its YAML, of many kinds
        raise InputError(
            f"card: the metadata of {path} cannot be read ({first_line(error)}). Fix: correct the lines between --- and ---."
        ) from error


def _hash_bundle(directory: Path) -> str:
    return hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()[:12]


def _read_policies(directory: Path) -> dict[str, Policy]:
    named = directory / "policies.json"
    values = {DEFAULT: read_json(directory / "policy.json"), **(read_json(named) if named.is_file() else {})}
    return {name: Policy.from_dict(policy) for name, policy in values.items() if policy is not None}


def _read_info(directory: Path, manifest: dict[str, Any]) -> NetworkInfo:
    if "segments" in manifest:
        return NetworkInfo.from_edge(manifest)
    values = read_json(directory / "network.json")
    return NetworkInfo.from_dict({field.name: values[field.name] for field in fields(NetworkInfo) if field.name in values})


def _list_sources(info: NetworkInfo) -> list[str]:
    if info.config and info.source == "hf:":  # made by its configuration, without a directory
        return [f"the architecture {info.config['model_type']} of transformers"]
    return [member.source for member in info.members or (info,)]


def _tabulate(
    policy: Policy, record: Calibration | None, report: Report | None, cost: Sequence[float]
) -> dict[str, list[str]]:
    """Return the columns of the table of exits, by their heads; ``cost`` of each exit is for want of a report."""
    rows = report.exits if report else ()
    counts = [sum(cells) for cells in record.reference.counts] if record and record.reference else []
    columns = {
        "exit": [exit_name(k, policy.num_exits) for k in range(policy.num_exits)],
        "threshold": [*(format_threshold(level, 3) for level in policy.thresholds), "answers the rest"],
        "cost": [f"{each:.3f}" for each in [row.cost for row in rows] or cost],
        "answers (%)": [_percent(share) for share in [row.share for row in rows] or [n / sum(counts) for n in counts]],
        "accuracy of these (%)": [_percent(row.accuracy_when_taken) for row in rows],
        "accuracy on all samples (%)": [_percent(row.accuracy) for row in rows],
    }
    return {head: cells for head, cells in columns.items() if set(cells) - {_UNKNOWN}}


def _list_results(task: str, record: Calibration | None, report: Report | None) -> list[Any]:
    """Return what the metadata has of figures: of test samples, or of those that tested the certificate."""
    figures: dict[str, float | None] = {}
    samples, split = 0, "test"
    if report is not None:
        samples, pixels = report.samples, report.pixels
        figures = {"accuracy": report.accuracy, "accuracy_drop": report.accuracy_drop, "mean_cost": report.cost}
        figures |= {"mean_iou": None if pixels is None else pixels.mean_iou}
        figures |= {} if report.answers is None else {"mae": report.answers.mae, "distance": report.answers.distance}
    elif record is not None:
        samples, split, tested = record.samples, "calibration", record.certification
        passed = () if tested is None or tested.reason else tested.tests
        figures = {test.name.removeprefix("max_"): test.mean for test in passed} | {"mean_cost": record.cost}
    make = partial(import_extra("huggingface_hub", "hub", "a model card").EvalResult, dataset_split=split)
    data = f"{samples:,} {split} samples of the author"
    return [
        make(task, "not-published", data, name, round(value, 4), metric_name=name.replace("_", " ").capitalize())
        for name, value in figures.items()
        if value is not None
    ]


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{100 * share:.1f}"
