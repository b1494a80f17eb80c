"""Formats of labelled data: tables (Parquet, Arrow, Hugging Face data sets) and tar shards."""
