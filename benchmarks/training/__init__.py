"""Training: what a frozen backbone that runs once saves."""
