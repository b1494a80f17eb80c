"""What was promised about a policy, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TESTS = {
    "binomial": "exact binomial test",
    "paired": "exact test for pairs",
    "hoeffding_bentkus": "Hoeffding-Bentkus bound",
    "betting": "betting bound",
}


def certificate(record: Mapping[str, Any], network: str) -> str:
    """Two sentences from ``Policy.chosen_by``: the promise, and what it rests on."""
    if record.get("mode") != "certified":
        if "limits" not in record:
            return "Nothing is promised: these thresholds were set by hand. Calibrate with delta=0.1 for a certificate."
        return (
            f"Nothing is promised for new data: the limits ({_limits(record['limits'])}) hold on the {record['samples']:,} "
            "samples that chose the thresholds. Calibrate with delta=0.1 for a certificate."
        )
    sure = f"{100 * (1 - record['delta']):.4g} %"
    if record.get("reason"):
        return (
            "The early exits never fire, so every answer and map is the full network's: nothing cheaper could be promised "
            f"with {sure} confidence under these limits ({_limits(record['limits'])}). Reason: {record['reason']}."
        )
    limits = {name: limit for name, limit in record["limits"].items() if name != "max_cost"}
    promises = " and ".join(_promise(name, limit, record.get("classes", (0, 0))) for name, limit in limits.items())
    shown = record["tested"]
    if len(shown) > 4:  # classes: the one that was nearest to failing
        shown = [max(shown, key=lambda one: float(one["p_value"]))]
    tests = "; ".join(f"{_name(one['name'])} {_seen(one)}, {_TESTS[one['test']]}, p = {one['p_value']:.2g}" for one in shown)
    if len(shown) < len(record["tested"]):
        tests = f"nearest to failing of {len(record['tested'])}: {tests}"
    where = f" {network}" if network else ""
    held_out = record["samples"] - record["path_samples"]
    return (
        f"With {sure} confidence, on new data drawn like the {record['samples']:,} calibration samples, the network{where} "
        f"under this policy {promises}. This was tested on {held_out:,} samples that did not propose the thresholds "
        f"({tests}), and early exits made the mean cost {100 * record['cost']:.3g} % of the full network's."
        + _repeated(record)
    )


def _repeated(record: Mapping[str, Any]) -> str:
    if record.get("distinct", record["samples"]) == record["samples"]:
        return ""
    return (
        f" But only {record['distinct']:,} of the samples are distinct: repeated samples are not independent draws, and the "
        "promise does not count for them."
    )


def _promise(name: str, limit: float, classes: Sequence[int]) -> str:
    where = (
        "every class" if classes[0] == classes[1] else f"each of the {classes[0]} classes of {classes[1]} that were tested"
    )
    points = f"{100 * limit:.4g} point{'' if limit == 0.01 else 's'}"
    return {
        "max_accuracy_drop": f"is at most {points} less accurate than the full network",
        "max_class_accuracy_drop": f"is at most {points} less accurate than the full network in {where}",
        "max_disagreement": f"gives another answer than the full network to at most {100 * limit:.4g} % of the samples",
        "max_divergence": "looks where the full network looks (mean Jensen-Shannon divergence of its attention maps at most "
        f"{limit:.4g})",
    }[name]


def _name(name: str) -> str:
    return name.removeprefix("max_").replace("_", " ")


def _limits(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{_name(name)} at most {limit:.4g}" for name, limit in limits.items())


def _seen(one: Mapping[str, Any]) -> str:
    return f"{one['mean']:.4f} seen" if one["mean"] is not None else "none seen"
