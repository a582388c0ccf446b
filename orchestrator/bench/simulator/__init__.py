"""How fast the simulator is, and how close to a live cluster."""
