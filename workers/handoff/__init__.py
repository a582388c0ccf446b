"""Moving the state of a request from the worker that read its prompt to the one that decodes it."""
