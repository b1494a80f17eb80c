from pathlib import Path

import pytest

from exitlens.delivery.plans import check_picture, draw_plan, tabulate_plan
from exitlens.errors import InputError
from exitlens.types import CalibrationRequest, SamplePlan
from exitlens.types.plans import PlannedCase, PlannedSize

REQUEST = CalibrationRequest(max_disagreement=0.1, delta=0.1)
SIZES = tuple(PlannedSize(units, share, 1 - share / 2, 0.5, 1.0) for units, share in ((10, 0.0), (14, 0.4), (20, 1.0)))
PLAN = SamplePlan(REQUEST, at_hand=14, needed=18, sizes=SIZES, limit_cost=0.4)


def test_every_second_size_and_the_cases():
    assert tabulate_plan(PLAN)[1:] == [["10", "0", "1.00", "0.50 to 1.00"], ["20", "100", "0.50", "0.50 to 1.00"]]
    cases = (PlannedCase(0.0, 0.02, 1234), PlannedCase(0.005, 0.02, None))
    plan = SamplePlan(REQUEST, cases=cases)
    assert tabulate_plan(plan)[1:] == [["0 %", "2 %", "1,234"], ["0.5 %", "2 %", "more than anybody collects"]]
    assert str(plan) == "1,234 independent samples if early answers lose nothing, more if they do"


def test_words_and_picture(tmp_path):
    words = (
        "About 18 samples get one in 90 %. The 14 samples at hand get a certificate in 40 % of draws, at a mean cost of 0.80"
    )
    assert str(PLAN) == f"{words} (the limits alone allow 0.40)."
    assert str(SamplePlan(REQUEST, at_hand=14, sizes=SIZES, limit_cost=0.4)).endswith(
        "Even 20 like these would not do in 90 %: raise a limit, or collect others."
    )
    with pytest.raises(InputError, match=r"out: expected a picture \.svg, \.png, \.pdf, got plan\.foo"):
        check_picture(Path("plan.foo"))
    draw_plan(PLAN, tmp_path / "new" / "plan.svg")
    assert (tmp_path / "new" / "plan.svg").read_text().startswith("<?xml")
