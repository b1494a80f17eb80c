from benchmarks.processes.promises import list_promises


def test_every_part_has_promises():
    found = {
        "seconds-small": {"ratio": [1.2, 0.9, 1.3]},
        "weights": {"double": 1e-6, "single": {"close": 0.98}, "from_run_to_run": 0.0},
        "kill-1": {"same": 1.0},
        "hang-0": {"seconds": 60.0, "timeout": 5, "said": 1.0},
    }
    promises = [promise for name, run in found.items() for promise in list_promises(name, run)]
    assert [promise.is_kept for promise in promises] == [False, True, False, True, True, False, True]
    assert len({promise.key for promise in promises}) == len(promises)
