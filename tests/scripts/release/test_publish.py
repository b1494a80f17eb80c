"""What .github/workflows/publish.yml does, as far as that can be read."""

import re
import subprocess
import sys

import pytest

from scripts.release.versions import ROOT, read_version

PATH = ROOT / ".github" / "workflows" / "publish.yml"
pytestmark = pytest.mark.skipif(not PATH.exists(), reason="a source archive has no workflows")


def test_it_checks_before_it_publishes_and_pins_actions():
    text = PATH.read_text()
    check, publish = text.split("\n  publish:\n")
    assert "run: make release-check" in check
    assert "needs: check" in publish
    assert "id-token: write" in publish
    assert "id-token" not in check
    assert "password" not in text
    used = re.findall(r"uses: (\S+)", text)
    assert len(used) == 5
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@(v\d+|release/v\d+)", action) for action in used)  # by major version


def test_the_version_is_read_as_there():
    (code,) = re.findall(r"python -c '([^']+)'", PATH.read_text())
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == read_version()
