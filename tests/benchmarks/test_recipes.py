"""The page says what the recipes are, and every trial has its arguments."""

from benchmarks.markdown import ROOT
from benchmarks.recipes import TRIALS, TRIED, list_table, list_values, split_name
from exitlens.workflow.training.recipe import follow_recipe


def test_the_page_has_the_recipes_as_they_are():
    page = (ROOT / "docs" / "pretrained.md").read_text()
    assert "\n".join(list_values()) in page
    for kind in ("pictures", "reviews"):
        assert "\n".join(list_table(kind)) in page


def test_trials_are_known_by_name():
    assert {split_name(name)[1] for name in TRIED.read()} <= set(TRIALS)
    for trial in TRIALS.values():
        assert follow_recipe(trial.how["recipe"], trial.how)["learning_rate"] == trial.how["learning_rate"]
