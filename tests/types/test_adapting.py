"""The status of a policy that adapts, in words."""

import math
from dataclasses import replace

from exitlens.types import AdaptiveStatus


def test_a_status_in_words():
    status = AdaptiveStatus(12_000, 240, 3, 1, 250.0, 300.0, 0, 0, 0, False, (0.9,))
    assert str(status) == "240 audits of 12,000 samples, their losses add up to 3"
    assert str(replace(status, alarms=2)).endswith("; 2 sudden changes")
    assert replace(status, thresholds=(0.9, math.inf)).to_dict()["thresholds"] == [0.9, "never"]
