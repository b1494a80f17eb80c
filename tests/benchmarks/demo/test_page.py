"""The demo's tables, from its committed JSON."""

import json

from benchmarks.demo.page import ROWS, exits_table, speed_table, write_part
from benchmarks.store import RESULTS


def test_every_exit_without_and_with_egt():
    result = json.loads((RESULTS / "demo.json").read_text())
    lines = exits_table(result, ROWS)
    near, near0 = (100 * result[name]["agreeing"]["accuracy"][0] for name in ("egt", "baseline"))
    assert lines[0] == "|  | exit 0 | exit 1 | exit 2 | final |"
    assert lines[2].startswith(f"| accuracy, background agrees (%) | {near0:.1f} → **{near:.1f}** |")
    assert len(speed_table(result)) == 2 + 4
    assert "\n".join(lines) in "\n".join(write_part(result))
