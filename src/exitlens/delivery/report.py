"""The report of one run, or of several side by side: one HTML file that loads nothing and explains its terms."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import starmap
from pathlib import Path
from statistics import mean
from typing import Any, Literal
from xml.sax.saxutils import escape

import matplotlib as mpl
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from exitlens.data.sets import LazySet, SampleSet
from exitlens.delivery.bundle import find_bundle
from exitlens.delivery.explanations import load_template
from exitlens.delivery.hub import fetch_bundle
from exitlens.delivery.pictures import draw_heat, draw_image, draw_labels, is_background
from exitlens.delivery.run_directory import load_calibrated, load_probes, shorten_names
from exitlens.display import QUOTES, choose_text_colour, data_uri, pick_class_colour, pick_exit_colour
from exitlens.errors import DataError, InputError, OutputExistsError
from exitlens.io import make_directory, write_text
from exitlens.model.heads import have_maps
from exitlens.model.network import ExitNet
from exitlens.progress import show_progress
from exitlens.types import ExitView, Explanation, Policy
from exitlens.types.comparisons import Comparison
from exitlens.types.inputs import Inputs
from exitlens.types.outputs import exit_name
from exitlens.types.preprocessing import Preprocess
from exitlens.types.tasks import BY_LABELS, CONTINUOUS, IGNORE, USUAL_SCORES, name_answers
from exitlens.workflow.collection import collect
from exitlens.workflow.evaluation import Report, evaluate
from exitlens.workflow.explanation import explain_batch
from exitlens.workflow.faithfulness import Faithfulness, measure_faithfulness
from exitlens.workflow.inference import predict
from exitlens.workflow.training.record import SETTINGS

CONDITION = "test"
POOL, CHUNK = 200, 25  # samples drawn at random from a set, from which the gallery is picked; and how many at a time
WORST = 0.75  # share of the samples that have fewer wrong pixels than the worst
IMAGES = 6  # in the gallery, per condition; up to half of them are mistakes
UNTRUSTWORTHY = 0.05  # calibration error from which confidences are shown with a word of warning
# of the plots, SVG in the page's own ink: colours stand for exits, line styles and hatching for networks
INK, PAPER = "#010203", "#fdfcfb"  # placeholders for the page's ink and paper, which depend on light or dark mode
LINES, MARKERS, HATCHES = ("-", "--", ":"), ("o", "s", "^"), ("", "////", "....")
MARK_NAMES = ("dots", "squares", "triangles")
LONGEST = 24  # letters of a name
WIDTH = 4.7  # inches, legible on a phone
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may have dollar signs
    "svg.hashsalt": "exitlens",
    "font.family": "sans-serif",
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick", "grid", "lines")},
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "hatch.linewidth": 1.2,
}


@dataclass(frozen=True)
class Subject:
    """A trained network with its policy, and what was measured of it under each test condition, the main one first."""

    name: str
    net: ExitNet
    policy: Policy
    reports: Mapping[str, Report]
    faithfulness: Mapping[str, Faithfulness] = field(default_factory=dict)
    comparison: Comparison | None = None  # with its rivals, which the report shows of the first subject

    @property
    def label(self) -> str:
        """The name, shortened if it would leave no room for a plot."""
        return self.name if len(self.name) <= LONGEST else self.name[: LONGEST - 1] + "…"


@dataclass(frozen=True)
class Provenance:
    """Origin of the numbers of a report, shown beside each table."""

    command: str  # that reproduces the numbers
    data: str  # the test data, in words
    seed: str  # of training, in words
    facts: Mapping[str, str] = field(default_factory=dict)  # all else about training and testing, shown as a table


def measure_subjects(
    paths: Sequence[Path],
    images: SampleSet,
    *,
    progress: bool = False,
    cost: Literal["macs", "time"] = "macs",
    timed_batch: int | None = None,
) -> list[Subject]:
    """Evaluate runs or bundles on the same samples; what cannot be compared is refused before anything is measured."""
    loaded = [load_calibrated(path) for path in paths]
    counts = [net.num_exits for net, _ in loaded]
    if len(set(counts)) > 1:
        raise InputError(f"runs: they have {counts} exits. Fix: compare networks with equally many.")
    for path, (net, _) in zip(paths, loaded, strict=True):
        if net.info.classes and tuple(net.info.classes) != images.classes:
            raise InputError(f"{path}: its classes are {net.info.classes}, those of the data {images.classes}")
        if net.info.preprocess is not None and net.info.preprocess != images.preprocess:
            raise InputError(f"{path}: it reads images as {net.info.preprocess}, the first run as {images.preprocess}")
    subjects = []
    for path, name, (net, policy) in zip(paths, shorten_names(paths), loaded, strict=True):
        limits = policy.calibration.limits if policy.calibration else {}
        probes = load_probes(path, net) if "max_rank_change" in limits else None
        trace = collect(net, images, cost=cost, progress=progress, timed_batch=timed_batch, probes=probes)
        checks = {CONDITION: measure_faithfulness(net, images, progress=progress)} if can_delete(net) else {}
        subjects.append(Subject(name, net, policy, {CONDITION: evaluate(trace, policy)}, checks))
    return subjects


def can_delete(net: ExitNet) -> bool:
    """Return whether maps can be judged by deletion: they are of classes of samples, which have parts to delete."""
    if net.info.task not in BY_LABELS:
        return False
    with suppress(InputError):
        net.input_spec.modality.check_deletion(net.input_spec)
        return have_maps(net.heads)
    return False


def describe_provenance(paths: Sequence[Path], images: SampleSet, command: Sequence[str], data: str = "") -> Provenance:
    """Describe how runs were made, as far as they record it; ``command`` writes the report, ``data`` is its ``--data``."""
    facts, seeds = {}, []
    for path in paths:
        record = find_bundle(fetch_bundle(path)).parent / SETTINGS
        seed = "not recorded"
        if record.is_file():
            try:
                values = json.loads(record.read_text())
                seed = str(values["settings"]["seed"])
                shown = {**values["settings"], **{f"loss {name}": value for name, value in values["loss"].items()}}
            except (ValueError, KeyError, TypeError) as error:
                damage = f"damaged ({type(error).__name__}: {error})"
                raise DataError(f"{record}: {damage}. Fix: take it away, or train again.") from error
            facts[f"{path}: training"] = ", ".join(f"{name} {value!s:.80}" for name, value in shown.items())
        seeds.append(seed if len(paths) == 1 else f"{seed} ({path})")
    tested = f"{len(images):,} {images.modality.plural}: {data or f'the test split of {paths[0]}'}"
    return Provenance(shlex.join(command), tested, ", ".join(seeds), facts)


def write_report(
    path: Path,
    subjects: Sequence[Subject],
    images: Mapping[str, SampleSet],
    made: Provenance,
    *,
    speed: Mapping[str, Any] | None = None,
    plain_accuracy: float | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write the report of one network, or of two or three side by side, as an HTML file.

    ``subjects`` have equally many exits; the report is about the first. ``images`` are samples by condition; ``speed``
    has what ``compare`` returned, with ``accuracy_drop`` and ``cost``, by a title such as "batch size 1"; ``plain_accuracy``
    is that of the plain backbone, trained without exits, under the main condition.
    """
    if (count := subjects[0].net.num_exits) < 2:
        raise InputError("subjects: expected networks with an early exit, got one without. Fix: attach one.")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"report: {path} exists. Fix: choose another file.")
    main = next(iter(subjects[0].reports))
    with show_progress(progress) as bar:
        task = bar.add_task("gallery", total=len(images) * (POOL + IMAGES))
        gallery = build_gallery(subjects, images, lambda count: bar.advance(task, count))
        bar.update(task, completed=len(images) * (POOL + IMAGES))
    comparison = subjects[0].comparison
    page = load_template("report.html.j2").render(
        thing=subjects[0].net.info.modality.name,
        things=subjects[0].net.info.modality.plural,
        subjects=subjects,
        main=main,
        dense=subjects[0].net.info.task == "segmentation",
        valued=subjects[0].net.info.task in CONTINUOUS,
        gated=any(s.policy.gate is not None for s in subjects),
        weighs=all(s.net.info.head != "average" for s in subjects),
        keeps=any(s.net.info.final == "keep" for s in subjects),
        worst=subjects[0].reports[main].list_worst_classes(),
        exits=[{"name": exit_name(k, count), "colour": pick_exit_colour(k, count)} for k in range(count)],
        marks=MARK_NAMES,
        doubtful=[  # exits whose confidence is far from their accuracy
            (subject.name, exit_name(row.exit, count), row.calibration_error)
            for subject in subjects
            for row in subject.reports[main].exits
            if row.calibration_error is not None and row.calibration_error >= UNTRUSTWORTHY
        ],
        summary=[*([comparison.advice] if comparison else []), *summarize(subjects, main, speed or {}, plain_accuracy)],
        comparison=comparison,
        plot_rivals=Markup(plot_rivals(comparison)) if comparison else "",
        made=made,
        speed=speed or {},
        plain_accuracy=plain_accuracy,
        plot_cost=Markup(plot_accuracy_cost(subjects, main, plain_accuracy)),
        plot_shares=Markup(plot_exit_shares(subjects, main)),
        plot_consistency=Markup(plot_consistency(subjects, main)) if subjects[0].reports[main].exits[0].consistency else "",
        plot_deletion=Markup(plot_deletion(subjects, main)) if subjects[0].faithfulness else "",
        gallery=gallery,
    )
    make_directory(path.parent, "out")
    write_text(path, page)
    return path


