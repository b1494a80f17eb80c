"""Types of the public names for checkers and editors; __init__.py imports them when they are first used."""

from exitlens import data as data
from exitlens import demo as demo
from exitlens import errors as errors
from exitlens import types as types
from exitlens.delivery.bundle import load as load
from exitlens.delivery.bundle import load_policies as load_policies
from exitlens.delivery.bundle import save as save
from exitlens.edge.export import export as export
from exitlens.edge.int8 import Int8Report as Int8Report
from exitlens.edge.int8 import export_int8 as export_int8
from exitlens.edge.web import export_web as export_web
from exitlens.errors import ExitlensError as ExitlensError
from exitlens.functional.drift import Drift as Drift
from exitlens.functional.drift import DriftMonitor as DriftMonitor
from exitlens.functional.losses import EGTLoss as EGTLoss
from exitlens.functional.routing import route as route
from exitlens.model.attach import attach as attach
from exitlens.model.attribution import attribute as attribute
from exitlens.model.backbones.build import build_backbone as build_backbone
from exitlens.model.backbones.weights import WeightsReport as WeightsReport
from exitlens.model.backbones.weights import load_weights as load_weights
from exitlens.model.cutting.placement import ExitCandidate as ExitCandidate
from exitlens.model.cutting.placement import list_exit_candidates as list_exit_candidates
from exitlens.model.engine.tuning import Tuning as Tuning
from exitlens.model.network import ExitNet as ExitNet
from exitlens.ranks import DistributedContext as DistributedContext
from exitlens.types import CalibrationRequest as CalibrationRequest
from exitlens.types import ExitOutput as ExitOutput
from exitlens.types import Explanation as Explanation
from exitlens.types import Policy as Policy
from exitlens.types import Prediction as Prediction
from exitlens.types import Trace as Trace
from exitlens.types import TrainingSettings as TrainingSettings
from exitlens.workflow.calibration import calibrate as calibrate
from exitlens.workflow.collection import collect as collect
from exitlens.workflow.evaluation import Report as Report
from exitlens.workflow.evaluation import evaluate as evaluate
from exitlens.workflow.evaluation import measure_anytime as measure_anytime
from exitlens.workflow.evaluation import measure_budgeted_batch as measure_budgeted_batch
from exitlens.workflow.evaluation import sweep as sweep
from exitlens.workflow.explanation import explain as explain
from exitlens.workflow.explanation import explain_batch as explain_batch
from exitlens.workflow.faithfulness import Faithfulness as Faithfulness
from exitlens.workflow.faithfulness import measure_faithfulness as measure_faithfulness
from exitlens.workflow.inference import predict as predict
from exitlens.workflow.inference import predict_stream as predict_stream
from exitlens.workflow.training.fit import FitResult as FitResult
from exitlens.workflow.training.fit import fit as fit

__version__: str
__all__: list[str]
