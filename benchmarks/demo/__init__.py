"""What a finished run of `make demo` promises, and the tables about it."""
