"""Engines: what turns commands of a session into tokens."""

from workers.compiled import prefer_compiled

prefer_compiled(__name__, __path__)
