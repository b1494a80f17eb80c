"""Writes docs/backbones.md."""

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
*trace*: by torch.fx (any image size) or torch.export (the example's size); *step*: one training step with EGT, all \
gradients finite; *bundle*: saved, loaded, same logits; *export*: every stage and head through `torch.export` with a \
dynamic batch; *compile*: every stage through `torch.compile(fullgraph=True)` with a dynamic batch (front end); *edge*: \
exported as ONNX files, each compared with the network at batches of 1, 2, 3, 17 and 64, then 24 samples \
answered by exitlens-runtime: the same labels and exits, maps within 1e-4. *heads*: MACs \
of all heads over the backbone's. Texts have 32 tokens, a quarter of the second one padding, which must get attention \
0, exactly. To pass, eval must be 0, and train, gradient and statistics at most 1e-5."""


def write_page(found: dict[str, Row]) -> None:
    done = [(family, source, found[source]) for family, source, _ in BACKBONES if source in found]
    good = sum(passes(row) for *_, row in done)
    families = {family.split(" (")[0] for family, *_ in done}
    rows = [_cells(family, source, row) for family, source, row in done if "error" not in row]
    lines = [WORDS, "", f"{good} of {len(done)} pass everything, from {len(families)} families.", ""]
    lines += table([*HEAD, "heads", "attach"], rows)
    refused = [f"- `{source}`: {row['error']}" for _, source, row in done if "error" in row]
    if edge := [f"- `{source}`: {row['edge_error']}" for _, source, row in done if "edge_error" in row]:
        lines += ["", "Not exported:", "", *edge]
    if refused:
        lines += ["", "Refused:", "", *refused]
    (ROOT / "docs" / "backbones.md").write_text("\n".join(lines) + "\n")


def _cells(family: str, source: str, row: Row) -> list[str]:
    cells = [family, f"`{source}`", row["traced_by"].removeprefix("torch."), ", ".join(f"`{cut}`" for cut in row["cuts"])]
    cells += [f"{row[name]:.1g}" for name in GAPS]
    cells += ["yes" if row.get(name) else "**no**" for name in CHECKS]
    return [*cells, f"{100 * row['head_share']:.2f} %", f"{row['attach_seconds']:.1f} s"]
