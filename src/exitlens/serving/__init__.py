"""Answers requests: inputs come over a network from other programs, labels and explanations go back."""
