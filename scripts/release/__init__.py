"""Checks that a release can be made: builds the distributions, looks into them, installs them afresh and runs them."""
