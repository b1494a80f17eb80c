"""Training by two processes against one, and processes that are killed or hang."""
