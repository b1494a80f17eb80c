"""What PyTorch's private parts are relied on for."""

import torch

from exitlens.model._torch_compat import (
    give_own_code,
    has_fast_bfloat16,
    is_mutating_operation,
    mark_any_count,
    read_version,
    use_fake_tensors,
)


def test_functions_made_at_one_place_do_not_share_their_code():
    def make(add):
        def step(x):
            return x + add

        return step

    one, other = (give_own_code(make(add), f"step_{add}") for add in (1, 2))
    assert (one(5), other(5)) == (6, 7)
    assert one.__code__ is not other.__code__
    assert one.__name__ == one.__code__.co_name == "step_1"


def test_versions_grow_with_changes_in_place():
    t = torch.zeros(2)
    before = read_version(t)
    t.add_(1)
    assert read_version(t) > before
    assert read_version(t) == read_version(t)


def test_marked_tensors_are_copies():
    t = torch.randn(3, 2)
    marked = mark_any_count(t)
    assert torch.equal(marked, t)
    assert marked is not t


def test_bfloat16_is_a_matter_of_the_device():
    assert has_fast_bfloat16(torch.device("cpu")) in (True, False)
    assert not has_fast_bfloat16(torch.device("meta"))


def test_fake_tensors_have_shapes_beside_real_parameters():
    layer = torch.nn.Linear(3, 5)
    with use_fake_tensors() as fake:
        assert layer(fake.from_tensor(torch.zeros(2, 3))).shape == (2, 5)


def test_operations_that_change_an_argument():
    assert is_mutating_operation(torch.ops.aten.add_.Tensor)
    assert is_mutating_operation(torch.ops.aten.add.Tensor) is False
    assert is_mutating_operation(torch.add) is None
