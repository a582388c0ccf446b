"""What Tandem adds to vLLM: the same model behind its own server and behind a router."""
