from exitlens.types.outputs import tell_apart


def test_numbers_get_the_digits_that_tell_them_apart():
    assert tell_apart(0.5, 0.25) == ("0.500", "0.250")
    assert tell_apart(0.12345, 0.12341) == ("0.1235", "0.1234")
    assert tell_apart(0.5, 0.5) == ("0.500", "0.500")
    assert tell_apart(0.5, 0.5 + 1e-12) == ("0.5000000", "0.5000000")
