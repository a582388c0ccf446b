"""Policy without I/O: events and the time go in, instructions come out, so all of it replays."""
