"""What ``torchrun`` says to the processes that it starts: environment variables, read without importing PyTorch."""

from __future__ import annotations

import os
import socket

RUN_ID = "TORCHELASTIC_RUN_ID"


def is_launched() -> bool:
    """Whether ``torchrun`` started this process as one of several."""
    return RUN_ID in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def read_rank() -> int:
    """The number of this process among those that ``torchrun`` started; 0 for one that is alone."""
    return int(os.environ.get("RANK", "0")) if is_launched() else 0


def count_restarts() -> int:
    """How often ``torchrun`` has started the processes again, after one of them ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if RUN_ID in os.environ else 0


def count_local() -> int:
    """Processes that share this machine's cores."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if is_launched() else 1


def name_launch() -> str:
    """The same in all processes of one ``torchrun``, at first and again: its run's id, or its own process; else empty."""
    name = os.environ.get(RUN_ID, "")
    return name if name != "none" else f"{socket.gethostname()}:{os.getppid()}"
