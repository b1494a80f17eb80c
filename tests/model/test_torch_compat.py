"""What PyTorch's private parts are relied on for."""

from exitlens.model._torch_compat import give_own_code


def test_functions_made_at_one_place_do_not_share_their_code():
    def make(add):
        def step(x):
            return x + add

        return step

    one, other = (give_own_code(make(add), f"step_{add}") for add in (1, 2))
    assert (one(5), other(5)) == (6, 7)
    assert one.__code__ is not other.__code__
    assert one.__name__ == one.__code__.co_name == "step_1"
