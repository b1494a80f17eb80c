"""A drift watch over files, which may come in groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from exitlens.data.streams import SampleStream
from exitlens.errors import InputError
from exitlens.functional.drift import Monitor
from exitlens.types import Policy, Prediction


def start_watch(policy: Policy, wanted: bool, group_by: str) -> Monitor | None:
    """A monitor of the policy, if one is wanted.

    Raises:
        InputError: where the calibration counted groups and nobody says which files belong together, or where that is said
            and nothing is to be watched.
    """
    if not wanted:
        if group_by:
            raise InputError("group_by: it says what --monitor counts: pass --monitor, too, or leave it out")
        return None
    monitor = Monitor(policy)
    if policy.calibration is not None and policy.calibration.groups is not None and not group_by:
        raise InputError(
            "monitor: the calibration counted groups: say by --group-by which samples belong together (a column, or a "
            "regular expression on file names: its first parentheses, or all that it matches)"
        )
    return monitor


def watch_files(monitor: Monitor | None, predictions: Iterable[Prediction], samples: SampleStream) -> Iterator[Prediction]:
    """Passes predictions on and updates the monitor, if there is one, with each.

    Args:
        samples: what the predictions are of, which may have been read further ahead; without groups all are independent.
    """
    count = 0
    for pred in predictions:
        if monitor is not None:
            monitor.update(pred, None if samples.groups is None else samples.groups[count : count + len(pred)])
        count += len(pred)
        yield pred
