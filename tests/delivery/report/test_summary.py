from exitlens.delivery.report.summary import summarize
from tests.delivery.report.conftest import make_subject


def test_three_sentences_with_links_to_their_terms(tiny_set):
    subjects = [make_subject(name, tiny_set) for name in ("one", "other")]
    saving, agreement, faithful = summarize(subjects, "test", {"batch size 1": {"speedup": 2.5}}, plain_accuracy=0.5)
    assert saving.startswith("one: <b>")
    assert '2.50 <a href="#w-speed">times faster</a></b> at batch size 1' in saving
    assert "plain backbone 50.0 %" in saving
    skill = subjects[0].reports["test"].exits[0].consistency["cc"]["skill"]
    assert f"<b>{skill:.2f}</b> at exit 0" in agreement
    assert "; other, " in agreement
    assert f"<b>{subjects[0].faithfulness['test'].deletion[0]:.2f}</b>" in faithful
    assert len(summarize([make_subject("x", tiny_set, faithful=False)], "test", {})) == 2
