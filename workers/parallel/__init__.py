"""Several ranks that serve one model together."""
