"""Texts that people rated, and a pretrained network: answers, savings, words that explain them, other kinds of texts."""