def summarize(
    subjects: Sequence[Subject], main: str, speed: Mapping[str, Any], plain_accuracy: float | None = None
) -> list[Markup]:
    """Write three sentences on the first subject: what early answers save, whether exits agree and maps are faithful."""
    first, modality = subjects[0], subjects[0].net.info.modality
    words = {"thing": modality.name, "things": modality.plural}
    write: Any = load_template("report_summary.html.j2").make_module(words)
    sentences = [write.saving(first.name, first.reports[main], plain_accuracy, list(speed.items())[:2])]
    rows = [(s.name, s.reports[main].exits[:-1]) for s in subjects]
    skills = [(name, [row.consistency["cc"]["skill"] for row in exits if row.consistency]) for name, exits in rows]
    if not all(values for _, values in skills):  # exits without maps
        return sentences
    if not any(math.isnan(skill) for _, values in skills for skill in values):  # one image: nothing to shuffle
        sentences.append(write.agreement([(name, values[0], mean(values)) for name, values in skills]))
    if main in first.faithfulness:
        others = [(s.name, s.faithfulness[main]) for s in subjects[1:] if main in s.faithfulness]
        sentences.append(write.faithfulness(first.faithfulness[main], others))
    return sentences


def build_gallery(
    subjects: Sequence[Subject], sets: Mapping[str, SampleSet], advance: Callable[[int], None] = lambda count: None
) -> list[dict[str, Any]]:
    """Pick ``IMAGES`` samples of each test set, and return a row for the template: a sample as every subject sees it."""
    rows = []
    for condition, data in sets.items():
        for i in pick_images(subjects[0], data, IMAGES, advance):
            chosen = _read(data, torch.tensor([i]))
            inputs, source, shape = chosen.inputs, "", ""
            if isinstance(data.preprocess, Preprocess) and isinstance(inputs, Tensor):
                shown = draw_image(inputs[0], data.preprocess)
                source, shape = data_uri(shown, photo=True), f"{shown.width} / {shown.height}"
            whys = [_explain(subject, inputs)[0] for subject in subjects]
            views = [_describe_view(*pair, chosen, source == "") for pair in zip(subjects, whys, strict=True)]
            row = {"source": source, "shape": shape, "truth": _name_truth(chosen)[0], "condition": condition, "views": views}
            rows.append(row | (_describe_labels(chosen, whys) if chosen.labels.ndim == 3 else {"labels": "", "key": ()}))
            advance(1)
    return rows


