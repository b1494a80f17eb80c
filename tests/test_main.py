"""``python -m exitlens``, and the same under torchrun: real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from exitlens.io import read_tensors
from tests.ranks import call, call_launched, launch, one_thread, open_pair


def test_it_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "exitlens", "--help"], check=True, capture_output=True, text=True)
    assert "evaluate" in done.stdout


def fit(folder: Path, out: Path, **more: object) -> list[str]:
    words = {"data": folder, "size": 32, "epochs": 4, "batch-size": 16, "out": out} | more
    return ["-m", "exitlens", "fit", *(word for name, value in words.items() for word in (f"--{name}", str(value)))]


def find_first_rank(parent: int) -> int | None:
    """The process that torchrun started as rank 0."""
    for line in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in map(int, line.read_text().split()):
            if b"RANK=0" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return child
    return None


def kill_during_training(words: list[str], out: Path) -> subprocess.CompletedProcess[str]:
    """Kills rank 0 once two epochs are done; torchrun starts both again, once."""
    command = launch(words, restarts=1)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread())
    end = time.monotonic() + 600
    while time.monotonic() < end and (not (out / "log.csv").exists() or len((out / "log.csv").read_text().splitlines()) < 3):
        time.sleep(0.02)
    victim = find_first_rank(process.pid)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    printed, told = process.communicate(timeout=900)
    return subprocess.CompletedProcess(command, process.returncode, printed, told)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """A run of two processes that nothing happened to; without torchrun, so that they need not import everything again."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with open_pair(out.parent, seconds=600) as pair:
        (code, printed, told), second = pair.run(call_launched, [*fit(folder, out)[2:], "--json"], 0, "whole")
    assert code == 0, told
    assert second[:2] == (0, "")
    assert json.loads(printed)["epochs"] == 4
    return out


@pytest.mark.long
def test_a_run_of_which_the_first_process_is_killed_goes_on_by_itself_and_ends_the_same(whole, folder, tmp_path):
    out = tmp_path / "run"
    done = kill_during_training([*fit(folder, out), "--json"], out)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1  # one process alone prints
    assert json.loads(done.stdout)["epochs"] == 4
    assert "exitcode: -9" in done.stderr
    state, note = read_tensors(out / "last.safetensors")
    expected, _ = read_tensors(whole / "last.safetensors")
    assert len(note["history"]) == 4
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert (out / "bundle" / "manifest.json").exists()


@pytest.fixture
def pair(tmp_path):
    with open_pair(tmp_path, seconds=600) as found:
        yield found


@pytest.mark.long
def test_calibrate_and_evaluate_are_shared_and_say_what_one_process_says(whole, pair):
    for words in (["calibrate", "--max-accuracy-drop", "0.5"], ["evaluate"]):
        words = [*words, "--bundle", str(whole), "--json"]
        (code, printed, told), second = pair.run(call_launched, words)
        assert code == 0, told
        assert second == (0, "", "")
        assert json.loads(printed) == json.loads(call(words)[1])


@pytest.mark.slow
def test_an_error_is_printed_once_and_a_restart_does_not_touch_another_run(whole, folder, pair):
    before = (whole / "last.safetensors").read_bytes()
    for restarts in range(2):
        (code, _, told), second = pair.run(call_launched, fit(folder, whole)[2:], restarts)
        assert code == 2
        assert told.count("exists and is not empty") == 1
        assert second == (2, "", "")
    assert (whole / "last.safetensors").read_bytes() == before
