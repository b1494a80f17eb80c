"""The simulation against what is known in closed form, and the directions that it has to show."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.serving.scaling import count_machines, find_throughput, make_pools, make_replicas, share_out, simulate
from benchmarks.serving.simulate import Machine, Network, Policy, Simulation, interpolate

ONE = Network([{1: 2.0}], [1.0])
ALONE = Policy(max_batch=1, delay=0.0)
CASCADE = Network([{1: 0.5, 8: 2.0}, {1: 0.5, 8: 2.0}, {1: 1.0, 8: 4.0}], [0.5, 0.3, 0.2])
GPU = Network([{1: 1.0, 64: 1.2}, {1: 1.0, 64: 1.2}, {1: 2.0, 64: 2.4}], [0.6, 0.3, 0.1])  # time hardly grows with the batch


def test_times_are_linear_between_and_beyond_the_measured_ones():
    table = {1: 1.0, 4: 2.5, 8: 6.5}
    assert [interpolate(table, size) for size in (1, 2, 4, 6, 8, 10)] == pytest.approx([1.0, 1.5, 2.5, 4.5, 6.5, 8.5])
    assert interpolate({2: 3.0}, 4) == 6.0
    assert interpolate({2: 3.0}, 1) == 3.0
    assert CASCADE.reach() == pytest.approx([1.0, 0.5, 0.2])
    assert CASCADE.work(8) == pytest.approx([0.25e-3, 0.125e-3, 0.1e-3])


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_one_server_waits_as_pollaczek_and_khinchin_say(load):
    found = simulate(ONE, [Machine([0], 1)], ALONE, [(load / 0.002, 240.0 if load < 0.9 else 320.0)], warmup=5.0)
    expected = 0.002 * (1 + load / (2 * (1 - load)))
    assert found.latency[found.counts].mean() == pytest.approx(expected, rel=0.06)
    assert found.utilisation[0] == pytest.approx(load, rel=0.03)
    assert found.latency.min() >= 0.002 - 1e-9


def test_a_single_stage_saturates_at_its_speed():
    for machines, most in (([Machine([0], 1)], 500), ([Machine([0], 3)], 1500), ([Machine([0], 1)] * 3, 1500)):
        found = simulate(ONE, machines, ALONE, [(2.0 * most, 5.0)])
        assert found.summary()["rate"] == pytest.approx(most, rel=0.01)
        assert found.utilisation == pytest.approx(1.0, abs=0.01)
    batched = simulate(replace(ONE, ms=[{1: 2.0, 8: 4.0}]), [Machine([0], 1)], Policy(8, 0.001), [(4000.0, 5.0)])
    assert batched.summary()["rate"] == pytest.approx(2000, rel=0.01)
    assert batched.batches == pytest.approx([8.0], abs=0.05)


@pytest.mark.parametrize("design", [make_replicas, make_pools])
def test_every_sample_is_answered_once_after_all_its_stages(design):
    policy = Policy(8, 0.001, hop=0.0005)
    machines = design(CASCADE, 2, 2)
    run = Simulation(CASCADE, machines, policy)
    found = run.run(np.sort(np.random.default_rng(1).uniform(0, 5, 8000)))
    assert len(found.latency) == 8000
    assert np.bincount(found.exits) / 8000 == pytest.approx([0.5, 0.3, 0.2], abs=0.02)
    hops = 0.0005 if design is make_pools else 0.0
    for exit_, least in enumerate((0.0005, 0.001, 0.002)):
        assert found.latency[found.exits == exit_].min() >= least + exit_ * hops - 1e-9
    assert run.sizes == [8000, int((found.exits >= 1).sum()), int((found.exits >= 2).sum())]
    assert not any(any(station.queues) or station.waiting for station in run.stations)
    spent = sum(one.busy for one in run.stations)
    processors = np.array([one.processors for one in machines])
    assert (found.utilisation * processors).sum() * found.seconds == pytest.approx(spent)
    assert spent <= sum(runs * table[8] for runs, table in zip(run.runs, run.times, strict=True))
    assert json.loads(json.dumps(found.summary()))["p99 exit 2"] > 1.0


def test_the_same_seed_gives_the_same():
    first, second, other = (
        simulate(CASCADE, make_replicas(CASCADE, 2, 2), Policy(), [(500.0, 2.0)], seed=s) for s in (1, 1, 2)
    )
    assert (first.latency == second.latency).all()
    assert len(first.latency) != len(other.latency) or (first.latency != other.latency).any()


def test_a_lone_sample_waits_for_the_delay_and_a_full_batch_does_not():
    run = Simulation(ONE, [Machine([0], 1)], Policy(4, 0.003))
    found = run.run(np.array([0.0, 1.0, 1.0, 1.0, 1.0]))
    assert found.latency == pytest.approx([0.005, 0.008, 0.008, 0.008, 0.008])
    assert run.runs == [2]


def test_what_stays_goes_on_at_once_where_nobody_else_waits_and_travels_where_the_next_stage_is_elsewhere():
    network = Network([{1: 1.0}, {1: 2.0}], [0.0, 1.0], crossing=[1e6, 0.0])
    policy = Policy(1, 0.0, hop=0.004, bandwidth=1e9)
    here, there = (
        Simulation(network, machines, policy).run(np.zeros(1))
        for machines in ([Machine([0, 1], 1)], [Machine([0], 1), Machine([1], 1)])
    )
    assert here.latency == pytest.approx([0.003])
    assert there.latency == pytest.approx([0.003 + 0.004 + 0.001])
    late = Simulation(network, [Machine([0, 1], 1)], Policy(2, 0.004, patience=0.005, eager=False)).run(np.zeros(1))
    assert late.latency == pytest.approx([0.012])
    busy = Simulation(network, [Machine([0], 1), Machine([1], 1)], replace(policy, hop_cpu=0.01)).run(np.zeros(1))
    assert busy.latency == pytest.approx([0.018])


def test_weights_that_do_not_fit_cost_a_machine_that_holds_all_of_them():
    network = replace(Network([{1: 1.0}, {1: 1.0}], [0.5, 0.5]), load_ms=[5.0, 5.0])
    whole, parted = (
        simulate(network, design(network, 2, 1), ALONE, [(100.0, 20.0)]) for design in (make_replicas, make_pools)
    )
    assert whole.batches == parted.batches == [1.0, 1.0]
    assert whole.utilisation.sum() > 2 * parted.utilisation.sum()


def test_choosing_among_two_shortens_the_tail():
    one, two = (simulate(ONE, [Machine([0], 1)] * 10, replace(ALONE, choices=n), [(4000.0, 10.0)]) for n in (1, 2))
    assert two.p99 < 0.6 * one.p99


def test_pools_and_patience_gather_larger_batches_of_what_stays():
    eager = Policy(64, 0.002)
    cases = ((make_replicas, eager), (make_replicas, replace(eager, patience=0.01, eager=False)), (make_pools, eager))
    whole, patient, parted = (simulate(GPU, design(GPU, 12, 1), own, [(20_000.0, 0.5)]) for design, own in cases)
    assert parted.batches[2] > 1.5 * whole.batches[2]
    assert patient.batches[2] > 1.5 * whole.batches[2]


def test_processors_go_where_the_work_is():
    assert share_out(10, [6.0, 3.0, 1.0]) == [6, 3, 1]
    assert share_out(3, [1.0, 0.0, 0.0]) == [1, 1, 1]
    with pytest.raises(ValueError, match="one for each of 3"):
        share_out(2, [1.0] * 3)
    machines = make_pools(CASCADE, 4, 4, size=8)
    assert [sum(one.processors for one in machines if k in one.stages) for k in range(3)] == [8, 4, 4]
    assert max(one.processors for one in machines) == 4
    grouped = make_pools(CASCADE, 1, 2, size=8, groups=[(0,), (1, 2)])
    assert [(list(one.stages), one.processors) for one in grouped] == [([0], 1), ([1, 2], 1)]
    with pytest.raises(ValueError, match="every stage somewhere"):
        Simulation(CASCADE, [Machine([0, 1], 1)], Policy())


def test_the_throughput_at_a_limit_follows_the_formula():
    """At batch 1 the 99th percentile of one server stays below any limit only below full load."""
    found = find_throughput(ONE, [Machine([0], 1)], ALONE, 0.020, samples=20_000)
    assert 0.7 * 500 < found.rate < 500
    assert found.p99[0] <= 0.020
    strict = find_throughput(ONE, [Machine([0], 1)], ALONE, 0.004, samples=10_000)
    assert strict.rate < found.rate
    assert find_throughput(ONE, [Machine([0], 1)], ALONE, 0.001, samples=500).rate == 0


def test_a_load_that_varies_takes_more_machines_than_an_even_one():
    def vary(rate):
        return [(0.5 * rate, 3000 / rate), (2.0 * rate, 1500 / rate)] * 2

    even, uneven = (find_throughput(ONE, [Machine([0], 1)], ALONE, 0.02, samples=9000, vary=v).rate for v in (None, vary))
    assert uneven < 0.75 * even


def test_machines_are_counted_with_some_to_spare():
    found = count_machines(CASCADE, 1e6, 4, Policy(8, 0.001), 0.02, simulated=2, samples=8000)
    assert found.machines == np.ceil(1e6 / (0.7 * found.rate))
    assert 0.5 < found.rate / (4 / CASCADE.work(8).sum()) < 1
    assert count_machines(ONE, 1e6, 1, ALONE, 0.001, simulated=1, samples=200).machines == 0
