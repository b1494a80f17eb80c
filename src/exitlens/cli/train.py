"""Verbs that make a network and its policy: demo, fit, calibrate, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import exitlens as xl
from exitlens.cli.options import BACKBONES, Bundle, Data, Json, OtherData, Root, SkipBad, console, literal, show, verbs
from exitlens.data.images import ImageSet
from exitlens.data.sources import open_source
from exitlens.delivery.bundle import find_bundle
from exitlens.delivery.demo.demo import run_demo
from exitlens.delivery.demo.training import DemoSettings
from exitlens.delivery.report.comparing import CONDITION, describe_provenance, measure_subjects
from exitlens.delivery.report.write import write_report
from exitlens.delivery.run_directory import (
    forget_source,
    load_calibrated,
    load_samples,
    read_kept_policy,
    read_recorded_exits,
    replace_policy,
    require_image_preprocess,
    stream_samples,
    write_source,
)
from exitlens.delivery.run_setup import build_network, load_training_sets
from exitlens.functional.risk import check_limits
from exitlens.modalities import TEXT
from exitlens.types.words import exit_name


@verbs.command(epilog="Example: `exitlens demo --out runs/demo`")
def demo(
    out: Annotated[Path, typer.Option(help="Directory for report, bundle and JSON.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of data, weights and training.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run in the same directory.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny run that shows the flow; its numbers mean nothing.")
    ] = False,
    json_: Json = False,
) -> None:
    """Train with and without Explanation-Guided Training on real images, compare, and write a report."""
    settings = DemoSettings.quick(seed) if quick else DemoSettings(seed)
    result = run_demo(out, settings, resume=resume, quiet=json_)
    count = len(result["egt"]["agreeing"]["accuracy"])
    names = [exit_name(k, count) for k in range(count)]
    rows = [["", "", *names]]
    for run in ("baseline", "egt"):
        for condition in ("agreeing", "disagreeing"):
            values = result[run][condition]
            rows.append([run, f"accuracy %, {condition}", *[f"{100 * a:.1f}" for a in values["accuracy"]]])
        values = result[run]["agreeing"]
        rows.append([run, "attention skill", *[f"{a:.2f}" for a in values["skill"]], ""])
        rows.append([run, "deletion drop (random)", *_pairs(values["deletion"], values["deletion_random"])])
    show(json_, result, "Explanation-Guided Training (egt) against the same exits without it (baseline)", rows)
    if not json_:
        for name in ("batch_1", "batch_64"):
            s = result["speed"][name]
            line = f"{name.replace('_', ' size ')}: [bold]{s['speedup']:.2f}x[/bold] faster than the plain backbone, "
            console.print(line + f"{100 * s['accuracy_drop']:.2f} points less accurate, cost {s['cost']:.2f}")
        console.print(f"Report: {out / 'report.html'}   bundle: {out / 'bundle'}   {result['seconds']:.0f} s")


def _pairs(values: list[float], controls: list[float]) -> list[str]:
    return [f"{v:.2f} ({c:.2f})" for v, c in zip(values, controls, strict=True)]


@verbs.command(
    epilog="Example: `exitlens fit --data DIR --backbone torchvision:resnet18 --exits layer1,layer2,layer3 --out runs/x`"
)
def fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="New run directory: checkpoints, log and bundle.")],
    backbone: Annotated[str, typer.Option(help=BACKBONES)] = "small",
    exits: Annotated[
        str,
        typer.Option(
            help="Module names after which exits stand, comma-separated; or how many (default layer1,layer2,layer3 or 3)."
        ),
    ] = "",
    by: Annotated[
        str, typer.Option(help="How many exits: at equal shares of cost, or of the time measured on this machine.")
    ] = "cost",
    head: Annotated[
        str,
        typer.Option(
            help="Exit heads: context (a small neck before the early ones), evidence, average (default: context for images, "
            "evidence for texts)."
        ),
    ] = "",
    epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = 8,
    weight: Annotated[
        float, typer.Option(help="Of the attention-consistency loss; 0 trains without it.")
    ] = xl.EGTLoss().weight,
    batch_size: Annotated[int, typer.Option(help="Samples a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Peak of the one-cycle schedule.")] = 4e-3,
    size: Annotated[
        int,
        typer.Option(
            help="Pixels a side of images from folders (default 64; 128 for torchvision networks); tokens of a text "
            "(default 64; reviews 32)."
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the split, the weights and the training.")] = 0,
    keep_final: Annotated[
        bool, typer.Option("--keep-final", help="Keep the backbone's own classifier as final exit.")
    ] = False,
    freeze: Annotated[bool, typer.Option("--freeze-backbone", help="Train the exit heads only.")] = False,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from the library's weights.")] = False,
    weights: Annotated[Path | None, typer.Option(help="Start from a local state dict (safetensors or PyTorch).")] = None,
    root: Root = "",
    skip_bad: SkipBad = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")] = False,
    json_: Json = False,
) -> None:
    """Train a network with exits on your images or texts."""
    if not size and backbone.startswith("torchvision:"):
        size = 128  # large networks shrink smaller images to a map of a few cells
    source = open_source(data, root=root, size=size, seed=seed)
    train, validation = load_training_sets(backbone, source, skip_bad)
    if resume and by == "time":  # measured again, they could be others
        exits, by = read_recorded_exits(out, exits, by)
    net = build_network(
        backbone, exits, train, seed=seed, keep_final=keep_final, pretrained=pretrained, weights=weights, by=by, head=head
    )
    write_source(out, source, resume=resume)
    try:
        result = xl.fit(
            net,
            train,
            validation,
            loss=xl.EGTLoss(weight=weight),
            epochs=epochs,
            out_dir=out,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            freeze_backbone=freeze,
            resume=resume,
            progress=not json_,
            tensorboard=tensorboard,
        )
    except xl.ExitlensError:
        forget_source(out)
        raise
    xl.save(net, read_kept_policy(out / "bundle", net), out / "bundle", overwrite=resume)
    last = result.history[-1]
    values = {"out": str(out), "epochs": epochs, "accuracy": last["accuracy"], "cc": last["cc"], "seconds": result.seconds}
    rows = [["exit", "validation accuracy %", "attention CC with final"]]
    for k, accuracy in enumerate(last["accuracy"]):
        cc = f"{last['cc'][k]:.2f}" if k < len(last["cc"]) else ""
        rows.append([exit_name(k, len(last["accuracy"])), f"{100 * accuracy:.1f}", cc])
    show(json_, values, f"{out}: next, exitlens calibrate --bundle {out} --max-accuracy-drop 0.01", rows)


@verbs.command(epilog="Example: `exitlens calibrate --bundle runs/x --max-accuracy-drop 0.01`")
def calibrate(
    bundle: Bundle,
    max_accuracy_drop: Annotated[float | None, typer.Option(help="Accuracy that may be lost, 0.01 is one point.")] = None,
    max_class_accuracy_drop: Annotated[float | None, typer.Option(help="The same, in every class.")] = None,
    max_disagreement: Annotated[
        float | None, typer.Option(help="Share of answers that may differ from the final's.")
    ] = None,
    max_divergence: Annotated[float | None, typer.Option(help="Mean divergence of the attention maps, in [0, 1].")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Mean cost, as a fraction of the plain backbone.")] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="Certify: the limits hold for new data with this chance of being wrong, such as 0.1."),
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Exits also need a trusted attention map (with --max-divergence).")
    ] = False,
    score: Annotated[str, typer.Option(help="max_probability, entropy or margin.")] = "max_probability",
    data: OtherData = "",
    unlabelled: Annotated[
        Path | None, typer.Option(help="Folder of images or file of texts without labels, for disagreement and divergence.")
    ] = None,
    root: Root = "",
    skip_bad: SkipBad = False,
    json_: Json = False,
) -> None:
    """Choose exit thresholds on the run's calibration split, and store them in the bundle.

    With --delta they come with a certificate: see docs/guarantees.md.
    """
    limits = {
        "max_accuracy_drop": max_accuracy_drop,
        "max_class_accuracy_drop": max_class_accuracy_drop,
        "max_disagreement": max_disagreement,
        "max_divergence": max_divergence,
    }
    if all(value is None for value in (*limits.values(), max_cost)):
        options = ", ".join("--" + name.replace("_", "-") for name in (*limits, "max_cost"))
        raise xl.InputError(f"limits: expected at least one of {options}")
    check_limits(limits, max_cost=max_cost, delta=delta, score=score, gate=gate)  # before anything is collected
    directory = find_bundle(bundle)
    net, _ = xl.load(directory)
    if unlabelled is not None and data:
        raise xl.InputError("data, unlabelled: expected one of them")
    samples: Any = (
        load_samples(bundle, net, "calibration", data=data, root=root, skip_bad=skip_bad)
        if unlabelled is None
        else stream_samples(net, unlabelled, batch_size=64, skip_bad=skip_bad)
    )
    trace = xl.collect(net, samples, progress=not json_)
    policy = xl.calibrate(trace, **limits, max_cost=max_cost, delta=delta, gate=gate, score=score)  # type: ignore[arg-type]
    replace_policy(directory, policy)
    report = xl.evaluate(trace, policy)
    rows = [["exit", "threshold", "temperature", "share %"]]
    for k, share in enumerate(report.exit_shares):
        threshold = (
            f"{policy.thresholds[k]:.4f}".replace("inf", "never") if k < len(policy.thresholds) else "answers the rest"
        )
        rows.append(
            [exit_name(k, len(policy.temperatures)), threshold, f"{policy.temperatures[k]:.3f}", f"{100 * share:.1f}"]
        )
    values = policy.to_dict() | {"certificate": policy.certificate()}
    show(json_, values, f"on {len(trace)} calibration samples: cost {report.cost:.3f}", rows)
    if not json_:
        if gate:
            kept = "kept: " + ", ".join(f"{limit:.4f}" for limit in policy.gate.limits) if policy.gate else "none: no gain"
            console.print(literal(f"gate, limits on the estimated divergence by exit: {kept}"), highlight=False)
        console.print(literal(policy.certificate()), highlight=False)


@verbs.command(epilog="Example: `exitlens evaluate --bundle runs/x --report runs/x/report.html`")
def evaluate(
    bundle: Bundle,
    data: OtherData = "",
    root: Root = "",
    report: Annotated[Path | None, typer.Option(help="Also write an HTML report to this new file (images).")] = None,
    baseline: Annotated[Path | None, typer.Option(help="A second run or bundle, to stand beside it in the report.")] = None,
    skip_bad: SkipBad = False,
    json_: Json = False,
) -> None:
    """Test the policy on the run's test split: accuracy, cost and consistency of every exit."""
    if report is not None and report.exists():
        raise xl.OutputExistsError(f"report: {report} exists: choose another file")
    net, policy = load_calibrated(bundle)
    if report is not None and net.input_spec.modality is TEXT:
        raise xl.InputError("report: it shows images, this network takes texts: leave --report out (explain shows texts)")
    images = load_samples(bundle, net, "test", data=data, root=root, skip_bad=skip_bad)
    if report is None:
        found = xl.evaluate(xl.collect(net, images, progress=not json_), policy)
    else:
        assert isinstance(images, ImageSet)
        runs = [bundle] if baseline is None else [bundle, baseline]
        command = ["exitlens", "evaluate", "--bundle", str(bundle), *(["--baseline", str(baseline)] if baseline else [])]
        command += [*_repeat_options(data, root, skip_bad), "--report", str(report)]
        made = describe_provenance(runs, images, command, data)
        subjects = measure_subjects(runs, images)
        write_report(report, subjects, {CONDITION: images}, made)
        found = subjects[0].reports[CONDITION]
    if json_:
        show(True, found.to_dict())
    else:
        console.print(str(found), highlight=False)


