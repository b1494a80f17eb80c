"""A subject of reports, measured on a few images."""

import exitlens as xl
from exitlens.delivery.report import Subject
from tests.conftest import make_net

POLICY = xl.Policy((0.9, 0.6))


def make_subject(name: str, data: xl.data.ImageSet, faithful: bool = True) -> Subject:
    net = make_net()
    net.describe(classes=data.classes, preprocess=data.preprocess)
    report = xl.evaluate(xl.collect(net, data), POLICY)
    checks = {"test": xl.measure_faithfulness(net, data)} if faithful else {}
    return Subject(name, net, POLICY, {"test": report}, checks)
