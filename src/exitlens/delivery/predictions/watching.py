"""A drift watch over files, which may come in groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from exitlens.data.formats.groups import match_groups
from exitlens.data.streams import ImageStream, TextStream
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
            "monitor: the calibration counted groups: say by --group-by REGEX which files belong together (its first "
            "parentheses, or all that it matches)"
        )
    return monitor


def watch_files(
    monitor: Monitor | None, predictions: Iterable[Prediction], samples: ImageStream | TextStream, group_by: str
) -> Iterator[Prediction]:
    """Passes predictions on and updates the monitor, if there is one, with each.

    Args:
        samples: whose files the predictions are of, which may have been read further ahead.
        group_by: a regular expression on their names; empty: all are independent.
    """
    count = 0
    for pred in predictions:
        if monitor is not None:
            names = [str(file) for file in samples.files[count : count + len(pred)]]
            monitor.update(pred, match_groups(group_by, names) if group_by else None)
        count += len(pred)
        yield pred
