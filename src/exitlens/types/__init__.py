"""The values that the verbs exchange. Tensors here are never changed after they are made.

Names are imported on first use: the command line reads the settings here without waiting for PyTorch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "explanations": "ExitView Explanation LabelView Location",
    "outputs": "ExitOutput LossTerms Prediction",
    "policies": "Calibration ConfidenceInterval CostAccuracy Gate Policy SweepPoint",
    "settings": "CalibrationRequest Temperatures TrainingSettings",
    "traces": "CompactLogits ExitLatency Trace",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
