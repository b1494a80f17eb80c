"""Verbs that choose a policy and judge it: calibrate, evaluate, report."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

import exitlens as xl
from exitlens.cli import options
from exitlens.cli.options import (
    Bundle,
    Json,
    as_options,
    list_bad,
    name_exits,
    of_data,
    show,
    show_skipped,
    takes,
    tell,
    verbs,
    wait,
)
from exitlens.types.settings import NEED_LABELS, RISK_LIMITS, CalibrationRequest, ReadSettings


@dataclass(frozen=True)
class CollectOptions:
    """Options of collecting a trace.

    Attributes:
        compact: Keep only the largest logits and what the others amount to (default: from 100 classes and 2^26 logits on).
        trace_dir: Directory to keep the trace in, for `Trace.load` (default: it is not kept).
        cost: Measure of cost: macs (multiply-accumulates), or time, which is measured now: let nothing else run meanwhile.
        timed_batch: With --cost time: samples in the batch that is timed, 1 for single ones (default: 64).
    """

    compact: bool | None = None
    trace_dir: Path | None = None
    cost: Literal["macs", "time"] = "macs"
    timed_batch: int | None = None


READING = {"Data": "data columns group_by root skip_bad workers cache"}
TRACE = {"Data": "compact trace_dir cost timed_batch"}
LIMITS = {"Limits": f"{' '.join(RISK_LIMITS)} max_cost max_ms percentile delta equal_groups folds gate score"}


@verbs.command(epilog="Example: `exitlens calibrate --bundle runs/x --max-accuracy-drop 0.01`")
@takes(CalibrationRequest, LIMITS)
@takes(ReadSettings, READING)
@takes(CollectOptions, TRACE)
def calibrate(
    bundle: Bundle,
    make_request: Callable[..., CalibrationRequest],
    make_reading: Callable[..., ReadSettings],
    make_options: Callable[..., CollectOptions],
    json_: Json = False,
    unlabelled: Annotated[
        str, of_data(help="Samples without labels, as for predict: for disagreement and divergence.")
    ] = "",
    name: Annotated[str, Option(help="Store it under this name beside the others (default: as the bundle's own).")] = "",
) -> None:
    """Choose exit thresholds on the run's calibration split, and store them in the bundle.

    The limits hold on these samples, with --folds on held-out ones, too; --delta brings a certificate
    (docs/concepts/guarantees.md).
    """
    from exitlens.delivery.bundle import replace_policy
    from exitlens.delivery.run_directory import keep_askings, load_samples, stream_samples
    from exitlens.types.policies import check_name
    from exitlens.workflow.calibration import run_calibration

    request = make_request()  # refuses what makes no sense before anything is collected
    where, trace_options = make_reading(), make_options()
    if name:
        check_name(name, "name")
    if request.max_ms is not None and trace_options.cost != "time":
        raise xl.errors.InputError("max_ms: it is about measured time. Fix: pass --cost time, too.")
    if unlabelled and (where.data or where.root):
        raise xl.errors.InputError("data, unlabelled: expected one of them (--root goes with --data)")
    if unlabelled and any(getattr(request, limit) is not None for limit in NEED_LABELS):
        raise xl.errors.InputError(
            "unlabelled: accuracy needs labels. Fix: pass --max-disagreement, --max-divergence or --data."
        )
    net, _ = xl.load(bundle)
    with wait(json_, "listing the data"):
        samples: Any = (
            stream_samples(net, replace(where, data=unlabelled), batch_size=64, run=bundle)
            if unlabelled
            else load_samples(bundle, net, "calibration", where)
        )
    if (trace := _collect(net, samples, trace_options, json_)) is None:
        return
    with keep_askings(bundle, trace), wait(json_, "choosing thresholds"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", xl.errors.DataWarning)
        policy = run_calibration(trace, request)  # xl.calibrate would build the request again
    replace_policy(bundle, policy, name)
    notes = [str(warning.message) for warning in caught if warning.category is xl.errors.DataWarning]
    _show_policy(net, trace, policy, notes, list_bad(samples), json_)


def _show_policy(net: xl.ExitNet, trace: xl.Trace, policy: xl.Policy, notes: list[str], bad: list[str], json_: bool) -> None:
    report, certificate = xl.evaluate(trace, policy), policy.certificate()
    rows = [["exit", "threshold", "temperature", "share %"]]
    thresholds = [*(f"{t:.4f}".replace("inf", "never") for t in policy.thresholds), "answers the rest"]
    for *cells, temperature, share in zip(name_exits(net), thresholds, policy.temperatures, report.exit_shares, strict=True):
        rows.append([*cells, f"{temperature:.3f}", f"{100 * share:.1f}"])
    groups = "" if trace.groups is None else f" in {trace.num_groups} groups"
    timed = "" if trace.timing is None else f", {report.ms:.3g} ms on average of {trace.timing.list_ms()}"
    title = f"on {len(trace)} calibration samples{groups}: cost {report.cost:.3f}{timed}"
    show(json_, policy.to_dict() | {"certificate": certificate, "warnings": notes, "bad": bad}, title, rows)
    if not json_ and policy.calibration is not None and policy.calibration.request.gate:
        kept = "kept: " + ", ".join(f"{limit:.4f}" for limit in policy.gate.limits) if policy.gate else "none: no gain"
        tell(f"gate, limits on the estimated divergence by exit: {kept}")
    warned = [f"warning: {as_options(note)}" for note in notes]
    lines = [_explain_temperatures(policy), _explain_exit_0(report, policy), as_options(certificate), *warned]
    for line in [] if json_ else filter(None, lines):
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
    """Return why the first exit answers everything, if it does and no budget of cost or time is the reason."""
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
@takes(ReadSettings, READING)
@takes(CollectOptions, TRACE)
def evaluate(
    bundle: Bundle,
    make_reading: Callable[..., ReadSettings],
    make_options: Callable[..., CollectOptions],
    json_: Json = False,
    name: options.PolicyName = "",
) -> None:
    """Test the policy on the run's test split: accuracy, cost and consistency of every exit."""
    from exitlens.delivery.run_directory import load_calibrated, load_samples

    net, policy = load_calibrated(bundle, name)
    with wait(json_, "listing the data"):
        samples = load_samples(bundle, net, "test", make_reading())
    if (trace := _collect(net, samples, make_options(), json_)) is None:
        return
    result = xl.evaluate(trace, policy)
    if json_:
        show(True, result.to_dict() | {"class_names": net.info.classes, "bad": list_bad(samples)})
    else:
        tell(str(result))
        if worst := result.list_worst_classes():
            rows = [["class", "samples", "accuracy %" if result.labels is None else "found %", "final exit's %"]]
            for row in worst:
                name = net.info.classes[row.label] if net.info.classes else str(row.label)
                rows.append([name, str(row.samples), f"{100 * row.accuracy:.1f}", f"{100 * row.final_accuracy:.1f}"])
            few = len(result.classes) > len(worst)
            title = f"the {len(worst)} worst of {len(result.classes)} classes" if few else "classes, the worst first"
            show(False, {}, title, rows)
    show_skipped(json_, list_bad(samples))


