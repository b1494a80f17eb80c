"""Measurements behind the documentation: each room measures, folds its runs into results/*.csv and writes its page."""
