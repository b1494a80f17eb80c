"""The study's quick mode makes every kind of run, keeps what it found, and goes on where it stopped."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.markdown import ROOT
from benchmarks.study import __main__ as command
from benchmarks.study import jobs, measure
from benchmarks.study.jobs import list_jobs, list_sweeps
from benchmarks.study.runs import join_name, split_name, study_store

JOBS = (
    "sweep/kl-1",
    "scenes/plain-0",
    "scenes/static-10-0",
    "scenes/egt-0",
    "digits/frozen-0",
    "scenes/egt-kl-0",
    "speed/scenes-0",
)


def test_names_of_runs_say_data_condition_and_seed():
    assert split_name("scenes/egt-cosine-3") == ("scenes", "egt-cosine", "3")
    assert split_name("sweep/kl-0.1") == ("sweep", "kl-0.1", "1000")
    names = [job.name for jobs in (list_sweeps(False), list_jobs(False)) for job in jobs] + [
        "speed/fashion-2",
        "trials/mixed",
    ]
    assert len(set(names)) > 250
    assert all(join_name(*split_name(name)) == name for name in names)


def list_words(out: Path, *patterns: str) -> list[str]:
    return ["--quick", "--csv", str(out / "study.csv"), "--runs", str(out / "runs"), *patterns]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Where the runs are, made in processes that are copies of this one; the same command goes on there."""
    with pytest.MonkeyPatch.context() as patch:
        fork = multiprocessing.get_context("fork")
        patch.setattr(jobs.multiprocessing, "get_context", lambda _: fork)
        patch.setattr(measure, "SAMPLES", 32)
        patch.setattr(measure, "ORACLE", 8)
        patch.setattr(command, "keep_memory", lambda: None)  # in this process
        out = tmp_path_factory.mktemp("study")
        patch.setattr(sys, "argv", ["study", *list_words(out, *JOBS)])
        command.main()
        yield out


@pytest.mark.slow
def test_every_run_is_folded_in(quick):
    runs = study_store(quick / "study.csv", quick / "runs").read()
    assert set(runs) == set(JOBS)
    assert not list(quick.rglob("measured.json"))
    found = runs["scenes/egt-0"]
    assert set(found["tests"]) == {"agreeing", "disagreeing", "unseen"}
    assert len(found["tests"]["agreeing"]["accuracy"]) == len(found["cost"]) == 4
    assert set(found["collapse"]) == {"uniform", "centre bias"}
    assert abs(found["collapse"]["uniform"]["skill"]) < 0.05
    assert abs(found["collapse"]["centre bias"]["skill"]) < 0.05
    assert 0 < found["area"] <= 1
    shares = [name for name in found["faithfulness"] if "share" in name]
    assert len(shares) == 8
    assert {len(found["faithfulness"][name]) for name in shares} == {4}
    assert found["head"] == "context"
    assert found["area_common"] <= max(found["common"]["accuracy"])
    assert runs["scenes/egt-kl-0"]["loss"]["weight"] == 1  # what the sweep chose


@pytest.mark.slow
def test_every_policy_is_timed(quick):
    rows = study_store(quick / "study.csv", quick / "runs").read()["speed/scenes-0"]["rows"]
    policies = ["0.005, certified", "best within 0.35", "one threshold within 0.35", "clock", "clock, stream"]
    assert list(rows) == [*policies, "everything at exit 0"]
    assert all(row["speed"]["speedup"] > 0 and row["speed"]["batch_size"] == 64 for row in rows.values())
    assert rows["everything at exit 0"]["cost"] == min(row["cost"] for row in rows.values())


@pytest.mark.slow
def test_what_is_there_is_skipped(quick, capsys):
    before = (quick / "study.csv").read_text()
    command.main()
    assert capsys.readouterr().out == ""
    assert (quick / "study.csv").read_text() == before


@pytest.mark.slow
def test_frozen_heads_stand_on_the_plain_backbone(quick):
    frozen = quick / "runs" / "digits"
    assert (frozen / "plain-for-frozen-0" / "bundle" / "manifest.json").is_file()
    ours, plain = (
        load_file(frozen / name / "bundle" / "weights.safetensors") for name in ("frozen-0", "plain-for-frozen-0")
    )
    stem = [name for name in ours if name.endswith("stem.0.weight")]
    assert stem
    assert torch.equal(ours[stem[0]], next(v for n, v in plain.items() if n.endswith("stem.0.weight")))


@pytest.mark.slow
def test_a_run_that_cannot_be_made_is_named_and_ends(tmp_path):
    words = [sys.executable, "-m", "benchmarks.study", *list_words(tmp_path, "scenes/egt-kl-0")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=400, check=False)
    assert done.returncode == 1
    assert "scenes/egt-kl-0 failed: RuntimeError: the sweep of kl comes first" in done.stdout
    assert "failed: scenes/egt-kl-0" in done.stderr
