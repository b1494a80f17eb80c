import json
import pickle
import sys

import pytest
import torch
from torch.utils.data import DataLoader

import exitlens as xl
from exitlens.data.texts import TextSet, read_texts, word_tokenizer
from exitlens.types.preprocessing import TextPreprocess
from tests.data.conftest import write

pytest.importorskip("tokenizers")

TEXTS = ["A good lamp.", "a BAD lamp!", "bad, bad"]


@pytest.fixture
def tiny_texts() -> TextSet:
    preprocess = TextPreprocess(word_tokenizer(TEXTS), 6)
    masks = torch.zeros(3, 6, dtype=torch.bool)
    masks[0, 2] = masks[1, 2] = masks[2, 1] = True
    return TextSet(TEXTS, torch.tensor([1, 0, 0]), ("negative", "positive"), preprocess, masks)


def test_a_word_tokenizer_by_hand(tiny_texts):
    vocabulary = json.loads(tiny_texts.preprocess.tokenizer)["model"]["vocab"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "bad", "a", "lamp", "!", ",", ".", "good"]  # 3, 2, 2, then once each
    assert sorted(vocabulary, key=vocabulary.get) == words
    assert tiny_texts.inputs["input_ids"].tolist() == [[2, 5, 10, 6, 9, 3], [2, 5, 4, 6, 7, 3], [2, 4, 8, 4, 3, 0]]
    assert tiny_texts.inputs["attention_mask"].tolist() == [[1] * 6, [1] * 6, [1, 1, 1, 1, 1, 0]]


def test_only_the_most_frequent_words_are_known():
    preprocess = TextPreprocess(word_tokenizer(TEXTS, max_words=2), 8)
    assert preprocess.vocabulary_size == 6
    assert preprocess.tokens(preprocess.encode(["bad lamp a"])["input_ids"][0])[1:4] == ["bad", "[UNK]", "a"]


def test_nobody_can_write_special_tokens_into_a_text():
    preprocess = TextPreprocess(word_tokenizer(["pad sep [ ]"]), 9)
    tokens = preprocess.tokens(preprocess.encode(["[PAD][SEP]"])["input_ids"][0])
    assert tokens == ["[CLS]", "[", "pad", "]", "[", "sep", "]", "[SEP]", "[PAD]"]


def test_the_same_texts_give_the_same_tokenizer_in_any_order():
    assert word_tokenizer(TEXTS) == word_tokenizer(iter(TEXTS)) == word_tokenizer(reversed(TEXTS))


@pytest.mark.parametrize(
    ("texts", "count", "message"),
    [
        ("a lamp", 9, "several texts"),
        (TEXTS, 0, "1 word or more"),
        ([], 9, "at least one word"),
        ([" "], 9, "at least one word"),
        ([3], 9, "texts: expected str"),
        (["\ud800"], 9, "Unicode"),
    ],
)
def test_texts_that_make_no_tokenizer(texts, count, message):
    with pytest.raises(xl.errors.InputError, match=message):
        word_tokenizer(texts, count)


def test_a_word_tokenizer_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(xl.errors.MissingExtraError, match=r"exitlens\[hf\]"):
        word_tokenizer(TEXTS)


def test_text_set_items_subsets_and_batches(tiny_texts):
    assert len(tiny_texts) == 3
    item, label = tiny_texts[1]
    assert item["input_ids"].tolist() == [2, 5, 4, 6, 7, 3]
    assert label == 0
    part = tiny_texts.subset(torch.tensor([2, 0]))
    assert part.texts == ("bad, bad", "A good lamp.")
    assert part.labels.tolist() == [0, 1]
    assert part.classes == tiny_texts.classes
    assert torch.equal(part.masks, tiny_texts.masks[[2, 0]])
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(part.inputs[name], tiny_texts.inputs[name][[2, 0]])
    assert tiny_texts.first(2).texts == tuple(TEXTS[:2])
    assert (len(tiny_texts.first(9)), len(tiny_texts.subset(torch.tensor([], dtype=torch.int64)))) == (3, 0)
    assert TextSet(TEXTS, torch.zeros(3, dtype=torch.int64), ("a",), tiny_texts.preprocess).first(2).masks is None


