import torch

from exitlens.types.inputs import count_rows, draw_donors, draw_samples, replace_rows, split_rows, take_rows

TEXTS = {"input_ids": torch.arange(10).reshape(5, 2), "attention_mask": torch.ones(5, 2)}


def test_rows_are_split_in_order():
    parts = split_rows(TEXTS, 2)
    assert [count_rows(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), TEXTS["input_ids"])


def test_samples_are_drawn_without_repetition_and_the_same_each_time():
    rows = draw_samples(100, 30, seed=1)
    assert len(rows.unique()) == 30
    assert torch.equal(rows, draw_samples(100, 50, seed=1)[:30])
    assert draw_samples(4, 30).sort().values.tolist() == [0, 1, 2, 3]


def test_rows_are_taken_and_replaced():
    rows = torch.tensor([3, 0])
    assert take_rows(TEXTS, rows)["input_ids"].tolist() == [[6, 7], [0, 1]]
    changed = replace_rows(TEXTS, rows, {name: -value for name, value in take_rows(TEXTS, rows).items()})
    assert changed["input_ids"].tolist() == [[0, -1], [2, 3], [4, 5], [-6, -7], [8, 9]]
    assert TEXTS["input_ids"].tolist()[3] == [6, 7]


def test_every_row_of_a_share_has_donors_that_are_other_rows():
    rows, *donors = draw_donors(10, 0.7, 3)
    assert len(rows.unique()) == 7
    assert len(donors) == 3
    for rows_of_others in donors:
        assert (rows_of_others != rows).all()
        assert ((rows_of_others >= 0) & (rows_of_others < 10)).all()
    assert [len(part) for part in draw_donors(1, 0.7)] == [0, 0]
    assert draw_donors(2, 1.0)[1].sort().values.tolist() == [0, 1]
