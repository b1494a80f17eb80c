import json
from dataclasses import replace

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


def test_offsets_are_recorded_where_there_are_any():
    info = replace(IMAGES, map_offsets=((-0.25, 0.0), (-0.5, 0.5)), feature_offsets=((-0.25, 0.0), (0.0, 1.0)))
    assert _round_trip(info) == info
    assert not {"map_offsets", "feature_offsets"} & set(IMAGES.to_dict())  # an older exitlens reads this


def test_maps_are_placed_by_the_exits_own_offset():
    x = torch.tensor([[[0.0, 1.0, 3.0]]])
    info = replace(IMAGES, map_offsets=((0.0, 0.0), (0.0, -0.5)), feature_offsets=((0.0, 1.0), (0.0, 0.0)))
    assert info.place(0, x) is x
    torch.testing.assert_close(info.place(1, x), torch.tensor([[[0.5, 2.0, 1.5]]]))
    torch.testing.assert_close(info.place_relevance(0, x), torch.tensor([[[0.0, 0.0, 4.0]]]))
    assert IMAGES.place(1, x) is x


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
