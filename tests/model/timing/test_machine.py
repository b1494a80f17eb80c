from exitlens.model.timing.machine import describe_machine


def test_a_machine_has_a_name_and_threads():
    found = describe_machine(2)
    assert found["threads"] == 2
    assert found["processor"]
    assert describe_machine(0)["threads"] >= 1
