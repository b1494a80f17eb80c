"""Choosing thresholds: the search, and the tests behind a certificate."""
