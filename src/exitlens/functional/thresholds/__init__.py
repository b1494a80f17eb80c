"""Choosing thresholds: the search, cross-validation, and the tests behind a certificate."""
