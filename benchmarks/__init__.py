"""Measurements behind the documentation: each room measures, folds its runs into results/*.csv and writes its page."""

import os

# Networks that are timed in turn each keep the code that oneDNN makes for their shapes, as a network alone in its process would.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "65536")
