import copy

import pytest

from benchmarks.study.report.figures import load_rows
from benchmarks.study.report.tables import SHARES, faithfulness_table
from benchmarks.study.runs import STUDY


@pytest.fixture(scope="module")
def rows():
    found = load_rows(STUDY, "scenes")
    old = copy.deepcopy({key: {seed: found[key][seed] for seed in (0, 1)} for key in ("plain", "egt")})
    for runs in old.values():
        for run in runs.values():
            run["faithfulness"] = {name: v for name, v in run["faithfulness"].items() if "share" not in name}
    return old


def test_runs_without_an_oracle_have_no_columns_of_shares(rows):
    lines = faithfulness_table(rows)
    assert not any(title in lines[0] for title in SHARES.values())
    assert len(lines) == 2 + 1 + 4


def test_shares_stand_beside_the_other_figures_where_they_were_measured(rows):
    rows = copy.deepcopy(rows)
    for seed, run in rows["egt"].items():
        run["faithfulness"] |= {name: [0.5 + 0.1 * seed, None, 0.7, 0.8] for name in SHARES}
    lines = faithfulness_table(rows)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| ---")]
    assert cells[0][-4:] == list(SHARES.values())
    assert len({len(line) for line in cells}) == 1
    assert cells[1][-4:] == [""] * 4  # the plain network's run is an older one
    assert cells[2][-1].startswith("0.55 ± ")
    assert cells[3][-1] == ""  # the oracle gains nothing there
