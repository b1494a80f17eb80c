"""The values that the verbs exchange. Tensors here are never changed after they are made.

Plotting is imported only where a value shows itself in a notebook.
"""

from exitlens.types.calibrations import Calibration
from exitlens.types.compact import CompactLogits
from exitlens.types.explanations import SCHEMA, ExitView, Explanation, LabelView, Location
from exitlens.types.outputs import ExitOutput, LossTerms, Prediction
from exitlens.types.policies import GATE_FEATURES, Gate, Policy
from exitlens.types.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    Preprocessing,
    TextPreprocess,
    import_tokenizers,
)
from exitlens.types.requests import CalibrationRequest, Temperatures
from exitlens.types.scaling import (
    ArrayPreprocess,
    MelSpectrogram,
    SeriesPreprocess,
    VectorPreprocess,
    VolumePreprocess,
)
from exitlens.types.tasks import SCORES
from exitlens.types.timings import Timing
from exitlens.types.traces import Trace

__all__ = [
    "GATE_FEATURES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SCHEMA",
    "SCORES",
    "ArrayPreprocess",
    "Calibration",
    "CalibrationRequest",
    "CompactLogits",
    "ExitOutput",
    "ExitView",
    "Explanation",
    "Gate",
    "LabelView",
    "Location",
    "LossTerms",
    "MelSpectrogram",
    "Policy",
    "Prediction",
    "Preprocess",
    "Preprocessing",
    "SeriesPreprocess",
    "Temperatures",
    "TextPreprocess",
    "Timing",
    "Trace",
    "VectorPreprocess",
    "VolumePreprocess",
    "import_tokenizers",
]
