"""From a backbone to a network with exits: cut into stages, add heads, count cost."""
