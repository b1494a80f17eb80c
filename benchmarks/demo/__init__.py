"""What a finished run of `make demo-full` promises, and the tables about it."""
