"""Writes the tables and the chart of docs/measured/performance.md, and the few lines about speed elsewhere, from performance.csv.

Usage: python -m benchmarks.performance.page
"""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import ROOT, fill, table
from benchmarks.performance.chart import MIXED, NAMES, plot_speed
from benchmarks.performance.runs import PERFORMANCE

Runs = dict[tuple[str, int], dict[str, Any]]  # by network and threads
IDEAL_HEAD = ("batch", "exit shares", "measured ms (95 %)", "ideal ms", "saving / ideal saving", "call p50, p95 ms")


def read_runs() -> Runs:
    """In the order of the page."""
    runs = PERFORMANCE.read()
    return {(name, threads): runs[key] for threads in (2, 1) for name in NAMES if (key := f"{name}-{threads}") in runs}


def batch_table(found: dict[str, Any]) -> list[str]:
    """All contenders by batch size: milliseconds for each sample, and how many times faster than plain."""
    by_size = [batch["rows"] for batch in found["batches"].values()]
    head = ["ms a sample (times faster than plain as PyTorch runs it)", *(f"batch {size}" for size in found["batches"])]
    rows = []
    for name in by_size[0]:
        of_name = [batch.get(name) for batch in by_size]
        rows.append([name, *("" if row is None else f"{row['ms'][0]:.2f} ({row['speedup'][0]:.2f}x)" for row in of_name)])
    return table(head, rows)


def ideal_table(found: dict[str, Any]) -> list[str]:
    """Measured against ideal, and what a call takes."""
    rows = []
    for size, batch in found["batches"].items():
        for name, row in batch["rows"].items():
            if "ideal_ms" not in row:
                continue
            ms = row["ms"]
            cells = [
                size,
                name.removeprefix("exits, "),
                f"{ms[0]:.2f} ({ms[1]:.2f} to {ms[2]:.2f})",
                f"{row['ideal_ms']:.2f}",
            ]
            cells += [f"{row['saving'][0]:.3f}" if "saving" in row else ""]
            cells += [f"{row['call_p50_ms']:.1f}, {row['call_p95_ms']:.1f}", f"{row['per_second']:.0f}"]
            rows.append([*cells, str(row.get("peak_mb", ""))])
    return table([*IDEAL_HEAD, "samples/s", "peak MB"], rows)


def describe_network(name: str, threads: int, found: dict[str, Any]) -> list[str]:
    network, tuning = found["network"], found["tuning"]
    at, cost = ", ".join(f"`{a}`" for a in network["exits"]), ", ".join(f"{100 * c:.0f} %" for c in network["cost"])
    words = [
        f"micro-batch {tuning['micro_batch']}",
        "channels_last" if tuning["channels_last"] else "own memory format",
        "batch normalisation folded" if tuning["folded"] else "nothing to fold",
        "memory kept" if tuning["keep_memory"] else "memory not kept",
        f"{tuning['threads'] or threads} thread{'s' if (tuning['threads'] or threads) > 1 else ''}",
    ]
    return [
        f"### {NAMES[name]}, {threads} core{'s' if threads > 1 else ''}",
        "",
        f"Exits after {at} (cost {cost}). Tuned: {', '.join(words)}, {tuning['precision']}.",
        "",
    ]


def describe_more(found: dict[str, Any]) -> list[str]:
    """bfloat16, the stream and the decisions of compiled stages, in words."""
    half = found["bfloat16"]["rows"]
    ours, plain = half[f"exits, {MIXED}"], half["plain, tuned"]
    lines = [
        f"In bfloat16, batch 32: plain {plain['ms'][0]:.2f} ms, ours at {MIXED} {ours['ms'][0]:.2f} ms "
        f"({ours['speedup'][0]:.1f} times faster than plain as PyTorch runs it)."
    ]
    if "stream" in found:
        stream = found["stream"]
        shares = "/".join(f"{100 * s:.0f}" for s in stream["shares"])
        lines.append(
            f"A stream of {stream['samples']:,} images in loader batches of 8 (shares {shares}): {stream['gain'][0]:.2f} times the "
            "throughput of batch-by-batch compaction."
        )
    if "decisions" in found:
        same = found["decisions"]
        lines.append(
            f"Compiled stages decide as eager ones for {100 * same['equal']:.2f} % of {same['samples']:,} scenes; of the others "
            f"no score is further than {same['furthest_from_threshold']:.1e} from its threshold."
        )
    return lines


def write_section(name: str, threads: int, found: dict[str, Any]) -> list[str]:
    """All about one network in this many threads."""
    return [
        *describe_network(name, threads, found),
        *batch_table(found),
        "",
        *describe_more(found),
        "",
        "<details><summary>Ideal and measured, latency, memory</summary>",
        "",
        *ideal_table(found),
        "",
        "</details>",
        "",
    ]


def summarise(runs: Runs) -> list[str]:
    """A few lines: two cores, mixed exit shares."""
    rows = []
    for (name, threads), found in runs.items():
        if threads != 2:
            continue
        few, many = (found["batches"][size]["rows"] for size in ("1", "32"))
        ours = [few[f"exits, {MIXED}"], many[f"exits, {MIXED}"]]
        values = [row[kind] for kind in ("speedup", "speedup_tuned") for row in ours]
        cells = [f"**{v[0]:.1f}** ({v[1]:.1f} to {v[2]:.1f})" for v in values]
        for batch, row in zip((few, many), ours, strict=True):
            cells.append(f"**{batch[f'earlyon, {MIXED}, same formats']['ms'][0] / row['ms'][0]:.1f}**")
        rows.append([NAMES[name], *cells])
    head = ["times faster than", "plain as PyTorch runs it, batch 1", "batch 32"]
    head += ["plain with the same tuning, batch 1", "batch 32", "earlyon 0.3.0 in the same formats, batch 1", "batch 32"]
    return [
        f"Exit shares {MIXED} forced on three exits placed by time, two cores, float32, heads included; medians with 95 % "
        "intervals. What your network allows is decided by its accuracy at each exit; this is what the engine makes of it.",
        "",
        *table(head, rows),
    ]


def main() -> None:
    PERFORMANCE.fold()
    runs = read_runs()
    first = next(iter(runs.values()))["machine"]
    lines = [
        f"Measured on {first['processor']} ({first['cores']} cores), PyTorch {first['torch']}, Python {first['python']}.",
        "",
    ]
    for (name, threads), found in runs.items():
        lines += write_section(name, threads, found)
    fill("performance", lines)
    fill("speed", summarise(runs))
    plot_speed(
        {name: found for (name, threads), found in runs.items() if threads == 2},
        ROOT / "docs" / "measured" / "performance.svg",
    )


if __name__ == "__main__":
    main()
