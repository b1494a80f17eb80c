"""Former names warn where they are called, and none outlives the version that it was to go in."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
from packaging.version import Version

import exitlens as xl
from exitlens.deprecation import deprecate_function, rename_argument

SOURCE = Path(xl.__file__).parent
DECORATORS = {"deprecate_function", "rename_argument"}


def collect(net, loader=1):
    """Runs every sample."""
    return net, loader


gather = deprecate_function(since="0.3", gone="0.5", use="exitlens.collect")(collect)


@rename_argument("max_drop", "max_accuracy_drop", since="0.3", gone="0.5")
@rename_argument("level", "delta", since="0.4", gone="0.6")
def calibrate(trace, max_accuracy_drop=None, *, delta=None):
    return trace, max_accuracy_drop, delta


def list_deprecations(source: str) -> list[tuple[str, str, int]]:
    """Since when, gone when, and the line of each use of a decorator."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in DECORATORS:
            given = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg in ("since", "gone")}
            found.append((given["since"], given["gone"], node.lineno))
    return found


def say_what_is_wrong(since: str, gone: str, now: str) -> str:
    """Empty where a deprecation is as docs/project/stability.md has it."""
    first, last = Version(since), Version(gone)
    if last <= Version(now):
        return f"it was to be gone in {gone}, and this is {now}: remove it"
    if last < Version(f"{first.major}.{first.minor + 2}"):
        return f"deprecated in {since} and gone in {gone}: expected two minor versions"
    return ""


def test_a_former_function_does_what_it_did_and_warns_where_it_is_called():
    expected = r"collect\(\) is deprecated since exitlens 0.3 and will be gone in 0.5: use exitlens.collect"
    with pytest.warns(xl.ExitlensDeprecationWarning, match=expected) as told:
        assert gather("net", loader="data") == ("net", "data")
    assert len(told) == 1
    assert told[0].filename == __file__
    assert inspect.signature(gather) == inspect.signature(collect)
    assert gather.__doc__.endswith("use exitlens.collect.\n\nRuns every sample.")


def test_a_former_argument_is_passed_on_by_its_name_of_today():
    expected = r"the argument max_drop of calibrate\(\) is deprecated since exitlens 0.3 .* 0.5: use max_accuracy_drop="
    with pytest.warns(xl.ExitlensDeprecationWarning, match=expected):
        assert calibrate("trace", max_drop=0.01) == ("trace", 0.01, None)


def test_two_decorators_each_warn_at_the_line_of_the_caller():
    line = inspect.currentframe().f_lineno + 2
    with pytest.warns(xl.ExitlensDeprecationWarning) as told:
        assert calibrate("trace", max_drop=0.01, level=0.1) == ("trace", 0.01, 0.1)
    assert [(one.filename, one.lineno) for one in told] == [(__file__, line)] * 2


def test_names_of_today_do_not_warn():
    assert calibrate("trace", 0.01, delta=0.1) == ("trace", 0.01, 0.1)  # warnings are errors here


@pytest.mark.parametrize(("args", "kwargs"), [(("trace", 0.02), {}), (("trace",), {"max_accuracy_drop": 0.02})])
def test_an_argument_by_both_its_names_is_refused(args, kwargs):
    with pytest.raises(xl.InputError, match=r"max_drop: expected it or max_accuracy_drop, .* got both"):
        calibrate(*args, max_drop=0.01, **kwargs)


def test_the_new_name_has_to_exist():
    with pytest.raises(AssertionError, match="drop -> nothing"):
        rename_argument("drop", "nothing", since="0.3", gone="0.5")(calibrate)


def test_users_see_it_without_asking():
    assert issubclass(xl.ExitlensDeprecationWarning, FutureWarning)


@pytest.mark.parametrize(
    ("since", "gone", "now", "expected"),
    [
        ("0.3", "0.5", "0.4.9", ""),
        ("0.3", "0.5", "0.5.0.dev1", ""),  # of which the 0.5.0 is made
        ("0.3", "0.5", "0.5.0", "remove it"),
        ("0.9", "0.10", "0.9.1", "two minor versions"),
        ("0.9", "1.0", "0.9.1", ""),
    ],
)
def test_the_rule(since, gone, now, expected):
    assert expected in say_what_is_wrong(since, gone, now)
    assert bool(expected) == bool(say_what_is_wrong(since, gone, now))


def test_uses_are_found():
    source = '@deprecation.deprecate_function(since="0.3", gone="0.5", use="y")\ndef x(): ...\n'
    source += '@rename_argument("a", "b", gone="0.6", since="0.4")\ndef y(b): ...\n'
    assert sorted(list_deprecations(source)) == [("0.3", "0.5", 1), ("0.4", "0.6", 3)]


def test_nothing_outlives_its_version():
    for path in sorted(SOURCE.rglob("*.py")):
        for since, gone, line in list_deprecations(path.read_text()):
            assert not (wrong := say_what_is_wrong(since, gone, xl.__version__)), f"{path}:{line}: {wrong}"
