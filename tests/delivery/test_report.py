import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch

import exitlens as xl
from exitlens.delivery import report
from exitlens.delivery.pictures import draw_image
from exitlens.delivery.report import (
    INK,
    PAPER,
    Provenance,
    Subject,
    describe_provenance,
    measure_subjects,
    pick_images,
    plot_accuracy_cost,
    plot_consistency,
    plot_deletion,
    plot_exit_shares,
    summarize,
    write_report,
)
from exitlens.display import pick_exit_colour
from exitlens.types.comparisons import Comparison, Contender
from tests.conftest import TinyNet, make_net, make_timing
from tests.exported import make_continuous

MADE = Provenance("exitlens report a", "32 images", "0", {"loss": "none"})
POLICY = xl.Policy((0.9, 0.6))


def make_subject(name, data, *, faithful=False, at=None, policy=POLICY, head="evidence"):
    """A network with two early exits, or those named in ``at``, measured on a few images."""
    net = make_net() if at is None else xl.attach(TinyNet(), at, 4, data.first(1).inputs, head=head)
    net.describe(classes=data.classes, preprocess=data.preprocess)
    checks = {"test": xl.measure_faithfulness(net, data, oracle_samples=8)} if faithful else {}
    return Subject(name, net, policy, {"test": xl.evaluate(xl.collect(net, data), policy)}, checks)


