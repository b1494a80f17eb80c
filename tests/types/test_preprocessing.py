import json
import math
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import exitlens as xl
from exitlens.types.preprocessing import TextPreprocess

WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "good": 5, "lamp": 6}


def _tokenizer(vocabulary=None, framed=True, padding=None, unknown="[UNK]"):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary or WORDS, unk_token=unknown))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if framed:
        frame = [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    if padding:
        tokenizer.enable_padding(pad_token=padding, direction="left", length=99)
    return tokenizer.to_str()


def test_texts_are_framed_padded_and_truncated():
    preprocess = TextPreprocess(_tokenizer(), 6)
    found = preprocess.encode(["a lamp", "a good lamp", "a good good green lamp", ""])
    assert found["input_ids"].tolist() == [[2, 4, 6, 3, 0, 0], [2, 4, 5, 6, 3, 0], [2, 4, 5, 5, 1, 3], [2, 3, 0, 0, 0, 0]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1] * 6, [1, 1, 0, 0, 0, 0]]
    assert {values.dtype for values in found.values()} == {torch.int64}
    assert preprocess.tokens(found["input_ids"][0]) == ["[CLS]", "a", "lamp", "[SEP]", "[PAD]", "[PAD]"]
    assert preprocess.vocabulary_size == 7


@pytest.mark.parametrize(
    ("vocabulary", "padding", "expected"),
    [
        ({"a": 0, "?": 1, "<pad>": 2}, None, 2),  # found by its name
        ({"a": 0, "?": 1, "<pad>": 2, "hole": 9}, "hole", 9),  # what the JSON itself says comes first
        ({"a": 0, "?": 1}, "gone", 0),  # it says so, but has no such token
        ({"a": 0, "?": 1}, None, 0),
    ],
)
def test_padding_is_at_the_end_and_of_the_tokenizers_own_token(vocabulary, padding, expected):
    preprocess = TextPreprocess(_tokenizer(vocabulary, framed=False, padding=padding, unknown="?"), 3)
    assert preprocess.encode(["a"])["input_ids"].tolist() == [[0, expected, expected]]
    assert preprocess.vocabulary_size == max(vocabulary.values()) + 1


def test_text_preprocess_round_trips():
    preprocess = TextPreprocess(_tokenizer(), 6)
    values = json.loads(json.dumps(preprocess.to_dict()))
    assert TextPreprocess.from_dict(values) == preprocess == pickle.loads(pickle.dumps(preprocess))
    assert preprocess != TextPreprocess(_tokenizer(), 7)
    assert len(repr(preprocess)) < 100  # without the tokenizer


def test_the_tokenizer_is_read_once_for_each_length(monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    description = _tokenizer({**WORDS, "once": 7})
    read, calls = tokenizers.Tokenizer.from_str, []
    fake = SimpleNamespace(Tokenizer=SimpleNamespace(from_str=lambda text: calls.append(1) or read(text)))
    monkeypatch.setitem(sys.modules, "tokenizers", fake)
    long, short = TextPreprocess(description, 6), TextPreprocess(description, 4)
    for _ in range(3):
        assert long.encode(["once a"])["input_ids"].tolist() == [[2, 7, 4, 3, 0, 0]]
        assert short.encode(["once a lamp"])["input_ids"].tolist() == [[2, 7, 4, 3]]
    assert len(calls) == 3  # as it is, and with each length


NO_JSON = ("", "{", "{}", "3", "[" * 100_000, '{"version": "1.0"}', "a path.json")
PIXELS = ((8, 9), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda text=text: TextPreprocess(text, 8), r"tokenizer: .* the JSON .* use its to_str\(\)") for text in NO_JSON),
        (lambda: TextPreprocess(_tokenizer(), -4), "length: expected 3 tokens or more"),
        (lambda: TextPreprocess(_tokenizer(), 2), "got 2"),
        (lambda: TextPreprocess(_tokenizer(), 8.0), "length: expected int, got float"),
        (lambda: TextPreprocess(None, 8), "tokenizer: expected str, got NoneType"),
        *(
            (lambda texts=texts: TextPreprocess(_tokenizer(), 8).encode(texts), message)
            for texts, message in (
                ([], "one text or more"),
                ("a lamp", "expected a list"),
                (["a", 3], r"texts\[1\]: expected str, got int"),
                (["a", ("a", "b")], r"texts\[1\]"),
                (["a", "\ud800"], "Unicode"),
            )
        ),
        (lambda: TextPreprocess(_tokenizer({"a": 0}, framed=False), 8).encode(["b"]), "unknown token"),
        *(
            (lambda ids=ids: TextPreprocess(_tokenizer(), 8).tokens(torch.tensor(ids)), "input_ids")
            for ids in ([7], [-1], [2**40], [[1, 2]], [0.5])
        ),
        *(
            (lambda values=values: xl.data.Preprocess(*values), "expected")
            for values in (((0, 8), (0.5,), (0.5,)), ((8, 8), (0.5,), (0.0,)), ((8, 8), (0.5, 0.5), (0.2, 0.2)))
        ),
        (lambda: xl.data.Preprocess(*PIXELS).normalise(torch.ones(3, 8, 9, dtype=torch.int64)), "uint8"),
        (lambda: xl.data.Preprocess(*PIXELS).normalise(torch.ones(1, 8, 9)), "pixels"),
    ],
)
def test_texts_and_pixels_that_do_not_fit(make, message):
    pytest.importorskip("tokenizers")
    with pytest.raises(xl.errors.InputError, match=message):
        make()


