import json
import math
from dataclasses import asdict, replace

import pytest
import torch

import exitlens as xl
from exitlens.functional.compact import compress
from exitlens.io import write_tensors
from exitlens.types import CompactLogits
from exitlens.types.settings import SampleSketch, read_record
from exitlens.types.traces import format_ms, hash_rows, make_increasing
from tests.conftest import make_timing, random_pixel_trace, random_trace, timed_trace

GOOD = {
    "logits": torch.randn(5, 3, 4),
    "labels": torch.tensor([0, 1, 2, 3, 0]),
    "divergence": torch.rand(5, 3) * torch.tensor([1.0, 1.0, 0.0]),
    "cost": torch.tensor([0.2, 0.5, 1.0]),
}


def test_times_stay_with_the_trace(tmp_path):
    trace = timed_trace(20)
    trace.save(tmp_path / "t.safetensors")
    assert xl.Trace.load(tmp_path / "t.safetensors").timing == trace.timing == trace.select(torch.arange(3)).timing
    assert repr(trace).endswith(f"3 exits, 4 classes, {trace.timing})")
    assert ">ms</th>" in trace._repr_html_()
    assert ">ms</th>" not in random_trace()._repr_html_()
    with pytest.raises(xl.errors.InputError, match="timing: expected an ExitLatency of 2 exits"):
        replace(random_trace(k=2), timing=trace.timing)
    with pytest.raises(xl.errors.InputError, match="timing"):
        replace(trace, timing=3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.randn(5, 3)}, r"logits: expected \(N,K,C\)"),
        ({"logits": torch.randn(0, 3, 4)}, "logits"),
        ({"logits": torch.full((5, 3, 4), math.nan)}, "finite"),
        *(({"labels": torch.tensor([0, 1, 2, 3, odd])}, r"\[0, 4\)") for odd in (9, -1)),
        *(({"labels": labels}, "integers") for labels in (torch.rand(5), torch.tensor([0]))),
        ({"divergence": torch.full((5, 3), 1.5)}, r"\[0, 1\]"),
        ({"divergence": torch.full((5, 3), 0.5)}, "0 at the final exit"),
        ({"labels": ["a"] * 5}, "labels"),
        ({"gate_features": "x"}, "gate_features"),
        *(({"groups": ids}, r"groups: expected \(5,\) int") for ids in (torch.zeros(4).long(), torch.zeros(5), ["a"] * 5)),
        ({"logits": torch.zeros(5, 3, 1)}, "two classes or more"),
        ({"cost": torch.tensor([0.5, 0.2, 1.0])}, "increasing"),
        ({"cost": torch.tensor([0.0, 0.2, 1.0])}, "positive"),
        ({"cost": torch.tensor([0.2, 1.0])}, "cost"),
        ({"labels": torch.full((5, 4), 2)}, "labels: expected 0 and 1 .*, got 2 among them"),
        ({"labels": torch.zeros(5, 3).long()}, r"labels: expected \(5,4\) integers or bool, got \(5, 3\)"),
        ({"task": "multilabel"}, r"labels: this network answers several labels a sample: expected \(5,4\)"),
        ({"task": "ordinal"}, "task: expected one of"),
        *(({name: None}, f"{name}: expected") for name in ("logits", "divergence", "cost")),
    ],
)
def test_bad_traces(changes, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.Trace(**{**GOOD, **changes})


def test_equal_samples_have_equal_hashes():
    assert xl.Trace(**GOOD).fingerprint() == xl.Trace(**GOOD).fingerprint()
    assert xl.Trace(**GOOD).fingerprint() != xl.Trace(**GOOD | {"labels": None}).fingerprint()
    trace = random_trace(20)
    twice = xl.Trace(trace.logits.repeat(2, 1, 1), None, trace.divergence.repeat(2, 1), trace.cost)
    hashes = twice.hash_samples()
    assert hashes[:20] == hashes[20:] == trace.hash_samples()
    assert len(set(hashes)) == 20


def test_samples_with_one_id_are_one_group():
    trace = xl.Trace(**GOOD, groups=[7, 7, -1, 3, 7])
    assert xl.Trace([[[0.0, 1.0], [1.0, 0.0]]], [1], [[0.1, 0.0]], [0.5, 1.0]).labels.dtype == torch.int64
    assert trace.groups.tolist() == [7, 7, -1, 3, 7]
    assert trace.num_groups == 3
    assert repr(trace) == "Trace(5 labelled samples in 3 groups, 3 exits, 4 classes)"
    assert xl.Trace(**GOOD).num_groups == 5
    assert trace.fingerprint() == xl.Trace(**GOOD).fingerprint()


@pytest.mark.parametrize("which", [0, 1])
def test_groups_are_named_afterwards(which):
    trace = make_traces()[which]
    named = trace.with_groups(["b", "a", "b", 3] * 3)
    assert named.groups.tolist() == [0, 1, 0, 2] * 3
    assert trace.groups.tolist() == (torch.arange(12) % 5).tolist()
    assert torch.equal(named.with_groups(trace.groups).groups, trace.groups)
    assert (named.network, named.fingerprint()) == ("abc", trace.fingerprint())
    for groups in (["a"] * 11, torch.zeros(11).long(), torch.zeros(12)):
        with pytest.raises(xl.errors.InputError, match=r"groups: expected \(12,\) integers"):
            trace.with_groups(groups)


def make_traces():
    whole = random_trace(12, 3, 40)
    extra = {"similarity": {"cc": torch.rand(12, 3)}, "gate_features": torch.rand(12, 2, 3), "groups": torch.arange(12) % 5}
    whole = replace(whole, network="abc", **extra)
    compact = replace(whole, logits=compress(whole.logits, whole.labels), sample_hashes=hash_rows(whole.logits))
    return whole, compact


@pytest.mark.parametrize("which", [0, 1])
def test_a_saved_trace_comes_back(tmp_path, which):
    trace = make_traces()[which]
    trace.save(tmp_path / "trace.safetensors")
    back = xl.Trace.load(tmp_path / "trace.safetensors")
    assert repr(back) == repr(trace)
    assert back.network == "abc"
    assert back.fingerprint() == trace.fingerprint()
    assert torch.equal(back.similarity["cc"], trace.similarity["cc"])
    policy = xl.Policy((0.5, 0.5))
    assert torch.equal(xl.route(back, policy), xl.route(trace, policy))


def test_tensors_that_share_memory_are_saved_where_something_can_be_written(tmp_path):
    trace = random_trace(5)
    replace(trace, similarity={"divergence": trace.divergence}).save(tmp_path / "t")
    assert torch.equal(xl.Trace.load(tmp_path / "t").similarity["divergence"], trace.divergence)
    with pytest.raises(xl.errors.OutputError, match=r"path: .*nowhere.* cannot be written"):
        trace.save(tmp_path / "nowhere" / "t")


def test_what_is_no_trace_is_not_loaded(tmp_path):
    (tmp_path / "text").write_text("hello")
    write_tensors(tmp_path / "other", {"weight": torch.zeros(2)}, {"format": 3})
    write_tensors(tmp_path / "part", {"logits.top": torch.zeros(2, 2, 2)}, {"format": 1, "num_classes": 4, "network": ""})
    for name, message in (
        ("none", "path: expected what Trace.save wrote .*no such file"),
        ("text", "path: expected what Trace.save wrote .*damaged"),
        ("other", "path: .*other is not that"),
        ("part", "is damaged"),
    ):
        with pytest.raises(xl.errors.InputError, match=message):
            xl.Trace.load(tmp_path / name)


@pytest.mark.parametrize("which", [0, 1])
def test_some_samples_are_a_trace(which):
    trace, rows = make_traces()[which], torch.tensor([3, 0, 7])
    some = trace.select(rows)
    assert len(some) == 3
    assert torch.equal(some.divergence, trace.divergence[rows])
    assert some.hash_samples() == [trace.hash_samples()[i] for i in rows.tolist()]
    assert torch.equal(some.similarity["cc"], trace.similarity["cc"][rows])
    assert some.network == trace.network
    assert len(trace.select(trace.labels == 0)) == int((trace.labels == 0).sum())


def test_a_compact_trace_knows_its_samples():
    whole, compact = make_traces()
    assert compact.hash_samples() == whole.hash_samples()
    assert compact.fingerprint() != replace(compact, labels=compact.labels.roll(1)).fingerprint()
    assert len(set(replace(compact, sample_hashes=None).hash_samples())) == 12
    assert compact._repr_html_() == whole._repr_html_()


def test_bad_compact_traces():
    _, compact = make_traces()
    with pytest.raises(xl.errors.InputError, match="labels: these compact logits were made without labels"):
        replace(compact, logits=replace(compact.logits, label=None))
    assert replace(compact, logits=replace(compact.logits, label=None), labels=None).labels is None
    with pytest.raises(xl.errors.InputError, match="logits: expected finite numbers"):
        replace(compact, logits=replace(compact.logits, top=compact.logits.top * math.nan))
    with pytest.raises(xl.errors.InputError, match=r"sample_hashes: expected \(12,\)"):
        replace(compact, sample_hashes=compact.sample_hashes[:3])


def test_a_label_matrix_makes_a_trace_of_several_labels(tmp_path):
    labels = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1]])
    trace = xl.Trace(**{**GOOD, "labels": labels})
    assert (trace.task, trace.labels.dtype) == ("multilabel", torch.bool)
    assert torch.equal(trace.correct, ((trace.logits >= 0) == labels[:, None].bool()).all(2))
    assert "4 labels, any number to a sample" in repr(trace)
    assert "<table" in trace._repr_html_()
    trace.save(tmp_path / "t.safetensors")
    again = xl.Trace.load(tmp_path / "t.safetensors")
    assert again.task == trace.select(torch.arange(2)).task == "multilabel"
    assert torch.equal(again.labels, trace.labels)
    assert again.fingerprint() == trace.fingerprint()
    unlabelled = replace(trace, labels=None)
    assert unlabelled.task == "multilabel"
    with pytest.raises(xl.errors.InputError, match="compact=False"):
        replace(unlabelled, logits=compress(trace.logits))


