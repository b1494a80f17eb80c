"""The demo: train with and without EGT, compare, report."""