def test_text_without_the_tokenizers_package(monkeypatch):
    description = _tokenizer({**WORDS, "new": 7})
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(xl.errors.MissingExtraError, match=r"exitlens\[hf\]"):
        TextPreprocess(description, 8)


def test_the_same_for_another_size_and_number_of_channels():
    colour = xl.data.Preprocess((8, 8), (0.2, 0.4, 0.6), (0.1, 0.2, 0.3))
    assert colour.fit_to((4, 6), 3) == xl.data.Preprocess((4, 6), colour.mean, colour.std)
    grey = colour.fit_to((4, 6), 1)
    assert (grey.mean, grey.std) == (pytest.approx((0.4,)), pytest.approx((0.2,)))
    assert grey.fit_to((4, 6), 3).mean == pytest.approx((0.4,) * 3)


MEL = xl.data.MelSpectrogram(bands=2)
EXAMPLES = [
    xl.data.SeriesPreprocess((1.0, -2.0), (2.0, 4.0), length=5, rate=16000.0, names=("a", "b"), time_first=True, mel=MEL),
    xl.data.SeriesPreprocess((0.5,), (0.25,)),
    xl.data.VolumePreprocess((1.0,), (2.0,), (2, 3, 4)),
    xl.data.VectorPreprocess((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), ("x", "y", "z")),
    xl.data.Preprocess((8, 9), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
]


@pytest.mark.parametrize("preprocess", EXAMPLES)
def test_a_description_makes_the_same(preprocess):
    found = type(preprocess).from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert found == preprocess
    assert hash(found) == hash(preprocess)


def test_normalising_by_hand():
    series = xl.data.SeriesPreprocess((1.0, -2.0), (2.0, 4.0))
    values = torch.tensor([[1.0, 3.0, 5.0], [-2.0, 2.0, 6.0]])
    expected = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    assert torch.equal(series.normalise(values), expected)
    assert torch.equal(series.normalise(values[None].double()), expected[None])
    turned = xl.data.SeriesPreprocess((1.0, -2.0), (2.0, 4.0), time_first=True)
    assert torch.equal(turned.normalise(values), expected.T)
    assert torch.equal(turned.restore(expected.T), values)
    volume = xl.data.VolumePreprocess((1.0,), (2.0,), (1, 1, 2))
    assert volume.normalise(torch.tensor([[[[1, 5]]]])).flatten().tolist() == [0.0, 2.0]
    assert xl.data.VectorPreprocess((1.0, 2.0), (1.0, 2.0)).normalise(torch.tensor([3.0, 6.0])).tolist() == [2.0, 2.0]


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(0.01, 100)), min_size=1, max_size=4), st.integers(0, 1000))
def test_restoring_is_the_inverse(channels, seed):
    mean, std = zip(*channels, strict=True)
    rng = torch.Generator().manual_seed(seed)
    for preprocess, shape in (
        (xl.data.SeriesPreprocess(mean, std), (2, len(mean), 7)),
        (xl.data.VolumePreprocess(mean, std, (2, 3, 4)), (len(mean), 2, 3, 4)),
        (xl.data.VectorPreprocess(mean, std), (5, len(mean))),
    ):
        values = torch.randn(shape, generator=rng)
        found = preprocess.restore(preprocess.normalise(values))
        torch.testing.assert_close(found, values, atol=1e-3, rtol=1e-3)
        assert preprocess.scaled([0.0] * len(mean), [1.0] * len(mean)).normalise(values).equal(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xl.data.SeriesPreprocess((), ()), "mean, std: expected one or more"),
        (lambda: xl.data.SeriesPreprocess((0.0,), (0.0,)), "std above 0"),
        (lambda: xl.data.VectorPreprocess((math.nan,), (1.0,)), "finite"),
        (lambda: xl.data.VectorPreprocess((0.0, 1.0), (1.0,)), "mean, std"),
        (lambda: xl.data.SeriesPreprocess((0.0,), (1.0,), length=-1), "length: expected steps"),
        (lambda: xl.data.SeriesPreprocess((0.0,), (1.0,), rate=-1.0), "rate: expected samples"),
        (lambda: xl.data.SeriesPreprocess((0.0,), (1.0,), names=("a", "b")), "names: expected 1 different"),
        (lambda: xl.data.VectorPreprocess((0.0,) * 2, (1.0,) * 2, names=("a", "a")), "names: expected 2 different"),
        (lambda: xl.data.SeriesPreprocess((0.0,), (1.0,), rate=8000.0, mel=MEL), "mel: expected mean and std of 2 bands"),
        (lambda: xl.data.SeriesPreprocess((0.0,) * 2, (1.0,) * 2, mel=MEL), "mel: .* and a rate"),
        (lambda: xl.data.VolumePreprocess((0.0,), (1.0,), (0, 2, 2)), "size: expected depth"),
        (lambda: xl.data.MelSpectrogram(bands=0), "bands: expected"),
        (lambda: xl.data.MelSpectrogram(hop_ms=0), "hop_ms, window_ms"),
        (lambda: xl.data.MelSpectrogram(low_hz=500, high_hz=400), "low_hz, high_hz"),
        (lambda: EXAMPLES[1].normalise(torch.zeros(2, 3)), r"expected \(...,1,T\), got \(2, 3\)"),
        (lambda: xl.data.VectorPreprocess((0.0,), (1.0,)).normalise([1.0]), "values: expected .* got list"),
        (lambda: xl.data.VectorPreprocess((0.0,), (1.0,)).normalise(torch.zeros(1, dtype=torch.bool)), "expected numbers"),
    ],
)
def test_what_does_not_fit(make, message):
    with pytest.raises(xl.errors.InputError, match=message):
        make()
