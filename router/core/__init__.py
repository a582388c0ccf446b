"""Policy without I/O: events and the time go in, instructions come out, so all of it replays."""

from workers.compiled import prefer_compiled

prefer_compiled(__name__, __path__)
