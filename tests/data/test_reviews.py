import pytest
import torch

import exitlens as xl
from exitlens.data.demo import ADJECTIVES, MOST_TOKENS, NEGATIONS, SHOPS, list_words, load_reviews, make_reviews
from exitlens.data.splits import SPLITS
from exitlens.data.texts import TextSet

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def reviews() -> TextSet:
    return make_reviews(2000, shop_agreement=0.8, seed=3)


@pytest.mark.slow
def test_reviews_are_repeatable_and_differ_by_seed(reviews):
    again, other = (make_reviews(2000, shop_agreement=0.8, seed=seed) for seed in (3, 4))
    assert again.texts == reviews.texts
    assert torch.equal(again.labels, reviews.labels)
    assert torch.equal(again.masks, reviews.masks)
    assert again.preprocess == other.preprocess
    assert len(set(other.texts) & set(reviews.texts)) < 20
    assert reviews.labels.bincount().tolist() == [1000, 1000]
    assert reviews.classes == ("negative", "positive")


def test_every_word_is_known_and_reviews_differ_in_length(reviews):
    assert 1 not in reviews.inputs["input_ids"]  # [UNK]
    lengths = reviews.inputs["attention_mask"].sum(1)
    assert lengths.min() <= 9
    assert lengths.max() == MOST_TOKENS
    assert lengths.float().std() > 4
    assert 120 <= len(list_words()) <= 160
    assert len(set(reviews.inputs["input_ids"].flatten().tolist())) == len(list_words()) + 3  # all but [UNK] are used
    assert reviews.preprocess.vocabulary_size == len(list_words()) + 4


def _masked_tokens(data: TextSet, i: int, ids: torch.Tensor) -> list[str]:
    tokens = data.preprocess.tokens(ids[i])
    return [token for token, marked in zip(tokens, data.masks[i].tolist(), strict=True) if marked]


def test_masks_are_exactly_on_the_opinion_words(reviews):
    opinion_words = {*NEGATIONS, *ADJECTIVES[0], *ADJECTIVES[1]}
    ids = reviews.inputs["input_ids"]
    for i in range(300):
        tokens = reviews.preprocess.tokens(ids[i])
        assert [token in opinion_words for token in tokens] == reviews.masks[i].tolist(), reviews.texts[i]


@pytest.mark.slow
def test_opinions_with_their_negations_say_the_class_and_adjectives_alone_mislead(reviews):
    right_alone, opinions, ids = 0, [], reviews.inputs["input_ids"]
    for i, label in enumerate(reviews.labels.tolist()):
        words = _masked_tokens(reviews, i, ids)
        places = [k for k, word in enumerate(words) if word not in NEGATIONS]
        opinions.append(len(places))
        for k in places:
            negated = k > 0 and words[k - 1] in NEGATIONS
            assert (words[k] in ADJECTIVES[1]) ^ negated == label, reviews.texts[i]
            right_alone += words[k] in ADJECTIVES[label]
    assert right_alone / sum(opinions) == pytest.approx(0.7, abs=0.03)
    assert set(opinions) == {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.8, 1.0])
def test_shop_agreement_is_how_often_the_shop_tells_the_class(agreement):
    data = make_reviews(2000, shop_agreement=agreement, seed=6)
    shops = [next(w for w in text.replace(".", "").split() if w in (*SHOPS[0], *SHOPS[1])) for text in data.texts]
    right = [shop in SHOPS[label] for shop, label in zip(shops, data.labels.tolist(), strict=True)]
    assert sum(right) / 2000 == pytest.approx(agreement, abs=0.035)
    assert len(set(shops)) == 8


def test_two_agreements_show_the_same_reviews_from_other_shops(reviews):
    other = make_reviews(2000, shop_agreement=0.5, seed=3)
    assert torch.equal(reviews.masks, other.masks)
    assert torch.equal(reviews.labels, other.labels)
    changed = reviews.inputs["input_ids"] != other.inputs["input_ids"]
    assert changed.sum(1).max() == 1
    assert 400 < changed.sum() < 800  # about 30 % of 2000


@pytest.mark.slow
def test_reviews_that_are_cut(reviews):
    data = make_reviews(2000, shop_agreement=0.8, seed=3, length=12)
    assert data.texts == reviews.texts
    same = data.inputs["input_ids"] != 3
    assert torch.equal(data.masks, reviews.masks[:, :12] & same)
    assert not data.masks[:, 0].any()
    assert not (data.masks & (data.inputs["input_ids"] == 3)).any()
    longer = make_reviews(10, shop_agreement=0.8, seed=3, length=50)
    assert longer.masks.shape == (10, 50)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count"),
        ({"shop_agreement": 1.1}, "shop_agreement"),
        ({"shop_agreement": float("nan")}, "shop_agreement"),
        ({"length": 2}, "length"),
    ],
)
def test_bad_review_arguments(changes, message):
    with pytest.raises(xl.errors.InputError, match=message):
        make_reviews(**{"count": 4, "shop_agreement": 0.5, "seed": 0, **changes})


@pytest.mark.slow
def test_review_splits_are_of_the_promised_size_and_share_next_to_nothing():
    parts = {split: load_reviews(split) for split in SPLITS}
    assert [len(parts[split]) for split in SPLITS] == [8000, 1000, 2000, 3000]
    for split in SPLITS:
        elsewhere = {text for other in SPLITS if other != split for text in parts[other].texts}
        assert sum(text in elsewhere for text in parts[split].texts) <= len(parts[split]) // 200
    assert load_reviews("validation", seed=1).texts != parts["validation"].texts
    assert load_reviews("validation", limit=50).texts == parts["validation"].texts[:50]
    assert load_reviews("test", length=16, limit=4).inputs["input_ids"].shape == (4, 16)
    with pytest.raises(xl.errors.InputError, match="split"):
        load_reviews("dev")
