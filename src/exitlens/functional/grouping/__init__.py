"""Samples that belong together: what a test counts instead of samples, and a suspicion where nobody said so."""
