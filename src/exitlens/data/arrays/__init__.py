"""Sets of series, volumes and vectors: in memory, from files and tables, and generated."""
