import os

from exitlens import launch

NAMES = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE")


def test_a_process_that_torchrun_did_not_start(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    found = (launch.is_launched(), launch.read_rank(), launch.count_restarts(), launch.count_local(), launch.name_launch())
    assert found == (False, 0, 0, 1, "")
    monkeypatch.setenv("WORLD_SIZE", "4")  # of another launcher
    monkeypatch.setenv("RANK", "3")
    assert (launch.is_launched(), launch.read_rank()) == (False, 0)


def test_a_process_that_torchrun_started(monkeypatch):
    for name, value in zip(NAMES, ("job 7", "2", "4", "3", "2"), strict=True):
        monkeypatch.setenv(name, value)
    found = (launch.is_launched(), launch.read_rank(), launch.count_restarts(), launch.count_local(), launch.name_launch())
    assert found == (True, 3, 2, 2, "job 7")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert str(os.getppid()) in launch.name_launch()
