"""Decoders of one file: series, sounds, volumes and vectors, none of which is trusted."""
