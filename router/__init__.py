"""The router: decides which workers take a request, and relays their tokens to the client."""

from workers.compiled import prefer_compiled

prefer_compiled(__name__, __path__)
