"""Whether maps are true, on networks and data that are not ours: what EGT and its rivals buy, and at what price."""
