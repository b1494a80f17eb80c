"""Builds an sdist and a wheel of every distribution and checks their sizes, and for missing or unwanted files."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.release.versions import ROOT

LEFT_OUT = (".ci/", ".github/")  # of source archives, as pyproject.toml says
UNWANTED = ("__pycache__", ".pyc", ".egg-info", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis")


@dataclass(frozen=True)
class Distribution:
    """A distribution of a release."""

    name: str  # on the package index
    package: str  # as it is imported
    folder: str  # of its pyproject.toml, from the root of the repository
    largest: float  # size of its wheel at most, in megabytes

    def find(self, dist: Path, suffix: str) -> Path:
        """Return its only archive in a folder."""
        paths = sorted(dist.glob(f"{self.name.replace('-', '_')}-[0-9]*{suffix}"))
        if len(paths) != 1:
            raise SystemExit(f"{dist}: expected one {self.name} archive *{suffix}, got {len(paths)}")
        return paths[0]


DISTRIBUTIONS = (
    Distribution("exitlens", "exitlens", ".", 1.5),
    Distribution("exitlens-runtime", "exitlens_runtime", "runtime", 0.1),
    Distribution("exitlens-demo-data", "exitlens_demo_data", "demo-data", 8.0),
)


def build_all(dist: Path) -> None:
    """Build an sdist of every distribution into a folder, and from that the wheel."""
    for distribution in DISTRIBUTIONS:
        _run_tool("pyproject-build", "--outdir", str(dist), str(ROOT / distribution.folder))


def check_metadata(dist: Path) -> None:
    """Run ``twine check --strict`` on everything, ``check-wheel-contents`` on the wheels, ``cffconvert`` on the citation."""
    archives = sorted(str(path) for path in dist.iterdir())
    _run_tool("twine", "check", "--strict", *archives)
    _run_tool("check-wheel-contents", *[name for name in archives if name.endswith(".whl")])
    # in an environment of its own: it needs a jsonschema older than the tests' libraries do
    _run_tool("uvx", "--from", "cffconvert>=2.0", "cffconvert", "--validate", "-i", str(ROOT / "CITATION.cff"))


def _run_tool(name: str, *words: str) -> None:
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise SystemExit(f"{name} is not installed beside {sys.executable}: pip install -e '.[release]'")
    done = subprocess.run([str(path), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} {' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def find_faults(dist: Path) -> list[str]:
    return [fault for distribution in DISTRIBUTIONS for fault in _find_faults(distribution, dist)]


def _find_faults(distribution: Distribution, dist: Path) -> Iterator[str]:
    wheel, sdist = distribution.find(dist, ".whl"), distribution.find(dist, ".tar.gz")
    megabytes = wheel.stat().st_size / 1e6
    if megabytes > distribution.largest:
        yield f"{wheel.name}: expected at most {distribution.largest} MB, got {megabytes:.2f}"
    inside, source = list_wheel(wheel), list_sdist(sdist)
    yield from (f"{wheel.name}: {name} is missing" for name in sorted(_list_wanted(distribution) - inside))
    yield from (
        f"{archive.name}: {name} has no place there"
        for archive, names in ((wheel, inside), (sdist, source))
        for name in sorted(names)
        if any(part in f"/{name}" for part in UNWANTED)
    )
    yield from (f"{wheel.name}: link to {target}, expected a whole address" for target in _list_links(wheel))
    strangers = {name for name in inside if not name.startswith((f"{distribution.package}/", f"{distribution.package}-"))}
    yield from (f"{wheel.name}: {name} is outside the package" for name in sorted(strangers))
    tracked = list_tracked(distribution)
    yield from (f"{sdist.name}: {name} is missing" for name in sorted(tracked - source))
    unknown = source - tracked - {"PKG-INFO", ".gitignore"} if tracked else set()
    yield from (f"{sdist.name}: {name} is not tracked by git" for name in sorted(unknown))


def _list_links(wheel: Path) -> list[str]:
    """Relative links of the description, which lead nowhere on a package index."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return [link for name in names for link in re.findall(r"\]\((?!https?:|#)([^)\s]+)", archive.read(name).decode())]


def _list_wanted(distribution: Distribution) -> set[str]:
    """Return what its wheel needs: all of the package's files in the tree, the mark that it is typed, and the licences."""
    base = ROOT / distribution.folder / "src"
    files = {path.relative_to(base).as_posix() for path in (base / distribution.package).rglob("*") if path.is_file()}
    version = (base / distribution.package / "__init__.py").read_text().partition('__version__ = "')[2].partition('"')[0]
    wheel_of = f"{distribution.package}-{version}.dist-info"
    wanted = {name for name in files if not any(part in name for part in UNWANTED)}
    return wanted | {f"{distribution.package}/py.typed", f"{wheel_of}/METADATA", f"{wheel_of}/licenses/LICENSE"}


def list_tracked(distribution: Distribution) -> set[str]:
    """Return the files of its folder that git tracks and a source archive has; none outside a git repository."""
    command = ["git", "-C", str(ROOT / distribution.folder), "ls-files", "-z", "."]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {name for name in done.stdout.split("\0") if name and not name.startswith(LEFT_OUT)}


def list_wheel(path: Path) -> set[str]:
    """Return the names of a wheel's files."""
    with zipfile.ZipFile(path) as wheel:
        return {name for name in wheel.namelist() if not name.endswith("/")}


def list_sdist(path: Path) -> set[str]:
    """Return the names of an sdist's files, without the folder that all are in."""
    with tarfile.open(path) as sdist:
        return {member.name.partition("/")[2] for member in sdist if member.isfile()}


def list_sizes(dist: Path) -> list[tuple[str, float, float | None]]:
    """Return (archive, megabytes, most megabytes) of every distribution; sdists have no limit."""
    rows: list[tuple[str, float, float | None]] = []
    for distribution in DISTRIBUTIONS:
        for suffix, largest in ((".whl", distribution.largest), (".tar.gz", None)):
            path = distribution.find(dist, suffix)
            rows.append((path.name, path.stat().st_size / 1e6, largest))
    return rows
