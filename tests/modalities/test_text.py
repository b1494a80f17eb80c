import pytest
import torch

import exitlens as xl
from exitlens.modalities import TEXT
from exitlens.types.inputs import InputFormat
from tests.texts import LENGTH, make_texts

NAMES, INTEGERS = ("input_ids", "attention_mask"), (torch.int64, torch.int64)
FORMAT = InputFormat(NAMES, (LENGTH,), True, (40, None), 1, INTEGERS)


def test_deleting_tokens_masks_them_out():
    texts = make_texts()
    cells = torch.zeros(12, LENGTH, dtype=torch.bool)
    cells[:, 1] = True
    deleted, inserted = TEXT.delete(texts, cells), TEXT.insert(texts, cells)
    assert deleted["attention_mask"][0].tolist() == [1, 0, *[1] * 8]
    assert deleted["attention_mask"][1].tolist() == [1, 1, *[0] * 8]  # it had one token: left whole
    assert inserted["attention_mask"][0].tolist() == [1, 1, *[0] * 8]
    assert torch.equal(deleted["input_ids"], texts["input_ids"])


def test_exchanged_tokens_come_from_the_donor_but_not_its_ends():
    def make(*ids):
        row = torch.tensor([[*ids, *[0] * (8 - len(ids))]])
        return {"input_ids": row, "attention_mask": (row > 0).long()}

    text, short, empty = make(1, 11, 12, 13, 14, 2), make(1, 21, 22, 2), make(1)
    every = torch.ones(1, 8, dtype=torch.bool)
    exchanged = TEXT.exchange(text, short, every)
    assert exchanged["input_ids"].tolist() == [[1, 21, 22, 21, 22, 2, 0, 0]]
    assert torch.equal(exchanged["attention_mask"], text["attention_mask"])
    assert torch.equal(TEXT.exchange(text, empty, every)["input_ids"], text["input_ids"])  # it has nothing to give
    chosen = TEXT.choose_region(torch.tensor([[0.0, 0.1, 0.2, 0.4, 0.2, 0.1, 0, 0]]), text, 0.2)
    assert chosen.nonzero().tolist() == [[0, 3]]  # one of the five that the map lies on
    assert TEXT.exchange(text, short, chosen)["input_ids"].tolist() == [[1, 11, 12, 21, 14, 2, 0, 0]]


def test_tokens_are_painted_over_with_the_nearest_between_the_ends():
    ids = torch.tensor([[1, 11, 12, 13, 14, 2, 0], [1, 21, 22, 2, 0, 0, 0]])
    text = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    cells = torch.zeros(2, 7, dtype=torch.bool)
    cells[0, 1:3] = cells[1] = True
    assert TEXT.paint_over(text, cells)["input_ids"].tolist() == [[1, 13, 13, 13, 14, 2, 0], ids[1].tolist()]
    assert TEXT.view_grid(text) is None


def test_without_a_mask_nothing_can_be_deleted():
    TEXT.check_deletion(FORMAT)
    with pytest.raises(xl.errors.InputError, match="attention_mask"):
        TEXT.check_deletion(InputFormat((), (LENGTH,), dtypes=(torch.int64,)))


def test_what_is_a_text():
    assert TEXT.fits(NAMES, (LENGTH,), INTEGERS)
    assert TEXT.fits((), (LENGTH,), (torch.int32,))
    assert not TEXT.fits((), (LENGTH,), ())  # floats
    assert not TEXT.fits((), (3, LENGTH), (torch.int64,))


def test_tokens_and_masks_take_the_dtypes_of_the_trace():
    texts, masked = make_texts(), InputFormat(NAMES, (LENGTH,), True, (40, None), 1, (torch.int64, torch.bool))
    for dtype in (torch.int64, torch.int32):
        ids, mask = TEXT.check({name: t.to(dtype) for name, t in texts.items()}, masked, "texts", torch.zeros(1))
        assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
        assert torch.equal(ids, texts["input_ids"])
        assert torch.equal(mask, texts["attention_mask"].bool())


def test_a_text_is_encoded_and_its_tokens_named_without_padding():
    pytest.importorskip("tokenizers")
    preprocess = xl.data.TextPreprocess(xl.data.word_tokenizer(["a good lamp"]), LENGTH)
    found = TEXT.read("a lamp", preprocess)
    sample = [t[0] for t in found.values()]
    assert TEXT.name_locations(sample, FORMAT, preprocess) == ("[CLS]", "a", "lamp", "[SEP]")
    assert TEXT.name_locations(sample, FORMAT, None) == ()
