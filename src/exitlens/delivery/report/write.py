"""The report: a self-contained HTML file that loads nothing and assumes no knowledge of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from exitlens.data.splits import SampleSet
from exitlens.delivery.pages import load_template
from exitlens.delivery.report import plots
from exitlens.delivery.report.gallery import build_gallery
from exitlens.delivery.report.subjects import Provenance, Subject
from exitlens.delivery.report.summary import name_things, summarize
from exitlens.display import pick_exit_colour
from exitlens.errors import InputError, OutputExistsError
from exitlens.io import write_text
from exitlens.types.outputs import exit_name


def write_report(
    path: Path,
    subjects: Sequence[Subject],
    images: Mapping[str, SampleSet],
    made: Provenance,
    *,
    speed: Mapping[str, Any] | None = None,
    plain_accuracy: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the report of one network, or of two or three side by side.

    Args:
        path: of the HTML file.
        subjects: the network the report is about, then those to compare it with; all have equally many exits.
        images: test images, or other samples, by condition; the gallery is picked from them.
        made: where the numbers come from.
        speed: ``Speed.to_dict()`` with ``accuracy_drop`` and ``cost``, by a title such as "batch size 1".
        plain_accuracy: accuracy of the plain backbone, trained without exits, under the main condition.
        overwrite: replace an existing file.

    Raises:
        OutputExistsError: if the file exists; InputError: for no subject, more than three, or different numbers of exits.
    """
    if not 1 <= len(subjects) <= plots.MOST:
        raise InputError(f"subjects: expected 1 to {plots.MOST}, got {len(subjects)}")
    counts = [s.net.num_exits for s in subjects]
    if len(set(counts)) > 1:
        raise InputError(f"subjects: expected networks with equally many exits, got {counts}: compare equals")
    if counts[0] < 2:
        raise InputError("subjects: expected networks with an early exit: attach one")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"report: {path} exists: choose another file")
    main = next(iter(subjects[0].reports))
    series = [plots.Series(s.name, s.reports[main], s.faithfulness.get(main)) for s in subjects]
    page = load_template("report.html.j2").render(
        **name_things(subjects[0].net),
        subjects=subjects,
        main=main,
        gated=any(s.policy.gate is not None for s in subjects),
        weighs=all(s.net.info.head != "average" for s in subjects),
        keeps=any(s.net.info.final == "keep" for s in subjects),
        worst=subjects[0].reports[main].list_worst_classes(),
        exits=[{"name": exit_name(k, counts[0]), "colour": pick_exit_colour(k, counts[0])} for k in range(counts[0])],
        summary=summarize(subjects, main, speed or {}, plain_accuracy),
        made=made,
        speed=speed or {},
        plain_accuracy=plain_accuracy,
        plot_cost=Markup(plots.plot_accuracy_cost(series, plain_accuracy)),
        plot_shares=Markup(plots.plot_exit_shares(series)),
        plot_consistency=Markup(plots.plot_consistency(series)) if series[0].report.exits[0].consistency else "",
        plot_deletion=Markup(plots.plot_deletion(series)) if series[0].faithfulness else "",
        gallery=build_gallery(subjects, images),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path
