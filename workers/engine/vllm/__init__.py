"""vLLM as an engine: its own scheduler and connector behind the commands and events of a worker."""
