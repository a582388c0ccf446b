"""The router: decides which workers take a request, and relays their tokens to the client."""

from router.compiled import prefer_compiled

prefer_compiled()
