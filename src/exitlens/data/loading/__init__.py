"""Loading: files read ahead and decoded in processes of their own."""
