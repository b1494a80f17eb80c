"""Builds the site from docs/: pages from elsewhere in the repository, the command line's help, the live example."""
