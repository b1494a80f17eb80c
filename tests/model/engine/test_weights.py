"""Changes of weights, as far as they are seen."""

import torch
from torch import nn

from exitlens.model.engine.weights import WeightsRecord


def make_record() -> tuple[nn.Sequential, WeightsRecord]:
    part = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    return part, WeightsRecord(nn.ModuleList([part]), nn.ModuleList())


def step(part: nn.Module, **options: bool) -> None:
    for parameter in part.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(part.parameters(), lr=0.1, **options).step()


def replace_data(part: nn.Sequential) -> None:
    part[0].weight.data = part[0].weight.data + 1


CHANGES = {
    "in place": lambda part: part[1].running_mean.add_(1),
    "by an optimizer": lambda part: step(part),
    "by a fused optimizer": lambda part: step(part, fused=True),  # counts no version
    "through data": lambda part: part[0].weight.data.mul_(2),
    "other data": replace_data,
    "another parameter": lambda part: setattr(part[0], "bias", nn.Parameter(torch.ones(3))),
    "no parameter any more": lambda part: setattr(part[0], "bias", None),
    "another module": lambda part: part.__setitem__(0, nn.Conv2d(2, 3, 3)),
    "loaded": lambda part: part.load_state_dict({name: value + 1 for name, value in part.state_dict().items()}),
    "to not a number": lambda part: part[1].running_var.data.fill_(float("nan")),
}


def test_changes_are_seen():
    for change_name, change in CHANGES.items():
        part, record = make_record()
        before, name = record.current(), record.fingerprint
        change(part)
        after = record.current()
        assert after is not before, change_name
        assert record.fingerprint not in ("", name), change_name
        assert record.fingerprint == record.compute_fingerprint(), change_name
        assert record.current() is after, change_name


def test_without_a_change_it_stays_the_same():
    part, record = make_record()
    part[1].running_var.fill_(float("nan"))  # not equal to itself
    before = record.current()
    part(torch.zeros(2, 2, 5, 5)).sum()
    assert record.current() is not before  # statistics of a batch
    before = record.current()
    part.eval()(torch.zeros(2, 2, 5, 5))
    assert record.current() is before
    record.forget()
    assert record.current() is not before


def test_other_kinds_of_tensors():
    part = nn.Module()
    for dtype in (torch.bfloat16, torch.complex64, torch.bool, torch.int64, torch.float64):
        part.register_buffer(str(dtype).replace(".", "_"), torch.ones(2, 3).to(dtype))
    part.register_buffer("none", torch.empty(0))
    part.register_buffer("number", torch.tensor(2.0))
    record = WeightsRecord(nn.ModuleList([part]), nn.ModuleList())
    before = record.current()
    assert record.current() is before
    part.number.data.add_(1)
    assert record.current() is not before
