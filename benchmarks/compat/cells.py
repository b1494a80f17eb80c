"""What is tried: cells of Python, PyTorch and the versions of everything else."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.store import RESULTS, Store
from scripts.release.environments import VERSIONS
from scripts.release.versions import ROOT

COMPAT = Store(RESULTS / "compat.csv", Path("runs/compat"))
TORCH = ("2.11", "2.12", "2.13", "2.14", "2.15")  # lowest supported to newest
EXTRAS = ("timm", "hf", "onnx")
CHOSEN = ("timm", "transformers")


@dataclass(frozen=True)
class Cell:
    """One environment.

    Attributes:
        python: major and minor version.
        torch: likewise; torchvision goes with it.
        lowest: which of timm and transformers are at their lower bound; ``("all",)``: every direct dependency is.
    """

    python: str
    torch: str
    lowest: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As its run is called."""
        return " ".join([f"python-{self.python}", f"torch-{self.torch}", *(f"lowest-{one}" for one in self.lowest)])

    @property
    def is_lowest(self) -> bool:
        """Whether every direct dependency is at its lower bound."""
        return self.lowest == ("all",)

    def list_requirements(self) -> list[str]:
        """For the installer."""
        pinned = [f"torch=={self.torch}.*", *(find_lowest(one) for one in self.lowest if one in CHOSEN)]
        return [*list_dependencies(), *pinned]


CELLS = (
    *(Cell(VERSIONS[0], torch) for torch in (TORCH[0], TORCH[-1])),
    Cell(VERSIONS[0], TORCH[0], ("all",)),
    *(Cell(python, TORCH[-1]) for python in VERSIONS[1:]),
    Cell(VERSIONS[0], TORCH[-1], CHOSEN),
    *(Cell(VERSIONS[0], torch) for torch in TORCH[1:-1]),
    *(Cell(python, TORCH[0]) for python in VERSIONS[1:]),
)


@cache
def _read_project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def list_dependencies() -> list[str]:
    """What exitlens asks for, with the extras that are tried."""
    project = _read_project()
    return [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]


def find_lowest(package: str) -> str:
    """Its lower bound as a requirement: ``timm==1.0.9``."""
    (bound,) = {one for one in list_dependencies() if one.startswith(f"{package}>=")}
    return bound.replace(">=", "==") + ".*" * (bound.count(".") < 2)