def test_shared_samples_are_found_by_the_sketch():
    one, other = random_trace(500, seed=1), random_trace(500, seed=2)
    both = xl.Trace(torch.cat([one.logits[:100], other.logits]), None, torch.zeros(600, 3), one.cost)
    sketch = one.sketch()
    assert len(sketch.sketch) == 64
    assert one.shares_samples(sketch)
    assert both.shares_samples(sketch)
    assert one.shares_samples(SampleSketch(sketch.data))
    assert not other.shares_samples(sketch)
    assert not other.shares_samples(SampleSketch())


def test_a_timing_says_what_it_holds_for_and_goes_through_json():
    timing = make_timing()
    assert timing.cost == (0.2, 0.5, 1.05)
    assert timing.spread == pytest.approx((0.1, 0.04, 0.02), abs=1e-3)
    assert timing.where() == "batches of 64 on Slow 9000, 2 threads"
    assert timing.list_ms() == "2, 5, 10.5 ms at the exits, batches of 64 on Slow 9000, 2 threads"
    quartiles = "2 (1.9 to 2.1), 5 (4.9 to 5.1), 10.5 (10.4 to 10.6) ms at the exits, with quartiles"
    assert str(timing) == f"{quartiles}; batches of 64 on Slow 9000, 2 threads"
    assert read_record(xl.types.ExitLatency, json.loads(json.dumps(asdict(timing)))) == timing
    alone = replace(timing, batch_size=1, threads=1, machine={"processor": "P", "device": "Card"})
    assert alone.where() == "single samples on Card (P), 1 thread"
    assert replace(alone, machine={}).where() == "single samples on this machine, 1 thread"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ms": (2.0, 2.0, 3.0)}, "increase from exit to exit"),
        *(({"ms": ms}, "positive milliseconds") for ms in ((0.0, 2.0, 3.0), (1.0, 2.0, math.inf))),
        ({"ms": (1.0, 2.0)}, "two quartiles for each exit"),
        ({"low": "abc"}, "expected milliseconds of each exit"),
        ({"whole_ms": -1}, "positive milliseconds"),
        ({"batch_size": 0}, "batch_size: expected a whole number of 1 or more"),
        ({"threads": True}, "threads: expected a whole number of 1 or more"),
        ({"machine": "Slow 9000"}, "description of the machine by name"),
    ],
)
def test_what_is_no_timing(change, message):
    with pytest.raises(xl.errors.InputError, match=message):
        replace(make_timing(), **change)