def test_text_sets_can_be_pickled_and_read_by_workers(tiny_texts):
    again = pickle.loads(pickle.dumps(tiny_texts))
    assert again.texts == tiny_texts.texts
    assert again.preprocess == tiny_texts.preprocess
    assert torch.equal(again.inputs["input_ids"], tiny_texts.inputs["input_ids"])
    assert torch.equal(again.masks, tiny_texts.masks)
    batches = list(DataLoader(tiny_texts, 2, num_workers=1))
    for name, values in tiny_texts.inputs.items():
        assert torch.equal(torch.cat([inputs[name] for inputs, _ in batches]), values)
    assert torch.cat([labels for _, labels in batches]).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": []}, "one text or more"),
        ({"texts": "abc"}, "expected a list"),
        ({"texts": iter(TEXTS)}, "expected a list"),
        ({"texts": TEXTS[:2]}, r"labels: expected \(2,\) integers, got \(3,\)"),
        ({"labels": torch.tensor([[0], [1], [0]])}, "integers"),
        ({"labels": torch.tensor([0, 1, -1])}, r"\[0, 2\)"),
        ({"masks": torch.zeros(3, 5, dtype=torch.bool)}, r"masks: expected \(3, 6\) bool"),
        ({"masks": torch.zeros(3, 6)}, "masks"),
        ({"preprocess": xl.data.Preprocess((8, 8))}, "preprocess: expected TextPreprocess"),
    ],
)
def test_bad_text_sets(tiny_texts, changes, message):
    good = {"texts": TEXTS, "labels": torch.tensor([0, 1, 0]), "classes": ("a", "b"), "preprocess": tiny_texts.preprocess}
    with pytest.raises(xl.errors.InputError, match=message):
        TextSet(**{**good, **changes})


CSV = 'id,text,label\n1,"good, very good",positive\n2,bad,negative\n\n3,"two\nlines",negative\n'
JSONL = '{"text": "good, very good", "label": "positive"}\n\n{"label": "negative", "text": "bad"}\n'


def test_read_texts(tmp_path):
    texts, labels, classes = read_texts(write(tmp_path, "a.csv", CSV))
    assert texts == ["good, very good", "bad", "two\nlines"]
    assert labels.tolist() == [1, 0, 0]
    assert classes == ("negative", "positive")
    _, labels, classes = read_texts(str(tmp_path / "a.csv"), ("positive", "neutral", "negative"))
    assert labels.tolist() == [0, 2, 2]
    assert classes == ("positive", "neutral", "negative")
    texts, labels, classes = read_texts(write(tmp_path, "a.JSONL", JSONL))
    assert texts == ["good, very good", "bad"]
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.csv", b"\xef\xbb\xbftext,label\nna\xc3\xafve,a\nx,b\n"),
        ("dos.csv", b"text,label\r\nna\xc3\xafve,a\r\nx,b\r\n"),
        ("mac.csv", b"text,label\rna\xc3\xafve,a\rx,b"),
        ("spaces.csv", b" text , label\n na\xc3\xafve , a\nx, b\n"),
        ("bom.jsonl", b'\xef\xbb\xbf{"text":"na\xc3\xafve","label":"a"}\r\n{"text":"x","label":"b"}'),
        ("escape.jsonl", rb'{"text":"na\u00efve","label":"a"}' + b'\n{"text":"x","label":"b","more":[1]}\n\n'),
    ],
)
def test_files_as_other_programs_write_them(tmp_path, name, content):
    texts, labels, classes = read_texts(write(tmp_path, name, content))
    assert (texts, labels.tolist(), classes) == (["naïve", "x"], [0, 1], ("a", "b"))


def test_line_separators_inside_a_json_text_do_not_break_it(tmp_path):
    texts, _, _ = read_texts(write(tmp_path, "a.jsonl", '{"text":"a\u2028b","label":1}\n{"text":"c","label":0}'))
    assert texts == ["a\u2028b", "c"]


