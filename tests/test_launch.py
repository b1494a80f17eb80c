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


def test_waiting_threads_sleep_unless_the_user_says_how_they_wait(monkeypatch):
    for name in ("OMP_WAIT_POLICY", *launch.WAITING):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    launch.let_threads_sleep()
    assert not launch.WAITING.keys() & os.environ.keys()
    monkeypatch.delenv("OMP_WAIT_POLICY")
    for name, value in launch.WAITING.items():
        monkeypatch.setenv(name, value)  # so that they are taken back afterwards
        monkeypatch.delenv(name)
    launch.let_threads_sleep()
    assert {name: os.environ[name] for name in launch.WAITING} == launch.WAITING