def test_numbers_as_text_and_in_order():
    assert [format_ms(value) for value in (0.12345, 12.345, 123.45)] == ["0.123", "12.3", "123"]
    assert make_increasing([2.0, 1.0, 3.0], step=0.5) == (2.0, 3.0, 4.5)
    assert make_increasing([1.0, 2.0]) == (1.0, 2.0)


def test_it_is_indexed_like_the_tensor_that_it_stands_for():
    logits = torch.randn(9, 3, 40)
    compact, rows = compress(logits, torch.arange(9)), torch.tensor([4, 1])
    for at in (rows, (slice(None), 1), (rows, 2), slice(2, 5), torch.arange(9) > 3):
        one, expected = compact[at], logits[at]
        assert one.shape == expected.shape
        assert one.ndim == expected.ndim
        assert len(one) == len(expected)
        assert torch.equal(one.argmax(-1), expected.argmax(-1))
    assert [len(part) for part in compact.split(4)] == [4, 4, 1]
    assert repr(compact) == "CompactLogits(9, 3, 40: the 16 largest)"


def test_what_is_not_kept_is_refused():
    compact = compress(torch.randn(9, 3, 40))
    for at in ((0, 1, 2), ..., (..., 0)):
        with pytest.raises(
            xl.errors.InputError, match="no indexing along the classes: collect the trace with compact=False"
        ):
            compact[at]
    with pytest.raises(xl.errors.InputError, match="dim: expected -1"):
        compact.argmax(0)
    with pytest.raises(xl.errors.InputError, match="expected classes"):
        CompactLogits(compact.top, compact.classes[:3], None, compact.span, compact.weights, 40)


