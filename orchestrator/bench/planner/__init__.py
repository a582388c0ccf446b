"""What the planner costs, and what its shortcuts cost."""
