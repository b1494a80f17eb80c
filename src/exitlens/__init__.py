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

from exitlens.data.fashion import load_fashion, load_scenes
from exitlens.data.folders import ImageStream, load_folder, load_torchvision, load_unlabelled, read_image, split_set
from exitlens.data.images import ImageSet
from exitlens.data.scenes import make_scenes
from exitlens.data.texts import TextSet, load_reviews, make_reviews, read_texts, word_tokenizer
from exitlens.delivery.bundle import load, save
from exitlens.errors import (
    AttachError,
    BundleError,
    CalibrationError,
    DataError,
    DriftWarning,
    EngineError,
    ExitlensError,
    HeadError,
    InputError,
    MissingExtraError,
    OutputError,
    OutputExistsError,
    PolicyError,
    StreamError,
    TrainingError,
)
from exitlens.functional.drift import Drift, Monitor
from exitlens.functional.losses import EGTLoss
from exitlens.functional.routing import route
from exitlens.model.attach import attach
from exitlens.model.backbones.build import build_backbone
from exitlens.model.backbones.weights import load_weights
from exitlens.model.cutting.placement import ExitPoint, exit_points
from exitlens.model.engine.tuning import Tuning
from exitlens.model.network import ExitNet
from exitlens.types import (
    ExitOutput,
    ExitView,
    Explanation,
    Gate,
    Location,
    LossTerms,
    Policy,
    Prediction,
    Preprocess,
    TextPreprocess,
    Trace,
)
from exitlens.workflow.calibration import calibrate
from exitlens.workflow.collection import collect
from exitlens.workflow.evaluation import Report, evaluate
from exitlens.workflow.explanation import explain, explain_batch
from exitlens.workflow.faithfulness import Faithfulness, faithfulness
from exitlens.workflow.inference.predict import predict
from exitlens.workflow.inference.stream import predict_stream
from exitlens.workflow.sweeping import Band, CurvePoint, SweepPoint, anytime, budgeted_batch, sweep
from exitlens.workflow.training.fit import FitResult, fit

__version__ = "0.1.0"

__all__ = [
    "AttachError",
    "Band",
    "BundleError",
    "CalibrationError",
    "CurvePoint",
    "DataError",
    "Drift",
    "DriftWarning",
    "EGTLoss",
    "EngineError",
    "ExitNet",
    "ExitOutput",
    "ExitPoint",
    "ExitView",
    "ExitlensError",
    "Explanation",
    "Faithfulness",
    "FitResult",
    "Gate",
    "HeadError",
    "ImageSet",
    "ImageStream",
    "InputError",
    "Location",
    "LossTerms",
    "MissingExtraError",
    "Monitor",
    "OutputError",
    "OutputExistsError",
    "Policy",
    "PolicyError",
    "Prediction",
    "Preprocess",
    "Report",
    "StreamError",
    "SweepPoint",
    "TextPreprocess",
    "TextSet",
    "Trace",
    "TrainingError",
    "Tuning",
    "anytime",
    "attach",
    "budgeted_batch",
    "build_backbone",
    "calibrate",
    "collect",
    "evaluate",
    "exit_points",
    "explain",
    "explain_batch",
    "faithfulness",
    "fit",
    "load",
    "load_fashion",
    "load_folder",
    "load_reviews",
    "load_scenes",
    "load_torchvision",
    "load_unlabelled",
    "load_weights",
    "make_reviews",
    "make_scenes",
    "predict",
    "predict_stream",
    "read_image",
    "read_texts",
    "route",
    "save",
    "split_set",
    "sweep",
    "word_tokenizer",
]
