"""Timing the network with exits against its plain backbone."""
