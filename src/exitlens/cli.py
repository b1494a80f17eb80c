"""The command line: parse, call one function, print a short table or, with --json, one JSON object."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import exitlens as xl
from exitlens.data.images import ImageSet
from exitlens.data.sources import open_source
from exitlens.delivery.building import new_network, training_sets
from exitlens.delivery.demo import run_demo
from exitlens.delivery.demo_training import DemoSettings
from exitlens.delivery.pictures import save_explanation
from exitlens.delivery.report import Subject, write_report
from exitlens.delivery.runs import (
    bundle_of,
    forget_source,
    image_preprocess,
    kept_policy,
    load_calibrated,
    load_samples,
    read_samples,
    replace_policy,
    text_preprocess,
    write_source,
)
from exitlens.delivery.speed import compare_adaptive, fitting_sizes
from exitlens.delivery.tokens import exit_name, token_table, write_tokens
from exitlens.functional.inputs import count_rows, split_rows
from exitlens.model.backbones import zeros_for

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Classifiers that answer early when they can, and show that the early answer looked at the right thing.",
)
console = Console()

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Bundle = Annotated[Path, typer.Option(help="Run directory of `exitlens fit`, or a bundle.")]
Data = Annotated[
    str,
    typer.Option(
        help="Images: a folder class/image.png, `scenes`, `fashion`, torchvision:NAME. Texts: a .csv or .jsonl file with "
        "text and label, `reviews`."
    ),
]
OtherData = Annotated[
    str, typer.Option("--data", help="Other data than the run's own split: a labelled folder or file, or a name.")
]
BACKBONES = "`small`, torchvision:NAME, timm:NAME, or hf:DIRECTORY (or hf:NAME, hf:bert) of transformers."
Root = Annotated[str, typer.Option(help="Folder of torchvision's files.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out image files that cannot be read.")]


def _show(as_json: bool, values: dict[str, Any], title: str = "", rows: list[list[str]] | None = None) -> None:
    """Prints ``values`` as JSON, or as a table: ``rows`` (the first is the head), or one line a value."""
    if as_json:
        sys.stdout.write(json.dumps(values) + "\n")
        return
    rows = rows or [["", "value"], *[[k, f"{v:.4g}" if isinstance(v, float) else str(v)] for k, v in values.items()]]
    table = Table(*rows[0], title=title or None, title_justify="left")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


@app.command(epilog="Example: `exitlens demo --out runs/demo`")
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
    _show(json_, result, "Explanation-Guided Training (egt) against the same exits without it (baseline)", rows)
    if not json_:
        for name in ("batch_1", "batch_64"):
            s = result["speed"][name]
            line = f"{name.replace('_', ' size ')}: [bold]{s['speedup']:.2f}x[/bold] faster than the plain backbone, "
            console.print(line + f"{100 * s['accuracy_drop']:.2f} points less accurate, cost {s['cost']:.2f}")
        console.print(f"Report: {out / 'report.html'}   bundle: {out / 'bundle'}   {result['seconds']:.0f} s")


def _pairs(values: list[float], controls: list[float]) -> list[str]:
    return [f"{v:.2f} ({c:.2f})" for v, c in zip(values, controls, strict=True)]


@app.command(
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
    train, validation = training_sets(backbone, source, skip_bad)
    net = new_network(backbone, exits, train, seed=seed, keep_final=keep_final, pretrained=pretrained, weights=weights)
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
    xl.save(net, kept_policy(out / "bundle", net), out / "bundle", overwrite=resume)
    last = result.history[-1]
    values = {"out": str(out), "epochs": epochs, "accuracy": last["accuracy"], "cc": last["cc"], "seconds": result.seconds}
    rows = [["exit", "validation accuracy %", "attention CC with final"]]
    for k, accuracy in enumerate(last["accuracy"]):
        cc = f"{last['cc'][k]:.2f}" if k < len(last["cc"]) else ""
        rows.append([exit_name(k, len(last["accuracy"])), f"{100 * accuracy:.1f}", cc])
    _show(json_, values, f"{out}: next, exitlens calibrate --bundle {out} --max-accuracy-drop 0.01", rows)


@app.command(epilog="Example: `exitlens calibrate --bundle runs/x --max-accuracy-drop 0.01`")
def calibrate(
    bundle: Bundle,
    max_accuracy_drop: Annotated[float | None, typer.Option(help="Accuracy that may be lost, 0.01 is one point.")] = None,
    max_disagreement: Annotated[
        float | None, typer.Option(help="Share of answers that may differ from the final's.")
    ] = None,
    max_divergence: Annotated[float | None, typer.Option(help="Mean divergence of the attention maps, in [0, 1].")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Mean cost, as a fraction of the plain backbone.")] = None,
    score: Annotated[str, typer.Option(help="max_probability, entropy or margin.")] = "max_probability",
    data: OtherData = "",
    root: Root = "",
    skip_bad: SkipBad = False,
    json_: Json = False,
) -> None:
    """Choose exit thresholds on the run's calibration split, and store them in the bundle."""
    limits = {
        "max_accuracy_drop": max_accuracy_drop,
        "max_disagreement": max_disagreement,
        "max_divergence": max_divergence,
        "max_cost": max_cost,
    }
    if all(value is None for value in limits.values()):
        options = ", ".join("--" + name.replace("_", "-") for name in limits)
        raise xl.InputError(f"limits: expected at least one of {options}")
    directory = bundle_of(bundle)
    net, _ = xl.load(directory)
    samples = load_samples(bundle, net, "calibration", data=data, root=root, skip_bad=skip_bad)
    trace = xl.collect(net, samples, progress=not json_)
    policy = xl.calibrate(trace, **limits, score=score)  # type: ignore[arg-type]
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
    _show(json_, policy.to_dict(), f"on {len(trace)} calibration samples: cost {report.cost:.3f}", rows)


