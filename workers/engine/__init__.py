"""Engines: what turns commands of a session into tokens."""