def _explain(subject: Subject, inputs: Inputs) -> Sequence[Explanation]:
    """Explain answers; of vectors, how alike each exit's is to the final exit's."""
    net, final = subject.net, None
    if net.info.task == "embedding":
        final = predict(net, inputs, Policy.never(net.num_exits, score=USUAL_SCORES["embedding"])).labels
    return explain_batch(net, inputs, subject.policy, to=final)


def _read(data: SampleSet, rows: Tensor) -> SampleSet:
    part = data.subset(rows)
    return part.load() if isinstance(part, LazySet) else part


def _describe_labels(chosen: SampleSet, whys: Sequence[Explanation]) -> dict[str, Any]:
    """Return the labels of the pixels of a sample to lay over it, and the colours of all classes that are shown."""
    told = {label for why in whys for view in why.exits for label in view.answer} | set(chosen.labels.unique().tolist())
    shown = [label for label in sorted(told - {IGNORE}) if not is_background(label, chosen.classes)]
    key = [(chosen.classes[label], "#{:02x}{:02x}{:02x}".format(*pick_class_colour(label))) for label in shown]
    return {"labels": data_uri(draw_labels(chosen.labels[0], chosen.classes)), "key": key}


def _name_truth(data: SampleSet) -> list[str]:
    """Return the label of each sample, in the words of :meth:`Explanation.name_answer`; nothing without labels."""
    names = name_answers(data.labels, data.classes)
    if data.labels.ndim > 1 and data.task not in CONTINUOUS:  # any number of labels, or of classes of pixels
        return [name.replace(";", ", ") or "none of the labels" for name in names]
    return names


