import math
from dataclasses import replace

import exitlens as xl
from exitlens.delivery.explorer.core import Explorer
from exitlens.delivery.explorer.page import _explain_rule
from exitlens.delivery.explorer.view import View
from tests.hostile import noise
from tests.texts import LENGTH, make_text_net


def test_rules_have_as_many_digits_as_it_takes(explorer):
    answer = explorer.answer(0, noise())
    view = answer.why.exits[0]
    near = replace(view, confidence=0.99503, threshold=0.99505, fired=False)
    assert _explain_rule(near, False) == "confidence 0.99503 < threshold 0.99505"
    gated = replace(near, estimate=0.2504, limit=0.2501)
    assert _explain_rule(gated, False).endswith("estimated divergence 0.2504 > 0.2501, the gate's limit")
    assert "never" in _explain_rule(replace(view, threshold=math.inf), False)


def test_texts_are_shaded_token_by_token(tmp_path):
    net = make_text_net()
    words = xl.word_tokenizer(["the film was good", "<b> & bad food"])
    net.describe(classes=("a", "b", "c"), preprocess=xl.TextPreprocess(words, LENGTH))
    xl.save(net, xl.Policy((0.2, 0.5)), tmp_path / "bundle")
    explorer = Explorer([tmp_path])
    assert explorer.is_text
    assert explorer.examples() == []
    view = View(explorer)
    shown, text, answer, message = view.start(0.2, 0.5)
    assert shown == text == "Write a text and press Enter."
    assert message == ""
    shown, answer, message = view.say("the <b> was good", 0.2, 0.5)
    assert message == ""
    assert answer.count("<figure") == 3
    assert ">good</span>" in answer
    assert "<b>" not in answer.split("xl-tokens")[1].split("</p>")[0]
    assert "xl-heat" not in answer
    moved = view.say_again("the film was good", 1.01, 1.01)[0]
    assert "Write a text first" in view.say_again(None, 0.2, 0.5)[1]
    assert "Write a text first" in view.say("  ", 0.2, 0.5)[2]
    assert "no earlier exit could answer" in moved
    assert "There is no calibration data" in view.start_routed(0.2, 0.5)
