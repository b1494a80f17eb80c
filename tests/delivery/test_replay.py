"""Replays: by hand on two exits, on the journal of a stream, and the folder of a journal."""

import json
import math
import time
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from scipy.stats import binomtest

import exitlens as xl
from exitlens.delivery.replay import Log, draw_course, find_journal, read_log, replay, summarize_course, tabulate_replay
from exitlens.errors import DataError, InputError
from exitlens.model.engine import journal
from tests.model.engine.test_adapting import COST, make, stream

FACTS = {"limit": 0.3, "warm_up": 100, "loss": "disagreement", "score": "max_probability", "temperatures": [1.0, 1.0, 1.0]}
FACTS |= {"network": "", "gate": None}
BY_HAND = Log(
    times=torch.arange(4.0),
    scores=torch.tensor([[0.9, 0.9], [0.8, 0.9], [0.3, 0.9], [0.2, 0.4]]),
    losses=torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]),
    exits=torch.tensor([0, 1, 1, 2]),
    weights=torch.ones(4),
    levels=[(0.0, (0.85, 0.85)), (2.0, (math.inf, 0.85))],
    facts=FACTS,
)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder with what a stream taught, a second for each sample, and the exits of its samples."""
    trace, clock = stream([(4000, 0.55)]), [0.0]
    monkeypatch.setattr(journal.time, "time", lambda: clock[0])
    adaptive = make(limit=0.2).keep(tmp_path / "model" / "abc")
    exits = []
    for part in torch.arange(len(trace)).split(100):
        clock[0] += 100
        exits.append(adaptive.replay(trace.select(part)))
    status = adaptive.status
    adaptive.close()
    monkeypatch.undo()
    return tmp_path, torch.cat(exits), status


def test_costs_and_losses_by_hand():
    rows = replay(BY_HAND, {"given": xl.Policy((0.5, 0.5)), "other": xl.Policy((0.5, 0.5), "margin")}, COST.tolist())
    assert [row.name for row in rows] == ["as it was", "given", "best in hindsight"]
    was, given, best = rows
    assert (was.thresholds, given.thresholds) == (None, (0.5, 0.5))
    assert was.cost == pytest.approx((0.2 + 0.5 + 0.5 + 1) / 4)
    assert (was.loss, given.loss) == (0.25, 0.5)
    assert given.exits == (0.5, 0.25, 0.25)
    assert best.loss <= 0.3
    assert best.cost == was.cost  # nothing is cheaper: the first at exit 0, the fourth not before the last
    interval = binomtest(2, 4).proportion_ci()
    assert given.interval == pytest.approx((interval.low, interval.high))
    assert tabulate_replay(rows)[2] == ["given", "0.475 ± 0.189", "50.00", "6.76 to 93.24", "50 / 25 / 25"]


def test_audits_of_a_journal_stand_for_all(kept):
    folder, exits, status = kept
    log = read_log(find_journal(folder))
    assert len(log) > status.audited > 300  # and samples that reached the end anyway
    assert (log.times.min(), log.times.max()) == (100, 4000)
    row = replay(log, {}, COST.tolist())[0]
    left = (exits < 2).float().mean() / (1 - status.audited / 4000)  # audited samples go on
    assert 1 - row.exits[2] == pytest.approx(left.item(), abs=0.08)
    assert log.levels[-1][1] == status.thresholds
    half = read_log(find_journal(folder), since=2000, until=3000)
    assert (half.times.min(), half.times.max()) == (2000, 3000)
    with (folder / "model" / "abc" / "0.jsonl").open("a") as file:
        file.write('{"time": 5000}\n{"time": 5000, "seen": {"scores": 3}}\n{"time": 5000, "status": {}}\n')
        seen = {"scores": [[math.nan, 0.5]], "losses": [[0, 0]], "exits": [2], "chances": [0.1]}
        file.write(json.dumps({"time": 5000, "seen": seen}) + "\n")
    assert len(read_log(find_journal(folder))) == len(log)
    with pytest.raises(InputError, match="bundle: expected one of 3 exits, got 2"):
        replay(log, {}, [0.5, 1.0])
    with pytest.raises(DataError, match=r"log: expected 2 observed samples or more in this time, got 0 in .* Fix: "):
        read_log(find_journal(folder), since=time.time())


def test_the_folder_is_found_by_the_bundle_or_where_there_is_one(kept):
    folder, *_ = kept
    inner = folder / "model" / "abc"
    assert find_journal(inner) == find_journal(folder) == inner
    other = folder / "model" / "def"
    other.mkdir()
    (other / "settings.json").write_text(json.dumps(FACTS))
    assert find_journal(folder, "abc") == inner
    with pytest.raises(InputError, match=r"expected the folder of one journal .* Fix: name one of them"):
        find_journal(folder)
    (other / "settings.json").write_text("{}")
    with pytest.raises(DataError, match=r"settings.json is damaged, or of another version. Fix: "):
        read_log(other)
    with pytest.raises(InputError, match="got none"):
        find_journal(Path(folder / "nothing"))


@pytest.mark.slow
def test_a_picture_of_a_day(kept, tmp_path):
    log = read_log(find_journal(kept[0]))
    course = summarize_course(log, {"default": xl.Policy((0.6, 0.6))}, COST.tolist())
    assert len(course.times) == len(course.cost["as it was"]) == len(log) // 40
    sizes = torch.tensor([float(part.sum()) for part in log.weights.tensor_split(len(course.times))])
    was = replay(log, {}, COST.tolist())[0]
    for values, mean in ((course.cost, was.cost), (course.losses, was.loss)):
        assert (torch.tensor(values["as it was"]) * sizes).sum() / len(log) == pytest.approx(mean)
    assert course.moments[-1] == log.times[-1]
    assert [levels[-1] for levels in course.levels] == list(kept[2].thresholds)
    with mpl.rc_context({"svg.fonttype": "none"}):
        draw_course(course).savefig(tmp_path / "day.svg")
    text = (tmp_path / "day.svg").read_text()
    assert text.count("as it was") == text.count("default") == 2
    assert "other answers, %" in text
