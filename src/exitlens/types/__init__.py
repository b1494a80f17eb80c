"""The values that the verbs exchange. Tensors here are never changed after they are made."""

from exitlens.functional.drift import Drift, Monitor, reference_of
from exitlens.types.explanations import SCHEMA, ExitView, Explanation, Location
from exitlens.types.outputs import ExitOutput, LossTerms, Prediction
from exitlens.types.policies import CLUES, SCORES, Gate, Policy
from exitlens.types.preprocessing import Preprocess, TextPreprocess, import_tokenizers, preprocess_from_dict
from exitlens.types.traces import Trace

__all__ = [
    "CLUES",
    "SCHEMA",
    "SCORES",
    "Drift",
    "ExitOutput",
    "ExitView",
    "Explanation",
    "Gate",
    "Location",
    "LossTerms",
    "Monitor",
    "Policy",
    "Prediction",
    "Preprocess",
    "TextPreprocess",
    "Trace",
    "import_tokenizers",
    "preprocess_from_dict",
    "reference_of",
]
