"""The study's promises, pages and plots, made from its runs."""
