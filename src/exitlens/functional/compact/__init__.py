"""Compact logits: made of logits (compress), and read as scores and likelihoods at any temperature (reading)."""