def test_a_trace_of_pixels(tmp_path):
    trace = random_pixel_trace(20, classes=("sky", "sea", "sand"))
    assert (trace.task, trace.is_labelled, trace.labels) == ("segmentation", True, None)
    counts = trace.logits.confusion
    assert torch.equal(trace.accuracy, counts.diagonal(dim1=2, dim2=3).sum(2) / 64)
    assert trace.disagreement[:, -1].tolist() == [0.0] * 20
    assert "labelled samples, 3 exits, 3 classes of pixels" in repr(trace)
    assert "accuracy" in trace._repr_html_()
    few = trace.select(torch.tensor([3, 1]))
    assert torch.equal(few.logits.scores, trace.logits.scores[[3, 1]])
    assert few.classes == trace.classes
    trace.save(tmp_path / "t")
    again = xl.Trace.load(tmp_path / "t")
    assert torch.equal(again.logits.confusion, counts)
    assert (again.fingerprint(), again.classes, again.task) == (trace.fingerprint(), trace.classes, "segmentation")
    assert len(set(trace.hash_samples())) == 20
    assert trace.logits[:, -1].argmax().tolist() == trace.logits.means[:, -1].argmax(-1).tolist()
    assert str(trace.logits) == "PixelSummary(20, 3, 3)"
    other = replace(trace, logits=replace(trace.logits, confusion=counts.flip(3)))
    assert other.fingerprint() != trace.fingerprint()  # other labels


def test_a_trace_of_pixels_without_labels(tmp_path):
    trace = random_pixel_trace(5)
    trace = replace(trace, logits=replace(trace.logits, confusion=None))
    assert not trace.is_labelled
    trace.save(tmp_path / "t")
    assert xl.Trace.load(tmp_path / "t").logits.confusion is None
    with pytest.raises(xl.errors.InputError, match="labels: accuracy needs a trace with labels"):
        trace.accuracy.mean()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda t: t.answers, "no logits and answers are kept: see trace.accuracy"),
        (lambda t: t.correct, "no logits and answers are kept"),
        (lambda t: t.require_labels("this"), "labels: this is not for one class a pixel"),
        (lambda t: t.logits[0, 0, 0], "of pixels sums are kept"),
        (lambda t: random_trace().require_confusion("this"), "this needs a trace with one class a pixel"),
        (
            lambda t: replace(t, labels=torch.zeros(5, 2, 2).long()),
            "a PixelSummary, with the labels counted in it, and no labels",
        ),
        (
            lambda t: replace(random_trace(labelled=False), task="segmentation"),
            "a trace of one class a pixel has a PixelSummary",
        ),
        (
            lambda t: replace(t.logits, scores=torch.zeros(5, 3, 2)),
            r"expected scores \(5, 3, 3\) beside means, got \(5, 3, 2\)",
        ),
        (
            lambda t: replace(t.logits, disagreement=torch.full((5, 3), 2.0)),
            r"expected disagreement in \[0, 1\], got 2 to 2",
        ),
    ],
)
def test_what_a_trace_of_pixels_refuses(ask, message):
    with pytest.raises(xl.errors.InputError, match=message):
        ask(random_pixel_trace(5))
