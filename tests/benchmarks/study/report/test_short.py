"""Sentences with the figures of runs put in."""

from scipy import stats

from benchmarks.study.report.short import fill_in
from benchmarks.study.runs import study_store


def test_sentences_stand_where_there_are_runs_for_them(tmp_path):
    store = study_store(tmp_path / "study.csv", tmp_path)
    for key, accuracies in (("egt", (0.91, 0.93)), ("plain", (0.90, 0.94))):
        for seed, accuracy in enumerate(accuracies):
            found = {"tests": {"agreeing": {"accuracy": [accuracy]}}, "cost": [1.0], "macs": 1}
            store.add(f"scenes/{key}-{seed}", found)
            store.add(f"digits/{key}-{seed}", {**found, "tests": {"test": {"accuracy": [0.5]}}})
    store.fold()
    template = (
        "Short:\n\n- EGT {final|egt}.\n- {final|joint} is not there, nor {small/final|egt}.\n"
        "- {final|egt|plain} points\n  more.\n- Digits: {digits/final|egt}"
    )
    half = stats.t.interval(0.95, 1, scale=stats.sem([1.0, -1.0]))[1]
    assert fill_in(store, template) == [
        "Short:",
        "",
        f"- EGT 92.0 ± {half:.1f}.",
        f"- 0.0 ± {half:.1f} points",
        "  more.",
        "- Digits: 50.0 ± 0.0",
    ]
    assert fill_in(study_store(tmp_path / "none.csv", tmp_path / "none"), template) == []
