"""The page about series and its promises, on figures made up."""

from benchmarks.markdown import ROOT, fill
from benchmarks.series import promises
from benchmarks.series.page import ANSWERS, MAPS, ROUTED, write_answers, write_maps, write_part
from benchmarks.series.promises import find_seeds, list_promises
from benchmarks.series.runs import SERIES


def make(final: float, *, exits: bool, energy: float = 0.8) -> dict:
    found = {"train": 6, "validation": 3, "steps": 24, "channels": 2, "classes": 3, "cost": [1.0]}
    found["tests"] = {"test": {"samples": 3, "accuracy": [final]}}
    if exits:
        found["cost"], found["tests"]["test"]["accuracy"] = [0.3, 1.04], [0.5, final]
        found["tests"]["test"]["skill"] = [0.9]
        found["routed"] = {"cost": 0.5, "accuracy_drop": 0.004}
        found["maps"] = {"energy_in_mask": [energy, energy - 0.1], "deletion_share": [0.9, None]}
    return found


RUNS = {
    **{f"motifs/egt-{seed}": make(0.9 + 0.01 * seed, exits=True) for seed in range(2)},
    **{f"motifs/without-{seed}": make(0.9, exits=True, energy=0.6) for seed in range(2)},
    **{f"motifs/plain-{seed}": make(0.92, exits=False) for seed in range(3)},
    **{f"gunpoint/{condition}-0": make(0.9, exits=condition == "egt") for condition in ("egt", "plain")},
}


def read_rows(lines: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_a_row_for_every_data_set():
    head, _, *rows = read_rows(write_answers(RUNS))
    assert head == [*ANSWERS, *ROUTED]
    assert rows[0] == ["motifs", "12", "2 x 24", "3", "2", "92.0", "50.0 / 90.5", "0.30 / 1.04", "0.50", "0.40"]
    assert rows[1][0] == "GunPoint"
    assert len(rows) == 2


def test_a_row_for_every_loss():
    head, _, *rows = read_rows(write_maps(RUNS))
    assert head == MAPS
    assert rows[-1][0] == "EGT"
    assert "0.80 / 0.70" in rows[-1]
    assert write_maps({}) == []


def test_promises_are_judged_when_all_seeds_are_there(monkeypatch):
    assert find_seeds(RUNS, "motifs") == [0, 1]
    assert find_seeds(RUNS, "gunpoint") == [0]
    assert list(list_promises(RUNS)) == []
    monkeypatch.setattr(promises, "SEEDS", 2)
    judged = {one.key: one for one in list_promises(RUNS)}
    assert {key.split("|")[1] for key in judged} == {"motifs", "energy", "gain"}
    assert judged["series|motifs|final"].is_kept  # -1.5 points with an interval of 6.4
    assert judged["series|motifs|cost"].measured == 0.5
    assert [judged[f"series|energy|{k}"].is_kept for k in range(2)] == [True, True]
    assert judged["series|gain|0"].measured > judged["series|gain|1"].measured > 0


def test_the_committed_page_is_made_from_the_committed_results(tmp_path):
    copy = tmp_path / "series.md"
    copy.write_text((ROOT / "docs" / "measured" / "series.md").read_text())
    assert fill("series", write_part(SERIES.read()), [copy]) == [copy]
    assert copy.read_text() == (ROOT / "docs" / "measured" / "series.md").read_text()
