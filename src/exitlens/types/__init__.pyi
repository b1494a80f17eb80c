"""The names of :mod:`exitlens.types`, for type checkers."""

from .adapting import AdaptiveStatus as AdaptiveStatus
from .cues import Cue as Cue
from .cues import Cues as Cues
from .explanations import ExitView as ExitView
from .explanations import Explanation as Explanation
from .explanations import LabelView as LabelView
from .explanations import Location as Location
from .explanations import NumberView as NumberView
from .explanations import PixelView as PixelView
from .outputs import ExitCandidate as ExitCandidate
from .outputs import ExitOutput as ExitOutput
from .outputs import LossTerms as LossTerms
from .outputs import Prediction as Prediction
from .plans import SamplePlan as SamplePlan
from .policies import BindingCertificate as BindingCertificate
from .policies import Calibration as Calibration
from .policies import ConfidenceInterval as ConfidenceInterval
from .policies import CostAccuracy as CostAccuracy
from .policies import Gate as Gate
from .policies import Int8Report as Int8Report
from .policies import Policy as Policy
from .policies import SweepPoint as SweepPoint
from .settings import CalibrationRequest as CalibrationRequest
from .settings import Ignored as Ignored
from .settings import Temperatures as Temperatures
from .settings import TrainingSettings as TrainingSettings
from .swaps import AreaUnderCurve as AreaUnderCurve
from .swaps import Binding as Binding
from .swaps import CueSwap as CueSwap
from .swaps import SwapShares as SwapShares
from .tiles import Tiles as Tiles
from .traces import AnswerSummary as AnswerSummary
from .traces import CompactLogits as CompactLogits
from .traces import ExitLatency as ExitLatency
from .traces import PixelSummary as PixelSummary
from .traces import Trace as Trace
from .weights import WeightsReport as WeightsReport

__all__: list[str]
