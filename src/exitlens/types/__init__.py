"""The values that the verbs exchange. Tensors here are never changed after they are made.

Names are imported on first use: the command line reads the settings here without waiting for PyTorch.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
