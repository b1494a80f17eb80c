"""What a report is about: networks with what was measured of them, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from exitlens.model.network import ExitNet
from exitlens.types import Policy
from exitlens.workflow.evaluation import Report
from exitlens.workflow.faithfulness import Faithfulness


@dataclass(frozen=True)
class Subject:
    """A trained network with its policy, and what was measured of it under each test condition, the main one first."""

    name: str
    net: ExitNet
    policy: Policy
    reports: Mapping[str, Report]
    faithfulness: Mapping[str, Faithfulness] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Where every number of a report comes from: shown beside each table.

    Attributes:
        command: that makes the numbers again.
        data: what was tested on, in words.
        seed: of what was trained, in words.
        facts: everything else about training and testing: shown as a table.
    """

    command: str
    data: str
    seed: str
    facts: Mapping[str, str] = field(default_factory=dict)
