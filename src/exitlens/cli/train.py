"""Verbs that make a network and its policy, and judge them: demo, fit, calibrate, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

import exitlens as xl
from exitlens.cli import options
from exitlens.cli.options import Bundle, Json, OtherData, Root, SkipBad, console, literal, show, verbs


@verbs.command(epilog="Example: `exitlens demo --out runs/demo`")
def demo(
    out: Annotated[Path, Option(help="Directory for report, bundle and JSON.")] = Path("runs/demo"),
    seed: Annotated[int, Option(help="Of data, weights and training.")] = 0,
    resume: Annotated[bool, Option("--resume", help="Continue an unfinished run in the same directory.")] = False,
    quick: Annotated[bool, Option("--quick", help="A tiny run that shows the flow; its numbers mean nothing.")] = False,
    json_: Json = False,
) -> None:
    """Train with and without Explanation-Guided Training on real images, compare, and write a report."""
    from exitlens.delivery.demo.demo import run_demo
    from exitlens.delivery.demo.training import DemoSettings
    from exitlens.types.words import exit_name

    settings = DemoSettings.quick(seed) if quick else DemoSettings(seed)
    result = run_demo(out, settings, resume=resume, quiet=json_)
    count = len(result["egt"]["agreeing"]["accuracy"])
    rows = [["", "", *[exit_name(k, count) for k in range(count)]]]
    for run in ("baseline", "egt"):
        for condition in ("agreeing", "disagreeing"):
            values = result[run][condition]
            rows.append([run, f"accuracy %, {condition}", *[f"{100 * a:.1f}" for a in values["accuracy"]]])
        values = result[run]["agreeing"]
        rows.append([run, "attention skill", *[f"{a:.2f}" for a in values["skill"]], ""])
        pairs = zip(values["deletion"], values["deletion_random"], strict=True)
        rows.append([run, "deletion drop (random)", *[f"{drop:.2f} ({random:.2f})" for drop, random in pairs]])
    show(json_, result, "Explanation-Guided Training (egt) against the same exits without it (baseline)", rows)
    if json_:
        return
    for name in ("batch_1", "batch_64"):
        s = result["speed"][name]
        line = f"{name.replace('_', ' size ')}: [bold]{s['speedup']:.2f}x[/bold] faster than the plain backbone, "
        console.print(line + f"{100 * s['accuracy_drop']:.2f} points less accurate, cost {s['cost']:.2f}")
    console.print(f"Report: {out / 'report.html'}   bundle: {out / 'bundle'}   {result['seconds']:.0f} s")


@verbs.command(
    epilog="Example: `exitlens fit --data DIR --backbone torchvision:resnet18 --exits layer1,layer2,layer3 --out runs/x`"
)
def fit(
    data: options.Data,
    out: Annotated[Path, Option(help="New run directory: checkpoints, log and bundle.")],
    backbone: Annotated[str, Option(help=options.BACKBONES)] = "small",
    exits: Annotated[
        str, Option(help="Modules to put exits after, comma-separated, or how many (default layer1,layer2,layer3 or 3).")
    ] = "",
    placement: Annotated[str, Option(help="Place a number of exits at equal shares of cost or of measured time.")] = "cost",
    head: Annotated[
        str, Option(help="context (a neck before early heads; images' default), evidence (texts' default) or average.")
    ] = "",
    epochs: Annotated[int, Option(help="Passes over the training data.")] = 8,
    egt_weight: Annotated[float, Option(help="Of the attention-consistency loss (0: off).")] = options.EGT_WEIGHT,
    batch_size: Annotated[int, Option(help="Samples in a training step.")] = 64,
    learning_rate: Annotated[float, Option(help="Peak of the one-cycle schedule.")] = 4e-3,
    size: Annotated[
        int, Option(help="Pixels of an image's sides (default 64; torchvision 128) or tokens of a text (64; reviews 32).")
    ] = 0,
    seed: Annotated[int, Option(help="Of the split, the weights and the training.")] = 0,
    keep_final: Annotated[bool, Option("--keep-final", help="The backbone's own classifier stays the final exit.")] = False,
    freeze: Annotated[bool, Option("--freeze-backbone", help="Train the exit heads only.")] = False,
    pretrained: Annotated[bool, Option("--pretrained", help="Start from the library's weights.")] = False,
    init_weights: Annotated[Path | None, Option(help="Start from a local state dict (safetensors or PyTorch).")] = None,
    root: Root = "",
    skip_bad: SkipBad = False,
    resume: Annotated[bool, Option("--resume", help="Continue a run that was stopped.")] = False,
    tensorboard: Annotated[bool, Option("--tensorboard", help="Also write TensorBoard events.")] = False,
    json_: Json = False,
) -> None:
    """Train a network with exits on your images or texts."""
    from exitlens.data.sources import open_source
    from exitlens.delivery.run_directory import read_kept_policy, read_recorded_exits, record_source
    from exitlens.delivery.run_setup import build_network, load_training_sets

    if not size and backbone.startswith("torchvision:"):
        size = 128  # large networks shrink smaller images to a map of a few cells
    source = open_source(data, root=root, size=size, seed=seed)
    train, validation = load_training_sets(backbone, source, skip_bad)
    if resume and placement == "time":  # measured again, they could differ
        exits, placement = read_recorded_exits(out, exits, placement)
    start: dict[str, Any] = {"keep_final": keep_final, "pretrained": pretrained, "weights": init_weights}
    net = build_network(backbone, exits, train, seed=seed, placement=placement, head=head, **start)
    how: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    how |= {"freeze_backbone": freeze, "resume": resume, "tensorboard": tensorboard, "progress": not json_}
    with record_source(out, source, resume=resume):
        result = xl.fit(net, train, validation, loss=xl.EGTLoss(weight=egt_weight), out_dir=out, **how)
    xl.save(net, read_kept_policy(out / "bundle", net), out / "bundle", overwrite=resume)
    last = result.history[-1]
    values = {"out": str(out), "epochs": epochs, "accuracy": last["accuracy"], "cc": last["cc"], "seconds": result.seconds}
    rows = [["exit", "validation accuracy %", "attention CC with final"]]
    for name, accuracy, cc in zip(_name_exits(net), last["accuracy"], [*last["cc"], None], strict=True):
        rows.append([name, f"{100 * accuracy:.1f}", "" if cc is None else f"{cc:.2f}"])
    show(json_, values, f"{out}: next, exitlens calibrate --bundle {out} --max-accuracy-drop 0.01", rows)


def _name_exits(net: xl.ExitNet) -> list[str]:
    from exitlens.types.words import exit_name

    return [exit_name(k, net.num_exits) for k in range(net.num_exits)]


@verbs.command(epilog="Example: `exitlens calibrate --bundle runs/x --max-accuracy-drop 0.01`")
def calibrate(
    bundle: Bundle,
    max_accuracy_drop: Annotated[float | None, Option(help="Accuracy that may be lost, 0.01 is one point.")] = None,
    max_class_accuracy_drop: Annotated[float | None, Option(help="The same, in every class.")] = None,
    max_disagreement: Annotated[float | None, Option(help="Share of answers that may differ from the final's.")] = None,
    max_divergence: Annotated[float | None, Option(help="Mean divergence of the attention maps, in [0, 1].")] = None,
    max_cost: Annotated[float | None, Option(help="Mean cost, as a fraction of the plain backbone.")] = None,
    delta: Annotated[
        float | None, Option(help="Certify: the limits hold for new data with this chance of being wrong, such as 0.1.")
    ] = None,
    gate: Annotated[bool, Option("--gate", help="Exits also need a trusted attention map (with --max-divergence).")] = False,
    score: Annotated[str, Option(help="max_probability, entropy or margin.")] = "max_probability",
    data: OtherData = "",
    unlabelled: Annotated[
        Path | None, Option(help="Images or texts without labels, for disagreement and divergence.")
    ] = None,
    root: Root = "",
    skip_bad: SkipBad = False,
    json_: Json = False,
) -> None:
    """Choose exit thresholds on the run's calibration split, and store them in the bundle.

    With --delta they come with a certificate: see docs/guarantees.md.
    """
    from exitlens.delivery.run_directory import load_samples, replace_policy, stream_samples
    from exitlens.functional.risk import check_limits

    limits = {
        "max_accuracy_drop": max_accuracy_drop,
        "max_class_accuracy_drop": max_class_accuracy_drop,
        "max_disagreement": max_disagreement,
        "max_divergence": max_divergence,
    }
    if all(value is None for value in (*limits.values(), max_cost)):
        names = ", ".join("--" + name.replace("_", "-") for name in (*limits, "max_cost"))
        raise xl.InputError(f"limits: expected at least one of {names}")
    check_limits(limits, max_cost=max_cost, delta=delta, score=score, gate=gate)  # before anything is collected
    if unlabelled is not None and data:
        raise xl.InputError("data, unlabelled: expected one of them")
    if unlabelled is not None and (max_accuracy_drop is not None or max_class_accuracy_drop is not None):
        raise xl.InputError("unlabelled: accuracy needs labels: give --max-disagreement or --max-divergence, or --data")
    net, _ = xl.load(bundle)
    samples: Any = (
        load_samples(bundle, net, "calibration", data=data, root=root, skip_bad=skip_bad)
        if unlabelled is None
        else stream_samples(net, unlabelled, batch_size=64, skip_bad=skip_bad)
    )
    trace = xl.collect(net, samples, progress=not json_)
    policy = xl.calibrate(trace, **limits, max_cost=max_cost, delta=delta, gate=gate, score=score)  # type: ignore[arg-type]
    replace_policy(bundle, policy)
    report, certificate = xl.evaluate(trace, policy), policy.certificate()
    rows = [["exit", "threshold", "temperature", "share %"]]
    thresholds = [*(f"{t:.4f}".replace("inf", "never") for t in policy.thresholds), "answers the rest"]
    for *cells, temperature, share in zip(
        _name_exits(net), thresholds, policy.temperatures, report.exit_shares, strict=True
    ):
        rows.append([*cells, f"{temperature:.3f}", f"{100 * share:.1f}"])
    title = f"on {len(trace)} calibration samples: cost {report.cost:.3f}"
    show(json_, policy.to_dict() | {"certificate": certificate}, title, rows)
    if not json_ and gate:
        kept = "kept: " + ", ".join(f"{limit:.4f}" for limit in policy.gate.limits) if policy.gate else "none: no gain"
        console.print(literal(f"gate, limits on the estimated divergence by exit: {kept}"), highlight=False)
    if not json_:
        console.print(literal(certificate), highlight=False)


@verbs.command(epilog="Example: `exitlens evaluate --bundle runs/x`")
def evaluate(bundle: Bundle, data: OtherData = "", root: Root = "", skip_bad: SkipBad = False, json_: Json = False) -> None:
    """Test the policy on the run's test split: accuracy, cost and consistency of every exit."""
    from exitlens.delivery.run_directory import load_calibrated, load_samples

    net, policy = load_calibrated(bundle)
    samples = load_samples(bundle, net, "test", data=data, root=root, skip_bad=skip_bad)
    found = xl.evaluate(xl.collect(net, samples, progress=not json_), policy)
    if json_:
        show(True, found.to_dict())
    else:
        console.print(str(found), highlight=False)


