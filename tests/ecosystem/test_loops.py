"""Training loops of Lightning, transformers and accelerate: the page's blocks, and what these frameworks add to a step."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from subprocess import run as call
from typing import Any

import pytest
import torch

import exitlens as xl
from benchmarks import loops
from tests.ranks import launch, one_thread
from tests.test_readme import ROOT, read_blocks, run

PAGE = ROOT / "docs" / "guides" / "loops.md"
PACKAGES = {"Lightning": "lightning", "transformers.Trainer": "transformers", "accelerate": "accelerate"}
CHANGES = {  # to the block of each section: half precision, two batches a step, and an average of the weights
    "Lightning": {
        "import lightning\n": "import lightning\nfrom lightning.pytorch.callbacks import EMAWeightAveraging\n",
        'accelerator="cpu"': 'accelerator="cpu", precision="bf16-mixed", accumulate_grad_batches=2, '
        "callbacks=[EMAWeightAveraging(decay=0.9)]",
    },
    "transformers.Trainer": {"use_cpu=True": "use_cpu=True, bf16=True, gradient_accumulation_steps=2"},
    "accelerate": {"gradient_accumulation_steps=1": 'gradient_accumulation_steps=2, mixed_precision="bf16"'},
}
ALONGSIDE = {  # for two processes
    "Lightning": {'accelerator="cpu"': 'accelerator="cpu", devices=2, strategy="ddp"'},
    "transformers.Trainer": {"use_cpu=True": 'use_cpu=True, ddp_backend="gloo"'},
}
pytest.importorskip("accelerate")  # Trainer needs it, too
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # the packages warn of many things
each_section = pytest.mark.parametrize("section", PACKAGES)


def read_section(heading: str) -> str:
    """The block of code under a heading."""
    page = PAGE.read_text().partition(f"\n## {heading}\n")[2]
    return page.partition("```py\n")[2].partition("\n```")[0]


@cache
def start() -> dict[str, Any]:
    """What the page's first block makes."""
    space: dict[str, Any] = {}
    run(read_blocks(PAGE, "python")[0], PAGE.name, space, ROOT)
    return space


def run_section(section: str, folder: Path, changes: dict[str, str]) -> dict[str, Any]:
    pytest.importorskip(PACKAGES[section])
    space, code = {**start(), "net": copy.deepcopy(start()["net"])}, read_section(section)
    for old, new in changes.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    run(code, PAGE.name, space, folder)
    return space


@each_section
@pytest.mark.parametrize("changed", [False, True], ids=["as it stands", "half precision, accumulation, average"])
def test_a_section_trains_and_goes_on(section, changed, tmp_path):
    space = run_section(section, tmp_path, CHANGES[section] if changed else {})
    net, before = space["net"], start()["net"]
    assert isinstance(space["policy"], xl.Policy)
    assert space["policy"].network == net.identity()
    for head, other in zip(net.heads, before.heads, strict=True):
        assert not torch.equal(head.attend.weight, other.attend.weight)
    assert not torch.equal(next(net.stages.parameters()), next(before.stages.parameters()))


def test_trainer_goes_on_from_a_checkpoint(tmp_path):
    changes = {"num_train_epochs=epochs": "num_train_epochs=epochs, save_strategy='epoch'"}
    space = run_section("transformers.Trainer", tmp_path, changes)
    expected = {name: value.clone() for name, value in space["net"].state_dict().items()}
    with torch.no_grad():
        for parameter in space["net"].parameters():
            parameter.zero_()
    space["trainer"].args.output_dir = str(tmp_path / "runs" / "trainer")
    space["trainer"].train(resume_from_checkpoint=True)  # nothing is left to train
    for name, value in space["net"].state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("section", ["A bare loop", *PACKAGES])
def test_two_processes(section, tmp_path):
    code = read_section(section)
    if section != "A bare loop":
        pytest.importorskip(PACKAGES[section])
        first = read_blocks(PAGE, "python")[0]
        for old, new in ALONGSIDE.get(section, {}).items():
            code = code.replace(old, new)
        last = 'print("weights", float(sum(p.double().sum() for p in net.parameters())), flush=True)\n'
        code = f"{first}\n{code}\n{last}"
    script = tmp_path / "train.py"
    script.write_text(code)
    done = call(launch([str(script)]), cwd=tmp_path, env=one_thread(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    if section == "A bare loop":
        net, policy = xl.load(tmp_path / "bundle")
        assert policy.network == net.identity()
    else:
        weights = [line for line in done.stdout.splitlines() if line.startswith("weights")]
        assert len(weights) == 2
        assert weights[0] == weights[1]


def test_every_loop_trains_as_fit_does():
    for package in (*PACKAGES.values(), "sklearn"):
        pytest.importorskip(package)
    measured = loops.measure_loops("vit", 0, epochs=1)
    for loop in loops.LOOPS:
        assert measured[loop]["accuracy"] == measured["fit"]["accuracy"]
        assert min(measured[loop]["maps"]) == pytest.approx(1)
    assert max(measured[loops.CONTROL]["maps"]) < 0.9