def _collect(net: xl.ExitNet, samples: Any, trace_options: CollectOptions, json_: bool) -> xl.Trace | None:
    """Return the trace of all processes' samples, in the first of them; the others have done their part."""
    from exitlens.ranks import find_ranks

    trace = xl.collect(net, samples, progress=not json_, **vars(trace_options))
    return trace if find_ranks().is_first else None


@verbs.command(epilog="Example: `exitlens report runs/x --compare runs/y --out report.html`")
@takes(ReadSettings, READING)
@takes(CollectOptions, {"Data": "cost timed_batch"})
def report(
    run: Annotated[Path, Argument(help="Run directory of `exitlens fit`, or a bundle, with a policy.")],
    make_reading: Callable[..., ReadSettings],
    make_options: Callable[..., CollectOptions],
    compare: options.Compare = None,
    out: Annotated[Path, Option(help="The HTML file, which must not exist.")] = Path("report.html"),
    json_: Json = False,
) -> None:
    """Write a page about a run, or about two side by side, on the first one's test images."""
    from exitlens.delivery.report import CONDITION, describe_provenance, measure_subjects, write_report
    from exitlens.delivery.run_directory import load_calibrated, load_samples, require_preprocess

    where, timing = make_reading(), make_options()
    if out.exists():
        raise xl.errors.OutputExistsError(f"out: {out} exists. Fix: choose another file.")
    runs = [run] if compare is None else [run, compare]
    net, _ = load_calibrated(run)
    require_preprocess(net, net.input_spec.modality.preprocess)
    with wait(json_, "listing the data"):
        samples = load_samples(run, net, "test", where)
    cost = "" if timing.cost == "macs" else timing.cost
    given: dict[str, Any] = {"--compare": compare, "--data": where.data, "--columns": where.columns}
    given |= {"--group-by": where.group_by, "--root": where.root, "--out": out, "--cost": cost}
    given |= {"--timed-batch": timing.timed_batch}
    command = ["exitlens", "report", str(run), *(str(word) for pair in given.items() if pair[1] for word in pair)]
    command += ["--skip-bad"] * where.skip_bad
    made = describe_provenance(runs, samples, command, where.data)
    subjects = measure_subjects(runs, samples, progress=not json_, cost=timing.cost, timed_batch=timing.timed_batch)
    bad = list_bad(samples)
    if bad:
        made = replace(made, data=f"{made.data}, without {len(bad)} that cannot be read")
    write_report(out, subjects, {CONDITION: samples}, made, progress=not json_)
    reports = {str(path): subject.reports[CONDITION] for path, subject in zip(runs, subjects, strict=True)}
    rows = [["run", "accuracy %", "cost", "divergence"]]
    for path, result in reports.items():
        rows.append([path, f"{100 * (result.accuracy or 0):.1f}", f"{result.cost:.3f}", f"{result.divergence:.3f}"])
    values = {"out": str(out), "runs": {path: result.to_dict() for path, result in reports.items()}, "bad": bad}
    show(json_, values, f"{len(samples) - len(bad)} test {samples.modality.plural}: {out}", rows)
    show_skipped(json_, bad)
