"""The first steps of a user in a fresh environment: the README's lines on few images, the command line, a device."""

from __future__ import annotations

import email
import json
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from scripts.release.environments import Environment, StepError
from scripts.release.versions import ROOT

FEW = (("load_scenes(split)", "load_scenes(split, limit=96)"), ("epochs=8", "epochs=1, progress=False"))
CONFIDENCE_GAP = 1e-3
AFTERWARDS = """
from PIL import Image
from pathlib import Path
import json
net.describe(classes=test.classes, preprocess=test.preprocess)  # so that files can be read and answers have names
xl.save(net, policy, "described")
few = test.first(4)
for i, pixels in enumerate(few.images):
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(f"{i}.png")
pred = xl.predict(net, few.inputs, policy)
columns = ([test.classes[i] for i in pred.labels.tolist()], pred.exits.tolist(), pred.confidence.tolist())
Path("answers.json").write_text(json.dumps(list(zip(*columns))))
"""


def write_example() -> str:
    """Return the README's Python for few images; it also writes the answers to four of them beside the images."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    for whole, few in FEW:
        if code.count(whole) != 1:
            raise SystemExit(f"README.md: expected {whole} once in its Python, found it {code.count(whole)} times")
        code = code.replace(whole, few)
    return code + AFTERWARDS


def run_library(environment: Environment, folder: Path, version: str) -> None:
    """Import, version, train, calibrate, predict, explain, save, load and export; leave an edge bundle in ``folder``."""
    words = environment.run("exitlens", "--version", cwd=folder).split()
    if words != ["exitlens", version]:
        raise StepError(f"exitlens --version: expected {version}, got {' '.join(words)}")
    (folder / "example.py").write_text(write_example())
    environment.run("python", "-I", "example.py", cwd=folder)
    environment.run("exitlens", "export", "--bundle", "described", "--out", "edge", cwd=folder)


def run_runtime(environment: Environment, folder: Path, version: str) -> None:
    """Check that the edge bundle in ``folder`` answers its images as the library did, without PyTorch."""
    words = environment.run("exitlens-run", "--version", cwd=folder).split()
    if words != ["exitlens-run", version]:
        raise StepError(f"exitlens-run --version: expected {version}, got {' '.join(words)}")
    strangers = {"torch", "exitlens"} & environment.list_installed().keys()
    if strangers:
        raise StepError(f"exitlens-runtime: expected to be installed without {sorted(strangers)}")
    expected = json.loads((folder / "answers.json").read_text())
    names = [f"{i}.png" for i in range(len(expected))]
    lines = environment.run("exitlens-run", "edge", *names, "--json", cwd=folder).splitlines()
    got = [[json.loads(line)[key] for key in ("label", "exit", "confidence")] for line in lines]
    if not agree(got, expected):
        raise StepError(f"exitlens-run: expected the library's answers {expected}, got {got}")


def agree(got: list[list[Any]], expected: list[list[Any]]) -> bool:
    """Return whether two lists of (label, exit, confidence) are the same, with confidences up to rounding."""
    pairs = list(zip(got, expected, strict=False))
    alike = all(a[:2] == b[:2] and abs(a[2] - b[2]) < CONFIDENCE_GAP for a, b in pairs)
    return len(got) == len(expected) and alike


def list_requirements(wheel: Path, extras: Collection[str] = ()) -> list[str]:
    """Return a wheel's requirements with some of its extras; given to the installer, they count as direct."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        asked = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    requirements = []
    for requirement in map(Requirement, asked):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            requirement.marker = None
            requirements.append(str(requirement))
    return requirements
