"""Runs early-exit classifiers that ``exitlens export`` wrote, with ONNX Runtime and without PyTorch.

::

    import exitlens_runtime

    net  = exitlens_runtime.load("edge")                  # an edge bundle, or hf://user/name
    pred = net.predict(images)                            # float32 (B,C,H,W) -> labels, exits, confidence
    pred = net.predict_files(["photo.jpg"], attention=True)
"""

from __future__ import annotations

from exitlens_runtime.adapting import Adaptive
from exitlens_runtime.bundle import load
from exitlens_runtime.errors import BackendError, BundleError, ExitlensRuntimeError, HubError, InputError, PolicyError
from exitlens_runtime.network import EdgeNetwork, Prediction

__version__ = "0.2.0"
__all__ = [
    "Adaptive",
    "BackendError",
    "BundleError",
    "EdgeNetwork",
    "ExitlensRuntimeError",
    "HubError",
    "InputError",
    "PolicyError",
    "Prediction",
    "load",
]
