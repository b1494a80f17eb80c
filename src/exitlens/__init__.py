"""Classifiers that answer early when they can, and show that the early answer looked at the right thing.

The flow, with ``import exitlens as xl``::

    net    = xl.attach(backbone, at=["layer1", "layer2"], num_classes=10, example=images[:1])
    outs   = net(images)                              # every exit: logits, attention, evidence
    result = xl.fit(net, train, val, epochs=8)        # Explanation-Guided Training
    trace  = xl.collect(net, calibration)             # one pass: every exit of every sample
    policy = xl.calibrate(trace, max_accuracy_drop=0.01)
    pred   = xl.predict(net, images, policy)          # adaptive: each image leaves at the first sure exit
    report = xl.evaluate(xl.collect(net, test), policy)
    why    = xl.explain(net, images[0], policy)
    xl.save(net, policy, "bundle")
    net, policy = xl.load("bundle")                   # xl.load("bundle", backbone=...) for a module of your own

``xl.data`` has data sets and preprocessing, ``xl.demo`` generated data, ``xl.errors`` every error and warning, and
``xl.types`` the values inside the results of the verbs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

# Public names by module. Each is imported when it is first used, so that `import exitlens` does not wait for PyTorch.
# Type checkers and editors read __init__.pyi; a test compares the two.
_MODULES = {
    "delivery.bundle": "load load_policies save",
    "edge.export": "export",
    "edge.int8": "export_int8 Int8Report",
    "edge.web": "export_web",
    "errors": "ExitlensError",
    "functional.drift": "Drift DriftMonitor",
    "functional.losses": "EGTLoss",
    "functional.routing": "route",
    "model.attach": "attach",
    "model.attribution": "attribute",
    "model.backbones.build": "build_backbone",
    "model.backbones.weights": "load_weights WeightsReport",
    "model.cutting.placement": "ExitCandidate list_exit_candidates",
    "model.engine.tuning": "Tuning",
    "model.network": "ExitNet",
    "ranks": "DistributedContext",
    "types": "CalibrationRequest ExitOutput Explanation Policy Prediction Trace TrainingSettings",
    "workflow.calibration": "calibrate",
    "workflow.collection": "collect",
    "workflow.evaluation": "Report evaluate measure_anytime measure_budgeted_batch sweep",
    "workflow.explanation": "explain explain_batch",
    "workflow.faithfulness": "Faithfulness measure_faithfulness",
    "workflow.inference": "predict predict_stream",
    "workflow.training.fit": "FitResult fit",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
_SPACES = ("data", "demo", "errors", "types")

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _SPACES:
        return import_module(f"exitlens.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'exitlens' has no attribute {name!r}")
    value = getattr(import_module(f"exitlens.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_SPACES})
