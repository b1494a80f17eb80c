"""Answers over HTTP on one machine: batches that form themselves, limits, metrics."""
