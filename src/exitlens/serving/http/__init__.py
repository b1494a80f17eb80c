"""Answers requests over HTTP, in the Open Inference Protocol."""
