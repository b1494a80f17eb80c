"""Writes docs/measured/backbones.md."""

from __future__ import annotations

from benchmarks.backbones.attempt import Row, passes
from benchmarks.backbones.catalogue import BACKBONES
from benchmarks.markdown import ROOT, table

HEAD = (
    "family",
    "source",
    "trace",
    "exits after",
    "eval",
    "train",
    "gradient",
    "step",
    "bundle",
    "export",
    "compile",
    "edge",
)
GAPS, CHECKS = ("eval_gap", "train_gap", "gradient_gap"), ("egt_step", "bundle", "export", "compile", "edge")
WORDS = """# Backbones

Written by `make backbones` (`benchmarks/backbones`); do not edit. Random weights, three early exits placed at \
equal shares of cost, `final="keep"` for the differences and evidence heads for the rest; one core. Differences are \
the largest absolute ones between staged and plain logits with the same seed (dropout and stochastic depth included), \
and between gradients relative to the largest gradient; batch-norm statistics after a training pass are compared too. \
*trace*: by torch.fx (any size) or torch.export (the example's size); *step*: one training step with EGT, all \
gradients finite; *bundle*: saved, loaded, same logits; *export*: every stage and head through `torch.export` with a \
dynamic batch; *compile*: every stage through `torch.compile(fullgraph=True)` with a dynamic batch (front end; recurrent layers, which \
torch.compile leaves alone, stay outside of the graph); *edge*: \
exported as ONNX files, each compared with the network at batches of 1, 2, 3, 17 and 64, then 24 samples \
answered by exitlens-runtime: the same labels and exits, maps within 1e-4. *heads*: MACs \
of all heads over the backbone's. Texts have 32 tokens, a quarter of the second one padding, which must get attention \
0, exactly. Networks without `:` in the source are of `benchmarks/backbones/networks` or torchvision's for \
videos, on series of 128 steps (`(B,C,T)` or `(B,T,C)`; 32 or 64 where there \
are recurrent layers), waveforms of 1,600, volumes of 8x32x32 or 16x24x24, vectors of 32 features. \
To pass, eval must be 0, and train, gradient and statistics at most 1e-5."""


def write_page(found: dict[str, Row]) -> None:
    """A table for each kind of input, then what was not exported, and what was refused."""
    kinds = dict.fromkeys(one.inputs for one in BACKBONES)
    lines = [WORDS, "", *(line for kind in kinds for line in write_kind(kind, found))]
    done = [(one.source, found[one.source]) for one in BACKBONES if one.source in found]
    if edge := [f"- `{source}`: {row['edge_error']}" for source, row in done if "edge_error" in row]:
        lines += ["Not exported:", "", *edge, ""]
    if refused := [f"- `{source}`: {row['error']}" for source, row in done if "error" in row]:
        lines += ["Refused:", "", *refused, ""]
    (ROOT / "docs" / "measured" / "backbones.md").write_text("\n".join(lines[:-1]) + "\n")


def write_kind(kind: str, found: dict[str, Row]) -> list[str]:
    """How many backbones for one kind of input pass, and the table of those that are not refused."""
    done = [(one, found[one.source]) for one in BACKBONES if one.source in found and one.inputs == kind]
    if not done:
        return []
    good = sum(passes(row) for _, row in done)
    families = {one.family.split(" (")[0] for one, _ in done}
    rows = [_cells(one.family, one.source, row) for one, row in done if "error" not in row]
    start = [f"## {kind}", "", f"{good} of {len(done)} pass everything, from {len(families)} families.", ""]
    return [*start, *table([*HEAD, "heads", "attach"], rows), ""]


def _cells(family: str, source: str, row: Row) -> list[str]:
    cells = [family, f"`{source}`", row["traced_by"].removeprefix("torch."), ", ".join(f"`{cut}`" for cut in row["cuts"])]
    cells += [f"{row[name]:.1g}" for name in GAPS]
    cells += ["yes" if row.get(name) else "**no**" for name in CHECKS]
    return [*cells, f"{100 * row['head_share']:.2f} %", f"{row['attach_seconds']:.1f} s"]
