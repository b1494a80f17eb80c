import dataclasses
from functools import cache

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import exitlens as xl
from exitlens import io
from exitlens.data.batches import Batch
from exitlens.functional.compact import compress
from exitlens.functional.maps import divergence, kl, on_common_grid, pair_samples, pearson
from exitlens.functional.routing import fit_gate, score_early_exits, stack_trace_features
from exitlens.types import CompactLogits
from exitlens.workflow import collection
from tests.conftest import TinyNet, make_net, make_timing, make_tiny_set
from tests.ranks import open_pair

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_traces_record_the_networks_outputs(net, images):
    labels = torch.arange(40) % 4
    trace = xl.collect(net, [(images[:25], labels[:25]), (images[25:], labels[25:])])
    with torch.no_grad():
        outs = net(images)
    torch.testing.assert_close(trace.logits, torch.stack([o.logits for o in outs], 1), atol=1e-5, rtol=1e-5)
    assert trace.labels.tolist() == labels.tolist()
    assert trace.network == net.fingerprint()
    torch.testing.assert_close(trace.cost, net.cost)
    early, final = on_common_grid(outs[0].attention, outs[2].attention)
    for column, expected in (
        (trace.divergence, divergence(final, early)),
        (trace.similarity["cc"], pearson(final, early)),
        (trace.similarity["kl"], kl(final, early)),
        (trace.null["cc"], pearson(final[pair_samples(40, 0)], early)),
    ):
        torch.testing.assert_close(column[:, 0], expected, atol=1e-4, rtol=1e-4)
    assert (trace.divergence[:, -1] == 0).all()
    assert (trace.similarity["cc"][:, -1] > 0.999).all()


def test_few_large_maps_are_compared_at_once(net, tiny_set, monkeypatch):
    whole, most, sizes = xl.collect(net, tiny_set), 7 * net.num_exits * 64, []
    original = collection.transplant
    monkeypatch.setattr(collection, "COMPARED", most)
    monkeypatch.setattr(collection, "transplant", lambda other, maps: sizes.append(maps.numel()) or original(other, maps))
    trace = xl.collect(net, tiny_set)
    assert len(sizes) > net.num_exits
    assert max(sizes) * net.num_exits <= most
    for kind in ("similarity", "null", "uniform_null"):
        for name, values in getattr(whole, kind).items():
            torch.testing.assert_close(getattr(trace, kind)[name], values)


def test_cost_as_measured_time(net, tiny_set, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(collection, "measure_exits", lambda *words: asked.append(words) or make_timing())
    trace = xl.collect(net, tiny_set, batch_size=7, cost="time", timed_batch=3, trace_dir=tmp_path / "t")
    assert trace.timing == make_timing()
    assert trace.cost.tolist() == pytest.approx([0.2, 0.5, 1.05])
    ((network, images, size),) = asked
    assert (network, size) == (net, 3)
    torch.testing.assert_close(images, tiny_set.inputs[:7])
    assert xl.Trace.load(tmp_path / "t" / "trace.safetensors").timing == trace.timing
    assert xl.collect(net, tiny_set).timing is None
    assert len(asked) == 1


def test_a_single_sample_has_nothing_to_be_shuffled_with(net, tiny_set):
    single = xl.collect(net, tiny_set.inputs[:1], progress=True)
    assert single.labels is None
    assert single.null == {}
    assert single.uniform_null


def test_groups_come_with_the_batches(net, tiny_set):
    assert xl.collect(net, tiny_set).groups is None
    ids = torch.arange(32) // 3
    named = xl.data.ImageSet(tiny_set.images, tiny_set.labels, tiny_set.classes, groups=ids)
    assert torch.equal(xl.collect(net, named, batch_size=7).groups, ids)
    with pytest.raises(xl.errors.InputError, match="some batches have groups and some have none"):
        xl.collect(net, [Batch(tiny_set.inputs, tiny_set.labels, ids), (tiny_set.inputs, tiny_set.labels)])


def test_pairing_is_a_derangement():
    for n in (2, 3, 50):
        partner = pair_samples(n, 1)
        assert sorted(partner.tolist()) == list(range(n))
        assert (partner != torch.arange(n)).all()


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "no batch"),
        ([], {"net": None}, "net: expected ExitNet"),
        ([IMAGES, torch.randn(2, 3, 24, 24)], {}, "differ in size"),
        ([(IMAGES, torch.zeros(4).long()), IMAGES], {}, "labels and some have none"),
        ([(IMAGES, torch.full((4,), 7))], {}, r"labels: expected values in \[0, 4\)"),
        ([], {"cost": "seconds"}, "cost: expected one of \\('macs', 'time'\\)"),
        ([], {"timed_batch": 1}, "timed_batch: it is about measured time"),
        ([], {"cost": "time", "timed_batch": 0}, "timed_batch: expected a whole number of 1 or more"),
    ],
)
def test_bad_arguments(net, data, options, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.collect(**{"net": net, "data": data} | options)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with open_pair(tmp_path_factory.mktemp("pair")) as processes:
        yield processes


@pytest.mark.parametrize(
    "kind", ["set", "list", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("loader", "lazy"))]
)
def test_two_processes_collect_what_one_does_to_the_bit(pair, kind, folder):
    expected = _collect(0, kind, folder)
    for result in pair.run(_collect, kind, folder):
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(result[name], value), name