@app.command(epilog="Example: `exitlens evaluate --bundle runs/x --report runs/x/report.html`")
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
    if report is not None and net.contract.is_text:
        raise xl.InputError("report: it shows images, this network takes texts: leave --report out (explain shows texts)")
    images = load_samples(bundle, net, "test", data=data, root=root, skip_bad=skip_bad)
    found = xl.evaluate(xl.collect(net, images, progress=not json_), policy)
    if report is not None:
        assert isinstance(images, ImageSet)
        subjects = [Subject("this run", net, policy, {"test": found}, {"test": xl.faithfulness(net, images)})]
        if baseline is not None:
            other, other_policy = load_calibrated(baseline)
            values = xl.evaluate(xl.collect(other, images), other_policy)
            checks = xl.faithfulness(other, images)
            subjects.append(Subject(str(baseline), other, other_policy, {"test": values}, {"test": checks}))
        facts = {"bundle": str(bundle), "data": data or "the run's test split", "images": str(len(images))}
        write_report(report, subjects, {"test": images}, facts=facts)
    if json_:
        _show(True, found.to_dict())
    else:
        console.print(str(found), highlight=False)


@app.command(epilog="Example: `exitlens predict --bundle runs/x --data photos --out predictions.csv`")
def predict(
    bundle: Bundle,
    data: Annotated[
        Path, typer.Option(help="An image, or a folder of images at any depth; texts: a .csv, .jsonl or .txt file.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write one row a sample to this new CSV file.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a call.")] = 64,
    skip_bad: SkipBad = False,
    json_: Json = False,
) -> None:
    """Answer each image or text at the first exit that is sure enough."""
    net, policy = load_calibrated(bundle)
    if out is not None and out.exists():
        raise xl.OutputExistsError(f"out: {out} exists: choose another file")
    inputs, names, bad = read_samples(net, data, skip_bad=skip_bad)
    rows: list[dict[str, Any]] = []
    for chunk in split_rows(inputs, batch_size):
        pred = xl.predict(net, chunk, policy)
        for label, exit_, sure in zip(pred.labels.tolist(), pred.exits.tolist(), pred.confidence.tolist(), strict=True):
            name = net.info.classes[label] if net.info.classes else str(label)
            rows.append({"file": names[len(rows)], "label": name, "exit": exit_, "confidence": round(sure, 6)})
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    table = [["file", "label", "exit", "confidence"], *[[str(v) for v in row.values()] for row in rows[:20]]]
    _show(json_, {"predictions": rows, "bad": bad}, f"{len(rows)} samples, the first {min(20, len(rows))}", table)
    for reason in bad if not json_ else ():
        console.print(f"skipped {reason}", highlight=False)


