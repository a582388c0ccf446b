"""A cluster on virtual time: simulated workers and links under the router's own core."""

from workers.compiled import prefer_compiled

prefer_compiled(__name__, __path__)
