"""What a process has to know or set before it imports PyTorch: ``torchrun``'s environment, and how threads wait."""

from __future__ import annotations

import os
import socket

RUN_ID = "TORCHELASTIC_RUN_ID"
WAITING = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "0"}  # PyTorch's wheels have GNU's OpenMP, others Intel's


def let_threads_sleep() -> None:
    """Make OpenMP threads sleep soon when they wait for one another; has to run before PyTorch is imported.

    By default they spin at every barrier; beside another busy process, training then takes several times as long as its
    share would explain. The user's own settings are left alone.
    """
    if not {"OMP_WAIT_POLICY", *WAITING} & os.environ.keys():
        os.environ.update(WAITING)


def is_launched() -> bool:
    """Return whether ``torchrun`` started this process as one of several."""
    return RUN_ID in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def read_rank() -> int:
    """Return the number of this process among those that ``torchrun`` started; 0 for one that is alone."""
    return int(os.environ.get("RANK", "0")) if is_launched() else 0


def count_restarts() -> int:
    """Return how often ``torchrun`` has started the processes again, after one of them ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if RUN_ID in os.environ else 0


def count_local() -> int:
    """Return how many processes share this machine's cores."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if is_launched() else 1


def name_launch() -> str:
    """Return what tells one ``torchrun`` from others, restarts included: its run's id, or its own process; else empty."""
    name = os.environ.get(RUN_ID, "")
    return name if name != "none" else f"{socket.gethostname()}:{os.getppid()}"
