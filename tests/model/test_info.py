import json

import pytest
import torch

import exitlens as xl
from exitlens.modalities import IMAGE, TEXT
from exitlens.model.info import NetworkInfo

IMAGES = NetworkInfo(("a",), 4, "head", (3, 8, 9), preprocess=xl.Preprocess((8, 9)))
TEXTS = NetworkInfo(("a",), 4, "head", (7,), inputs=("input_ids", "attention_mask"), dtypes=("int32", "bool"))


def _round_trip(info):
    return NetworkInfo.from_dict(json.loads(json.dumps(info.to_dict())))


def test_round_trips():
    assert _round_trip(IMAGES) == IMAGES
    assert _round_trip(TEXTS) == TEXTS


def test_text_preprocessing_is_read_back():
    pytest.importorskip("tokenizers")
    info = NetworkInfo(("a",), 4, "head", (7,), dtypes=("int64",))
    info = NetworkInfo(**vars(info) | {"preprocess": xl.TextPreprocess(xl.word_tokenizer(["a b"]), 7)})
    assert _round_trip(info) == info


def test_the_modality_follows_from_what_is_recorded():
    assert (IMAGES.modality, IMAGES.channels) == (IMAGE, 3)
    assert TEXTS.modality is TEXT


def test_examples():
    image = IMAGES.example(torch.zeros(1, dtype=torch.float64))
    assert (image.shape, image.dtype, image.any()) == ((1, 3, 8, 9), torch.float64, False)
    text = TEXTS.example(torch.zeros(1))
    assert text["input_ids"].dtype == torch.int32
    assert text["attention_mask"].dtype == torch.bool
    assert text["attention_mask"].all()
    alone = NetworkInfo(("a",), 4, "head", (7,), dtypes=("int64",)).example(torch.zeros(1))
    assert alone.tolist() == [[0] * 7]
