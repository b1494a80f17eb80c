import torch

from exitlens.types.inputs import count_rows, draw_samples, list_input_names, list_tensors, map_inputs, split_rows

ONE = torch.arange(10).view(5, 2)
TWO = {"a": ONE, "b": ONE + 1}


def test_one_tensor_and_several_by_name():
    assert list_input_names(ONE) == ()
    assert list_input_names(TWO) == ("a", "b")
    assert [len(list_tensors(inputs)) for inputs in (ONE, TWO)] == [1, 2]
    assert count_rows(ONE) == count_rows(TWO) == 5
    assert torch.equal(map_inputs(TWO, lambda t: t + 1)["a"], TWO["b"])


def test_batches_are_in_order():
    parts = split_rows(TWO, 2)
    assert [count_rows(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part["b"] for part in parts]), TWO["b"])


def test_samples_are_drawn_without_repetition_and_in_the_same_order_each_time():
    rows = draw_samples(100, 30, seed=1)
    assert len(rows.unique()) == 30
    assert torch.equal(rows, draw_samples(100, 50, seed=1)[:30])
    assert draw_samples(4, 30).sort().values.tolist() == [0, 1, 2, 3]
