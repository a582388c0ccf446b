"""Scripts that train the small reference model the repository ships with.

Nothing here is needed to serve: the engine reads `workers/checkpoints/`. The folder exists so
that anyone can see where those weights came from and make them again.
"""
