"""The engine against everything a user would pick instead, on the clock."""
