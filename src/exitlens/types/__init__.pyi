"""The names of :mod:`exitlens.types`, for type checkers."""

from exitlens.types.explanations import ExitView as ExitView
from exitlens.types.explanations import Explanation as Explanation
from exitlens.types.explanations import LabelView as LabelView
from exitlens.types.explanations import Location as Location
from exitlens.types.outputs import ExitOutput as ExitOutput
from exitlens.types.outputs import LossTerms as LossTerms
from exitlens.types.outputs import Prediction as Prediction
from exitlens.types.policies import Calibration as Calibration
from exitlens.types.policies import ConfidenceInterval as ConfidenceInterval
from exitlens.types.policies import CostAccuracy as CostAccuracy
from exitlens.types.policies import Gate as Gate
from exitlens.types.policies import Policy as Policy
from exitlens.types.policies import SweepPoint as SweepPoint
from exitlens.types.settings import CalibrationRequest as CalibrationRequest
from exitlens.types.settings import Temperatures as Temperatures
from exitlens.types.settings import TrainingSettings as TrainingSettings
from exitlens.types.traces import CompactLogits as CompactLogits
from exitlens.types.traces import ExitLatency as ExitLatency
from exitlens.types.traces import Trace as Trace
