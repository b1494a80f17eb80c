import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.io import write_json
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training import record


def make_conv():
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    return module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)


def test_checkpoint_restores_module_and_optimiser(tmp_path):
    """Also the moments' memory format, which PyTorch's fused kernel relies on and does not check."""

    def step(module, optimizer):
        optimizer.zero_grad()
        module(torch.arange(75.0).view(1, 3, 5, 5)).square().sum().backward()
        optimizer.step()

    module, optimizer = make_conv()
    step(module, optimizer)
    record.save_checkpoint(tmp_path / "c", module, optimizer, {"n": 1})
    other, other_optimizer = make_conv()
    assert record.load_checkpoint(tmp_path / "c", other, other_optimizer) == {"n": 1}
    step(module, optimizer)
    step(other, other_optimizer)
    assert torch.equal(module.weight, other.weight)


ROW = {"epoch": 2, "seconds": 1.234, "loss": {"total": 0.5}, "accuracy": [0.25, 0.75], "cc": [0.5], "val_loss": 1.5}


def test_an_epoch_as_a_line_and_in_the_log(tmp_path):
    assert record.format_epoch(ROW, 8) == "epoch 2/8: loss 0.500 | val accuracy 25.0 75.0 | map CC with final 0.50"
    assert "CC" not in record.format_epoch(ROW | {"cc": []}, 8)
    record.write_log(tmp_path / "log.csv", [ROW, ROW | {"epoch": 3}])
    names = "epoch,seconds,loss_total,val_loss,accuracy_exit0,accuracy_exit1,cc_exit0\n"
    assert (tmp_path / "log.csv").read_text() == f"{names}2,1.23,0.5,1.5,0.25,0.75,0.5\n3,1.23,0.5,1.5,0.25,0.75,0.5\n"


def test_only_its_own_launch_resumes_a_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    record.open_record(tmp_path, {}, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    (tmp_path / "settings.json").unlink()
    for run in ("abc", "none"):  # torchrun without an id calls it none: then its process counts
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
        record.open_record(tmp_path, {}, resume=False)
        (tmp_path / "settings.json").unlink()
        assert not record.is_restarted(tmp_path)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        assert record.is_restarted(tmp_path)
        assert not record.is_restarted(tmp_path / "other")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert not record.is_restarted(tmp_path)


def test_a_record_of_an_earlier_version_lacks_what_is_empty_now(tmp_path):
    now = {
        "settings": json.loads(json.dumps(asdict(TrainingSettings()))),
        "network": {"at": ["a"], "members": [], "end": ""},
    }
    write_json(tmp_path / "settings.json", now | {"network": {"at": ["a"]}})
    assert record.open_record(tmp_path, now, resume=True) == (False, "")
    write_json(tmp_path / "settings.json", now | {"network": {"at": ["a"]}})
    with pytest.raises(xl.errors.TrainingError, match=r"members was none, is now \['small'\]"):
        record.open_record(tmp_path, now | {"network": {"at": ["a"], "members": ["small"]}}, resume=True)
