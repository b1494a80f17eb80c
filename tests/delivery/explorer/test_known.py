import json

import pytest

from exitlens.delivery.explorer.known import Share, read_shares

ROW = {"deletion_share": [0.5, None], "deletion_share_error": [0.1, None], "oracle_samples": 200}
RESULT = {
    "egt": {"agreeing": ROW},
    "baseline": {"agreeing": {**ROW, "deletion_share": [0.25, None]}},
    "policy": {"network": "x"},
}


@pytest.fixture
def demo(tmp_path):
    for name in ("bundle", "training/egt/bundle", "training/baseline/bundle"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value"), [("", 0.5), ("bundle", 0.5), ("training/egt", 0.5), ("training/baseline/bundle", 0.25)]
)
def test_the_demo_knows_its_runs(demo, name, value):
    assert read_shares(demo / name, "x", 2) == (Share(value, 0.1, 200), None)


def test_another_network_is_not_known(demo):
    assert read_shares(demo, "y", 2) == (None, None)
    assert read_shares(demo, "x", 3) == (None, None, None)
    assert read_shares(demo / "training" / "plain", "x", 2) == (None, None)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"policy": 1}', '{"egt": {"agreeing": 3}, "policy": {"network": "x"}}'])
def test_a_file_that_is_no_result_says_nothing(demo, text):
    (demo / "result.json").write_text(text)
    assert read_shares(demo, "x", 2) == (None, None)


def test_without_a_file_nothing_is_known(tmp_path):
    assert read_shares(tmp_path, "x", 1) == (None,)