@app.command(epilog="Example: `exitlens explain --bundle runs/x --image x.png --out why`")
def explain(
    image: Annotated[Path | None, typer.Option(help="An image file.")] = None,
    text: Annotated[str, typer.Option(help="A text, for a network that takes texts.")] = "",
    bundle: Bundle = Path("runs/demo"),
    out: Annotated[Path | None, typer.Option(help="Directory for overlays (PNG) or page (HTML), and answer (JSON).")] = None,
    json_: Json = False,
) -> None:
    """Show which exit answered, why, and where every exit looked."""
    net, policy = load_calibrated(bundle)
    if (image is None) == (not text.strip()):
        raise xl.InputError("image, text: expected one of --image FILE and --text TEXT (not empty)")
    if image is None:
        answer = xl.explain(net, text_preprocess(net).encode([text]), policy)
        if out is not None:
            write_tokens(answer, out, "text")
        if json_:
            _show(True, answer.to_dict())
        else:
            console.print(token_table(answer, colour=console.color_system is not None))
        return
    preprocess = image_preprocess(net)
    why = xl.explain(net, preprocess.normalise(xl.read_image(image, preprocess.size, len(preprocess.mean))), policy)
    if out is not None:
        save_explanation(why, out, preprocess, image.stem)
    rows = [["exit", "answer", "confidence", "threshold", "map CC with final", ""]]
    for view in why.exits:
        mark = "answered" if view.exit == why.answered else ""
        threshold = "answers the rest" if view.exit == len(why.exits) - 1 else f"{view.threshold:.3f}"
        numbers = [f"{view.confidence:.3f}", threshold.replace("inf", "never"), f"{view.cc:.2f}"]
        rows.append([exit_name(view.exit, len(why.exits)), why.name(view.label), *numbers, mark])
    _show(json_, why.to_dict(), why.reason, rows)


@app.command(epilog="Example: `exitlens inspect --backbone timm:resnet18 --size 224`")
def inspect(
    backbone: Annotated[str, typer.Option(help=BACKBONES)],
    size: Annotated[int, typer.Option(min=0, help="Pixels a side (0: 224); tokens of a text (0: 64).")] = 0,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 for grey images, 3 for colour.")] = 3,
    json_: Json = False,
) -> None:
    """List the places an exit can go, with the cost and the measured time up to there."""
    plain = xl.build_backbone(backbone, 1000, channels)
    points = xl.exit_points(plain, zeros_for(plain, channels, size))
    if not points:
        raise xl.AttachError(f"backbone: {backbone} has no place where one map or sequence is all that the rest needs")
    rows = [["exit after", "million MACs", "cost %", "time %", "features"]]
    for p in points:
        shape = "x".join(map(str, p.shape))
        rows.append([p.name, f"{p.macs / 1e6:.1f}", f"{100 * p.cost:.1f}", f"{100 * p.time_share:.1f}", shape])
    _show(
        json_,
        {"backbone": backbone, "points": [p.to_dict() for p in points]},
        f"{backbone}{f', size {size}' if size else ''}",
        rows,
    )


@app.command(epilog="Example: `exitlens bench --bundle runs/demo --batch-sizes 1,64`")
def bench(
    bundle: Bundle,
    data: OtherData = "",
    root: Root = "",
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "1,64",
    samples: Annotated[int, typer.Option(min=1, help="Test samples in a round.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median is reported.")] = 7,
    json_: Json = False,
) -> None:
    """Time adaptive inference against the plain backbone, in turn, in one process."""
    net, policy = load_calibrated(bundle)
    if not net.info.source:
        raise xl.BundleError("bundle: it is around a module of your own: time it in Python with exitlens.delivery.speed")
    plain = xl.build_backbone(net.info.source, net.info.num_classes, net.info.input_shape[0], config=net.info.config)
    plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = load_samples(bundle, net, "test", data=data, root=root, skip_bad=False).first(samples).inputs
    sizes, left_out = fitting_sizes(batch_sizes, count_rows(inputs))
    if left_out and not json_:
        console.print(f"only {count_rows(inputs)} samples: left out batch sizes {left_out}")
    speeds = [compare_adaptive(plain, net, policy, inputs, size, rounds) for size in sizes]
    rows = [["batch", "times faster", "quartiles", "plain ms/sample", "adaptive ms/sample"]]
    for s in speeds:
        cells = [f"{s.speedup:.2f}", f"{s.low:.2f} to {s.high:.2f}", f"{s.plain_ms:.3f}", f"{s.ours_ms:.3f}"]
        rows.append([str(s.batch_size), *cells])
    _show(json_, {"speed": [s.to_dict() for s in speeds]}, "adaptive against the plain backbone", rows)


def main() -> None:
    """Runs the command line; an error of ours is one line on standard error and exit code 2."""
    try:
        app()
    except xl.ExitlensError as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
