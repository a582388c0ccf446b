"""Serving a file of prompts without a cluster: two workers of our own, and the router's core."""
