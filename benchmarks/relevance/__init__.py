"""Maps of what an answer depends on, ours and those of other libraries: how faithful they are, and what they take."""
