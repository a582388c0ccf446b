"""The router: decides which workers take a request, and relays their tokens to the client."""
