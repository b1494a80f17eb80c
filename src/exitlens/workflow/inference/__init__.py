"""Adaptive inference on a batch or a stream."""
