"""The operator: a pure core that says what to do, and a thin shell that does it."""