def _find_errors(whys: Sequence[Explanation], data: SampleSet) -> list[float]:
    """Return for each answer 1 if it is wrong, else 0; of pixels the share of those that are.

    Of numbers it is the mean distance from the targets, and of vectors 1 - cosine to the final exit's vector.
    """
    if data.task in BY_LABELS:
        return [float(why.name_answer() != truth) for why, truth in zip(whys, _name_truth(data), strict=True)]
    errors = []
    for why, labels in zip(whys, data.labels, strict=True):
        view = why.exits[why.answered]
        if view.pixels is not None:
            errors.append((view.pixels.labels.cpu() != labels)[labels != IGNORE].float().mean().nan_to_num(0.0).item())
        else:
            numbers = torch.tensor([number.number for number in view.numbers or ()])
            errors.append((numbers - (labels if labels.numel() else 1.0)).abs().mean().item())
    return errors


def pick_images(
    subject: Subject, data: SampleSet, count: int, advance: Callable[[int], None] = lambda count: None
) -> list[int]:
    """Return the indices of gallery samples, picked from ``POOL`` drawn at random: mistakes first, up to a half.

    Where answers are not right or wrong, but pixels, numbers or vectors, the worst quarter of the samples are the mistakes.

    Each part is sorted by the exit that answers, and takes the first samples of each exit in turn.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))  # folders are sorted by class
    pool, answers, errors = order[:POOL], list[Explanation](), list[float]()
    for rows in pool.split(CHUNK):
        part = _read(data, rows)
        answers += (whys := _explain(subject, part.inputs))
        errors += _find_errors(whys, part)
        advance(len(rows))
    if isinstance(data, LazySet):  # bad samples have no answer; reading the samples has told which are bad
        pool = pool[[row not in data.unreadable for row in data.rows[pool].tolist()]]
    most = 0.0 if data.task in BY_LABELS else torch.tensor(errors).quantile(WORST).item()
    is_wrong = [error > most for error in errors]
    mistakes = _take_turns(subject, answers, [i for i, wrong in enumerate(is_wrong) if wrong])
    rest = _take_turns(subject, answers, [i for i, wrong in enumerate(is_wrong) if not wrong])
    mistakes = mistakes[: max(count // 2, count - len(rest))]
    picked = mistakes, rest[: count - len(mistakes)]
    return [int(pool[i]) for part in picked for i in sorted(part, key=lambda i: answers[i].answered)]


def _take_turns(subject: Subject, answers: Sequence[Explanation], rows: Sequence[int]) -> list[int]:
    """Order samples so that each exit's first comes before any exit's second."""
    queues = [[i for i in rows if answers[i].answered == k] for k in range(subject.net.num_exits)]
    turns = [(turn, k, i) for k, queue in enumerate(queues) for turn, i in enumerate(queue)]
    return [i for _, _, i in sorted(turns)]


def _describe_view(subject: Subject, why: Explanation, chosen: SampleSet, is_drawn: bool) -> Mapping[str, Any]:
    """Describe a sample's exits: maps or classes of pixels to lay over its picture, or drawings of their own."""
    (error,), task = _find_errors([why], chosen), chosen.task
    wrong = {"segmentation": f"{_percent(error)} of the pixels wrong", "regression": f"off by {error:.4g}", "embedding": ""}
    tiles = [
        {
            "name": exit_name(view.exit, why.num_exits),
            "colour": pick_exit_colour(view.exit, why.num_exits),
            "heat": "" if is_drawn else data_uri(_draw_layer(why, view)),
            "drawn": why.draw_exit(view) if is_drawn else "",
            "label": "" if task == "segmentation" else f"{'cosine ' * (task == 'embedding')}{why.name_answer(view)}",
            "rule": why.explain_rule(view),
            "answered": view.exit == why.answered,
            "reached": view.exit <= why.answered,
        }
        for view in why.exits
    ]
    return {"name": subject.name, "tiles": tiles, "reason": why.reason, "wrong": wrong.get(task, "mistake") if error else ""}


