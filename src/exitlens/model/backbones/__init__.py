"""Backbones by name, the small network, and weights from files or libraries."""
