"""Names of policies, and that each of them fits the network."""

import pytest

import exitlens as xl
from exitlens.types.named_policies import check_fit, check_name, check_named


@pytest.mark.parametrize("name", ["f", "fast", "90-percent_sure", "-", "a" * 40])
def test_names(name):
    check_name(name, "name")
    check_named({name: xl.Policy((0.5,))}, 2, "aaaa")


@pytest.mark.parametrize("name", ["", "Fast", "a b", "a/b", "..", "fast.json", "fast\n", "ä", "a" * 41, 3, None])
def test_what_is_no_name(name):
    with pytest.raises(xl.InputError, match=r"name: expected names of 1 to 40 characters a-z, 0-9, _ and -, got "):
        check_name(name, "name")


def test_default_is_taken():
    with pytest.raises(xl.InputError, match="policies: 'default' is what the bundle's own policy is called"):
        check_named({"default": xl.Policy((0.5,))}, 2, "aaaa")


def test_errors_say_which_policy_it_is():
    good = xl.Policy((0.5,))
    with pytest.raises(xl.PolicyError, match=r"^policies, fast: it has 2 thresholds for 3 exits"):
        check_named({"good": good, "fast": xl.Policy((0.5, 0.5))}, 2, "aaaa")
    with pytest.raises(xl.PolicyError, match=r"^x\.json, fast: it was calibrated for network bbbb, this is aaaa"):
        check_fit(xl.Policy((0.5,), network="bbbb"), 2, "aaaa", "x.json, fast")
    with pytest.raises(xl.InputError, match="policies, fast: expected Policy, got dict"):
        check_named({"fast": good.to_dict()}, 2, "aaaa")
    with pytest.raises(xl.InputError, match="policies: expected Mapping, got list"):
        check_named([good], 2, "aaaa")
