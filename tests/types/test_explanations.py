"""Explanations made by hand: what they say, with no network behind them."""

import json
import math
from dataclasses import replace

import pytest
import torch

import exitlens as xl

EVIDENCE = torch.tensor([[0.1, -2.0], [0.5, 0.4]])
VIEW = xl.types.ExitView(
    exit=0,
    label=1,
    confidence=0.7,
    threshold=0.6,
    fired=True,
    cost=0.25,
    probabilities=torch.tensor([0.2, 0.7, 0.1]),
    attention=torch.full((2, 2), 0.25),
    evidence=EVIDENCE,
    exact_evidence=True,
    logit=-0.5,
    bias=0.5,
    divergence=0.3,
    cc=0.8,
)
FINAL = replace(
    VIEW, exit=1, label=0, threshold=0.0, cost=1.0, divergence=0.0, cc=1.0, probabilities=torch.tensor([0.9, 0.05, 0.05])
)


def explain(*exits: xl.types.ExitView, answered: int = 0) -> xl.types.Explanation:
    return xl.types.Explanation(torch.zeros(3, 4, 4), exits, answered, ("cat", "dog"), 2)


def test_top_locations_and_the_runner_up():
    assert [place.at for place in VIEW.top(3)] == [(0, 1), (1, 0), (1, 1)]
    assert VIEW.top(1)[0].evidence == -2.0
    assert replace(VIEW, evidence=torch.tensor([0.1, 0.9]), attention=torch.tensor([0.5, 0.5])).top(1)[0].at == (1,)
    assert VIEW.runner_up == 0
    assert replace(VIEW, probabilities=torch.full((3,), 1 / 3)).runner_up != VIEW.label


@pytest.mark.parametrize(
    ("found", "parts"),
    [
        (explain(VIEW, FINAL), ["dog: exit 0 answered", "0.700 reached the threshold 0.600", "25 %", "final exit says cat"]),
        (explain(VIEW), ["exit 0 answered"]),
        (explain(VIEW, FINAL), ["maps correlate at 0.80 (another sample's map: not measured)"]),
        (explain(replace(VIEW, cc_null=0.62), FINAL), ["maps correlate at 0.80 (another sample's map: 0.62)"]),
        (explain(replace(VIEW, threshold=0.0)), ["answers everything under this policy"]),
        (
            explain(replace(VIEW, estimate=0.8)),
            ["the trust of the gate in it 0.800 reached the threshold 0.600"],
        ),
        (
            explain(replace(VIEW, fired=False), FINAL, answered=1),
            ["cat: no earlier exit could answer", "probability 90.0 %"],
        ),
        (
            explain(replace(VIEW, fired=False, estimate=0.3, refused=True), FINAL, answered=1),
            [
                "Exit 0 was sure enough, but the gate refused its answer (dog)",
                "gate in it, 0.300, is below the threshold 0.600",
            ],
        ),
    ],
)
def test_reasons(found, parts):
    assert all(part in found.reason for part in parts)


def test_the_final_exit_may_not_have_run():
    assert explain(VIEW).final is None
    assert not explain(VIEW).disagrees
    assert explain(VIEW, FINAL).disagrees
    assert explain(VIEW).name(2) == "class 2"


def test_to_dict_is_json_and_accounts_for_the_logit():
    never = replace(VIEW, threshold=math.inf, fired=False, estimate=0.1)
    values = json.loads(json.dumps(explain(never, FINAL, answered=1).to_dict(), allow_nan=False))
    row = values["exits"][0]
    assert (row["threshold"], row["estimate"], row["runner_up_name"]) == ("never", 0.1, "cat")
    evidence = sum(place["evidence"] for place in row["top_locations"]) + row["evidence_elsewhere"]
    assert evidence + row["bias"] == pytest.approx(-0.5)
    words = replace(explain(VIEW), tokens=("a", "lamp"))
    text = replace(words, exits=(replace(VIEW, evidence=torch.tensor([0.1, 0.9, 0.0]), attention=torch.ones(3) / 3),))
    assert [place.get("token") for place in text.to_dict()["exits"][0]["top_locations"]] == ["lamp", "a", None]
