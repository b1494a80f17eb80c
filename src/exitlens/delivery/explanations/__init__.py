"""Explanations as pictures, shaded tokens, tables and JSON."""
