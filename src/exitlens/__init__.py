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
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

# Public names by module. Each is imported when it is first used, so that `import exitlens` does not wait for PyTorch;
# type checkers and editors read __init__.pyi, and a test holds the two together.
_MODULES = {
    "data.demo.garments": "load_fashion load_scenes make_scenes",
    "data.demo.reviews": "load_reviews make_reviews",
    "data.demo.signals": "load_blobs load_motifs make_blobs make_motifs",
    "data.folders": "load_arrays load_folder load_torchvision load_unlabelled",
    "data.sets": "ArraySet ImageSet LazySet",
    "data.splits": "split_set",
    "data.streams": "ImageStream",
    "data.texts": "read_texts TextSet word_tokenizer",
    "delivery.bundle": "load load_policies save",
    "edge.export": "export",
    "edge.int8": "export_int8 Int8Report",
    "edge.web": "export_web",
    "errors": "AttachError BundleError CalibrationError DataError DataWarning DistributedError DriftWarning EngineError "
    "ExitlensError ExportError InputError MissingExtraError OutputError OutputExistsError "
    "PolicyError ReachWarning RequestError StreamError TrainingError WeightsWarning",
    "functional.drift": "Drift Monitor",
    "functional.losses": "EGTLoss",
    "functional.routing": "route",
    "modalities.image": "read_image",
    "model.attach": "attach",
    "model.backbones.build": "build_backbone",
    "model.backbones.weights": "load_weights WeightsReport",
    "model.cutting.placement": "exit_points ExitPoint",
    "model.engine.tuning": "Tuning",
    "model.network": "ExitNet",
    "model.attribution": "compute_relevance",
    "ranks": "Ranks",
    "types": "Calibration CalibrationRequest CompactLogits ExitOutput ExitView Explanation Gate LabelView Location "
    "LossTerms MelSpectrogram Policy Prediction Preprocess SeriesPreprocess TextPreprocess Timing Trace VectorPreprocess "
    "VolumePreprocess",
    "workflow.calibration": "calibrate",
    "workflow.collection": "collect",
    "workflow.evaluation": "evaluate Report",
    "workflow.explanation": "explain explain_batch",
    "workflow.faithfulness": "Faithfulness faithfulness",
    "workflow.inference": "predict predict_stream",
    "workflow.sweeping": "anytime Band budgeted_batch CurvePoint sweep SweepPoint",
    "workflow.training.fit": "fit FitResult",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'exitlens' has no attribute {name!r}")
    value = getattr(import_module(f"exitlens.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