def _draw_layer(why: Explanation, view: ExitView) -> Image.Image:
    return draw_heat(view.attention) if view.pixels is None else draw_labels(view.pixels.labels.cpu(), why.classes)


def plot_accuracy_cost(subjects: Sequence[Subject], main: str, plain_accuracy: float | None = None) -> str:
    """Draw accuracy against cost: the frontier of each network, each exit alone, and the chosen policy.

    Numbers and vectors have the distance from the final exit's answer instead.
    """
    valued = subjects[0].net.info.task in CONTINUOUS
    what, unit, best = ("distance from the final answer", 1.0, 1.0) if valued else ("accuracy (%)", 100.0, 0.0)

    def place(cost: float, quality: float) -> tuple[float, float]:
        return cost, unit * abs(best - quality)

    with mpl.rc_context(STYLE):
        figure, axes = _figure(4.2)
        for line, marker, network in zip(LINES, MARKERS, subjects, strict=False):
            report = network.reports[main]
            axes.plot(
                *zip(*starmap(place, report.curve), strict=True),
                line,
                color=INK,
                lw=1.6,
                label=f"{network.label}: best thresholds",
            )
            if report.oracle:
                axes.plot(
                    *zip(*starmap(place, report.oracle), strict=True),
                    line,
                    color=INK,
                    lw=0.8,
                    alpha=0.5,
                    label=f"{network.label}: oracle",
                )
            for row in report.exits:
                quality = row.agreement if valued else row.accuracy
                if quality is not None:
                    colour = pick_exit_colour(row.exit, len(report.exits))
                    axes.plot(*place(row.cost, quality), marker, ms=8, mec=PAPER, color=colour, zorder=3)
            quality = 1 - report.disagreement if valued else report.accuracy
            if quality is not None:
                fill, label = INK if line == "-" else PAPER, f"{network.label}: chosen policy"
                at = place(report.cost, quality)
                axes.plot(*at, marker="*", ms=15, mfc=fill, mec=INK, ls="none", label=label, zorder=4)
        if plain_accuracy is not None:
            axes.axhline(100 * plain_accuracy, color=INK, alpha=0.6, ls="-.", lw=1, label="plain backbone, no exits")
        axes.set_xlabel("mean cost (plain backbone = 1)")
        axes.set_ylabel(what)
        axes.set_xlim(left=0)
        figure.legend(handles=axes.get_legend_handles_labels()[0], loc="outside lower left")
        _exit_legend(figure, len(subjects[0].reports[main].exits))
    measured = [(s.name, s.reports[main]) for s in subjects]
    results = "; ".join(
        f"{name}: {f'{r.disagreement:.3f}' if valued else _percent(r.accuracy)} at cost {r.cost:.2f}" for name, r in measured
    )
    return _svg(figure, f"{what.removesuffix(' (%)').capitalize()} against mean cost. The chosen policy reaches, {results}")


def plot_rivals(comparison: Comparison) -> str:
    """Draw accuracy against time: the network with exits as a star, its rivals with the interval of the difference."""
    ours, *others = comparison.contenders
    with mpl.rc_context(STYLE):
        figure, axes = _figure(3.6)
        axes.plot(ours.ms, 100 * ours.accuracy, marker="*", ms=15, color=INK, ls="none", label=ours.title)
        for i, each in enumerate(others):
            low, high = (abs(end - each.gain[0]) for end in each.gain[1:])
            colour, marker = pick_exit_colour(i, len(others)), MARKERS[i % len(MARKERS)]
            spread = np.array([[low], [high]])
            at = each.ms, 100 * each.accuracy
            axes.errorbar(*at, spread, fmt=marker, ms=8, color=colour, ecolor=INK, capsize=3, label=each.title)
        axes.set_xlabel("milliseconds a sample")
        axes.set_ylabel("accuracy (%)")
        axes.set_xlim(left=0)
        figure.legend(loc="outside lower left")
    return _svg(figure, f"Accuracy against time of the network with exits and its rivals. {comparison.advice}")


