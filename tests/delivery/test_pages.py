import jinja2
import pytest

from exitlens.delivery.pages import _environment, load_template


def test_a_template_escapes_and_misses_nothing():
    page = load_template("tokens.html.j2")
    with pytest.raises(jinja2.UndefinedError):
        page.render()
    assert _environment().from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"


def test_numbers_for_people():
    filters = _environment().filters
    assert filters["percent"](0.1234) == "12.3"
    assert filters["percent"](None) == filters["number"](float("nan")) == "–"
    assert filters["threshold"](float("inf")) == "never"
    assert filters["threshold"](0.5) == "0.50000"
