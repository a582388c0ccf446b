"""A cluster on virtual time: simulated workers and links under the router's own core."""