def _repeat_options(data: str, root: str, skip_bad: bool) -> list[str]:
    """Options about the data, as they were given."""
    return [*(["--data", data] if data else []), *(["--root", root] if root else []), *(["--skip-bad"] if skip_bad else [])]


@verbs.command(epilog="Example: `exitlens report runs/x runs/y --out report.html`")
def report(
    run: Annotated[Path, typer.Argument(help="Run directory of `exitlens fit`, or a bundle, with a policy.")],
    other: Annotated[Path | None, typer.Argument(help="A second one, to stand beside it.")] = None,
    out: Annotated[Path, typer.Option(help="The HTML file, which must not exist.")] = Path("report.html"),
    data: OtherData = "",
    root: Root = "",
    skip_bad: SkipBad = False,
    json_: Json = False,
) -> None:
    """Write one page about a run, or about two side by side, on the first one's test images."""
    if out.exists():
        raise xl.OutputExistsError(f"out: {out} exists: choose another file")
    runs = [run] if other is None else [run, other]
    net, _ = load_calibrated(run)
    require_image_preprocess(net)  # says so if it takes texts
    images = load_samples(run, net, "test", data=data, root=root, skip_bad=skip_bad)
    assert isinstance(images, ImageSet)
    command = ["exitlens", "report", *map(str, runs), *_repeat_options(data, root, skip_bad), "--out", str(out)]
    made = describe_provenance(runs, images, command, data)
    subjects = measure_subjects(runs, images)
    write_report(out, subjects, {CONDITION: images}, made)
    found = {str(path): subject.reports[CONDITION].to_dict() for path, subject in zip(runs, subjects, strict=True)}
    rows = [["run", "accuracy %", "cost", "divergence"]]
    for path, subject in zip(runs, subjects, strict=True):
        one = subject.reports[CONDITION]
        rows.append([str(path), f"{100 * (one.accuracy or 0):.1f}", f"{one.cost:.3f}", f"{one.divergence:.3f}"])
    show(json_, {"out": str(out), "runs": found}, f"{len(images)} test images: {out}", rows)
