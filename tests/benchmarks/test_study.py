"""The study's own machinery: its quick mode, that it resumes, its page, its bars, and its control losses."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.study import conditions as study_conditions
from benchmarks.study import page as study_page
from benchmarks.study import promises as study_bars
from benchmarks.study import run as study_run
from benchmarks.study import short as study_short
from benchmarks.study import trials as study_trials
from scipy import stats

import exitlens as xl
from benchmarks import markdown as marked
from exitlens.types import ExitOutput

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
JOBS = (
    "sweep/kl-1",
    "scenes/plain-0",
    "scenes/static-10-0",
    "small/both-0",
    "scenes/joint-0",
    "scenes/egt-0",
    "digits/frozen-0",
    "scenes/egt-kl-0",
    "speed/scenes-0",
)


def _study(out: Path, *patterns: str) -> str:
    command = [
        sys.executable,
        "-m",
        "benchmarks.study",
        "--quick",
        "--out",
        str(out / "results"),
        "--runs",
        str(out / "runs"),
    ]
    done = subprocess.run([*command, *patterns], capture_output=True, text=True, cwd=ROOT, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    _study(out, *JOBS)
    return out


def test_every_run_leaves_its_json(quick):
    results = quick / "results"
    assert {str(p.relative_to(results).with_suffix("")) for p in results.rglob("*.json")} == set(JOBS)
    found = json.loads((results / "scenes" / "egt-0.json").read_text())
    assert set(found["tests"]) == {"agreeing", "disagreeing", "unseen"}
    assert len(found["tests"]["agreeing"]["accuracy"]) == len(found["cost"]) == 4
    assert set(found["collapse"]) == {"uniform", "centre bias"}
    assert abs(found["collapse"]["uniform"]["skill"]) < 0.05
    assert abs(found["collapse"]["centre bias"]["skill"]) < 0.05
    assert 0 < found["area"] <= 1
    assert found["head"] == "context"
    assert found["area_common"] <= max(accuracy for _, accuracy in found["common"])
    timed = json.loads((results / "speed" / "scenes-0.json").read_text())["rows"]
    policies = ["0.005, certified", "best within 0.35", "one threshold within 0.35", "clock", "clock, stream"]
    assert [row["policy"] for row in timed] == [*policies, "everything at exit 0"]
    assert all(row["speed"]["speedup"] > 0 and row["speed"]["batch_size"] == 64 for row in timed)
    assert timed[-1]["cost"] == min(row["cost"] for row in timed)
    assert json.loads((results / "scenes" / "egt-kl-0.json").read_text())["loss"]["weight"] == 1  # what the sweep chose


def test_a_run_that_cannot_be_made_is_named_and_ends(tmp_path):
    out = tmp_path / "results"
    command = [sys.executable, "-m", "benchmarks.study", "--quick", "--out", str(out), "--runs", str(tmp_path / "runs")]
    done = subprocess.run([*command, "scenes/egt-kl-0"], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 1
    assert "scenes/egt-kl-0 failed: RuntimeError: the sweep of kl comes first" in done.stdout
    assert "failed: scenes/egt-kl-0" in done.stderr


def test_one_threshold_for_all_exits_by_hand():
    sure, unsure = torch.tensor([0.0, 3.0]), torch.tensor([1.0, 0.0])  # confidence 0.95 and 0.73
    logits = torch.stack([torch.stack([sure, sure]), torch.stack([unsure, sure])])
    trace = xl.Trace(logits, torch.tensor([1, 1]), torch.zeros(2, 2), torch.tensor([0.25, 1.0]))
    curve = study_run.common_curve(trace, (1.0, 1.0))
    assert curve[0] == (0.25, 0.5)  # everything leaves at exit 0
    assert curve[-1] == (1.0, 1.0)
    assert (0.625, 1.0) in curve  # the unsure one goes on
    policy = study_run.within_budget(trace, (1.0, 1.0), 0.7)
    assert study_run.routed_cost(trace, policy) == 0.625
    higher = [level for level in study_run.LEVELS if level > policy.thresholds[0]]
    assert study_run.routed_cost(trace, study_run.common_policy(higher[0], 2, (1.0, 1.0))) == 1.0


def test_what_is_there_is_skipped(quick):
    assert _study(quick, *JOBS) == ""


def test_frozen_heads_stand_on_the_plain_backbone(quick):
    frozen = quick / "runs" / "digits"
    assert (frozen / "plain-for-frozen-0" / "bundle" / "manifest.json").is_file()
    from safetensors.torch import load_file

    ours, plain = (
        load_file(frozen / name / "bundle" / "weights.safetensors") for name in ("frozen-0", "plain-for-frozen-0")
    )
    stem = [name for name in ours if name.endswith("stem.0.weight")]
    assert stem
    assert torch.equal(ours[stem[0]], next(v for n, v in plain.items() if n.endswith("stem.0.weight")))


def test_the_page_is_made_from_the_json(quick, tmp_path):
    page = "\n".join(study_page.page(quick / "results", tmp_path))
    assert "(g) EGT, context heads" in page
    assert (tmp_path / "results-scenes.svg").read_text().startswith("<?xml")
    assert page.count("| scenes") > 10
    found = json.loads((quick / "results" / "scenes" / "joint-0.json").read_text())
    accuracy = 100 * found["tests"]["agreeing"]["accuracy"][0]
    row = next(line for line in page.splitlines() if line.startswith("| (c) joint, evidence heads | 1 |"))
    assert row.split("|")[3].strip() == f"{accuracy:.1f}"


def test_intervals_are_students():
    values = [1.0, 2.0, 4.0, 3.5]
    middle, half = study_bars.interval(values)
    low, high = stats.t.interval(0.95, 3, loc=middle, scale=stats.sem(values))
    assert (middle - half, middle + half) == pytest.approx((low, high))
    assert study_bars.interval([1.0]) == (1.0, float("inf"))


def test_bars_see_what_got_worse(quick, tmp_path):
    good = json.loads((quick / "results" / "scenes" / "egt-0.json").read_text())
    for seed in (0, 1):
        for key in ("egt", "joint", "plain"):
            found = copy.deepcopy(good)
            if key != "egt":
                found["tests"]["disagreeing"]["accuracy"] = [
                    a - 0.2 - 0.01 * seed for a in found["tests"]["disagreeing"]["accuracy"]
                ]
            (tmp_path / "scenes").mkdir(exist_ok=True)
            (tmp_path / "scenes" / f"{key}-{seed}.json").write_text(json.dumps(found))
        (tmp_path / "scenes" / f"distilled-{seed}.json").write_text(json.dumps(good))
    figures = {promise.key: (promise.figure, promise.limit) for promise in study_bars.bars(tmp_path)}
    own = "neck and EGT"
    assert figures[f"study|exit0|disagreeing|{own}"] == (pytest.approx(20.5), 18)
    assert figures[f"study|final|c|agreeing|{own}"][0] == pytest.approx(0)
    middle, half = study_bars.interval([20.0, 21.0])
    assert figures[f"study|final|a|disagreeing|{own}"][0] == pytest.approx(middle - half)
    assert figures[f"study|distilled|{own}"][0] == pytest.approx(0)
    assert figures[f"study|kl|{own}"][0] == pytest.approx(1)
    assert not any(key.endswith("evidence heads alike") for key in figures)  # nothing to compare with there


def test_the_table_of_promises_names_why_one_was_missed(quick, tmp_path, monkeypatch):
    for key in ("egt", "joint"):
        (tmp_path / "scenes").mkdir(exist_ok=True)
        (tmp_path / "scenes" / f"{key}-0.json").write_bytes((quick / "results" / "scenes" / "egt-0.json").read_bytes())
    monkeypatch.setattr(study_page, "known_misses", lambda: {"study|kl|*": "For this reason.", "study|none|*": "Not this."})
    lines = study_page.bars_table(tmp_path)
    row = next(line for line in lines if line.startswith("| scenes: KL to the final map"))
    assert row.split("|")[2:5] == [" <= 0.06 ", " **1, missed** ", "  "]  # nothing to compare context heads with
    assert [line for line in lines if line.startswith("- ")] == [
        "- For this reason.\n  (*scenes: KL to the final map, over (c)'s [neck and EGT]*)"
    ]


def test_promises_are_counted_once_and_open_ones_are_said_to_be():
    first = study_bars.Promise("a", "what", 1.0, ">=", 0.5, half=0.4, track="x")
    same, other = first._replace(key="b", track="y"), first._replace(key="c", figure=0.4)
    worse = first._replace(key="d", what="more", figure=2.0, sense="<=", limit=1.0)
    line = study_page.counted([first, same, other, worse])
    assert line.startswith("1 kept, 2 **missed**")
    assert "of all these, 1 have an interval that reaches over the bar" in line
    assert [promise.is_open for promise in (first, other, worse, first._replace(half=None))] == [False, True, False, False]


def test_the_short_version_says_what_the_runs_say(tmp_path):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "digits").mkdir()
    for key, accuracies in (("egt", (0.91, 0.93)), ("plain", (0.90, 0.94))):
        for seed, accuracy in enumerate(accuracies):
            found = {"tests": {"agreeing": {"accuracy": [accuracy]}}, "cost": [1.0], "macs": 1}
            (tmp_path / "scenes" / f"{key}-{seed}.json").write_text(json.dumps(found))
            found["tests"] = {"test": {"accuracy": [0.5]}}
            (tmp_path / "digits" / f"{key}-{seed}.json").write_text(json.dumps(found))
    template = (
        "Short:\n\n- EGT {final|egt}.\n- {final|joint} is not there, nor {small/final|egt}.\n"
        "- {final|egt|plain} points\n  more.\n- Digits: {digits/final|egt}"
    )
    half = stats.t.interval(0.95, 1, scale=stats.sem([1.0, -1.0]))[1]
    assert study_short.short(tmp_path, template) == [
        "Short:",
        "",
        f"- EGT 92.0 ± {half:.1f}.",
        f"- 0.0 ± {half:.1f} points",
        "  more.",
        "- Digits: 50.0 ± 0.0",
    ]
    assert study_short.short(tmp_path / "none", template) == []


def test_marked_parts_of_pages_are_replaced(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("# x\n<!-- a -->\nold\n<!-- end of results -->\n<!-- b -->\n<!-- end of results -->\nmore\n")
    for _ in range(2):
        marked.replace(page, "<!-- a -->", ["new", "words"])
        assert page.read_text() == (
            "# x\n<!-- a -->\n\nnew\nwords\n\n<!-- end of results -->\n<!-- b -->\n<!-- end of results -->\nmore\n"
        )
    with pytest.raises(SystemExit, match="found it 0 times"):
        marked.replace(page, "<!-- c -->", ["new"])


def test_committed_runs_are_of_the_conditions_as_they_are_now():
    results = BENCHMARKS / "results" / "study"
    for data in study_conditions.FOR:
        sizes = set()
        for path in (results / data).glob("*.json"):
            key, found = path.stem.rpartition("-")[0], json.loads(path.read_text())
            condition = study_conditions.CONDITIONS[key]
            loss = condition.loss
            if condition.swept:
                loss = study_conditions.weighted(condition.swept, study_conditions.chosen(results, condition.swept))
            expected = loss and {"kind": type(loss).__name__, **dataclasses.asdict(loss)}
            assert found["loss"] == json.loads(json.dumps(expected)), path
            assert found["head"] == condition.head, path
            sizes.add((found["epochs"], found["train"]))
        assert len(sizes) < 2, data


def test_heads_are_alike_where_the_promise_says_so():
    heads = {track.name: {study_conditions.CONDITIONS[key].head for key in track[1:]} for track in study_bars.TRACKS}
    assert heads["context heads alike"] == {"context"}
    assert heads["evidence heads alike"] == {"evidence"}


def test_nothing_is_judged_before_all_runs_are_there(quick):
    left = study_bars.missing(quick / "results")
    assert "scenes/egt-1" in left
    assert "scenes/egt-0" not in left
    assert "speed/fashion-2" in left


def test_batches_and_streams_are_promises_of_their_own(tmp_path):
    (tmp_path / "speed").mkdir()
    for seed, (alone, streamed) in enumerate(((2.4, 3.1), (2.6, 3.3))):
        times = {"clock": (alone, 0.002), "clock, stream": (streamed, 0.004), "0.005, certified": (9.0, 0.0)}
        rows = [{"policy": name, "speed": {"speedup": x}, "accuracy_drop": lost} for name, (x, lost) in times.items()]
        (tmp_path / "speed" / f"fashion-{seed}.json").write_text(json.dumps({"rows": rows}))
    found = {promise.key: promise for promise in study_bars.bars(tmp_path)}
    kept = {"speed|fashion": False, "lost|fashion": True, "speed|fashion, stream": True, "lost|fashion, stream": False}
    assert {key.removeprefix("study|"): promise.is_kept for key, promise in found.items()} == kept
    assert found["study|speed|fashion"].figure == pytest.approx(2.5)
    assert found["study|lost|fashion, stream"].figure == pytest.approx(0.4)


def test_static_networks_cost_what_they_cost(tmp_path):
    (tmp_path / "scenes").mkdir()
    for key, macs, accuracy in (("plain", 100, 0.9), ("static-50", 50, 0.8), ("static-25", 25, 0.6), ("static-10", 10, 0.5)):
        found = {"macs": macs, "cost": [1.0], "area": 0.5, "guess": 0.1, "tests": {"t": {"accuracy": [accuracy]}}}
        (tmp_path / "scenes" / f"{key}-0.json").write_text(json.dumps(found))
    rows = study_bars.load_runs(tmp_path, "scenes")
    assert rows["static-25"][0]["cost"] == [0.25]
    by_hand = (0.15 * (0.5 + 0.6) / 2 + 0.25 * 0.7 + 0.5 * 0.85) / 0.9
    assert study_bars.static_area(rows) == {0: pytest.approx(by_hand)}


def _output(attention: torch.Tensor) -> ExitOutput:
    return ExitOutput(torch.zeros(2, 3), attention, torch.zeros(2, 3, 2, 2))


def test_control_losses_by_hand():
    torch.manual_seed(0)
    early, final = (torch.rand(2, 2, 2).flatten(1).softmax(1).view(2, 2, 2).requires_grad_() for _ in range(2))
    outputs, labels = [_output(early), _output(final)], torch.tensor([0, 1])

    def consistency(loss):
        return loss(outputs, labels).consistency.item()

    from exitlens.functional.similarity import divergence

    assert consistency(study_conditions.EGT) == pytest.approx(divergence(final, early).mean().item(), rel=1e-5)
    permuted = divergence(final.roll(1, 0), early).mean().item()
    assert consistency(study_conditions.PERMUTED) == pytest.approx(permuted, rel=1e-5)
    study_conditions.ATTACHED(outputs, labels).total.backward()
    assert final.grad is not None
    final.grad = None
    study_conditions.EGT(outputs, labels).total.backward()
    assert final.grad is None


def test_balanced_gradients_reach_the_first_stage_in_equal_shares(net, images):
    labels = torch.arange(40) % 4

    def gradient(k):
        net.zero_grad()
        torch.nn.functional.cross_entropy(net(images)[k].logits, labels).backward()
        return next(net.stage(0).parameters()).grad.clone()

    before, logits = [gradient(k) for k in range(3)], net(images)[-1].logits
    study_trials.balance(net)
    assert torch.equal(net(images)[-1].logits, logits)
    for k in range(3):
        torch.testing.assert_close(gradient(k), before[k] / 3, rtol=1e-4, atol=1e-8)


def test_mixed_training_begins_with_the_backbone_alone():
    torch.manual_seed(0)
    logits = [torch.randn(2, 3, requires_grad=True) for _ in range(2)]
    outputs = [ExitOutput(z, torch.full((2, 2, 2), 0.25), torch.zeros(2, 3, 2, 2)) for z in logits]
    labels = torch.tensor([0, 1])
    study_trials.MixedLoss()(outputs, labels, 0.4).total.backward()
    assert not logits[0].grad.any()
    assert logits[1].grad.any()
    late, whole = study_trials.MixedLoss()(outputs, labels, 0.75), study_conditions.EGT(outputs, labels, 0.5)
    assert late.total.item() == whole.total.item()


def test_averaged_exits_by_hand():
    sure, unsure = torch.tensor([0.0, 5.0]), torch.tensor([0.5, 0.0])
    logits = torch.stack([torch.stack([sure, unsure]), torch.stack([unsure, sure])])  # two samples of two exits
    assert study_trials.averaged(logits, torch.tensor([1, 1])) == [0.5, 1.0]


def test_the_sweep_chooses_by_mean_validation_accuracy(tmp_path):
    (tmp_path / "sweep").mkdir()
    for alpha, first, last in ((0.1, 0.5, 0.9), (1.0, 0.8, 0.85), (10.0, 0.6, 0.7)):
        found = {"alpha": alpha, "agreeing": {"accuracy": [first, last]}, "disagreeing": {"accuracy": [first, last]}}
        (tmp_path / "sweep" / f"kl-{alpha:g}.json").write_text(json.dumps(found))
    assert study_conditions.chosen(tmp_path, "kl", (0.1, 1.0, 10.0)) == 1.0
    with pytest.raises(RuntimeError, match="the sweep of kl comes first"):
        study_conditions.chosen(tmp_path, "kl")  # half a sweep
    with pytest.raises(RuntimeError, match="the sweep of cosine comes first"):
        study_conditions.chosen(tmp_path, "cosine")
