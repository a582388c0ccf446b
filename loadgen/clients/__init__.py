"""How requests get to an endpoint, and what comes back: our gRPC, or OpenAI's HTTP."""