GOOD_CSV, GOOD_JSON = "text,label\na,x\nb,y\n", '{"text":"a","label":"x"}\n{"text":"b","label":"y"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", GOOD_CSV + '" ",x\n', ":4: text: expected a string that is not empty"),
        ("a.csv", GOOD_CSV + "c,\n", ":4: label"),
        ("a.csv", GOOD_CSV + "c, very c,x\n", ":4: 3 fields, the first line has 2"),
        ("a.csv", GOOD_CSV + "c\n", ":4: 1 fields"),
        ("a.csv", GOOD_CSV.encode() + b"na\xefve,x\n", ":4: text: has bytes that are not UTF-8"),
        ("a.csv", GOOD_CSV.encode() + b"c,\xff\n", ":4: label: has bytes"),
        ("a.jsonl", GOOD_JSON + '{"text": "c"\n', ":3: not JSON"),
        ("a.jsonl", GOOD_JSON + "[" * 100_000, ":3: not JSON"),
        ("a.jsonl", GOOD_JSON + '{"text": "c", "label": ' + "9" * 5000 + "}", ":3: not JSON"),
        ("a.jsonl", GOOD_JSON + '["c", "x"]\n', ":3: expected a JSON object, got list"),
        ("a.jsonl", GOOD_JSON + '{"text": "c"}\n', ":3: label: .* got None"),
        ("a.jsonl", GOOD_JSON + '{"text": 3, "label": "x"}\n', ":3: text: .* got 3"),
        ("a.jsonl", GOOD_JSON + '{"text": "c", "label": true}\n', ":3: label: .* got True"),
        ("a.jsonl", GOOD_JSON + '{"text": "\\ud800", "label": "x"}\n', ":3: text: has bytes"),
        ("a.jsonl", GOOD_JSON.encode() + b'{"text": "\xff", "label": "x"}\n', ":3: text: has bytes"),
    ],
)
def test_bad_rows_are_named_and_left_out_only_when_asked(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(xl.errors.DataError, match=message) as error:
        read_texts(path)
    assert "1 of 3 rows cannot be read" in str(error.value)
    assert "skip_bad" in str(error.value)
    assert len(str(error.value)) < 1000
    texts, labels, _ = read_texts(path, skip_bad=True)
    assert texts == ["a", "b"]
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text;label\na;x\n", r"no column 'text', it has \['text;label'\]"),
        ("a.csv", "text,class\na,x\n", "no column 'label'"),
        ("a.csv", "text,label\na,x\nb,y\n".encode("utf-16"), "no column"),
        ("a.csv", 'text,label\na,x\n"b,y\nc,x\n', "broken CSV"),  # the quote is never closed
        ("a.csv", "text,label\na,x\n" + "b" * 200_000 + ",y\n", ":3: broken CSV"),
        ("a.csv", "", "holds no rows"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "text,label\na,x\nb,x\n", r"1 class\(es\), need 2"),
        ("a.csv", "text,label\n,x\n,y\n", "2 of 2 rows cannot be read"),
        ("a.jsonl", "\n", "holds no rows"),
        ("a.txt", "a\nb\n", "expected .csv or .jsonl"),
        ("a", "a\nb\n", "expected .csv or .jsonl"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_files_that_are_no_labelled_texts(tmp_path, name, content, message, skip_bad):
    with pytest.raises(xl.errors.DataError, match=message):
        read_texts(write(tmp_path, name, content), skip_bad=skip_bad)


def test_a_missing_file_or_a_folder(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name in ("none.csv", "none.jsonl", "folder.csv"):
        with pytest.raises(xl.errors.DataError, match="cannot be read"):
            read_texts(tmp_path / name)


def test_an_unknown_class_is_named_with_the_nearest(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\na,positive\nb,postive\n")
    with pytest.raises(xl.errors.DataError, match=r"the class 'postive', the network does not. Did you mean 'positive'"):
        read_texts(path, ("negative", "positive"))


def test_tokens_are_those_of_the_tokenizer(monkeypatch):
    monkeypatch.setattr("exitlens.data.texts.ENCODED_AT_ONCE", 2)
    texts = ["a lamp", "one two three four five six", "", "a", "lamp two"]
    preprocess = xl.data.TextPreprocess(xl.data.word_tokenizer(texts), 5)
    data, expected = TextSet(texts, torch.arange(5) % 2, ("a", "b"), preprocess), preprocess.encode(texts)
    assert data._ids.dtype == torch.int32
    assert data._ids.tolist() == expected["input_ids"][expected["attention_mask"] == 1].tolist()  # no padding is kept
    for rows in (torch.arange(5), torch.tensor([4, 1, 1]), torch.tensor([], dtype=torch.int64)):
        for name, values in data.subset(rows).inputs.items():
            assert torch.equal(values, expected[name][rows])
            assert values.dtype == torch.int64
    assert torch.equal(data.subset(torch.tensor([4, 3, 2]))[1][0]["input_ids"], expected["input_ids"][3])


def test_padding_is_what_the_tokenizer_pads_with():
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[PAD]": 1, "[UNK]": 2}, unk_token="[UNK]"))
    preprocess = xl.data.TextPreprocess(words.to_str(), 3)
    data = TextSet(["a", "b"], torch.tensor([0, 1]), ("a", "b"), preprocess)
    assert data.inputs["input_ids"].tolist() == [[0, 1, 1], [2, 1, 1]]
