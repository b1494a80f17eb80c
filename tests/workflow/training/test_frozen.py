"""A frozen backbone runs once, and the heads end with the weights that they would have had."""

import errno
import math
import shutil

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import exitlens as xl
from exitlens.model.attribution import attribute
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training import frozen
from exitlens.workflow.training.frozen import FeatureCache, FeatureLoader, FeatureStore, find_cache_obstacle
from tests.conftest import make_net
from tests.model.kinds import make_network
from tests.texts import make_text_net, make_texts
from tests.workflow.training.networks import QUICK as NORMAL
from tests.workflow.training.networks import fresh

QUICK = NORMAL | {"freeze_backbone": True}
FROZEN, FORCED = TrainingSettings(freeze_backbone=True), TrainingSettings(freeze_backbone=True, cache_features=True)


def _assert_close(first: xl.ExitNet, second: xl.ExitNet) -> None:
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


def _differ(of):
    return {"loss": xl.EGTLoss(of=of, distance="cosine", distill=0.1)}


@pytest.mark.parametrize(
    ("final", "options"),
    [
        ("head", _differ("attention")),
        ("keep", _differ("activation")),
        ("keep", {"loss": xl.EGTLoss(target="relevance")}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("head", _differ("evidence")),
                ("keep", _differ("attention")),
                ("keep", {"loss": xl.EGTLoss(target="product")}),
                ("head", {"amp": True}),
                ("head", {"channels_last": False}),
                ("head", {"ema": 0.9, "accumulate": 2, "balanced": True}),
            )
        ),
    ],
)
@pytest.mark.slow
def test_equal_to_training_without_kept_features(tiny_set, final, options):
    nets = [fresh(final, "context"), fresh(final, "context")]
    given = QUICK | options
    results = [
        xl.fit(net, tiny_set, tiny_set, cache_features=kept, **given) for net, kept in zip(nets, (None, False), strict=True)
    ]
    _assert_close(*nets)
    for kept, plain in zip(*(result.history for result in results), strict=True):
        assert kept["accuracy"] == pytest.approx(plain["accuracy"])
        assert kept["cc"] == pytest.approx(plain["cc"], abs=1e-4)
        assert kept["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-4)
        assert kept["loss"] == pytest.approx(plain["loss"], rel=1e-4, abs=1e-5)
        assert kept["loss"]["consistency"] > 0


@pytest.mark.slow
def test_cached_relevance_of_transformers_precedes_attention():
    net, texts = make_text_net("keep"), make_texts(6)
    heads = frozen.CachedHeads(net, xl.EGTLoss().for_network(attends=True, keeps_final=True))
    with torch.no_grad():
        kept = heads.extract(net, texts, training=True)
        assert "relevance" not in heads.extract(net, texts, training=False)
    outcome = heads.observe(kept, True, relevance=True).relevance
    torch.testing.assert_close(outcome, net.observe(texts, relevance=True).relevance)
    after = attribute(net, texts)  # at exit 0's features, after a block has mixed
    assert not torch.allclose(outcome, after, atol=0.1 * after.abs().max())
    assert not outcome.requires_grad
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.slow
def test_the_backbone_runs_once(tiny_set):
    net, calls = fresh(head="context"), []
    net.stage(1).register_forward_hook(lambda *_: calls.append(1))
    xl.fit(net, tiny_set, tiny_set.first(16), **QUICK)
    assert len(calls) == 4 + 1
    calls.clear()
    xl.fit(net, tiny_set, [(tiny_set.inputs, tiny_set.labels)], **QUICK)  # batches of the user's own are read every time
    assert len(calls) == 4 + 3


@pytest.mark.slow
def test_features_on_disk_train_the_same(tiny_set, tmp_path, monkeypatch):
    in_memory, on_disk = fresh(head="context"), fresh(head="context")
    xl.fit(in_memory, tiny_set, tiny_set, **QUICK)
    monkeypatch.setattr(frozen, "FeatureStore", lambda folder: FeatureStore(folder, 0))
    xl.fit(on_disk, tiny_set, tiny_set, out_dir=tmp_path / "r", **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(in_memory.parameters(), on_disk.parameters(), strict=True))
    assert {path.suffix for path in (tmp_path / "r").iterdir()} == {".safetensors", ".json", ".csv"}


@pytest.mark.slow
def test_training_continues_if_the_disk_is_full(tiny_set, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(frozen, "FeatureStore", lambda folder: FeatureStore(folder, 0))
    monkeypatch.setattr(frozen.os, "posix_fallocate", full)
    net, plain = fresh(head="context"), fresh(head="context")
    xl.fit(net, tiny_set, tiny_set, out_dir=tmp_path / "r", **QUICK | {"progress": True})
    assert "No space left" in " ".join(capsys.readouterr().out.split())
    xl.fit(plain, tiny_set, tiny_set, cache_features=False, **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))


@pytest.mark.slow
def test_unreadable_files_are_left_out_of_their_batches(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "images")
    for name in ("dark/03.png", "bright/11.png"):
        (root / name).write_bytes(b"no image")
    nets = []
    for kept in (None, False):
        data = xl.data.load_folder(root, xl.data.Preprocess((16, 16)), skip_bad=True)
        nets.append(fresh(classes=2))
        xl.fit(nets[-1], data, data, cache_features=kept, workers=0, **QUICK)
        assert len(data.bad) == 2
    _assert_close(*nets)
    assert find_cache_obstacle(data, FROZEN, False) == ""  # pictures in a folder are kept by default


def test_features_take_half_of_the_free_disk_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    with pytest.raises(OSError, match=r"0\.0 GB needed"):
        FeatureStore(tmp_path, 0).allocate(20, torch.zeros(1, 3))


class Own(Dataset):
    """A data set of the user's own, which may draw at random."""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        return torch.randn(3, 16, 16), i % 4


def test_changing_features_are_not_cached(tiny_set, capsys):
    fixed = TensorDataset(tiny_set.inputs, tiny_set.labels)
    assert find_cache_obstacle(tiny_set, FROZEN, False) == ""
    assert find_cache_obstacle(fixed, FROZEN, False) == ""
    assert find_cache_obstacle(Own(), FORCED, False) == ""
    assert "Own may give other inputs" in find_cache_obstacle(Own(), FROZEN, False)
    assert "DataLoader" in find_cache_obstacle(DataLoader(fixed), FROZEN, False)
    assert "augmentation" in find_cache_obstacle(fixed, FROZEN, True)
    xl.fit(make_net(), tiny_set, tiny_set, augment="flip", **QUICK | {"epochs": 1, "progress": True})
    assert "augmentation changes the inputs in every epoch" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_custom_data_sets_are_cached_on_request():
    class Fixed(Own):
        def __getitem__(self, i):
            return torch.full((3, 16, 16), float(i % 4)), i % 4

    net, calls = fresh(head="context"), []
    net.stage(1).register_forward_hook(lambda *_: calls.append(1))
    xl.fit(net, Fixed(), Fixed(), cache_features=True, **QUICK)
    assert len(calls) == 2 + 1
    xl.fit(net, Fixed(), Fixed(), **QUICK)
    assert len(calls) == 3 + 3 * (2 + 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augment": "flip"}, "cache_features: augmentation"),
        ({"freeze_backbone": False}, "cache_features: only a frozen backbone"),
        ({"loss": xl.EGTLoss(target="product")}, "cache_features: the target is relevance"),
    ],
)
def test_cached_features_cannot_be_forced(tiny_set, tmp_path, values, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.fit(make_net(), tiny_set, tiny_set, cache_features=True, out_dir=tmp_path / "x", **QUICK | values)
    assert not (tmp_path / "x").exists()


def test_bad_data_is_refused_with_cached_features(tiny_set):
    wrong = TensorDataset(tiny_set.inputs, tiny_set.labels + 3)
    for train, val, message in (
        (wrong, tiny_set, r"\[0, 4\)"),
        (tiny_set, wrong, r"val labels: expected values in \[0, 4\)"),
        (tiny_set.first(0), tiny_set, "empty"),
    ):
        with pytest.raises(xl.errors.InputError, match=message):
            xl.fit(make_net(), train, val, **QUICK)


def test_custom_losses_get_evidence(tiny_set):
    shapes = []

    class Own(xl.EGTLoss):
        def __call__(self, outputs, labels, progress=1.0, features=None):
            shapes.append(tuple(outputs[0].evidence.shape))
            return super().__call__(outputs, labels, progress, features)

    result = xl.fit(fresh(), tiny_set, tiny_set, loss=Own(), **QUICK | {"epochs": 1})
    assert set(shapes) == {(8, 4, 8, 8)}
    assert math.isfinite(result.history[0]["loss"]["total"])


def read_words(net, input_ids, attention_mask):
    shown = attention_mask[..., None]
    x = torch.relu(net.mix(net.embed(input_ids) * shown)) + 0.1
    return net.fc((net.last(x) * shown).sum(1) / shown.sum(1))


def test_features_read_by_several_heads_are_cached_once():
    texts, layers = make_texts(6), {"mix": nn.Linear(6, 6), "last": nn.Linear(6, 6), "fc": nn.Linear(6, 3)}
    reader = make_network(read_words, embed=nn.Embedding(40, 6), **layers)
    net = xl.attach(reader, ["embed", "mix"], 3, texts, head="context")
    heads = frozen.CachedHeads(net, xl.EGTLoss())
    with torch.no_grad():
        kept, whole = heads.extract(net.eval(), texts, training=True), net(texts)
        own = [f"{k}.0" for k in range(net.num_exits)]
        assert sorted(kept) == sorted([*own, "0.1"])  # features, and the mask; exit 0's tokens are the lateral ones
        assert heads.names[1] == ["1.0", "0.1", "0.0"]
        for out, wanted in zip(heads(kept), whole, strict=True):
            torch.testing.assert_close(out.logits, wanted.logits)


@pytest.mark.parametrize("left", [0, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_features_keep_their_memory_order_in_memory_and_on_disk(tmp_path, left, dtype):
    like = torch.zeros(4, 3, 5, 2).to(dtype).contiguous(memory_format=torch.channels_last)
    store = FeatureStore(tmp_path, left)
    kept = store.allocate(9, like)
    assert kept.shape == (9, 3, 5, 2)
    assert kept.dtype == dtype
    assert kept.is_contiguous(memory_format=torch.channels_last)
    assert list(tmp_path.iterdir()) == []  # a file without a name
    kept[2:6] = like + 1 if dtype != torch.bool else ~like
    assert torch.equal(kept[[2, 5]], (like + 1 if dtype != torch.bool else ~like)[:2])
    assert store.memory_left == (left if left == 0 else left - kept.numel() * kept.element_size())


def test_batches_leave_out_samples_without_a_row():
    cache = FeatureCache({"0.0": torch.arange(3.0)[:, None]}, torch.tensor([5, 6, 7]), torch.tensor([0, -1, 1, -1, 2]))
    batches = list(FeatureLoader(cache, [[4, 1, 0], [1, 2], [3]]))
    assert len(batches) == 1  # of the second batch one sample is left, of the third none
    assert batches[0].inputs["0.0"].tolist() == [[2.0], [0.0]]
    assert batches[0].labels.tolist() == [7, 5]
    assert len(FeatureLoader(cache, [[0], [2]])) == 2
    assert [batch.labels.tolist() for batch in FeatureLoader(cache, [[0], [2]])] == [[5], [6]]
