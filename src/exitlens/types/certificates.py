"""A policy's certificate: what was promised about it, in plain words."""

from __future__ import annotations

from exitlens.types.calibrations import Calibration, Certification, RiskTest
from exitlens.types.tasks import Task

_TESTS = {
    "binomial": "exact binomial test",
    "paired": "exact test for pairs",
    "hoeffding_bentkus": "Hoeffding-Bentkus bound",
    "betting": "betting bound",
    "group_betting": "betting bound on means of groups",
    "signed_betting": "betting bound on losses and gains",
}


def write_certificate(record: Calibration | None, network: str, task: Task = "classes") -> str:
    """Two sentences: the promise, and what it rests on."""
    if record is None:
        return "Nothing is promised: these thresholds were set by hand. Calibrate with delta=0.1 for a certificate."
    limits = ", ".join(_describe_limit(name, limit, record) for name, limit in record.limits.items())
    tested = record.certification
    if tested is None and record.request.folds is not None:
        return _describe_folds(record, limits)
    if tested is None:
        return (
            f"Nothing is promised for new data: the limits ({limits}) hold on the {record.samples:,} "
            "samples that chose the thresholds. Calibrate with folds=5 for limits that other samples keep, or with "
            "delta=0.1 for a certificate."
        )
    sure = f"{100 * (1 - tested.delta):.4g} %"
    if tested.reason:
        return (
            "The early exits never fire, so every answer and map is the full network's: nothing cheaper could be promised "
            f"with {sure} confidence under these limits ({limits}). Reason: {tested.reason}."
        )
    limited = [(name, limit) for name, limit in record.limits.items() if name != "max_cost"]
    promises = " and ".join(_promise(*one, record, task) for one in limited)
    where, (drawn, tests) = f" {network}" if network else "", _name_data(record, tested)
    text = (
        f"With {sure} confidence, on {drawn}, the network{where} under this policy {promises}. This was tested on {tests} "
        f"that did not propose the thresholds ({_list_tests(tested)}), and early exits made the mean cost "
        f"{100 * record.cost:.3g} % of the full network's."
    )
    if record.groups is not None:
        text += " Only groups count as independent. " + _weigh_groups(tested.largest_group)
    if record.distinct_samples == record.samples:
        return text
    once = "distinct" if record.groups is None else "in one group only"
    return (
        f"{text} But only {record.distinct_samples:,} of the samples are {once}: repeated samples are not independent "
        "draws, and the promise does not count for them."
    )


def _describe_folds(record: Calibration, limits: str) -> str:
    drawn = f"{record.samples:,} samples" + ("" if record.groups is None else f" of {record.groups:,} groups")
    return (
        f"Nothing is promised for new data. The limits ({limits}) hold on the {drawn}, and by cross-validation in "
        f"{record.request.folds} folds, each routed by what the others chose ({_list_held_out(record)}). Expect new data to "
        "lose about that much; by chance it can be somewhat more or less. Calibrate with delta=0.1 for a certificate."
    )


def _name_data(record: Calibration, tested: Certification) -> tuple[str, str]:
    """What the promise is about, and what tested it."""
    rest = record.samples - tested.path_samples
    if record.groups is None or tested.path_groups is None:
        return f"new data drawn like the {record.samples:,} calibration samples", f"{rest:,} samples"
    return (
        f"new groups drawn like the {record.groups:,} groups of the calibration ({record.samples:,} samples)",
        f"{record.groups - tested.path_groups:,} groups ({rest:,} samples)",
    )


def _weigh_groups(largest: int | None) -> str:
    if largest is None:
        return "Every group counts the same, large or small: the means are over groups."
    more = "sample counts as 1" if largest == 1 else f"{largest:,} samples counts as {largest:,}"
    return f"A group counts as many times as it has samples, but one of more than {more}."


def _describe_limit(name: str, limit: float, record: Calibration) -> str:
    if name != "max_ms" or record.timing is None:
        return f"{_name(name)} at most {limit:.4g}"
    what = "mean time" if record.request.percentile is None else f"time of {record.request.percentile:g} % of the samples"
    return f"{what} at most {limit:g} ms for {record.timing.where()}"


def _promise(name: str, limit: float, record: Calibration, task: Task) -> str:
    if name == "max_ms" and record.timing is not None:
        times = f"as measured: {record.timing.list_ms()}"
        if (share := record.request.percentile) is None:
            return f"answers at exits that take at most {limit:g} ms on average ({times})"
        return f"answers at least {share:g} % of the samples at exits that take at most {limit:g} ms ({times})"
    tested, known = record.classes or (0, 0)
    where = "every class" if tested == known else f"each of the {tested} classes of {known} that were tested"
    points = f"{100 * limit:.4g} point{'' if limit == 0.01 else 's'}"
    if task == "multilabel" and "accuracy" in name:
        return _promise_labels(name, points, where)
    return {
        "max_accuracy_drop": f"is at most {points} less accurate than the full network",
        "max_class_accuracy_drop": f"is at most {points} less accurate than the full network in {where}",
        "max_disagreement": f"gives another answer than the full network to at most {100 * limit:.4g} % of the samples",
        "max_false_negative_drop": f"misses at most {points} more of the labels that a sample has than the full network, on "
        "average",
        "max_divergence": "looks where the full network looks (mean Jensen-Shannon divergence of its attention maps at most "
        f"{limit:.4g})",
    }[name]


def _promise_labels(name: str, points: str, where: str) -> str:
    if name == "max_accuracy_drop":
        return f"gets all labels of a sample right at most {points} less often than the full network"
    label = where.replace("classes", "labels").replace("class", "label")
    return f"finds {label}, where a sample has it, at most {points} less often than the full network"


def _list_held_out(record: Calibration) -> str:
    """What they lost; of many risks (one for each class) the largest."""
    lost = record.held_out or {}
    shown = lost if len(lost) <= 4 else dict([max(lost.items(), key=lambda one: one[1])])
    return ("" if shown is lost else f"the largest of {len(lost)}: ") + ", ".join(
        f"{_name(k)} {v:.4f}" for k, v in shown.items()
    )


def _list_tests(tested: Certification) -> str:
    """All tests, or of many (one for each class) the one that came nearest to failing."""
    tests = tested.tests
    if len(tests) <= 4:
        return "; ".join(map(_describe_test, tests))
    return f"nearest to failing of {len(tests)}: {_describe_test(max(tests, key=lambda test: test.p_value))}"


def _describe_test(test: RiskTest) -> str:
    seen = f"{test.mean:.4f} seen" if test.mean is not None else "none seen"
    return f"{_name(test.name)} {seen}, {_TESTS[test.test]}, p = {test.p_value:.2g}"


def _name(name: str) -> str:
    return name.removeprefix("max_").replace("_", " ")
