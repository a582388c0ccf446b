"""The load generator: traces, arrivals, prompts, clients, reports, SPEED-Bench."""
