"""Where the state of requests lives: its sizes, who holds which part of it, and its addresses."""
