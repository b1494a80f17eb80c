"""Verbs about time: inspect, tune, bench."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

import exitlens as xl
from exitlens.cli.options import BACKBONES, Bundle, Json, OtherData, Root, console, show, verbs
from exitlens.delivery.bench.benchmark import Bench, machine, table
from exitlens.delivery.bench.timing import pin_threads
from exitlens.delivery.bundle import find_bundle, load, save
from exitlens.delivery.run_directory import load_calibrated, load_samples
from exitlens.model.backbones.build import make_example
from exitlens.model.cutting.placement import PLACEMENTS, Placement, choose_points
from exitlens.types.inputs import draw_samples


@verbs.command(epilog="Example: `exitlens inspect --backbone timm:resnet18 --size 224`")
def inspect(
    backbone: Annotated[str, typer.Option(help=BACKBONES)],
    size: Annotated[int, typer.Option(min=0, help="Pixels a side (0: 224); tokens of a text (0: 64).")] = 0,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 for grey images, 3 for colour.")] = 3,
    exits: Annotated[int, typer.Option(min=1, help="Mark where so many early exits would stand, by cost and by time.")] = 3,
    json_: Json = False,
) -> None:
    """List the places an exit can go, with the share of multiply-accumulates (cost) and of measured time up to there."""
    plain = xl.build_backbone(backbone, 1000, channels)
    points = xl.exit_points(plain, make_example(plain, channels, size))
    if not points:
        raise xl.AttachError(f"backbone: {backbone} has no place where one map or sequence is all that the rest needs")
    choices = {by: _choose(points, exits, by) for by in PLACEMENTS}
    chosen_by = [[by for by in PLACEMENTS if p.name in choices[by]] for p in points]
    rows = [["exit after", "million MACs", "cost %", "time %", "features", f"{exits} chosen by"]]
    for p, by in zip(points, chosen_by, strict=True):
        shape = "x".join(map(str, p.shape))
        shares = [f"{100 * p.cost:.1f}", f"{100 * p.time_share:.1f}"]
        rows.append([p.name, f"{p.macs / 1e6:.1f}", *shares, shape, ", ".join(by)])
    listed = [p.to_dict() | {"chosen_by": by} for p, by in zip(points, chosen_by, strict=True)]
    title = f"{backbone}{f', size {size}' if size else ''}{'' if choices['cost'] else f': {exits} exits do not fit'}"
    show(json_, {"backbone": backbone, "exits": exits, "points": listed}, title, rows)


def _choose(points: list[xl.ExitPoint], exits: int, by: Placement) -> list[str]:
    """Names of the places that so many exits would get; none if they do not fit."""
    try:
        return choose_points(points, exits, by)
    except xl.AttachError:
        return []


@verbs.command(epilog="Example: `exitlens tune --bundle runs/x`")
def tune(
    bundle: Bundle,
    data: OtherData = "",
    root: Root = "",
    precision: Annotated[
        str, typer.Option(help="auto (bfloat16 where it is faster and keeps the decisions), float32 or bfloat16.")
    ] = "auto",
    samples: Annotated[int, typer.Option(min=1, help="Calibration samples to judge bfloat16 by.")] = 1024,
    json_: Json = False,
) -> None:
    """Find how the network runs fastest on this machine (a few seconds), and store that in the bundle.

    Where that changes the precision, the policy is left out: calibrate again, on what the network says now.
    """
    directory = find_bundle(bundle)
    net, policy = load(directory)
    before = net.tuning.precision
    drawn = load_samples(bundle, net, "calibration", data=data, root=root, skip_bad=False)
    example = drawn.subset(draw_samples(len(drawn), samples)).inputs
    found = net.tune(example, policy=policy, precision=precision)  # type: ignore[arg-type]
    kept = policy if found.precision == before else None
    save(net, kept, directory, overwrite=True)
    rows = [["micro-batch", "memory format", "precision", "folded", "threads", "memory kept", "ms/sample"]]
    for tried in found.measured["ms_per_sample"]:
        chosen = "*" if all(tried[name] == value for name, value in found.to_dict().items() if name in tried) else ""
        words = ["channels_last" if tried["channels_last"] else "as it is", tried["precision"]]
        flags = ["yes" if tried[name] else "no" for name in ("folded", "keep_memory")]
        threads = str(tried["threads"] or "all")
        rows.append([f"{tried['micro_batch']}{chosen}", *words, flags[0], threads, flags[1], f"{tried['ms']:.3f}"])
    show(json_, found.to_dict() | {"policy_kept": kept is policy}, "what was tried; * is stored with the bundle", rows)
    if kept is not policy and not json_:
        console.print(f"it runs in {found.precision} now, its policy was of {before}: calibrate again")


@verbs.command(epilog="Example: `exitlens bench --bundle runs/demo --batch-sizes 1,32`")
def bench(
    bundle: Bundle,
    data: OtherData = "",
    root: Root = "",
    batch_sizes: Annotated[str, typer.Option(help="Samples a call, comma-separated.")] = "1,8,32",
    samples: Annotated[int, typer.Option(min=1, help="Test samples to use (repeated where a batch needs more).")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, at least; medians are reported.")] = 7,
    seconds: Annotated[float, typer.Option(min=0, help="To go on for at each batch size.")] = 5.0,
    threads: Annotated[int, typer.Option(min=0, help="Pin to so many processors (0: as the process is).")] = 0,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also compiled stages and backbone (a minute, needs g++).")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write everything to this new JSON file.")] = None,
    json_: Json = False,
) -> None:
    """Time adaptive inference against the plain backbone, in turn, in one process, with the ideal saving beside it."""
    sizes = _numbers(batch_sizes)
    if out is not None and out.exists():
        raise xl.OutputExistsError(f"out: {out} exists: choose another file")
    net, policy = load_calibrated(bundle)
    if not net.info.source:
        raise xl.BundleError(
            "bundle: it is around a module of your own: time it in Python, with exitlens.delivery.bench.benchmark"
        )
    plain = xl.build_backbone(net.info.source, net.info.num_classes, net.info.channels, config=net.info.config)
    drawn = load_samples(bundle, net, "test", data=data, root=root, skip_bad=False)
    inputs = drawn.subset(draw_samples(len(drawn), samples)).inputs
    with pin_threads(threads) if threads else nullcontext():
        run = Bench(plain, net, inputs, policy, compiled=compiled)
        found = [run.run(size, rounds=rounds, seconds=seconds) for size in sizes]
        facts = machine(threads)
        values = {"machine": facts, "tuning": net.tuning.to_dict(), "batches": found}
    if out is not None:
        out.write_text(json.dumps(values, indent=1) + "\n")
    if json_:
        show(True, values)
        return
    for one in found:
        show(False, {}, f"calls of {one['batch']}: median of {one['rounds']} rounds", table(one))
    state = "tuned" if net.tuning != xl.Tuning() else "not tuned: see exitlens tune"
    console.print(f"{facts['threads']} threads; {state}")


def _numbers(words: str) -> list[int]:
    if not all(word.strip().isdigit() and int(word) > 0 for word in words.split(",")):
        raise xl.InputError(f"--batch-sizes: expected positive numbers such as 1,64, got {words!r}")
    return [int(word) for word in words.split(",")]
