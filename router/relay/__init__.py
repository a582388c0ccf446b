"""The way of tokens from workers to clients: when they wait for each other, and how long."""

from workers.compiled import prefer_compiled

prefer_compiled(__name__, __path__)
