"""Series: what exits cost the final answer and save, on data sets that come with aeon, and whether maps find a motif."""
