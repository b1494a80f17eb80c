from exitlens.types.outputs import exit_name, tell_apart


def test_the_last_exit_is_the_final_one():
    assert [exit_name(k, 3) for k in range(3)] == ["exit 0", "exit 1", "final"]


def test_numbers_get_the_digits_that_tell_them_apart():
    assert tell_apart(0.5, 0.25) == ("0.500", "0.250")
    assert tell_apart(0.12345, 0.12341) == ("0.1235", "0.1234")
    assert tell_apart(0.5, 0.5) == ("0.500", "0.500")
    assert tell_apart(0.5, 0.5 + 1e-12) == ("0.5000000", "0.5000000")
