"""The explorer: a local page where one watches a network decide. ``core`` answers, ``page`` draws, ``interface`` serves."""