@verbs.command(epilog="Example: `exitlens report runs/x --compare runs/y --out report.html`")
def report(
    run: Annotated[Path, Argument(help="Run directory of `exitlens fit`, or a bundle, with a policy.")],
    compare: options.Compare = None,
    out: Annotated[Path, Option(help="The HTML file, which must not exist.")] = Path("report.html"),
    data: OtherData = "",
    root: Root = "",
    skip_bad: SkipBad = False,
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
    require_preprocess(net, xl.Preprocess)  # refuses texts
    images = load_samples(run, net, "test", data=data, root=root, skip_bad=skip_bad)
    assert isinstance(images, xl.ImageSet)
    given = {"--compare": compare, "--data": data, "--root": root, "--out": out}
    words = [word for name, value in given.items() if value for word in (name, str(value))]
    command = ["exitlens", "report", str(run), *words, *(["--skip-bad"] if skip_bad else [])]
    made = describe_provenance(runs, images, command, data)
    subjects = measure_subjects(runs, images)
    write_report(out, subjects, {CONDITION: images}, made)
    found = {str(path): subject.reports[CONDITION] for path, subject in zip(runs, subjects, strict=True)}
    rows = [["run", "accuracy %", "cost", "divergence"]]
    for path, one in found.items():
        rows.append([path, f"{100 * (one.accuracy or 0):.1f}", f"{one.cost:.3f}", f"{one.divergence:.3f}"])
    values = {"out": str(out), "runs": {path: one.to_dict() for path, one in found.items()}}
    show(json_, values, f"{len(images)} test images: {out}", rows)
