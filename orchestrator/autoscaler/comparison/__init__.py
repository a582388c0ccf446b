"""Policies side by side: the same traffic, workers and cold starts, by simulation."""