def write(path, data, *subjects, **more):
    """The report as text."""
    return write_report(path / "deep" / "report.html", subjects, {"test": data}, MADE, overwrite=True, **more).read_text()


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.links, self.external = [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        for name in ("src", "href"):
            value = values.get(name) or ""
            if value.startswith(("http", "//")):
                self.external.append(value)
        if tag == "a":
            self.links.append(values["href"])


@pytest.mark.parametrize("pair", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_report_is_one_file_that_loads_nothing(tmp_path, tiny_set, pair):
    subjects = [make_subject(name, tiny_set, faithful=True) for name in ("with <EGT>", "without")[: 1 + pair]]
    rivals = [Contender(name, name, 0.9, (0.5, -1.0, 2.0), 2.0, (1.0,) * 3, 0.8, 0.7) for name in ("with exits", "plain")]
    comparison = Comparison(tuple(rivals), 32, 8, 4, {"processor": "Slow 9000", "threads": 2}, "net", "rule")
    subjects[0] = replace(subjects[0], comparison=comparison)
    times = {"speedup": 2.5, "low": 2.4, "high": 2.6, "plain_ms": 1.0, "ours_ms": 0.4, "images": 256, "rounds": 5}
    speed = {"batch size 1": times | {"accuracy_drop": 0.01, "cost": 0.3}}
    text = write(tmp_path, tiny_set, *subjects, speed=speed, plain_accuracy=0.9)
    page = _Page()
    page.feed(text)
    assert page.external == []
    assert "<script" not in text
    assert len(page.images) >= 4
    assert all(image["alt"] for image in page.images)
    assert all(f'id="{link[1:]}"' in text for link in page.links)
    assert text.count("<svg") == 5
    assert "<p>Undecided between the network with exits and the plain, which takes 1.00 times as long" in text
    assert "32 test images in 8 groups; batches of 4, Slow 9000, 2 threads" in text
    assert "with &lt;EGT&gt;" in text
    assert re.search(r"<b>2.50 <a [^>]*>times faster</a></b> at batch size 1", text)
    assert re.search(r"skill</a> of <b>-?\d", text)
    assert text.count("<svg") == text.count('<svg role="img" aria-label=')
    assert len(text) < 5e6
    ids = re.findall(r'<(?:\w+) id="([^"]+)"', re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))
    assert len(ids) == len(set(ids))
    assert text.count("<code>exitlens report a</code>") == 2  # in the summary, and where every table's footer leads
    for part in text.split("<h2 ")[1:]:  # every number with its data and seed
        if "<td>" in part or 'id="gallery"' in part:
            assert "training seed 0" in part
            assert 'href="#facts">how it was made' in part
    with pytest.raises(xl.errors.OutputExistsError):
        write_report(tmp_path / "deep" / "report.html", subjects, {"test": tiny_set}, MADE)


@pytest.mark.slow
def test_milliseconds_stand_beside_the_cost(tmp_path, tiny_set):
    subject, timing = make_subject("run", tiny_set), make_timing()
    text = write(tmp_path, tiny_set, subject)
    assert "ms of a batch" not in text
    assert text.count("<svg") == 3  # without faithfulness and speed
    trace = replace(xl.collect(subject.net, tiny_set), timing=timing)
    policy = xl.calibrate(trace, max_ms=5, percentile=95)
    timed = replace(subject, policy=policy, reports={"test": xl.evaluate(trace, policy)})
    text = write(tmp_path, tiny_set, timed)
    assert "ms of a batch" in text
    assert "<td>10.500</td>" in text
    assert "medians of 20 rounds, batches of 64 on Slow 9000, 2 threads; quartiles 1.900 – 2.100, 4.900 – 5.100" in text
    assert "time of 95 % of the samples at most 5 ms for batches of 64 on Slow 9000" in text


def test_a_report_needs_an_early_exit(tmp_path, tiny_set):
    plain = make_subject("plain", tiny_set, at=[], policy=xl.Policy(()))
    with pytest.raises(xl.errors.InputError, match="early exit"):
        write(tmp_path, tiny_set, plain)


@pytest.mark.slow
def test_a_gate_is_shown_and_defined(tmp_path, tiny_set):
    gate = xl.types.Gate(((0.0,) * 4 + (-1.0,), (0.0,) * 4 + (1.0,)), (0.0, math.inf))  # 0.269 and 0.731
    text = write(tmp_path, tiny_set, make_subject("gated", tiny_set, policy=xl.Policy((0.3, 0.6), gate=gate)))
    assert 'id="w-gate"' in text
    assert "trust of the gate 0.269 &lt; threshold 0.300" in text
    assert "the trust of the gate in it, 0.269, is below the threshold 0.300" in text
    assert 'id="w-gate"' not in write(tmp_path, tiny_set, make_subject("free", tiny_set))


@pytest.mark.slow
def test_a_promise_of_binding_is_shown_beside_thresholds_by_hand(tmp_path, tiny_set):
    policy = xl.Policy((0.3, 0.6))
    binding = xl.types.BindingCertificate(
        0.2, 0.1, 0.9, 0.94, 100, None, ((100, 0.94), (0, None), (0, None)), policy.rule_hash(), 0.2, 100
    )
    text = write(tmp_path, tiny_set, make_subject("bound", tiny_set, policy=replace(policy, binding=binding)))
    assert "Nothing is promised of accuracy and cost: these thresholds were set by hand." in text
    assert str(binding) in text


@pytest.mark.slow
def test_words_fit_the_heads(tmp_path, tiny_set):
    for head, said in (("evidence", "not a picture drawn afterwards"), ("average", "energy of their features")):
        text = write(tmp_path, tiny_set, make_subject(head, tiny_set, at=["a", "b"], head=head))
        assert said in text
        assert ("not a picture drawn afterwards" in text) == (head == "evidence")


@pytest.mark.slow
def test_one_image_has_no_chance_level(tmp_path, tiny_set):
    text = write(tmp_path, tiny_set.first(1), make_subject("x", tiny_set.first(1), faithful=True))
    assert ">nan<" not in text
    assert "Early exits look" not in text


@pytest.mark.slow
def test_large_images_keep_the_report_small(tmp_path):
    pixels = torch.randint(0, 255, (6, 3, 640, 480), dtype=torch.uint8)  # noise: the worst case
    data = xl.data.ImageSet(pixels, torch.arange(6) % 4, ("a", "b", "c", "d"))
    assert len(write(tmp_path, data, make_subject("x", data, at=["a", "b"]))) < 5e6 / 6
    assert max(draw_image(data.first(1).inputs[0], data.preprocess).size) == 320


def _saved(folder, data, at=("layer1",), **described):
    small = xl.attach(xl.build_backbone("small", 4), list(at), 4, torch.zeros(1, 3, 16, 16)).eval()
    small.describe(**{"source": "small", "classes": data.classes, "preprocess": data.preprocess} | described)
    xl.save(small, xl.Policy((0.5,) * len(at)), folder / "bundle")
    return folder


@pytest.mark.slow
def test_a_subject_is_measured_on_the_images(tiny_set, tmp_path):
    path = _saved(tmp_path, tiny_set)
    subject = measure_subjects([path], tiny_set)[0]
    assert subject.name == path.name
    assert subject.reports["test"].samples == len(tiny_set)
    assert len(subject.faithfulness["test"].deletion) == 2
    made = describe_provenance([path], tiny_set, ["exitlens", "report", "a b"])
    assert made.command == "exitlens report 'a b'"
    assert made.data == f"32 images: the test split of {path}"
    assert made.seed == "not recorded"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"classes": ("z", "y", "x", "w")}, "its classes are"),
        ({"preprocess": xl.data.Preprocess((16, 16), (0.4,) * 3, (0.2,) * 3)}, "it reads images as"),
        ({"at": ("layer1", "layer2")}, r"they have \[2, 3\] exits"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_before_anything_is_measured(tiny_set, tmp_path, monkeypatch, other, words):
    monkeypatch.setattr(report, "collect", None)
    runs = [_saved(tmp_path / "a", tiny_set), _saved(tmp_path / "b", tiny_set, **other)]
    with pytest.raises(xl.errors.InputError, match=words):
        measure_subjects(runs, tiny_set)


@pytest.mark.slow
def test_a_damaged_record_is_named(tiny_set, tmp_path):
    path = _saved(tmp_path, tiny_set)
    (path / "settings.json").write_text("{}")
    with pytest.raises(xl.errors.DataError, match=r"settings.json: damaged \(KeyError"):
        describe_provenance([path], tiny_set, ["x"])


@pytest.mark.slow
def test_three_sentences_with_links_to_their_terms(tiny_set):
    subjects = [make_subject(name, tiny_set, faithful=True) for name in ("one", "other")]
    saving, agreement, faithful = summarize(subjects, "test", {"batch size 1": {"speedup": 2.5}}, plain_accuracy=0.5)
    assert saving.startswith("one: <b>")
    assert '2.50 <a href="#w-speed">times faster</a></b> at batch size 1' in saving
    assert "plain backbone 50.0 %" in saving
    skill = subjects[0].reports["test"].exits[0].consistency["cc"]["skill"]
    assert f"<b>{skill:.2f}</b> at exit 0" in agreement
    assert "; other, " in agreement
    assert f"<b>{subjects[0].faithfulness['test'].deletion[0]:.2f}</b>" in faithful
    assert len(summarize([make_subject("x", tiny_set)], "test", {})) == 2


@pytest.mark.slow
def test_the_gallery_is_of_all_classes_of_sorted_data(tiny_set):
    images = tiny_set.images.repeat(40, 1, 1, 1)
    labels = torch.arange(len(images)) // (len(images) // 4)
    data = xl.data.ImageSet(images, labels, tiny_set.classes, preprocess=tiny_set.preprocess)
    chosen = pick_images(make_subject("x", tiny_set), data, 12)
    assert len(chosen) == 12
    assert len(data.subset(torch.tensor(chosen)).labels.unique()) >= 3


@pytest.mark.slow
def test_bad_images_that_are_skipped_are_never_picked(tiny_set):
    class Reader:
        def __len__(self):
            return 24

        def read(self, index):
            if index % 3 == 0:
                raise xl.errors.DataError(f"{index}: cannot be read")
            return tiny_set.images[index % len(tiny_set)]

        def name(self, index):
            return str(index)

    labels = torch.arange(24) % len(tiny_set.classes)
    data = xl.data.LazySet(Reader(), labels, tiny_set.classes, tiny_set.preprocess, skip_bad=True, workers=0)
    subject = make_subject("x", tiny_set)
    chosen = pick_images(subject, data, 16)
    assert sorted(chosen) == [i for i in range(24) if i % 3]
    whys = [xl.explain(subject.net, data.subset(torch.tensor([i])).inputs, subject.policy) for i in chosen]
    order = [(why.name_answer() == data.classes[labels[i]], why.answered) for i, why in zip(chosen, whys, strict=True)]
    assert order == sorted(order)  # mistakes first, then by the exit that answered: each answer is that of its own image


@pytest.mark.slow
def test_mistakes_come_first_and_are_half_of_the_gallery(tmp_path, tiny_set):
    subject = make_subject("x", tiny_set)
    net = subject.net
    answers = torch.tensor([why.exits[why.answered].label for why in xl.explain_batch(net, tiny_set.inputs, POLICY)])
    labels = answers.clone()
    labels[:10] = (answers[:10] + 1) % 4  # ten mistakes
    data = xl.data.ImageSet(tiny_set.images, labels, tiny_set.classes, preprocess=tiny_set.preprocess)
    done = []
    chosen = pick_images(subject, data, 6, done.append)
    assert [i < 10 for i in chosen] == [True] * 3 + [False] * 3
    assert sum(done) == len(data)
    labels[:9] = answers[:9]  # one mistake
    data = xl.data.ImageSet(tiny_set.images, labels, tiny_set.classes, preprocess=tiny_set.preprocess)
    assert [i == 9 for i in pick_images(subject, data, 6)] == [True] + [False] * 5
    assert write(tmp_path, data, subject).count('<span class="wrong">mistake</span>') == 1


@pytest.mark.slow
def test_confidences_that_are_far_from_accuracies_have_a_word_of_warning(tmp_path, tiny_set):
    subject = make_subject("x", tiny_set)
    exits = subject.reports["test"].exits
    for errors, words in (((0.01, 0.15, 0.049), "exit 1 by 15 % on average ("), ((0.01, 0.02, 0.03), "")):
        rows = tuple(replace(row, calibration_error=error) for row, error in zip(exits, errors, strict=True))
        other = replace(subject, reports={"test": replace(subject.reports["test"], exits=rows)})
        text = write(tmp_path, tiny_set, other)
        assert text.count("Take confidences with care") == (2 if words else 0)
        assert words in text
        routed = f"calibration error</a> of {100 * other.reports['test'].calibration_error:.1f} %, as evaluate tells"
        assert routed in " ".join(text.split())


@pytest.mark.slow
def test_legends_and_tables_name_what_there_is(tmp_path, tiny_set):
    names = "a$x^$ <b>", "a very long name of a run that leaves no room for a plot"  # which are only names
    text = write(tmp_path, tiny_set, *(make_subject(name, tiny_set, faithful=True) for name in names))
    assert re.search(r"Dots \(a\$x\^\$ &lt;b&gt;\) and squares \(a very long .*\): each exit alone", text)
    assert "a very long name of a r…" in text
    assert "attention on object (%)" in text
    without = xl.data.ImageSet(tiny_set.images, tiny_set.labels, tiny_set.classes, preprocess=tiny_set.preprocess)
    text = write(tmp_path, without, make_subject("one", without, faithful=True))
    assert "Dots: each exit alone" in text
    assert "squares" not in text
    assert "attention on object (%)" not in text  # there are no masks, and so no column of dashes
    assert 'id="w-temperature"' in text


@pytest.mark.slow
def test_plots_take_ink_and_paper_from_the_page_and_exits_keep_their_colour(tiny_set):
    subjects = [make_subject(name, tiny_set, faithful=True) for name in ("one", 'the "other"')]
    bars = {plot_exit_shares: 3, plot_accuracy_cost: 3, plot_consistency: 2, plot_deletion: 3}
    for draw, exits in bars.items():
        svg = draw(subjects, "test")
        ElementTree.fromstring(svg)
        drawn = set(re.findall(r"(?:fill|stroke): (#\w+)", svg))
        colours = {pick_exit_colour(k, 3).lower() for k in range(exits)}
        assert colours <= drawn <= colours | {"#8a8a8a", "#ffffff", "#000000"}
        assert "currentColor" in svg
        assert "the &quot;other&quot;" in svg
        assert INK not in svg
        assert PAPER not in svg


@pytest.mark.parametrize("numbers", [2, 0], ids=["numbers", "vectors"])
@pytest.mark.slow
def test_numbers_and_vectors_have_distances_instead_of_accuracies(numbers, tmp_path):
    pixels = torch.randint(0, 255, (24, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.tensor([50.0, 0.0]) + torch.arange(48.0).view(24, 2) if numbers else torch.zeros(24, 0)
    data = xl.data.ImageSet(pixels, labels, ("length", "width") if numbers else (), None, xl.data.Preprocess((16, 16)))
    net, policy = make_continuous(numbers), xl.Policy((0.5,), "closeness" if numbers else "vector_closeness")
    assert not report.can_delete(net)
    subject = Subject("x", net, policy, {"test": xl.evaluate(xl.collect(net, data), policy)})
    page, measured = write(tmp_path, data, subject), subject.reports["test"]
    assert "accuracy" not in page.lower()
    assert f">{measured.answers.distance:.4g}</td>" in page
    assert not numbers or f"off by <b>{measured.answers.mae:.3f}</b>" in page
    assert ("cosine 1<br>" in page) == (numbers == 0)  # of the final exit's vector and itself
    assert page.count("the label (test)") == (6 if numbers else 0)
    links = _Page()
    links.feed(page)
    assert all(f'id="{link[1:]}"' in page for link in links.links if link.startswith("#"))
    errors = [float(error) for error in re.findall(r"off by ([\d.]+)</span>", page)]
    assert len(errors) == (6 if numbers else 0)
    assert not numbers or min(errors[:3]) >= max(errors[3:]) - 1e-4
