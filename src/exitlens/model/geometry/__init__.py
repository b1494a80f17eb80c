"""Where the maps of the exits lie in the image."""
