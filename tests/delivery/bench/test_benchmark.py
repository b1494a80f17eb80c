import torch

import exitlens as xl
from exitlens.delivery.bench.benchmark import AS_IS, TUNED, Bench, tabulate
from exitlens.delivery.bench.contenders import Planned, measure_router_share, plan_exits
from tests.conftest import TinyNet, make_net


def test_a_bench_has_every_contender_with_figures():
    net = make_net()
    net.tuning = xl.Tuning(micro_batch=4, folded=True)
    images = torch.randn(6, 3, 16, 16)
    bench = Bench(TinyNet(), net, images, xl.Policy((0.6, 0.6)))
    found = bench.run(8, rounds=2, seconds=0)
    names = [row["name"] for row in found["rows"]]
    assert {AS_IS, TUNED, "exits, nobody leaves", "exits, all at exit 0", "exits, 80/20", "exits, policy"} <= set(names)
    assert found["samples"] == 40
    by_name = {row["name"]: row for row in found["rows"]}
    assert by_name[AS_IS]["speedup"] == [1.0, 1.0, 1.0]
    assert by_name["exits, all at exit 0"]["ideal_ms"] < by_name["exits, nobody leaves"]["ideal_ms"]
    assert "saving" in by_name["exits, 80/20"]
    assert "saving" not in by_name["exits, nobody leaves"]
    assert by_name["exits, nobody leaves"]["peak_mb"] > 0
    assert len(tabulate(found)) == len(names) + 1
    few = bench.run(2, rounds=1, seconds=0, memory=False, keep=lambda name: "80/20" in name)
    assert {row["name"] for row in few["rows"]} == {AS_IS, TUNED, "exits, 80/20", "exits, 80/20, whole batches"}
    assert 0 < bench.router_time(8, runs=2)[0] < 1
    assert 0 < measure_router_share(Planned(net, plan_exits((1, 1, 1), 6)), images)() < 1
