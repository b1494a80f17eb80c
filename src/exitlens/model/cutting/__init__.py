"""Cutting a backbone into stages: trace it, find boundaries, split it there, verify; placement and cost say where."""
