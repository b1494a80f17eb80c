import exitlens as xl


def test_errors_share_a_base_and_name_the_extra():
    names = [getattr(xl, name) for name in xl.__all__ if name.endswith("Error")]
    assert all(issubclass(error, xl.ExitlensError) for error in names)
    assert "pip install 'exitlens[x]'" in str(xl.errors.MissingExtraError("package", "x", "this"))
