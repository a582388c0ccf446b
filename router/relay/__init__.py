"""The way of tokens from workers to clients: when they wait for each other, and how long."""
