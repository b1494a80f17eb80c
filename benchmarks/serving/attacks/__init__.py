"""Requests that a server has to refuse."""
