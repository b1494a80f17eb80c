"""Load from outside: requests, when they come, and how much a server bears."""