def _collect(rank, kind, folder):
    data = make_tiny_set(37)
    labels = data.labels
    if kind == "set":
        data = xl.data.ImageSet(data.images, labels, data.classes, groups=torch.arange(37) // 2)
    if kind == "lazy":
        data = xl.data.load_folder(folder, xl.data.Preprocess((16, 16), (0.5,) * 3, (0.2,) * 3))
    source = {
        "loader": lambda: DataLoader(data, 8),
        "list": lambda: [(data.inputs[:5], labels[:5]), (data.inputs[5:8], labels[5:8]), (data.inputs[8:], labels[8:])],
    }.get(kind, lambda: data)()
    trace = xl.collect(make_net(), source, batch_size=8)
    parts = {name: getattr(trace, name) for name in ("logits", "labels", "divergence", "gate_features", "groups")}
    for name in ("similarity", "null", "uniform_null"):
        parts |= {f"{name} {measure}": value for measure, value in getattr(trace, name).items()}
    return {name: value for name, value in parts.items() if value is not None}


def test_the_first_of_two_processes_measures_time_for_both(pair):
    assert pair.run(_collect_time, False) == [1.0, 1.0]
    for error in pair.run(_collect_time, True):
        assert isinstance(error, xl.errors.EngineError)
        assert "busy" in str(error)


def _collect_time(rank, is_busy):
    """Each rank would measure another time."""

    def measure(*_):
        if is_busy:
            raise xl.errors.EngineError("busy")
        ms = (1.0 + rank, 4.0, 9.0)
        return xl.types.ExitLatency(ms, ms, ms, 9.0, 8, 1)

    collection.measure_exits = measure
    return xl.collect(make_net(), torch.randn(16, 3, 16, 16), batch_size=4, cost="time").timing.ms[0]


@pytest.mark.slow
def test_sources_that_processes_cannot_share_are_refused(pair):
    for kind, message in (
        ("no length", "needs a length"),
        ("shuffled", "shuffles by the global random state"),
        ("sampler", "DistributedSampler"),
        ("mixed", "some batches have labels"),
    ):
        assert all(message in str(error) for error in pair.run(_collect_wrong, kind))


def _collect_wrong(rank, kind):
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(images, torch.arange(8) % 4)
    source = {
        "no length": lambda: iter([(images, None)]),
        "shuffled": lambda: DataLoader(data, 2, shuffle=True),
        "sampler": lambda: DataLoader(data, 2, sampler=DistributedSampler(data)),
        "mixed": lambda: [images, (images, torch.arange(8) % 4)],
    }[kind]()
    xl.collect(make_net(), source)


def assert_equal_traces(first, second):
    assert repr(first) == repr(second)
    for field in dataclasses.fields(first):
        assert_equal(getattr(first, field.name), getattr(second, field.name))


def assert_equal(first, second):
    if isinstance(first, CompactLogits):
        first, second = first.parts(), second.parts()
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_equal(first[name], second[name])
    else:
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def test_logits_in_compact_form_are_those_of_the_whole_trace(net, tiny_set):
    whole, compact = xl.collect(net, tiny_set, batch_size=7), xl.collect(net, tiny_set, batch_size=7, compact=True)
    assert_equal(compact.logits, compress(whole.logits, whole.labels))
    assert compact.hash_samples() == whole.hash_samples()
    assert_equal(compact.similarity, whole.similarity)
    unlabelled = xl.collect(net, tiny_set.inputs, compact=True)
    assert unlabelled.logits.label is None
    with pytest.raises(xl.errors.InputError, match=r"labels: expected values in \[0, 4\)"):
        xl.collect(net, [(tiny_set.inputs, torch.full((32,), 7))], compact=True)


def test_many_logits_become_compact_on_the_way(net, tiny_set, monkeypatch):
    asked = xl.collect(net, tiny_set, batch_size=7, compact=True)
    monkeypatch.setattr(collection, "MANY_CLASSES", 4)
    monkeypatch.setattr(collection, "MANY_LOGITS", 20 * 3 * 4)
    assert_equal_traces(xl.collect(net, tiny_set, batch_size=7), asked)
    assert isinstance(xl.collect(net, tiny_set, batch_size=7, compact=False).logits, torch.Tensor)


def test_a_trace_dir_is_made_and_keeps_the_trace(net, tiny_set, tmp_path):
    trace = xl.collect(net, tiny_set, trace_dir=tmp_path / "a" / "b")
    assert_equal_traces(xl.Trace.load(tmp_path / "a" / "b" / "trace.safetensors"), trace)
    (tmp_path / "file").touch()
    with pytest.raises(xl.errors.OutputError, match=r"trace_dir: .*file cannot be a directory"):
        xl.collect(net, tiny_set, trace_dir=tmp_path / "file")


@pytest.mark.parametrize("compact", [True, False])
def test_large_columns_wait_in_files(net, tiny_set, monkeypatch, tmp_path, compact):
    in_memory = xl.collect(net, tiny_set, batch_size=7, compact=compact)
    monkeypatch.setattr(collection, "RowStore", lambda folder: io.RowStore(folder, 1000))
    monkeypatch.setattr(collection, "COMPARED", 9 * 3 * 64)
    on_disk = xl.collect(net, tiny_set, batch_size=7, compact=compact, trace_dir=tmp_path / "new")
    assert_equal_traces(on_disk, in_memory)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["trace.safetensors"]
    assert_equal_traces(xl.Trace.load(tmp_path / "new" / "trace.safetensors"), in_memory)
    with pytest.raises(xl.errors.OutputExistsError, match=r"trace_dir: .* exists"):
        xl.collect(net, tiny_set, trace_dir=tmp_path / "new")
    assert_equal_traces(xl.collect(net, tiny_set, batch_size=7, compact=compact), in_memory)


@pytest.mark.slow
def test_compact_and_whole_traces_give_equal_policies_and_reports():
    net, images, labels = make_hundred_classes()
    data = [(a, b) for a, b in zip(images.split(50), labels.split(50), strict=True)]
    whole, compact = xl.collect(net, data), xl.collect(net, data, compact=True)
    for score in ("max_probability", "entropy", "margin"):
        limits = {"max_disagreement": 0.3, "max_divergence": 0.3, "score": score, "gate": score != "margin"}
        policies = [xl.calibrate(trace, **limits) for trace in (whole, compact)]
        torch.testing.assert_close(*(torch.tensor(p.temperatures) for p in policies), rtol=1e-4, atol=0)
        first, second = (xl.evaluate(trace, policies[0]) for trace in (whole, compact))
        assert first.exit_shares == second.exit_shares
        for row, same in zip(first.exits, second.exits, strict=True):
            for name in ("accuracy", "agreement", "calibration_error", "brier", "risk_coverage"):
                assert getattr(row, name) == pytest.approx(getattr(same, name), abs=1e-5)
    certified = [xl.calibrate(trace, max_disagreement=0.3, delta=0.1) for trace in (whole, compact)]
    assert certified[0].calibration.certification.tests == certified[1].calibration.certification.tests
    with pytest.raises(xl.errors.CalibrationError, match="fitted on samples of this trace"):
        xl.calibrate(compact, max_disagreement=0.3, temperatures=policies[0])  # of the whole trace: they know the samples


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("score", ["max_probability", "entropy", "margin"])
@pytest.mark.slow
def test_a_compact_trace_is_routed_as_the_network_routes(score, gated, temperature):
    net, images, labels = make_hundred_classes()
    compact = xl.collect(net, [(images, labels)], compact=True)
    never = xl.Policy((2.0, 2.0), score, (temperature,) * 3)
    if gated:
        agrees = (compact.answers[:, :-1] == compact.answers[:, -1:]).float()
        never = dataclasses.replace(never, gate=fit_gate(stack_trace_features(compact, never), agrees))
    thresholds = [halve(column) for column in score_early_exits(compact, never).T]
    policy = dataclasses.replace(never, thresholds=tuple(thresholds))
    exits, pred = xl.route(compact, policy), xl.predict(net, images, policy)
    assert exits.tolist() == pred.exits.tolist() == xl.route(xl.collect(net, images), policy).tolist()
    assert compact.logits.argmax()[torch.arange(len(images)), exits].tolist() == pred.labels.tolist()
    assert len(set(exits.tolist())) == 3


def halve(scores):
    """A threshold in the widest gap between neighbours in the middle third."""
    ordered = scores.sort().values[len(scores) // 3 : 2 * len(scores) // 3]
    at = int(ordered.diff().argmax())
    return (ordered[at] + ordered[at + 1]).item() / 2


@cache
def make_hundred_classes():
    torch.manual_seed(3)
    net = xl.attach(TinyNet(classes=100), ["a", "b"], 100, torch.zeros(1, 3, 16, 16)).eval()
    for k in range(3):
        torch.nn.init.normal_(net.head(k).attend.weight)
        torch.nn.init.normal_(net.head(k).classifier.weight, std=6.0)
    images = torch.randn(120, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    return net, images, xl.collect(net, images).logits[:, -1].topk(3).indices[:, 1]
