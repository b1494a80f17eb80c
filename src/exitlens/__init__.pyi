"""The public names. __init__.py imports each when it is first used, so that `import exitlens` does not wait for PyTorch."""

from . import data as data
from . import demo as demo
from . import errors as errors
from . import types as types
from .delivery.bundle import load as load
from .delivery.bundle import load_policies as load_policies
from .delivery.bundle import save as save
from .delivery.hub import push_to_hub as push_to_hub
from .edge.export import export as export
from .edge.int8 import export_int8 as export_int8
from .edge.web import export_web as export_web
from .errors import ExitlensError as ExitlensError
from .functional.drift import Drift as Drift
from .functional.drift import DriftMonitor as DriftMonitor
from .functional.losses import EGTLoss as EGTLoss
from .functional.routing import route as route
from .model.attach import attach as attach
from .model.attribution import attribute as attribute
from .model.backbones.build import build_backbone as build_backbone
from .model.backbones.weights import load_weights as load_weights
from .model.cascade import cascade as cascade
from .model.cutting.placement import list_exit_candidates as list_exit_candidates
from .model.engine.adapting import Adaptive as Adaptive
from .model.engine.tuning import Tuning as Tuning
from .model.network import ExitNet as ExitNet
from .ranks import DistributedContext as DistributedContext
from .types import CalibrationRequest as CalibrationRequest
from .types import ExitOutput as ExitOutput
from .types import Policy as Policy
from .types import Prediction as Prediction
from .types import Trace as Trace
from .types import TrainingSettings as TrainingSettings
from .workflow.binding import certify_binding as certify_binding
from .workflow.calibration import calibrate as calibrate
from .workflow.collection import collect as collect
from .workflow.cues import find_cues as find_cues
from .workflow.evaluation import Report as Report
from .workflow.evaluation import evaluate as evaluate
from .workflow.evaluation import measure_anytime as measure_anytime
from .workflow.evaluation import measure_budgeted_batch as measure_budgeted_batch
from .workflow.evaluation import sweep as sweep
from .workflow.explanation import explain as explain
from .workflow.explanation import explain_batch as explain_batch
from .workflow.faithfulness import Faithfulness as Faithfulness
from .workflow.faithfulness import measure_faithfulness as measure_faithfulness
from .workflow.inference import predict as predict
from .workflow.inference import predict_stream as predict_stream
from .workflow.planning import plan_samples as plan_samples
from .workflow.training.fit import FitResult as FitResult
from .workflow.training.fit import fit as fit

__version__: str
__all__: list[str]
