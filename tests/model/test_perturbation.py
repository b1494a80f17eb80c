import torch

from exitlens.model.perturbation import occlude, perturb
from tests.texts import make_text_net, make_texts


def answer(net, inputs):
    with torch.no_grad():
        return [out.logits.softmax(1) for out in net(inputs)]


def open_parts(net, inputs):
    plain = answer(net, inputs)
    with torch.no_grad():
        maps = [out.attention for out in net(inputs)]
    return (
        plain,
        maps,
        [(slice(0, 5), {k: t[:5] for k, t in inputs.items()}), (slice(5, 7), {k: t[5:] for k, t in inputs.items()})],
    )


def test_every_cell_by_itself_and_none_of_the_padding():
    net, inputs = make_text_net().eval(), make_texts(7)
    plain, maps, batches = open_parts(net, inputs)
    with net.open_engine() as engine:
        found = occlude(net, engine, batches, plain, maps)
    real = maps[0] > 0  # neither padding nor the first token, which stands for the class
    for k, drops in enumerate(found):
        assert drops.shape == maps[k].shape
        assert drops[~real].eq(0).all()
    shorter = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    shorter["attention_mask"][:, 2] = 0
    rows = real[:, 2] & (real.sum(1) > 1)
    assert rows.any()
    for k, after in enumerate(answer(net, shorter)):
        label = plain[k].argmax(1, keepdim=True)
        by_hand = (plain[k] - after).gather(1, label).squeeze(1)
        torch.testing.assert_close(found[k][rows, 2], by_hand[rows], atol=1e-6, rtol=1e-4)


def test_deleting_a_map_of_one_cell_is_occluding_that_cell():
    net, inputs = make_text_net().eval(), make_texts(7)
    plain, maps, batches = open_parts(net, inputs)
    with net.open_engine() as engine:
        alone = occlude(net, engine, batches, plain, maps)
        drops, keeps = perturb(net, engine, batches, plain, maps, 1e-3)
    for k, drop in enumerate(drops):
        top = maps[k].argmax(1, keepdim=True)
        torch.testing.assert_close(drop, alone[k].gather(1, top).squeeze(1), atol=1e-6, rtol=1e-4)
        assert ((keeps[k] >= 0) & (keeps[k] <= 1)).all()


def test_maps_from_elsewhere_are_judged_by_the_exit_they_are_about():
    net, inputs = make_text_net().eval(), make_texts(7)
    plain, maps, batches = open_parts(net, inputs)
    with net.open_engine() as engine:
        drops, keeps = perturb(net, engine, batches, plain, maps, 0.3)
        again = perturb(net, engine, batches, plain, [maps[2], maps[0], maps[2]], 0.3, exits=[2, 0, 2])
    for found, wanted in zip(again, (drops, keeps), strict=True):
        assert all(torch.equal(one, wanted[k]) for one, k in zip(found, (2, 0, 2), strict=True))
