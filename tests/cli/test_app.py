"""app on the command line; what its page does is tested with the explorer."""

import sys

from exitlens.delivery.explorer import app


def test_it_serves_both_runs_on_the_port(trained, call, monkeypatch):
    served = []
    monkeypatch.setattr(
        app, "serve", lambda explorer, *, port, ready: (served.append((explorer.runs, port)), ready("http://x"))
    )
    monkeypatch.setattr("signal.signal", lambda *_: None)
    code, out, err = call("app", "--bundle", trained, "--compare", trained, "--port", 7000)
    assert code == 0, err
    assert "Open http://x" in out
    [(runs, port)] = served
    assert [run.name for run in runs] == ["x", "x (2)"]
    assert port == 7000


def test_without_gradio_the_extra_is_named(trained, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = call("app", "--bundle", trained)
    assert code == 2
    assert "exitlens[app]" in err
