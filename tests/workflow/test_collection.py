import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import exitlens as xl
from exitlens.data.batches import Batch
from exitlens.functional.maps import on_common_grid
from exitlens.functional.similarity import divergence, kl, pearson
from exitlens.workflow.collection import pair_samples
from tests.conftest import make_net
from tests.ranks import open_pair


def test_trace_holds_what_the_network_says(net, images):
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


def test_sources_and_batch_sizes_agree(net, tiny_set):
    first = xl.collect(net, tiny_set, batch_size=7)
    second = xl.collect(net, DataLoader(tiny_set, 32), progress=True)
    torch.testing.assert_close(first.logits, second.logits, atol=1e-5, rtol=1e-5)
    unlabelled = xl.collect(net, tiny_set.inputs)
    assert unlabelled.labels is None


def test_groups_are_named_or_come_with_the_batches(net, tiny_set):
    assert xl.collect(net, tiny_set).groups is None
    names = ["a", "b", "a", "c"] * 8
    trace = xl.collect(net, tiny_set, groups=names, batch_size=7)
    assert trace.groups.tolist() == [0, 1, 0, 2] * 8
    ids = torch.arange(32) // 3
    assert torch.equal(xl.collect(net, tiny_set, groups=ids).groups, ids)
    named = xl.ImageSet(tiny_set.images, tiny_set.labels, tiny_set.classes, groups=ids)
    assert torch.equal(xl.collect(net, named, batch_size=7).groups, ids)
    assert xl.collect(net, named, groups=names).num_groups == 3
    with pytest.raises(xl.InputError, match="some batches have groups and some have none"):
        xl.collect(net, [Batch(tiny_set.inputs, tiny_set.labels, ids), (tiny_set.inputs, tiny_set.labels)])
    with pytest.raises(xl.InputError, match=r"groups: expected \(32,\) integers"):
        xl.collect(net, tiny_set, groups=names[:-1])


def test_pairing_is_a_derangement():
    for n in (2, 3, 50):
        partner = pair_samples(n, 1)
        assert sorted(partner.tolist()) == list(range(n))
        assert (partner != torch.arange(n)).all()


def test_one_image_has_no_shuffled_null(net, images):
    trace = xl.collect(net, images[:1])
    assert trace.null == {}
    assert trace.uniform_null


def test_the_network_is_given_back_as_it_was(net, images):
    net.train()
    net.stage(0).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    copy = images.clone()
    xl.collect(net, images)
    with pytest.raises(xl.InputError):
        xl.collect(net, images[:, :1])
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(images, copy)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_bad_loaders(net, images):
    with pytest.raises(xl.InputError, match="no batch"):
        xl.collect(net, [])
    with pytest.raises(xl.InputError, match="different sizes"):
        xl.collect(net, [images, torch.randn(2, 3, 24, 24)])
    with pytest.raises(xl.InputError, match="net: expected ExitNet"):
        xl.collect(None, images)
    with pytest.raises(xl.InputError, match="some have none"):
        xl.collect(net, [(images, torch.zeros(40).long()), images])
    with pytest.raises(xl.InputError, match=r"labels: expected values in \[0, 4\)"):
        xl.collect(net, [(images, torch.full((40,), 7))])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with open_pair(tmp_path_factory.mktemp("pair")) as found:
        yield found


@pytest.mark.parametrize("kind", ["set", "loader", "list", "lazy"])
def test_two_processes_collect_what_one_does_to_the_bit(pair, kind, folder):
    expected = _collect(0, kind, folder, ranks=xl.Ranks())
    for found in pair.run(_collect, kind, folder):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def _collect(rank, kind, folder, ranks=None):
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(37) % 4
    data = xl.ImageSet(torch.randint(0, 255, (37, 3, 16, 16), generator=rng).to(torch.uint8), labels, tuple("wxyz"))
    if kind == "lazy":
        data = xl.load_folder(folder, xl.Preprocess((16, 16), (0.5,) * 3, (0.2,) * 3))[0]
    source = {
        "loader": lambda: DataLoader(data, 8),
        "list": lambda: [(data.inputs[:5], labels[:5]), (data.inputs[5:8], labels[5:8]), (data.inputs[8:], labels[8:])],
    }.get(kind, lambda: data)()
    groups = torch.arange(len(data)) // 2 if kind == "set" else None
    trace = xl.collect(make_net(), source, batch_size=8, groups=groups, ranks=ranks)
    parts = {name: getattr(trace, name) for name in ("logits", "labels", "divergence", "gate_features", "groups")}
    for name in ("similarity", "null", "uniform_null"):
        parts |= {f"{name} {measure}": value for measure, value in getattr(trace, name).items()}
    return {name: value for name, value in parts.items() if value is not None}


def test_what_several_processes_cannot_share(pair):
    for error in pair.run(_collect_wrong, "no length"):
        assert "needs a length" in str(error)
    for error in pair.run(_collect_wrong, "shuffled"):
        assert "shuffles by the global random state" in str(error)
    for error in pair.run(_collect_wrong, "sampler"):
        assert "DistributedSampler" in str(error)
    for error in pair.run(_collect_wrong, "mixed"):
        assert "some batches have labels" in str(error)


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