def plot_exit_shares(subjects: Sequence[Subject], main: str) -> str:
    """Draw the share of samples that each exit answers, with a bar for each network."""
    count = len(subjects[0].reports[main].exits)
    with mpl.rc_context(STYLE):
        figure, axes = _figure(1.0 + 0.55 * len(subjects))
        for row, network in enumerate(subjects):
            left = 0.0
            for k, share in enumerate(network.reports[main].exit_shares):
                colour = pick_exit_colour(k, count)
                axes.barh(row, 100 * share, left=left, color=colour, edgecolor=PAPER)
                if share > 0.06:
                    ink = choose_text_colour(colour)
                    axes.text(
                        left + 50 * share, row, f"{100 * share:.0f}", color=ink, ha="center", va="center", weight="bold"
                    )
                left += 100 * share
        axes.set_yticks(range(len(subjects)), [network.label for network in subjects])
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the test samples answered there (%)")
        _exit_legend(figure, count)
    results = "; ".join(f"{s.name}: {', '.join(_percent(v, 0) for v in s.reports[main].exit_shares)}" for s in subjects)
    return _svg(figure, f"Share of samples answered by exit, first to final. {results}")


def plot_consistency(subjects: Sequence[Subject], main: str) -> str:
    """Draw Pearson's CC of every early exit's map with the final map; a line across each bar is the null."""
    rows = [(network.label, [row.consistency["cc"] for row in network.reports[main].exits[:-1]]) for network in subjects]
    bars = [(name, [cc["value"] for cc in row], [cc["null"] for cc in row]) for name, row in rows]
    unit, control = "correlation with the final map", "null: another sample's map"
    alt = "Correlation of early exits' attention maps with the final map"
    return _bars(bars, len(subjects[0].reports[main].exits), unit, control, alt)


def plot_deletion(subjects: Sequence[Subject], main: str) -> str:
    """Draw the drop in the answer's probability after deleting the map's top cells; lines are for random cells."""
    checked = [(network.label, network.faithfulness[main]) for network in subjects if main in network.faithfulness]
    bars = [(name, checks.deletion, checks.deletion_random) for name, checks in checked]
    alt = "Drop in the answer's probability when the most attended 20 % of places are blanked"
    return _bars(bars, len(subjects[0].reports[main].exits), "drop in probability", "random places", alt)


def _bars(
    bars: Sequence[tuple[str, Sequence[float], Sequence[float]]], num_exits: int, unit: str, control: str, alt: str
) -> str:
    """Draw a group of bars for each exit; ``bars`` are each network's name, its values and the control's, by exit."""
    names, values, controls = zip(*bars, strict=True)
    width, count = 0.8 / len(names), len(values[0])
    with mpl.rc_context(STYLE):
        figure, axes = _figure(3.4)
        for i, (row, control_row) in enumerate(zip(values, controls, strict=True)):
            for k, (value, level) in enumerate(zip(row, control_row, strict=True)):
                x, colour = k + (i - (len(names) - 1) / 2) * width, pick_exit_colour(k, num_exits)
                axes.bar(x, value, width * 0.9, **_fill(i, colour))
                axes.plot([x - width / 2, x + width / 2], [level] * 2, color=INK, lw=2.5)
        axes.set_xticks(range(count), [exit_name(k, num_exits) for k in range(count)])
        axes.set_ylabel(unit)
        axes.axhline(0, color=INK, lw=0.8)
        marks: list[Any] = [Patch(label=name, **_fill(i, "#8a8a8a")) for i, name in enumerate(names)]
        figure.legend(handles=[*marks, Line2D([], [], color=INK, lw=2.5, label=control)], loc="outside upper left")
    results = "; ".join(f"{n}: {', '.join(f'{v:.2f}' for v in row)}" for n, row in zip(names, values, strict=True))
    return _svg(figure, f"{alt}, by exit. {results}; {control}: {', '.join(f'{v:.2f}' for v in controls[0])}")


def _fill(network: int, colour: str) -> dict[str, Any]:
    if network == 0:
        return {"facecolor": colour, "edgecolor": colour}
    return {"facecolor": PAPER, "edgecolor": colour, "hatch": HATCHES[network], "linewidth": 1.4}


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _exit_legend(figure: Figure, count: int) -> None:
    marks = [
        Line2D([], [], ls="none", marker="o", ms=8, color=pick_exit_colour(k, count), label=exit_name(k, count))
        for k in range(count)
    ]
    figure.legend(handles=marks, loc="outside upper left", ncols=min(count, 5), handletextpad=0.1)


def _svg(figure: Figure, alt: str) -> str:
    """Render the figure as an accessible ``<svg>`` element that takes ink, paper and font from the page."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[\w.]+_\d+"', "<g", text)  # ids must be unique in the page
    prefix = hashlib.sha256(alt.encode()).hexdigest()[:8]
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>x{prefix}-", text)
    text = text.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt, QUOTES)}" ', 1)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"
