"""An engine that keeps time like a real one and computes nothing: for routers under test."""

from workers.compiled import prefer_compiled

prefer_compiled(__name__, __path__)
