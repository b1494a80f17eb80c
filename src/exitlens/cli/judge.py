"""Verbs that choose a policy and judge it: calibrate, evaluate, report."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

import exitlens as xl
from exitlens.cli import options
from exitlens.cli.options import (
    Bundle,
    Cache,
    Json,
    OtherData,
    Root,
    SkipBad,
    Workers,
    as_options,
    list_bad,
    name_exits,
    of_data,
    of_limits,
    show,
    show_skipped,
    tell,
    verbs,
    wait,
)
from exitlens.types.settings import ReadSettings


@verbs.command(epilog="Example: `exitlens calibrate --bundle runs/x --max-accuracy-drop 0.01`")
def calibrate(
    bundle: Bundle,
    json_: Json = False,
    max_accuracy_drop: Annotated[float | None, of_limits(help="Accuracy that may be lost, 0.01 is one point.")] = None,
    max_class_accuracy_drop: Annotated[float | None, of_limits(help="The same, in every class.")] = None,
    max_false_negative_drop: Annotated[
        float | None, of_limits(help="Of several labels: share of a sample's that may be missed more, on average.")
    ] = None,
    max_disagreement: Annotated[float | None, of_limits(help="Share of answers that may differ from the final's.")] = None,
    max_divergence: Annotated[float | None, of_limits(help="Mean divergence of the attention maps, in [0, 1].")] = None,
    max_cost: Annotated[float | None, of_limits(help="Mean cost, as a fraction of the plain backbone.")] = None,
    max_ms: Annotated[
        float | None, of_limits(help="Milliseconds of a batch at the exits taken, on average (with --cost time).")
    ] = None,
    percentile: Annotated[
        float | None, of_limits(help="Of 100 samples this many are to take no more than --max-ms, such as 95.")
    ] = None,
    delta: Annotated[
        float | None, of_limits(help="Certify: the limits hold for new data with this chance of being wrong, such as 0.1.")
    ] = None,
    equal_groups: Annotated[
        bool, of_limits("--equal-groups", help="Certify means over groups, large or small (with --delta and groups).")
    ] = False,
    folds: Annotated[
        int | None,
        of_limits(help="Held-out samples keep the limits, too (cross-validation): so many parts, such as 5."),
    ] = None,
    gate: Annotated[
        bool, of_limits("--gate", help="Exits also need a trusted attention map (with --max-divergence).")
    ] = False,
    score: Annotated[
        str, of_limits(help="max_probability (the default), entropy or margin; of several labels decided.")
    ] = "",
    data: OtherData = "",
    unlabelled: Annotated[
        str, of_data(help="Images or texts without labels, as for predict: for disagreement and divergence.")
    ] = "",
    columns: options.Columns = "",
    group_by: options.GroupBy = "",
    root: Root = "",
    skip_bad: SkipBad = False,
    workers: Workers = None,
    cache: Cache = None,
    compact: options.Compact = None,
    trace_dir: options.TraceDir = None,
    cost: options.Cost = "macs",
    timed_batch: options.TimedBatch = None,
    name: Annotated[str, Option(help="Store it under this name beside the others (default: as the bundle's own).")] = "",
) -> None:
    """Choose exit thresholds on the run's calibration split, and store them in the bundle.

    The limits hold on these samples, with --folds on held-out ones, too; --delta brings a certificate
    (docs/concepts/guarantees.md).
    """
    from exitlens.delivery.bundle import replace_policy
    from exitlens.delivery.run_directory import count_askings, load_samples, stream_samples
    from exitlens.types.policies import check_name
    from exitlens.types.requests import NEED_LABELS
    from exitlens.workflow.calibration import run_calibration

    limits: Any = {
        "max_accuracy_drop": max_accuracy_drop,
        "max_class_accuracy_drop": max_class_accuracy_drop,
        "max_false_negative_drop": max_false_negative_drop,
        "max_disagreement": max_disagreement,
        "max_divergence": max_divergence,
    }
    spend: Any = {"max_cost": max_cost, "max_ms": max_ms, "percentile": percentile}
    if all(value is None for value in (*limits.values(), max_cost, max_ms)):
        names = ", ".join("--" + name.replace("_", "-") for name in (*limits, "max_cost", "max_ms"))
        raise xl.InputError(f"limits: expected at least one of {names}")
    rules: Any = {"delta": delta, "gate": gate, "equal_groups": equal_groups, "folds": folds, "score": score or None}
    request = xl.CalibrationRequest(**limits, **spend, **rules)  # refuses what makes no sense before anything is collected
    if name:
        check_name(name, "name")
    if max_ms is not None and cost != "time":
        raise xl.InputError("max_ms: it is about measured time: give --cost time, too")
    _check_unlabelled(unlabelled, data, root, [limits[name] for name in NEED_LABELS])
    net, _ = xl.load(bundle)
    reading = ReadSettings(data, root, columns, group_by, skip_bad, workers, cache)
    with wait(json_, "listing the data"):
        samples: Any = (
            stream_samples(net, replace(reading, data=unlabelled), batch_size=64, run=bundle)
            if unlabelled
            else load_samples(bundle, net, "calibration", reading)
        )
    how: Any = {"compact": compact, "trace_dir": trace_dir, "cost": cost, "timed_batch": timed_batch}
    if (trace := _collect(net, samples, json_, how)) is None:
        return
    counted = count_askings(bundle, trace)
    with counted, wait(json_, "choosing thresholds"), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", xl.DataWarning)
        policy = run_calibration(trace, request)
    replace_policy(bundle, policy, name)
    notes = [str(one.message) for one in told if one.category is xl.DataWarning]
    _show_policy(net, trace, policy, gate, notes, list_bad(samples), json_)


def _check_unlabelled(unlabelled: str, data: str, root: str, accuracy: list[float | None]) -> None:
    """Raises :class:`InputError` for what --unlabelled does not go with."""
    if not unlabelled:
        return
    if data or root:
        raise xl.InputError("data, unlabelled: expected one of them (--root goes with --data)")
    if any(limit is not None for limit in accuracy):
        raise xl.InputError("unlabelled: accuracy needs labels: give --max-disagreement or --max-divergence, or --data")


def _show_policy(
    net: xl.ExitNet, trace: xl.Trace, policy: xl.Policy, gate: bool, notes: list[str], bad: list[str], json_: bool
) -> None:
    report, certificate = xl.evaluate(trace, policy), policy.certificate()
    rows = [["exit", "threshold", "temperature", "share %"]]
    thresholds = [*(f"{t:.4f}".replace("inf", "never") for t in policy.thresholds), "answers the rest"]
    for *cells, temperature, share in zip(name_exits(net), thresholds, policy.temperatures, report.exit_shares, strict=True):
        rows.append([*cells, f"{temperature:.3f}", f"{100 * share:.1f}"])
    groups = "" if trace.groups is None else f" in {trace.num_groups} groups"
    timed = "" if trace.timing is None else f", {report.ms:.3g} ms on average of {trace.timing.list_ms()}"
    title = f"on {len(trace)} calibration samples{groups}: cost {report.cost:.3f}{timed}"
    show(json_, policy.to_dict() | {"certificate": certificate, "warnings": notes, "bad": bad}, title, rows)
    if not json_ and gate:
        kept = "kept: " + ", ".join(f"{limit:.4f}" for limit in policy.gate.limits) if policy.gate else "none: no gain"
        tell(f"gate, limits on the estimated divergence by exit: {kept}")
    said = [
        _explain_temperatures(policy),
        _explain_exit_0(report, policy),
        as_options(certificate),
        *(f"warning: {as_options(note)}" for note in notes),
    ]
    for line in [] if json_ else filter(None, said):
        tell(line)
    show_skipped(json_, bad)


def _explain_temperatures(policy: xl.Policy) -> str:
    """Return what a temperature does, where some were fitted, and how far confidences still are from accuracy."""
    if set(policy.temperatures) == {1.0}:
        return ""
    error = policy.calibration.calibration_error if policy.calibration else None
    left = "" if error is None else f"; after it confidences are off by {100 * error:.1f} % on average"
    return (
        f"temperature: what an exit's logits are divided by, so that its confidence fits its accuracy (1: no change){left}"
    )


def _explain_exit_0(report: xl.Report, policy: xl.Policy) -> str:
    """Why the first exit answers everything, where it does, and no budget of cost or time is the reason."""
    limits = policy.calibration.limits if policy.calibration else {}
    if report.exit_shares[0] < 1 or limits.keys() & {"max_cost", "max_ms"}:
        return ""
    known = [row.accuracy for row in report.exits if row.accuracy is not None]
    shown = f" ({100 * known[0]:.1f} % are right at exit 0, {100 * known[-1]:.1f} % at the final exit)" if known else ""
    return (
        f"exit 0 answers everything: on these samples no later exit is better by more than the limits allow{shown}; longer "
        "training (fit --epochs) or more data may change that"
    )


@verbs.command(epilog="Example: `exitlens evaluate --bundle runs/x`")
def evaluate(
    bundle: Bundle,
    data: OtherData = "",
    columns: options.Columns = "",
    group_by: options.GroupBy = "",
    root: Root = "",
    skip_bad: SkipBad = False,
    workers: Workers = None,
    cache: Cache = None,
    compact: options.Compact = None,
    trace_dir: options.TraceDir = None,
    cost: options.Cost = "macs",
    timed_batch: options.TimedBatch = None,
    json_: Json = False,
    name: options.PolicyName = "",
) -> None:
    """Test the policy on the run's test split: accuracy, cost and consistency of every exit."""
    from exitlens.delivery.run_directory import load_calibrated, load_samples

    net, policy = load_calibrated(bundle, name)
    reading = ReadSettings(data, root, columns, group_by, skip_bad, workers, cache)
    with wait(json_, "listing the data"):
        samples = load_samples(bundle, net, "test", reading)
    how: Any = {"compact": compact, "trace_dir": trace_dir, "cost": cost, "timed_batch": timed_batch}
    if (trace := _collect(net, samples, json_, how)) is None:
        return
    found = xl.evaluate(trace, policy)
    if json_:
        show(True, found.to_dict() | {"class_names": net.info.classes, "bad": list_bad(samples)})
    else:
        tell(str(found))
        _show_classes(found, net.info.classes)
    show_skipped(json_, list_bad(samples))


