"""What makes a site of docs/: pages from elsewhere in the repository, the command line's help, the live example."""
