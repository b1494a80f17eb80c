"""Verbs about time: inspect, tune, bench."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

import exitlens as xl
from exitlens.cli.options import BACKBONES, Bundle, Json, OtherData, PolicyName, Root, console, show, tell, verbs
from exitlens.progress import show_progress
from exitlens.types.settings import ReadSettings

if TYPE_CHECKING:
    from exitlens.data.splits import Split
    from exitlens.model.cutting.placement import Placement
    from exitlens.types.inputs import Inputs


@verbs.command(epilog="Example: `exitlens inspect --backbone timm:resnet18 --size 224`")
def inspect(
    backbone: Annotated[str, Option(help=BACKBONES)],
    size: Annotated[int, Option(min=0, help="Pixels, height and width (0: 224); tokens of a text (0: 64).")] = 0,
    channels: Annotated[int, Option(min=1, max=3, help="1 for grey images, 3 for colour.")] = 3,
    exits: Annotated[int, Option(min=1, help="Mark the places that this many early exits would get.")] = 3,
    json_: Json = False,
) -> None:
    """List the places an exit can go, with the share of multiply-accumulates (cost) and of measured time up to there."""
    from exitlens.model.backbones.build import make_example
    from exitlens.model.cutting.placement import PLACEMENTS, choose_points

    plain = xl.build_backbone(backbone, 1000, channels)
    points = xl.list_exit_candidates(plain, make_example(plain, channels, size))
    if not points:
        raise xl.errors.AttachError(
            f"backbone: {backbone} has no place after which one map or sequence is all that the rest needs"
        )
    choices: dict[Placement, list[str]] = {}
    for placement in PLACEMENTS:
        choices[placement] = []
        with suppress(xl.errors.AttachError):  # so many exits do not fit
            choices[placement] = choose_points(points, exits, placement)
    chosen_by = [[by for by in PLACEMENTS if p.name in choices[by]] for p in points]
    rows = [["exit after", "million MACs", "cost %", "time %", "features", f"{exits} chosen by"]]
    for p, by in zip(points, chosen_by, strict=True):
        shape = "x".join(map(str, p.shape))
        shares = [f"{100 * p.cost:.1f}", f"{100 * p.time_share:.1f}"]
        rows.append([p.name, f"{p.macs / 1e6:.1f}", *shares, shape, ", ".join(by)])
    listed = [p.to_dict() | {"chosen_by": by} for p, by in zip(points, chosen_by, strict=True)]
    title = f"{backbone}{f', size {size}' if size else ''}{'' if choices['cost'] else f': {exits} exits do not fit'}"
    show(json_, {"backbone": backbone, "exits": exits, "points": listed}, title, rows)


@verbs.command(epilog="Example: `exitlens tune --bundle runs/x`")
def tune(
    bundle: Bundle,
    data: OtherData = "",
    root: Root = "",
    precision: Annotated[
        str, Option(help="auto (bfloat16 where it is faster and keeps the decisions), float32 or bfloat16.")
    ] = "auto",
    backend: Annotated[str, Option(help="auto (ONNX Runtime where it is installed and faster), torch or onnx.")] = "auto",
    samples: Annotated[int, Option(min=1, help="Calibration samples to judge bfloat16 by.")] = 1024,
    json_: Json = False,
) -> None:
    """Find how the network runs fastest on this machine (a few seconds), and store that in the bundle.

    If that changes the precision, the policies are left out: calibrate again, on what the network says then.
    """
    from exitlens.delivery.bundle import replace_network

    (net, policy), policies = xl.load(bundle), xl.load_policies(bundle)
    before = net.tuning.precision
    example = _draw_inputs(bundle, net, "calibration", samples, data, root)
    tuning = net.tune(example, policy=policy, precision=precision, backend=backend)  # type: ignore[arg-type]
    dropped = [] if tuning.precision == before else list(policies)
    replace_network(bundle, net, {} if dropped else policies)
    rows = [["backend", "micro-batch", "memory format", "precision", "folded", "threads", "memory kept", "ms/sample"]]
    for tried in tuning.measured["ms_per_sample"]:
        chosen = "*" if all(tried[name] == value for name, value in tuning.to_dict().items() if name in tried) else ""
        words = ["channels_last" if tried["channels_last"] else "as it is", tried["precision"]]
        flags = ["yes" if tried[name] else "no" for name in ("folded", "keep_memory")]
        threads = str(tried["threads"] or "all")
        rows.append(
            [tried["backend"], f"{tried['micro_batch']}{chosen}", *words, flags[0], threads, flags[1], f"{tried['ms']:.3f}"]
        )
    show(json_, tuning.to_dict() | {"policy_kept": not dropped}, "settings tried; * is stored with the bundle", rows)
    if dropped and not json_:
        names = "its policy was" if dropped == ["default"] else f"its policies ({', '.join(dropped)}) were"
        tell(f"it runs in {tuning.precision} now, {names} for {before}: calibrate again")


@verbs.command(epilog="Example: `exitlens bench --bundle runs/demo --batch-sizes 1,32`")
def bench(
    bundle: Bundle,
    data: OtherData = "",
    root: Root = "",
    batch_sizes: Annotated[str, Option(help="Samples in a call, comma-separated.")] = "1,8,32",
    samples: Annotated[int, Option(min=1, help="Test samples to use (repeated where a batch needs more).")] = 256,
    rounds: Annotated[int, Option(min=1, help="Rounds at least; medians are reported.")] = 7,
    seconds: Annotated[float, Option(min=0, help="Seconds at least for each batch size.")] = 5.0,
    threads: Annotated[int, Option(min=0, help="Processors to pin to (0: as the process is).")] = 0,
    compiled: Annotated[bool, Option("--compile", help="Also compiled stages and backbone (a minute, needs g++).")] = False,
    out: Annotated[Path | None, Option(help="Also write everything to this new JSON file.")] = None,
    json_: Json = False,
    name: PolicyName = "",
) -> None:
    """Time adaptive inference against the plain backbone, in turn, in one process, with the ideal saving beside it."""
    from exitlens.delivery.bench.benchmark import Bench, tabulate
    from exitlens.delivery.bench.timing import pin_threads
    from exitlens.delivery.run_directory import load_calibrated
    from exitlens.io import write_json
    from exitlens.model.backbones.build import rebuild_backbone
    from exitlens.model.timing import describe_machine

    words = batch_sizes.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise xl.errors.InputError(f"--batch-sizes: expected whole numbers above 0 such as 1,64, got {batch_sizes!r}")
    if out is not None and out.exists():
        raise xl.errors.OutputExistsError(f"out: {out} exists. Fix: choose another file.")
    net, policy = load_calibrated(bundle, name)
    if not net.info.source:
        raise xl.errors.BundleError(
            "bundle: it holds a module of your own. Fix: time it in Python, with exitlens.delivery.bench.benchmark."
        )
    inputs = _draw_inputs(bundle, net, "test", samples, data, root)
    with pin_threads(threads) if threads else nullcontext():
        run = Bench(rebuild_backbone(net.info), net, inputs, policy, compiled=compiled)
        batches = []
        with show_progress(not json_, console) as bar:
            for size in map(int, words):
                task = bar.add_task(f"timing calls of {size}", total=None)
                batches.append(run.run(size, rounds=rounds, seconds=seconds))
                bar.remove_task(task)
        facts = describe_machine(threads)
        values = {"machine": facts, "tuned": net.is_tuned, "tuning": net.tuning.to_dict(), "batches": batches}
    if out is not None:
        write_json(out, values)
    if json_:
        show(True, values)
        return
    for batch in batches:
        show(False, {}, f"calls of {batch['batch']}: median of {batch['rounds']} rounds", tabulate(batch))
    state = "tuned" if net.is_tuned else "not tuned, runs as suits most networks of its kind: see exitlens tune"
    tell(f"{facts['threads']} threads; {state}")


def _draw_inputs(bundle: Path, net: xl.ExitNet, split: Split, count: int, data: str, root: str) -> Inputs:
    """Draw ``count`` samples at random, since folders are in the order of their classes."""
    from exitlens.delivery.run_directory import load_samples
    from exitlens.types.inputs import draw_samples

    data_set = load_samples(bundle, net, split, ReadSettings(data, root))
    return data_set.subset(draw_samples(len(data_set), count)).inputs