def _show_classes(found: xl.Report, names: Sequence[str]) -> None:
    """A table of the worst classes, where there are labels."""
    worst = found.list_worst_classes()
    if worst:
        kind = "accuracy %" if found.labels is None else "found %"
        rows = [["class", "samples", kind, "final exit's %"]]
        for row in worst:
            name = names[row.label] if names else str(row.label)
            rows.append([name, str(row.samples), f"{100 * row.accuracy:.1f}", f"{100 * row.final_accuracy:.1f}"])
        few = len(found.classes) > len(worst)
        title = f"the {len(worst)} worst of {len(found.classes)} classes" if few else "classes, the worst first"
        show(False, {}, title, rows)


def _collect(net: xl.ExitNet, samples: Any, json_: bool, how: dict[str, Any]) -> xl.Trace | None:
    """The trace of all processes' samples, in the first of them; the others have done their part."""
    from exitlens.ranks import find_ranks

    trace = xl.collect(net, samples, progress=not json_, **how)
    return trace if find_ranks().is_first else None


@verbs.command(epilog="Example: `exitlens report runs/x --compare runs/y --out report.html`")
def report(
    run: Annotated[Path, Argument(help="Run directory of `exitlens fit`, or a bundle, with a policy.")],
    compare: options.Compare = None,
    out: Annotated[Path, Option(help="The HTML file, which must not exist.")] = Path("report.html"),
    data: OtherData = "",
    columns: options.Columns = "",
    group_by: options.GroupBy = "",
    root: Root = "",
    skip_bad: SkipBad = False,
    workers: Workers = None,
    cache: Cache = None,
    cost: options.Cost = "macs",
    timed_batch: options.TimedBatch = None,
    json_: Json = False,
) -> None:
    """Write a page about a run, or about two side by side, on the first one's test images."""
    from exitlens.delivery.report.subjects import CONDITION, describe_provenance, measure_subjects
    from exitlens.delivery.report.write import write_report
    from exitlens.delivery.run_directory import load_calibrated, load_samples, require_preprocess

    if out.exists():
        raise xl.OutputExistsError(f"out: {out} exists: choose another file")
    runs = [run] if compare is None else [run, compare]
    net, _ = load_calibrated(run)
    require_preprocess(net, net.input_spec.modality.preprocess)
    reading = ReadSettings(data, root, columns, group_by, skip_bad, workers, cache)
    with wait(json_, "listing the data"):
        images = load_samples(run, net, "test", reading)
    given = {"--compare": compare, "--data": data, "--columns": columns, "--group-by": group_by, "--root": root}
    given |= {
        "--out": out,
        "--cost": "" if cost == "macs" else cost,
        "--timed-batch": "" if timed_batch is None else str(timed_batch),
    }
    words = [word for name, value in given.items() if value for word in (name, str(value))]
    command = ["exitlens", "report", str(run), *words, *(["--skip-bad"] if skip_bad else [])]
    made = describe_provenance(runs, images, command, data)
    subjects = measure_subjects(runs, images, progress=not json_, cost=cost, timed_batch=timed_batch)  # type: ignore[arg-type]
    bad = list_bad(images)
    if bad:
        made = replace(made, data=f"{made.data}, without {len(bad)} that cannot be read")
    write_report(out, subjects, {CONDITION: images}, made)
    found = {str(path): subject.reports[CONDITION] for path, subject in zip(runs, subjects, strict=True)}
    rows = [["run", "accuracy %", "cost", "divergence"]]
    for path, one in found.items():
        rows.append([path, f"{100 * (one.accuracy or 0):.1f}", f"{one.cost:.3f}", f"{one.divergence:.3f}"])
    values = {"out": str(out), "runs": {path: one.to_dict() for path, one in found.items()}, "bad": bad}
    show(json_, values, f"{len(images) - len(bad)} test {images.modality.plural}: {out}", rows)
    show_skipped(json_, bad)
